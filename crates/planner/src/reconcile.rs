//! Instances: what shall be assigned, and the end of what is not wanted, in the handoff's order.
//!
//! Of each service there are at most four kinds of instances at a time:
//! - *wanted*: of the cohort that shall serve; started until there are enough.
//! - *standby*: of the live cohort, while a deployment brings the next one; kept until that has succeeded, and kept up as
//!   long as it serves for its own sake ([`standby`]).
//! - *warm*: of the cohort before, after a success; it runs on for a while, in case somebody wants to go back.
//! - *leaving*: all others; un-routed, drained, stopped, forgotten.
//!
//! An exclusive service has no standby: its old instance leaves first, and the next is assigned once it has ended.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use rung_model::app::Destroying;
use rung_model::appfile::Service;
use rung_model::{
    AppName, AssignedInstance, Assignment, DeploymentNumber, Intent, JobName, MakingWay, NodeId, Phase,
    ReleaseNumber, Run, RunId, RunKind, RunOutcome, RunState, ServiceName, VolumeName, keys,
};

use crate::aftercare::{let_go, warm};
use crate::course::{self, Changeover, Target};
use crate::draft::Draft;
use crate::fleet::{Member, Routing, members};
use crate::jobs::{is_held_back, missed_its_deadline, replacement};
use crate::lease::{Lease, lease};
use crate::preempt::{make_room, priority_of};
use crate::schedule::{
    Placer, Waiting, WaitingRun, choose_node, choose_node_for_run, desired_instances, is_too_large,
    unlabelled, unusable,
};
use crate::standby;
use crate::world::World;

/// Which cohort shall serve an app, which one waits behind it, and by which release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aim {
    pub cohort: DeploymentNumber,
    pub release: ReleaseNumber,
    pub standby: Option<DeploymentNumber>,
    pub warm: Option<DeploymentNumber>,
}

/// `None`: nothing of the app shall run.
pub(crate) fn aim(draft: &Draft<'_>, app: &AppName) -> Option<Aim> {
    let record = draft.app(app);
    if record.destroying.is_some() {
        return None;
    }
    let rolling = draft.deployment(app).filter(|deployment| deployment.phase == Phase::Rolling);
    match rolling {
        Some(deployment) => Some(Aim {
            cohort: deployment.number,
            release: deployment.release?,
            standby: record.live,
            warm: None,
        }),
        None => live_aim(draft, app),
    }
}

/// What serves while nothing rolls.
pub(crate) fn live_aim(draft: &Draft<'_>, app: &AppName) -> Option<Aim> {
    let record = draft.app(app);
    let warm = warm(draft, app).map(|warm| warm.cohort);
    Some(Aim { cohort: record.live?, release: record.current?, standby: None, warm })
}

/// The same for one service: one of which there are never two can't serve from both releases, so it changes hands when
/// everybody does.
pub(crate) fn service_aim(draft: &Draft<'_>, app: &AppName, service: &ServiceName) -> Option<Aim> {
    match course::target(draft, app) {
        Some(target) if changes_hands_last(draft, app, service, target) => {
            aim(draft, app).and_then(|_| live_aim(draft, app))
        }
        _ => aim(draft, app),
    }
}

pub(crate) fn changes_hands_last(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    target: Target,
) -> bool {
    let says_so = |release: Option<ReleaseNumber>| {
        let file = release.and_then(|number| draft.release(app, number)).map(|release| &release.file);
        file.and_then(|file| file.services.get(service)).is_some_and(|declared| declared.exclusive)
    };
    let next = draft.deployment(app).and_then(|deployment| deployment.release);
    !matches!(target, Target::Everybody(_)) && (says_so(next) || says_so(draft.app(app).current))
}

/// A service's instances by kind.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    pub wanted: Vec<Member>,
    pub standby: Vec<Member>,
    pub warm: Vec<Member>,
    pub leaving: Vec<Member>,
    /// Never two alive at a time: the release that is aimed at says so, or one of an instance that is still there.
    pub exclusive: bool,
}

