//! Labels: what a person says of a machine, so that services can ask for it.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{InvalidId, LabelName, LabelValue};

/// A node's labels, or those that a service asks for.
pub type Labels = BTreeMap<LabelName, LabelValue>;

/// The label that says which part of the world a node shares its fate with: a rack, a room, a data centre.
pub const ZONE: &str = "zone";

/// More than these nobody keeps in mind, and each is written with its node.
pub const LABELS_MAX: usize = 64;

/// One label as people write it: `disk=ssd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Label {
    pub name: LabelName,
    pub value: LabelValue,
}

/// A word that is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    #[error("{0:?} is no label: write it like disk=ssd")]
    NoValue(String),
    #[error(transparent)]
    Part(#[from] InvalidId),
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let (name, value) = text.split_once('=').ok_or_else(|| InvalidLabel::NoValue(text.to_owned()))?;
        Ok(Self { name: LabelName::new(name)?, value: LabelValue::new(value)? })
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// As people read them: `disk=ssd, zone=a`.
pub fn in_words(labels: &Labels) -> String {
    let written: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    written.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_name_and_a_value() {
        let label: Label = "disk=ssd".parse().unwrap();
        assert_eq!((label.name.as_str(), label.value.as_str()), ("disk", "ssd"));
        assert_eq!("zone=eu-1.B_2".parse::<Label>().unwrap().to_string(), "zone=eu-1.B_2");
        for bad in ["disk", "=ssd", "disk=", "Disk=ssd", "disk=a b", "disk=a=b", "disk=a/b"] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?} was taken for a label");
        }
    }
}
