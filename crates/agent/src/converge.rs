//! The converge loop as a state machine: from what shall run and what does run to what is to be done.
//!
//! [`Converge::step`] takes one event and answers with effects. There is no I/O, no clock and no randomness in it:
//! the agent's loop and the simulator drive the same machine. It is level-triggered: after every event each
//! instance's life is compared with what is wanted, so a lost signal costs a tick and nothing else.
//!
//! What the driver of the machine owes it:
//! - it carries out every effect, in order for one instance, and tells the outcome as an event;
//! - it calls `step` with [`Event::Tick`] at [`Converge::wake_at`];
//! - at the start it tells everything that it finds ([`Event::Found`]), then [`Event::Begin`].

mod backoff;
mod instance;
mod runs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use rung_model::app::Destroying;
use rung_model::{
    AppName, AssignedInstance, Assignment, Digest, Generation, InstanceId, NodeId, Observed, Release,
    ReleaseNumber, Run, RunId, RunKind, RunOutcome,
};

use instance::Instance;
use runs::Runs;

/// The moment of an event, as the driver's clocks have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, since any fixed moment: what every decision is made by.
    pub elapsed: Duration,
    /// For display only.
    pub wall: Timestamp,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// At the start: an instance of an earlier agent process.
    Found(Found),
    /// At the start: this artifact is unpacked here.
    Artifact {
        digest: Digest,
    },
    /// At the start: releases that were kept. Later: the answer to [`Effect::FetchRelease`].
    Release(Box<Release>),
    /// Everything that there was to find was told.
    Begin,
    /// The latest assignment; an older one than the one that is held is refused.
    Assigned(Assignment),
    ReleaseFailed {
        app: AppName,
        release: ReleaseNumber,
        reason: String,
    },
    ArtifactFailed {
        digest: Digest,
        reason: String,
        cause: Cause,
    },
    Started {
        instance: InstanceId,
        attempt: u32,
        pid: u32,
        port: Option<u16>,
    },
    StartFailed {
        instance: InstanceId,
        attempt: u32,
        reason: String,
    },
    Probed {
        instance: InstanceId,
        attempt: u32,
        outcome: ProbeOutcome,
    },
    Exited(Exited),
    RunStarted {
        run: RunId,
    },
    RunEnded {
        run: RunId,
        outcome: RunOutcome,
    },
    Purged {
        app: AppName,
        volumes: Destroying,
    },
    /// The platform goes down: everything is stopped, and nothing is started again by this machine.
    ShutDown,
    Tick,
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Passing,
    /// It would be the same every time: the artifact is not what its digest says.
    Lasting,
}

#[derive(Debug, Clone)]
pub struct Found {
    pub instance: InstanceId,
    pub assigned: AssignedInstance,
    pub attempt: u32,
    pub port: Option<u16>,
    pub life: FoundLife,
}

#[derive(Debug, Clone)]
pub enum FoundLife {
    Alive {
        pid: u32,
        running_for: Duration,
    },
    /// Told by a following [`Event::Exited`], or it was never started.
    Ended,
}

