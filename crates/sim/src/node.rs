//! The node: the agent's shell around its machine, and what outlives it: its disk, processes under their shims, runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use rung_agent::converge::{
    Cause, Converge, Effect, Event, ExitKind, Exited, Found, FoundLife, Now, PortChoice, ProbeOutcome,
};
use rung_model::app::Destroying;
use rung_model::{
    AppName, AssignedInstance, Assignment, Digest, Generation, InstanceId, Observed, Release, ReleaseNumber,
    Run, RunId, RunKind, RunOutcome,
};

use crate::agenda::{Happening, Life};
use crate::apps::{Behaviour, digest};
use crate::story::{Story, say};
use crate::wiring::Wiring;

/// The machine with everything on it that an agent's death leaves alone.
#[derive(Debug, Default)]
pub struct Machine {
    pub agent: Agent,
    /// What the agent keeps on disk.
    kept_assignment: Option<Assignment>,
    ledger: BTreeMap<InstanceId, Entry>,
    releases: BTreeMap<(AppName, ReleaseNumber), Release>,
    artifacts: BTreeSet<Digest>,
    last_start: Option<Timestamp>,
    /// The newest life of each instance, with its shim.
    pub processes: BTreeMap<InstanceId, Process>,
    pub runs: BTreeMap<RunId, RunProcess>,
    next_port: u16,
    nonce: u64,
}

#[derive(Debug, Default)]
pub struct Agent {
    pub life: Life,
    /// `None`: it is not running.
    pub converge: Option<Converge>,
    polling: Option<u64>,
    messages: u64,
    /// The newest report that was not taken yet.
    outbox: Option<Box<Observed>>,
    /// The message on its way, and the report's number in it.
    sending: Option<(u64, u64)>,
    next_tick: Option<Duration>,
    is_retrying: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    assigned: AssignedInstance,
    attempt: u32,
    port: Option<u16>,
}

#[derive(Debug, Clone)]
pub struct Process {
    pub assigned: AssignedInstance,
    pub attempt: u32,
    /// Its service is exclusive, as its release says.
    pub is_exclusive: bool,
    pub behaviour: Behaviour,
    started: Duration,
    is_stopping: bool,
    ill_until: Duration,
    /// How it ended, as its shim wrote it down.
    ended: Option<String>,
}

impl Process {
    pub fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    fn is_healthy(&self, now: Duration) -> bool {
        let ready = self.behaviour.ready.is_some_and(|ready| now >= self.started + ready);
        self.is_alive() && ready && !self.is_stopping && now >= self.ill_until
    }
}

#[derive(Debug, Clone)]
pub struct RunProcess {
    pub run: Run,
    nonce: u64,
    pub outcome: Option<RunOutcome>,
    is_cancelled: bool,
}

impl Story {
    // The agent's life.

    pub fn start_agent(&mut self) {
        if self.machine.agent.converge.is_some() {
            return;
        }
        let life = Life(self.machine.agent.life.0 + 1);
        // The shell never starts earlier than the agent before it, though the clock may say so.
        let after_last = self.machine.last_start.map(|last| last + Duration::from_millis(1));
        let started = after_last.map_or(self.wall(), |after| after.max(self.wall()));
        self.machine.last_start = Some(started);
        if self.wiring == Wiring::LosesTheLedger {
            self.machine.ledger.clear();
        }
        if self.wiring == Wiring::LosesRuns {
            self.machine.runs.clear();
        }
        let converge = Some(Converge::new(self.node.clone(), started));
        self.machine.agent = Agent { life, converge, ..Agent::default() };
        say!(self, "agent {} starts", life.0);
        for event in self.recalled() {
            if self.is_agent(life) {
                self.step_agent(event);
            }
        }
        self.poll_assignment();
    }

