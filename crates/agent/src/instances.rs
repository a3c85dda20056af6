//! Carries out what the converge machine decides about instances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rung_api::wire::Launch;
use rung_model::appfile::Health;
use rung_model::{AssignedInstance, InstanceId};
use tokio::sync::{mpsc, watch};

use crate::artifacts::{blocking, chain};
use crate::containers::{self, Wanted};
use crate::converge::{Event, ExitKind, Exited, Found, FoundLife, PortChoice, ProbeOutcome};
use crate::driver::docker::{self, Failing, Reached};
use crate::driver::process::read_life;
use crate::driver::{Living, Start, Status};
use crate::environment::{self, Identity};
use crate::firewall;
use crate::health::{self, Failure, Target};
use crate::ledger::Entry;
use crate::logs;
use crate::node::{PrepareError, Purpose, Shared, ensure_volumes, fresh_life};
use crate::shim::protocol::{Access, Exit, How, Io, Spec};

pub type Events = mpsc::UnboundedSender<Event>;

/// A life whose port was seen to be its own: looked at once, for it costs a walk through `/proc`.
type Proved = Arc<Mutex<BTreeSet<(InstanceId, u32)>>>;

/// Where a life was seen to listen instead of on its port; looked at as seldom as its log is.
type Elsewhere = Arc<Mutex<BTreeMap<(InstanceId, u32), String>>>;

#[derive(Debug, Clone)]
pub struct Instances {
    node: Shared,
    events: Events,
    proved: Proved,
    elsewhere: Elsewhere,
    /// How many lives are watched: one that has ended is, until nothing of it is left outside its directory.
    watched: watch::Sender<usize>,
}

impl Instances {
    pub fn new(node: Shared, events: Events) -> Self {
        let watched = watch::Sender::new(0);
        Self { node, events, proved: Arc::default(), elsewhere: Arc::default(), watched }
    }

    /// Waits until every life that was started or adopted has ended and is cleared away.
    pub async fn cleared(&self) {
        let none = self.watched.subscribe().wait_for(|lives| *lives == 0).await.is_ok();
        debug_assert!(none, "this has a sender itself");
    }

    /// The machine is gone only when the agent ends; nobody waits for the news then.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What an earlier agent left: told to the machine before it begins.
    pub async fn find(&self) {
        let entries = self.node.ledger().instances().clone();
        for (id, entry) in entries {
            let directory = self.node.layout.life(&id, entry.attempt);
            let status = self.node.driver.status(&directory).await;
            let found = |life| Found {
                instance: id.clone(),
                assigned: entry.assigned.clone(),
                attempt: entry.attempt,
                port: entry.port,
                life,
            };
            match status {
                Status::Alive(life) => {
                    tracing::info!(instance = %id, pid = life.pid, "adopted");
                    self.tell(Event::Found(found(FoundLife::Alive {
                        pid: life.pid,
                        running_for: age(&life),
                    })));
                    self.watch(id.clone(), entry.assigned.clone(), entry.attempt);
                }
                Status::Ended(exit) => {
                    self.tell(Event::Found(found(FoundLife::Ended)));
                    // Who was asked to end has done nothing wrong: the earlier agent took all instances along.
                    if !exit.asked {
                        self.tell_exit(&id, &entry.assigned, exit).await;
                    }
                    self.node.driver.release(&directory).await;
                }
                Status::Lost => {
                    self.node.driver.end_lost(&directory).await;
                    self.tell(Event::Found(found(FoundLife::Ended)));
                }
            }
        }
    }

