//! `rung audit`: who did what, and whether the trail is whole.

use anyhow::Context as _;
use rung_api::audit::{Act, AuditEntry, Head, Verifier};

use super::Session;
use crate::args::{AuditArgs, AuditCommand};
use crate::edge::{Exit, Hinted};
use crate::render;
use crate::render::audit::Change;

/// A change has two records, and the trail has a word of its own now and then.
const RECORDS_A_CHANGE: usize = 3;

pub async fn audit(session: &mut Session<'_>, args: AuditArgs) -> anyhow::Result<Exit> {
    if let Some(AuditCommand::Verify { seen }) = args.command {
        return verify(session, seen).await;
    }
    let records = session.client.audit_tail(args.tail.saturating_mul(RECORDS_A_CHANGE)).await;
    let records = records.context("reading the audit trail")?;
    let entries: Result<Vec<AuditEntry>, _> = records.iter().map(|record| record.entry()).collect();
    let entries = entries.map_err(|error| {
        Hinted::failed(format!("the audit trail can't be read: {error}"), "check it with `rung audit verify`")
    })?;
    let mut changes = changes(entries);
    if let Some(app) = &session.global.app {
        let app = crate::app::in_environment(app, session.global.environment.as_ref())?;
        changes.retain(|change| change.app.as_deref() == Some(app.as_str()));
    }
    let newest = changes.split_off(changes.len().saturating_sub(args.tail));
    session.screen.show(&newest, |changes, paint, clock| render::audit::render(changes, paint, clock))?;
    Ok(Exit::Done)
}

/// Each change with what came of it, oldest first.
fn changes(entries: Vec<AuditEntry>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for entry in entries {
        match entry.act {
            Act::Asked { who, from, what, method, path, app } => changes.push(Change {
                sequence: entry.sequence,
                at: entry.at,
                who,
                from,
                what,
                method,
                path,
                app,
                end: None,
            }),
            Act::Ended { of, refused, status, note, by } => {
                if let Some(change) = changes.iter_mut().rfind(|change| change.sequence == of) {
                    change.end = Some(render::audit::End { refused, status, note, by });
                }
            }
            Act::Shortened { .. } => {}
        }
    }
    changes
}

async fn verify(session: &mut Session<'_>, seen: Option<Head>) -> anyhow::Result<Exit> {
    let mut verifier = Verifier::new(seen);
    let mut after = 0;
    let checked = loop {
        let page = session.client.audit_after(after).await.context("reading the audit trail")?;
        let Some(last) = page.last() else { break verifier.end() };
        after = last.entry().map_or(after, |entry| entry.sequence);
        if let Err(broken) = page.iter().try_for_each(|record| verifier.push(record)) {
            break Err(broken);
        }
    };
    let checked = checked.map_err(|broken| {
        let hint =
            "somebody (or a damaged disk) has changed the files in `audit` of the server's data directory";
        Hinted::failed(format!("the audit trail is not whole: {broken}"), hint)
    })?;
    let shown = checked.as_ref().map(|(first, head)| serde_json::json!({ "first": first, "head": head }));
    session.screen.show(&shown, |_, _, _| match &checked {
        None => "the audit trail is empty".to_owned(),
        Some((first, head)) => format!(
            "the audit trail is whole, from record {first} to {}\nkeep this elsewhere, and give it with --seen the next \
             time:\n{head}",
            head.sequence
        ),
    })?;
    Ok(Exit::Done)
}
