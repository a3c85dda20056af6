//! What the proxies that poll this server have acknowledged, and which agents it hears, told to whichever server plans.
//!
//! Proxies poll the server that is nearest to them. The leader must know what all of them pick from before it lets an
//! instance go; so each server keeps one leased document, `served/<server>`, about its own proxies, and the leader has
//! them by its watch like everything else. It is written when it changes, at most ten times a second: a handoff has a few
//! stages, and how many requests an instance still has in flight is told as none or some.
//!
//! The lease ends five seconds after a server has died; its nodes count as silent then, and so do its proxies, which are
//! waited for until they were silent for as long as any. A server that was started again and knows nobody yet does not take
//! back what it told before: its document has another life.
//! A server that could not keep its lease for so long is cut off: it sends nodes and proxies to the others.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rung_api::wire::ProxyTraffic;
use rung_model::{Generation, InstanceId, NodeId, keys};
use rung_planner::{Proxies, Proxy};
use rung_store::{LeaseId, Op, StoreError, Txn};
use serde::{Deserialize, Serialize};

use crate::shared::Control;

/// Short enough that with a node's window behind it what ran beside a server that died runs elsewhere within 15 s.
const LEASE: Duration = Duration::from_secs(5);
const KEEP_EVERY: Duration = Duration::from_millis(1500);
/// When a document goes with its lease, its server has not kept it for at least so long.
pub const UNHEARD_WHEN_GONE: Duration = LEASE.checked_sub(KEEP_EVERY).expect("it is kept before it ends");

/// Between two writes; a stage of a handoff waits for as long at most.
const AT_MOST_EVERY: Duration = Duration::from_millis(100);

/// At `served/<server>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Another one when the server's process, or what it knew, is another: who is told of no more has not left then. The
    /// lease of the document.
    #[serde(default)]
    pub life: u64,
    /// Whose agents let themselves be heard here.
    #[serde(default)]
    pub nodes: Vec<NodeId>,
    pub proxies: BTreeMap<String, ServedProxy>,
    /// What they counted of apps whose releases are being judged; nothing where the server itself plans.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traffic: BTreeMap<String, ProxyTraffic>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedProxy {
    pub acknowledged: Generation,
    /// Draining instances that still have requests in flight.
    #[serde(default)]
    pub busy: Vec<InstanceId>,
}

impl Served {
    /// Of the proxies that are waited for.
    pub fn of(proxies: &Proxies, now: Duration) -> Self {
        let is_waited_for = |proxy: &Proxy| {
            proxy
                .silent_since
                .is_none_or(|since| now.saturating_sub(since) < rung_planner::proxies::SILENT_AFTER)
        };
        let told = proxies.0.iter().filter(|(_, proxy)| is_waited_for(proxy)).map(|(name, proxy)| {
            let busy =
                proxy.draining.iter().filter(|(_, count)| **count > 0).map(|(id, _)| id.clone()).collect();
            (name.clone(), ServedProxy { acknowledged: proxy.acknowledged, busy })
        });
        Self { proxies: told.collect(), ..Self::default() }
    }

    /// For the planner.
    pub fn into_proxies(self) -> impl Iterator<Item = (String, Proxy)> {
        self.proxies.into_iter().map(|(name, told)| {
            let draining = told.busy.into_iter().map(|id| (id, 1)).collect();
            let proxy = Proxy { acknowledged: told.acknowledged, draining, silent_since: None };
            (name, proxy)
        })
    }
}

pub fn key(server: &NodeId) -> String {
    format!("{}{server}", keys::SERVED)
}

/// Keeps this server's document as its proxies are, as long as the server runs.
pub(crate) async fn tell(control: Control) {
    let mut changes = control.inner.changes.subscribe();
    let mut lease: Option<(LeaseId, Duration)> = None;
    let mut told: Option<Served> = None;
    let mut kept = control.clock().elapsed;
    loop {
        let now = control.clock().elapsed;
        lease = keep(&control, lease, now).await;
        kept = lease.map_or(kept, |(_, at)| kept.max(at));
        let is_cut_off = control.clock().elapsed > kept + LEASE;
        control.inner.is_cut_off.store(is_cut_off, Ordering::Release);
        if lease.is_none() {
            told = None;
        }
        let mut served = control.read_loop(|reconcile| Served {
            traffic: reconcile.traffic_to_pass_on(),
            ..Served::of(reconcile.proxies(), now)
        });
        served.nodes = control.heard_lately();
        served.life = lease.map_or(0, |(LeaseId(id), _)| id);
        if let Some((lease, _)) = lease
            && told.as_ref() != Some(&served)
        {
            told = write(&control, lease, &served).await.then_some(served);
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
        // Silence and the lease need a look without any change, too.
        let _ = tokio::time::timeout(KEEP_EVERY, changes.changed()).await;
    }
}

impl Control {
    /// Whether nothing is heard of the other servers, so that this one must not be taken for them.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.inner.is_cut_off.load(Ordering::Acquire)
    }

    /// Nodes whose agents have beaten here within their window.
    fn heard_lately(&self) -> Vec<NodeId> {
        let beats = self.inner.beats.lock().expect("no panic while held");
        let lately = beats.iter().filter(|(_, at)| at.elapsed() < rung_planner::liveness::LOST_AFTER);
        lately.map(|(node, _)| node.clone()).collect()
    }
}

/// The lease as long as it lives; a new one when there is none. Kept when it is due.
async fn keep(
    control: &Control,
    lease: Option<(LeaseId, Duration)>,
    now: Duration,
) -> Option<(LeaseId, Duration)> {
    let store = &control.inner.store;
    match lease {
        Some((id, kept)) if now < kept + KEEP_EVERY => Some((id, kept)),
        Some((id, kept)) => match store.lease_keepalive(id).await {
            Ok(()) => Some((id, now)),
            Err(StoreError::NoLease(_)) => None,
            // Perhaps it lives; the next look says.
            Err(_) => Some((id, kept)),
        },
        None => store.lease_grant(LEASE).await.ok().map(|id| (id, now)),
    }
}

async fn write(control: &Control, lease: LeaseId, served: &Served) -> bool {
    let value = serde_json::to_vec(served).expect("names and numbers serialize");
    let put = Op::Put { key: key(&control.inner.node), value, lease: Some(lease) };
    // Nobody else writes it.
    matches!(control.inner.store.txn(Vec::new(), vec![put]).await, Ok(Txn::Committed(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_proxy_holds_a_handoff_up_as_the_proxy_itself_would() {
        let mut proxies = Proxies::default();
        let instance: InstanceId = InstanceId::new("shop-web-a4").unwrap();
        let proxy = |silent_since| Proxy {
            acknowledged: Generation::new(2, 7),
            draining: [(instance.clone(), 41)].into(),
            silent_since,
        };
        proxies.0.insert("ingress".into(), proxy(None));
        proxies.0.insert("gone".into(), proxy(Some(Duration::ZERO)));
        let served = Served::of(&proxies, Duration::from_secs(60));
        assert_eq!(served.proxies.len(), 1, "a proxy that is silent for a minute is waited for");
        let far: BTreeMap<String, Proxy> = served.into_proxies().collect();
        let told = &far["ingress"];
        assert_eq!((told.acknowledged, told.draining[&instance]), (Generation::new(2, 7), 1));
    }
}