    /// Everything that an earlier agent left.
    fn recalled(&self) -> Vec<Event> {
        let machine = &self.machine;
        let mut events: Vec<Event> =
            machine.releases.values().map(|release| Event::Release(Box::new(release.clone()))).collect();
        events.extend(machine.artifacts.iter().map(|digest| Event::Artifact { digest: digest.clone() }));
        for (id, entry) in &machine.ledger {
            let process = machine.processes.get(id).filter(|process| process.attempt == entry.attempt);
            let life = match process.filter(|process| process.is_alive()) {
                Some(process) => FoundLife::Alive { pid: 1, running_for: self.now - process.started },
                None => FoundLife::Ended,
            };
            let (assigned, attempt, port) = (entry.assigned.clone(), entry.attempt, entry.port);
            events.push(Event::Found(Found { instance: id.clone(), assigned, attempt, port, life }));
            if let Some(reason) = process.and_then(|process| process.ended.clone()) {
                events.push(exited(id, attempt, reason));
            }
        }
        events.extend(machine.kept_assignment.clone().map(Event::Assigned));
        events.push(Event::Begin);
        events
    }

    pub fn kill_agent(&mut self) {
        if self.machine.agent.converge.take().is_none() {
            return;
        }
        say!(self, "agent {} is killed", self.machine.agent.life.0);
        let delay = if self.once_in(4) { self.between_ms(2000, 12_000) } else { self.between_ms(5, 500) };
        self.after(delay, Happening::AgentStarts);
    }

    fn is_agent(&self, life: Life) -> bool {
        self.machine.agent.converge.is_some() && self.machine.agent.life == life
    }

    // The agent's machine.

    fn step_agent(&mut self, event: Event) {
        let now = Now { elapsed: self.now, wall: self.wall() };
        let life = self.machine.agent.life;
        let Some(converge) = &mut self.machine.agent.converge else { return };
        let held = converge.generation();
        let effects = converge.step(event, now);
        if converge.generation() < held {
            self.fail(format!("the agent's assignment went back from {held}"));
        }
        for effect in effects {
            if self.faulty(|faults| faults.killed_between) {
                self.kill_agent();
            }
            if !self.is_agent(life) {
                return;
            }
            self.carry_out_of_agent(effect);
        }
        let wake = self.machine.agent.converge.as_ref().and_then(Converge::wake_at);
        if let Some(at) = wake
            && self.machine.agent.next_tick != Some(at)
        {
            self.machine.agent.next_tick = Some(at);
            self.agenda.at(at.max(self.now), Happening::AgentTick(life));
        }
    }

    pub fn tick_agent(&mut self, life: Life) {
        if self.is_agent(life) && self.machine.agent.next_tick.is_some_and(|at| at <= self.now) {
            self.machine.agent.next_tick = None;
            self.step_agent(Event::Tick);
        }
    }

    pub fn agent_hears(&mut self, life: Life, event: Event) {
        if !self.is_agent(life) {
            return;
        }
        match &event {
            Event::Release(release) => {
                self.machine.releases.insert((release.app.clone(), release.number), (**release).clone());
            }
            Event::Artifact { digest } => {
                self.machine.artifacts.insert(digest.clone());
            }
            _ => {}
        }
        self.step_agent(event);
    }

    fn tell_agent(&mut self, delay: (u64, u64), event: Event) {
        let delay = self.between_ms(delay.0, delay.1);
        self.after(delay, Happening::AgentHears(self.machine.agent.life, Box::new(event)));
    }