#[derive(Debug, Clone)]
pub struct Exited {
    pub instance: InstanceId,
    pub attempt: u32,
    /// In words: `exited with code 3`.
    pub reason: String,
    pub kind: ExitKind,
    pub log_tail: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    Ended,
    /// With code 0, by itself or because it was asked to.
    Finished,
    /// The command does not exist, or is not executable.
    NotExecutable,
    /// The node could not start it (its disk is full, say): no fault of the instance.
    NotStarted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    Passed,
    Failed {
        reason: String,
        log_tail: Vec<String>,
    },
    /// Somebody else has the port: a new one is taken at the next start, which is now.
    PortTaken {
        reason: String,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    FetchRelease {
        app: AppName,
        release: ReleaseNumber,
    },
    FetchArtifact {
        digest: Digest,
    },
    /// Start a life. The port and the attempt are recorded before the process exists.
    Launch {
        instance: InstanceId,
        assigned: AssignedInstance,
        attempt: u32,
        port: PortChoice,
    },
    /// One health check; `with_tail` asks for the last log lines when it fails.
    Probe {
        instance: InstanceId,
        attempt: u32,
        with_tail: bool,
    },
    /// SIGTERM to the tree, SIGKILL after the grace period. Answered by [`Event::Exited`].
    Stop {
        instance: InstanceId,
        attempt: u32,
        grace: Duration,
    },
    /// Its directory and its place in the ledger; its logs stay for a while.
    Forget {
        instance: InstanceId,
    },
    /// Starts the run, or takes it up again after the agent's restart.
    StartRun {
        run: Box<Run>,
    },
    CancelRun {
        run: RunId,
    },
    ForgetRun {
        run: RunId,
    },
    /// Unpacked artifacts and kept releases that are in use. Other artifacts may go; other releases must: a new app of
    /// the same name counts its releases from one again.
    Keep {
        artifacts: BTreeSet<Digest>,
        releases: BTreeSet<(AppName, ReleaseNumber)>,
    },
    /// Logs and caches of an app that is gone, and its volumes unless they are to stay. Answered by [`Event::Purged`].
    Purge {
        app: AppName,
        volumes: Destroying,
    },
    /// Keep this assignment for a time without servers.
    Record {
        assignment: Box<Assignment>,
    },
    Report {
        observed: Box<Observed>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChoice {
    /// The service has none.
    None,
    /// The one it had, when it is free.
    Keep,
    New,
}

/// How soon the server hears of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// With the next report.
    Soon,
    /// What routing depends on, and what ends a wait.
    Now,
}

/// Reports that are not urgent come at most so often: starting a hundred instances is then tens of reports.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// Adopted instances are proved again before the first report, so that a restart of the agent un-routes nobody; those
/// that can't be proved in this time are reported as they are. A check that fails, or takes longer than it may, ends the wait
/// for its instance: so it is as long only where the machine is so busy that nothing comes to its turn, and there it is
/// better to say nothing than that nobody serves.
const ADOPTION_WAIT: Duration = Duration::from_secs(10);
/// A fetch that failed is tried again after so long.
const FETCH_PAUSE: Duration = Duration::from_secs(2);

/// Artifacts and releases that something here still needs.
type Kept = (BTreeSet<Digest>, BTreeSet<(AppName, ReleaseNumber)>);

/// See the module's documentation.
#[derive(Debug)]
pub struct Converge {
    node: NodeId,
    started: Timestamp,
    sequence: u64,
    began: Option<Duration>,
    assignment: Option<Assignment>,
    instances: BTreeMap<InstanceId, Instance>,
    releases: BTreeMap<(AppName, ReleaseNumber), Fetch<Release>>,
    artifacts: BTreeMap<Digest, Fetch<()>>,
    runs: Runs,
    purges: BTreeMap<(AppName, Destroying), Purge>,
    /// Reported: as far as everything is begun that was asked for, and every purge is finished.
    acknowledged: Generation,
    /// What the driver was told to keep; it is told at least once, for it may hold what an earlier agent left.
    kept: Option<Kept>,
    shutting_down: bool,
    changed: Option<Urgency>,
    reported: Option<Duration>,
    effects: Vec<Effect>,
}

#[derive(Debug)]
enum Fetch<T> {
    Asked,
    Failed { reason: String, cause: Cause, again: Duration },
    Here(Box<T>),
}

/// Whether data of the app is being removed.
fn is_purged_now(purges: &BTreeMap<(AppName, Destroying), Purge>, app: &AppName) -> bool {
    purges.iter().any(|((purged, _), purge)| purged == app && *purge == Purge::Going)
}

/// Removing the data of an app that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purge {
    /// Nothing of a new app with that name is begun meanwhile.
    Going,
    Done,
}

impl Converge {
    pub fn new(node: NodeId, started: Timestamp) -> Self {
        Self {
            node,
            started,
            sequence: 0,
            began: None,
            assignment: None,
            instances: BTreeMap::new(),
            releases: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            runs: Runs::default(),
            purges: BTreeMap::new(),
            acknowledged: Generation::ZERO,
            kept: None,
            shutting_down: false,
            changed: None,
            reported: None,
            effects: Vec::new(),
        }
    }

