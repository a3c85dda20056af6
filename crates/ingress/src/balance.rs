//! Which instance gets a request: the less loaded of two random ones, passing over those that fail.
//!
//! Loads are requests in flight, counted in atomics that all threads share and that survive changes of the table:
//! they belong to the instance's id. Instances that refuse or reset connections are passed over for a while
//! (ejection); each time in a row the while doubles. When all are ejected, ejection is ignored: a guess is better
//! than a certain error.
//!
//! Where two are equally busy and one takes more than twice as long, the faster one gets the request. An instance that has
//! just come gets a tenth of its share at first, and all of it a few seconds later: caches are cold and compilers busy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rung_api::wire::CohortTraffic;
use rung_model::route::Rate;
use rung_model::tally::Subject;
use rung_model::{AppName, DeploymentNumber, InstanceId, ServiceName};
use tokio::sync::Notify;

use crate::clock::now_ms;
use crate::jwks::Jwks;
use crate::limiter::Limiter;
use crate::overload::Gauge;
use crate::tally::Tallied;
use crate::traffic::CohortCounts;
use crate::upstream::Relay;

/// The first ejection: the time in which a crashed process is usually up again.
const EJECT_FIRST: Duration = Duration::from_millis(250);
const EJECT_MAX: Duration = Duration::from_secs(30);
/// Long enough for a cache to fill, short against a deploy.
const SLOW_START: Duration = Duration::from_secs(5);
/// The whole share, in tenths.
const WARM: u64 = 10;
/// As slow as an application in trouble.
const FAILURE_COUNTS_AS: Duration = Duration::from_secs(1);
/// Connections that break before an answer may be the request's fault; so many in a row are the instance's.
const BROKEN_BEFORE_EJECTION: u32 = 3;

/// What all threads know of one instance.
#[derive(Debug)]
pub(crate) struct InstanceLoad {
    pub(crate) id: InstanceId,
    /// Names the instance in pools; never given twice.
    pub(crate) slot: u64,
    pub(crate) service: Arc<ServiceLoad>,
    pub(crate) tallied: Arc<Tallied>,
    in_flight: AtomicU32,
    broken: AtomicU32,
    ejections: AtomicU32,
    ejected_until_ms: AtomicU64,
    /// How long it takes, in microseconds, the last answers counting most; 0: not known.
    latency_us: AtomicU32,
    /// When it shall have its whole share; 0 from then on.
    warming_until_ms: AtomicU64,
    draining: AtomicBool,
    drained: Arc<Notify>,
    /// Used by routes that bound what an instance gets.
    pub(crate) gauge: Gauge,
}

impl InstanceLoad {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    pub(crate) fn is_ejected(&self) -> bool {
        // Zero almost always: then the clock is not read.
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        until != 0 && now_ms() < until
    }

    /// Answers that fail fast must not draw requests to an instance that does nothing else.
    pub(crate) fn took(&self, time: Duration, status: u16) {
        let time = if status >= 500 { time.max(FAILURE_COUNTS_AS) } else { time };
        let sample = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
        let before = self.latency_us.load(Ordering::Relaxed);
        // Threads may overwrite each other's word now and then; it is an estimate.
        let after = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.latency_us.store(after.max(1), Ordering::Relaxed);
    }

    /// Its share of its weight, in tenths.
    fn warmth(&self) -> u64 {
        let until = self.warming_until_ms.load(Ordering::Relaxed);
        if until == 0 {
            return WARM;
        }
        let left = until.saturating_sub(now_ms());
        if left == 0 {
            self.warming_until_ms.store(0, Ordering::Relaxed);
        }
        WARM.saturating_sub(left * WARM / SLOW_START.as_millis() as u64).max(1)
    }

    /// Neither passed over nor warming: all of its share, without a look at the clock.
    fn is_plain(&self) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) == 0
            && self.warming_until_ms.load(Ordering::Relaxed) == 0
    }

    /// It answered: whatever was held against it is forgotten.
    pub(crate) fn succeeded(&self) {
        if self.broken.load(Ordering::Relaxed) != 0 || self.ejections.load(Ordering::Relaxed) != 0 {
            self.forgive();
        }
    }

    fn forgive(&self) {
        self.broken.store(0, Ordering::Relaxed);
        self.ejections.store(0, Ordering::Relaxed);
        self.ejected_until_ms.store(0, Ordering::Relaxed);
    }

    /// No connection could be made: nothing listens, which one attempt shows well enough.
    pub(crate) fn unreachable(&self) {
        self.eject();
    }

    /// A fresh connection ended before a byte of the answer.
    pub(crate) fn broke(&self) {
        if self.broken.fetch_add(1, Ordering::Relaxed) + 1 >= BROKEN_BEFORE_EJECTION {
            self.broken.store(0, Ordering::Relaxed);
            self.eject();
        }
    }

    fn eject(&self) {
        if self.is_ejected() {
            return;
        }
        let before = self.ejections.fetch_add(1, Ordering::Relaxed);
        let time = EJECT_FIRST.saturating_mul(1 << before.min(10)).min(EJECT_MAX);
        self.ejected_until_ms.store(now_ms() + time.as_millis() as u64, Ordering::Relaxed);
    }
}

