//! After a deployment has succeeded: the old instances are kept warm for a while, and a regression still reverts. So do
//! instances that exit within their first seconds: see [`settling`].
//!
//! All belong to the deployment that is live, and stand still while another one goes on.

mod settling;

use std::time::Duration;

use rung_model::duration::in_words;
use rung_model::rollout::{Aftercare, Settling, Warm, Watch};
use rung_model::{
    App, AppName, Deployment, DeploymentKind, DeploymentNumber, Draft as Pending, Intent, Phase, Release,
    ReleaseNumber, TimelineEntry,
};

use crate::draft::Draft;
use crate::fleet::members;
use crate::placed::Placement;
use crate::rollout::evidence::weigh_alone;
use crate::rollout::judge::{self, Rivals, Span};
use crate::rollout::{ACCOUNT_EVERY, note_of, trouble_of};

/// Until the first phase of a deployment sets its own budget.
const FIRST_BUDGET: Duration = Duration::from_secs(120);

/// What follows a success: called while the app's record still names what served before.
pub(crate) fn begin(draft: &mut Draft<'_>, app: &AppName, release: &Release) {
    let policy = &release.file.deploy.rollout;
    let deployment = draft.deployment(app).expect("the caller found one");
    let (number, kind) = (deployment.number, deployment.kind);
    let record = draft.app(app);
    let Some((cohort, before)) = record.live.zip(record.current) else { return };
    let warm =
        (policy.keep > Duration::ZERO).then_some(Warm { cohort, release: before, remaining: policy.keep });
    // Going back was a decision: it is not reverted by itself, or the two would take turns.
    let is_in_doubt = !matches!(kind, DeploymentKind::Rollback | DeploymentKind::Restart);
    let is_watched = is_in_doubt && policy.watch > Duration::ZERO && policy.abort_if.is_some();
    let watch = is_watched.then(|| Watch {
        remaining: policy.watch,
        before: draft.input.traffic.of(app, cohort),
        new: Default::default(),
        evidence: Default::default(),
    });
    let settling = (is_in_doubt && policy.settle > Duration::ZERO)
        .then(|| Settling { remaining: policy.settle, exits: settling::exits(draft, app, release, number) });
    draft.progress.judged.remove(&(app.clone(), number));
    let aftercare = Aftercare { warm, watch, settling };
    if aftercare != Aftercare::default() {
        draft.change_deployment(app).aftercare = Some(aftercare);
    }
}

/// What success says of it, for the timeline.
pub(crate) fn announcement(draft: &Draft<'_>, app: &AppName) -> String {
    let aftercare = draft.deployment(app).and_then(|deployment| deployment.aftercare.clone());
    let Some(Aftercare { warm, watch, .. }) = aftercare else { return String::new() };
    let mut said = String::new();
    if let Some(warm) = warm {
        let (count, bytes) = weight(draft, app, warm.cohort);
        let memory =
            if bytes > 0 { format!(" and {} MB of memory", bytes / 1_000_000) } else { String::new() };
        let time = in_words(warm.remaining);
        said.push_str(&format!("; {count} instances of {}{memory} are kept warm for {time}", warm.release));
    }
    if let Some(watch) = watch {
        said.push_str(&format!("; a regression reverts it for {}", in_words(watch.remaining)));
    }
    said
}

/// How many instances a cohort has, and how much memory they may use.
fn weight(draft: &Draft<'_>, app: &AppName, cohort: DeploymentNumber) -> (usize, u64) {
    draft.running_services(app).fold((0, 0), |(count, bytes), service| {
        let of_service = draft.instances_of(app, service).map(|(_, placement)| placement);
        let of_cohort =
            of_service.filter(|placement| placement.cohort == cohort && placement.intent == Intent::Run);
        of_cohort.fold((count, bytes), |(count, bytes), placement| {
            let release = draft.release(app, placement.release);
            let declared = release.and_then(|release| release.file.services.get(service));
            (count + 1, bytes + declared.and_then(|declared| declared.memory_bytes).unwrap_or(0))
        })
    })
}

/// The cohort that is kept warm behind the live one.
pub(crate) fn warm(draft: &Draft<'_>, app: &AppName) -> Option<Warm> {
    draft.deployment_of(app, draft.app(app).live?)?.aftercare.as_ref()?.warm
}