    /// The generation that is being converged to.
    pub fn generation(&self) -> Generation {
        self.assignment.as_ref().map_or(Generation::ZERO, |assignment| assignment.generation)
    }

    /// After [`Event::ShutDown`]: nothing runs any more. Before the beginning it is not known what does.
    pub fn is_quiet(&self) -> bool {
        self.began.is_some()
            && self.instances.values().all(|instance| !instance.may_run())
            && self.runs.is_quiet()
    }

    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.take(event, now);
        if self.began.is_some() {
            self.converge(now);
            self.report(now);
        }
        std::mem::take(&mut self.effects)
    }

    /// When the machine wants the next [`Event::Tick`] at the latest.
    pub fn wake_at(&self) -> Option<Duration> {
        let began = self.began?;
        let report = self.changed.map(|_| match self.reported {
            None => began + ADOPTION_WAIT,
            Some(at) => at + REPORT_PAUSE,
        });
        let releases = self.releases.values().filter_map(Fetch::again);
        let artifacts = self.artifacts.values().filter_map(Fetch::again);
        self.instances
            .values()
            .filter_map(|instance| instance.wake_at(self.shutting_down))
            .chain(report)
            .chain(releases)
            .chain(artifacts)
            .min()
    }

    fn take(&mut self, event: Event, now: Now) {
        match event {
            Event::Found(found) => {
                let id = found.instance.clone();
                self.instances.insert(id, Instance::found(found, now));
            }
            Event::Begin => {
                self.began = Some(now.elapsed);
                self.changed = Some(Urgency::Now);
            }
            Event::Assigned(assignment) => self.assign(assignment),
            Event::Release(release) => {
                // Should nobody want it any more by now, the driver, which keeps it, has to be told.
                self.kept = None;
                self.releases.insert((release.app.clone(), release.number), Fetch::Here(release));
            }
            Event::ReleaseFailed { app, release, reason } => {
                let again = now.elapsed + FETCH_PAUSE;
                // Late news of a request before the one that was answered.
                if !matches!(self.releases.get(&(app.clone(), release)), Some(Fetch::Here(_))) {
                    self.releases
                        .insert((app, release), Fetch::Failed { reason, cause: Cause::Passing, again });
                }
            }
            Event::Artifact { digest } => {
                self.artifacts.insert(digest, Fetch::Here(Box::new(())));
                self.change(Urgency::Soon);
            }
            Event::ArtifactFailed { digest, reason, cause } => {
                let again = now.elapsed + FETCH_PAUSE;
                self.artifacts.insert(digest, Fetch::Failed { reason, cause, again });
            }
            Event::RunStarted { run } => {
                self.runs.started(&run, now.wall);
                self.change(Urgency::Now);
            }
            Event::RunEnded { run, outcome } => {
                if let RunOutcome::Succeeded { artifact: Some(digest) } = &outcome {
                    self.artifacts.insert(digest.clone(), Fetch::Here(Box::new(())));
                }
                self.runs.ended(&run, outcome, now.wall);
                self.change(Urgency::Now);
            }
            Event::Purged { app, volumes } => {
                self.purges.insert((app, volumes), Purge::Done);
                self.change(Urgency::Now);
            }
            Event::Tick => {}
            Event::ShutDown => self.shutting_down = true,
            Event::Started { ref instance, .. }
            | Event::StartFailed { ref instance, .. }
            | Event::Probed { ref instance, .. }
            | Event::Exited(Exited { ref instance, .. }) => {
                let id = instance.clone();
                self.tell_instance(&id, event, now);
            }
        }
    }

    fn tell_instance(&mut self, id: &InstanceId, event: Event, now: Now) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let release = match self.releases.get(&(instance.assigned.app.clone(), instance.assigned.release)) {
            Some(Fetch::Here(release)) => Some(&**release),
            _ => None,
        };
        let urgency = instance.hear(id, event, release, self.shutting_down, now);
        if let Some(urgency) = urgency {
            self.change(urgency);
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        if assignment.generation < self.generation() || assignment.node != self.node {
            return;
        }
        if self.assignment.as_ref() != Some(&assignment) {
            self.effects.push(Effect::Record { assignment: Box::new(assignment.clone()) });
        }
        self.assignment = Some(assignment);
        self.change(Urgency::Soon);
    }

