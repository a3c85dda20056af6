//! `rung config get` and `rung secret list`.

use std::collections::BTreeMap;

use rung_api::wire::SecretListing;

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};

/// As a shell would read it.
pub fn render(config: &BTreeMap<String, String>) -> String {
    if config.is_empty() {
        return "no variable is set; set one with `rung config set NAME=value`".to_owned();
    }
    let line = |(name, value): (&String, &String)| format!("{name}={}", crate::verb::command::quoted(value));
    config.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn render_secrets(secrets: &[SecretListing], paint: Paint) -> String {
    if secrets.is_empty() {
        return "no secret is set; set one with `rung secret set NAME`".to_owned();
    }
    let rows: Vec<_> = secrets
        .iter()
        .map(|secret| {
            // Version 0: the app file names it, and nobody has set it.
            let version = match secret.version {
                0 => colored("not set", Mood::Bad),
                version => cell(version),
            };
            vec![cell(&secret.name), version, cell(if secret.required { "required" } else { "" })]
        })
        .collect();
    table(&["SECRET", "VERSION", ""], &rows, paint)
}