    fn carry_out_of_agent(&mut self, effect: Effect) {
        match effect {
            Effect::FetchRelease { app, release }
                if self.machine.releases.contains_key(&(app.clone(), release)) =>
            {
                // The shell asks the server only for what is not kept.
                let kept = self.machine.releases[&(app, release)].clone();
                self.tell_agent((0, 2), Event::Release(Box::new(kept)));
            }
            Effect::FetchRelease { app, release } => {
                let life = self.machine.agent.life;
                let failed = Event::ReleaseFailed { app: app.clone(), release, reason: "no answer".into() };
                let lost = Happening::AgentHears(life, Box::new(failed));
                self.send(Happening::ReleaseAsked { life, app, release }, lost);
            }
            Effect::FetchArtifact { digest } => {
                let event = if self.faulty(|faults| faults.lost_message) {
                    Event::ArtifactFailed { digest, reason: "cut off".into(), cause: Cause::Passing }
                } else {
                    Event::Artifact { digest }
                };
                self.tell_agent((1, 100), event);
            }
            Effect::Launch { instance, assigned, attempt, port } => {
                self.launch(instance, assigned, attempt, port)
            }
            Effect::Probe { instance, attempt, .. } => self.probe(instance, attempt),
            Effect::Stop { instance, attempt, grace } => self.stop(&instance, attempt, grace),
            Effect::Forget { instance } => {
                say!(self, "agent forgets {instance}");
                if self.machine.processes.get(&instance).is_some_and(Process::is_alive) {
                    self.fail(format!("the agent forgot {instance}, which is alive"));
                }
                self.machine.ledger.remove(&instance);
                self.machine.processes.remove(&instance);
            }
            Effect::StartRun { run } => self.start_run(&run),
            Effect::CancelRun { run } => self.cancel_run(&run),
            Effect::ForgetRun { run } => {
                self.machine.runs.remove(&run);
            }
            Effect::Keep { artifacts, releases } => {
                self.machine.artifacts = artifacts;
                self.machine.releases.retain(|key, _| releases.contains(key));
            }
            Effect::Purge { app, volumes } => {
                say!(self, "agent purges {app}");
                let delay = self.between_ms(1, 300);
                self.after(delay, Happening::DataPurged { life: self.machine.agent.life, app, volumes });
            }
            Effect::Record { assignment } => {
                let held = self.machine.kept_assignment.as_ref().map_or(Generation::ZERO, |a| a.generation);
                if assignment.generation < held {
                    self.fail(format!("the kept assignment went back from {held}"));
                }
                self.machine.kept_assignment = Some(*assignment);
            }
            Effect::Report { observed } => {
                self.machine.agent.outbox = Some(observed);
                if self.machine.agent.sending.is_none() {
                    self.send_report();
                }
            }
        }
    }

    // The agent's client.

    fn poll_assignment(&mut self) {
        let Some(converge) = &self.machine.agent.converge else { return };
        let after = converge.generation();
        let agent = &mut self.machine.agent;
        agent.messages += 1;
        agent.polling = Some(agent.messages);
        let (life, poll) = (agent.life, agent.messages);
        let lost = Happening::AssignmentAnswered { life, poll, answer: Err(()) };
        self.send(Happening::AssignmentPolled { life, poll, after }, lost);
    }

    pub fn assignment_answered(
        &mut self,
        life: Life,
        poll: u64,
        answer: Result<Option<Box<Assignment>>, ()>,
    ) {
        if !self.is_agent(life) {
            return;
        }
        // A late answer is taken in too: the machine refuses what is older than what it holds.
        let is_awaited = self.machine.agent.polling == Some(poll);
        match answer {
            Ok(Some(assignment)) => self.step_agent(Event::Assigned(*assignment)),
            Ok(None) => {}
            Err(()) if is_awaited => {
                self.machine.agent.polling = None;
                self.retry_soon();
            }
            Err(()) => {}
        }
        if is_awaited && self.machine.agent.polling.is_some() {
            self.poll_assignment();
        }
    }

    fn retry_soon(&mut self) {
        if !std::mem::replace(&mut self.machine.agent.is_retrying, true) {
            let delay = self.between_ms(50, 1000);
            self.after(delay, Happening::AgentRetries(self.machine.agent.life));
        }
    }

    pub fn agent_retries(&mut self, life: Life) {
        if !self.is_agent(life) {
            return;
        }
        self.machine.agent.is_retrying = false;
        if self.machine.agent.polling.is_none() {
            self.poll_assignment();
        }
        if self.machine.agent.sending.is_none() && self.machine.agent.outbox.is_some() {
            self.send_report();
        }
    }

    fn send_report(&mut self) {
        let agent = &mut self.machine.agent;
        let Some(observed) = agent.outbox.clone() else { return };
        agent.messages += 1;
        agent.sending = Some((agent.messages, observed.sequence));
        let (life, message) = (agent.life, agent.messages);
        if self.wiring == Wiring::ReportsOnce {
            self.machine.agent.outbox = None;
        }
        let lost = Happening::ReportAnswered { life, message, taken: false };
        self.send(Happening::Reported { life, message, observed }, lost);
    }

    pub fn report_answered(&mut self, life: Life, message: u64, taken: bool) {
        let sending = self.machine.agent.sending.filter(|(sent, _)| *sent == message);
        let Some((_, sequence)) = sending.filter(|_| self.is_agent(life)) else { return };
        self.machine.agent.sending = None;
        if !taken {
            self.retry_soon();
            return;
        }
        let newest = self.machine.agent.outbox.as_ref().map(|observed| observed.sequence);
        if newest == Some(sequence) {
            self.machine.agent.outbox = None;
        } else {
            self.send_report();
        }
    }