/// What the aimed-at release says of a service; `None` when it has no such service.
pub(crate) fn declared(
    draft: &Draft<'_>,
    app: &AppName,
    aim: Option<Aim>,
    service: &ServiceName,
) -> Option<Service> {
    draft.release(app, aim?.release)?.file.services.get(service).cloned()
}

pub(crate) fn desired_count(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    declared: &Service,
) -> u32 {
    let count = draft.app(app).count(service, declared.instances);
    desired_instances(draft.input.world, draft.input.liveness, declared, count)
}

/// How many instances of the cohort that is aimed at there shall be now: fewer than desired while it carries a part only.
pub(crate) fn aimed_count(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    declared: &Service,
    target: Option<Target>,
) -> u32 {
    let desired = desired_count(draft, app, service, declared);
    match target {
        Some(Target::Part(share)) => course::part_of(desired, share),
        _ => desired,
    }
}

/// Every service of an app that is declared or still has instances, by name.
pub(crate) fn services(draft: &Draft<'_>, app: &AppName) -> Vec<ServiceName> {
    let declared = aim(draft, app).and_then(|aim| draft.release(app, aim.release));
    let mut found: Vec<ServiceName> =
        declared.map(|release| release.file.services.keys().cloned().collect()).unwrap_or_default();
    found.extend(standby::services(draft, app));
    found.extend(draft.running_services(app).cloned());
    found.sort();
    found.dedup();
    found
}

fn is_exclusive(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    declared: Option<&Service>,
    members: &[Member],
) -> bool {
    let says_so = |release: ReleaseNumber| {
        let file = draft.release(app, release).map(|release| &release.file);
        file.and_then(|file| file.services.get(service)).is_some_and(|declared| declared.exclusive)
    };
    // Thousands may be of the same release.
    let releases = members.chunk_by(|a, b| a.release == b.release).map(|alike| alike[0].release);
    declared.is_some_and(|declared| declared.exclusive) || releases.into_iter().any(says_so)
}

pub(crate) fn kinds(draft: &Draft<'_>, app: &AppName, service: &ServiceName) -> Kinds {
    let aim = service_aim(draft, app, service);
    let declared = declared(draft, app, aim, service);
    let target = course::target(draft, app);
    let wanted = declared.as_ref().map_or(0, |declared| aimed_count(draft, app, service, declared, target));
    let all = members(draft, app, service);
    let exclusive = is_exclusive(draft, app, service, declared.as_ref(), &all);
    let mut kinds = Kinds { exclusive, ..Kinds::default() };
    let mut moving = Vec::new();
    for member in all {
        let of =
            |cohort: Option<DeploymentNumber>| cohort == Some(member.cohort) && member.intent == Intent::Run;
        let is_wanted = declared.is_some() && of(aim.map(|aim| aim.cohort));
        if matches!(member.making_way.as_deref(), Some(MakingWay::Displaced { .. })) {
            kinds.leaving.push(member);
        } else if is_wanted && shall_move(draft, declared.as_ref(), &member) {
            moving.push(member);
        } else if is_wanted {
            kinds.wanted.push(member);
        } else if !exclusive && of(aim.and_then(|aim| aim.standby)) {
            kinds.standby.push(member);
        } else if !exclusive && of(aim.and_then(|aim| aim.warm)) {
            kinds.warm.push(member);
        } else {
            kinds.leaving.push(member);
        }
    }
    if let Some(declared) = &declared {
        move_away(draft, app, service, declared, moving, &mut kinds, wanted);
    }
    // Too many are wanted: the healthy stay, and of these the oldest.
    kinds.wanted.sort_by_key(|member| !member.is_healthy());
    let surplus = kinds.wanted.split_off(kinds.wanted.len().min(wanted as usize));
    kinds.leaving.extend(surplus);
    if batch(target).is_some() {
        let has_port = declared.is_some_and(|declared| declared.port);
        release_replaced(&mut kinds, wanted as usize, has_port);
    }
    standby::make_way(draft, app, service, &mut kinds);
    kinds
}

