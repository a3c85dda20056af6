//! Secrets. A value is never an argument: arguments are seen by everybody on the machine, and kept by shells.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use rung_model::SecretName;

use super::WaitArgs;

#[derive(Debug, Clone, Subcommand)]
pub enum SecretCommand {
    /// Set secrets, and deploy the change: each value is asked for, or read from standard input or a file
    Set {
        #[arg(required = true, value_name = "NAME", value_parser = name_alone)]
        names: Vec<SecretName>,
        /// Read the value from a file, as it is
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
        /// Keep the value as base64: for what is no text; the application decodes it
        #[arg(long)]
        base64: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let the server make a value that nobody sees, and deploy the change
    Generate(SecretGenerateArgs),
    /// Set the secrets that a .env file holds, and deploy the change
    Import {
        #[arg(default_value = ".env", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List names and versions
    List {
        /// Every version that is kept of this one
        name: Option<SecretName>,
    },
    /// Take secrets away, and deploy the change
    Unset {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<SecretName>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Put every secret of every app under another master key; no instance is touched
    RotateKey,
}

#[derive(Debug, Clone, Args)]
pub struct SecretGenerateArgs {
    pub name: SecretName,
    /// How many characters
    #[arg(long, default_value_t = 40)]
    pub length: usize,
    /// What it is made of
    #[arg(long, value_enum, default_value_t = AlphabetChoice::Alphanumeric)]
    pub alphabet: AlphabetChoice,
    /// Another value when it is set already
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AlphabetChoice {
    /// Letters and digits
    Alphanumeric,
    /// 0 to 9, a to f
    Hex,
    /// Letters, digits, - and _
    UrlSafe,
    /// Printable characters but space, quotes, backslash and $
    Symbols,
}

/// clap shows an argument that it refuses; what is said of this one names the name alone.
fn name_alone(text: &str) -> Result<SecretName, String> {
    if text.contains('=') {
        return Ok(SecretName::new(REFUSED).expect("it is a name"));
    }
    SecretName::new(text).map_err(|error| error.to_string())
}

/// Stands for an argument that held a value.
const REFUSED: &str = "__value_in_an_argument__";

/// Whether a value was given as an argument.
pub fn is_refused(name: &SecretName) -> bool {
    name.as_str() == REFUSED
}
