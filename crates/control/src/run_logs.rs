//! Logs of builds and release commands, kept with the releases that came of them.
//!
//! Such a log lies with the agent that ran the command, and goes with that machine, while the release stays. So the
//! server takes a copy when the command has ended: `run-logs/<app>/<run>.jsonl` in its data directory, a record a line,
//! the last [`BYTES_MAX`] of them. A copy that is there is what is shown; agents are asked otherwise. It goes when neither a
//! release nor the history of runs names its run.
//!
//! With several servers each takes its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rung_api::client::log_query;
use rung_api::wire::{LogLine, LogQuery, Stream};
use rung_api::{ClientError, paths};
use rung_model::{AppName, NodeId, Run, RunId, RunKind, RunState};
use rung_planner::World;

use crate::shared::Control;

/// Of a log: what explains a failure is near its end, and an agent keeps no more than some ten times this.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// The index changes often, and nobody waits for a copy.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Without any change: what could not be taken is tried again.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// An agent that does not give a log so often has none.
const TRIES_MAX: u32 = 10;
/// A log that does not come to its end is no reason to keep the others waiting.
const TAKE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error("node {0} is not reached by what it has said of itself")]
    Unreached(NodeId),
    #[error("reading it from node {node}")]
    Asked { node: NodeId, source: ClientError },
    #[error("node {0} did not give all of it in time")]
    Slow(NodeId),
    #[error("writing {path}")]
    Write { path: String, source: io::Error },
}

/// A command that has ended, whose log is to be kept.
#[derive(Debug, Clone)]
struct Ended {
    app: AppName,
    run: RunId,
    node: NodeId,
    /// When its record was made: a copy that is older is of another app that had the name.
    at: Timestamp,
}

impl Ended {
    fn of(run: &Run) -> Option<Self> {
        let is_step = matches!(run.kind, RunKind::Build { .. } | RunKind::Release { .. });
        let has_ended = matches!(run.state, RunState::Ended { .. });
        let node = run.node.clone().filter(|_| is_step && has_ended)?;
        Some(Self { app: run.app.clone(), run: run.id.clone(), node, at: run.at })
    }
}

