//! The audit trail: read by admins, checked by whoever reads it.

use axum::extract::State;
use rung_api::audit::AuditRecord;
use rung_api::{Code, ErrorBody};

use super::Answer;
use super::extract::{Json, Query};
use crate::shared::Control;

/// Records in one answer.
const PAGE: usize = 1000;

/// `?after=<sequence>`: what follows that one; `?tail=<count>`: the newest.
#[derive(Debug, serde::Deserialize)]
pub struct Part {
    #[serde(default)]
    after: u64,
    tail: Option<usize>,
}

pub async fn list(State(control): State<Control>, Query(part): Query<Part>) -> Answer<Vec<AuditRecord>> {
    let audit = &control.inner.audit;
    let (after, limit) = match part.tail {
        Some(tail) => (audit.last().saturating_sub(tail.min(PAGE) as u64), PAGE),
        None => (part.after, PAGE),
    };
    let read = audit.after(after, limit).await;
    let records = read.map_err(|error| {
        ErrorBody::new(Code::Internal, format!("reading the audit trail: {error}"))
            .hint("it is in `audit` of the data directory")
    })?;
    Ok(Json(records))
}