    fn change(&mut self, urgency: Urgency) {
        self.changed = self.changed.max(Some(urgency));
    }

    /// Compares what runs with what is wanted, for everything.
    fn converge(&mut self, now: Now) {
        // Without an assignment nothing is known of what is wanted: what runs goes on.
        if let Some(assignment) = self.assignment.take() {
            for (id, assigned) in &assignment.instances {
                self.instances
                    .entry(id.clone())
                    .or_insert_with(|| Instance::new(assigned.clone(), now))
                    .want(Some(assigned));
            }
            for (id, instance) in &mut self.instances {
                if !assignment.instances.contains_key(id) {
                    instance.want(None);
                }
            }
            let purges = &self.purges;
            let may_begin = |app: &AppName| !is_purged_now(purges, app);
            self.runs.converge(&assignment.runs, self.shutting_down, may_begin, &mut self.effects);
            self.converge_purge(&assignment);
            self.assignment = Some(assignment);
        }
        let is_full = self.instances.values().any(Instance::is_in_the_way);
        let ids: Vec<InstanceId> = self.instances.keys().cloned().collect();
        for id in ids {
            self.converge_instance(&id, is_full, now);
        }
        // After instances were forgotten: the next assignment may name other releases by the same numbers.
        if let Some(assignment) = self.assignment.take() {
            self.converge_artifacts(&assignment);
            self.assignment = Some(assignment);
        }
        // Due again, and nobody asked again: not wanted any more.
        self.releases.retain(|_, fetch| fetch.again().is_none_or(|again| again > now.elapsed));
        self.artifacts.retain(|_, fetch| fetch.again().is_none_or(|again| again > now.elapsed));
    }

    /// `is_full`: what shall not be here any more has the room that the next ones were given.
    fn converge_instance(&mut self, id: &InstanceId, is_full: bool, now: Now) {
        let mut instance = self.instances.remove(id).expect("the id is one of the map's");
        let ready = if !instance.needs_parts() {
            Parts::Known
        } else if (is_full && !instance.may_run()) || is_purged_now(&self.purges, &instance.assigned.app) {
            Parts::Awaited
        } else {
            self.gather(&instance.assigned, now)
        };
        let release = match self.releases.get(&(instance.assigned.app.clone(), instance.assigned.release)) {
            Some(Fetch::Here(release)) => Some(&**release),
            _ => None,
        };
        let step = instance.converge(id, &ready, release, self.shutting_down, now, &mut self.effects);
        if let Some(urgency) = step.urgency {
            self.change(urgency);
        }
        if step.forgotten {
            self.change(Urgency::Soon);
        } else {
            self.instances.insert(id.clone(), instance);
        }
    }

    /// What an instance needs before it can be launched; asks for what is missing.
    fn gather(&mut self, assigned: &AssignedInstance, now: Now) -> Parts {
        let key = (assigned.app.clone(), assigned.release);
        let digest = match self.releases.get(&key) {
            Some(Fetch::Here(release)) => release.artifact.clone(),
            Some(Fetch::Asked) => return Parts::Awaited,
            Some(Fetch::Failed { reason, again, .. }) if now.elapsed < *again => {
                return Parts::Missing(reason.clone());
            }
            Some(Fetch::Failed { .. }) | None => {
                let (app, release) = key.clone();
                self.releases.insert(key, Fetch::Asked);
                self.effects.push(Effect::FetchRelease { app, release });
                return Parts::Awaited;
            }
        };
        match self.artifacts.get(&digest) {
            Some(Fetch::Here(_)) => Parts::Known,
            Some(Fetch::Asked) => Parts::Awaited,
            Some(Fetch::Failed { reason, cause: Cause::Lasting, .. }) => {
                let reason = reason.clone();
                // For the next instance it may have been stored anew by then.
                self.artifacts.remove(&digest);
                Parts::Broken(reason)
            }
            Some(Fetch::Failed { reason, again, .. }) if now.elapsed < *again => {
                Parts::Missing(reason.clone())
            }
            Some(Fetch::Failed { .. }) | None => {
                self.artifacts.insert(digest.clone(), Fetch::Asked);
                self.effects.push(Effect::FetchArtifact { digest });
                Parts::Awaited
            }
        }
    }

