//! From one step of a rollout to the next: by time, by a person's word, by what was counted.

use std::time::Duration;

use rung_model::appfile::rollout::{AbortIf, Share, WithoutTraffic};
use rung_model::duration::in_words;
use rung_model::rollout::{Decision, Numbers, Rollout, Stage, Verdict};
use rung_model::traffic::Counts;
use rung_model::{AppName, DeploymentNumber, Release, ReleaseNumber};

use super::evidence::weigh;
use super::judge::{self, Judging, Rivals, Span};
use super::{note, revert, set_budget};
use crate::course::{Step, Target, Until};
use crate::draft::Draft;

fn rollout(draft: &Draft<'_>, app: &AppName) -> Rollout {
    draft.deployment(app).and_then(|deployment| deployment.rollout.clone()).unwrap_or_default()
}

fn change<'d>(draft: &'d mut Draft<'_>, app: &AppName) -> &'d mut Rollout {
    draft.change_deployment(app).rollout.get_or_insert_default()
}

/// The release that serves beside the new one.
#[derive(Debug, Clone, Copy)]
struct Old {
    cohort: DeploymentNumber,
    release: ReleaseNumber,
}

fn old(draft: &Draft<'_>, app: &AppName) -> Option<Old> {
    let record = draft.app(app);
    Some(Old { cohort: record.live?, release: record.current? })
}

/// Looks at what the proxies counted. True when the deployment is being reverted for it.
pub(super) fn judge(draft: &mut Draft<'_>, app: &AppName, release: &Release, step: Step) -> bool {
    let Some((limits, old)) = release.file.deploy.rollout.abort_if.zip(old(draft, app)) else { return false };
    let stored = rollout(draft, app);
    let cohort = draft.deployment(app).expect("the caller found one").number;
    let span = Span::Step(stored.step);
    let rivals = Rivals { new: cohort, old: old.cohort };
    let judging = judge::look(
        draft,
        app,
        rivals,
        span,
        || (stored.new, stored.old, stored.evidence),
        |evidence, new, old| weigh(evidence, &limits, new, old),
    )
    .clone();
    if draft.writes_deployment(app) {
        keep(draft, app, &judging);
    }
    let Some(reason) = judge::verdict(&judging, &limits, release.number, old.release) else { return false };
    keep(draft, app, &judging);
    decide(draft, app, step, Verdict::Abort, reason.clone());
    revert(draft, app, reason, Vec::new());
    true
}

fn keep(draft: &mut Draft<'_>, app: &AppName, judging: &Judging) {
    let rollout = change(draft, app);
    rollout.new.clone_from(&judging.new);
    rollout.old.clone_from(&judging.old);
    rollout.evidence.clone_from(&judging.evidence);
}

/// What was counted in this step so far, of the new release and the old one, written or not.
fn counted(draft: &Draft<'_>, app: &AppName) -> (Counts, Counts) {
    let number = draft.deployment(app).map(|deployment| deployment.number).unwrap_or_default();
    match draft.progress.judged.get(&(app.clone(), number)) {
        Some(judging) => (judging.new.clone(), judging.old.clone()),
        None => {
            let stored = rollout(draft, app);
            (stored.new, stored.old)
        }
    }
}

fn decide(draft: &mut Draft<'_>, app: &AppName, step: Step, verdict: Verdict, reason: String) {
    let at = draft.input.clock.wall;
    let (new, old) = counted(draft, app);
    let (new, old) = (Numbers::from(&new), Numbers::from(&old));
    let rollout = change(draft, app);
    let share = match step.target {
        Target::Ready => Share::NONE,
        Target::Part(share) => share,
        Target::Everybody(_) => Share::ALL,
    };
    rollout.decisions.push(Decision { at, step: rollout.step, share, verdict, reason, new, old });
    let excess = rollout.decisions.len().saturating_sub(Rollout::DECISIONS_MAX);
    rollout.decisions.drain(..excess);
}

/// The step's instances serve: its time begins.
pub(super) fn reached(draft: &mut Draft<'_>, app: &AppName, release: &Release, step: Step) {
    let number = release.number;
    let share = match step.target {
        Target::Part(share) => share,
        Target::Ready | Target::Everybody(_) => Share::NONE,
    };
    let who =
        if share == Share::NONE { "testers get".to_owned() } else { format!("{share} of visitors get") };
    match step.until {
        Until::Reached => {
            next(
                draft,
                app,
                release,
                format!("bluegreen: all of {number} is healthy; everybody changes over"),
            );
        }
        Until::After(time) => {
            stand(draft, app, Stage::Holding, time);
            note(draft, app, format!("canary: {who} {number} for {}", in_words(time)));
        }
        Until::Word => {
            let patience = release.file.deploy.rollout.wait_at_most;
            stand(draft, app, Stage::AwaitingWord, patience);
            let patience = in_words(patience);
            note(
                draft,
                app,
                format!("canary: {who} {number}; it waits for `rung continue`, {patience} at most"),
            );
        }
    }
}

