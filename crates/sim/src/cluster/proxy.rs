//! Two proxies, each with the real view, threads that apply tables late, and a disk; and the requests that go through them.
//!
//! A proxy polls one server, and another one after a failure. What the servers heard of their proxies reaches whoever
//! plans as in the product: each writes its `served` document while it reaches the store, and the document goes with its
//! lease when it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_api::wire::{ProxyDocuments, ProxyPoll};
use rung_control::reconcile::{Event as Heard, PollId};
use rung_control::served::{self, Served};
use rung_ingress::view::{Effect, Event, View};
use rung_model::{AppName, Generation, InstanceId, RouteDocument, keys};
use rung_store::Op;

use super::handoff::Contact;
use super::{Happening, Mistake, PROXIES, SERVERS, Story};

const THREADS: usize = 2;
const LONG_POLL: Duration = Duration::from_secs(30);
/// Of a `served` document, as the product has it.
const SERVED_LEASE: Duration = Duration::from_secs(5);

pub struct Proxy {
    life: u64,
    /// `None`: its process is not running.
    view: Option<View>,
    threads: Vec<Table>,
    published: BTreeMap<u64, Vec<RouteDocument>>,
    polling: Option<u64>,
    next_tick: Option<Duration>,
    in_flight: BTreeMap<InstanceId, u64>,
    /// Outlives the process.
    disk: BTreeMap<AppName, RouteDocument>,
    /// Which one it polls.
    pub server: usize,
    pub mute_until: Duration,
    pub deaf_until: Duration,
    /// The highest that it has sent as acknowledged, in all its lives.
    pub acknowledged: Generation,
    /// The same since it had no disk: what it acknowledged is there through its restarts.
    pub holds: Generation,
    /// The newest routes that each of its threads has picked from in this life.
    newest: Vec<BTreeMap<AppName, Generation>>,
    pub contact: Contact,
}

#[derive(Clone, Default)]
struct Table {
    version: u64,
    documents: Vec<RouteDocument>,
}

/// A poll that waits at a server.
pub struct Poll {
    proxy: usize,
    life: u64,
    ticket: u64,
    id: PollId,
    after: Generation,
    whole: bool,
}

impl Proxy {
    pub fn new(number: usize) -> Self {
        Self {
            life: 0,
            view: None,
            threads: Vec::new(),
            published: BTreeMap::new(),
            polling: None,
            next_tick: None,
            in_flight: BTreeMap::new(),
            disk: BTreeMap::new(),
            server: number % SERVERS,
            mute_until: Duration::ZERO,
            deaf_until: Duration::ZERO,
            acknowledged: Generation::ZERO,
            holds: Generation::ZERO,
            newest: vec![BTreeMap::new(); THREADS],
            contact: Contact::NONE,
        }
    }

    pub fn sends_to(&self, id: &InstanceId) -> bool {
        self.in_flight.contains_key(id)
    }

    /// What one of its threads picks from.
    fn picks(&self, thread: usize) -> Vec<InstanceId> {
        let Some(table) = self.threads.get(thread) else { return Vec::new() };
        table.documents.iter().flat_map(listed).collect()
    }
}

/// Its disk is lost.
fn lose_disk(proxy: &mut Proxy) {
    proxy.disk.clear();
    proxy.holds = Generation::ZERO;
}

pub fn listed(document: &RouteDocument) -> BTreeSet<InstanceId> {
    let backends = document.backends.values();
    backends.flat_map(|backend| &backend.endpoints).map(|endpoint| endpoint.instance.clone()).collect()
}

pub fn draining(document: &RouteDocument) -> BTreeSet<InstanceId> {
    let backends = document.backends.values();
    backends.flat_map(|backend| &backend.draining).map(|endpoint| endpoint.instance.clone()).collect()
}

pub fn name(proxy: usize) -> String {
    format!("ingress-{proxy}")
}

impl Story {
    // Its process.

