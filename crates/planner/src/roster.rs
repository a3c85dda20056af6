//! Every node that the index knows, by its number, with what a plan asks of it for each instance.

use std::net::SocketAddr;

use rung_model::{Assignment, Node, NodeId, Observed};

use crate::Input;
use crate::numbers::NodeNumber;

#[derive(Debug)]
pub(crate) struct Roster<'a>(Vec<Known<'a>>);

#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub id: &'a NodeId,
    /// `None` of one that was removed.
    pub node: Option<&'a Node>,
    pub told: Option<&'a Assignment>,
    pub observed: Option<&'a Observed>,
    /// Its proxy, for those on other nodes.
    pub proxy: Option<SocketAddr>,
    pub is_lost: bool,
    /// Somebody wants it to run nothing.
    pub is_drained: bool,
    /// The drain's deadline has come: what is still there ends, whether or not it runs elsewhere.
    pub is_forced_out: bool,
}

impl<'a> Roster<'a> {
    pub fn of(input: &Input<'a>) -> Self {
        let world = input.world;
        let known = world.placed.numbers().names().iter().map(|id| {
            let node = world.nodes.get(id).map(|held| &held.value);
            let drain = node.and_then(|node| node.drain.as_ref());
            let deadline = drain.and_then(|drain| drain.deadline);
            Known {
                id,
                node,
                told: world.assignments.get(id).map(|held| &held.value),
                observed: world.observed.get(id).map(|held| &held.value),
                proxy: node.and_then(|node| node.facts.proxy),
                is_lost: input.liveness.is_lost(id),
                is_drained: drain.is_some(),
                is_forced_out: deadline.is_some_and(|deadline| deadline <= input.clock.wall),
            }
        });
        Self(known.collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> std::ops::Index<NodeNumber> for Roster<'a> {
    type Output = Known<'a>;

    fn index(&self, number: NodeNumber) -> &Known<'a> {
        &self.0[number.index()]
    }
}
