//! Why a node can't take an instance or a run, as data, and in words.

use rung_model::{LabelName, LabelValue, NodeId, VolumeName};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Memory {
        asked_bytes: u64,
        free_bytes: u64,
    },
    /// For volumes that the service has not used yet.
    Disk {
        asked_bytes: u64,
        free_bytes: u64,
    },
    /// It has hardly any left; what runs there goes on.
    ShortOfDisk {
        free_bytes: u64,
    },
    Ports,
    /// It was not heard of for a while.
    Lost,
    /// Somebody drains it.
    Draining,
    /// The service asks for a label that it does not have.
    Label {
        name: LabelName,
        asked: LabelValue,
        has: Option<LabelValue>,
    },
    /// The app runs from an image, and no container engine answers there.
    NoEngine {
        why: String,
    },
    /// Of a service with so many instances a node: they are there.
    HasItsShare,
    /// The data is on another node.
    VolumeElsewhere {
        volume: VolumeName,
        node: NodeId,
    },
    /// The exclusive service's last instance may still be alive somewhere.
    ExclusiveStillAlive,
    /// The same, on a node that is lost: its lease ends by itself.
    LeaseRuns {
        seconds: u64,
    },
    /// The same, and nothing ends it by itself.
    NoLease,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MB: u64 = 1_000_000;
        match self {
            Self::Memory { asked_bytes, free_bytes } => {
                write!(f, "{} MB of memory are asked for, {} MB are free", asked_bytes / MB, free_bytes / MB)
            }
            Self::Disk { asked_bytes, free_bytes } => {
                write!(f, "volumes ask for {} MB of disk, {} MB are free", asked_bytes / MB, free_bytes / MB)
            }
            Self::ShortOfDisk { free_bytes } => {
                write!(f, "its disk is full: {} MB were free when it became so", free_bytes / MB)
            }
            Self::Ports => f.write_str("all of its ports are taken"),
            Self::Lost => f.write_str("it was not heard of for a while"),
            Self::Draining => f.write_str("it is being drained"),
            Self::Label { name, asked, has: None } => write!(f, "it has no label {name}={asked}"),
            Self::Label { name, asked, has: Some(has) } => {
                write!(f, "its label {name} is {has}, and {asked} is asked for")
            }
            Self::NoEngine { why } => f.write_str(why),
            Self::HasItsShare => f.write_str("it has its share of them"),
            Self::VolumeElsewhere { volume, node } => write!(f, "volume {volume} is on {node}"),
            Self::ExclusiveStillAlive => f.write_str("the instance before it has not ended yet"),
            Self::LeaseRuns { seconds } => {
                write!(f, "the instance before it ends by itself within {seconds} s, for it hears of no server")
            }
            Self::NoLease => f.write_str(
                "the instance before it may still run, and nothing ends it by itself; when the machine is off for good, \
                 `rung node remove` it",
            ),
        }
    }
}
