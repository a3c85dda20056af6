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
    /// Those that vanished at once; while there are any the brake holds.
    silent: BTreeSet<NodeId>,
}

impl Liveness {
    /// An agent was heard. True when that is news.
    pub fn heard(&mut self, node: &NodeId, now: Duration) -> bool {
        self.heard.insert(node.clone(), now);
        self.lost.remove(node)
    }

    /// Looks at the nodes that there are. True when one was lost or is not any more, or the brake changed.
    pub fn look<'n>(&mut self, nodes: impl Iterator<Item = &'n NodeId>, now: Duration) -> bool {
        let before = (self.lost.clone(), self.silent.clone());
        let nodes: BTreeSet<&NodeId> = nodes.collect();
        self.heard.retain(|node, _| nodes.contains(node));
        self.lost.retain(|node| nodes.contains(node));
        for node in &nodes {
            self.heard.entry((*node).clone()).or_insert(now);
        }
        let silent = self.silent_for(SUSPECT_AFTER, now);
        let known = self.heard.len() - self.lost.len();
        if silent.len() * 2 > known {
            self.silent = silent;
        } else {
            // They come back one after the other: those that are not heard yet get a whole window from the first on.
            let some_are_back = self.silent.iter().any(|node| nodes.contains(node) && !silent.contains(node));
            if some_are_back {
                self.heard.extend(silent.into_iter().map(|node| (node, now)));
            }
            self.silent.clear();
            let gone = self.silent_for(LOST_AFTER, now);
            self.lost.extend(gone);
        }
        before != (self.lost.clone(), self.silent.clone())
    }

    /// Nodes that are not lost yet and were not heard for so long.
    fn silent_for(&self, least: Duration, now: Duration) -> BTreeSet<NodeId> {
        let silent = self.heard.iter().filter(|(_, heard)| now >= **heard + least);
        silent.map(|(node, _)| node).filter(|node| !self.lost.contains(*node)).cloned().collect()
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
        !self.silent.is_empty()
    }

    /// The nodes that the brake holds for: whether they are lost is not decided.
    pub fn silent(&self) -> &BTreeSet<NodeId> {
        &self.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<NodeId> {
        (0..count).map(|number| NodeId::new(format!("node-{number}")).unwrap()).collect()
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Beats of `alive` every two seconds up to `until`, with a look at each.
    fn beat(liveness: &mut Liveness, nodes: &[NodeId], alive: &[NodeId], from: u64, until: u64) {
        for second in (from..=until).step_by(2) {
            let now = Duration::from_secs(second);
            for node in alive {
                liveness.heard(node, now);
            }
            liveness.look(nodes.iter(), now);
        }
    }

    #[test]
    fn a_silent_node_is_lost_after_its_window_and_back_when_it_is_heard() {
        let nodes = nodes(3);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        beat(&mut liveness, &nodes, &nodes[..2], 12, 16);
        assert!(!liveness.is_lost(&nodes[2]), "it was silent for six seconds only");
        assert_eq!(liveness.next_look(at(17.0)), Some(at(18.0)), "the window's end is not awaited");
        assert!(liveness.look(nodes.iter(), at(18.0)), "the loss is no news");
        assert!(liveness.is_lost(&nodes[2]) && !liveness.is_lost(&nodes[0]));
        assert!(liveness.heard(&nodes[2], at(19.0)), "its return is no news");
        assert!(!liveness.is_lost(&nodes[2]));
    }

    #[test]
    fn a_new_leader_counts_every_node_alive_for_a_whole_window() {
        let nodes = nodes(3);
        let mut liveness = Liveness::default();
        liveness.look(nodes.iter(), at(100.0));
        beat(&mut liveness, &nodes, &nodes[..2], 102, 106);
        assert!(!liveness.is_lost(&nodes[2]));
        beat(&mut liveness, &nodes, &nodes[..2], 108, 108);
        assert!(liveness.is_lost(&nodes[2]));
    }

    #[test]
    fn when_most_vanish_at_once_nothing_is_lost_until_they_return_or_are_removed() {
        let nodes = nodes(5);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        beat(&mut liveness, &nodes, &nodes[..2], 12, 60);
        assert!(liveness.is_braked() && nodes.iter().all(|node| !liveness.is_lost(node)), "{liveness:?}");
        assert!(liveness.silent().iter().eq(&nodes[2..]), "it is not said which: {liveness:?}");
        // Two of the three are removed: what is left is a loss like any other.
        let left: Vec<NodeId> = nodes[..3].to_vec();
        liveness.look(left.iter(), at(61.0));
        assert!(!liveness.is_braked() && liveness.is_lost(&nodes[2]), "{liveness:?}");
    }

    #[test]
    fn when_they_return_one_after_the_other_the_last_ones_get_a_whole_window() {
        let nodes = nodes(4);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        beat(&mut liveness, &nodes, &nodes[..1], 12, 60);
        assert!(liveness.is_braked());
        beat(&mut liveness, &nodes, &nodes[..2], 62, 66);
        assert!(!liveness.is_braked() && nodes.iter().all(|node| !liveness.is_lost(node)), "{liveness:?}");
        beat(&mut liveness, &nodes, &nodes[..3], 68, 72);
        assert!(!liveness.is_lost(&nodes[2]), "it is back in time");
        assert!(liveness.is_lost(&nodes[3]), "it was not heard for a whole window more");
    }

    #[test]
    fn nodes_that_vanish_one_after_the_other_are_each_lost() {
        let nodes = nodes(4);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        beat(&mut liveness, &nodes, &nodes[..3], 12, 30);
        assert!(liveness.is_lost(&nodes[3]));
        beat(&mut liveness, &nodes, &nodes[..2], 32, 50);
        assert!(liveness.is_lost(&nodes[2]) && !liveness.is_braked(), "{liveness:?}");
    }

    #[test]
    fn a_machine_that_is_alone_is_never_lost() {
        let nodes = nodes(1);
        let mut liveness = Liveness::default();
        for second in 0..100 {
            liveness.look(nodes.iter(), Duration::from_secs(second));
        }
        assert!(!liveness.is_lost(&nodes[0]));
    }
}