/// Whether its node shall not have it any longer.
pub(crate) fn shall_move(draft: &Draft<'_>, declared: Option<&Service>, member: &Member) -> bool {
    let misplaced = || {
        let asking = declared.filter(|declared| !declared.place.require.is_empty());
        let node = draft.known(member.at).node;
        node.zip(asking).is_some_and(|(node, asking)| unlabelled(&asking.place, node).is_some())
    };
    unusable(draft.known(member.at)).is_some() || member.making_way.is_some() || misplaced()
}

fn batch(target: Option<Target>) -> Option<u32> {
    match target {
        Some(Target::Everybody(Changeover::OneByOne { batch })) => batch,
        _ => None,
    }
}

/// In a deployment by batches an old instance leaves as soon as the new ones make up for it.
fn release_replaced(kinds: &mut Kinds, desired: usize, has_port: bool) {
    let serves = |member: &&Member| member.is_healthy() && (!has_port || member.routing == Routing::Routed);
    let (new, old) =
        (kinds.wanted.iter().filter(serves).count(), kinds.standby.iter().filter(serves).count());
    if has_port {
        // The routes decide which ones get no requests any more.
        if new + old >= desired {
            let is_out = |member: &mut Member| member.routing == Routing::Draining;
            kinds.leaving.extend(kinds.standby.extract_if(.., is_out));
        }
    } else {
        let surplus = (new + kinds.standby.len()).saturating_sub(desired).min(new).min(kinds.standby.len());
        kinds.leaving.extend(kinds.standby.drain(..surplus));
    }
}

/// What runs on a node that is lost or shall be emptied makes way for instances elsewhere, which are started first.
///
/// With a port, routes see to it that the old one serves until the new one does. Without one it stays until enough others
/// are healthy. An exclusive one stays as long as there is no other place for it: its end comes before the new beginning.
fn move_away(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    declared: &Service,
    moving: Vec<Member>,
    kinds: &mut Kinds,
    desired: u32,
) {
    let healthy = kinds.wanted.iter().filter(|member| member.is_healthy()).count();
    for member in moving {
        let forced = draft.known(member.at).is_forced_out;
        if kinds.exclusive && !forced && choose_node(draft, app, service, declared).is_err() {
            kinds.wanted.push(member);
        } else if kinds.exclusive || forced || declared.port || healthy >= desired as usize {
            kinds.leaving.push(member);
        } else {
            kinds.standby.push(member);
        }
    }
}

/// Remembers where volumes are, from the first instance that uses them.
///
/// True when any was nowhere before.
fn pin_volumes(draft: &mut Draft<'_>, app: &AppName, declared: &Service, node: &NodeId) -> bool {
    let unknown = |volume: &&VolumeName| !draft.app(app).volumes.contains_key(*volume);
    let unknown: Vec<VolumeName> = declared.mounts.keys().filter(unknown).cloned().collect();
    if unknown.is_empty() {
        return false;
    }
    let pins = unknown.into_iter().map(|volume| (volume, node.clone()));
    draft.change_app(app).volumes.extend(pins);
    true
}

/// Gives every service of the app its instances.
pub fn reconcile_app(draft: &mut Draft<'_>, app: &AppName) {
    let mut services = services(draft, app);
    if let Some(aim) = aim(draft, app) {
        services.sort_by_key(|service| Reverse(priority_of(draft, app, aim.release, service)));
    }
    for service in services {
        let kinds = kinds(draft, app, &service);
        start_missing(draft, app, &service, &kinds);
        standby::start_missing(draft, app, &service, &kinds);
        for member in &kinds.leaving {
            let drain = drain_time(draft, app, &service, member.release);
            send_off(draft, app, member, drain);
        }
    }
    place_runs(draft, app);
}

