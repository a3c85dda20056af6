//! One instance: the lives it has had, the one it has, what comes next.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use rung_model::ObservedInstance;
use rung_model::appfile::{Check, Service};
use rung_model::{AssignedInstance, InstanceId, InstanceState, Intent, Release};

use super::backoff::{CRASH_LOOP, HEALTHY_MINUTE, pause};
use super::{
    Effect, Event, ExitKind, Exited, Found, FoundLife, Now, Parts, PortChoice, ProbeOutcome, Urgency,
};

/// Without a check, staying up for so long is health: a command that fails at once is not taken for a service.
const UP_FOR: Duration = Duration::from_millis(500);
/// The pause between probes of a starting instance is a twentieth of the time that it took so far, within these:
/// readiness is seen within 5 %, and a slow start costs no CPU.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(10);
const PROBE_PAUSE_MAX: Duration = Duration::from_millis(250);
/// Log lines of a failing probe are read at most so often.
const TAIL_PAUSE: Duration = Duration::from_secs(1);
/// Before a start that the node itself failed at is tried again: long enough not to spin, short enough to be there soon
/// after the disk has space again.
const NOT_STARTED_PAUSE: Duration = Duration::from_secs(1);
/// A stop that is not answered in grace and this is asked for again: the shim may have been paused, or the word lost.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// An instance whose release is not known any more is given this.
const GRACE_UNKNOWN: Duration = Duration::from_secs(10);
/// To who wrote a command that ends by itself, mostly one that leaves a process behind.
const STAYS: &str = "a service's command stays in the foreground; what it leaves behind is ended with it";

/// What shall become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Running,
    Stopped,
    Gone,
}

/// ```text
///               launch             started            probe passes
///  Preparing ──────────► Launching ───────► Up(unproved) ───────► Up(proved)
///   │  ▲                     │  exit, start failed │     exit, restart │
///   │  └── pause over ── Pausing ◄─────────────────┴───────────────────┤
///   │                                                                  │
///   ▼ broken for good                not wanted, unhealthy for too long▼
///  Broken                        Down ◄────────── exit ────────── Stopping
/// ```
#[derive(Debug)]
enum Life {
    /// No process; release and artifact are gathered, then it is launched.
    Preparing,
    Launching,
    Up(Up),
    /// No process until then.
    Pausing {
        until: Duration,
    },
    /// SIGTERM was sent; asked again at the given moment.
    Stopping {
        again: Duration,
        asked: Asked,
    },
    /// No process, and none shall be.
    Down,
    /// No process, and starting one again would not help.
    Broken,
}

/// How often it was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Once,
    /// In vain: grace and SIGKILL are over.
    Again,
}

#[derive(Debug)]
struct Up {
    pid: u32,
    started: Duration,
    /// Since when its checks pass without a break.
    healthy_since: Option<Duration>,
    was_healthy: bool,
    failures: u32,
    next_probe: Probe,
    next_tail: Duration,
    /// Adopted, and not probed since.
    unproved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Due(Duration),
    Asked,
    /// Only staying up is asked for, and it did.
    Never,
}

#[derive(Debug)]
pub(super) struct Instance {
    pub assigned: AssignedInstance,
    want: Want,
    life: Life,
    attempt: u32,
    port: Option<u16>,
    new_port: bool,
    /// Exits without a healthy minute between.
    exits: u32,
    /// All of them, but those at the platform's own end.
    all_exits: u32,
    was_ever_healthy: bool,
    /// Why the last life ended; of one that was not started at all it says nothing.
    last_exit: Option<String>,
    state: InstanceState,
    since: Timestamp,
    reason: Option<String>,
    log_tail: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Step {
    pub urgency: Option<Urgency>,
    pub forgotten: bool,
}

impl Instance {
    pub fn new(assigned: AssignedInstance, now: Now) -> Self {
        Self {
            assigned,
            want: Want::Running,
            life: Life::Preparing,
            attempt: 0,
            port: None,
            new_port: false,
            exits: 0,
            all_exits: 0,
            was_ever_healthy: false,
            last_exit: None,
            state: InstanceState::Preparing,
            since: now.wall,
            reason: None,
            log_tail: Vec::new(),
        }
    }

