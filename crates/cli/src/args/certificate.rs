//! Certificates of domains.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Clone, Subcommand)]
pub enum CertificateCommand {
    /// List what each domain has, until when, and when the next one is ordered
    List,
    /// Order certificates for the domains of every app, by ACME, and renew them
    Enable(CertificateEnableArgs),
    /// Order no more; those there are go on to their end
    Disable,
    /// Order a domain's certificate now, however often that has failed
    Renew {
        #[arg(required = true)]
        domain: String,
    },
}

#[derive(Debug, Clone, Args)]
pub struct CertificateEnableArgs {
    /// Whom the authority may write to
    #[arg(long, value_name = "ADDRESS")]
    pub email: Option<String>,
    /// The address of the authority's ACME directory [default: Let's Encrypt's]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub directory: Option<String>,
    /// Who vouches for that address, a file in PEM [default: what this machine trusts]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub trust: Option<PathBuf>,
    /// You have read the authority's terms of service and agree to them
    #[arg(long)]
    pub agree_to_terms: bool,
}