fn start_missing(draft: &mut Draft<'_>, app: &AppName, service: &ServiceName, kinds: &Kinds) {
    let Some(aim) = service_aim(draft, app, service) else { return };
    let Some(declared) = declared(draft, app, Some(aim), service) else { return };
    let target = course::target(draft, app);
    let wanted = aimed_count(draft, app, service, &declared, target);
    let mut missing = wanted.saturating_sub(kinds.wanted.len() as u32);
    if let Some(batch) = batch(target).filter(|_| !kinds.standby.is_empty() || !kinds.leaving.is_empty()) {
        missing = missing.min(batch.saturating_sub(on_the_move(kinds, wanted, declared.port)));
    }
    if let Some(member) = kinds.wanted.first() {
        let node = member.node.clone();
        pin_volumes(draft, app, &declared, &node);
    }
    if missing == 0 {
        let stays = kinds.wanted.iter().any(|member| shall_move(draft, Some(&declared), member));
        if stays {
            let mut placer = Placer::new(draft, app, service, &declared);
            if placer.next(draft).is_none() {
                let waiting = placer.waiting(draft, 1);
                draft.wait_for(waiting);
            }
        }
        return;
    }
    if kinds.exclusive && !kinds.leaving.is_empty() {
        await_the_last(draft, app, service, kinds, missing);
        return;
    }
    start(draft, app, service, aim, &declared, kinds, missing);
}

/// So many more of a cohort, as far as there are places for them.
pub(crate) fn start(
    draft: &mut Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    aim: Aim,
    declared: &Service,
    kinds: &Kinds,
    missing: u32,
) {
    let mut placer = Placer::of(draft, app, service, declared, Some(aim));
    let batch = draft.begin_batch(AssignedInstance {
        app: app.clone(),
        service: service.clone(),
        release: aim.release,
        deployment: aim.cohort,
        intent: Intent::Run,
        fence: declared.exclusive.then(|| fence(draft.input.world)),
        making_way: None,
    });
    for placed in 0..missing {
        let Some(node) = placer.next(draft) else {
            go_without(draft, &placer, declared, kinds, missing - placed);
            return;
        };
        let has_new_volumes = pin_volumes(draft, app, declared, draft.known(node).id);
        draft.mint(batch, node);
        if has_new_volumes {
            // From now on there is one node for all of them.
            placer = Placer::of(draft, app, service, declared, Some(aim));
        }
    }
}

/// Higher than every one before it: an exclusive instance is assigned in a plan that saw the end of the one before, which
/// was written after the plan that assigned that one.
fn fence(world: &World) -> u64 {
    // Epochs are counted, and forty bits of revisions are a century of ten thousand writes a minute.
    (world.epoch << 40) | world.revision
}

/// The next one comes when the one before has ended, as its node says, or as its lease does.
fn await_the_last(
    draft: &mut Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    kinds: &Kinds,
    instances: u32,
) {
    let elapsed = draft.input.clock.elapsed;
    let mut reasons = BTreeMap::new();
    for member in &kinds.leaving {
        let lease = lease(draft, &member.node, &member.id, app, service, member.release);
        if let Lease::Runs(left) = lease {
            draft.wake_at(elapsed + left);
        }
        reasons.insert(member.node.clone(), lease.refusal());
    }
    draft.wait_for(Waiting { app: app.clone(), service: service.clone(), instances, reasons, others: 0 });
}

/// There is no place for so many: what is there for other reasons makes way, or they wait.
fn go_without(draft: &mut Draft<'_>, placer: &Placer<'_>, declared: &Service, kinds: &Kinds, instances: u32) {
    let (app, service) = (placer.app().clone(), placer.service().clone());
    // What is kept in case of need gives way to what is needed now; the next plan finds the room.
    if !kinds.warm.is_empty() {
        let_go(draft, &app, "their memory is needed");
        return;
    }
    let moving = kinds.leaving.iter().chain(&kinds.standby);
    let moving = moving
        .filter(|member| member.making_way.as_deref() == Some(&MakingWay::Rebalanced))
        .filter(|member| member.intent == Intent::Run);
    let mut stays = false;
    for member in moving {
        // The better place is taken: it serves where it is.
        draft.make_way(&member.node, &member.id, None);
        stays = true;
    }
    if stays {
        return;
    }
    let waiting = placer.waiting(draft, instances);
    draft.wait_for(waiting);
    let full = placer.full(draft);
    make_room(draft, &app, &service, declared, &full);
}

