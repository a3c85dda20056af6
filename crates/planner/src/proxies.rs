//! What the proxies have acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_model::{Generation, InstanceId};

/// A proxy that was not heard of for this long leaves the wait: a dead ingress must not hold a deployment up, and
/// an un-routed instance answers a stale proxy with "not sent, try elsewhere" or refuses its connection.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Every proxy that polled since this leadership began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(pub BTreeMap<String, Proxy>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// All threads of the proxy pick from documents of this generation or newer.
    pub acknowledged: Generation,
    /// Requests in flight for the instances that are draining.
    pub draining: BTreeMap<InstanceId, u64>,
    /// When its last poll ended, on the clock's `elapsed`; `None` while one is waiting here.
    pub silent_since: Option<Duration>,
}

impl Proxies {
    /// Those that are waited for.
    pub fn heard(&self, elapsed: Duration) -> impl Iterator<Item = (&str, &Proxy)> {
        let all = self.0.iter().map(|(name, proxy)| (name.as_str(), proxy));
        all.filter(move |(_, proxy)| {
            proxy.silent_since.is_none_or(|since| elapsed.saturating_sub(since) < SILENT_AFTER)
        })
    }

    fn waited_for(&self, elapsed: Duration) -> impl Iterator<Item = &Proxy> {
        self.heard(elapsed).map(|(_, proxy)| proxy)
    }

    /// Whether every proxy that is waited for picks from this generation or newer.
    ///
    /// A new leader has heard of no proxy yet although some may serve: it believes in their absence only after a
    /// full window of silence.
    pub fn have_acknowledged(&self, generation: Generation, elapsed: Duration) -> bool {
        if self.0.is_empty() && elapsed < SILENT_AFTER {
            return false;
        }
        self.waited_for(elapsed).all(|proxy| proxy.acknowledged >= generation)
    }

    /// Requests in flight for an instance, over all proxies that are waited for.
    pub fn in_flight(&self, instance: &InstanceId, elapsed: Duration) -> u64 {
        self.waited_for(elapsed).filter_map(|proxy| proxy.draining.get(instance)).sum()
    }

    /// When the next proxy leaves the wait.
    pub fn next_silence(&self, elapsed: Duration) -> Option<Duration> {
        let leaving = self.0.values().filter_map(|proxy| Some(proxy.silent_since? + SILENT_AFTER));
        let first = (self.0.is_empty() && elapsed < SILENT_AFTER).then_some(SILENT_AFTER);
        leaving.chain(first).filter(|at| *at > elapsed).min()
    }

    /// Proxies that left the wait without having acknowledged this generation, to be named in timelines. One that is heard of at
    /// another server, as `<server>/<proxy>`, is not silent.
    pub fn given_up(&self, generation: Generation, elapsed: Duration) -> BTreeSet<&str> {
        let own = |name| str::rsplit(name, '/').next().unwrap_or(name);
        let heard: BTreeSet<&str> = self.heard(elapsed).map(|(name, _)| own(name)).collect();
        let behind = self.0.iter().filter(|(_, proxy)| proxy.acknowledged < generation);
        behind.map(|(name, _)| own(name)).filter(|name| !heard.contains(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(revision: u64, silent_since: Option<u64>) -> Proxy {
        Proxy {
            acknowledged: Generation::new(1, revision),
            draining: BTreeMap::new(),
            silent_since: silent_since.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_new_leader_does_not_take_silence_for_absence_at_once() {
        let nobody = Proxies::default();
        assert!(!nobody.have_acknowledged(Generation::new(1, 5), Duration::from_secs(9)));
        assert!(nobody.have_acknowledged(Generation::new(1, 5), Duration::from_secs(10)));
    }

    #[test]
    fn a_proxy_that_is_silent_for_ten_seconds_is_no_longer_waited_for() {
        let mut proxies = Proxies::default();
        proxies.0.insert("a".into(), proxy(9, None));
        proxies.0.insert("b".into(), proxy(3, Some(100)));
        let wanted = Generation::new(1, 9);
        assert!(!proxies.have_acknowledged(wanted, Duration::from_secs(109)), "b was not waited for");
        assert!(proxies.have_acknowledged(wanted, Duration::from_secs(110)), "b was waited for, for ever");
        assert_eq!(proxies.next_silence(Duration::from_secs(105)), Some(Duration::from_secs(110)));
    }

    #[test]
    fn who_was_given_up_is_named_unless_it_is_heard_of_at_another_server() {
        let mut proxies = Proxies::default();
        proxies.0.insert("a".into(), proxy(9, None));
        proxies.0.insert("b".into(), proxy(3, Some(100)));
        let given_up = |proxies: &Proxies, revision, elapsed| -> Vec<String> {
            let named = proxies.given_up(Generation::new(1, revision), Duration::from_secs(elapsed));
            named.into_iter().map(str::to_owned).collect()
        };
        assert!(given_up(&proxies, 9, 109).is_empty(), "it is still waited for");
        assert_eq!(given_up(&proxies, 9, 110), ["b"]);
        assert!(given_up(&proxies, 3, 110).is_empty(), "it had acknowledged that before");
        proxies.0.insert("server-2/b".into(), proxy(9, None));
        assert!(given_up(&proxies, 9, 110).is_empty(), "it asks another server now");
    }
}