    pub fn found(found: Found, now: Now) -> Self {
        let mut instance = Self::new(found.assigned, now);
        (instance.attempt, instance.port) = (found.attempt, found.port);
        match found.life {
            FoundLife::Alive { pid, running_for } => {
                instance.life = Life::Up(Up {
                    unproved: true,
                    ..Up::new(pid, now.elapsed.saturating_sub(running_for), now.elapsed)
                });
                instance.state = InstanceState::Starting;
                // What an earlier agent saw of it is not known; it has been like this since then at the earliest.
                instance.since = now.wall.checked_sub(running_for).unwrap_or(now.wall);
            }
            // As if it had just been launched: its exit is told next, or it is launched anew.
            FoundLife::Ended => {}
        }
        instance
    }

    pub fn want(&mut self, assigned: Option<&AssignedInstance>) {
        self.want = match assigned.map(|assigned| assigned.intent) {
            Some(Intent::Run) => Want::Running,
            Some(Intent::Stop) => Want::Stopped,
            None => Want::Gone,
        };
        if let Some(assigned) = assigned {
            self.assigned = assigned.clone();
        }
    }

    pub fn needs_parts(&self) -> bool {
        self.want == Want::Running && matches!(self.life, Life::Preparing | Life::Up(_))
    }

    pub fn may_run(&self) -> bool {
        matches!(self.life, Life::Launching | Life::Up(_) | Life::Stopping { .. })
    }

    /// It still has room that is counted as free: it was taken off the node without the node's word, as happens while the
    /// node is not heard of. One that can't be ended is not waited for.
    pub fn is_in_the_way(&self) -> bool {
        self.want == Want::Gone
            && self.may_run()
            && !matches!(self.life, Life::Stopping { asked: Asked::Again, .. })
    }

    pub fn awaits_proof(&self) -> bool {
        matches!(&self.life, Life::Up(up) if up.unproved)
    }

    pub fn wake_at(&self, shutting_down: bool) -> Option<Duration> {
        match &self.life {
            Life::Up(Up { next_probe: Probe::Due(at), .. }) => Some(*at),
            Life::Pausing { until } if !shutting_down => Some(*until),
            Life::Stopping { again, .. } => Some(*again),
            _ => None,
        }
    }