/// Counts one request (or tunnel) as in flight for as long as it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<InstanceLoad>);

impl InFlight {
    pub(crate) fn begin(load: &Arc<InstanceLoad>) -> Self {
        load.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(load.clone())
    }

    pub(crate) fn load(&self) -> &Arc<InstanceLoad> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        if before == 1 && self.0.draining.load(Ordering::Acquire) {
            self.0.drained.notify_one();
        }
    }
}

/// What all threads know of one service.
#[derive(Debug)]
pub(crate) struct ServiceLoad {
    pub(crate) app: String,
    pub(crate) name: String,
    pub(crate) slot: usize,
    /// Requests that wait for an instance.
    pub(crate) held: AtomicU32,
    /// Requests that wait for room at an instance, and what tells one of them that there may be some.
    pub(crate) queued: AtomicU32,
    pub(crate) room: Notify,
    /// How many visitors were drawn a place.
    pub(crate) drawn: AtomicU64,
}

/// Gives each instance and service the same counters in every table. Owned by the thread that builds tables.
#[derive(Debug)]
pub(crate) struct Registry {
    instances: HashMap<InstanceId, Arc<InstanceLoad>>,
    services: HashMap<(String, String), Arc<ServiceLoad>>,
    /// By what they limit and how.
    limiters: HashMap<String, Arc<Limiter>>,
    /// By where they are published.
    jwks: HashMap<String, Arc<Jwks>>,
    /// Of apps that are measured.
    cohorts: BTreeMap<(AppName, DeploymentNumber), Arc<CohortCounts>>,
    /// Each app's routes, by their names.
    routes: HashMap<(AppName, String), Arc<Tallied>>,
    /// Something that was counted is not there any more.
    has_retired: bool,
    /// The last one that was given, to an instance or a route.
    slot: u64,
    next_service: usize,
    /// Notified when a draining instance has no request in flight any more.
    pub(crate) drained: Arc<Notify>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            instances: HashMap::new(),
            services: HashMap::new(),
            limiters: HashMap::new(),
            jwks: HashMap::new(),
            cohorts: BTreeMap::new(),
            routes: HashMap::new(),
            has_retired: false,
            slot: 0,
            next_service: 0,
            drained: Arc::new(Notify::new()),
        }
    }

    fn instance(&mut self, id: &InstanceId, service: &Arc<ServiceLoad>) -> Arc<InstanceLoad> {
        if let Some(load) = self.instances.get(id) {
            return load.clone();
        }
        self.slot += 1;
        let name = "names in a document are names";
        let subject = Subject::Instance {
            app: AppName::new(&*service.app).expect(name),
            service: ServiceName::new(&*service.name).expect(name),
            instance: id.clone(),
        };
        let load = Arc::new(InstanceLoad {
            id: id.clone(),
            slot: self.slot,
            service: service.clone(),
            tallied: Arc::new(Tallied::new(subject, self.slot)),
            in_flight: AtomicU32::new(0),
            broken: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until_ms: AtomicU64::new(0),
            latency_us: AtomicU32::new(0),
            warming_until_ms: AtomicU64::new(0),
            draining: AtomicBool::new(true),
            drained: self.drained.clone(),
            gauge: Gauge::default(),
        });
        self.instances.insert(id.clone(), load.clone());
        load
    }

    /// The counters of an instance that gets requests. One that was not routed before is healthy again.
    pub(crate) fn routed(&mut self, id: &InstanceId, service: &Arc<ServiceLoad>) -> Arc<InstanceLoad> {
        let load = self.instance(id, service);
        if load.draining.swap(false, Ordering::AcqRel) {
            load.forgive();
            load.gauge.forget();
            load.latency_us.store(0, Ordering::Relaxed);
            load.warming_until_ms.store(now_ms() + SLOW_START.as_millis() as u64, Ordering::Relaxed);
        }
        load
    }

    pub(crate) fn service(&mut self, app: &str, service: &str) -> Arc<ServiceLoad> {
        let key = (app.to_owned(), service.to_owned());
        if let Some(load) = self.services.get(&key) {
            return load.clone();
        }
        let load = Arc::new(ServiceLoad {
            app: app.to_owned(),
            name: service.to_owned(),
            slot: self.next_service,
            held: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            room: Notify::new(),
            drawn: AtomicU64::new(0),
        });
        self.next_service += 1;
        self.services.insert(key, load.clone());
        load
    }

    /// The buckets of a limit, which a change of other things leaves as they are.
    pub(crate) fn limiter(&mut self, name: String, rate: Rate) -> Arc<Limiter> {
        self.limiters.entry(name).or_insert_with(|| Arc::new(Limiter::new(rate))).clone()
    }

    /// An issuer's keys, followed from the first look on.
    pub(crate) fn jwks(&mut self, address: &str) -> Arc<Jwks> {
        let follow = || Jwks::follow(address.to_owned());
        self.jwks.entry(address.to_owned()).or_insert_with(follow).clone()
    }

    /// Every limit by its name, which is the same in every ingress.
    pub(crate) fn limits(&self) -> Vec<(String, Arc<Limiter>)> {
        self.limiters.iter().map(|(name, limiter)| (name.clone(), limiter.clone())).collect()
    }

    pub(crate) fn has_limits(&self) -> bool {
        !self.limiters.is_empty()
    }

    /// Forgets the limits and issuers that no table has any more.
    pub(crate) fn retain_policies(&mut self) {
        self.jwks.retain(|_, jwks| Arc::strong_count(jwks) > 1);
        self.limiters.retain(|_, limiter| Arc::strong_count(limiter) > 1);
    }

    /// Where the requests of a route are counted.
    pub(crate) fn route(&mut self, app: &AppName, route: String) -> Arc<Tallied> {
        let slot = &mut self.slot;
        let tallied = self.routes.entry((app.clone(), route)).or_insert_with_key(|(app, route)| {
            *slot += 1;
            Arc::new(Tallied::new(Subject::Route { app: app.clone(), route: route.clone() }, *slot))
        });
        tallied.clone()
    }

    /// Forgets the routes that no table has any more.
    pub(crate) fn retain_routes(&mut self) {
        let before = self.routes.len();
        self.routes.retain(|_, tallied| Arc::strong_count(tallied) > 1);
        self.has_retired |= self.routes.len() < before;
    }

    /// Everything by which requests are counted.
    pub(crate) fn tallied(&self) -> Vec<Arc<Tallied>> {
        self.routes.values().chain(self.instances.values().map(|load| &load.tallied)).cloned().collect()
    }

    /// Whether something is not counted any more since this was last asked.
    pub(crate) fn has_retired(&mut self) -> bool {
        std::mem::take(&mut self.has_retired)
    }

    /// The counts of a cohort.
    pub(crate) fn cohort(&mut self, app: &AppName, cohort: DeploymentNumber) -> Arc<CohortCounts> {
        self.cohorts.entry((app.clone(), cohort)).or_default().clone()
    }

    /// Forgets the counts of cohorts that are not asked for any more.
    pub(crate) fn retain_cohorts(&mut self, is_named: impl Fn(&AppName, DeploymentNumber) -> bool) {
        self.cohorts.retain(|(app, cohort), _| is_named(app, *cohort));
    }

    /// The totals of every cohort.
    pub(crate) fn traffic(&self) -> Vec<CohortTraffic> {
        let totals = self.cohorts.iter().map(|((app, cohort), counts)| CohortTraffic {
            app: app.clone(),
            cohort: *cohort,
            counts: counts.read(),
        });
        totals.collect()
    }

    pub(crate) fn is_measuring(&self) -> bool {
        !self.cohorts.is_empty()
    }

    /// Marks what is not in `routed` as draining, and forgets what nobody names or uses.
    pub(crate) fn retire(&mut self, is_routed: impl Fn(u64) -> bool, is_named: impl Fn(&InstanceId) -> bool) {
        let before = self.instances.len();
        self.instances.retain(|id, load| {
            let routed = is_routed(load.slot);
            if !routed {
                load.draining.store(true, Ordering::Release);
            }
            routed || is_named(id) || load.in_flight() > 0
        });
        self.has_retired |= self.instances.len() < before;
    }

    pub(crate) fn in_flight(&self, id: &InstanceId) -> u64 {
        self.instances.get(id).map_or(0, |load| u64::from(load.in_flight()))
    }
}

