//! Deployments, phase by phase. The phases and their order are drawn beside [`rung_model::Phase`].
//!
//! Each phase has a budget of time. It is counted down by what passes in this leadership and written every few
//! seconds, so a server that restarts again and again still ends each deployment. In phase `Rolling` a deployment takes
//! the steps of its [`crate::course`]; each [`rung_model::rollout::Stage`] of a step has a budget of its own.

pub(crate) mod evidence;
pub(crate) mod judge;
mod steps;

mod detail;
mod release;

use std::time::Duration;

use rung_model::app::Scale;
use rung_model::deployment::Trouble;
use rung_model::duration::in_words;
use rung_model::{
    App, AppName, Deployment, DeploymentNumber, InstanceState, Intent, Phase, Release, ReleaseNumber, Run,
    RunId, RunKind, RunOutcome, RunState, ServiceName, TimelineEntry,
};

use rung_model::rollout::Stage;

use crate::aftercare;
use crate::course::{self, Target};
use crate::draft::Draft;
use crate::fleet::{Member, Routing, members};
use crate::proxies::SILENT_AFTER;
use crate::reconcile::{aimed_count, changes_hands_last, desired_count};
use crate::schedule::choose_node;

/// Beyond a run's own timeout: for its placing, the fetching of artifacts and the storing of what it made.
const RUN_MARGIN: Duration = Duration::from_secs(120);

/// How long reverting may take. The old instances were kept, so only exclusive services have something to start.
const REVERT_BUDGET: Duration = Duration::from_secs(60);

/// How often the remaining time is written although nothing else changed.
pub(crate) const ACCOUNT_EVERY: Duration = Duration::from_secs(5);

/// What a leader that takes a deployment over takes off its time at once: what passed between the leaders is not known,
/// and leaders that live for less than [`ACCOUNT_EVERY`] end each deployment, too.
const TAKING_OVER: Duration = Duration::from_secs(1);

/// A new instance that had to be started this often without becoming healthy is taken as a failure of its release,
/// without waiting for the deadline: by then four starts failed within about a second of backoff.
const RESTARTS_TOLERATED: u32 = 3;

/// Moves the app's deployment on as far as it can go now.
pub fn advance_deployment(draft: &mut Draft<'_>, app: &AppName) {
    // Each turn either ends or moves one phase on; there are five before the end.
    for _ in 0..6 {
        let Some(deployment) = draft.deployment(app) else { return };
        if deployment.has_ended() {
            return;
        }
        let before = deployment.phase;
        let remaining = account(draft, app);
        if draft.app(app).destroying.is_some() {
            end(draft, app, Phase::Failed, "the app is being destroyed");
            return;
        }
        match before {
            Phase::Building => advance_build(draft, app, remaining),
            Phase::Releasing => release::advance_release_command(draft, app, remaining),
            Phase::Rolling => advance_rolling(draft, app, remaining),
            Phase::Reverting => advance_reverting(draft, app, remaining),
            Phase::Succeeded | Phase::RolledBack | Phase::Failed => return,
        }
        if draft.deployment(app).is_none_or(|deployment| deployment.phase == before) {
            return;
        }
    }
}

// Time.

/// Takes the time that passed off the budget; says what remains.
fn account(draft: &mut Draft<'_>, app: &AppName) -> Duration {
    let elapsed = draft.input.clock.elapsed;
    let deployment = draft.deployment(app).expect("the caller found one");
    let (number, written) = (deployment.number, deployment.remaining);
    let known_since = draft.progress.accounted.get(&(app.clone(), number)).copied();
    let (passed, is_due) = match known_since {
        Some(since) => (elapsed.saturating_sub(since), elapsed.saturating_sub(since) >= ACCOUNT_EVERY),
        // What is met so soon was begun under the leader before.
        None if elapsed < ACCOUNT_EVERY => (TAKING_OVER, true),
        None => (Duration::ZERO, false),
    };
    if known_since.is_none() {
        draft.progress.accounted.insert((app.clone(), number), elapsed);
    }
    let remaining = written.saturating_sub(passed);
    if is_due {
        draft.change_deployment(app).remaining = remaining;
        draft.progress.accounted.insert((app.clone(), number), elapsed);
    }
    draft.wake_at(elapsed + remaining.min(ACCOUNT_EVERY));
    remaining
}

