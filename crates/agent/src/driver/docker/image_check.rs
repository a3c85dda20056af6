//! The check that an image brings along, its HEALTHCHECK.
//!
//! The engine runs it at the image's own pace: for the first time after a whole interval, which is half a minute when the
//! image names none. No deploy should wait for that, and a grace period is shorter. So as long as the engine has come to no
//! result the same check is run from here, at the pace of every instance that starts; then the engine's word counts.

use std::time::Duration;

use super::spec::Record;
use super::{Containers, RETRY};
use crate::artifacts::chain;
use crate::engine::{Container, EngineError, Healthcheck};

/// As the engine has it for an image that names none.
const TIMEOUT: Duration = Duration::from_secs(30);
/// So much of what a check printed is told.
const TOLD_MAX: usize = 300;

/// What the check says.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    Healthy,
    Failing(String),
    /// The image has none.
    Nothing,
}

impl Containers {
    /// What the image's check says now. For as long as the image says that it takes to start, a failure is none yet.
    pub async fn image_check(&self, record: &Record) -> Result<Word, EngineError> {
        loop {
            let found = self.engine.container(&record.name).await?;
            let state = &found.state;
            let status = state.health.as_ref().map_or("none", |health| health.status.as_str());
            match status {
                "" | "none" => return Ok(Word::Nothing),
                "healthy" => return Ok(Word::Healthy),
                "starting" => {}
                _ => {
                    let runs = state.health.iter().flat_map(|health| health.log.iter().flatten());
                    let said = runs.last().map(|run| run.output.trim()).unwrap_or("");
                    return Ok(Word::Failing(format!("the image's HEALTHCHECK fails: {}", end_of(said))));
                }
            }
            let Some(check) = found.healthcheck() else { return Ok(Word::Nothing) };
            let Some(argv) = check.command(found.shell()) else { return Ok(Word::Nothing) };
            match self.run_image_check(record, &argv, check).await {
                Ok(()) => return Ok(Word::Healthy),
                Err(_) if is_within_start(&found, check) => tokio::time::sleep(RETRY).await,
                Err(said) => {
                    return Ok(Word::Failing(format!("the image's HEALTHCHECK has not passed yet: {said}")));
                }
            }
        }
    }

    async fn run_image_check(
        &self,
        record: &Record,
        argv: &[String],
        check: &Healthcheck,
    ) -> Result<(), String> {
        let mut said = Vec::new();
        let limit = check.timeout().unwrap_or(TIMEOUT);
        match tokio::time::timeout(limit, self.exec(record, argv, &mut said)).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(code)) => {
                let said = String::from_utf8_lossy(&said);
                let said = end_of(said.trim());
                Err(if said.is_empty() {
                    format!("exit code {code}")
                } else {
                    format!("exit code {code}: {said}")
                })
            }
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no result within {} s", limit.as_secs_f64())),
        }
    }
}

fn is_within_start(found: &Container, check: &Healthcheck) -> bool {
    let age = found.state.started_ms().map(|at| jiff::Timestamp::now().as_millisecond() - at);
    let age = age.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    found.state.is_running() && age.zip(check.start_period()).is_some_and(|(age, start)| age < start)
}

fn end_of(said: &str) -> &str {
    let from = said.char_indices().rev().nth(TOLD_MAX - 1).map_or(0, |(at, _)| at);
    &said[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(health: &str, started: &str) -> Container {
        let text = format!(
            r#"{{"Id":"1","State":{{"Status":"running","StartedAt":"{started}","Health":{{"Status":"starting"}}}},
                "Config":{{"Shell":["/bin/ash","-ec"],"Healthcheck":{health}}}}}"#
        );
        serde_json::from_str(&text).expect("it is what an engine says")
    }

    #[test]
    fn a_check_is_run_as_its_image_writes_it() {
        let argv = |health: &str| {
            let found = container(health, "2026-01-01T00:00:00Z");
            found.healthcheck().and_then(|check| check.command(found.shell()))
        };
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(argv(r#"{"Test":["CMD","curl","-f","a b"]}"#), words(&["curl", "-f", "a b"]));
        assert_eq!(
            argv(r#"{"Test":["CMD-SHELL","curl a | grep b"]}"#),
            words(&["/bin/ash", "-ec", "curl a | grep b"])
        );
        assert_eq!(argv(r#"{"Test":["NONE"]}"#), None);
        assert_eq!(argv(r#"{"Test":["CMD"]}"#), None);
        assert_eq!(argv("{}"), None);
    }

    #[test]
    fn a_failure_counts_once_the_time_that_the_image_takes_to_start_is_over() {
        let now = jiff::Timestamp::now().to_string();
        let slow = r#"{"Test":["CMD","x"],"Timeout":2000000000,"StartPeriod":60000000000}"#;
        let within = |health: &str, started: &str| {
            let found = container(health, started);
            is_within_start(&found, found.healthcheck().expect("there is one"))
        };
        assert!(within(slow, &now));
        assert!(!within(slow, "2026-01-01T00:00:00Z"));
        assert!(!within(r#"{"Test":["CMD","x"]}"#, &now), "an image that names no time has none");
        let found = container(slow, &now);
        assert_eq!(found.healthcheck().and_then(Healthcheck::timeout), Some(Duration::from_secs(2)));
    }

    #[test]
    fn the_end_of_what_it_said_is_told() {
        assert_eq!(end_of("short"), "short");
        let long = format!("{}{}", "ä".repeat(1000), "e".repeat(10));
        assert_eq!(end_of(&long).chars().count(), TOLD_MAX);
        assert!(end_of(&long).ends_with("eeee"));
    }
}
