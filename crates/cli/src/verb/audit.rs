//! `rung audit`: who did what, and whether the trail is whole.

use anyhow::Context as _;
use rung_api::audit::{Act, AuditEntry, AuditRecord, Broken, Head, ServerTrail, Standing, Verifier};
use rung_api::client::AuditOf;
use rung_model::NodeId;

use super::Session;
use crate::args::{AuditArgs, AuditCommand, Seen};
use crate::edge::{Exit, Hinted};
use crate::note;
use crate::render;
use crate::render::audit::{Change, Checked};

/// A change has two records, and the trail has a word of its own now and then.
const RECORDS_A_CHANGE: usize = 3;

pub async fn audit(session: &mut Session<'_>, args: AuditArgs) -> anyhow::Result<Exit> {
    if let Some(AuditCommand::Verify { seen }) = args.command {
        return verify(session, seen).await;
    }
    let trails = session.client.audits(args.tail.saturating_mul(RECORDS_A_CHANGE)).await;
    let trails = trails.context("reading the audit trail")?;
    let mut all = Vec::new();
    for trail in &trails {
        all.extend(changes(&trail.server, &trail.records)?);
    }
    // Each trail has its own numbers; what several servers were asked is told by the clocks that they have.
    all.sort_by(|one, other| {
        (one.at, &one.server, one.sequence).cmp(&(other.at, &other.server, other.sequence))
    });
    if let Some(app) = &session.global.app {
        let app = crate::app::in_environment(app, session.global.environment.as_ref())?;
        all.retain(|change| change.app.as_deref() == Some(app.as_str()));
    }
    let newest = all.split_off(all.len().saturating_sub(args.tail));
    let clock = session.screen.clock();
    session.screen.show(&newest, |changes, paint, clock| {
        render::audit::render(changes, trails.len() > 1, paint, clock)
    })?;
    for trail in &trails {
        if let Some(words) = render::audit::is_missing(trail, &clock) {
            note!("{words}");
        }
    }
    Ok(Exit::Done)
}

/// Each change with what came of it, oldest first.
fn changes(server: &NodeId, records: &[AuditRecord]) -> anyhow::Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    for record in records {
        let entry: AuditEntry = record.entry().map_err(|error| {
            Hinted::failed(
                format!("the audit trail of server {server} can't be read: {error}"),
                "check it with `rung audit verify`",
            )
        })?;
        match entry.act {
            Act::Asked { who, from, what, method, path, app } => changes.push(Change {
                server: server.clone(),
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
    Ok(changes)
}

async fn verify(session: &mut Session<'_>, seen: Vec<Seen>) -> anyhow::Result<Exit> {
    let trails = session.client.audits(0).await.context("reading the audit trail")?;
    let asked = session.client.health().await.context("asking which server this is")?.node;
    let is_known = |seen: &&Seen| {
        let named = seen.server.as_ref();
        named.is_none_or(|named| trails.iter().any(|trail| trail.server == *named))
    };
    if let Some(Seen { server: Some(server), .. }) = seen.iter().find(|seen| !is_known(seen)) {
        let message = format!("the audit trail of server {server} was seen before, and is nowhere now");
        return Err(
            Hinted::failed(message, "ask another server: each has copies of the others' trails").into()
        );
    }
    let mut checked = Vec::new();
    for trail in trails {
        // Without a name the server is meant that is asked, as long as it is alone its name is not printed.
        let is_meant = |seen: &Seen| *seen.server.as_ref().unwrap_or(&asked) == trail.server;
        let must_be_there: Vec<_> =
            seen.iter().filter(|seen| is_meant(seen)).map(|seen| seen.head.clone()).collect();
        if trail.standing == Standing::Gone && trail.copied.is_none() {
            // Another server has a copy, and can be asked for it.
            if must_be_there.is_empty() {
                continue;
            }
            let message =
                format!("this server has no copy of the audit trail of {}, which is gone", trail.server);
            return Err(Hinted::failed(message, "ask another server: `rung --api`, or on its machine").into());
        }
        let found = check(session, &trail, must_be_there).await?;
        checked.push(Checked { trail, found });
    }
    if session.screen.is_json() || checked.iter().any(|checked| checked.found.is_ok()) {
        session.screen.show(&checked, |checked, _, _| render::audit::verified(checked))?;
    }
    match render::audit::unsound(&checked) {
        None => Ok(Exit::Done),
        Some((words, hint)) => Err(Hinted::failed(words, hint).into()),
    }
}

/// Reads a trail from its beginning to its end: from its server, or where that is gone from the copy.
async fn check(
    session: &mut Session<'_>,
    trail: &ServerTrail,
    mut seen: Vec<Head>,
) -> anyhow::Result<Result<Option<(u64, Head)>, Broken>> {
    let of = if trail.standing == Standing::Answered {
        // What it has told before must still be there.
        seen.extend(trail.copied.clone());
        AuditOf::Server(trail.server.clone())
    } else {
        AuditOf::Copy { server: trail.server.clone(), joined: trail.joined }
    };
    let mut verifier = Verifier::new(seen);
    let mut after = 0;
    loop {
        let page = session.client.audit_after(&of, after).await;
        let page = page.with_context(|| format!("reading the audit trail of server {}", trail.server))?;
        let Some(last) = page.last() else { return Ok(verifier.end()) };
        after = last.entry().map_or(after, |entry| entry.sequence);
        if let Err(broken) = page.iter().try_for_each(|record| verifier.push(record)) {
            return Ok(Err(broken));
        }
    }
}
