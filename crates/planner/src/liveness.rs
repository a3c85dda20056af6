//! Which nodes are lost: those whose agents were not heard of for a while.
//!
//! What is heard is not in the store: it lives with the leader, and a new leader counts every node alive for a whole
//! window. When most nodes fall silent at once it is more likely that this server is cut off, or that something all of
//! them share has failed, than that all of them died: then a brake holds, and no node counts as lost until they are heard
//! again or are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_model::NodeId;

/// Agents beat every two seconds: four in a row are missing.
pub const LOST_AFTER: Duration = Duration::from_secs(8);
/// Two beats in a row are missing: it may be among those that vanish at once.
const SUSPECT_AFTER: Duration = Duration::from_millis(4500);

/// See the module's text. Times are the leadership's `elapsed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Liveness {
    heard: BTreeMap<NodeId, Duration>,
    lost: BTreeSet<NodeId>,
    braked: bool,
}

impl Liveness {
    /// An agent was heard. True when that is news.
    pub fn heard(&mut self, node: &NodeId, now: Duration) -> bool {
        self.heard.insert(node.clone(), now);
        self.lost.remove(node)
    }

    /// Looks at the nodes that there are. True when one was lost or is not any more, or the brake changed.
    pub fn look<'n>(&mut self, nodes: impl Iterator<Item = &'n NodeId>, now: Duration) -> bool {
        let before = (self.lost.clone(), self.braked);
        let nodes: BTreeSet<&NodeId> = nodes.collect();
        self.heard.retain(|node, _| nodes.contains(node));
        self.lost.retain(|node| nodes.contains(node));
        for node in nodes {
            self.heard.entry(node.clone()).or_insert(now);
        }
        let silent_for = |least: Duration| {
            let silent = self.heard.iter().filter(move |(_, heard)| now >= **heard + least);
            silent.map(|(node, _)| node).filter(|node| !self.lost.contains(*node))
        };
        let known = self.heard.len() - self.lost.len();
        self.braked = silent_for(SUSPECT_AFTER).count() * 2 > known;
        if !self.braked {
            let gone: Vec<NodeId> = silent_for(LOST_AFTER).cloned().collect();
            self.lost.extend(gone);
        }
        before != (self.lost.clone(), self.braked)
    }

    /// When to look again, if nothing is heard until then.
    pub fn next_look(&self, now: Duration) -> Option<Duration> {
        let alive = self.heard.iter().filter(|(node, _)| !self.lost.contains(*node));
        let times = alive.flat_map(|(_, heard)| [*heard + SUSPECT_AFTER, *heard + LOST_AFTER]);
        times.filter(|at| *at > now).min()
    }

    pub fn is_lost(&self, node: &NodeId) -> bool {
        self.lost.contains(node)
    }

    /// Most nodes are silent, and nothing is moved.
    pub fn is_braked(&self) -> bool {
        self.braked
    }
}