fn set_budget(draft: &mut Draft<'_>, app: &AppName, budget: Duration) {
    let elapsed = draft.input.clock.elapsed;
    let deployment = draft.change_deployment(app);
    deployment.remaining = budget;
    let number = deployment.number;
    draft.progress.accounted.insert((app.clone(), number), elapsed);
}

// The timeline.

fn note(draft: &mut Draft<'_>, app: &AppName, message: impl Into<String>) {
    let number = draft.deployment(app).expect("the caller found one").number;
    note_of(draft, app, number, message);
}

pub(crate) fn note_of(
    draft: &mut Draft<'_>,
    app: &AppName,
    number: DeploymentNumber,
    message: impl Into<String>,
) {
    let at = draft.input.clock.wall;
    let deployment = draft.change_deployment_of(app, number);
    let phase = deployment.phase;
    deployment.timeline.push(TimelineEntry::milestone(at, phase, message));
    let excess = deployment.timeline.len().saturating_sub(Deployment::TIMELINE_MAX);
    deployment.timeline.drain(..excess);
}

/// Notes it unless this phase's timeline has it already: plans repeat, milestones do not.
fn note_once(draft: &mut Draft<'_>, app: &AppName, message: String) {
    let deployment = draft.deployment(app).expect("the caller found one");
    let phase = deployment.phase;
    if !deployment.timeline.iter().any(|entry| entry.phase == phase && entry.message == message) {
        note(draft, app, message);
    }
}

fn enter(draft: &mut Draft<'_>, app: &AppName, phase: Phase, budget: Duration, message: impl Into<String>) {
    draft.change_deployment(app).phase = phase;
    set_budget(draft, app, budget);
    note(draft, app, message);
}

fn end(draft: &mut Draft<'_>, app: &AppName, phase: Phase, message: impl Into<String>) {
    let deployment = draft.change_deployment(app);
    deployment.phase = phase;
    deployment.run = None;
    let number = deployment.number;
    note(draft, app, message);
    release::settle_settings(draft, app);
    release::address_notification(draft, app);
    draft.progress.accounted.remove(&(app.clone(), number));
    draft.progress.judged.remove(&(app.clone(), number));
}

fn fail(draft: &mut Draft<'_>, app: &AppName, reason: String, log_tail: Vec<String>) {
    draft.change_deployment(app).trouble = Some(Trouble { reason: reason.clone(), log_tail });
    end(draft, app, Phase::Failed, reason);
}

// Building.

fn advance_build(draft: &mut Draft<'_>, app: &AppName, remaining: Duration) {
    let deployment = draft.deployment(app).expect("the caller found one");
    let Some(pending) = deployment.draft.clone() else {
        if deployment.release.is_some() {
            release::begin_made_release(draft, app);
        } else {
            fail(draft, app, "deployment carries nothing to deploy".to_owned(), Vec::new());
        }
        return;
    };
    if let Some(artifact) = pending.artifact.clone() {
        release::make_release(draft, app, artifact);
        return;
    }
    let Some(source) = pending.source.clone() else {
        fail(draft, app, "deployment has neither an artifact nor a source".to_owned(), Vec::new());
        return;
    };
    let build = &pending.file.build;
    let kind = RunKind::Build {
        source,
        command: build.command.clone(),
        test: build.test.clone(),
        env: pending.file.env.clone(),
        image: pending.file.image_build(),
    };
    match follow_run(draft, app, "build", kind, build.timeout, remaining) {
        Followed::Going => {}
        Followed::Succeeded(Some(artifact)) => release::make_release(draft, app, artifact),
        Followed::Succeeded(None) => fail(draft, app, "build made no artifact".to_owned(), Vec::new()),
        Followed::Failed(reason, log_tail) => fail(draft, app, format!("build failed: {reason}"), log_tail),
    }
}

// The release command is in [`release`].

fn deployed_release(draft: &mut Draft<'_>, app: &AppName) -> Option<Release> {
    let number = draft.deployment(app)?.release;
    let found = number.and_then(|number| draft.release(app, number)).cloned();
    if found.is_none() {
        fail(draft, app, "the deployment's release is not there any more".to_owned(), Vec::new());
    }
    found
}