    // Processes.

    fn launch(&mut self, instance: InstanceId, assigned: AssignedInstance, attempt: u32, choice: PortChoice) {
        let had = self.machine.ledger.get(&instance).and_then(|entry| entry.port);
        let port = match (choice, had) {
            (PortChoice::None, _) => None,
            (PortChoice::Keep, Some(port)) => Some(port),
            (PortChoice::Keep | PortChoice::New, _) => {
                self.machine.next_port += 1;
                Some(20_000 + self.machine.next_port % 10_000)
            }
        };
        self.machine.ledger.insert(instance.clone(), Entry { assigned, attempt, port });
        let delay = self.between_ms(1, 20);
        self.after(delay, Happening::Spawned { life: self.machine.agent.life, instance, attempt, port });
    }

    pub fn spawned(&mut self, life: Life, instance: &InstanceId, attempt: u32, port: Option<u16>) {
        if !self.is_agent(life) {
            return;
        }
        let Some(entry) = self.machine.ledger.get(instance).filter(|entry| entry.attempt == attempt) else {
            return;
        };
        let assigned = entry.assigned.clone();
        if self.once_in(if self.faults.have_ended { 0 } else { 60 }) {
            let reason = "no process could be made".to_owned();
            self.tell_agent((0, 2), Event::StartFailed { instance: instance.clone(), attempt, reason });
            return;
        }
        let key = (assigned.app.clone(), assigned.release);
        let Some(release) = self.machine.releases.get(&key).cloned() else {
            let reason = "its release is not here any more".to_owned();
            self.tell_agent((0, 2), Event::StartFailed { instance: instance.clone(), attempt, reason });
            return;
        };
        self.audit_spawn(instance, &assigned, &release);
        let service = &release.file.services[&assigned.service];
        let (behaviour, is_exclusive) =
            (Behaviour::of(service.command.as_deref().unwrap_or_default()), service.exclusive);
        say!(self, "{instance} starts, attempt {attempt}: {behaviour:?}");
        let (started, ill_until) = (self.now, Duration::ZERO);
        self.machine.processes.insert(
            instance.clone(),
            Process {
                assigned,
                attempt,
                is_exclusive,
                behaviour,
                started,
                is_stopping: false,
                ill_until,
                ended: None,
            },
        );
        if let Some(dies) = behaviour.dies {
            let reason = "exited with code 3".to_owned();
            self.after(dies, Happening::ProcessEnds { instance: instance.clone(), attempt, reason });
        }
        self.tell_agent((0, 2), Event::Started { instance: instance.clone(), attempt, pid: 1, port });
    }

    fn probe(&mut self, instance: InstanceId, attempt: u32) {
        let process = self.machine.processes.get(&instance).filter(|process| process.attempt == attempt);
        let is_healthy = process.is_some_and(|process| process.is_healthy(self.now));
        let outcome = if is_healthy {
            ProbeOutcome::Passed
        } else {
            ProbeOutcome::Failed { reason: "nothing listens".into(), log_tail: Vec::new() }
        };
        self.tell_agent((0, 4), Event::Probed { instance, attempt, outcome });
    }

    fn stop(&mut self, instance: &InstanceId, attempt: u32, grace: Duration) {
        say!(self, "{instance} is told to end");
        let process = self.machine.processes.get_mut(instance).filter(|process| process.attempt == attempt);
        let Some(process) = process.filter(|process| process.is_alive()) else { return };
        process.is_stopping = true;
        let takes = process.behaviour.stop.min(grace);
        let reason = "exited after SIGTERM".to_owned();
        self.after(takes, Happening::ProcessEnds { instance: instance.clone(), attempt, reason });
    }

    pub fn process_ends(&mut self, instance: &InstanceId, attempt: u32, reason: &str) {
        let process = self.machine.processes.get_mut(instance).filter(|process| process.attempt == attempt);
        let Some(process) = process.filter(|process| process.is_alive()) else { return };
        process.ended = Some(reason.to_owned());
        say!(self, "{instance} ends: {reason}");
        self.cut_requests(instance);
        self.tell_agent((0, 5), exited(instance, attempt, reason.to_owned()));
    }

