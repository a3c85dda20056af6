//! Runs: builds, release commands and one-off commands, each to its end.
//!
//! A run's command lives under a shim as an instance does, so it outlives the agent. A release command or a one-off
//! that an earlier agent began is awaited, never begun again; a build, which changes nothing but its own directory, is
//! begun anew.

mod build;
mod image;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::fcntl::Flock;
use rung_api::wire::Launch;
use rung_model::run::Terminal;
use rung_model::{ReleaseNumber, Run, RunId, RunKind, RunOutcome};
use tokio::sync::watch;

use crate::artifacts::{blocking, chain};
use crate::containers::{self, Wanted};
use crate::converge::Event;
use crate::driver::{Start, Status};
use crate::environment::{self, Identity};
use crate::health::words;
use crate::instances::Events;
use crate::logs;
use crate::node::{PrepareError, Purpose, Shared, ensure_volumes, fresh_life};
use crate::shim::lock;
use crate::shim::protocol::{Access, Exit, How, Io, Spec};

/// The one life of a release command or a one-off.
pub const MAIN: &str = "main";
/// Marks a run that was begun: it is never begun a second time. Its shim makes it in the moment before the command starts,
/// so what an agent was killed before is begun by the next one.
const BEGUN: &str = "begun";
/// Logs of old runs are looked for after so many runs: a job for each second must not fill the disk, nor must each of its
/// runs read the directory.
const PRUNE_EVERY: usize = 16;

#[derive(Debug, Clone)]
pub struct RunsDriver {
    node: Shared,
    events: Events,
    cancels: Arc<Mutex<BTreeMap<RunId, watch::Sender<bool>>>>,
    forgotten: Arc<AtomicUsize>,
}

/// What one command came to, in the words of an outcome.
#[derive(Debug)]
pub struct Failure {
    pub reason: String,
    pub exit_code: Option<i32>,
    pub log_tail: Vec<String>,
}

impl Failure {
    fn before_start(reason: String) -> Self {
        Self { reason, exit_code: None, log_tail: Vec::new() }
    }

    fn of(error: &dyn std::error::Error) -> Self {
        Self::before_start(chain(error))
    }
}

/// What a job finds beside its release's environment, and what a terminal needs.
fn extend_env(env: &mut BTreeMap<String, String>, run: &Run, io: Io) {
    if let RunKind::Job { env: own, run: of, .. } = &run.kind {
        env.extend(environment::of_job(of));
        env.extend(own.clone());
    }
    if let Io::Terminal { .. } = io {
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    }
}

impl From<Failure> for RunOutcome {
    fn from(failure: Failure) -> Self {
        let Failure { reason, exit_code, log_tail } = failure;
        Self::Failed { reason, exit_code, log_tail }
    }
}

/// Keeps a shim that an earlier agent sent on its way from starting while its directory is made anew. `None`: it is there.
fn hold(directory: &Path) -> Result<Option<Flock<File>>, Failure> {
    std::fs::create_dir_all(directory)
        .map_err(|error| Failure::before_start(format!("making {}: {error}", directory.display())))?;
    lock(directory).map_err(Failure::before_start)
}

impl RunsDriver {
    pub fn new(node: Shared, events: Events) -> Self {
        Self { node, events, cancels: Arc::default(), forgotten: Arc::default() }
    }

