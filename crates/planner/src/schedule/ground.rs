//! What each node has, and what is left of it: made once for a plan that places something, and kept while it does.

use std::collections::BTreeMap;

use rung_model::label::Labels;
use rung_model::node::ContainerEngine;
use rung_model::{LabelValue, Node, NodeId};

use crate::Input;
use crate::numbers::NodeNumber;
use crate::placed::Given;
use crate::roster::{Known, Roster};
use crate::schedule::{Refusal, memory_of_run, unusable};

/// Ports that an agent gives out, less those that other programs of the machine may sit on.
const PORTS: u32 = 9_000;

/// The nodes in the order of their names.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    nodes: Vec<Standing>,
    /// Where each stands among them, by its number; `None` of one that was removed.
    places: Vec<Option<usize>>,
    /// How many zones there are; nodes without one share the first.
    zones: usize,
}

#[derive(Debug)]
pub(crate) struct Standing {
    pub id: NodeId,
    pub number: NodeNumber,
    /// What ids of its instances have in them.
    pub letters: String,
    pub zone: usize,
    pub labels: Labels,
    pub memory_bytes: u64,
    pub cpu_millis: u64,
    pub disk_bytes: Option<u64>,
    pub short_of_disk: Option<u64>,
    pub given: Given,
    /// Why no container engine answers there, if it is known that none does.
    pub no_engine: Option<String>,
    /// Why it takes nothing new, whatever it is.
    pub unusable: Option<Refusal>,
    /// The part of its memory, or of its cores, that is given out, whichever is larger, in millionths.
    pub load: u64,
}

impl Ground {
    pub fn of(input: &Input<'_>, roster: &Roster<'_>) -> Self {
        let mut zones: BTreeMap<Option<&LabelValue>, usize> = [(None, 0)].into();
        let mut nodes = Vec::with_capacity(input.world.nodes.len());
        let mut places = vec![None; roster.len()];
        for (id, number) in input.world.placed.numbers().by_name() {
            let known = &roster[number];
            let Some(node) = known.node else { continue };
            let next = zones.len();
            let mut standing = Standing {
                id: id.clone(),
                number,
                letters: node.letters(),
                zone: *zones.entry(node.zone()).or_insert(next),
                labels: node.labels.clone(),
                memory_bytes: node.facts.memory_bytes,
                cpu_millis: node.facts.cpu_millis,
                disk_bytes: node.facts.disk_bytes,
                short_of_disk: node.facts.short_of_disk,
                given: given(input, known, number),
                no_engine: no_engine(node),
                unusable: unusable(known),
                load: 0,
            };
            standing.weigh();
            places[number.index()] = Some(nodes.len());
            nodes.push(standing);
        }
        Self { nodes, places, zones: zones.len() }
    }

    pub fn nodes(&self) -> &[Standing] {
        &self.nodes
    }

    pub fn zones(&self) -> usize {
        self.zones
    }

    pub fn node(&self, id: &NodeId) -> Option<&Standing> {
        let index = self.nodes.binary_search_by(|standing| standing.id.cmp(id)).ok()?;
        Some(&self.nodes[index])
    }

    pub fn standing(&self, node: NodeNumber) -> Option<&Standing> {
        self.index(node).map(|index| &self.nodes[index])
    }

    pub fn index(&self, node: NodeNumber) -> Option<usize> {
        self.places[node.index()]
    }

    pub fn change(&mut self, node: NodeNumber, change: impl FnOnce(&mut Given)) {
        if let Some(index) = self.index(node) {
            let standing = &mut self.nodes[index];
            change(&mut standing.given);
            standing.weigh();
        }
    }
}

fn no_engine(node: &Node) -> Option<String> {
    match &node.facts.engine {
        ContainerEngine::Silent { why } => Some(why.clone()),
        ContainerEngine::Answers { .. } | ContainerEngine::Unknown => None,
    }
}

/// With what the jobs that run there may use.
fn given(input: &Input<'_>, known: &Known<'_>, number: NodeNumber) -> Given {
    let mut given = input.world.placed.given(number);
    let runs = known.told.into_iter().flat_map(|told| told.runs.values());
    given.memory_bytes += runs.map(|run| memory_of_run(input.world, run)).sum::<u64>();
    given
}

impl Standing {
    pub fn free_memory(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.given.memory_bytes)
    }

    pub fn free_ports(&self) -> u32 {
        PORTS.saturating_sub(self.given.ports)
    }

    /// Works its load out anew.
    fn weigh(&mut self) {
        let part = |given: u64, has: u64| match given.checked_mul(1_000_000) {
            Some(millionths) => millionths / has.max(1),
            // More than eighteen terabytes, or as many thousands of cores.
            None => given / has.div_ceil(1_000_000).max(1),
        };
        let of_memory = part(self.given.memory_bytes, self.memory_bytes);
        self.load = of_memory.max(part(self.given.cpu_millis, self.cpu_millis));
    }
}