    pub(super) fn proxy_starts(&mut self, proxy: usize) {
        let held = &mut self.proxies[proxy];
        if held.view.is_some() {
            return;
        }
        held.life += 1;
        held.view = Some(View::new(THREADS));
        held.threads = vec![Table::default(); THREADS];
        held.newest = vec![BTreeMap::new(); THREADS];
        held.published.clear();
        (held.polling, held.next_tick) = (None, None);
        let documents = held.disk.values().cloned().collect();
        self.note(|_| format!("{} starts", name(proxy)));
        self.step_proxy(proxy, Event::Started { documents });
    }

    pub(super) fn kill_proxy(&mut self, proxy: usize) {
        let held = &mut self.proxies[proxy];
        if held.view.take().is_none() {
            return;
        }
        held.threads.clear();
        held.in_flight.clear();
        let (life, server, polling) = (held.life, held.server, held.polling.take());
        self.note(|_| format!("{} is killed", name(proxy)));
        if let Some(ticket) = polling {
            self.after_ms(0, 5, Happening::PollClosed { server, proxy, life, ticket });
        }
        if self.rng.u32(0..4) == 0 {
            // It picks from nothing, and begins like one that is new.
            lose_disk(&mut self.proxies[proxy]);
        }
        let longest = if self.rng.bool() { 100 } else { 15_000 };
        self.after_ms(5, longest, Happening::ProxyStarts(proxy));
    }

    /// Whether a poll of the process that runs now waits at a server.
    pub(super) fn polls_at(&self, proxy: usize, server: usize) -> bool {
        let is_its = |poll: &Poll| poll.proxy == proxy && self.is_proxy(proxy, poll.life);
        self.servers[server].polls.iter().any(is_its)
    }

    fn is_proxy(&self, proxy: usize, life: u64) -> bool {
        self.proxies[proxy].life == life && self.proxies[proxy].view.is_some()
    }