    fn any_living(&mut self) -> Option<InstanceId> {
        let living: Vec<InstanceId> = self
            .machine
            .processes
            .iter()
            .filter(|(_, process)| process.is_alive())
            .map(|(id, _)| id.clone())
            .collect();
        (!living.is_empty()).then(|| living[self.rng.usize(0..living.len())].clone())
    }

    pub fn crash_a_process(&mut self) {
        let Some(id) = self.any_living() else { return };
        let attempt = self.machine.processes[&id].attempt;
        self.process_ends(&id, attempt, "killed by signal 9");
    }

    pub fn make_a_process_ill(&mut self) {
        let Some(id) = self.any_living() else { return };
        let spell = self.between_ms(100, 10_000);
        say!(self, "{id} is ill for {spell:?}");
        let until = self.now + spell;
        self.machine.processes.get_mut(&id).expect("it was found just now").ill_until = until;
    }

    // Runs.

    fn start_run(&mut self, run: &Run) {
        if let Some(known) = self.machine.runs.get(&run.id) {
            let event = match known.outcome.clone() {
                Some(outcome) => Event::RunEnded { run: run.id.clone(), outcome },
                None => Event::RunStarted { run: run.id.clone() },
            };
            self.tell_agent((0, 3), event);
            return;
        }
        self.audit_run(run);
        say!(self, "run {} starts", run.id);
        self.machine.nonce += 1;
        let nonce = self.machine.nonce;
        let takes = self.takes(run).min(run.timeout);
        let process = RunProcess { run: run.clone(), nonce, outcome: None, is_cancelled: false };
        self.machine.runs.insert(run.id.clone(), process);
        self.after(takes, Happening::RunEnds { run: run.id.clone(), nonce });
        self.tell_agent((0, 3), Event::RunStarted { run: run.id.clone() });
    }

    fn takes(&mut self, run: &Run) -> Duration {
        let command = command_of(run);
        if command.contains("ends=never") {
            return run.timeout;
        }
        let takes = command.split(' ').find_map(|word| word.strip_prefix("takes=")?.parse().ok());
        Duration::from_millis(takes.unwrap_or(100))
    }

    fn cancel_run(&mut self, run: &RunId) {
        let Some(process) = self.machine.runs.get_mut(run).filter(|process| process.outcome.is_none()) else {
            return;
        };
        process.is_cancelled = true;
        let nonce = process.nonce;
        let delay = self.between_ms(1, 500);
        self.after(delay, Happening::RunEnds { run: run.clone(), nonce });
    }

    pub fn run_ends(&mut self, run: &RunId, nonce: u64) {
        let Some(process) = self.machine.runs.get_mut(run).filter(|process| process.nonce == nonce) else {
            return;
        };
        if process.outcome.is_some() {
            return;
        }
        let command = command_of(&process.run);
        let outcome = if process.is_cancelled {
            RunOutcome::Cancelled
        } else if command.contains("ends=good") {
            let is_build = matches!(process.run.kind, RunKind::Build { .. });
            RunOutcome::Succeeded { artifact: is_build.then(|| digest(nonce << 32)) }
        } else {
            let reason = "exited with code 1".to_owned();
            RunOutcome::Failed { reason, exit_code: Some(1), log_tail: vec!["no such table".into()] }
        };
        process.outcome = Some(outcome.clone());
        say!(self, "run {run} ends: {outcome:?}");
        self.tell_agent((0, 5), Event::RunEnded { run: run.clone(), outcome });
    }

    pub fn data_purged(&mut self, life: Life, app: &AppName, volumes: Destroying) {
        // The removal is the agent's own and dies with it.
        if self.is_agent(life) {
            self.audit_purge(app);
            self.step_agent(Event::Purged { app: app.clone(), volumes });
        }
    }
}

fn exited(instance: &InstanceId, attempt: u32, reason: String) -> Event {
    let log_tail = vec!["the last words".to_owned()];
    Event::Exited(Exited { instance: instance.clone(), attempt, reason, kind: ExitKind::Ended, log_tail })
}

fn command_of(run: &Run) -> &str {
    match &run.kind {
        RunKind::Build { command, .. } => command.as_deref().unwrap_or_default(),
        RunKind::Release { command, .. } | RunKind::Job { command, .. } | RunKind::OneOff { command, .. } => {
            command
        }
        #[allow(unreachable_patterns)]
        _ => "",
    }
}
