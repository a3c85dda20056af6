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
    pub fn set(&self, list: MemberList) {
        self.0.send_if_modified(|held| {
            let is_news = **held != list;
            if is_news {
                *held = Arc::new(list);
            }
            is_news
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
