//! A node: its agent, which takes assignments and asks for leases, and its processes, each under a shim with an alarm.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use rung_model::{
    AssignedInstance, Assignment, Document as _, InstanceId, InstanceState, Intent, NodeId, Observed,
    ObservedInstance, keys,
};
use rung_store::Op;

use super::stage::{GRACE, is_exclusive, is_routed};
use super::{Happening, Mistake, SERVERS, Story};

/// What the nodes promise when they register, and keep.
pub const LEASE: Duration = Duration::from_secs(10);
/// An answer that took longer is not used.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const HEALTHY_AFTER: Duration = Duration::from_millis(800);
/// Nobody asks there.
const ENDPOINT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 20_000);
const TURN_MS: u64 = 1000;

pub struct Machine {
    pub id: NodeId,
    /// Nothing of it reaches anybody.
    pub mute_until: Duration,
    /// Nothing reaches it.
    pub deaf_until: Duration,
    /// It has no power.
    pub off_until: Duration,
    /// Which servers it does not reach, until when.
    pub parted_until: [Duration; SERVERS],
    pub told: Assignment,
    pub processes: BTreeMap<InstanceId, Process>,
    /// Never goes back: an agent that lost its disk says since when it runs, instead.
    reports: u64,
    /// What a server has taken of what it told, but for its number.
    taken: Option<Observed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Kept,
    Lost,
}

pub struct Process {
    pub life: u64,
    pub assigned: AssignedInstance,
    /// Until when it may live without another word.
    until: Option<Duration>,
    is_ending: bool,
    started: Duration,
}

impl Machine {
    pub fn new(number: usize) -> Self {
        let id = NodeId::new(format!("node-{number}")).expect("a good name");
        let told = Assignment::empty(id.clone());
        let parted_until = [Duration::ZERO; SERVERS];
        Self {
            id,
            mute_until: Duration::ZERO,
            deaf_until: Duration::ZERO,
            off_until: Duration::ZERO,
            parted_until,
            told,
            processes: BTreeMap::new(),
            reports: 0,
            taken: None,
        }
    }

    pub fn cut(&mut self, until: Duration) {
        self.mute_until = self.mute_until.max(until);
        self.deaf_until = self.deaf_until.max(until);
    }

    /// Its processes are gone at once. What it was told is on its disk, unless that is gone, too.
    pub fn lose_power(&mut self, until: Duration, disk: Disk) {
        self.cut(until);
        self.off_until = self.off_until.max(until);
        self.processes.clear();
        if disk == Disk::Lost {
            self.told = Assignment::empty(self.id.clone());
            self.taken = None;
        }
    }

    fn observed(&self, now: Duration) -> Observed {
        let instances = self.told.instances.iter().map(|(id, assigned)| {
            let state = match (self.processes.get(id), assigned.intent) {
                (Some(process), _) if process.is_ending => InstanceState::Stopping,
                (Some(process), _) if now < process.started + HEALTHY_AFTER => InstanceState::Starting,
                (Some(_), _) => InstanceState::Healthy,
                (None, Intent::Run) => InstanceState::Preparing,
                (None, Intent::Stop) => InstanceState::Stopped,
            };
            let observed = ObservedInstance {
                app: assigned.app.clone(),
                service: assigned.service.clone(),
                release: assigned.release,
                state,
                endpoint: (is_routed(assigned) && self.processes.contains_key(id)).then_some(ENDPOINT),
                pid: None,
                restarts: 0,
                exits: 0,
                since: Timestamp::UNIX_EPOCH,
                reason: None,
                log_tail: Vec::new(),
            };
            (id.clone(), observed)
        });
        Observed {
            node: self.id.clone(),
            assignment: self.told.generation,
            sequence: 0,
            agent_started: Timestamp::UNIX_EPOCH,
            instances: instances.collect(),
            runs: BTreeMap::new(),
            artifacts: Vec::new(),
        }
    }
}

impl Story {
    /// Beats, asks for its assignment and for leases, and reports: once a second, each of them as a message of its own.
    pub(super) fn node_turn(&mut self, node: usize) {
        self.after_ms(TURN_MS, TURN_MS + 100, Happening::NodeTurn(node));
        if self.now < self.machines[node].off_until {
            return;
        }
        if self.now >= self.machines[node].mute_until {
            self.talk(node);
        }
        self.converge(node);
    }

    fn talk(&mut self, node: usize) {
        for server in (0..SERVERS).filter(|server| self.is_reached(node, *server)).collect::<Vec<_>>() {
            self.send_unsure(Happening::Beat { server, node });
        }
        let server = self.rng.usize(0..SERVERS);
        if self.is_reached(node, server) && self.now >= self.servers[server].paused_until {
            let machine = &self.machines[node];
            let held = self.assignment_of(server, &machine.id);
            if let Some(assignment) = held.filter(|held| held.generation != machine.told.generation) {
                self.send_unsure(Happening::Assigned { node, assignment: Box::new(assignment) });
            }
        }
        let server = self.rng.usize(0..SERVERS);
        if self.is_reached(node, server) {
            self.send_unsure(Happening::LeasesAsked { server, node, asked: self.now });
        }
        let server = self.rng.usize(0..SERVERS);
        if self.is_reached(node, server) && self.reaches_the_store(server) {
            let machine = &mut self.machines[node];
            let observed = machine.observed(self.now);
            if machine.taken.as_ref() != Some(&observed) {
                machine.reports += 1;
                let observed = Box::new(Observed { sequence: machine.reports, ..observed });
                self.send_unsure(Happening::Reported { node, observed });
            }
        }
    }

    fn is_reached(&self, node: usize, server: usize) -> bool {
        self.now >= self.machines[node].parted_until[server]
    }