    /// Releases that nothing refers to are forgotten; the driver is told which artifacts are still in use.
    fn converge_artifacts(&mut self, assignment: &Assignment) {
        let mut wanted: BTreeSet<(AppName, ReleaseNumber)> =
            assignment.instances.values().map(|i| (i.app.clone(), i.release)).collect();
        wanted.extend(self.instances.values().map(|i| (i.assigned.app.clone(), i.assigned.release)));
        self.releases.retain(|key, _| wanted.contains(key));
        let artifacts: BTreeSet<Digest> = self
            .releases
            .values()
            .filter_map(|fetch| match fetch {
                Fetch::Here(release) => Some(release.artifact.clone()),
                _ => None,
            })
            .collect();
        wanted.extend(assignment.runs.values().filter_map(|run| match &run.kind {
            RunKind::Release { release, .. }
            | RunKind::Job { release, .. }
            | RunKind::OneOff { release, .. } => Some((run.app.clone(), *release)),
            RunKind::Build { .. } => None,
        }));
        let kept = (artifacts, wanted);
        if self.kept.as_ref() != Some(&kept) {
            self.kept = Some(kept.clone());
            let (artifacts, releases) = kept;
            self.effects.push(Effect::Keep { artifacts, releases });
        }
    }

    /// An app's data goes when nothing of the app is left here; once for each time that it is asked for. The assignment
    /// is acknowledged after that: then the name is free for a new app, whose data must not go too.
    fn converge_purge(&mut self, assignment: &Assignment) {
        let asked: BTreeSet<(AppName, Destroying)> =
            assignment.purges().map(|(app, volumes)| (app.clone(), volumes)).collect();
        self.purges.retain(|key, purge| *purge == Purge::Going || asked.contains(key));
        for key in &asked {
            let (app, volumes) = key;
            let busy = self.instances.values().any(|instance| instance.assigned.app == *app)
                || self.runs.any_of(app);
            if !busy && !self.purges.contains_key(key) {
                self.purges.insert(key.clone(), Purge::Going);
                self.effects.push(Effect::Purge { app: app.clone(), volumes: *volumes });
            }
        }
        if asked.iter().all(|key| self.purges.get(key) == Some(&Purge::Done)) {
            self.acknowledged = assignment.generation;
        }
    }

    fn report(&mut self, now: Now) {
        let Some(urgency) = self.changed else { return };
        let may = match (self.reported, urgency) {
            (None, _) => {
                let waited = self.began.is_some_and(|began| now.elapsed >= began + ADOPTION_WAIT);
                waited || self.instances.values().all(|instance| !instance.awaits_proof())
            }
            (Some(_), Urgency::Now) => true,
            (Some(at), Urgency::Soon) => now.elapsed >= at + REPORT_PAUSE,
        };
        if may {
            self.changed = None;
            self.reported = Some(now.elapsed);
            self.sequence += 1;
            self.effects.push(Effect::Report { observed: Box::new(self.observed()) });
        }
    }

    /// The whole of what runs here.
    pub fn observed(&self) -> Observed {
        let endpoint = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Observed {
            node: self.node.clone(),
            assignment: self.acknowledged,
            sequence: self.sequence,
            agent_started: self.started,
            instances: self.instances.iter().map(|(id, i)| (id.clone(), i.observed(endpoint))).collect(),
            runs: self.runs.observed(),
            artifacts: self
                .artifacts
                .iter()
                .filter(|(_, fetch)| matches!(fetch, Fetch::Here(_)))
                .map(|(digest, _)| digest.clone())
                .collect(),
        }
    }
}

impl<T> Fetch<T> {
    /// When a failed fetch is due again.
    fn again(&self) -> Option<Duration> {
        match self {
            Self::Failed { again, .. } => Some(*again),
            _ => None,
        }
    }
}

/// Whether a release and its artifact are here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parts {
    Known,
    Awaited,
    Missing(String),
    Broken(String),
}
