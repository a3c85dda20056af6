//! Lives as containers of the machine's engine.
//!
//! A container outlives Rung by itself, so there is no shim: what an agent must know to find it again is in
//! `container.json`, written before the container is made, and on the container's own labels. The agent waits for its
//! end and follows what it prints into the same bounded logs that a shim writes; one that was restarted goes on where
//! the last line was. Containers that nobody has a record of are swept by their label.

mod attach;
mod doors;
mod follow;
mod image_check;
mod judge;
mod memory;
mod spec;
mod sweep;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::engine::{Container, Engine, EngineError, Query};
use crate::firewall::walls::Walls;
use crate::shim::logger::Logger;
use crate::shim::protocol::{EXIT_FILE, Exit, How};

use super::{Living, SpawnError, Status, TalkError, read_exit};
use doors::Place;
pub use doors::{Calls, DoorError, Doors, Porter};
pub use judge::{Failing, Reached};
pub use spec::{APP_LABEL, ContainerPort, ContainerSpec, Labels, NODE_LABEL, RELEASE_LABEL};
use spec::{RECORD_FILE, Record};

/// Before the engine is asked again after it did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// A container's last lines come within milliseconds of its end.
const LAST_LINES_WAIT: Duration = Duration::from_secs(5);
/// Beyond the grace period, for the engine's own work of stopping a container.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Whether the life in this directory is a container.
pub fn is_container(directory: &Path) -> bool {
    directory.join(RECORD_FILE).exists()
}

#[derive(Debug, Clone)]
pub struct Containers {
    engine: Engine,
    tag: Arc<str>,
    /// Whose output is being followed: a second follower would write each line twice.
    followed: Arc<Mutex<BTreeSet<PathBuf>>>,
    attached: Arc<Mutex<attach::Visits>>,
    doors: Doors,
    walls: Walls,
}

impl Containers {
    pub fn new(engine: Engine, tag: &str) -> Self {
        Self {
            engine,
            tag: tag.into(),
            followed: Arc::default(),
            attached: Arc::default(),
            doors: Doors::default(),
            walls: Walls::default(),
        }
    }

    /// Containers call services by this proxy; without one they don't.
    #[must_use]
    pub fn with_doors(self, doors: Doors) -> Self {
        Self { doors, ..self }
    }

    /// By these, containers of several apps are kept apart.
    #[must_use]
    pub fn with_walls(self, walls: Walls) -> Self {
        Self { walls, ..self }
    }

    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub async fn spawn(&self, spec: &ContainerSpec) -> Result<Living, SpawnError> {
        let mut record = spec.record(&self.tag);
        write_record(&spec.directory, &record)?;
        // Its address may have been somebody else's a moment ago.
        self.walls.ensure().await;
        let made = self.make(spec, &record).await;
        let started = match made {
            Ok(()) => self.engine.post(&format!("/containers/{}/start", record.name), None).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            return self.explain_start(spec, &record, error).await;
        }
        self.walls.ensure().await;
        let found = self.engine.container(&record.name).await?;
        self.ensure_door(&record, &found).await;
        let state = found.state;
        record.started_ms = state.started_ms().unwrap_or(record.started_ms);
        record.pid = Some(state.pid).filter(|pid| *pid > 0);
        write_record(&spec.directory, &record)?;
        self.say(&record, &spec.announcement());
        if let crate::shim::protocol::Io::Terminal { rows, columns } = spec.io {
            self.resize(&record.name, rows, columns).await;
        }
        Ok(Living { pid: state.pid, started_ms: record.started_ms })
    }

    /// Makes the container; one that is there already under this name was made by an agent that was killed.
    async fn make(&self, spec: &ContainerSpec, record: &Record) -> Result<(), EngineError> {
        let path = Query::default().with("name", &record.name).on("/containers/create");
        match self.engine.post(&path, Some(&spec.body(&self.tag))).await {
            Err(error) if error.is_conflict() => {}
            other => other?,
        }
        self.give_volumes(spec, &record.name).await;
        Ok(())
    }