/// One endpoint of a service in a table.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: std::net::SocketAddr,
    /// How it is reached on another machine.
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) weight: u32,
    pub(crate) load: Arc<InstanceLoad>,
    /// `None`: nobody measures it.
    pub(crate) counts: Option<Arc<CohortCounts>>,
}

/// Instances that this request was sent to without success.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tried {
    slots: Vec<u64>,
}

impl Tried {
    pub(crate) fn add(&mut self, slot: u64) {
        if !self.slots.contains(&slot) {
            self.slots.push(slot);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn contains(&self, slot: u64) -> bool {
        self.slots.contains(&slot)
    }
}

/// Picks a target: untried and not ejected if there is one, else untried, else any. `None` when there is none at all.
pub(crate) fn pick<'t>(targets: &'t [Target], tried: &Tried) -> Option<&'t Target> {
    if let [only] = targets {
        return Some(only);
    }
    let fresh = |target: &Target| !tried.contains(target.load.slot);
    // The usual case needs no list: everything is eligible.
    if tried.slots.is_empty() && targets.iter().all(|target| target.load.is_plain()) {
        return choose(targets, weight, |_| true);
    }
    choose(targets, warm_weight, |target| fresh(target) && !target.load.is_ejected())
        .or_else(|| choose(targets, warm_weight, fresh))
        .or_else(|| choose(targets, warm_weight, |_| true))
}