    /// Lives that no ledger knows are ended: nobody would ever stop them.
    pub async fn sweep_strays(&self) {
        let known: BTreeSet<InstanceId> = self.node.ledger().instances().keys().cloned().collect();
        for entry in std::fs::read_dir(self.node.layout.instances()).into_iter().flatten().flatten() {
            let known_name = entry.file_name().to_str().and_then(|name| InstanceId::new(name).ok());
            if known_name.is_some_and(|id| known.contains(&id)) {
                continue;
            }
            for life in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                self.node.driver.end_life(&life.path()).await;
            }
            tracing::warn!(directory = %entry.path().display(), "removed an instance that nobody knows");
            let _ = rung_artifact::remove_tree(&entry.path());
        }
    }

    pub async fn launch(&self, id: InstanceId, assigned: AssignedInstance, attempt: u32, port: PortChoice) {
        match self.try_launch(&id, &assigned, attempt, port).await {
            Ok((life, port)) => {
                self.tell(Event::Started { instance: id.clone(), attempt, pid: life.pid, port });
                self.watch(id.clone(), assigned, attempt);
                self.remove_older_lives(&id, attempt).await;
            }
            Err(reason) => self.tell(Event::StartFailed { instance: id, attempt, reason }),
        }
    }

    async fn try_launch(
        &self,
        id: &InstanceId,
        assigned: &AssignedInstance,
        attempt: u32,
        choice: PortChoice,
    ) -> Result<(Living, Option<u16>), String> {
        let (start, port) =
            self.prepare(id, assigned, attempt, choice).await.map_err(|error| chain(&error))?;
        let life = self.node.driver.spawn(&start).await.map_err(|error| chain(&error))?;
        Ok((life, port))
    }

    async fn prepare(
        &self,
        id: &InstanceId,
        assigned: &AssignedInstance,
        attempt: u32,
        choice: PortChoice,
    ) -> Result<(Start, Option<u16>), PrepareError> {
        let node = &self.node;
        let launch = node.launch(&assigned.app, assigned.release).await?;
        if containers::runs_image(&launch.release.file) {
            return self.prepare_container(&launch, id, assigned, attempt, choice).await;
        }
        let tree = node.artifacts.ensure(&launch.release.artifact).await?;
        let service = launch.release.file.services.get(&assigned.service).ok_or_else(|| {
            PrepareError::NoService { release: assigned.release, service: assigned.service.to_string() }
        })?;
        let lease = match service.exclusive {
            true => node.leases.for_launch(node, id, service.stop_grace).await?,
            false => None,
        };
        let port = self.record(id, assigned, attempt, choice)?;
        let isolation = node.isolation(&assigned.app, Purpose::Run)?;
        firewall::ensure(node).await;
        let directory = node.layout.life(id, attempt);
        let tmp = fresh_life(&directory, isolation)?;
        let (mounts, volumes) =
            environment::mounts(&node.layout, &assigned.app, service.mounts.iter(), node.kind());
        ensure_volumes(&mounts, isolation)?;
        let name = assigned.service.as_str();
        let identity = Identity { id: id.as_str(), service: Some(name), port, services: node.services };
        let mut env = environment::of_release(&launch, &identity, &volumes, node.kind(), &tmp);
        env.extend(environment::of_fence(assigned));
        let spec = Spec {
            name: id.to_string(),
            attempt,
            logs: node.layout.instance_logs(&assigned.app, &assigned.service, id),
            command: service.command.clone().unwrap_or_default(),
            env,
            tree,
            tree_access: Access::ReadOnly,
            tmp,
            directory,
            mounts,
            names: environment::names(&launch, &identity),
            masked: node.masked.clone(),
            isolation,
            limits: node.limits(&format!("{id}.{attempt}"), service.memory_bytes, service.cpu_millis),
            io: Io::Logs,
            time_limit_ms: None,
            once: None,
            lease,
        };
        Ok((Start::Process(Box::new(spec)), port))
    }

    async fn prepare_container(
        &self,
        launch: &Launch,
        id: &InstanceId,
        assigned: &AssignedInstance,
        attempt: u32,
        choice: PortChoice,
    ) -> Result<(Start, Option<u16>), PrepareError> {
        let node = &self.node;
        let image = node.images.ensure(&launch.release.artifact).await?;
        let service = launch.release.file.services.get(&assigned.service).ok_or_else(|| {
            PrepareError::NoService { release: assigned.release, service: assigned.service.to_string() }
        })?;
        let port = self.record(id, assigned, attempt, choice)?;
        firewall::ensure(node).await;
        let wanted = Wanted {
            launch,
            id: id.as_str(),
            service: Some(&assigned.service),
            attempt,
            directory: node.layout.life(id, attempt),
            logs: node.layout.instance_logs(&assigned.app, &assigned.service, id),
            command: service.command.clone(),
            port: containers::port_of(&image, service.image_port, port),
            mounts: service.mounts.iter().collect(),
            limits: node.limits(&format!("{id}.{attempt}"), service.memory_bytes, service.cpu_millis),
            io: Io::Logs,
            time_limit_ms: None,
        };
        let spec = containers::prepare(node, &image, wanted)?;
        Ok((Start::Container(Box::new(spec)), port))
    }

    /// Before the process exists: an agent that is killed in between finds what it began.
    fn record(
        &self,
        id: &InstanceId,
        assigned: &AssignedInstance,
        attempt: u32,
        choice: PortChoice,
    ) -> Result<Option<u16>, PrepareError> {
        let mut ledger = self.node.ledger();
        let had = ledger.instances().get(id).and_then(|entry| entry.port);
        let port = match choice {
            PortChoice::None => None,
            PortChoice::Keep => Some(ledger.pick_port(id, had)?),
            PortChoice::New => Some(ledger.pick_port(id, None)?),
        };
        ledger.record(id, Entry { assigned: assigned.clone(), attempt, port })?;
        Ok(port)
    }

    async fn remove_older_lives(&self, id: &InstanceId, attempt: u32) {
        for life in std::fs::read_dir(self.node.layout.instance(id)).into_iter().flatten().flatten() {
            if life.file_name().to_str() != Some(attempt.to_string().as_str()) {
                self.node.driver.release(&life.path()).await;
                blocking(move || drop(rung_artifact::remove_tree(&life.path()))).await;
            }
        }
    }

    /// Tells the machine of the life's end, whenever that is.
    fn watch(&self, id: InstanceId, assigned: AssignedInstance, attempt: u32) {
        let this = self.clone();
        self.watched.send_modify(|lives| *lives += 1);
        tokio::spawn(async move {
            let directory = this.node.layout.life(&id, attempt);
            let exit = this.node.driver.ended(&directory, attempt).await;
            this.tell_exit(&id, &assigned, exit).await;
            this.node.driver.release(&directory).await;
            this.watched.send_modify(|lives| *lives -= 1);
        });
    }

    async fn tell_exit(&self, id: &InstanceId, assigned: &AssignedInstance, exit: Exit) {
        let life = (id.clone(), exit.attempt);
        self.proved.lock().expect("no panic while held").remove(&life);
        self.elsewhere.lock().expect("no panic while held").remove(&life);
        let directory = self.node.layout.instance_logs(&assigned.app, &assigned.service, id);
        let kind = match exit.how {
            How::Exited { code: 0 } => ExitKind::Finished,
            _ if exit.is_not_executable() => ExitKind::NotExecutable,
            _ => ExitKind::Ended,
        };
        let log_tail = blocking(move || logs::tail(&directory)).await;
        let reason = exit.describe();
        tracing::info!(instance = %id, attempt = exit.attempt, reason, "exited");
        self.tell(Event::Exited(Exited {
            instance: id.clone(),
            attempt: exit.attempt,
            reason,
            kind,
            log_tail,
        }));
    }

    /// SIGTERM, grace, SIGKILL. The end is told by the watch; a shim that is gone has told it already.
    pub async fn stop(&self, id: &InstanceId, attempt: u32, grace: Duration) {
        let directory = self.node.layout.life(id, attempt);
        if let Err(error) = self.node.driver.stop(&directory, grace).await {
            tracing::debug!(instance = %id, error = chain(&error), "the stop was not heard");
        }
    }

    pub async fn probe(&self, id: InstanceId, attempt: u32, with_tail: bool) {
        if let Some(outcome) = self.try_probe(&id, attempt, with_tail).await {
            self.tell(Event::Probed { instance: id, attempt, outcome });
        }
    }

    async fn try_probe(&self, id: &InstanceId, attempt: u32, with_tail: bool) -> Option<ProbeOutcome> {
        let node = &self.node;
        let entry = node.ledger().instances().get(id).filter(|entry| entry.attempt == attempt).cloned()?;
        let launch = node.launch(&entry.assigned.app, entry.assigned.release).await.ok()?;
        let health = &launch.release.file.services.get(&entry.assigned.service)?.health;
        let directory = node.layout.life(id, attempt);
        if docker::is_container(&directory) {
            return Some(self.probe_container(id, &entry, &directory, health, with_tail).await);
        }
        let shim = shim_pid(&directory).unwrap_or(0);
        let target = Target { app: &entry.assigned.app, directory: &directory, shim, port: entry.port };
        let outcome = match health::probe(&target, health).await {
            Ok(()) => self.prove(id, attempt, shim, entry.port).await,
            failed => failed,
        };
        Some(match outcome {
            Ok(()) => ProbeOutcome::Passed,
            Err(Failure::PortTaken(reason)) => ProbeOutcome::PortTaken { reason },
            Err(Failure::Check(reason)) => {
                let log_tail = if with_tail { self.tail(id, &entry).await } else { Vec::new() };
                ProbeOutcome::Failed { reason, log_tail }
            }
            Err(Failure::Unheard(reason)) if with_tail => {
                let elsewhere = self.look_elsewhere(id, &entry, shim).await;
                ProbeOutcome::Failed {
                    reason: elsewhere.unwrap_or(reason),
                    log_tail: self.tail(id, &entry).await,
                }
            }
            Err(Failure::Unheard(reason)) => {
                let known = self.elsewhere.lock().expect("no panic while held");
                let elsewhere = known.get(&(id.clone(), attempt)).cloned();
                ProbeOutcome::Failed { reason: elsewhere.unwrap_or(reason), log_tail: Vec::new() }
            }
        })
    }

    async fn probe_container(
        &self,
        id: &InstanceId,
        entry: &Entry,
        directory: &std::path::Path,
        health: &Health,
        with_tail: bool,
    ) -> ProbeOutcome {
        let looked = match self.node.driver.containers().look(directory, health).await {
            Ok(Reached::Well) => Ok(()),
            Ok(Reached::At(port)) => health::probe_http(&entry.assigned.app, port, health).await,
            Err(Failing::Check(reason)) => Err(Failure::Check(reason)),
            Err(Failing::Unheard(reason)) => Err(Failure::Unheard(reason)),
        };
        match looked {
            Ok(()) => ProbeOutcome::Passed,
            Err(Failure::PortTaken(reason)) => ProbeOutcome::PortTaken { reason },
            Err(Failure::Check(reason) | Failure::Unheard(reason)) => {
                let log_tail = if with_tail { self.tail(id, entry).await } else { Vec::new() };
                ProbeOutcome::Failed { reason, log_tail }
            }
        }
    }

    async fn prove(
        &self,
        id: &InstanceId,
        attempt: u32,
        shim: u32,
        port: Option<u16>,
    ) -> Result<(), Failure> {
        let Some(port) = port else { return Ok(()) };
        let key = (id.clone(), attempt);
        if self.proved.lock().expect("no panic while held").contains(&key) {
            return Ok(());
        }
        blocking(move || health::owns_port(shim, port)).await?;
        self.proved.lock().expect("no panic while held").insert(key);
        Ok(())
    }

    async fn tail(&self, id: &InstanceId, entry: &Entry) -> Vec<String> {
        let directory = self.node.layout.instance_logs(&entry.assigned.app, &entry.assigned.service, id);
        blocking(move || logs::tail(&directory)).await
    }

    async fn look_elsewhere(&self, id: &InstanceId, entry: &Entry, shim: u32) -> Option<String> {
        let port = entry.port?;
        let found = blocking(move || health::listens_elsewhere(shim, port)).await;
        let mut known = self.elsewhere.lock().expect("no panic while held");
        let life = (id.clone(), entry.attempt);
        match &found {
            Some(place) => drop(known.insert(life, place.clone())),
            None => drop(known.remove(&life)),
        }
        found
    }

    pub async fn forget(&self, id: InstanceId) {
        if let Err(error) = self.node.ledger().forget(&id) {
            tracing::warn!(instance = %id, error = chain(&error), "forgetting an instance");
        }
        let node = self.node.clone();
        for life in std::fs::read_dir(node.layout.instance(&id)).into_iter().flatten().flatten() {
            node.driver.release(&life.path()).await;
        }
        blocking(move || {
            let _ = rung_artifact::remove_tree(&node.layout.instance(&id));
            let live: BTreeSet<String> = node.ledger().instances().keys().map(ToString::to_string).collect();
            logs::prune(&node.layout, |name| live.contains(name));
        })
        .await;
    }
}

fn age(life: &Living) -> Duration {
    let now = jiff::Timestamp::now().as_millisecond();
    Duration::from_millis(u64::try_from(now - life.started_ms).unwrap_or(0))
}

fn shim_pid(directory: &std::path::Path) -> Option<u32> {
    read_life(directory).map(|life| life.shim.pid)
}
