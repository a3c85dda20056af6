//! Which nodes are lost: those whose agents were not heard of for a while.
//!
//! What is heard is not in the store: it lives with the leader, and a new leader counts every node alive for a whole
//! window. When most nodes fall silent at once it is more likely that this server is cut off, or that something all of
//! them share has failed, than that all of them died: then a brake holds, and none of them counts as lost until they are
//! heard again or are removed.
//!
//! ```text
//!             most are silent                       some are back
//!   released ────────────────► braked ─────────────────────────────────────► returning
//!      ▲                         │  ▲                                         │   │  ▲ │ one more
//!      │  a person removed some, │  └────── most are silent again ────────────┘   │  └─┘ is back
//!      └─ and the rest are few ──┘                                                │
//!      ▲                                                                          │
//!      └──── all are back, or nobody was for RETURN_WITHIN: the rest are lost ────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_model::NodeId;

/// Agents beat every two seconds: four in a row are missing.
pub const LOST_AFTER: Duration = Duration::from_secs(8);
/// Two beats in a row are missing: it may be among those that vanish at once.
const SUSPECT_AFTER: Duration = Duration::from_millis(4500);
/// Those that vanished at once come back one after the other: an agent tries again after up to seven seconds, and a switch
/// that has failed may keep each of its ports shut for thirty (the spanning tree's two delays) before it forwards. So long
/// the others are waited for, each time one of them is back.
pub const RETURN_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks, for each node. A look goes over all of them: when thousands are late, because this server was, each is
/// something to see, and a server that looked at once would do nothing else, be later still, and never come back from it.
const REST_PER_NODE: Duration = Duration::from_micros(10);
const FEW: usize = 100;

/// How long whoever goes over so many nodes rests before it does so again. Few cost less than timers can tell.
pub fn rest(nodes: usize) -> Duration {
    let many = if nodes < FEW { 0 } else { nodes };
    REST_PER_NODE * u32::try_from(many).unwrap_or(u32::MAX)
}

/// See the module's text. Times are the leadership's `elapsed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Liveness {
    heard: BTreeMap<NodeId, Duration>,
    lost: BTreeSet<NodeId>,
    /// Those that vanished at once and were not heard since; while there are any the brake holds.
    silent: BTreeSet<NodeId>,
    /// Most are heard again, and the silent ones have time until then.
    returning_until: Option<Duration>,
    /// When there will be something to see, if nothing is heard until then.
    due: Option<Duration>,
    /// Something has changed since the last look that it would make something of.
    news: bool,
    /// No look before it.
    rests_until: Duration,
}

impl Liveness {
    /// An agent was heard. True when that is news.
    pub fn heard(&mut self, node: &NodeId, now: Duration) -> bool {
        let is_new = self.heard.insert(node.clone(), now).is_none();
        let was_lost = self.lost.remove(node);
        self.news |= is_new || was_lost || self.silent.contains(node);
        was_lost
    }

    /// There are other nodes now, or others may have heard of them.
    pub fn nodes_changed(&mut self) {
        self.news = true;
    }

    /// Whether a look would find anything. A look goes over all nodes; thousands of beats between two that find something
    /// are not worth one each.
    pub fn wants_look(&self, now: Duration) -> bool {
        now >= self.rests_until && (self.news || self.due.is_none_or(|due| now >= due))
    }

