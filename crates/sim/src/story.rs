//! One story, from its beginning to its end.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use jiff::Timestamp;
use rung_model::{AppName, NodeId};
use rung_store::memory::{Core, LogLimits};

use crate::agenda::{Agenda, Happening};
use crate::audit::Audit;
use crate::faults::Faults;
use crate::node::Machine;
use crate::people::People;
use crate::proxy::Ingress;
use crate::server::Server;
use crate::wiring::Wiring;

/// How much of a trace a failure shows.
const TRACE_TAIL: usize = 80;

/// What must be at rest this long after the faults have ended. The slowest thing is a release command that was begun
/// at the last moment, then the steps of a canary, a deadline, a revert, a crash loop's pause and a silent proxy; and
/// then a watch.
pub const REST_WITHIN: Duration = Duration::from_secs(240);

/// A story has some thousand happenings; one with so many is a spin.
const HAPPENINGS_MAX: u64 = 300_000;

/// A broken invariant.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub step: u64,
    pub what: String,
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {} failed at step {}: {}", self.seed, self.step, self.what)?;
        write!(f, "tell it again with RUNG_SIM_SEED={}", self.seed)
    }
}

impl std::error::Error for Failure {}

/// What a story came to, for those who want to know that stories are not empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    pub steps: u64,
    pub deployments: u64,
    pub requests: u64,
    pub faults: u64,
    /// Releases that were taken back for how they answered.
    pub aborts: u64,
    /// Scheduled times of jobs that got their record.
    pub scheduled: u64,
}

/// Tells the story of a seed.
///
/// # Errors
/// The first invariant that is broken, with the tail of the trace.
pub fn run(seed: u64, wiring: Wiring) -> Result<Summary, Box<Failure>> {
    match Story::new(seed, wiring, Trace::Off).tell() {
        Ok(summary) => Ok(summary),
        // Traces cost more than the story; the same seed tells the same story again.
        Err(_) => Story::new(seed, wiring, Trace::On(VecDeque::new())).tell(),
    }
}

pub(crate) enum Trace {
    Off,
    On(VecDeque<String>),
}

/// Everything there is in a story. Its parts are in the files named like them.
pub(crate) struct Story {
    pub seed: u64,
    pub wiring: Wiring,
    pub rng: Rng,
    pub now: Duration,
    /// What clock steps have added.
    pub clock_offset: i64,
    pub step: u64,
    pub agenda: Agenda,
    pub store: Core,
    pub faults: Faults,
    pub server: Server,
    pub machine: Machine,
    pub ingress: Ingress,
    pub people: People,
    pub audit: Audit,
    pub node: NodeId,
    pub summary: Summary,
    pub is_over: bool,
    pub broken: Option<String>,
    trace: Trace,
}

/// Says what happens, when anybody listens.
macro_rules! say {
    ($story:expr, $($arg:tt)*) => {
        if $story.is_traced() {
            let line = format!($($arg)*);
            $story.note(line);
        }
    };
}
pub(crate) use say;

impl Story {
    fn new(seed: u64, wiring: Wiring, trace: Trace) -> Self {
        let mut rng = Rng::with_seed(seed);
        let limits =
            LogLimits { revisions: if rng.bool() { rng.usize(2..30) } else { 4096 }, ..LogLimits::default() };
        let faults = Faults::any(&mut rng);
        Self {
            seed,
            wiring,
            now: Duration::ZERO,
            clock_offset: 0,
            step: 0,
            agenda: Agenda::default(),
            store: Core::with_log_limits(limits),
            faults,
            server: Server::default(),
            machine: Machine::default(),
            ingress: Ingress::default(),
            people: People::default(),
            audit: Audit::default(),
            node: NodeId::new("box").expect("a good name"),
            summary: Summary::default(),
            is_over: false,
            broken: None,
            trace,
            rng,
        }
    }

    fn tell(mut self) -> Result<Summary, Box<Failure>> {
        self.set_the_stage();
        while !self.is_over && self.broken.is_none() {
            let Some((time, happening)) = self.agenda.take_first() else {
                self.fail("nothing will ever happen again");
                break;
            };
            self.now = self.now.max(time);
            self.step += 1;
            if self.step > HAPPENINGS_MAX {
                self.fail(format!("the story does not end: the last was {happening:?}"));
                break;
            }
            if let Some(until) = self.faults.paused_until(&happening, self.now) {
                self.agenda.at(until, happening);
                continue;
            }
            self.happen(happening);
        }
        self.summary.steps = self.step;
        match self.broken {
            None => Ok(self.summary),
            Some(what) => {
                let trace = match self.trace {
                    Trace::Off => Vec::new(),
                    Trace::On(lines) => lines.into(),
                };
                Err(Box::new(Failure { seed: self.seed, step: self.step, what, trace }))
            }
        }
    }

