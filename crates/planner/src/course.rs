//! The course of a deployment's traffic: which steps it takes, by its strategy and kind, and what each aims at.

use std::time::Duration;

use rung_model::appfile::RolloutPolicy;
use rung_model::appfile::rollout::{Share, Strategy};
use rung_model::{AppName, Deployment, DeploymentKind, Phase};

use crate::draft::Draft;

/// What a step brings about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// All new instances are healthy, and none gets a request.
    Ready,
    /// This part of the visitors is on new instances, of which there are as many as that takes.
    Part(Share),
    /// Everybody is on the new instances.
    Everybody(Changeover),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changeover {
    /// An old instance leaves when a new one stands in for it.
    OneByOne { batch: Option<u32> },
    /// All at the moment when all new ones are healthy.
    AtOnce,
}

/// When a step whose target is reached is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Reached,
    After(Duration),
    /// Somebody says so.
    Word,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub target: Target,
    pub until: Until,
}

const fn everybody(changeover: Changeover) -> Step {
    Step { target: Target::Everybody(changeover), until: Until::Reached }
}

/// The steps of a deployment, the last of which is everybody.
pub(crate) fn steps(draft: &Draft<'_>, app: &AppName, deployment: &Deployment) -> Vec<Step> {
    let release = deployment.release.and_then(|number| draft.release(app, number));
    let all_beside_all = everybody(Changeover::OneByOne { batch: None });
    let Some(policy) = release.map(|release| &release.file.deploy.rollout) else {
        return vec![all_beside_all];
    };
    // Without a release before it there is nobody to compare with, and nothing to lose.
    if draft.app(app).live.is_none() {
        return vec![all_beside_all];
    }
    match (deployment.kind, &policy.strategy) {
        // Whoever goes back wants to be back.
        (DeploymentKind::Rollback, _) => vec![everybody(Changeover::AtOnce)],
        (_, Strategy::Rolling { batch }) => vec![everybody(Changeover::OneByOne { batch: *batch })],
        // It brings what serves already.
        (DeploymentKind::Restart, _) => vec![all_beside_all],
        (_, Strategy::BlueGreen) => {
            vec![Step { target: Target::Ready, until: Until::Reached }, everybody(Changeover::AtOnce)]
        }
        (_, Strategy::Canary { steps }) => {
            let parts = steps.iter().filter(|step| step.share < Share::ALL);
            let mut course: Vec<Step> = parts
                .map(|step| Step {
                    target: Target::Part(step.share),
                    until: step.time.map_or(Until::Word, Until::After),
                })
                .collect();
            course.push(all_beside_all);
            course
        }
    }
}

/// The step that a deployment is at, and whether it is the last.
pub(crate) fn step(draft: &Draft<'_>, app: &AppName, deployment: &Deployment) -> (Step, bool) {
    let steps = steps(draft, app, deployment);
    let at = deployment.rollout.as_ref().map_or(0, |rollout| rollout.step as usize);
    let at = at.min(steps.len() - 1);
    (steps[at], at + 1 == steps.len())
}

/// What the deployment that rolls aims at.
pub(crate) fn target(draft: &Draft<'_>, app: &AppName) -> Option<Target> {
    let deployment = draft.deployment(app).filter(|deployment| deployment.phase == Phase::Rolling)?;
    Some(step(draft, app, deployment).0.target)
}

/// How a deployment that rolls or reverts shall be done.
pub(crate) fn policy<'d>(
    draft: &'d Draft<'_>,
    app: &AppName,
    deployment: &Deployment,
) -> Option<&'d RolloutPolicy> {
    draft.release(app, deployment.release?).map(|release| &release.file.deploy.rollout)
}

/// So many instances carry a part of the visitors.
pub(crate) fn part_of(count: u32, share: Share) -> u32 {
    let part = (u64::from(count) * u64::from(share.0)).div_ceil(u64::from(Share::ALL.0));
    // At least one, when there shall be any: with no share it is for testers.
    u32::try_from(part).unwrap_or(count).max(count.min(1))
}
