//! `[notify]`: who is told when a deployment ends.

use super::error::Findings;
use super::read::{Table, clip};
use super::{Notify, schema, values};
use crate::ids::SecretName;

pub(super) fn read(top: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<Notify> {
    let field = top.field("notify")?;
    let example = "[notify] with webhook = \"https://example.com/deployed\" below it";
    let table = field.table(&schema::NOTIFY, findings, example)?;
    let Some(webhook) = table.field("webhook") else {
        findings.missing(table.span.clone(), "`notify` has no webhook", format!("write {example}"));
        return None;
    };
    let webhook = webhook.parsed(findings, "\"https://example.com/deployed\"", values::web_address);
    let secret = table.field("secret").and_then(|field| {
        let text = field.text(findings, "\"WEBHOOK_SECRET\"")?;
        match SecretName::new(text) {
            Ok(name) => Some(name),
            Err(error) => {
                let message = format!("`{}` is not {}: {}", clip(text), error.what, error.why);
                field.report(findings, message, "name a secret, whose value `rung secret set` sets");
                None
            }
        }
    });
    Some(Notify { webhook: webhook?, secret })
}
