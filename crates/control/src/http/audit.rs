//! The audit trail: read by admins, checked by whoever reads it.

use axum::extract::State;
use jiff::Timestamp;
use rung_api::audit::{AuditRecord, KeptTrail, ServerTrail};
use rung_api::{Code, ErrorBody};
use rung_model::NodeId;

use super::Answer;
use super::extract::{Beyond, Json, Query};
use crate::shared::Control;

/// Records in one answer.
const PAGE: usize = 1000;

/// `?after=<sequence>`: what follows that one; `?tail=<count>`: the newest. Of the server that is asked, unless another one
/// is named, or the copy of one by its name and by when it joined.
#[derive(Debug, serde::Deserialize)]
pub struct Part {
    #[serde(default)]
    after: u64,
    tail: Option<usize>,
    server: Option<NodeId>,
    copy: Option<NodeId>,
    joined: Option<Timestamp>,
}

pub async fn list(State(control): State<Control>, Query(part): Query<Part>) -> Answer<Vec<AuditRecord>> {
    let audit = &control.inner.audit;
    let after = match part.tail {
        Some(tail) => audit.last().saturating_sub(tail.min(PAGE) as u64),
        None => part.after,
    };
    let own = &control.inner.node;
    let read = match (part.server.filter(|server| server != own), part.copy.zip(part.joined)) {
        (Some(server), _) => return Ok(Json(control.trail_of(&server, part.after).await?)),
        (None, Some(whose)) => audit.copy_after(whose, part.after, PAGE).await,
        (None, None) => audit.after(after, PAGE).await,
    };
    Ok(Json(read.map_err(|error| unreadable(&error))?))
}

#[derive(Debug, serde::Deserialize)]
pub struct Tail {
    #[serde(default)]
    tail: usize,
}

pub async fn of_servers(
    State(control): State<Control>,
    Query(part): Query<Tail>,
) -> Answer<Vec<ServerTrail>> {
    let trails = control.trails(part.tail.min(PAGE)).await;
    Ok(Json(trails.map_err(|error| unreadable(&error))?))
}

/// For the copies of the other servers.
pub async fn own(State(control): State<Control>, Query(query): Query<Beyond>) -> Answer<Vec<AuditRecord>> {
    let audit = &control.inner.audit;
    audit.wait_beyond(query.after, query.wait()).await;
    Ok(Json(audit.after(query.after, PAGE).await.map_err(|error| unreadable(&error))?))
}

/// For the other servers: everything that is known here, the own trail first.
pub async fn kept(State(control): State<Control>, Query(part): Query<Tail>) -> Answer<Vec<KeptTrail>> {
    let kept = control.kept_trails(part.tail.min(PAGE)).await;
    Ok(Json(kept.map_err(|error| unreadable(&error))?))
}

fn unreadable(error: &std::io::Error) -> ErrorBody {
    ErrorBody::new(Code::Internal, format!("reading the audit trail: {error}"))
        .hint("it is in `audit` of the data directory")
}
