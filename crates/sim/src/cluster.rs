//! Stories of several servers and several nodes: who leads, who is lost, and what must be alone.
//!
//! Three servers with the real [`rung_control::reconcile::Reconcile`] over one store, one of which leads; four nodes that
//! take assignments, ask for leases, keep processes and report. Cables are pulled on either side of a server or a node, in
//! one direction or both; servers stand still and wake up believing that they lead, die between two effects and begin with
//! nothing, or hear late of what is written; the store can't be written, does not say what became of a transaction, or has
//! dropped what a watch asks for; clocks step; machines lose their power, and their disks, most of them at once; messages
//! are late, lost, doubled and overtaken; processes crash. Some stories are stormy, in others there is time between two
//! faults for what takes long: a loss, a lease that ends, a move. [`audit`] and [`handoff`] look at every start, every
//! commit and every request.
//!
//! Left to the stories of one machine: people who deploy, destroy and create anew under one name, and runs. Torn writes and
//! versions side by side are below what is simulated: the suites of the store, the agent and the model have them.
//!
//! The nodes are simpler than those of one machine: nothing is fetched. What is real is what decides over several nodes:
//! liveness, the planner, the fence, the order of question, answer and stop on which leases hang, and the proxies' view
//! ([`proxy`]): two of them poll any of the servers, which tell the one that plans what was acknowledged.

mod audit;
mod handoff;
mod machine;
mod proxy;
mod server;
mod stage;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use rung_api::wire::{ProxyDocuments, ProxyPoll};
use rung_control::reconcile::{PollId, StepId};
use rung_model::{Assignment, Generation, InstanceId, Observed};
use rung_store::memory::{Core, LogLimits};
use rung_store::{Guard, Op, Revision, Txn};

use machine::Machine;
use proxy::Proxy;
use server::Server;

const SERVERS: usize = 3;
const NODES: usize = 4;
const PROXIES: usize = 2;
/// From then on nothing goes wrong any more.
const FAULTS_END: Duration = Duration::from_secs(150);
/// The lease, the brake, a leader that begins anew, and a minute after which instances are moved to better places.
const REST_WITHIN: Duration = Duration::from_secs(250);
/// More is a spin.
const HAPPENINGS_MAX: u64 = 400_000;

/// What is planted in the shells around the machines that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    None,
    /// A server answers the question for leases from its index instead of the store's.
    LeasesFromMemory,
    /// An agent launches what it was told to run, without asking whether it still shall.
    LaunchesWithoutLease,
    /// A shim goes on when its lease is over.
    OutlivesItsLease,
    /// The leader's writes are not guarded by its key.
    NoFence,
    /// An agent takes every assignment that comes, also an older one.
    TakesOlderAssignments,
    /// The watch of a server loses a batch now and then.
    LosesBatches,
    /// A server takes every poll for an acknowledgement of everything.
    AcknowledgesForTheProxy,
    /// No server tells the others of its proxies.
    FollowersAreMute,
    /// What a server tells of its proxies does not say that it was started again.
    RestartsUnnoticed,
    /// A proxy acknowledges routes, and does not always keep them on its disk.
    ForgetsToKeep,
    /// A proxy that asks another server takes whatever that one has, also what is older.
    BeginsAnewElsewhere,
}

impl Mistake {
    /// Each with what is said of what it breaks.
    pub const ALL: [(Self, &str); 11] = [
        (Self::LeasesFromMemory, "are alive"),
        (Self::LaunchesWithoutLease, "are alive"),
        (Self::OutlivesItsLease, "are alive"),
        (Self::NoFence, "although another leads"),
        (Self::TakesOlderAssignments, "went back"),
        (Self::LosesBatches, "is not at rest"),
        (Self::AcknowledgesForTheProxy, "has not acknowledged"),
        (Self::FollowersAreMute, "has not acknowledged"),
        (Self::RestartsUnnoticed, "has not acknowledged"),
        (Self::ForgetsToKeep, "although it has acknowledged"),
        (Self::BeginsAnewElsewhere, "went back"),
    ];
}

/// What a story came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub starts: u64,
    pub requests: u64,
    pub leaders: u64,
    pub faults: u64,
    /// Exclusive instances that ended because nobody extended their lease.
    pub ended_alone: u64,
    /// How often the exclusive service went on on another node.
    pub moves: u64,
    /// How often several nodes were told by steps that were on their way at the same time.
    pub side_by_side: u64,
}