/// Lets the warm instances go.
pub(crate) fn let_go(draft: &mut Draft<'_>, app: &AppName, why: &str) {
    let Some((live, warm)) = draft.app(app).live.zip(warm(draft, app)) else { return };
    let aftercare = draft.change_deployment_of(app, live).aftercare.as_mut();
    aftercare.expect("it has the warm ones in it").warm = None;
    note_of(draft, app, live, format!("the instances of {} are let go: {why}", warm.release));
    tidy(draft, app, live);
}

/// Gives the warm instances to the deployment that brings back just what they run: they need no start.
pub(crate) fn adopt(draft: &mut Draft<'_>, app: &AppName, release: &Release) {
    let Some(warm) = warm(draft, app) else { return };
    let cohort = draft.deployment(app).expect("the caller found one").number;
    let is_same = draft.release(app, warm.release).is_some_and(|known| {
        (&known.artifact, &known.config, &known.secrets, &known.file)
            == (&release.artifact, &release.config, &release.secrets, &release.file)
    });
    if !is_same {
        let_go(draft, app, &format!("{cohort} brings something else"));
        return;
    }
    let of_services = draft.running_services(app).flat_map(|service| draft.instances_of(app, service));
    let are_warm = of_services
        .filter(|(_, placement)| placement.cohort == warm.cohort && placement.intent == Intent::Run);
    let node = |placement: &Placement| draft.known(placement.node).id.clone();
    let adopted: Vec<_> = are_warm.map(|(id, placement)| (id.clone(), node(placement))).collect();
    for (id, node) in adopted {
        draft.adopt(&node, &id, cohort);
    }
    let_go(draft, app, &format!("they serve again, for {cohort}"));
}

fn tidy(draft: &mut Draft<'_>, app: &AppName, live: DeploymentNumber) {
    let deployment = draft.change_deployment_of(app, live);
    deployment.aftercare.take_if(|aftercare| *aftercare == Aftercare::default());
}

/// Lets time pass for what follows a success, and judges it.
pub fn tend(draft: &mut Draft<'_>, app: &AppName) {
    let record = draft.app(app);
    let Some(live) = record.live.filter(|_| record.destroying.is_none()) else { return };
    let key = (app.clone(), live);
    let is_at_rest = draft.deployment(app).is_some_and(Deployment::has_ended);
    let aftercare = draft.deployment_of(app, live).and_then(|deployment| deployment.aftercare.clone());
    let Some(mut aftercare) = aftercare.filter(|_| is_at_rest) else {
        draft.progress.accounted.remove(&key);
        return;
    };
    let unrest = settling::unrest(draft, app, live, &aftercare);
    if let Some(reason) = unrest.or_else(|| regression(draft, app, live, &mut aftercare)) {
        go_back(draft, app, live, reason);
        return;
    }
    let elapsed = draft.input.clock.elapsed;
    let since = *draft.progress.accounted.entry(key.clone()).or_insert(elapsed);
    let passed = elapsed.saturating_sub(since);
    let left = |remaining: Duration| remaining.saturating_sub(passed);
    let of_warm = aftercare.warm.map(|warm| left(warm.remaining));
    let of_watch = aftercare.watch.as_ref().map(|watch| left(watch.remaining));
    let of_settling = aftercare.settling.as_ref().map(|settling| left(settling.remaining));
    let all = [of_warm, of_watch, of_settling];
    let is_over = all.contains(&Some(Duration::ZERO));
    if passed >= ACCOUNT_EVERY || is_over {
        if let (Some(warm), Some(left)) = (&mut aftercare.warm, of_warm) {
            warm.remaining = left;
        }
        if let (Some(watch), Some(left)) = (&mut aftercare.watch, of_watch) {
            watch.remaining = left;
        }
        if let (Some(settling), Some(left)) = (&mut aftercare.settling, of_settling) {
            settling.remaining = left;
        }
        draft.change_deployment_of(app, live).aftercare = Some(aftercare);
        draft.progress.accounted.insert(key, elapsed);
        finish(draft, app, live);
    }
    let next = all.into_iter().flatten().filter(|left| *left > Duration::ZERO).min();
    if let Some(next) = next {
        draft.wake_at(elapsed + next.min(ACCOUNT_EVERY));
    }
}