    /// A command that can't be executed is the command's end, as it is for a process; everything else is the node's.
    async fn explain_start(
        &self,
        spec: &ContainerSpec,
        record: &Record,
        error: EngineError,
    ) -> Result<Living, SpawnError> {
        if error.is_silence() {
            // It may be running all the same: whoever comes next finds it by the record.
            return Err(error.into());
        }
        let _ = self.remove(&record.name).await;
        let Some(code) = judge::shell_code_of(&error) else {
            let _ = std::fs::remove_file(spec.directory.join(RECORD_FILE));
            return Err(error.into());
        };
        self.say(record, &spec.announcement());
        self.say(record, &format!("{error}{}", spec.way_out_of(code)));
        let at_ms = jiff::Timestamp::now().as_millisecond();
        let how = How::Exited { code };
        let exit = Exit {
            attempt: spec.attempt,
            how,
            out_of_memory: None,
            asked: false,
            timed_out: false,
            lease_over: false,
            at_ms,
        };
        keep_exit(&spec.directory, &exit);
        Ok(Living { pid: 0, started_ms: at_ms })
    }

    pub async fn status(&self, directory: &Path) -> Status {
        if let Some(exit) = read_exit(directory) {
            return Status::Ended(exit);
        }
        let Some(record) = read_record(directory) else { return Status::Lost };
        let alive = |pid: u32| Status::Alive(Living { pid, started_ms: record.started_ms });
        match self.engine.container(&record.name).await {
            Ok(found) if found.state.is_running() => alive(found.state.pid),
            Ok(found) if found.state.was_started() => {
                let _ = tokio::time::timeout(LAST_LINES_WAIT, self.follow(directory, &record)).await;
                let found = self.with_reason(&record, found).await;
                Status::Ended(self.conclude(directory, &record, &found))
            }
            Ok(_) => Status::Lost,
            Err(error) if error.is_not_found() => Status::Lost,
            Err(_) => alive(record.pid.unwrap_or(0)),
        }
    }

    pub async fn ended(&self, directory: &Path, attempt: u32) -> Exit {
        let Some(record) = read_record(directory) else { return unseen(attempt) };
        if let Some(exit) = read_exit(directory) {
            return exit;
        }
        let (this, place, of) = (self.clone(), directory.to_owned(), record.clone());
        let mut lines = tokio::task::JoinSet::new();
        lines.spawn(async move { this.follow(&place, &of).await });
        let mut pid = record.pid;
        let end = self.await_end(directory, &record, &mut pid).await;
        self.doors.shut(&record.name, pid).await;
        self.walls.left();
        // The follower ends with the container's output.
        let _ = tokio::time::timeout(LAST_LINES_WAIT, lines.join_next()).await;
        match end {
            Some(found) => {
                let found = self.with_reason(&record, found).await;
                self.conclude(directory, &record, &found)
            }
            None => read_exit(directory).unwrap_or_else(|| {
                self.say(&record, "its container was removed by somebody else");
                unseen(attempt)
            }),
        }
    }

