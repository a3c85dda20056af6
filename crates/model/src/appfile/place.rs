//! Where the instances of a service run: `place`, `priority`, and `instances = "per-node"`.

use serde::{Deserialize, Serialize};

use super::error::Findings;
use super::read::{Field, Table, clip};
use super::schema;
use crate::ids::{LabelName, LabelValue};
use crate::label::{LABELS_MAX, Labels};

/// On which nodes the instances of a service run, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Place {
    #[serde(default)]
    pub spread: Spread,
    #[serde(default)]
    pub count: Count,
    /// Only nodes with all of these labels take an instance.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub require: Labels,
    /// Nodes with more of these labels are taken first.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub prefer: Labels,
    #[serde(default)]
    pub priority: Priority,
}

impl Place {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What the loss of one machine, or of one zone, shall take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// As few as can be on one node; among equals, as few as can be in one zone.
    #[default]
    Node,
    /// As few as can be in one zone; there, as few as can be on one node.
    Zone,
    /// On as few nodes as can be.
    Pack,
}

/// What the number of instances counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// All of them.
    #[default]
    Total,
    /// Those of each node that may run the service.
    PerNode,
}

/// Who makes way when there is not room for everybody.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

impl std::fmt::Display for Priority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        })
    }
}

const EXAMPLE: &str = "place = { spread = \"zone\", require = { disk = \"ssd\" } }";

pub(super) fn read(service: &Table<'_, '_>, exclusive: bool, findings: &mut Findings<'_>) -> Place {
    let mut place = Place {
        count: count(service, exclusive, findings),
        priority: priority(service, findings),
        ..Place::default()
    };
    let Some(field) = service.field("place") else { return place };
    let Some(table) = field.table(&schema::PLACE, findings, EXAMPLE) else { return place };
    place.spread = spread(&table, findings);
    place.require = labels(table.field("require"), findings);
    place.prefer = labels(table.field("prefer"), findings);
    place
}

/// Whether `instances` says so many a node.
pub(super) fn is_per_node(field: &Field<'_, '_>) -> bool {
    matches!(field.value(), toml::de::DeValue::String(text) if text.as_ref() == "per-node")
}

fn count(service: &Table<'_, '_>, exclusive: bool, findings: &mut Findings<'_>) -> Count {
    let Some(field) = service.field("instances").filter(is_per_node) else { return Count::Total };
    if exclusive {
        let message =
            format!("`{}` is exclusive and shall have an instance on every node", clip(&service.name));
        field.report(
            findings,
            message,
            "an exclusive service has one instance: take `exclusive` or `instances` out",
        );
    }
    if let Some(mounts) = service.field("mounts") {
        let message = "a volume is on one node, and an instance on every node can't use it";
        mounts.report(findings, message, "take `mounts` out, or write a number of instances");
    }
    Count::PerNode
}

fn priority(service: &Table<'_, '_>, findings: &mut Findings<'_>) -> Priority {
    let Some(field) = service.field("priority") else { return Priority::default() };
    match field.text(findings, "\"high\"") {
        Some("low") => Priority::Low,
        Some("high") => Priority::High,
        Some("normal") | None => Priority::Normal,
        Some(other) => {
            let message = format!("`{}` is not a priority", clip(other));
            field.report(findings, message, "write \"low\", \"normal\" or \"high\"");
            Priority::Normal
        }
    }
}

fn spread(place: &Table<'_, '_>, findings: &mut Findings<'_>) -> Spread {
    let said = place.field("spread");
    if let Some(pack) = place.field("pack") {
        let packs = pack.boolean(findings).unwrap_or(false);
        if packs && let Some(said) = &said {
            said.report(findings, "`pack` and `spread` are opposites", "take one of them out");
        }
        if packs {
            return Spread::Pack;
        }
    }
    let Some(field) = said else { return Spread::default() };
    match field.text(findings, "\"zone\"") {
        Some("zone") => Spread::Zone,
        Some("node") | None => Spread::Node,
        Some(other) => {
            let message = format!("instances are not spread over `{}`", clip(other));
            field.report(findings, message, "write \"node\" or \"zone\", or pack = true");
            Spread::Node
        }
    }
}

fn labels(field: Option<Field<'_, '_>>, findings: &mut Findings<'_>) -> Labels {
    let mut labels = Labels::new();
    let Some(field) = field else { return labels };
    for entry in field.entries(findings, &format!("{} = {{ disk = \"ssd\" }}", field.key)) {
        let Some(text) = entry.text(findings, "\"ssd\"") else { continue };
        let (name, value) = (LabelName::new(entry.key.as_str()), LabelValue::new(text));
        match (name, value) {
            (Ok(name), Ok(value)) => drop(labels.insert(name, value)),
            (Err(error), _) => {
                let message = format!("`{}` is not {}: {}", clip(&entry.key), error.what, error.why);
                findings.report(entry.key_span, message, "write it as the nodes have it: `rung node list`");
            }
            (_, Err(error)) => {
                let message = format!("`{}` is not {}: {}", clip(text), error.what, error.why);
                entry.report(findings, message, "write it as the nodes have it: `rung node list`");
            }
        }
    }
    if labels.len() > LABELS_MAX {
        field.report(findings, format!("more than {LABELS_MAX} labels are asked for"), "ask for fewer");
    }
    labels
}
