//! What polls other servers, and lets itself be heard there, as those servers tell.
//!
//! A server whose word is lost has not said that its proxies are gone: they lose it, too, and ask the next one, picking
//! from what they hold meanwhile. So when its document goes, or one appears that another process of it writes, the proxies
//! of the last one are waited for as any that fell silent, until they are heard anew.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_model::NodeId;
use rung_planner::{Proxies, Proxy};

use crate::served::{self, Served};

#[derive(Debug, Default)]
pub(super) struct Elsewhere(BTreeMap<String, Server>);

#[derive(Debug, Default)]
struct Server {
    /// Of the document: see [`Served::life`].
    life: u64,
    nodes: Vec<NodeId>,
    proxies: BTreeMap<String, Proxy>,
    /// Told of in an earlier life, and not heard since.
    lost: BTreeMap<String, Proxy>,
}

impl Elsewhere {
    pub fn hear(&mut self, server: &str, served: Served, now: Duration) {
        let known = self.0.entry(server.to_owned()).or_default();
        if known.life != served.life {
            known.lose(now);
        }
        known.life = served.life;
        known.nodes.clone_from(&served.nodes);
        known.proxies = served.into_proxies().collect();
        let Server { proxies, lost, .. } = known;
        lost.retain(|proxy, _| !proxies.contains_key(proxy));
    }

    /// The document of a server has gone with its lease, which was not kept for a while.
    pub fn lose(&mut self, server: &str, now: Duration) {
        if let Some(known) = self.0.get_mut(server) {
            known.lose(now.saturating_sub(served::UNHEARD_WHEN_GONE));
        }
    }

    /// The same for all but these.
    pub fn lose_others(&mut self, there: &[&str], now: Duration) {
        let gone: Vec<String> =
            self.0.keys().filter(|server| !there.contains(&server.as_str())).cloned().collect();
        gone.iter().for_each(|server| self.lose(server, now));
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.0.values().flat_map(|server| &server.nodes)
    }

    /// For the planner, beside those that poll here, and under names that none of these has.
    pub fn proxies(&self, here: &Proxies) -> impl Iterator<Item = (String, Proxy)> {
        let named = |server: &str, name: &str, proxy: &Proxy| (format!("{server}/{name}"), proxy.clone());
        self.0.iter().flat_map(move |(server, known)| {
            let lost = known.lost.iter().filter(|(name, proxy)| !self.is_heard_since(name, proxy, here));
            known
                .proxies
                .iter()
                .chain(lost)
                .map(|(name, proxy)| named(server, name, proxy))
                .collect::<Vec<_>>()
        })
    }

    /// Whether a proxy that was lost acknowledges more than it had then, wherever: what it says never goes back.
    fn is_heard_since(&self, name: &str, lost: &Proxy, here: &Proxies) -> bool {
        let elsewhere = self.0.values().filter_map(|server| server.proxies.get(name));
        here.0.get(name).into_iter().chain(elsewhere).any(|heard| heard.acknowledged > lost.acknowledged)
    }
}

impl Server {
    fn lose(&mut self, since: Duration) {
        self.nodes.clear();
        let lost = std::mem::take(&mut self.proxies).into_iter();
        self.lost.extend(lost.map(|(name, proxy)| (name, Proxy { silent_since: Some(since), ..proxy })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::ServedProxy;
    use rung_model::Generation;
    use rung_planner::proxies::SILENT_AFTER;

    const AT: Duration = Duration::from_secs(100);

    fn at(revision: u64) -> Generation {
        Generation::new(1, revision)
    }

    fn served(life: u64, proxies: &[(&str, u64)]) -> Served {
        let told = |(name, revision): &(&str, u64)| {
            ((*name).to_owned(), ServedProxy { acknowledged: at(*revision), busy: Vec::new() })
        };
        Served { life, proxies: proxies.iter().map(told).collect(), ..Served::default() }
    }

    /// Whether all that are waited for have acknowledged it, with one that polls here and has.
    fn have_acknowledged(elsewhere: &Elsewhere, here: &[(&str, u64)], revision: u64, now: Duration) -> bool {
        let here = here.iter().map(|(name, revision)| {
            let proxy = Proxy { acknowledged: at(*revision), draining: BTreeMap::new(), silent_since: None };
            ((*name).to_owned(), proxy)
        });
        let mut all = Proxies(here.collect());
        let far: Vec<_> = elsewhere.proxies(&all).collect();
        all.0.extend(far);
        all.have_acknowledged(at(revision), now)
    }

    #[test]
    fn the_proxies_of_a_server_that_was_restarted_are_waited_for_until_they_are_heard_anew() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("server-2", served(1, &[("ingress", 7)]), AT);
        elsewhere.hear("server-2", served(2, &[]), AT);
        let here = [("other", 9)];
        assert!(
            !have_acknowledged(&elsewhere, &here, 9, AT),
            "an empty document ended the wait for its proxy"
        );
        assert!(
            have_acknowledged(&elsewhere, &here, 9, AT + SILENT_AFTER),
            "one that never came back is waited for, for ever"
        );
        elsewhere.hear("server-2", served(2, &[("ingress", 8)]), AT);
        assert!(
            !have_acknowledged(&elsewhere, &here, 9, AT + SILENT_AFTER),
            "it is there, and picks from older"
        );
        elsewhere.hear("server-2", served(2, &[("ingress", 9)]), AT);
        assert!(have_acknowledged(&elsewhere, &here, 9, AT), "its earlier word counts beside its last one");
    }

    #[test]
    fn a_proxy_that_lost_its_server_is_believed_at_the_next() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("server-2", served(1, &[("ingress", 7)]), AT);
        elsewhere.lose("server-2", AT);
        elsewhere.hear("server-3", served(1, &[("ingress", 7)]), AT);
        assert!(!have_acknowledged(&elsewhere, &[], 9, AT));
        assert!(have_acknowledged(&elsewhere, &[("ingress", 9)], 7, AT));
        elsewhere.hear("server-3", served(1, &[("ingress", 9)]), AT);
        assert!(have_acknowledged(&elsewhere, &[], 9, AT), "what it says at another server does not count");
    }

    #[test]
    fn a_server_that_goes_on_says_who_is_gone() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("server-2", served(1, &[("ingress", 7)]), AT);
        elsewhere.hear("server-2", served(1, &[]), AT);
        assert!(have_acknowledged(&elsewhere, &[("other", 9)], 9, AT), "one that has left is waited for");
    }

    #[test]
    fn a_document_that_has_gone_was_not_kept_for_a_while() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("server-2", served(1, &[("ingress", 7)]), AT);
        elsewhere.lose_others(&["server-3"], AT);
        let (here, died) = ([("other", 9)], AT - served::UNHEARD_WHEN_GONE);
        let early = died + SILENT_AFTER - Duration::from_millis(1);
        assert!(
            !have_acknowledged(&elsewhere, &here, 9, early),
            "its proxy may serve, and is not waited for"
        );
        assert!(have_acknowledged(&elsewhere, &here, 9, died + SILENT_AFTER), "it is waited for too long");
    }
}