/// How many are beyond the count, or will be: new instances that do not serve yet, old ones that have not ended yet, and
/// old ones whose place is taken and who are not un-routed yet.
fn on_the_move(kinds: &Kinds, desired: u32, has_port: bool) -> u32 {
    let serves = |member: &&Member| member.is_healthy() && (!has_port || member.routing == Routing::Routed);
    let serving = kinds.wanted.iter().filter(serves).count();
    let coming = kinds.wanted.len() - serving;
    let replaced = match serving {
        // A release that wants fewer: the old ones leave when the first of the new ones serves.
        0 => 0,
        _ => (serving + kinds.standby.len()).saturating_sub(desired as usize),
    };
    (coming + kinds.leaving.len() + replaced) as u32
}

fn drain_time(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    release: ReleaseNumber,
) -> Option<Duration> {
    let declared = draft.release(app, release)?.file.services.get(service)?;
    declared.port.then_some(declared.drain)
}

/// One step on the way out: un-routed (by [`crate::routes`]) and acknowledged, drained, told to stop, forgotten.
fn send_off(draft: &mut Draft<'_>, app: &AppName, member: &Member, drain: Option<Duration>) {
    if member.has_ended() {
        draft.let_end(&member.node, &member.id);
        draft.progress.unrouted.remove(&member.id);
        draft.progress.stopped.remove(&member.id);
        return;
    }
    if member.intent == Intent::Stop && draft.input.liveness.is_lost(&member.node) {
        let elapsed = draft.input.clock.elapsed;
        draft.progress.stopped.entry(member.id.clone()).or_insert(elapsed);
    }
    if member.intent == Intent::Run && may_stop(draft, app, member, drain) {
        draft.stop(&member.node, &member.id);
    }
}

fn may_stop(draft: &mut Draft<'_>, app: &AppName, member: &Member, drain: Option<Duration>) -> bool {
    // Without a port there are no requests to wait for.
    let Some(drain) = drain else { return true };
    if member.routing == Routing::Routed {
        // Should it have been on its way out before, the time that it drained then does not count now.
        draft.progress.unrouted.remove(&member.id);
        return false;
    }
    if !draft.routes_acknowledged(app) {
        return false;
    }
    if member.routing == Routing::Absent || !member.state().may_run() {
        return true;
    }
    let elapsed = draft.input.clock.elapsed;
    let since = *draft.progress.unrouted.entry(member.id.clone()).or_insert(elapsed);
    if draft.input.proxies.in_flight(&member.id, elapsed) == 0 || elapsed >= since + drain {
        return true;
    }
    draft.wake_at(since + drain);
    false
}

/// Assigns the app's runs that have no node yet, and passes on which ones shall stop: somebody said so, or nobody
/// waits for their outcome.
fn place_runs(draft: &mut Draft<'_>, app: &AppName) {
    let world = draft.input.world;
    let destroying = draft.app(app).destroying.is_some();
    let awaited = draft.deployment(app).and_then(|deployment| deployment.run.clone());
    for run in draft.unended_runs(app) {
        let of_deployment = matches!(run.kind, RunKind::Build { .. } | RunKind::Release { .. });
        let abandoned = of_deployment && awaited.as_ref() != Some(&run.id);
        let replacement = replacement(draft, run);
        let unwanted = run.cancelled || destroying || abandoned || replacement.is_some();
        match &run.node {
            Some(node) if !world.nodes.contains_key(node) => {
                let reason = format!("its node {node} was taken out of the cluster");
                end_unplaced(
                    draft,
                    run,
                    RunOutcome::Failed { reason, exit_code: None, log_tail: Vec::new() },
                );
            }
            Some(node) if unwanted => cancel(draft, node, &run.id),
            Some(_) => {}
            None if !draft.has_room_for_runs() => {}
            None if run.cancelled || destroying || abandoned => {
                end_unplaced(draft, run, RunOutcome::Cancelled);
            }
            None if let Some(next) = replacement => {
                let reason = format!("{} took its place before it was started", next.id);
                end_unplaced(draft, run, RunOutcome::Skipped { reason });
            }
            None if let Some(reason) = missed_its_deadline(draft, run) => {
                end_unplaced(draft, run, RunOutcome::Skipped { reason });
            }
            None if is_held_back(draft, run) => {}
            None if let Some(reason) = is_too_large(draft, run) => {
                let outcome = RunOutcome::Failed { reason, exit_code: None, log_tail: Vec::new() };
                end_unplaced(draft, run, outcome);
            }
            None => match choose_node_for_run(draft, run) {
                Ok(node) if draft.has_room_for_run(&node, run) => {
                    let placed = Run { node: Some(node.clone()), ..run.clone() };
                    draft.give_run(&node, placed.clone());
                    draft.record_run(placed);
                }
                Ok(_) => {}
                Err(reasons) => {
                    draft.run_waits(WaitingRun { app: app.clone(), run: run.id.clone(), reasons });
                }
            },
        }
    }
}

