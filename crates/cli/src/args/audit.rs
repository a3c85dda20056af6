//! Who did what: the audit trail.

use std::str::FromStr;

use clap::{Args, Subcommand};
use rung_api::audit::Head;
use rung_model::NodeId;

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// Only the newest so many changes
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    pub tail: usize,
}

#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Check that nothing of the trail was changed or taken away
    Verify {
        /// What an earlier check has printed: that record must still be there; may be given several times
        #[arg(long, value_name = "[SERVER:]SEQUENCE:HASH")]
        seen: Vec<Seen>,
    },
}

/// A record that somebody has seen before, of the server that is asked unless it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub server: Option<NodeId>,
    pub head: Head,
}

impl FromStr for Seen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((server, rest)) if rest.contains(':') => {
                let server = server.parse().map_err(|error| format!("{error}"))?;
                Ok(Self { server: Some(server), head: rest.parse()? })
            }
            _ => Ok(Self { server: None, head: text.parse()? }),
        }
    }
}