    fn service<'a>(&self, release: Option<&'a Release>) -> Option<&'a Service> {
        release?.file.services.get(&self.assigned.service)
    }

    /// Takes an event of this instance; answers how urgent the change is.
    pub fn hear(
        &mut self,
        id: &InstanceId,
        event: Event,
        release: Option<&Release>,
        shutting_down: bool,
        now: Now,
    ) -> Option<Urgency> {
        match event {
            Event::Started { attempt, pid, port, .. } if attempt == self.attempt => {
                if !matches!(self.life, Life::Launching) {
                    return None;
                }
                (self.port, self.new_port) = (port, false);
                self.life = Life::Up(Up::new(pid, now.elapsed, now.elapsed));
                // What went wrong before is the best word until this life has one of its own.
                self.enter(InstanceState::Starting, self.last_exit.clone(), now);
                Some(Urgency::Soon)
            }
            Event::StartFailed { attempt, reason, .. } if attempt == self.attempt => {
                self.take_exit(id, reason, ExitKind::NotStarted, Vec::new(), now)
            }
            Event::Exited(Exited { attempt, reason, kind, log_tail, .. }) if attempt == self.attempt => {
                let urgency = self.take_exit(id, reason, kind, log_tail, now);
                if urgency.is_some() && self.want == Want::Running && !shutting_down {
                    self.all_exits += 1;
                }
                urgency
            }
            Event::Probed { attempt, outcome, .. } if attempt == self.attempt => {
                let service = self.service(release).cloned()?;
                self.take_probe(&service, outcome, now)
            }
            // Of an earlier life: late news.
            _ => None,
        }
    }

    /// An adopted life that proves well has been so before: restarting the agent is not news of it.
    fn enter_healthy(&mut self, was_unproved: bool, now: Now) {
        let since = self.since;
        self.enter(InstanceState::Healthy, None, now);
        if was_unproved {
            self.since = since;
        }
    }

    fn enter(&mut self, state: InstanceState, reason: Option<String>, now: Now) {
        if self.state != state {
            self.state = state;
            self.since = now.wall;
        }
        self.reason = reason;
        if state == InstanceState::Healthy {
            self.log_tail.clear();
        }
    }

    fn take_exit(
        &mut self,
        id: &InstanceId,
        reason: String,
        kind: ExitKind,
        log_tail: Vec<String>,
        now: Now,
    ) -> Option<Urgency> {
        if matches!(self.life, Life::Down | Life::Broken | Life::Pausing { .. }) {
            return None;
        }
        if !log_tail.is_empty() {
            self.log_tail = log_tail;
        }
        if self.want != Want::Running {
            self.life = Life::Down;
            self.enter(InstanceState::Stopped, Some(reason), now);
            return Some(Urgency::Now);
        }
        if kind == ExitKind::NotStarted {
            self.life = Life::Pausing { until: now.elapsed + NOT_STARTED_PAUSE };
            self.enter(InstanceState::BackingOff, Some(reason), now);
            return Some(Urgency::Now);
        }
        let healthy_for = match &self.life {
            Life::Up(Up { healthy_since: Some(since), .. }) => now.elapsed.saturating_sub(*since),
            _ => Duration::ZERO,
        };
        self.exits = if healthy_for >= HEALTHY_MINUTE { 1 } else { self.exits + 1 };
        // A restart that health asked for says so; the exit code of a SIGTERM explains nothing.
        let reason = match &self.life {
            Life::Stopping { .. } => self.reason.take().unwrap_or(reason),
            _ if kind == ExitKind::Finished => format!("{reason}: {STAYS}"),
            _ => reason,
        };
        self.last_exit = Some(reason.clone());
        if kind == ExitKind::NotExecutable && self.exits >= 2 && !self.was_ever_healthy {
            self.life = Life::Broken;
            self.enter(InstanceState::Failed, Some(reason), now);
            return Some(Urgency::Now);
        }
        // The pause bounds the pace; a life that was healthy for longer has kept it already.
        self.life = Life::Pausing { until: now.elapsed + pause(id, self.exits).saturating_sub(healthy_for) };
        if self.exits >= CRASH_LOOP {
            let reason = format!("{reason}; {} exits without a healthy minute between", self.exits);
            self.enter(InstanceState::CrashLooping, Some(reason), now);
        } else {
            self.enter(InstanceState::BackingOff, Some(reason), now);
        }
        Some(Urgency::Now)
    }

    fn take_probe(&mut self, service: &Service, outcome: ProbeOutcome, now: Now) -> Option<Urgency> {
        let Life::Up(up) = &mut self.life else { return None };
        let was_unproved = std::mem::replace(&mut up.unproved, false);
        let health = &service.health;
        let (reason, log_tail) = match outcome {
            ProbeOutcome::Passed => {
                up.next_probe = Probe::Due(now.elapsed + health.interval);
                up.failures = 0;
                up.was_healthy = true;
                up.healthy_since.get_or_insert(now.elapsed);
                self.was_ever_healthy = true;
                if self.state == InstanceState::Healthy {
                    return was_unproved.then_some(Urgency::Now);
                }
                self.enter_healthy(was_unproved, now);
                return Some(Urgency::Now);
            }
            ProbeOutcome::PortTaken { reason } => {
                // Waiting would not bring the port back.
                up.failures = health.restart_after;
                self.new_port = true;
                (reason, Vec::new())
            }
            ProbeOutcome::Failed { reason, log_tail } => (reason, log_tail),
        };
        up.fail(health.grace, health.interval, now.elapsed);
        let mut is_news = was_unproved;
        if !log_tail.is_empty() {
            up.next_tail = now.elapsed + TAIL_PAUSE;
            is_news |= self.log_tail != log_tail;
            self.log_tail = log_tail;
        }
        if up.was_healthy && up.failures >= health.unhealthy_after {
            up.healthy_since = None;
            let is_first = self.state != InstanceState::Unhealthy;
            is_news |= self.reason.as_ref() != Some(&reason);
            self.enter(InstanceState::Unhealthy, Some(reason), now);
            return if is_first { Some(Urgency::Now) } else { is_news.then_some(Urgency::Soon) };
        }
        // That nothing listens yet says less than how the life before ended.
        if !up.was_healthy && (up.failures > 0 || self.last_exit.is_none()) {
            is_news |= self.reason.as_ref() != Some(&reason);
            self.reason = Some(reason);
        }
        is_news.then_some(Urgency::Soon)
    }

    /// Brings the life one step nearer to what is wanted.
    pub fn converge(
        &mut self,
        id: &InstanceId,
        parts: &Parts,
        release: Option<&Release>,
        shutting_down: bool,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Step {
        let wanted = self.want == Want::Running && !shutting_down;
        match &self.life {
            Life::Preparing if wanted => self.prepare(id, parts, release, now, effects),
            Life::Pausing { until } if wanted && now.elapsed >= *until => {
                self.life = Life::Preparing;
                // The parts were there for the last life; they are looked at again with the next event or tick.
                self.prepare(id, &Parts::Known, release, now, effects)
            }
            Life::Up(_) if wanted => self.keep_up(id, release, now, effects),
            Life::Up(_) => {
                let reason = (self.want == Want::Running).then(|| "the platform is stopping".to_owned());
                self.stop(id, release, reason, now, effects)
            }
            Life::Stopping { again, .. } if now.elapsed >= *again => self.stop_again(id, now, effects),
            Life::Preparing | Life::Pausing { .. } | Life::Down | Life::Broken if !wanted => {
                self.rest(id, now, effects)
            }
            Life::Down if wanted => {
                // Wanted again: the assignment took its word back.
                self.life = Life::Preparing;
                self.prepare(id, parts, release, now, effects)
            }
            _ => Step::default(),
        }
    }

    /// There is no process, and none is wanted.
    fn rest(&mut self, id: &InstanceId, now: Now, effects: &mut Vec<Effect>) -> Step {
        match self.want {
            Want::Gone => {
                effects.push(Effect::Forget { instance: id.clone() });
                Step { urgency: Some(Urgency::Now), forgotten: true }
            }
            Want::Stopped if self.state != InstanceState::Stopped => {
                self.life = Life::Down;
                let reason = self.reason.take();
                self.enter(InstanceState::Stopped, reason, now);
                Step { urgency: Some(Urgency::Now), forgotten: false }
            }
            Want::Stopped | Want::Running => Step::default(),
        }
    }

    fn prepare(
        &mut self,
        id: &InstanceId,
        parts: &Parts,
        release: Option<&Release>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Step {
        let changed = |urgency| Step { urgency: Some(urgency), forgotten: false };
        match parts {
            Parts::Awaited => Step::default(),
            Parts::Missing(reason) => {
                let is_news = self.reason.as_ref() != Some(reason);
                self.reason = Some(reason.clone());
                if is_news { changed(Urgency::Soon) } else { Step::default() }
            }
            Parts::Broken(reason) => {
                self.life = Life::Broken;
                self.enter(InstanceState::Failed, Some(reason.clone()), now);
                changed(Urgency::Now)
            }
            Parts::Known => {
                let Some(release) = release else { return Step::default() };
                let Some(service) = release.file.services.get(&self.assigned.service) else {
                    self.life = Life::Broken;
                    let reason = format!("{} has no service {}", release.number, self.assigned.service);
                    self.enter(InstanceState::Failed, Some(reason), now);
                    return changed(Urgency::Now);
                };
                self.attempt += 1;
                self.life = Life::Launching;
                let port = match (service.port, self.new_port) {
                    (false, _) => PortChoice::None,
                    (true, true) => PortChoice::New,
                    (true, false) => PortChoice::Keep,
                };
                effects.push(Effect::Launch {
                    instance: id.clone(),
                    assigned: self.assigned.clone(),
                    attempt: self.attempt,
                    port,
                });
                Step::default()
            }
        }
    }

    /// It runs and shall run: probes that are due, a restart when it is unhealthy for too long.
    fn keep_up(
        &mut self,
        id: &InstanceId,
        release: Option<&Release>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Step {
        let service = self.service(release);
        let Life::Up(up) = &mut self.life else { return Step::default() };
        let Some(service) = service else {
            // Adopted, and its release is still being fetched (or can't be): it goes on as it is.
            up.next_probe = Probe::Due(now.elapsed + PROBE_PAUSE_MAX);
            return Step::default();
        };
        if up.failures >= service.health.restart_after.max(1) {
            let since = if up.was_healthy { "unhealthy" } else { "never healthy" };
            let words = self.reason.clone().unwrap_or_default();
            return self.stop(
                id,
                release,
                Some(format!("restarted because it was {since}: {words}")),
                now,
                effects,
            );
        }
        if service.health.check == Check::Up {
            return self.stay_up(now);
        }
        if let Probe::Due(at) = up.next_probe
            && now.elapsed >= at
        {
            up.next_probe = Probe::Asked;
            let with_tail = now.elapsed >= up.next_tail;
            effects.push(Effect::Probe { instance: id.clone(), attempt: self.attempt, with_tail });
        }
        Step::default()
    }

    fn stay_up(&mut self, now: Now) -> Step {
        let Life::Up(up) = &mut self.life else { return Step::default() };
        if up.healthy_since.is_some() {
            // It may have been put off while the release was not known.
            up.next_probe = Probe::Never;
            return Step::default();
        }
        let proved = up.started + UP_FOR;
        if now.elapsed < proved {
            up.next_probe = Probe::Due(proved);
            return Step::default();
        }
        let was_unproved = std::mem::replace(&mut up.unproved, false);
        (up.healthy_since, up.was_healthy) = (Some(now.elapsed), true);
        up.next_probe = Probe::Never;
        self.was_ever_healthy = true;
        self.enter_healthy(was_unproved, now);
        Step { urgency: Some(Urgency::Now), forgotten: false }
    }

    fn stop(
        &mut self,
        id: &InstanceId,
        release: Option<&Release>,
        reason: Option<String>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Step {
        let grace = self.service(release).map_or(GRACE_UNKNOWN, |service| service.stop_grace);
        self.life = Life::Stopping { again: now.elapsed + grace + STOP_MARGIN, asked: Asked::Once };
        self.enter(InstanceState::Stopping, reason, now);
        effects.push(Effect::Stop { instance: id.clone(), attempt: self.attempt, grace });
        Step { urgency: Some(Urgency::Now), forgotten: false }
    }

    fn stop_again(&mut self, id: &InstanceId, now: Now, effects: &mut Vec<Effect>) -> Step {
        self.life = Life::Stopping { again: now.elapsed + STOP_MARGIN, asked: Asked::Again };
        let grace = Duration::ZERO;
        effects.push(Effect::Stop { instance: id.clone(), attempt: self.attempt, grace });
        Step::default()
    }

    pub fn observed(&self, endpoint: impl Fn(u16) -> SocketAddr) -> ObservedInstance {
        ObservedInstance {
            app: self.assigned.app.clone(),
            service: self.assigned.service.clone(),
            release: self.assigned.release,
            state: self.state,
            endpoint: self.port.map(endpoint),
            pid: match &self.life {
                Life::Up(up) => Some(up.pid),
                _ => None,
            },
            restarts: self.attempt.saturating_sub(1),
            exits: self.all_exits,
            since: self.since,
            reason: self.reason.clone(),
            log_tail: self.log_tail.clone(),
        }
    }
}

impl Up {
    fn new(pid: u32, started: Duration, first_probe: Duration) -> Self {
        Self {
            pid,
            started,
            healthy_since: None,
            was_healthy: false,
            failures: 0,
            next_probe: Probe::Due(first_probe),
            // Before that there is little to read.
            next_tail: first_probe + TAIL_PAUSE,
            unproved: false,
        }
    }

    /// Failures count after the grace period, or once it was healthy.
    fn fail(&mut self, grace: Duration, interval: Duration, now: Duration) {
        let age = now.saturating_sub(self.started);
        if self.was_healthy || age >= grace {
            self.failures += 1;
            self.next_probe = Probe::Due(now + interval);
        } else {
            self.next_probe = Probe::Due(now + (age / 20).clamp(PROBE_PAUSE_MIN, PROBE_PAUSE_MAX));
        }
    }
}