#[derive(Debug, Clone)]
enum Happening {
    // At a server.
    Tick(usize),
    Watch(usize),
    Beat {
        server: usize,
        node: usize,
    },
    Commit {
        server: usize,
        life: u64,
        step: StepId,
        /// The token under which it was planned.
        fence: Option<Revision>,
        guards: Vec<Guard>,
        ops: Vec<Op>,
        /// What it was planned against that must hold.
        against: Option<String>,
    },
    /// To the process that asked: one that was started since knows nothing of it.
    Written {
        server: usize,
        life: u64,
        step: StepId,
        outcome: Option<Txn>,
    },
    /// The lease of whoever leads is looked at.
    Campaign,
    Elect(usize),
    /// A server learns that another one leads.
    Deposed(usize),
    LeasesAsked {
        server: usize,
        node: usize,
        asked: Duration,
    },
    // At a node.
    NodeTurn(usize),
    LeasesRead {
        node: usize,
        asked: Duration,
        instances: Vec<InstanceId>,
    },
    Assigned {
        node: usize,
        assignment: Box<Assignment>,
    },
    Reported {
        node: usize,
        observed: Box<Observed>,
    },
    LeaseEnds {
        node: usize,
        id: InstanceId,
    },
    Ends {
        node: usize,
        id: InstanceId,
        life: u64,
    },
    // At a proxy, and of one.
    ProxyStarts(usize),
    ProxyTick(usize),
    TableApplied {
        proxy: usize,
        life: u64,
        thread: usize,
        version: u64,
    },
    RoutesPolled {
        server: usize,
        proxy: usize,
        life: u64,
        ticket: u64,
        poll: ProxyPoll,
    },
    RoutesAnswered {
        proxy: usize,
        life: u64,
        ticket: u64,
        answer: Box<ProxyDocuments>,
    },
    RoutesFailed {
        proxy: usize,
        life: u64,
        ticket: u64,
    },
    PollOver {
        server: usize,
        poll: PollId,
    },
    PollClosed {
        server: usize,
        proxy: usize,
        life: u64,
        ticket: u64,
    },
    TellServed(usize),
    Request(usize),
    RequestEnds {
        proxy: usize,
        life: u64,
        id: InstanceId,
    },
    // Everybody else.
    PersonScales,
    Fault,
    Mended,
    FaultsEnd,
    Look,
}

/// Tells the story of a seed.
///
/// # Errors
/// The first invariant that is broken, in words.
pub fn run(seed: u64, mistake: Mistake) -> Result<Summary, String> {
    let told = tell(seed, mistake, Trace::Off);
    match told.broken {
        None => Ok(told.summary),
        // Told again, the same comes to pass.
        Some(_) => Err(tell(seed, mistake, Trace::Tail(VecDeque::new())).failure(seed)),
    }
}

fn tell(seed: u64, mistake: Mistake, trace: Trace) -> Story {
    let mut story = Story { trace, ..Story::new(seed, mistake) };
    story.set_the_stage();
    let mut told = 0;
    while !story.is_over && story.broken.is_none() {
        let Some(((at, _), happening)) = story.agenda.pop_first() else { break };
        story.now = at;
        told += 1;
        if told > HAPPENINGS_MAX {
            story.fail(format!("the story does not end: the last was {happening:?}"));
        }
        story.happen(happening);
        story.note_contacts();
    }
    story
}

/// What came to pass before an invariant was broken.
enum Trace {
    Off,
    Tail(VecDeque<String>),
}

/// So many lines tell the last half minute or so.
const TRACED_MAX: usize = 60;

/// How much time there is between two faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Stormy,
    Calm,
}

struct Story {
    mistake: Mistake,
    rng: Rng,
    now: Duration,
    agenda: BTreeMap<(Duration, u64), Happening>,
    made: u64,
    store: Core,
    servers: Vec<Server>,
    machines: Vec<Machine>,
    proxies: Vec<Proxy>,
    /// Counts the polls of proxies.
    polls: u64,
    /// Which routes were the first without an instance that was in them before.
    unrouted: BTreeMap<InstanceId, Generation>,
    lives: u64,
    highest_fence: u64,
    /// Where the exclusive instance was started last.
    last_home: Option<usize>,
    /// What a person asked for and was told is done.
    scaled_to: BTreeMap<&'static str, u32>,
    /// When the lease of the key `leader` was kept last.
    kept: Duration,
    pace: Pace,
    full_until: Duration,
    faults_have_ended: bool,
    summary: Summary,
    trace: Trace,
    broken: Option<String>,
    is_over: bool,
}

impl Story {
    fn new(seed: u64, mistake: Mistake) -> Self {
        let mut rng = Rng::with_seed(seed);
        let revisions = if rng.bool() { rng.usize(5..60) } else { 4096 };
        let store = Core::with_log_limits(LogLimits { revisions, ..LogLimits::default() });
        Self {
            mistake,
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            made: 0,
            servers: (0..SERVERS).map(|server| Server::new(server, store.epoch())).collect(),
            proxies: (0..PROXIES).map(Proxy::new).collect(),
            polls: 0,
            unrouted: BTreeMap::new(),
            machines: (0..NODES).map(Machine::new).collect(),
            store,
            lives: 0,
            highest_fence: 0,
            last_home: None,
            scaled_to: BTreeMap::new(),
            kept: Duration::ZERO,
            pace: if rng.bool() { Pace::Stormy } else { Pace::Calm },
            full_until: Duration::ZERO,
            faults_have_ended: false,
            summary: Summary::default(),
            trace: Trace::Off,
            broken: None,
            is_over: false,
            rng,
        }
    }