fn end_unplaced(draft: &mut Draft<'_>, run: &Run, outcome: RunOutcome) {
    let state = RunState::Ended { at: draft.input.clock.wall, outcome };
    draft.record_run(Run { state, ..run.clone() });
}

/// Marks an assigned run, which stays until its node says that it has ended.
fn cancel(draft: &mut Draft<'_>, node: &NodeId, run: &RunId) {
    let assigned = draft.assignment(node).and_then(|assignment| assignment.runs.get(run));
    if assigned.is_some_and(|run| !run.cancelled)
        && let Some(assigned) = draft.change_assignment(node).runs.get_mut(run)
    {
        assigned.cancelled = true;
    }
}

/// Takes over what nodes say of their runs; an ended run leaves its assignment in the step that records its outcome.
pub fn record_ended_runs(draft: &mut Draft<'_>) {
    let world = draft.input.world;
    for (node, observed) in &world.observed {
        for (id, seen) in &observed.value.runs {
            let Some(held) = world.runs.get(id) else { continue };
            if held.value.has_ended()
                || held.value.node.as_ref() != Some(node)
                || held.value.state == seen.state
                || !draft.has_room_for_runs()
            {
                continue;
            }
            if matches!(seen.state, RunState::Ended { .. }) {
                draft.take_run(node, id);
            }
            let mut run = Run { state: seen.state.clone(), ..held.value.clone() };
            if let RunKind::Job { run, .. } = &mut run.kind {
                // Of an agent that was restarted meanwhile the first word counts.
                run.started = run.started.or(seen.started);
            }
            draft.record_run(run);
        }
    }
    draft.progress.retries.retain(|run, _| world.runs.contains_key(run));
    forget_old_runs(draft);
}

/// How many ended runs of an app are kept in the store, builds and release commands included.
const RUNS_KEPT: usize = 100;

/// How many ended runs of each job are kept beside them, and as many records of times at which nothing ran, which must not
/// push out the runs: three weeks of a daily one.
const JOB_RUNS_KEPT: usize = 20;

fn forget_old_runs(draft: &mut Draft<'_>) {
    let world = draft.input.world;
    let mut histories: BTreeMap<(&AppName, Option<&JobName>, bool), Vec<&Run>> = BTreeMap::new();
    for run in world.runs.values().map(|held| &held.value).filter(|run| run.has_ended()) {
        let job = run.of_job().map(|of| &of.job);
        histories.entry((&run.app, job, run.was_skipped())).or_default().push(run);
    }
    for ((app, job, _), mut runs) in histories {
        let kept = if job.is_some() { JOB_RUNS_KEPT } else { RUNS_KEPT };
        let excess = runs.len().saturating_sub(kept);
        if excess == 0 {
            continue;
        }
        runs.sort_by_key(|run| (run.at, &run.id));
        let in_use = draft.deployment(app).and_then(|deployment| deployment.run.clone());
        for run in runs.into_iter().take(excess).filter(|run| Some(&run.id) != in_use.as_ref()) {
            draft.delete(keys::run(app, &run.id));
        }
    }
}

