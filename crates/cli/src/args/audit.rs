//! Who did what: the audit trail.

use clap::{Args, Subcommand};
use rung_api::audit::Head;

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
        /// What an earlier check has printed: that record must still be there
        #[arg(long, value_name = "SEQUENCE:HASH")]
        seen: Option<Head>,
    },
}
