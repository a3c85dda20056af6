//! The nodes that belong to the cluster, as those see it who accept connections.

use std::collections::BTreeMap;
use std::sync::Arc;

use rung_model::{NodeId, NodeRole};
use tokio::sync::watch;

use crate::fingerprint::Fingerprint;
use crate::peer::Peer;

/// What a node must show to be taken for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub role: NodeRole,
    pub key: Fingerprint,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberList(pub BTreeMap<NodeId, Member>);

impl MemberList {
    /// Whether a verified certificate is of a node that still belongs here.
    pub fn admits(&self, peer: &Peer) -> bool {
        self.0.get(&peer.node).is_some_and(|member| member.role == peer.role && member.key == peer.key)
    }
}

/// The list that is in force; connections of those who leave it are cut.
#[derive(Debug, Clone)]
pub struct Members(watch::Sender<Arc<MemberList>>);

impl Default for Members {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Members {
    /// Wakes the connections only when somebody may have to go: thousands wait for that, and nodes that join are none of
    /// their business.
    pub fn set(&self, list: MemberList) {
        self.0.send_if_modified(|held| {
            let is_anybody_gone = held.0.iter().any(|(node, member)| list.0.get(node) != Some(member));
            *held = Arc::new(list);
            is_anybody_gone
        });
    }

    /// What is said of one node; `None`: it does not belong here any more.
    pub fn set_one(&self, node: &NodeId, member: Option<Member>) {
        self.0.send_if_modified(|held| {
            let known = held.0.get(node);
            if known == member.as_ref() {
                return false;
            }
            let is_gone = known.is_some();
            let list = Arc::make_mut(held);
            match member {
                Some(member) => drop(list.0.insert(node.clone(), member)),
                None => drop(list.0.remove(node)),
            }
            is_gone
        });
    }

    pub fn admits(&self, peer: &Peer) -> bool {
        self.0.borrow().admits(peer)
    }

    /// Waits until a node does not belong here any more.
    pub async fn gone(&self, peer: Peer) {
        let mut lists = self.0.subscribe();
        // An error would mean that this end of the channel is gone, which it is not.
        let _ = lists.wait_for(|list| !list.admits(&peer)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(role: NodeRole) -> Member {
        Member { role, key: Fingerprint::of(b"a key") }
    }

    #[test]
    fn connections_are_woken_when_somebody_goes_or_is_somebody_else_and_not_when_somebody_comes() {
        let (members, a, b) = (Members::default(), NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let mut connection = members.0.subscribe();
        let mut is_woken = || {
            let is_woken = connection.has_changed().unwrap();
            connection.borrow_and_update();
            is_woken
        };
        members.set(MemberList([(a.clone(), member(NodeRole::Worker))].into()));
        assert!(!is_woken(), "a came with the list");
        members.set_one(&b, Some(member(NodeRole::Worker)));
        assert!(!is_woken(), "b came");
        members.set_one(&b, Some(member(NodeRole::Ingress)));
        assert!(is_woken(), "what was b as a worker is not admitted any more");
        members.set_one(&a, None);
        assert!(is_woken(), "a went");
        members.set_one(&a, None);
        assert!(!is_woken(), "a was gone before");
        members.set(MemberList::default());
        assert!(is_woken(), "b went with the list");
    }
}
