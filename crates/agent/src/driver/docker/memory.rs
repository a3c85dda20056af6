//! Whether a container was killed for want of memory.
//!
//! The engine hears of a process's end and of the reason by two ways. When the end comes first it says for good that
//! memory had no part in it; its events know better.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;

use super::Containers;
use super::spec::Record;
use crate::engine::{Container, EngineError, Query};

/// What a shell shows of SIGKILL.
const KILLED: i32 = 137;
/// The reason comes within some hundredths of a second.
const LOOKS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(50);
/// What the engine has to say of the past it says at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

impl Containers {
    /// The same, with the reason of its end.
    pub(super) async fn with_reason(&self, record: &Record, mut found: Container) -> Container {
        let is_open = record.memory_bytes.is_some()
            && !record.timed_out
            && found.state.exit_code == KILLED
            && !found.state.out_of_memory;
        if !is_open {
            return found;
        }
        for _ in 0..LOOKS {
            match self.was_short_of_memory(record).await {
                Ok(false) => tokio::time::sleep(BETWEEN).await,
                Ok(true) => {
                    found.state.out_of_memory = true;
                    break;
                }
                Err(error) => {
                    tracing::debug!(container = record.name, %error, "asking why it was killed");
                    break;
                }
            }
        }
        found
    }

    async fn was_short_of_memory(&self, record: &Record) -> Result<bool, EngineError> {
        let filters = serde_json::json!({ "container": [record.name], "event": ["oom"] }).to_string();
        let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms.rem_euclid(1000));
        let now = jiff::Timestamp::now().as_millisecond();
        let query = Query::default()
            .with("since", &seconds(record.started_ms - 1000))
            .with("until", &seconds(now))
            .with("filters", &filters);
        let body = self.engine.stream(Method::GET, &query.on("/events")).await?;
        let told = tokio::time::timeout(ANSWER_WITHIN, body.collect()).await;
        Ok(told.is_ok_and(|told| told.is_ok_and(|told| !told.to_bytes().trim_ascii().is_empty())))
    }
}