/// Ends what has no time left.
fn finish(draft: &mut Draft<'_>, app: &AppName, live: DeploymentNumber) {
    let aftercare =
        draft.change_deployment_of(app, live).aftercare.as_mut().expect("it was written just now");
    let watch = aftercare.watch.take_if(|watch| watch.remaining.is_zero());
    aftercare.settling.take_if(|settling| settling.remaining.is_zero());
    let is_cold = aftercare.warm.is_some_and(|warm| warm.remaining.is_zero());
    if let Some(watch) = watch {
        draft.progress.judged.remove(&(app.clone(), live));
        let counted = judge::errors(&watch.new);
        note_of(draft, app, live, format!("the watch is over: {counted} failed"));
    }
    if is_cold {
        let_go(draft, app, "their time is over");
    }
    tidy(draft, app, live);
}

/// Why the live release is taken back, when it is. Takes what was counted into `aftercare`.
fn regression(
    draft: &mut Draft<'_>,
    app: &AppName,
    live: DeploymentNumber,
    aftercare: &mut Aftercare,
) -> Option<String> {
    let watch = aftercare.watch.as_mut()?;
    let deployment = draft.deployment_of(app, live)?;
    let (number, before_number) = (deployment.release?, deployment.from?);
    let release = draft.release(app, number)?.clone();
    let limits = release.file.deploy.rollout.abort_if?;
    let before = watch.before.clone();
    let stored = (watch.new.clone(), before.clone(), watch.evidence.clone());
    let rivals = Rivals { new: live, old: live };
    let judging = judge::look(
        draft,
        app,
        rivals,
        Span::Watch,
        || stored,
        |evidence, new, _| weigh_alone(evidence, &limits, new, &before),
    );
    watch.new.clone_from(&judging.new);
    watch.evidence.clone_from(&judging.evidence);
    let verdict = judge::verdict_alone(judging, &limits, &before, number, before_number);
    verdict.or_else(|| {
        release.file.services.keys().find_map(|service| {
            let of_live = members(draft, app, service).into_iter().filter(|member| member.cohort == live);
            of_live
                .into_iter()
                .find_map(|member| trouble_of(draft, service, &member))
                .map(|(reason, _)| reason)
        })
    })
}

/// Begins the deployment that brings the release before back.
fn go_back(draft: &mut Draft<'_>, app: &AppName, live: DeploymentNumber, reason: String) {
    let from = draft.deployment_of(app, live).and_then(|deployment| deployment.from);
    draft.progress.judged.remove(&(app.clone(), live));
    draft.progress.accounted.remove(&(app.clone(), live));
    if let Some(aftercare) = &mut draft.change_deployment_of(app, live).aftercare {
        (aftercare.watch, aftercare.settling) = (None, None);
    }
    tidy(draft, app, live);
    let Some(release) = from.and_then(|from| draft.release(app, from)).cloned() else {
        note_of(draft, app, live, format!("{reason}; the release before it is not kept any more"));
        return;
    };
    note_of(draft, app, live, format!("{reason}; going back to {}", release.number));
    let deployment = rollback(draft.app(app), release, reason, draft.input.clock.wall);
    draft.change_app(app).last_deployment = deployment.number;
    draft.begin_deployment(deployment);
}

fn rollback(record: &App, to: Release, reason: String, at: jiff::Timestamp) -> Deployment {
    let number: ReleaseNumber = to.number;
    let pending = Pending {
        file: to.file,
        config: to.config,
        secrets: to.secrets,
        source: to.source,
        artifact: Some(to.artifact),
        reason: format!("rollback to {number}"),
        note: Some(reason.clone()),
        provenance: to.provenance,
    };
    Deployment {
        app: record.name.clone(),
        number: record.last_deployment.next(),
        kind: DeploymentKind::Rollback,
        by: "rung".to_owned(),
        at,
        phase: Phase::Building,
        draft: Some(pending),
        release: None,
        from: record.current,
        run: None,
        remaining: FIRST_BUDGET,
        cancelled_by: None,
        trouble: None,
        timeline: vec![TimelineEntry::milestone(at, Phase::Building, reason)],
        asked: Default::default(),
        runs: Vec::new(),
        notification: None,
        rollout: None,
        aftercare: None,
    }
}