    fn step_proxy(&mut self, proxy: usize, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(view) = &mut self.proxies[proxy].view else { return };
            for effect in view.step(event, self.now) {
                events.extend(self.carry_out_of_proxy(proxy, effect));
            }
        }
        let wake = self.proxies[proxy].view.as_ref().and_then(View::next_wake);
        if let Some(at) = wake
            && self.proxies[proxy].next_tick.replace(at) != Some(at)
        {
            self.at(at.max(self.now), Happening::ProxyTick(proxy));
        }
    }

    fn carry_out_of_proxy(&mut self, proxy: usize, effect: Effect) -> Option<Event> {
        let life = self.proxies[proxy].life;
        match effect {
            Effect::Publish { version, documents } => {
                let documents = documents.into_iter().map(|document| (*document).clone()).collect();
                self.proxies[proxy].published.insert(version, documents);
                for thread in 0..THREADS {
                    let applied = Happening::TableApplied { proxy, life, thread, version };
                    let is_slow = self.rng.u32(0..10) == 0;
                    self.after_ms(0, if is_slow { 1500 } else { 6 }, applied);
                }
            }
            Effect::Keep(document) => {
                let is_kept = self.mistake != Mistake::ForgetsToKeep || self.rng.bool();
                if is_kept {
                    self.proxies[proxy].disk.insert(document.app.clone(), document);
                }
            }
            Effect::Forget(app) => {
                self.proxies[proxy].disk.remove(&app);
            }
            Effect::Count => return Some(self.counted(proxy)),
            Effect::Poll { ticket, poll, .. } => self.send_poll(proxy, ticket, poll),
            Effect::Refused { what } => self.note(|_| format!("{} refuses {what}", name(proxy))),
        }
        None
    }

    fn counted(&self, proxy: usize) -> Event {
        let held = &self.proxies[proxy];
        let draining = held.view.as_ref().map(View::draining).unwrap_or_default();
        let count = |id: &InstanceId| (id.clone(), held.in_flight.get(id).copied().unwrap_or(0));
        Event::Counted { draining: draining.into_iter().map(count).collect() }
    }

    pub(super) fn proxy_tick(&mut self, proxy: usize) {
        if self.proxies[proxy].next_tick.is_some_and(|at| at <= self.now) {
            self.proxies[proxy].next_tick = None;
            self.step_proxy(proxy, Event::Tick);
        }
    }

    pub(super) fn table_applied(&mut self, proxy: usize, life: u64, thread: usize, version: u64) {
        if !self.is_proxy(proxy, life) {
            return;
        }
        let held = &mut self.proxies[proxy];
        if held.threads[thread].version < version {
            let documents = held.published[&version].clone();
            held.threads[thread] = Table { version, documents };
            self.audit_table(proxy, thread);
        }
        self.step_proxy(proxy, Event::Applied { thread, version });
    }

    // Its polls.

    fn send_poll(&mut self, proxy: usize, ticket: u64, poll: ProxyPoll) {
        let held = &mut self.proxies[proxy];
        let (life, server) = (held.life, held.server);
        held.acknowledged = held.acknowledged.max(poll.after);
        held.holds = held.holds.max(poll.after);
        if let Some(ticket) = held.polling.replace(ticket) {
            self.after_ms(0, 8, Happening::PollClosed { server, proxy, life, ticket });
        }
        let is_lost = !self.faults_have_ended && self.rng.u32(0..40) == 0;
        if is_lost || self.now < self.proxies[proxy].mute_until {
            return self.poll_is_lost(proxy, life, ticket);
        }
        self.send(Happening::RoutesPolled { server, proxy, life, ticket, poll });
    }

    /// Noticed by the proxy after a while.
    fn poll_is_lost(&mut self, proxy: usize, life: u64, ticket: u64) {
        let noticed = self.now + self.seconds(1, 10);
        self.at(noticed, Happening::RoutesFailed { proxy, life, ticket });
    }

    pub(super) fn routes_failed(&mut self, proxy: usize, life: u64, ticket: u64) {
        if !self.is_proxy(proxy, life) || self.proxies[proxy].polling != Some(ticket) {
            return;
        }
        let left = self.proxies[proxy].server;
        self.after_ms(0, 8, Happening::PollClosed { server: left, proxy, life, ticket });
        let server = self.rng.usize(0..SERVERS);
        let held = &mut self.proxies[proxy];
        held.polling = None;
        held.server = server;
        self.step_proxy(proxy, Event::Failed { ticket });
        if self.mistake == Mistake::BeginsAnewElsewhere && server != left {
            self.begins_anew(proxy);
        }
    }

    /// Forgets what it knows, and asks as if it held nothing; its threads go on.
    fn begins_anew(&mut self, proxy: usize) {
        let held = &mut self.proxies[proxy];
        held.life += 1;
        held.view = Some(View::new(THREADS));
        held.next_tick = None;
        held.published.clear();
        held.threads.iter_mut().for_each(|thread| thread.version = 0);
        self.step_proxy(proxy, Event::Started { documents: Vec::new() });
    }

    pub(super) fn routes_answered(&mut self, proxy: usize, life: u64, ticket: u64, answer: ProxyDocuments) {
        if !self.is_proxy(proxy, life) || self.proxies[proxy].polling != Some(ticket) {
            return;
        }
        if self.now < self.proxies[proxy].deaf_until {
            return self.poll_is_lost(proxy, life, ticket);
        }
        self.proxies[proxy].polling = None;
        self.note(|_| format!("{} is told {} by a server", name(proxy), answer.generation));
        self.step_proxy(proxy, Event::Answered { ticket, answer });
    }

    // At a server.

    pub(super) fn routes_polled(
        &mut self,
        server: usize,
        (proxy, life, ticket): (usize, u64, u64),
        poll: ProxyPoll,
    ) {
        if !self.is_proxy(proxy, life) || self.proxies[proxy].polling != Some(ticket) {
            return;
        }
        if self.now > self.servers[server].served_until {
            // It is cut off, and sends proxies to the others.
            return self.send(Happening::RoutesFailed { proxy, life, ticket });
        }
        self.polls += 1;
        let id = PollId(self.polls);
        let (after, whole) = (poll.after, poll.whole);
        self.servers[server].polls.push(Poll { proxy, life, ticket, id, after, whole });
        self.at(self.now + LONG_POLL, Happening::PollOver { server, poll: id });
        let mut acknowledged = after;
        let mut draining: Vec<(InstanceId, u64)> = poll.draining.into_iter().collect();
        if self.mistake == Mistake::AcknowledgesForTheProxy {
            acknowledged = Generation::new(u64::MAX, u64::MAX);
            draining.clear();
        }
        self.step(server, Heard::Polled { proxy: name(proxy), poll: id, acknowledged, draining });
    }

    /// Polls for which there is news.
    pub(super) fn answer_proxies(&mut self, server: usize) {
        let held = &mut self.servers[server];
        let reconcile = &held.reconcile;
        let mut answers = Vec::new();
        held.polls.retain(|poll| match reconcile.routes_after(poll.after, poll.whole) {
            Some(answer) => {
                answers.push((poll.proxy, poll.life, poll.ticket, poll.id, answer));
                false
            }
            None => true,
        });
        for (proxy, life, ticket, poll, answer) in answers {
            self.send(Happening::RoutesAnswered { proxy, life, ticket, answer: Box::new(answer) });
            self.poll_ended(server, proxy, poll);
        }
    }

    fn poll_ended(&mut self, server: usize, proxy: usize, poll: PollId) {
        self.step(server, Heard::PollEnded { proxy: name(proxy), poll });
    }

    /// It has waited for long enough.
    pub(super) fn poll_over(&mut self, server: usize, id: PollId) {
        let polls = &mut self.servers[server].polls;
        let Some(at) = polls.iter().position(|poll| poll.id == id) else { return };
        let Poll { proxy, life, ticket, after, .. } = polls.remove(at);
        let answer =
            ProxyDocuments { generation: after, whole: false, documents: Vec::new(), removed: Vec::new() };
        self.send(Happening::RoutesAnswered { proxy, life, ticket, answer: Box::new(answer) });
        self.poll_ended(server, proxy, id);
    }

    /// The proxy dropped the connection.
    pub(super) fn poll_closed(&mut self, server: usize, proxy: usize, life: u64, ticket: u64) {
        let is_it = |poll: &mut Poll| (poll.proxy, poll.life, poll.ticket) == (proxy, life, ticket);
        let closed: Vec<Poll> = self.servers[server].polls.extract_if(.., is_it).collect();
        for poll in closed {
            self.poll_ended(server, proxy, poll.id);
        }
    }

    /// The server's process died: what waited there fails.
    pub(super) fn polls_fail(&mut self, server: usize) {
        for Poll { proxy, life, ticket, .. } in std::mem::take(&mut self.servers[server].polls) {
            self.send(Happening::RoutesFailed { proxy, life, ticket });
        }
    }

    /// Each server's document of its own proxies, and its lease.
    pub(super) fn tell_served(&mut self, server: usize) {
        self.after_ms(100, 1500, Happening::TellServed(server));
        let key = served::key(&super::server::id(server));
        let is_awake = self.now >= self.servers[server].paused_until;
        let stored = self.store.get(&key).value;
        if !self.reaches_the_store(server) || !is_awake {
            if stored.is_some() && self.now > self.servers[server].served_until {
                self.txn(&[], vec![Op::Delete { key }]);
            }
            return;
        }
        self.servers[server].served_until = self.now + SERVED_LEASE;
        if self.mistake == Mistake::FollowersAreMute || self.store_is_full() {
            return;
        }
        let elapsed = self.now - self.servers[server].began;
        let mut told = Served::of(self.servers[server].reconcile.proxies(), elapsed);
        if self.mistake != Mistake::RestartsUnnoticed {
            told.life = self.servers[server].life;
        }
        let value = serde_json::to_vec(&told).expect("names and numbers serialize");
        if stored.is_none_or(|stored| stored.value != value) {
            self.txn(&[], vec![Op::Put { key, value, lease: None }]);
        }
    }

    // Requests.

    pub(super) fn request(&mut self, proxy: usize) {
        self.after_ms(20, 300, Happening::Request(proxy));
        let picks = self.proxies[proxy].picks(self.rng.usize(0..THREADS));
        let Some(id) = self.rng.choice(picks) else { return };
        self.summary.requests += 1;
        self.audit_request(proxy, &id);
        let is_taken = self.machines.iter().any(|machine| machine.processes.contains_key(&id));
        if !is_taken {
            return;
        }
        let held = &mut self.proxies[proxy];
        *held.in_flight.entry(id.clone()).or_default() += 1;
        let life = held.life;
        let longest = if self.rng.u32(0..10) == 0 { 6000 } else { 80 };
        self.after_ms(1, longest, Happening::RequestEnds { proxy, life, id });
    }

    pub(super) fn request_ends(&mut self, proxy: usize, life: u64, id: &InstanceId) {
        if !self.is_proxy(proxy, life) {
            return;
        }
        let Some(count) = self.proxies[proxy].in_flight.get_mut(id) else { return };
        *count -= 1;
        if *count == 0 {
            self.proxies[proxy].in_flight.remove(id);
            self.drained(proxy, id);
        }
    }

    /// An instance's process is gone: what was in flight there is cut.
    pub(super) fn cut_requests(&mut self, id: &InstanceId) {
        for proxy in 0..PROXIES {
            if self.proxies[proxy].in_flight.remove(id).is_some() {
                self.drained(proxy, id);
            }
        }
    }

    fn drained(&mut self, proxy: usize, id: &InstanceId) {
        let view = self.proxies[proxy].view.as_ref();
        if view.is_some_and(|view| view.draining().contains(id)) {
            let counted = self.counted(proxy);
            self.step_proxy(proxy, counted);
        }
    }

    // The audit.

    /// Invariant 3, of tables: whichever server a proxy asks.
    fn audit_table(&mut self, proxy: usize, thread: usize) {
        let held = &mut self.proxies[proxy];
        let newest = &mut held.newest[thread];
        let mut older = None;
        for document in &held.threads[thread].documents {
            let known = newest.entry(document.app.clone()).or_insert(document.generation);
            older = (document.generation < *known).then_some(document.generation).or(older);
            *known = document.generation.max(*known);
        }
        if let Some(older) = older {
            self.fail(format!("the routes of {} went back to {older}", name(proxy)));
        }
    }

    /// Invariant 7: when faults stop, every proxy picks from what runs.
    pub(super) fn look_at_routes(&mut self) {
        let alive: BTreeSet<InstanceId> = self.alive_of("web");
        let read = self.store.list(keys::ROUTES, None, usize::MAX).value.entries;
        let stored = read.iter().map(|entry| {
            serde_json::from_slice::<RouteDocument>(&entry.value).expect("only documents are stored")
        });
        let routed: BTreeSet<InstanceId> = stored.flat_map(|document| listed(&document)).collect();
        if routed != alive {
            self.fail(format!("it is not at rest: {alive:?} are alive, {routed:?} are routed"));
        }
        for proxy in 0..PROXIES {
            for thread in 0..THREADS {
                let picks: BTreeSet<InstanceId> = self.proxies[proxy].picks(thread).into_iter().collect();
                if picks != alive {
                    let who = name(proxy);
                    self.fail(format!("it is not at rest: {who} picks from {picks:?}, {alive:?} are alive"));
                }
            }
        }
    }
}