/// Runs as long as the server.
pub(crate) async fn keep_run_logs(control: Control) {
    let mut changes = control.inner.changes.subscribe();
    // What is kept, or was given up, needs no second look at the disk.
    let mut done: BTreeSet<RunId> = BTreeSet::new();
    let mut tries: BTreeMap<RunId, u32> = BTreeMap::new();
    loop {
        let ended: Vec<Ended> =
            control.read(|world| world.runs.values().filter_map(|held| Ended::of(&held.value)).collect());
        let there: BTreeSet<&RunId> = ended.iter().map(|ended| &ended.run).collect();
        done.retain(|run| there.contains(run));
        for ended in ended.iter().filter(|ended| !done.contains(&ended.run)).cloned().collect::<Vec<_>>() {
            if control.is_kept(&ended.app, &ended.run, Some(ended.at)) {
                done.insert(ended.run);
                continue;
            }
            let count = tries.entry(ended.run.clone()).or_default();
            *count += 1;
            match (control.take(&ended).await, *count) {
                (Err(error), count) if count < TRIES_MAX => {
                    tracing::debug!(run = %ended.run, error = crate::trees::chain(&error), "keeping a log");
                }
                (taken, _) => {
                    if let Err(error) = taken {
                        tracing::warn!(run = %ended.run, error = crate::trees::chain(&error), "a log is not kept");
                    }
                    tries.remove(&ended.run);
                    done.insert(ended.run);
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            () = tokio::time::sleep(LOOK_ANYWAY) => {}
        }
    }
}

impl Control {
    fn run_log(&self, app: &AppName, run: &RunId) -> PathBuf {
        self.inner.data.join("run-logs").join(app.as_str()).join(format!("{run}.jsonl"))
    }

    fn is_kept(&self, app: &AppName, run: &RunId, since: Option<Timestamp>) -> bool {
        let written = std::fs::metadata(self.run_log(app, run)).and_then(|file| file.modified());
        // File systems count in steps of milliseconds.
        let slack = jiff::SignedDuration::from_secs(1);
        written.is_ok_and(|written| {
            let written = Timestamp::try_from(written).unwrap_or(Timestamp::MAX);
            since.is_none_or(|since| written + slack >= since)
        })
    }

    async fn take(&self, ended: &Ended) -> Result<(), TakeError> {
        let node = &ended.node;
        let (app, run) = (Some(ended.app.clone()), Some(ended.run.clone()));
        let path =
            format!("{}?{}", paths::AGENT_LOGS, log_query(&LogQuery { app, run, ..LogQuery::default() }));
        let agent = self.agents(|id| id == node).into_iter().find_map(|(_, agent)| agent);
        let agent = agent.ok_or_else(|| TakeError::Unreached(node.clone()))?;
        let asked = |source| TakeError::Asked { node: node.clone(), source };
        let reading = async {
            let mut kept = Tail::default();
            let mut lines = agent.stream::<LogLine>(&path).await.map_err(asked)?;
            while let Some(line) = lines.next().await {
                kept.push(&line.map_err(asked)?);
            }
            Ok::<_, TakeError>(kept)
        };
        let kept = tokio::time::timeout(TAKE_WITHIN, reading).await;
        let kept = kept.map_err(|_| TakeError::Slow(node.clone()))??;
        let target = self.run_log(&ended.app, &ended.run);
        let writing = |source| TakeError::Write { path: target.display().to_string(), source };
        kept.write(&target).map_err(writing)
    }

    /// The copy of a run's log, as far as the query wants it; `None`: there is none.
    pub(crate) fn kept_run_log(&self, app: &AppName, query: &LogQuery) -> Option<Vec<LogLine>> {
        let run = query.run.as_ref().filter(|_| !query.follow)?;
        let since = self.read(|world| {
            let known = world.runs.get(run).filter(|held| held.value.app == *app);
            known
                .map(|held| held.value.at)
                .map(Some)
                .or_else(|| made_a_release(world, app, run).then_some(None))
        })?;
        if !self.is_kept(app, run, since) {
            return None;
        }
        let file = std::fs::File::open(self.run_log(app, run)).ok()?;
        let lines = io::BufReader::new(file).lines().map_while(Result::ok);
        let lines = lines.filter_map(|line| serde_json::from_slice::<LogLine>(line.as_bytes()).ok());
        let mut lines: Vec<LogLine> =
            lines.filter(|line| query.since.is_none_or(|since| line.at >= since)).collect();
        if let Some(tail) = query.tail {
            lines.drain(..lines.len().saturating_sub(tail));
        }
        Some(lines)
    }

    /// Removes copies whose runs nothing names any more.
    pub(crate) fn prune_run_logs(&self) {
        let directories = std::fs::read_dir(self.inner.data.join("run-logs"));
        for directory in directories.into_iter().flatten().flatten() {
            let app = directory.file_name().to_str().and_then(|name| AppName::new(name).ok());
            for file in std::fs::read_dir(directory.path()).into_iter().flatten().flatten() {
                let name = file.file_name();
                let run = name.to_str().and_then(|name| RunId::new(name.strip_suffix(".jsonl")?).ok());
                let is_named = match (&app, run) {
                    (Some(app), Some(run)) => self.read(|world| {
                        let is_known = world.runs.get(&run).is_some_and(|held| held.value.app == *app);
                        is_known || made_a_release(world, app, &run)
                    }),
                    _ => false,
                };
                if !is_named && let Err(error) = std::fs::remove_file(file.path()) {
                    tracing::warn!(%error, path = %file.path().display(), "removing a log");
                }
            }
            // Only when it is empty.
            let _ = std::fs::remove_dir(directory.path());
        }
    }
}

fn made_a_release(world: &World, app: &AppName, run: &RunId) -> bool {
    let mut releases = world.releases.get(app).into_iter().flat_map(|releases| releases.values());
    releases.any(|held| held.value.provenance.build.as_ref() == Some(run))
}

/// The last lines of a log, as they are written.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
    dropped: u64,
    first: Option<LogLine>,
}

impl Tail {
    fn push(&mut self, line: &LogLine) {
        let text = serde_json::to_string(line).expect("a line of a log serializes");
        self.first.get_or_insert_with(|| line.clone());
        self.bytes += text.len() + 1;
        self.lines.push_back(text);
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len() + 1;
            self.dropped += 1;
        }
    }

    fn write(&self, target: &Path) -> io::Result<()> {
        let directory = target.parent().expect("a log has a directory");
        std::fs::create_dir_all(directory)?;
        let unfinished = target.with_extension("tmp");
        let mut file = io::BufWriter::new(std::fs::File::create(&unfinished)?);
        if let Some(first) = self.first.as_ref().filter(|_| self.dropped > 0) {
            let text = format!("{} lines before these are not kept", self.dropped);
            let note = LogLine { stream: Stream::Rung, text, partial: false, ..first.clone() };
            writeln!(file, "{}", serde_json::to_string(&note)?)?;
        }
        for line in &self.lines {
            writeln!(file, "{line}")?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(&unfinished, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_kept_and_it_says_so() {
        let mut tail = Tail::default();
        for number in 0..3000 {
            let text = format!("{number} {}", "x".repeat(2000));
            let at = Timestamp::from_second(number).unwrap();
            let source = "shop.d1-build".to_owned();
            tail.push(&LogLine { at, source, service: None, stream: Stream::Stdout, text, partial: false });
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop/shop.d1-build.jsonl");
        tail.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() < BYTES_MAX + 1000, "{} bytes are kept", text.len());
        let lines: Vec<LogLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines[0].text.ends_with("lines before these are not kept"), "{}", lines[0].text);
        assert!(lines.last().unwrap().text.starts_with("2999 "), "the end is missing");
    }
}