fn weight(target: &Target) -> u64 {
    u64::from(target.weight)
}

fn warm_weight(target: &Target) -> u64 {
    u64::from(target.weight) * target.load.warmth()
}

/// Two draws by weight, then the one with fewer requests in flight for its weight, then the faster one.
fn choose(
    targets: &[Target],
    weight: impl Fn(&Target) -> u64,
    eligible: impl Fn(&Target) -> bool,
) -> Option<&Target> {
    let total: u64 = targets.iter().filter(|t| eligible(t)).map(&weight).sum();
    if total == 0 {
        return targets.iter().find(|t| eligible(t));
    }
    let draw = || {
        let mut at = fastrand::u64(0..total);
        targets.iter().filter(|t| eligible(t)).find(|target| {
            let weight = weight(target);
            let is_it = at < weight;
            at = at.saturating_sub(weight);
            is_it
        })
    };
    let (first, second) = (draw()?, draw()?);
    let load = |target: &Target| u64::from(target.load.in_flight());
    let busy = (load(first) * u64::from(second.weight), load(second) * u64::from(first.weight));
    let is_better = busy.1 < busy.0 || (busy.1 == busy.0 && is_much_faster(second, first));
    Some(if is_better { second } else { first })
}

/// A factor of two is more than chance; what is not known says nothing.
fn is_much_faster(one: &Target, other: &Target) -> bool {
    let latency = |target: &Target| u64::from(target.load.latency_us.load(Ordering::Relaxed));
    let (one, other) = (latency(one), latency(other));
    one != 0 && other > 2 * one
}

/// Keeps retries from multiplying the load of a service that is failing anyway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryBudget {
    tokens: f32,
    refilled_ms: u64,
}