enum Followed {
    Going,
    Succeeded(Option<rung_model::Digest>),
    Failed(String, Vec<String>),
}

/// Records the phase's run if there is none yet, and follows it to its end. One that its deployment does not wait for
/// any more is cancelled by [`crate::reconcile`].
fn follow_run(
    draft: &mut Draft<'_>,
    app: &AppName,
    step: &str,
    kind: RunKind,
    timeout: Duration,
    remaining: Duration,
) -> Followed {
    let deployment = draft.deployment(app).expect("the caller found one");
    let cancelled = deployment.cancelled_by.clone();
    let id = RunId::new(format!("{app}.{}-{step}", deployment.number)).expect("names and numbers make an id");
    if deployment.run.as_ref() != Some(&id) {
        if let Some(by) = cancelled {
            return Followed::Failed(format!("cancelled by {by}"), Vec::new());
        }
        start_run(draft, app, id, kind, timeout);
        return Followed::Going;
    }
    // It was written with the deployment; waiting for one that was removed since would have no end.
    let Some(held) = draft.input.world.runs.get(&id) else {
        return Followed::Failed("its run is not there any more".to_owned(), Vec::new());
    };
    match &held.value.state {
        RunState::Ended { outcome, .. } => match outcome {
            RunOutcome::Succeeded { artifact } => Followed::Succeeded(artifact.clone()),
            RunOutcome::Failed { reason, log_tail, .. } => Followed::Failed(reason.clone(), log_tail.clone()),
            RunOutcome::Cancelled => Followed::Failed("cancelled".to_owned(), Vec::new()),
            RunOutcome::Skipped { reason } => Followed::Failed(reason.clone(), Vec::new()),
        },
        RunState::Pending | RunState::Running { .. } if cancelled.is_some() || remaining.is_zero() => {
            let why = cancelled.map_or("it took too long".to_owned(), |by| format!("cancelled by {by}"));
            Followed::Failed(why, Vec::new())
        }
        RunState::Pending | RunState::Running { .. } => Followed::Going,
    }
}

fn start_run(draft: &mut Draft<'_>, app: &AppName, id: RunId, kind: RunKind, timeout: Duration) {
    let at = draft.input.clock.wall;
    let by = draft.deployment(app).expect("the caller found one").by.clone();
    let state = RunState::Pending;
    let run =
        Run { id: id.clone(), app: app.clone(), kind, by, at, node: None, timeout, cancelled: false, state };
    let is_build = matches!(run.kind, RunKind::Build { .. });
    draft.add_run(run);
    let deployment = draft.change_deployment(app);
    deployment.run = Some(id.clone());
    deployment.runs.push(id.clone());
    if is_build {
        // Whoever follows the deployment hears of it, and shows the build's log. A release command's phase begins with
        // a word of its own.
        note_once(draft, app, format!("{id} begins"));
    }
}

// Rolling.

fn advance_rolling(draft: &mut Draft<'_>, app: &AppName, remaining: Duration) {
    let Some(release) = deployed_release(draft, app) else { return };
    let deployment = draft.deployment(app).expect("the caller found one");
    let cohort = deployment.number;
    if let Some(by) = deployment.cancelled_by.clone() {
        revert(draft, app, format!("cancelled by {by}"), Vec::new());
        return;
    }
    let (step, is_last) = course::step(draft, app, deployment);
    let stage = deployment.rollout.as_ref().map(|rollout| rollout.stage).unwrap_or_default();
    aftercare::adopt(draft, app, &release);
    detail::note_instances(draft, app, cohort);
    let mut standing = Vec::new();
    for service in release.file.services.keys() {
        let state = service_state(draft, app, &release, service, cohort, step.target);
        if let Some((reason, log_tail)) = state.trouble {
            revert(draft, app, reason, log_tail);
            return;
        }
        if state.healthy > 0 || state.desired == 0 {
            let message = format!("{service}: {} of {} healthy", state.healthy, state.desired);
            note_once(draft, app, message);
        }
        standing.push(state);
    }
    note_silent_proxies(draft, app);
    if steps::judge(draft, app, &release, step) {
        return;
    }
    let is_reached = standing.iter().all(|state| state.is_complete);
    match stage {
        Stage::Moving if is_reached && is_last => succeed(draft, app, &release),
        Stage::Moving if is_reached => steps::reached(draft, app, &release, step),
        Stage::Moving if remaining.is_zero() => {
            let (reason, log_tail) = explain_lateness(draft, &release, &standing);
            revert(draft, app, reason, log_tail);
        }
        Stage::Moving => {}
        Stage::Holding | Stage::AwaitingWord | Stage::AwaitingTraffic => {
            steps::stay(draft, app, &release, step, remaining);
        }
    }
}

