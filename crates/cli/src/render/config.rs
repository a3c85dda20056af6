//! `rung config get` and `rung secret list`.

use std::collections::BTreeMap;

use rung_api::wire::SecretListing;

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;

/// As a shell would read it.
pub fn render(config: &BTreeMap<String, String>) -> String {
    if config.is_empty() {
        return "no variable is set; set one with `rung config set NAME=value`".to_owned();
    }
    let line = |(name, value): (&String, &String)| format!("{name}={}", crate::verb::command::quoted(value));
    config.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn render_secrets(secrets: &[SecretListing], paint: Paint, clock: &Clock) -> String {
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
            let current = secret.versions.iter().find(|kept| kept.version == secret.version);
            let at = current.and_then(|kept| kept.at).map(|at| clock.ago(at)).unwrap_or_default();
            let by = current.and_then(|kept| kept.by.as_deref()).unwrap_or_default();
            let required = if secret.required { "required" } else { "" };
            vec![cell(&secret.name), version, cell(at), cell(by), cell(required)]
        })
        .collect();
    table(&["SECRET", "VERSION", "SET", "BY", ""], &rows, paint)
}

/// `rung secret list NAME`.
pub fn render_versions(secret: &SecretListing, paint: Paint, clock: &Clock) -> String {
    if secret.versions.is_empty() {
        return format!("{} is not set; set it with `rung secret set {}`", secret.name, secret.name);
    }
    let rows: Vec<_> = secret
        .versions
        .iter()
        .map(|kept| {
            let (state, mood) =
                if kept.version == secret.version { ("current", Mood::Good) } else { ("", Mood::Neutral) };
            let releases: Vec<String> = kept.releases.iter().map(ToString::to_string).collect();
            vec![
                cell(kept.version),
                colored(state, mood),
                cell(kept.at.map(|at| clock.ago(at)).unwrap_or_default()),
                cell(kept.by.as_deref().unwrap_or_default()),
                cell(releases.join(" ")),
            ]
        })
        .collect();
    table(&["VERSION", "STATE", "SET", "BY", "RELEASES"], &rows, paint)
}
