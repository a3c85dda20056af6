//! Who may: tokens.

use std::time::Duration;

use clap::{Args, Subcommand};
use rung_model::appfile::values;
use rung_model::{AppPattern, Role, TokenName};

#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; this is the only time it is shown
    Create(TokenCreateArgs),
    /// List tokens: what each may, and until when
    List,
    /// Revoke a token, at once: what it has open is cut off, too
    Revoke {
        #[arg(required = true)]
        name: TokenName,
    },
}

#[derive(Debug, Clone, Args)]
pub struct TokenCreateArgs {
    /// What it is called in lists and in the audit trail [default: <app>-<role>]
    pub name: Option<TokenName>,
    /// viewer (looks), deployer (changes) or admin (everything, everywhere)
    #[arg(long, value_name = "ROLE")]
    pub role: Role,
    /// Which apps, beside --app: shop, shop@staging, 'shop@*' (every environment), '*@staging'
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub apps: Vec<AppPattern>,
    /// How long it holds, like 30d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub expires: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    values::duration(text).map_err(|error| match error.way_out {
        Some(way_out) => format!("{}; {way_out}", error.message),
        None => error.message,
    })
}

#[derive(Debug, Clone, Args)]
pub struct LoginArgs {
    /// Where the server is, like https://rung.example.com:7864; the token is asked for, or read from standard input
    #[arg(value_name = "ADDR")]
    pub server: String,
}
