//! What shall run where, and what is routed.
//!
//! [`plan`] is a function from the world (what the store holds), the proxies' acknowledgements and a clock to a
//! [`Plan`]: the documents to be written next, each with the revision it replaces, and when to look again. It is
//! level-triggered: it does not know what happened, only what is, so that running it twice, or after a crash, or in
//! the middle of its own half-written plan, is the same as running it once.
//!
//! The way through, in the order of [`plan`]:
//! - [`world`]: the index of the store, kept by its events; equal to one that is built from scratch.
//! - [`rollout`]: moves each deployment on by its phases, and by the steps of its `course`.
//! - `aftercare`: what goes on after a success: warm instances, and the watch for a regression.
//! - [`reconcile`]: gives each service its instances, and ends those that are not wanted, in the handoff's order.
//! - [`liveness`]: which nodes are lost, by what their agents let be heard.
//! - [`schedule`]: chooses the node, or says for each node why not; [`preempt`] makes room for what matters more, and
//!   [`rebalance`] finds better places when there are any.
//! - [`lease`]: when an exclusive instance on a lost node has ended for sure.
//! - [`addresses`]: where services are reached from inside the cluster.
//! - [`routes`]: which instances get requests.
//! - [`jobs`]: which scheduled times have come, and what becomes of each.
//!
//! What it deliberately does not do: no I/O, no clock, no randomness, no async, and nothing is remembered here
//! between two plans beside [`Progress`], which holds when timers began and what was counted since.

pub mod addresses;
mod aftercare;
mod course;
mod draft;
mod fleet;
pub mod jobs;
pub mod lease;
pub mod liveness;
mod numbers;
mod placed;
mod preempt;
pub mod proxies;
pub mod rebalance;
pub mod reconcile;
pub mod rollout;
mod roster;
pub mod routes;
pub mod schedule;
mod standby;
mod told;
pub mod traffic;
mod unknown;
pub mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use rung_model::{AppName, DeploymentNumber, InstanceId, JobName, ReleaseNumber, RunId};

pub use draft::SHARED_MAX;
pub use liveness::Liveness;
pub use proxies::{Proxies, Proxy};
pub use schedule::{Waiting, WaitingRun};
pub use traffic::Traffic;
pub use unknown::rewrite;
pub use world::{Held, World};

use crate::draft::Draft;

/// Everything a plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub world: &'a World,
    pub proxies: &'a Proxies,
    pub liveness: &'a Liveness,
    pub traffic: &'a Traffic,
    pub clock: Clock,
    /// So many writes of assignments share a step, at most: [`SHARED_MAX`], but where steps shall be small.
    pub shared_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Monotonic, since this leadership began; what every timer counts with.
    pub elapsed: Duration,
    /// For display, and for what is due by it: it may step.
    pub wall: Timestamp,
}

/// When timers began, in this leadership. Lost with it: timers then begin anew, so a step may take longer after a
/// change of leader but is never skipped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Up to when a deployment's time was taken off its `remaining`.
    accounted: BTreeMap<(AppName, DeploymentNumber), Duration>,
    /// When the un-routing of an instance was first seen as acknowledged by all.
    unrouted: BTreeMap<InstanceId, Duration>,
    /// When an instance was first seen as written to stop, on a node that is lost.
    stopped: BTreeMap<InstanceId, Duration>,
    /// Since when the nodes have been the same, for [`rebalance`].
    calm: rebalance::Calm,
    /// The next time of each job's schedule, by the release and the time it was worked out from.
    next_times: BTreeMap<(AppName, JobName), (ReleaseNumber, Timestamp, Option<Timestamp>)>,
    /// When runs that failed are tried again.
    retries: BTreeMap<RunId, Duration>,
    /// What speaks for and against releases that are judged, up to the last look.
    judged: BTreeMap<(AppName, DeploymentNumber), rollout::judge::Judging>,
}

/// What to do next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In this order, as far as they ask for one; each is one transaction, and any prefix of them keeps the invariants.
    pub steps: Vec<Step>,
    /// What keeps instances from being placed or an app from what is desired.
    pub waiting: Vec<Waiting>,
    /// Runs that wait for a node.
    pub waiting_runs: Vec<WaitingRun>,
    /// When a timer of this plan ends, on the clock's `elapsed`. Look again then at the latest.
    pub wake_at: Option<Duration>,
}

/// Writes that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// For the log, in a few words.
    pub why: String,
    pub writes: Vec<Write>,
    pub order: Order,
}

/// What of its plan must be written before a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All that is before it: it may rest on that.
    AfterAll,
    /// All but those of its kind: assignments say the whole of their nodes, each by itself, and any of them may be written
    /// without the others.
    Apart,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub key: String,
    /// `None` deletes.
    pub value: Option<Vec<u8>>,
    /// The revision of the document that this replaces; `None` when there was none.
    pub replaces: Option<u64>,
}

/// Makes the next plan.
pub fn plan(input: Input<'_>, progress: &mut Progress) -> Plan {
    let mut draft = Draft::new(input, progress);
    await_drains(&mut draft);
    for app in apps_by_priority(&draft) {
        rollout::advance_deployment(&mut draft, app);
        aftercare::tend(&mut draft, app);
        addresses::ensure_addresses(&mut draft, app);
        reconcile::reconcile_app(&mut draft, app);
        routes::publish_routes(&mut draft, app);
        jobs::dispatch_jobs(&mut draft, app);
    }
    preempt::withdraw(&mut draft);
    rebalance::rebalance(&mut draft);
    draft.remove_ended();
    reconcile::record_ended_runs(&mut draft);
    reconcile::withdraw_purges(&mut draft);
    reconcile::forget_destroyed_apps(&mut draft);
    reconcile::forget_old_history(&mut draft);
    draft.into_plan()
}

/// Those first that get room before others.
fn apps_by_priority<'a>(draft: &Draft<'a>) -> Vec<&'a AppName> {
    let world = draft.input.world;
    let priority = |app: &AppName| {
        let aimed = reconcile::aim(draft, app).and_then(|aim| draft.release(app, aim.release));
        let services = aimed.into_iter().flat_map(|release| release.file.services.values());
        services.map(|service| service.place.priority).max().unwrap_or_default()
    };
    let mut apps: Vec<&AppName> = world.apps.keys().collect();
    apps.sort_by_cached_key(|app| std::cmp::Reverse(priority(app)));
    apps
}

/// A drain's deadline is a time to look.
fn await_drains(draft: &mut Draft<'_>) {
    let clock = draft.input.clock;
    let drains = draft.input.world.nodes.values().filter_map(|held| held.value.drain.as_ref());
    let deadlines = drains.filter_map(|drain| drain.deadline).filter(|deadline| *deadline > clock.wall);
    if let Some(next) = deadlines.min() {
        let left = Duration::try_from(next.duration_since(clock.wall)).unwrap_or_default();
        draft.wake_at(clock.elapsed + left);
    }
}