fn stand(draft: &mut Draft<'_>, app: &AppName, stage: Stage, budget: Duration) {
    change(draft, app).stage = stage;
    set_budget(draft, app, budget);
}

fn next(draft: &mut Draft<'_>, app: &AppName, release: &Release, why: String) {
    let rollout = change(draft, app);
    *rollout = Rollout {
        step: rollout.step + 1,
        decisions: std::mem::take(&mut rollout.decisions),
        ..Rollout::default()
    };
    set_budget(draft, app, release.file.deploy.deadline);
    note(draft, app, why);
}

/// Goes on, waits or gives up, once a step stands.
pub(super) fn stay(draft: &mut Draft<'_>, app: &AppName, release: &Release, step: Step, remaining: Duration) {
    let rollout = rollout(draft, app);
    if let Some(by) = rollout.continued_by {
        let why = format!("canary: {by} continues");
        decide(draft, app, step, Verdict::Continue, format!("{by} said so"));
        next(draft, app, release, why);
        return;
    }
    let policy = &release.file.deploy.rollout;
    let lacking = policy.abort_if.as_ref().and_then(|limits| lacking(draft, app, limits, release.number));
    match (rollout.stage, lacking) {
        (Stage::Holding, Some(lacking)) if remaining.is_zero() => {
            without_traffic(draft, app, release, step, lacking);
        }
        (Stage::Holding, None) if remaining.is_zero() => good(draft, app, release, step),
        (Stage::AwaitingTraffic, None) => good(draft, app, release, step),
        (Stage::AwaitingTraffic, Some(lacking)) if remaining.is_zero() => {
            let reason = format!("{lacking}, within {}", in_words(policy.wait_at_most));
            decide(draft, app, step, Verdict::Abort, reason.clone());
            revert(draft, app, reason, Vec::new());
        }
        (Stage::AwaitingWord, _) if remaining.is_zero() => {
            let reason = format!("nobody said `rung continue` within {}", in_words(policy.wait_at_most));
            decide(draft, app, step, Verdict::Abort, reason.clone());
            revert(draft, app, reason, Vec::new());
        }
        _ => {}
    }
}

/// What is missing to judge the release, in words.
fn lacking(draft: &Draft<'_>, app: &AppName, limits: &AbortIf, number: ReleaseNumber) -> Option<String> {
    let requests = counted(draft, app).0.requests;
    (requests < limits.requests)
        .then(|| format!("{number} got {requests} requests; {} are needed to judge it", limits.requests))
}

fn good(draft: &mut Draft<'_>, app: &AppName, release: &Release, step: Step) {
    let reason = match release.file.deploy.rollout.abort_if {
        Some(_) => {
            let (new, old) = counted(draft, app);
            let (new, old) = (judge::errors(&new), judge::errors(&old));
            format!("{} is no worse: {new} failed, against {old}", release.number)
        }
        None => "its time is over".to_owned(),
    };
    decide(draft, app, step, Verdict::Continue, reason.clone());
    next(draft, app, release, format!("canary: {reason}; going on"));
}

fn without_traffic(draft: &mut Draft<'_>, app: &AppName, release: &Release, step: Step, lacking: String) {
    let policy = &release.file.deploy.rollout;
    match policy.without_traffic {
        WithoutTraffic::Wait => {
            decide(draft, app, step, Verdict::Wait, lacking.clone());
            stand(draft, app, Stage::AwaitingTraffic, policy.wait_at_most);
            let patience = in_words(policy.wait_at_most);
            note(draft, app, format!("canary: {lacking}; it waits for them, {patience} at most"));
        }
        WithoutTraffic::Continue => {
            decide(draft, app, step, Verdict::Continue, lacking.clone());
            next(draft, app, release, format!("canary: {lacking}; going on, as configured"));
        }
        WithoutTraffic::Abort => {
            decide(draft, app, step, Verdict::Abort, lacking.clone());
            revert(draft, app, format!("{lacking}; aborted, as configured"), Vec::new());
        }
    }
}