    /// Looks at the nodes that there are. True when one was lost or is not any more, or the brake changed.
    pub fn look<'n>(&mut self, nodes: impl Iterator<Item = &'n NodeId>, now: Duration) -> bool {
        let before = (self.lost.clone(), self.silent.clone(), self.returning_until);
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
            self.returning_until = None;
        } else {
            self.release(&nodes, &silent, now);
            let gone = self.silent_for(LOST_AFTER, now);
            self.lost.extend(gone.difference(&self.silent).cloned());
        }
        self.rests_until = now + rest(self.heard.len());
        self.due = self.next_look(now).map(|due| due.max(self.rests_until));
        self.news = false;
        before != (self.lost.clone(), self.silent.clone(), self.returning_until)
    }

    /// Most nodes are heard: the brake lets go of each that is back, and of the others when their time is over.
    fn release(&mut self, nodes: &BTreeSet<&NodeId>, silent: &BTreeSet<NodeId>, now: Duration) {
        let held = self.silent.iter();
        let (there, removed): (BTreeSet<_>, BTreeSet<_>) =
            held.cloned().partition(|node| nodes.contains(node));
        let left: BTreeSet<NodeId> = there.intersection(silent).cloned().collect();
        let some_are_back = left.len() < there.len();
        // That they are fewer than most because others joined says nothing of them; that some were removed does.
        let nobody_says_why = self.returning_until.is_none() && removed.is_empty();
        if some_are_back || nobody_says_why {
            self.returning_until = Some(now + RETURN_WITHIN);
        }
        self.silent = left;
        if self.silent.is_empty() || self.returning_until.is_none_or(|until| now >= until) {
            self.silent.clear();
            self.returning_until = None;
        }
    }

    /// Nodes that are not lost yet and were not heard for so long.
    fn silent_for(&self, least: Duration, now: Duration) -> BTreeSet<NodeId> {
        let silent = self.heard.iter().filter(|(_, heard)| now >= **heard + least);
        silent.map(|(node, _)| node).filter(|node| !self.lost.contains(*node)).cloned().collect()
    }

    /// When to look again, as of the last look: what was heard since only makes it later, but for what is news.
    pub fn due(&self) -> Option<Duration> {
        if self.news { Some(self.rests_until) } else { self.due }
    }

    /// When to look again, if nothing is heard until then.
    fn next_look(&self, now: Duration) -> Option<Duration> {
        let alive = self.heard.iter().filter(|(node, _)| !self.lost.contains(*node));
        let times = alive.flat_map(|(_, heard)| [*heard + SUSPECT_AFTER, *heard + LOST_AFTER]);
        times.chain(self.returning_until).filter(|at| *at > now).min()
    }

    /// Nobody looked when there was something to see: this server stood still, and whoever happens to be heard first must
    /// not make the others the few that are lost. It looks before it listens.
    pub fn is_overdue(&self, now: Duration) -> bool {
        self.due.is_some_and(|due| now > due)
    }

    pub fn is_lost(&self, node: &NodeId) -> bool {
        self.lost.contains(node)
    }

    /// Most nodes fell silent, and what runs on those that still are is not moved.
    pub fn is_braked(&self) -> bool {
        !self.silent.is_empty()
    }

    /// The brake holds for the last of those that fell silent, for a while.
    pub fn is_returning(&self) -> bool {
        self.returning_until.is_some()
    }

    /// The nodes that the brake holds for: whether they are lost is not decided.
    pub fn silent(&self) -> &BTreeSet<NodeId> {
        &self.silent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn when_they_return_one_after_the_other_the_last_ones_get_half_a_minute_each_time() {
        let nodes = nodes(4);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        beat(&mut liveness, &nodes, &nodes[..1], 12, 60);
        assert!(liveness.is_braked() && !liveness.is_returning());
        beat(&mut liveness, &nodes, &nodes[..2], 62, 86);
        assert!(liveness.silent().iter().eq(&nodes[2..]), "a switch opens its ports slowly: {liveness:?}");
        assert!(liveness.is_returning() && nodes.iter().all(|node| !liveness.is_lost(node)), "{liveness:?}");
        beat(&mut liveness, &nodes, &nodes[..3], 88, 116);
        assert!(
            nodes.iter().all(|node| !liveness.is_lost(node)),
            "the last one's time is not over: {liveness:?}"
        );
        beat(&mut liveness, &nodes, &nodes[..3], 118, 118);
        assert!(liveness.is_lost(&nodes[3]) && !liveness.is_braked(), "it did not come back: {liveness:?}");
    }

    #[test]
    fn one_that_fails_while_others_return_is_lost_like_any_other() {
        let nodes = nodes(6);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        beat(&mut liveness, &nodes, &nodes[..2], 12, 30);
        assert!(liveness.is_braked());
        // All but the last are back, and the first fails.
        beat(&mut liveness, &nodes, &nodes[1..5], 32, 40);
        assert!(liveness.is_lost(&nodes[0]), "it never was among those that vanished: {liveness:?}");
        assert!(liveness.silent().iter().eq(&nodes[5..]), "{liveness:?}");
    }

    #[test]
    fn machines_that_join_do_not_make_the_silent_ones_few() {
        let nodes = nodes(8);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes[..3], &nodes[..3], 0, 10);
        beat(&mut liveness, &nodes[..3], &nodes[..1], 12, 30);
        assert!(liveness.is_braked());
        let alive = [&nodes[..1], &nodes[3..]].concat();
        beat(&mut liveness, &nodes, &alive, 32, 60);
        assert!(!liveness.is_lost(&nodes[1]) && !liveness.is_lost(&nodes[2]), "{liveness:?}");
    }

    /// A server that was late itself finds each of its nodes late, and has not the time to look at all of them for each.
    #[test]
    fn when_thousands_are_late_they_are_looked_at_now_and_then_and_not_for_each_that_is_heard() {
        let nodes = nodes(5000);
        let mut liveness = Liveness::default();
        // One after the other, as machines do that were started at different times.
        let beat = |round: u64, node: usize| Duration::from_micros(round * 2_000_000 + node as u64 * 400);
        for (number, node) in nodes.iter().enumerate() {
            liveness.heard(node, beat(0, number));
        }
        liveness.look(nodes.iter(), beat(1, 0));
        let (late, mut looks) = (Duration::from_secs(5), 0);
        for (number, node) in nodes.iter().enumerate() {
            let now = beat(1, number) + late;
            for step in 0..2 {
                // Before it is heard, and after it.
                if (step == 0 && liveness.is_overdue(now)) || (step == 1 && liveness.wants_look(now)) {
                    liveness.look(nodes.iter(), now);
                    looks += 1;
                }
                if step == 0 {
                    liveness.heard(node, now);
                }
            }
        }
        assert!(looks <= 2 * 2000 / 50, "{looks} looks in two seconds");
        let now = beat(2, 0) + late + Duration::from_millis(50);
        assert!(liveness.wants_look(now) || liveness.due().is_some_and(|due| due <= now));
        liveness.look(nodes.iter(), now);
        assert!(!liveness.is_braked() && nodes.iter().all(|node| !liveness.is_lost(node)), "all are back");
    }

    #[test]
    fn a_server_that_stood_still_brakes_before_it_listens() {
        let nodes = nodes(2);
        let mut liveness = Liveness::default();
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        assert!(!liveness.is_overdue(at(14.0)) && liveness.is_overdue(at(30.0)));
        liveness.look(nodes.iter(), at(30.0));
        liveness.heard(&nodes[0], at(30.0));
        liveness.look(nodes.iter(), at(30.0));
        assert!(!liveness.is_lost(&nodes[1]), "it was this server that was not there: {liveness:?}");
        liveness.heard(&nodes[1], at(31.0));
        liveness.look(nodes.iter(), at(31.0));
        assert!(!liveness.is_braked(), "{liveness:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However those that fell silent at once come back, as long as none keeps the others waiting for too long.
        #[test]
        fn of_those_that_vanish_at_once_and_return_none_is_ever_lost(
            alive in 1_usize..6,
            spread in prop::collection::vec((0_u64..1000, 0_u64..27_000), 6..12),
            silent_ms in 12_000_u64..200_000,
        ) {
            let nodes = nodes(alive + spread.len());
            let mut liveness = Liveness::default();
            // The last beat of each before the silence, and the first after it, each soon after another's.
            let fell = 20_000;
            let mut back = fell + silent_ms;
            let mut silences = Vec::new();
            for (last, pause) in &spread {
                silences.push((fell - last, back));
                back += pause;
            }
            let beats = |node: usize, ms: u64| {
                let is_silent = node >= alive && {
                    let (from, until) = silences[node - alive];
                    from < ms && ms < until
                };
                !is_silent && (ms + node as u64 * 500).is_multiple_of(2000)
            };
            for ms in (0..back + 60_000).step_by(500) {
                let now = Duration::from_millis(ms);
                for number in (0..nodes.len()).filter(|number| beats(*number, ms)) {
                    liveness.heard(&nodes[number], now);
                }
                liveness.look(nodes.iter(), now);
                let lost = nodes.iter().find(|node| liveness.is_lost(node));
                prop_assert!(lost.is_none(), "{lost:?} is lost at {now:?}, silences {silences:?}: {liveness:?}");
            }
            prop_assert!(!liveness.is_braked(), "all are back, and it still holds: {liveness:?}");
        }
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
    fn a_beat_like_all_others_asks_for_no_look() {
        let nodes = nodes(3);
        let mut liveness = Liveness::default();
        assert!(liveness.wants_look(at(0.0)), "nobody has looked yet");
        beat(&mut liveness, &nodes, &nodes, 0, 10);
        liveness.heard(&nodes[0], at(12.0));
        assert!(!liveness.wants_look(at(12.0)), "{liveness:?}");
        assert!(liveness.wants_look(at(14.5)), "two of them are silent for two beats");
        beat(&mut liveness, &nodes, &nodes[..2], 12, 20);
        assert!(liveness.is_lost(&nodes[2]) && !liveness.wants_look(at(20.0)));
        liveness.heard(&nodes[2], at(21.0));
        assert!(liveness.wants_look(at(21.0)), "one that was lost is back");
        liveness.look(nodes.iter(), at(21.0));
        liveness.nodes_changed();
        assert!(liveness.wants_look(at(21.0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever is heard when: one that looks only when it wants to sees what one sees that always looks.
        #[test]
        fn looking_only_when_it_is_worth_it_misses_nothing(
            beats in prop::collection::vec((0_usize..7, 1_u64..900), 1..400),
        ) {
            let nodes = nodes(6);
            let (mut always, mut seldom) = (Liveness::default(), Liveness::default());
            let mut ms = 0;
            for (node, pause) in beats {
                ms += pause;
                let now = Duration::from_millis(ms);
                for liveness in [&mut always, &mut seldom] {
                    if let Some(node) = nodes.get(node) {
                        liveness.heard(node, now);
                    }
                }
                always.look(nodes.iter(), now);
                if seldom.wants_look(now) {
                    seldom.look(nodes.iter(), now);
                }
                let seen = |liveness: &Liveness| {
                    (liveness.lost.clone(), liveness.silent.clone(), liveness.returning_until)
                };
                prop_assert_eq!(seen(&always), seen(&seldom), "at {:?}", now);
            }
        }
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