/// Each request earns a fifth of a retry.
const RETRY_SHARE: f32 = 0.2;
/// Enough for every connection of a burst to meet a crashed instance once.
const RETRY_BURST: f32 = 200.0;
/// A service with few requests may retry so many a second anyway.
const RETRY_FLOOR_PER_MS: f32 = 10.0 / 1000.0;

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self { tokens: RETRY_BURST, refilled_ms: now_ms() }
    }

    pub(crate) fn earn(&mut self) {
        self.tokens = (self.tokens + RETRY_SHARE).min(RETRY_BURST);
    }

    pub(crate) fn spend(&mut self) -> bool {
        let now = now_ms();
        let elapsed = now.saturating_sub(self.refilled_ms) as f32;
        self.refilled_ms = now;
        self.tokens = (self.tokens + elapsed * RETRY_FLOOR_PER_MS).min(RETRY_BURST);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(registry: &mut Registry, weights: &[u32]) -> Vec<Target> {
        let service = registry.service("shop", "web");
        let target = |(n, weight): (usize, &u32)| Target {
            address: "127.0.0.1:1".parse().unwrap(),
            relay: None,
            weight: *weight,
            load: registry.routed(&InstanceId::new(format!("a-{n}")).unwrap(), &service),
            counts: None,
        };
        let targets: Vec<Target> = weights.iter().enumerate().map(target).collect();
        for target in &targets {
            target.load.warming_until_ms.store(0, Ordering::Relaxed);
        }
        targets
    }

    fn share(targets: &[Target], of: usize) -> f64 {
        let slot = targets[of].load.slot;
        let tried = Tried::default();
        let hits = (0..20_000).filter(|_| pick(targets, &tried).unwrap().load.slot == slot).count();
        hits as f64 / 20_000.0
    }

    #[test]
    fn at_equal_load_requests_are_shared_by_weight() {
        let targets = targets(&mut Registry::new(), &[95, 5]);
        let canary = share(&targets, 1);
        assert!((0.04..0.06).contains(&canary), "a weight of 5 in 100 got {canary} of the requests");
    }

    #[test]
    fn the_busier_of_two_is_passed_over() {
        let targets = targets(&mut Registry::new(), &[1, 1]);
        let _busy: Vec<_> = (0..10).map(|_| InFlight::begin(&targets[0].load)).collect();
        let busy = share(&targets, 0);
        assert!(busy < 0.3, "the instance with ten requests in flight got {busy} of the next ones");
    }

    /// Its time out does not end while the story is told, however slow the machine is.
    fn eject_for_long(load: &InstanceLoad) {
        load.unreachable();
        assert!(load.is_ejected(), "one refused connection is enough");
        load.ejected_until_ms.store(u64::MAX, Ordering::Relaxed);
    }

    #[test]
    fn an_ejected_instance_gets_nothing_unless_it_is_the_last() {
        let targets = targets(&mut Registry::new(), &[1, 1]);
        eject_for_long(&targets[0].load);
        assert_eq!(share(&targets, 0), 0.0, "an ejected instance got requests");
        eject_for_long(&targets[1].load);
        let again = share(&targets, 0);
        assert!((0.4..0.6).contains(&again), "with all ejected, one got {again} of the requests");
        targets[1].load.succeeded();
        assert_eq!(share(&targets, 0), 0.0, "the one that answers is not preferred");
    }

    #[test]
    fn of_two_that_are_equally_busy_the_much_faster_one_is_taken() {
        let targets = targets(&mut Registry::new(), &[1, 1]);
        targets[0].load.took(Duration::from_millis(30), 200);
        targets[1].load.took(Duration::from_millis(10), 200);
        let slow = share(&targets, 0);
        assert!((0.2..0.3).contains(&slow), "one that takes three times as long got {slow} of the requests");
        for _ in 0..50 {
            targets[1].load.took(Duration::from_micros(100), 503);
        }
        let failing = share(&targets, 1);
        assert!(failing < 0.3, "one that fails fast got {failing} of the requests");
    }

    #[test]
    fn who_has_just_come_gets_a_small_share_at_first() {
        let targets = targets(&mut Registry::new(), &[1, 1]);
        let warm_at = |ms: u64| targets[0].load.warming_until_ms.store(ms, Ordering::Relaxed);
        warm_at(now_ms() + SLOW_START.as_millis() as u64);
        let first = share(&targets, 0);
        assert!((0.05..0.35).contains(&first), "a new instance got {first} of the requests at once");
        warm_at(now_ms().max(1));
        let later = share(&targets, 0);
        assert!((0.45..0.55).contains(&later), "it got {later} of the requests after its slow start");
        assert!(targets[0].load.is_plain(), "the clock is looked at for ever");
    }

    #[test]
    fn a_tried_instance_is_passed_over_while_there_is_another() {
        let targets = targets(&mut Registry::new(), &[1, 1, 0]);
        let mut tried = Tried::default();
        tried.add(targets[0].load.slot);
        for _ in 0..100 {
            assert_eq!(pick(&targets, &tried).unwrap().load.slot, targets[1].load.slot);
        }
        tried.add(targets[1].load.slot);
        assert_eq!(pick(&targets, &tried).unwrap().load.slot, targets[2].load.slot);
    }

    #[test]
    fn retries_end_when_everything_fails() {
        let mut budget = RetryBudget::new();
        let granted = (0..2000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        let granted = granted.count();
        assert!(granted < 700, "{granted} of 2000 failing requests were sent again");
        assert!(granted > 300, "only {granted} of 2000 were sent again");
    }
}