    fn set_the_stage(&mut self) {
        self.join();
        for first in [Happening::ServerStarts, Happening::AgentStarts, Happening::IngressStarts] {
            self.soon(first);
        }
        self.agenda.at(Duration::from_millis(300), Happening::PersonActs);
        self.agenda.at(Duration::from_millis(300), Happening::Request);
        self.agenda.at(Duration::from_millis(500), Happening::Fault);
        let end = self.faults.end;
        self.agenda.at(end, Happening::FaultsEnd);
    }

    fn happen(&mut self, happening: Happening) {
        use Happening as H;
        match happening {
            H::ServerStarts => self.start_server(),
            H::ServerTick(life) => self.tick_server(life),
            H::WatchReady(life) => self.watch(life),
            H::ListPage(life) => self.list_page(life),
            H::Commit { life, step, guards, ops } => self.commit_of_leader(life, step, guards, ops),
            H::LateCommit { by, guards, ops } => self.commit_late(by, &guards, ops),
            H::Written { life, step, outcome } => self.written(life, step, outcome),
            H::AssignmentPolled { life, poll, after } => self.assignment_polled(life, poll, after),
            H::AssignmentPollOver { server, life, poll } => self.assignment_poll_over(server, life, poll),
            H::Reported { life, message, observed } => self.reported(life, message, &observed),
            H::ReleaseAsked { life, app, release } => self.release_asked(life, &app, release),
            H::RoutesPolled { life, ticket, poll } => self.routes_polled(life, ticket, poll),
            H::RoutesPollOver { server, poll } => self.routes_poll_over(server, poll),
            H::RoutesPollClosed { life, ticket } => self.routes_poll_closed(life, ticket),
            H::AgentStarts => self.start_agent(),
            H::AgentTick(life) => self.tick_agent(life),
            H::AgentHears(life, event) => self.agent_hears(life, *event),
            H::AssignmentAnswered { life, poll, answer } => self.assignment_answered(life, poll, answer),
            H::ReportAnswered { life, message, taken } => self.report_answered(life, message, taken),
            H::AgentRetries(life) => self.agent_retries(life),
            H::Spawned { life, instance, attempt, port } => self.spawned(life, &instance, attempt, port),
            H::ProcessEnds { instance, attempt, reason } => self.process_ends(&instance, attempt, &reason),
            H::RunEnds { run, nonce } => self.run_ends(&run, nonce),
            H::DataPurged { life, app, volumes } => self.data_purged(life, &app, volumes),
            H::IngressStarts => self.start_ingress(),
            H::IngressTick(life) => self.tick_ingress(life),
            H::TableApplied { life, thread, version } => self.table_applied(life, thread, version),
            H::RoutesAnswered { life, ticket, answer } => self.routes_answered(life, ticket, answer),
            H::RoutesFailed { life, ticket } => self.routes_failed(life, ticket),
            H::TrafficDue(life) => self.traffic_due(life),
            H::TrafficReported { life, cohorts } => self.traffic_reported(life, cohorts),
            H::Request => self.request(),
            H::RequestEnds { life, instance } => self.request_ends(life, &instance),
            H::PersonActs => self.person_acts(),
            H::Fault => self.fault(),
            H::FaultsEnd => self.end_faults(),
            H::Look => self.look(),
        }
    }

    // For all parts.

    pub fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        say!(self, "BROKEN: {what}");
        self.broken.get_or_insert(what);
    }

    pub fn is_traced(&self) -> bool {
        matches!(self.trace, Trace::On(_))
    }

    pub fn note(&mut self, line: String) {
        let line = format!("{:>6} {:>9.3} s  {line}", self.step, self.now.as_secs_f64());
        if let Trace::On(lines) = &mut self.trace {
            lines.push_back(line);
            if lines.len() > TRACE_TAIL {
                lines.pop_front();
            }
        }
    }

    pub fn wall(&self) -> Timestamp {
        let ms = 1_700_000_000_000 + self.clock_offset + i64::try_from(self.now.as_millis()).unwrap_or(0);
        Timestamp::from_millisecond(ms).expect("the stories play in this century")
    }

    pub fn after(&mut self, delay: Duration, happening: Happening) {
        let at = self.now + delay;
        self.agenda.at(at, happening);
    }

    pub fn soon(&mut self, happening: Happening) {
        let delay = self.between_ms(0, 5);
        self.after(delay, happening);
    }

    pub fn between_ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.rng.u64(from * 1000..=to * 1000))
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u32) -> bool {
        times > 0 && self.rng.u32(0..times) == 0
    }

    pub fn any_app(&mut self) -> AppName {
        let name = if self.rng.bool() { "shop" } else { "books" };
        AppName::new(name).expect("a good name")
    }
}
