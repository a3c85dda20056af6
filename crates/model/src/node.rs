//! Nodes: machines that run instances.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{LabelName, LabelValue, NodeId};
use crate::label::{Labels, ZONE};

/// A node as the cluster knows it, at `nodes/<node>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Node {
    pub id: NodeId,
    /// Counted from 1 in the order of joining, never given to another; its letters (`a`, `b`, …, `aa`) are part of instance ids.
    pub number: u32,
    pub facts: NodeFacts,
    /// What people say of it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// Set while it is to run nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}

/// The highest number that a node was ever given, at `cluster/nodes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesCounted {
    pub highest: u32,
}

/// A node is being emptied, or was, and is kept so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Drain {
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// From then on what can't be moved is stopped.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
    pub by: String,
}

impl Node {
    pub fn zone(&self) -> Option<&LabelValue> {
        self.labels.iter().find(|(name, _)| name.as_str() == ZONE).map(|(_, value)| value)
    }

    /// Whether it has this label.
    pub fn is(&self, name: &LabelName, value: &LabelValue) -> bool {
        self.labels.get(name) == Some(value)
    }

    /// 1 is `a`, 26 is `z`, 27 is `aa`.
    pub fn letters(&self) -> String {
        let mut n = self.number.max(1);
        let mut letters = Vec::new();
        while n > 0 {
            n -= 1;
            letters.push(b'a' + (n % 26) as u8);
            n /= 26;
        }
        letters.reverse();
        letters.into_iter().map(char::from).collect()
    }
}

/// What a machine is in the cluster; its certificate says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Serves the API; runs instances and takes requests, too.
    Server,
    /// Runs instances.
    Worker,
    /// Takes requests, and runs nothing.
    Ingress,
}

impl NodeRole {
    pub const ALL: [Self; 3] = [Self::Server, Self::Worker, Self::Ingress];

    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Worker => "worker",
            Self::Ingress => "ingress",
        }
    }
}

impl std::fmt::Display for NodeRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for NodeRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("{text:?} is no role of a node: server, worker or ingress"))
    }
}

/// What an agent says of its machine when it registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeFacts {
    /// Where the agent's own API (logs, terminals) is reached: `unix:/path/agent.sock`, `https://10.0.0.2:7865`.
    pub agent: String,
    /// Where the node's proxy takes requests of other machines for its instances; `None`: it is alone.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub proxy: Option<SocketAddr>,
    pub version: String,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// Whether apps can run from images here.
    #[serde(default)]
    pub engine: ContainerEngine,
    /// What the file system of its volumes holds; `None` where an older version runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// What is free there, in bytes, when that is too little for anything new; as it was when it became so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_of_disk: Option<u64>,
    /// Labels that its own command line gives it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// How long its exclusive instances live without a word of a server; `None`: as long as they like, for the machine is
    /// alone, or an older version runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// What isolation the machine allows, each with what is missing otherwise.
    #[serde(default)]
    pub isolation: Vec<IsolationFact>,
}

/// A node's container engine, as its agent found it last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ContainerEngine {
    /// An agent of an older version does not say: it may be there.
    #[default]
    Unknown,
    Answers {
        /// `Docker 20.10.24`.
        name: String,
    },
    Silent {
        why: String,
    },
}

/// One line of `rung doctor` about a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IsolationFact {
    /// `pid namespace`, `memory limit`, `own user`…
    pub name: String,
    pub available: bool,
    /// What is not guaranteed without it, and the way out; empty when available.
    pub consequence: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_count_like_columns_of_a_spreadsheet() {
        let letters = |number| {
            let facts = NodeFacts {
                agent: String::new(),
                proxy: None,
                version: String::new(),
                cpu_millis: 0,
                memory_bytes: 0,
                engine: ContainerEngine::default(),
                disk_bytes: None,
                short_of_disk: None,
                labels: Labels::new(),
                lease_ms: None,
                isolation: Vec::new(),
            };
            let labels = Labels::new();
            Node { id: NodeId::new("n").unwrap(), number, facts, labels, drain: None }.letters()
        };
        assert_eq!(letters(1), "a");
        assert_eq!(letters(26), "z");
        assert_eq!(letters(27), "aa");
        assert_eq!(letters(703), "aaa");
    }
}