/// A dead ingress does not hold a deployment up, and somebody should look at it.
fn note_silent_proxies(draft: &mut Draft<'_>, app: &AppName) {
    for proxy in draft.given_up_proxies(app) {
        let silent = SILENT_AFTER.as_secs();
        let message = format!("proxy {proxy} was not heard of for {silent} s and is not waited for");
        note_once(draft, app, message);
    }
}

struct ServiceState {
    service: ServiceName,
    desired: u32,
    assigned: u32,
    healthy: u32,
    is_complete: bool,
    trouble: Option<(String, Vec<String>)>,
    /// The first instance that is not healthy: what it says of itself.
    laggard: Option<Member>,
}

fn service_state(
    draft: &Draft<'_>,
    app: &AppName,
    release: &Release,
    service: &ServiceName,
    cohort: DeploymentNumber,
    target: Target,
) -> ServiceState {
    let declared = &release.file.services[service];
    let is_later = changes_hands_last(draft, app, service, target);
    let desired = if is_later { 0 } else { aimed_count(draft, app, service, declared, Some(target)) };
    let all = members(draft, app, service);
    let (new, old): (Vec<&Member>, Vec<&Member>) = all.iter().partition(|member| member.cohort == cohort);
    let new: Vec<&Member> = new.into_iter().filter(|member| member.intent == Intent::Run).collect();
    let healthy = new.iter().filter(|member| member.is_healthy()).count() as u32;
    let routed =
        new.iter().filter(|member| member.is_healthy() && member.routing == Routing::Routed).count() as u32;
    let has_traffic = !declared.port
        || match target {
            Target::Ready => true,
            Target::Part(_) => {
                routed >= desired && is_split(draft, app, service, target) && draft.routes_acknowledged(app)
            }
            Target::Everybody(_) => {
                let old_is_unrouted = old.iter().all(|member| member.routing != Routing::Routed);
                routed >= desired && old_is_unrouted && draft.routes_acknowledged(app)
            }
        };
    ServiceState {
        service: service.clone(),
        desired,
        assigned: new.len() as u32,
        healthy,
        is_complete: is_later || (healthy >= desired && has_traffic),
        trouble: new.iter().find_map(|member| trouble_of(draft, service, member)),
        laggard: new.into_iter().find(|member| !member.is_healthy()).cloned(),
    }
}

/// Whether the stored routes give the step's share, where there are two to share between.
fn is_split(draft: &Draft<'_>, app: &AppName, service: &ServiceName, target: Target) -> bool {
    let backend = draft.route_document(app).and_then(|document| document.backends.get(service));
    let split = backend.and_then(|backend| backend.split.as_ref());
    split.is_none_or(|split| target == Target::Part(split.share))
}

/// What makes a new instance a failure before the deadline.
pub(crate) fn trouble_of(
    draft: &Draft<'_>,
    service: &ServiceName,
    member: &Member,
) -> Option<(String, Vec<String>)> {
    if matches!(member.state(), InstanceState::Healthy | InstanceState::Stopping | InstanceState::Stopped) {
        return None;
    }
    let observed = member.observed(draft)?;
    let failed = matches!(observed.state, InstanceState::Failed | InstanceState::CrashLooping)
        || observed.restarts >= RESTARTS_TOLERATED;
    failed.then(|| {
        let reason = observed.reason.clone().unwrap_or_else(|| "it does not stay up".to_owned());
        (format!("{service}: instance {} failed: {reason}", member.id), observed.log_tail.clone())
    })
}