    fn hears(&self, node: usize) -> bool {
        self.now >= self.machines[node].deaf_until
    }

    pub(super) fn assigned(&mut self, node: usize, assignment: Assignment) {
        let known = self.machines[node].told.generation;
        if !self.hears(node) || assignment.generation == known {
            return;
        }
        if assignment.generation < known && self.mistake != Mistake::TakesOlderAssignments {
            return;
        }
        self.note(|_| {
            let ids = assignment.instances.iter().map(|(id, assigned)| match assigned.intent {
                Intent::Run => id.to_string(),
                Intent::Stop => format!("(stop {id})"),
            });
            format!("node-{node} is told {}: {}", assignment.generation, ids.collect::<Vec<_>>().join(", "))
        });
        self.audit_generation(node, known, assignment.generation);
        self.machines[node].told = assignment;
        self.converge(node);
    }

    /// Starts what needs no lease, and ends what shall not be.
    fn converge(&mut self, node: usize) {
        let told = self.machines[node].told.instances.clone();
        // As the agent's machine does it: what the node was not asked about has its room until it has ended.
        let is_full = self.machines[node].processes.keys().any(|id| !told.contains_key(id));
        for (id, assigned) in told.iter().filter(|_| !is_full) {
            let is_there = self.machines[node].processes.contains_key(id);
            let is_free = !is_exclusive(assigned) || self.mistake == Mistake::LaunchesWithoutLease;
            if assigned.intent == Intent::Run && !is_there && is_free {
                self.start(node, id, assigned.clone(), is_exclusive(assigned).then(|| self.now + LEASE));
            }
        }
        let running: Vec<InstanceId> = self.machines[node].processes.keys().cloned().collect();
        for id in running {
            if told.get(&id).is_none_or(|assigned| assigned.intent == Intent::Stop) {
                self.terminate(node, &id);
            }
        }
    }

    /// Counted from when it was asked: extends what is there, and allows what shall be launched.
    pub(super) fn leases_read(&mut self, node: usize, asked: Duration, instances: &[InstanceId]) {
        if !self.hears(node) || self.now > asked + ANSWER_WITHIN {
            return;
        }
        let until = asked + LEASE;
        for id in instances {
            match self.machines[node].processes.get_mut(id) {
                Some(process) if !process.is_ending && process.until.is_some_and(|known| known < until) => {
                    process.until = Some(until);
                    self.at(until, Happening::LeaseEnds { node, id: id.clone() });
                }
                Some(_) => {}
                None => {
                    let assigned = self.machines[node].told.instances.get(id).cloned();
                    if let Some(assigned) =
                        assigned.filter(|assigned| is_exclusive(assigned) && assigned.intent == Intent::Run)
                    {
                        self.start(node, id, assigned, Some(until));
                    }
                }
            }
        }
    }

    fn start(&mut self, node: usize, id: &InstanceId, assigned: AssignedInstance, until: Option<Duration>) {
        self.note(|_| format!("node-{node} starts {id}"));
        self.audit_start(node, id, &assigned);
        self.summary.starts += 1;
        self.lives += 1;
        let process = Process { life: self.lives, assigned, until, is_ending: false, started: self.now };
        self.machines[node].processes.insert(id.clone(), process);
        if let Some(until) = until {
            self.at(until, Happening::LeaseEnds { node, id: id.clone() });
        }
    }

    /// The shim's alarm, by a clock that goes on whatever becomes of the agent.
    pub(super) fn lease_ends(&mut self, node: usize, id: &InstanceId) {
        let process = self.machines[node].processes.get(id);
        let is_over = process.is_some_and(|process| {
            !process.is_ending && process.until.is_some_and(|until| until <= self.now)
        });
        if is_over && self.mistake != Mistake::OutlivesItsLease {
            self.summary.ended_alone += 1;
            self.terminate(node, id);
        }
    }

    /// SIGTERM; it takes up to its grace period.
    fn terminate(&mut self, node: usize, id: &InstanceId) {
        let Some(process) = self.machines[node].processes.get_mut(id).filter(|process| !process.is_ending)
        else {
            return;
        };
        process.is_ending = true;
        let life = process.life;
        self.note(|_| format!("node-{node} ends {id}"));
        let grace = GRACE.as_millis() as u64;
        self.after_ms(0, grace, Happening::Ends { node, id: id.clone(), life });
    }

    pub(super) fn ends(&mut self, node: usize, id: &InstanceId, life: u64) {
        let processes = &mut self.machines[node].processes;
        if processes.get(id).is_some_and(|process| process.life == life) {
            processes.remove(id);
            self.cut_requests(id);
            self.note(|_| format!("node-{node}: {id} has ended"));
        }
    }

    /// As a server does it: an older report is passed over.
    pub(super) fn reported(&mut self, node: usize, observed: &Observed) {
        if self.store_is_full() {
            return;
        }
        let key = keys::observed(&self.machines[node].id);
        let held = self.store.get(&key).value;
        let held = held.map(|entry| Observed::from_json(&entry.value).expect("only documents are stored"));
        if held.is_some_and(|held| held.sequence >= observed.sequence) {
            return;
        }
        self.txn(&[], vec![Op::Put { key, value: observed.to_json(), lease: None }]);
        self.machines[node].taken = Some(Observed { sequence: 0, ..observed.clone() });
    }

    /// A process dies by itself; the agent starts it again in its next turn, or when it has a lease for it.
    pub(super) fn crash(&mut self, node: usize) {
        let first = self.machines[node].processes.iter().find(|(_, process)| !process.is_ending);
        if let Some((id, life)) = first.map(|(id, process)| (id.clone(), process.life)) {
            self.ends(node, &id, life);
        }
    }
}
