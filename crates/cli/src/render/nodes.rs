//! `rung node list`.

use rung_api::join::{NodeListing, NodeState};
use rung_model::label::in_words;

use super::paint::{Mood, Paint};
use super::table::{Cell, cell, colored, table};

pub fn render(nodes: &[NodeListing], paint: Paint) -> String {
    let rows: Vec<_> = nodes.iter().map(row).collect();
    table(&["NODE", "ROLE", "STATE", "INSTANCES", "LABELS", "VERSION", "WAITS FOR"], &rows, paint)
}

fn row(node: &NodeListing) -> Vec<Cell> {
    let (state, mood) = match node.state {
        NodeState::Ready => ("ready", Mood::Good),
        NodeState::Serving => ("serving", Mood::Good),
        NodeState::Lost => ("lost", Mood::Bad),
        NodeState::Silent => ("silent", Mood::Bad),
        NodeState::Draining => ("draining", Mood::Warning),
        NodeState::Drained => ("drained", Mood::Warning),
    };
    vec![
        cell(&node.node),
        cell(node.role),
        colored(state, mood),
        cell(node.instances),
        cell(in_words(&node.labels)),
        cell(node.version.as_deref().unwrap_or_default()),
        cell(node.blocked.join("; ")),
    ]
}