fn explain_lateness(
    draft: &Draft<'_>,
    release: &Release,
    standing: &[ServiceState],
) -> (String, Vec<String>) {
    let deadline = in_words(release.file.deploy.deadline);
    let Some(late) = standing.iter().find(|state| !state.is_complete) else {
        return (format!("not finished within its deadline of {deadline}"), Vec::new());
    };
    let mut reason = format!(
        "{}: {} of {} instances became healthy within the deadline of {deadline}",
        late.service, late.healthy, late.desired
    );
    let observed = late.laggard.as_ref().and_then(|member| member.observed(draft));
    if let Some(why) = observed.and_then(|observed| observed.reason.as_ref()) {
        reason = format!("{reason}; {why}");
    } else if late.assigned < late.desired
        && let Err(refusals) =
            choose_node(draft, &release.app, &late.service, &release.file.services[&late.service])
    {
        for (node, refusal) in refusals {
            reason = format!("{reason}; {node}: {refusal}");
        }
    }
    (reason, observed.map(|observed| observed.log_tail.clone()).unwrap_or_default())
}

fn succeed(draft: &mut Draft<'_>, app: &AppName, release: &Release) {
    let cohort = draft.deployment(app).expect("the caller found one").number;
    aftercare::begin(draft, app, release);
    let record = draft.change_app(app);
    record.live = Some(cohort);
    record.current = Some(release.number);
    remember_success(record, release.number);
    record.scale = release
        .file
        .services
        .iter()
        .map(|(service, declared)| {
            let from_file = declared.instances;
            (service.clone(), Scale { count: record.count(service, from_file), from_file })
        })
        .collect();
    let also = aftercare::announcement(draft, app);
    end(draft, app, Phase::Succeeded, format!("all traffic is on {}{also}", release.number));
}

fn remember_success(app: &mut App, number: ReleaseNumber) {
    app.succeeded.retain(|known| *known != number);
    app.succeeded.push(number);
    let excess = app.succeeded.len().saturating_sub(App::SUCCEEDED_MAX);
    app.succeeded.drain(..excess);
}

// Reverting.

fn revert(draft: &mut Draft<'_>, app: &AppName, reason: String, log_tail: Vec<String>) {
    let back_to = draft.app(app).current;
    draft.change_deployment(app).trouble = Some(Trouble { reason: reason.clone(), log_tail });
    let message = match back_to {
        Some(release) => format!("{reason}; going back to {release}"),
        None => format!("{reason}; removing its instances"),
    };
    enter(draft, app, Phase::Reverting, REVERT_BUDGET, message);
}

fn advance_reverting(draft: &mut Draft<'_>, app: &AppName, remaining: Duration) {
    let cohort = draft.deployment(app).expect("the caller found one").number;
    let live = draft.app(app).live;
    let current = draft.app(app).current.and_then(|number| draft.release(app, number)).cloned();
    let (Some(live), Some(release)) = (live, current) else {
        end_first_deployment(draft, app, cohort, remaining);
        return;
    };
    let back = release.file.services.iter().all(|(service, declared)| {
        let desired = desired_count(draft, app, service, declared);
        let all = members(draft, app, service);
        let serving = all.iter().filter(|member| member.cohort == live && member.is_healthy());
        let serving =
            serving.filter(|member| !declared.port || member.routing == Routing::Routed).count() as u32;
        let left = all.iter().any(|member| member.cohort == cohort && member.routing == Routing::Routed);
        serving >= desired && !left
    });
    if back && draft.routes_acknowledged(app) {
        end(draft, app, Phase::RolledBack, format!("{} serves as before", release.number));
    } else if remaining.is_zero() {
        let message = format!("{} was put back; not all of its instances are healthy yet", release.number);
        end(draft, app, Phase::RolledBack, message);
    }
}

/// There is nothing to go back to: the failed instances are removed.
fn end_first_deployment(draft: &mut Draft<'_>, app: &AppName, cohort: DeploymentNumber, remaining: Duration) {
    let any_left = draft
        .running_services(app)
        .flat_map(|service| draft.instances_of(app, service))
        .any(|(_, placement)| placement.cohort == cohort);
    if !any_left || remaining.is_zero() {
        end(draft, app, Phase::Failed, "there was no release before it to go back to");
    }
}