    fn happen(&mut self, happening: Happening) {
        use Happening as H;
        // What happens at a server that stands still happens when it goes on.
        if let H::Tick(server)
        | H::Watch(server)
        | H::Written { server, .. }
        | H::Beat { server, .. }
        | H::Deposed(server)
        | H::RoutesPolled { server, .. }
        | H::PollOver { server, .. }
        | H::PollClosed { server, .. }
        | H::LeasesAsked { server, .. } = &happening
            && self.now < self.servers[*server].paused_until
        {
            let at = self.servers[*server].paused_until;
            return self.at(at, happening);
        }
        match happening {
            H::Tick(server) => self.tick(server),
            H::Watch(server) => self.watch(server),
            H::Beat { server, node } => self.heard(server, node),
            H::Commit { server, life, step, fence, guards, ops, against } => {
                self.commit(server, (life, step), fence, &guards, ops, against)
            }
            H::Written { server, life, step, outcome } => self.written(server, life, step, outcome),
            H::Campaign => self.campaign(),
            H::Elect(server) => self.elect(server),
            H::Deposed(server) => self.deposed(server),
            H::LeasesAsked { server, node, asked } => self.leases_asked(server, node, asked),
            H::NodeTurn(node) => self.node_turn(node),
            H::LeasesRead { node, asked, instances } => self.leases_read(node, asked, &instances),
            H::Assigned { node, assignment } => self.assigned(node, *assignment),
            H::Reported { node, observed } => self.reported(node, &observed),
            H::LeaseEnds { node, id } => self.lease_ends(node, &id),
            H::Ends { node, id, life } => self.ends(node, &id, life),
            H::ProxyStarts(proxy) => self.proxy_starts(proxy),
            H::ProxyTick(proxy) => self.proxy_tick(proxy),
            H::TableApplied { proxy, life, thread, version } => {
                self.table_applied(proxy, life, thread, version);
            }
            H::RoutesPolled { server, proxy, life, ticket, poll } => {
                self.routes_polled(server, (proxy, life, ticket), poll);
            }
            H::RoutesAnswered { proxy, life, ticket, answer } => {
                self.routes_answered(proxy, life, ticket, *answer);
            }
            H::RoutesFailed { proxy, life, ticket } => self.routes_failed(proxy, life, ticket),
            H::PollOver { server, poll } => self.poll_over(server, poll),
            H::PollClosed { server, proxy, life, ticket } => self.poll_closed(server, proxy, life, ticket),
            H::TellServed(server) => self.tell_served(server),
            H::Request(proxy) => self.request(proxy),
            H::RequestEnds { proxy, life, id } => self.request_ends(proxy, life, &id),
            H::PersonScales => self.person_scales(),
            H::Fault => self.fault(),
            H::Mended => self.mended(),
            H::FaultsEnd => self.end_faults(),
            H::Look => self.look(),
        }
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        self.made += 1;
        self.agenda.insert((at, self.made), happening);
    }

    fn after_ms(&mut self, from: u64, to: u64, happening: Happening) {
        let delay = Duration::from_micros(self.rng.u64(from * 1000..=to * 1000));
        self.at(self.now + delay, happening);
    }

    /// A message is on its way: mostly for milliseconds.
    fn send(&mut self, happening: Happening) {
        let slow = !self.faults_have_ended && self.rng.u32(0..8) == 0;
        let longest = if slow { 4000 } else { 5 };
        self.after_ms(0, longest, happening);
    }

    /// One that may get lost on its way, or come twice: whoever sends it says it again until there is an answer.
    fn send_unsure(&mut self, happening: Happening) {
        if self.faults_have_ended {
            return self.send(happening);
        }
        match self.rng.u32(0..40) {
            0 => {}
            1 => {
                self.send(happening.clone());
                self.send(happening);
            }
            _ => self.send(happening),
        }
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from * 1000..=to * 1000))
    }

    /// For the trace.
    fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        if matches!(self.trace, Trace::Off) {
            return;
        }
        let line = format!("{:>9.3} s  {}", self.now.as_secs_f64(), what(self));
        if let Trace::Tail(lines) = &mut self.trace {
            lines.push_back(line);
            if lines.len() > TRACED_MAX {
                lines.pop_front();
            }
        }
    }

    fn failure(self, seed: u64) -> String {
        let what = self
            .broken
            .unwrap_or_else(|| "told twice, it went otherwise: the story is not determined".to_owned());
        let said = format!("cluster seed {seed}, {:.3} s: {what}", self.now.as_secs_f64());
        match self.trace {
            Trace::Off => said,
            Trace::Tail(lines) => format!("{said}\n{}", lines.into_iter().collect::<Vec<_>>().join("\n")),
        }
    }

    fn fail(&mut self, what: impl Into<String>) {
        self.broken.get_or_insert(what.into());
    }
}
