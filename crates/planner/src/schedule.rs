//! Where an instance runs.
//!
//! Memory is given out and never twice: a node is not assigned more than it has. A cpu limit is a ceiling, not a
//! reservation (`docs/decisions/0004-cpu-is-a-ceiling.md`), so it does not keep an instance from being placed.

use std::collections::BTreeMap;

use rung_model::appfile::Service;
use rung_model::{AppName, NodeId, ServiceName};

use crate::draft::Draft;

/// What is not as desired, and why, node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub app: AppName,
    pub service: ServiceName,
    pub instances: u32,
    pub reasons: BTreeMap<NodeId, Refusal>,
}

/// Why a node can't take an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Memory {
        asked_bytes: u64,
        free_bytes: u64,
    },
    /// The exclusive service's last instance may still be alive somewhere.
    ExclusiveStillAlive,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MB: u64 = 1_000_000;
        match self {
            Self::Memory { asked_bytes, free_bytes } => {
                write!(f, "{} MB of memory are asked for, {} MB are free", asked_bytes / MB, free_bytes / MB)
            }
            Self::ExclusiveStillAlive => f.write_str("the instance before it has not ended yet"),
        }
    }
}

/// The node with the fewest instances of those that have room; by name among equals.
pub fn choose_node(draft: &Draft<'_>, service: &Service) -> Result<NodeId, BTreeMap<NodeId, Refusal>> {
    let asked_bytes = service.memory_bytes.unwrap_or(0);
    let mut refusals = BTreeMap::new();
    let mut best: Option<(usize, &NodeId)> = None;
    for (id, node) in &draft.input.world.nodes {
        let free_bytes = node.value.facts.memory_bytes.saturating_sub(memory_given(draft, id));
        if asked_bytes > free_bytes {
            refusals.insert(id.clone(), Refusal::Memory { asked_bytes, free_bytes });
            continue;
        }
        let count = draft.assignment(id).map_or(0, |assignment| assignment.instances.len());
        if best.is_none_or(|(fewest, _)| count < fewest) {
            best = Some((count, id));
        }
    }
    best.map(|(_, id)| id.clone()).ok_or(refusals)
}

/// The memory that assigned instances may use by their releases' limits.
fn memory_given(draft: &Draft<'_>, node: &NodeId) -> u64 {
    let Some(assignment) = draft.assignment(node) else { return 0 };
    let limits = assignment.instances.values().filter_map(|assigned| {
        let release = draft.release(&assigned.app, assigned.release)?;
        release.file.services.get(&assigned.service)?.memory_bytes
    });
    limits.sum()
}
