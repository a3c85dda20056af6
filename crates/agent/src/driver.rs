//! How a life is run: as a process under a shim, or as a container of the machine's engine.
//!
//! A life is known by its directory. Whatever runs it leaves there what is needed to find it again (a socket and
//! `life.json`, or `container.json`) and, at its end, `exit.json`. So whoever holds the directory asks the same
//! questions of both kinds: [`Driver::status`], [`Driver::ended`], [`Driver::stop`]. Only what is started differs.
//!
//! ```text
//! Start ─► spawn ─► Alive ── stop, kill, its own end ─► Ended ─► release
//!                     └── nothing knows of it any more: Lost
//! ```

pub mod docker;
pub mod process;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use crate::engine::{Engine, EngineError};
use crate::firewall::walls::Walls;
use crate::shim::protocol::{EXIT_FILE, Exit, Lease, Life, Spec};
use docker::{ContainerSpec, Containers, Doors};
use process::Processes;

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("starting the shim from {program}")]
    Shim { program: String, source: io::Error },
    #[error("shim ended without a word")]
    Silent,
    /// In words that are meant for people: `making the sandbox: …`.
    #[error("{0}")]
    Failed(String),
    #[error("starting the container")]
    Engine(#[from] EngineError),
    #[error("keeping {path}")]
    Record { path: String, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    #[error("talking to the shim in {directory}")]
    Io { directory: String, source: io::Error },
    #[error("shim in {directory} did not answer")]
    Silent { directory: String },
    #[error("shim refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What shall live.
#[derive(Debug)]
pub enum Start {
    Process(Box<Spec>),
    Container(Box<ContainerSpec>),
}

impl Start {
    pub fn directory(&self) -> &Path {
        match self {
            Self::Process(spec) => &spec.directory,
            Self::Container(spec) => &spec.directory,
        }
    }
}

/// A life that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Living {
    /// The command's first process, as the host sees it; 0 while the engine does not say.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub started_ms: i64,
}

impl From<&Life> for Living {
    fn from(life: &Life) -> Self {
        Self { pid: life.main, started_ms: life.started_ms }
    }
}

/// What is found in a life's directory.
#[derive(Debug)]
pub enum Status {
    /// An engine that does not answer is no news of its containers: they count as alive until it says otherwise.
    Alive(Living),
    Ended(Exit),
    /// Neither a living shim or container nor a word about the end: it was never started, or its shim was killed.
    Lost,
}

#[derive(Debug, Clone)]
pub struct Driver {
    processes: Processes,
    containers: Containers,
}

impl Driver {
    /// `program` becomes a shim when it is started with `shim`. `tag` tells this node's containers from those of another
    /// Rung on the same engine.
    pub fn new(program: PathBuf, engine: Engine, tag: &str) -> Self {
        Self { processes: Processes::new(program), containers: Containers::new(engine, tag) }
    }

    /// By these, containers call services.
    #[must_use]
    pub fn with_doors(self, doors: Doors) -> Self {
        Self { containers: self.containers.with_doors(doors), ..self }
    }

    /// By these, containers of several apps are kept apart.
    #[must_use]
    pub fn with_walls(self, walls: Walls) -> Self {
        Self { containers: self.containers.with_walls(walls), ..self }
    }

    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Starts a life, or finds that it was started already.
    ///
    /// # Errors
    /// It does not live. Nothing of it is left but its directory.
    pub async fn spawn(&self, start: &Start) -> Result<Living, SpawnError> {
        match start {
            Start::Process(spec) => self.processes.spawn(spec).await.map(|life| Living::from(&life)),
            Start::Container(spec) => self.containers.spawn(spec).await,
        }
    }

    pub async fn status(&self, directory: &Path) -> Status {
        match docker::is_container(directory) {
            true => self.containers.status(directory).await,
            false => process::status(directory).await,
        }
    }

    /// Waits until the life has ended, to its last process and its last line.
    pub async fn ended(&self, directory: &Path, attempt: u32) -> Exit {
        match docker::is_container(directory) {
            true => self.containers.ended(directory, attempt).await,
            false => process::ended(directory, attempt).await,
        }
    }

    /// Ends what is left of a life that was found [`Status::Lost`]; whoever starts anew must not be sooner.
    pub async fn end_lost(&self, directory: &Path) {
        match docker::is_container(directory) {
            true => self.containers.release(directory).await,
            false => process::end_lost(directory).await,
        }
    }

    /// SIGTERM (or what the image asks for), and SIGKILL after the grace period.
    ///
    /// # Errors
    /// It was not heard; a life that has ended says so, too.
    pub async fn stop(&self, directory: &Path, grace: Duration) -> Result<(), TalkError> {
        match docker::is_container(directory) {
            true => self.containers.stop(directory, grace).await,
            false => process::stop(directory, grace).await,
        }
    }

    /// Until when a life may go on.
    ///
    /// # Errors
    /// See [`Driver::stop`]; a container, and a shim of an older version, take none.
    pub async fn lease(&self, directory: &Path, lease: Lease) -> Result<(), TalkError> {
        match docker::is_container(directory) {
            true => Err(TalkError::Refused("a container has no shim".to_owned())),
            false => process::lease(directory, lease).await,
        }
    }

    pub async fn is_alive(&self, directory: &Path) -> bool {
        matches!(self.status(directory).await, Status::Alive(_))
    }

    /// # Errors
    /// See [`Driver::stop`].
    pub async fn kill(&self, directory: &Path) -> Result<(), TalkError> {
        match docker::is_container(directory) {
            true => self.containers.kill(directory).await,
            false => process::kill(directory).await,
        }
    }

    /// Runs a command inside; the failure in words.
    ///
    /// # Errors
    /// It did not exit with 0 in time.
    pub async fn check(&self, directory: &Path, command: &str, timeout: Duration) -> Result<(), String> {
        match docker::is_container(directory) {
            true => self.containers.check(directory, command, timeout).await,
            false => process::check(directory, command, timeout).await,
        }
    }

    /// A connection that carries frames of `rung_api::attach` from now on.
    ///
    /// # Errors
    /// There is nothing to attach to, or not yet.
    pub async fn attach(&self, directory: &Path) -> Result<UnixStream, TalkError> {
        match docker::is_container(directory) {
            true => self.containers.attach(directory).await,
            false => process::attach(directory).await,
        }
    }

    /// After the end of a life that somebody may attach to: waits until they had their look at it, or a while.
    pub async fn left(&self, directory: &Path) {
        match docker::is_container(directory) {
            true => self.containers.left(directory).await,
            false => process::left(directory).await,
        }
    }

    /// What an ended life still holds outside its directory.
    pub async fn release(&self, directory: &Path) {
        if docker::is_container(directory) {
            self.containers.release(directory).await;
        }
    }

    /// Ends whatever lives in a directory, and waits for it.
    pub async fn end_life(&self, directory: &Path) {
        match self.status(directory).await {
            Status::Alive(_) => {
                let _ = self.kill(directory).await;
                self.ended(directory, 0).await;
            }
            Status::Lost => self.end_lost(directory).await,
            Status::Ended(_) => {}
        }
        self.release(directory).await;
    }
}

fn read_exit(directory: &Path) -> Option<Exit> {
    serde_json::from_slice(&std::fs::read(directory.join(EXIT_FILE)).ok()?).ok()
}