    /// `None`: there is no such container any more.
    async fn await_end(&self, directory: &Path, record: &Record, pid: &mut Option<u32>) -> Option<Container> {
        loop {
            match self.engine.container(&record.name).await {
                Ok(found) if !found.state.is_running() => return Some(found),
                // Of one that an agent before this one started.
                Ok(found) => {
                    if *pid != Some(found.state.pid) {
                        // Somebody restarted it by hand: its network is another one.
                        self.doors.shut(&record.name, *pid).await;
                        self.walls.ensure().await;
                        *pid = Some(found.state.pid);
                    }
                    self.ensure_door(record, &found).await;
                }
                Err(error) if error.is_not_found() => return None,
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            let limit = record.time_left();
            tokio::select! {
                waited = self.engine.wait(&record.name) => if waited.is_err() {
                    tokio::time::sleep(RETRY).await;
                },
                () = tokio::time::sleep(limit.unwrap_or(Duration::MAX)), if limit.is_some() => {
                    self.end_late(directory, record).await;
                }
            }
        }
    }

    /// By it the container calls services.
    async fn ensure_door(&self, record: &Record, found: &Container) {
        let Some(calls) = record.calls.clone().filter(|_| found.state.pid > 0) else { return };
        let (container, pid, logs) = (found.id.clone(), found.state.pid, record.logs.clone());
        self.doors.ensure(&record.name, Place { container, pid, calls, logs }).await;
    }

    async fn end_late(&self, directory: &Path, record: &Record) {
        let mut late = read_record(directory).unwrap_or_else(|| record.clone());
        if !late.timed_out {
            late.timed_out = true;
            // Before the kill: an agent that dies in between must not take it for an exit of its own.
            let _ = write_record(directory, &late);
            self.say(record, "the time is over; killed");
        }
        let _ = self.engine.post(&format!("/containers/{}/kill", record.name), None).await;
        tokio::time::sleep(RETRY).await;
    }

    fn conclude(&self, directory: &Path, record: &Record, found: &Container) -> Exit {
        if let Some(exit) = read_exit(directory) {
            return exit;
        }
        // The newest record knows whether its time was over.
        let newest = read_record(directory).unwrap_or_else(|| record.clone());
        let exit = judge::exit_of(&newest, &found.state);
        self.say(record, &exit.describe());
        keep_exit(directory, &exit);
        exit
    }

    pub async fn stop(&self, directory: &Path, grace: Duration) -> Result<(), TalkError> {
        let Some(record) = read_record(directory) else { return Ok(()) };
        if grace.is_zero() {
            return self.kill(directory).await;
        }
        // Whole seconds, and never less than was asked for.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let path = format!("/containers/{}/stop", record.name);
        let path = Query::default().with("t", &seconds.to_string()).on(&path);
        let stopping = self.engine.stream(hyper::Method::POST, &path);
        match tokio::time::timeout(grace + STOP_MARGIN, stopping).await {
            Ok(Err(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    pub async fn kill(&self, directory: &Path) -> Result<(), TalkError> {
        let Some(record) = read_record(directory) else { return Ok(()) };
        match self.engine.post(&format!("/containers/{}/kill", record.name), None).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Removes the container, whether it runs or not.
    pub async fn release(&self, directory: &Path) {
        let Some(record) = read_record(directory) else { return };
        self.doors.shut(&record.name, record.pid).await;
        if let Err(error) = self.remove(&record.name).await {
            // The sweep finds it when its directory is gone.
            tracing::debug!(container = record.name, %error, "removing a container");
        }
    }

    async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{name}");
        // With the volumes that the image declares and nobody named.
        let path = Query::default().with("force", "1").with("v", "1").on(&path);
        match self.engine.delete(&path).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Rung's own words in the container's log.
    fn say(&self, record: &Record, text: &str) {
        let _ = std::fs::create_dir_all(&record.logs);
        Logger::new(&record.logs).say(text);
    }
}

fn unseen(attempt: u32) -> Exit {
    let at_ms = jiff::Timestamp::now().as_millisecond();
    Exit {
        attempt,
        how: How::Unseen,
        out_of_memory: None,
        asked: false,
        timed_out: false,
        lease_over: false,
        at_ms,
    }
}

fn read_record(directory: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(directory.join(RECORD_FILE)).ok()?).ok()
}

fn write_record(directory: &Path, record: &Record) -> Result<(), SpawnError> {
    let path = directory.join(RECORD_FILE);
    let bytes = serde_json::to_vec(record).expect("a record serializes");
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(path.with_extension("tmp"), bytes))
        .and_then(|()| std::fs::rename(path.with_extension("tmp"), &path));
    written.map_err(|source| SpawnError::Record { path: path.display().to_string(), source })
}

/// A machine that loses power loses the container's end with its life: both are looked for again then.
fn keep_exit(directory: &Path, exit: &Exit) {
    let path = directory.join(EXIT_FILE);
    let bytes = serde_json::to_vec(exit).expect("an exit serializes");
    let written = std::fs::write(path.with_extension("tmp"), bytes)
        .and_then(|()| std::fs::rename(path.with_extension("tmp"), &path));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "keeping how a container ended");
    }
}