    pub fn start(&self, run: Run) {
        let (cancel, mut cancelled) = watch::channel(run.cancelled);
        self.cancels.lock().expect("no panic while held").insert(run.id.clone(), cancel);
        let this = self.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = this.execute(&run) => outcome,
                // The sender is kept until the end, so this is a word and not a loss.
                () = async { drop(cancelled.wait_for(|cancelled| *cancelled).await) } => {
                    this.end_lives(&run).await;
                    RunOutcome::Cancelled
                }
            };
            if let RunKind::Build { .. } = run.kind {
                this.remove_build(&run).await;
            }
            this.cancels.lock().expect("no panic while held").remove(&run.id);
            tracing::info!(run = %run.id, ?outcome, "run ended");
            let _ = this.events.send(Event::RunEnded { run: run.id.clone(), outcome });
        });
    }

    pub fn cancel(&self, run: &RunId) {
        if let Some(cancel) = self.cancels.lock().expect("no panic while held").get(run) {
            cancel.send_replace(true);
        }
    }

    pub async fn forget(&self, run: RunId) {
        let layout = self.node.layout.clone();
        let is_turn = self.forgotten.fetch_add(1, Ordering::Relaxed).is_multiple_of(PRUNE_EVERY);
        blocking(move || {
            let _ = rung_artifact::remove_tree(&layout.run(&run));
            if is_turn {
                logs::prune_runs(&layout);
            }
        })
        .await;
    }

    /// Runs that no assignment has any more, and that an earlier agent left.
    pub async fn sweep_strays(&self, is_known: impl Fn(&RunId) -> bool) {
        for entry in std::fs::read_dir(self.node.layout.runs()).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| RunId::new(name).ok());
            if id.as_ref().is_some_and(&is_known) {
                continue;
            }
            for life in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                self.node.driver.end_life(&life.path()).await;
            }
            let _ = rung_artifact::remove_tree(&entry.path());
        }
    }

    async fn end_lives(&self, run: &Run) {
        for life in std::fs::read_dir(self.node.layout.run(&run.id)).into_iter().flatten().flatten() {
            if life.path().is_dir() {
                self.node.driver.end_life(&life.path()).await;
            }
        }
    }

    fn tell_started(&self, run: &Run) {
        let _ = self.events.send(Event::RunStarted { run: run.id.clone() });
    }

    async fn execute(&self, run: &Run) -> RunOutcome {
        let outcome = match &run.kind {
            RunKind::Build { source, command, test, env, image } => {
                self.tell_started(run);
                let plan =
                    build::Plan { run, source, command: command.as_deref(), test: test.as_deref(), env };
                match image {
                    Some(image) => self.build_image(&plan, image).await.map(Some),
                    None => self.build(&plan).await.map(Some),
                }
            }
            RunKind::Release { release, command } => {
                self.run_once(run, *release, command, Io::Logs).await.map(|()| None)
            }
            RunKind::Job { release, command, .. } => {
                self.run_once(run, *release, command, Io::Logs).await.map(|()| None)
            }
            RunKind::OneOff { release, command, terminal } => {
                let io = match terminal {
                    Some(Terminal { rows, columns }) => Io::Terminal { rows: *rows, columns: *columns },
                    None => Io::Attached,
                };
                self.run_once(run, *release, command, io).await.map(|()| None)
            }
        };
        match outcome {
            Ok(artifact) => RunOutcome::Succeeded { artifact },
            Err(failure) => failure.into(),
        }
    }

    /// Begins the command, or awaits the one that was begun.
    async fn run_once(
        &self,
        run: &Run,
        release: ReleaseNumber,
        command: &str,
        io: Io,
    ) -> Result<(), Failure> {
        let home = self.node.layout.run(&run.id);
        let directory = home.join(MAIN);
        let is_attachable = io != Io::Logs;
        while !self.is_begun(run, &directory).await? {
            let Some(hold) = hold(&directory)? else { continue };
            let spec = self.prepare(run, release, command, io, &directory).await;
            drop(hold);
            let spec = spec.map_err(|error| Failure::of(&error))?;
            if let Start::Container(_) = spec {
                // Before the engine hears of it: whatever happens now, it is not begun again.
                let begun = std::fs::write(home.join(BEGUN), "");
                begun
                    .map_err(|error| Failure::before_start(format!("writing {}: {error}", home.display())))?;
            }
            self.node.driver.spawn(&spec).await.map_err(|error| Failure::of(&error))?;
            break;
        }
        self.tell_started(run);
        let exit = self.node.driver.ended(&directory, 1).await;
        if is_attachable {
            // Whoever attaches to a command that was quick finds its output: it is forgotten once its end is reported.
            self.node.driver.left(&directory).await;
        }
        self.node.driver.release(&directory).await;
        self.judge(run, "", &exit).await
    }

    /// Whether an earlier agent, or this one, has begun it. One that an earlier agent had only sent on its way may still
    /// begin.
    async fn is_begun(&self, run: &Run, directory: &Path) -> Result<bool, Failure> {
        let is_marked = || self.node.layout.run(&run.id).join(BEGUN).exists();
        if !directory.exists() && !is_marked() {
            return Ok(false);
        }
        match self.node.driver.status(directory).await {
            Status::Alive(_) | Status::Ended(_) => Ok(true),
            Status::Lost if is_marked() => {
                self.node.driver.end_lost(directory).await;
                let reason = "was interrupted: the machine or its shim was killed while it ran".to_owned();
                Err(Failure::before_start(reason))
            }
            Status::Lost => Ok(false),
        }
    }

    async fn prepare(
        &self,
        run: &Run,
        release: ReleaseNumber,
        command: &str,
        io: Io,
        directory: &Path,
    ) -> Result<Start, PrepareError> {
        let node = &self.node;
        let launch = node.launch(&run.app, release).await?;
        if containers::runs_image(&launch.release.file) {
            return self.prepare_container(run, &launch, command, io, directory).await;
        }
        let tree = node.artifacts.ensure(&launch.release.artifact).await?;
        let isolation = node.isolation(&run.app, Purpose::Run)?;
        let tmp = fresh_life(directory, isolation)?;
        let file = &launch.release.file;
        let job = run.of_job().and_then(|of| file.jobs.get(&of.job));
        let (mounts, volumes) = match job {
            Some(job) => environment::mounts(&node.layout, &run.app, job.mounts.iter(), node.kind()),
            // Whatever a release command or a person at a terminal may need.
            None => {
                let all = file.services.values().flat_map(|service| &service.mounts);
                environment::mounts(&node.layout, &run.app, all, node.kind())
            }
        };
        ensure_volumes(&mounts, isolation)?;
        let identity = Identity { id: run.id.as_str(), service: None, port: None, services: node.services };
        let mut env = environment::of_release(&launch, &identity, &volumes, node.kind(), &tmp);
        extend_env(&mut env, run, io);
        Ok(Start::Process(Box::new(Spec {
            name: run.id.to_string(),
            attempt: 1,
            directory: directory.to_owned(),
            logs: node.layout.run_logs(&run.app, &run.id),
            command: command.to_owned(),
            env,
            tree,
            tree_access: Access::ReadOnly,
            tmp,
            mounts,
            names: environment::names(&launch, &identity),
            masked: node.masked.clone(),
            isolation,
            limits: node.limits(
                run.id.as_str(),
                job.and_then(|job| job.memory_bytes),
                job.and_then(|job| job.cpu_millis),
            ),
            io,
            time_limit_ms: Some(u64::try_from(run.timeout.as_millis()).unwrap_or(u64::MAX)),
            once: Some(node.layout.run(&run.id).join(BEGUN)),
            lease: None,
        })))
    }

    async fn prepare_container(
        &self,
        run: &Run,
        launch: &Launch,
        command: &str,
        io: Io,
        directory: &Path,
    ) -> Result<Start, PrepareError> {
        let node = &self.node;
        let image = node.images.ensure(&launch.release.artifact).await?;
        let file = &launch.release.file;
        let job = run.of_job().and_then(|of| file.jobs.get(&of.job));
        let mounts = match job {
            Some(job) => job.mounts.iter().collect(),
            None => file.services.values().flat_map(|service| &service.mounts).collect(),
        };
        let (memory, cpu) = (job.and_then(|job| job.memory_bytes), job.and_then(|job| job.cpu_millis));
        let wanted = Wanted {
            launch,
            id: run.id.as_str(),
            service: None,
            attempt: 1,
            directory: directory.to_owned(),
            logs: node.layout.run_logs(&run.app, &run.id),
            command: Some(command.to_owned()),
            port: None,
            mounts,
            limits: node.limits(run.id.as_str(), memory, cpu),
            io,
            time_limit_ms: Some(u64::try_from(run.timeout.as_millis()).unwrap_or(u64::MAX)),
        };
        let mut spec = containers::prepare(node, &image, wanted)?;
        extend_env(&mut spec.env, run, io);
        Ok(Start::Container(Box::new(spec)))
    }

    /// `what` is put in front: `test exited with code 1`.
    async fn judge(&self, run: &Run, what: &str, exit: &Exit) -> Result<(), Failure> {
        if exit.how == (How::Exited { code: 0 }) && !exit.timed_out {
            return Ok(());
        }
        let reason = if exit.timed_out {
            format!("{what}took longer than {}", words(run.timeout))
        } else {
            format!("{what}{}", exit.describe())
        };
        let directory = self.node.layout.run_logs(&run.app, &run.id);
        let log_tail = blocking(move || logs::tail(&directory)).await;
        let exit_code = if exit.timed_out { None } else { exit.shell_code() };
        Err(Failure { reason, exit_code, log_tail })
    }
}