/// An app whose last instance and run are gone is forgotten, after its nodes have removed what they keep of it: until
/// then its name is not free, so that nothing of the old app meets the new one.
pub fn forget_destroyed_apps(draft: &mut Draft<'_>) {
    let world = draft.input.world;
    for (app, held) in &world.apps {
        let Some(volumes) = held.value.destroying else { continue };
        let busy = draft.has_instances(app)
            || draft.assignments().any(|(_, assignment)| assignment.runs.values().any(|run| run.app == *app));
        // A new app's runs are named like the old one's: what a node still says of those must not be taken for these.
        let busy = busy
            || world.observed.values().any(|seen| {
                seen.value.instances.values().any(|instance| instance.app == *app)
                    || seen.value.runs.values().any(|run| run.app == *app)
            });
        if busy || draft.changes(app) || (!is_purged(draft, app, volumes)) {
            continue;
        }
        for node in world.nodes.keys() {
            if draft.assignment(node).is_some_and(|told| told.purges().any(|(purged, _)| purged == app)) {
                let told = draft.change_assignment(node);
                told.purge.retain(|purged| purged != app);
                told.purge_but_volumes.retain(|purged| purged != app);
            }
        }
        for key in world.keys_of_app(app) {
            draft.delete(key);
        }
        draft.forget(app);
    }
}

/// Takes purges back that nobody asks for any more. A transaction of unknown outcome may have deleted an app's record
/// after all, and the next app of that name must not lose its data.
pub fn withdraw_purges(draft: &mut Draft<'_>) {
    let world = draft.input.world;
    let is_due = |app: &AppName, volumes| {
        world.apps.get(app).is_some_and(|held| held.value.destroying == Some(volumes))
    };
    for node in world.nodes.keys() {
        if draft
            .assignment(node)
            .is_some_and(|told| !told.purges().all(|(app, volumes)| is_due(app, volumes)))
        {
            let told = draft.change_assignment(node);
            for volumes in [Destroying::WithVolumes, Destroying::KeepVolumes] {
                told.purges_of(volumes).retain(|app| is_due(app, volumes));
            }
        }
    }
}

/// Tells every node to remove what it keeps of the app; true once all of them converged on having been told.
fn is_purged(draft: &mut Draft<'_>, app: &AppName, volumes: Destroying) -> bool {
    let world = draft.input.world;
    let mut done = true;
    for node in world.nodes.keys() {
        let asked = |told: &Assignment| told.purges().any(|told| told == (app, volumes));
        let told = world.assignments.get(node).filter(|held| asked(&held.value));
        let observed = world.observed.get(node);
        match (told, observed) {
            (Some(told), Some(observed)) if observed.value.assignment >= told.value.generation => {}
            (Some(_), _) => done = false,
            (None, _) => {
                draft.change_assignment(node).purges_of(volumes).push(app.clone());
                done = false;
            }
        }
    }
    done
}

/// How many releases and deployments of an app are kept beside those in use.
const HISTORY_KEPT: usize = 100;

/// Keeps the history bounded: the newest, and whatever runs or can be rolled back to.
pub fn forget_old_history(draft: &mut Draft<'_>) {
    let world = draft.input.world;
    for (app, of_app) in &world.deployments {
        let excess = of_app.len().saturating_sub(HISTORY_KEPT);
        for (number, held) in of_app.iter().take(excess) {
            if held.value.has_ended() {
                draft.delete(keys::deployment(app, *number));
            }
        }
    }
    for (app, of_app) in &world.releases {
        let excess = of_app.len().saturating_sub(HISTORY_KEPT);
        let Some(record) = world.apps.get(app).map(|held| &held.value) else { continue };
        for number in of_app.keys().take(excess) {
            if !is_in_use(world, app, *number) && record.current != Some(*number) {
                draft.delete(keys::release(app, *number));
            }
        }
    }
}

/// Whether an instance or a run is of the release, or a job is pinned to it.
fn is_in_use(world: &World, app: &AppName, number: ReleaseNumber) -> bool {
    let runs_there = world.placed.has_any_of(app, number);
    let is_pinned =
        || world.jobs.get(app).into_iter().flatten().any(|(_, held)| held.value.pinned == Some(number));
    let is_run = || {
        let mut going = world.runs.values().map(|held| &held.value).filter(|run| !run.has_ended());
        going.any(|run| run.app == *app && run.release() == Some(number))
    };
    runs_there || is_pinned() || is_run()
}
