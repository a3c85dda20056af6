//! What a deployment owes its visitors: steps that are held for their time, shares that are not exceeded, and an end that
//! has its reason.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_model::appfile::rollout::{CanaryStep, Share, Strategy};
use rung_model::rollout::{Stage, Verdict};
use rung_model::{Deployment, Phase, Release, RouteDocument, keys};

use super::parse;
use crate::apps::Behaviour;
use crate::story::Story;

/// Since when a step of a deployment has been held.
#[derive(Debug, Default)]
pub struct Steps(BTreeMap<String, (u32, Duration)>);

/// Between a plan and its commit some milliseconds pass, or seconds when messages are slow.
const LEEWAY: Duration = Duration::from_secs(2);

impl Story {
    fn release_of(&self, deployment: &Deployment) -> Option<Release> {
        let held = self.store.get(&keys::release(&deployment.app, deployment.release?)).value?;
        Some(parse(&held.value))
    }

    fn canary_step(&self, deployment: &Deployment, step: u32) -> Option<CanaryStep> {
        match self.release_of(deployment)?.file.deploy.rollout.strategy {
            Strategy::Canary { steps } => steps.get(step as usize).copied(),
            Strategy::Rolling { .. } | Strategy::BlueGreen => None,
        }
    }

    /// A step of a canary is held for its time, whoever dies meanwhile, unless a person says that it shall end.
    pub(super) fn audit_step(&mut self, key: &str, new: &Deployment) {
        let held = &mut self.audit.steps.0;
        let Some(rollout) = new.rollout.as_ref().filter(|_| new.phase == Phase::Rolling) else {
            held.remove(key);
            return;
        };
        match rollout.stage {
            Stage::Holding => {
                let since = held.entry(key.to_owned()).or_insert((rollout.step, self.now));
                if since.0 != rollout.step {
                    *since = (rollout.step, self.now);
                }
            }
            Stage::Moving => {
                let Some((step, since)) = held.remove(key) else { return };
                let last = rollout.decisions.last();
                let by_word = last.is_some_and(|decision| decision.reason.ends_with("said so"));
                let time = self.canary_step(new, step).and_then(|step| step.time).unwrap_or_default();
                let held = self.now - since;
                if !by_word && held + LEEWAY < time {
                    self.fail(format!("step {step} of {key} was held for {held:?} instead of {time:?}"));
                }
            }
            Stage::AwaitingWord | Stage::AwaitingTraffic => {}
        }
    }

    /// While a canary is at a step, no more visitors get it than the step says.
    pub(super) fn audit_shares(&mut self, document: &RouteDocument) {
        for split in document.backends.values().filter_map(|backend| backend.split.as_ref()) {
            let key = keys::deployment(&document.app, split.candidate);
            let Some(held) = self.store.get(&key).value else {
                self.fail(format!("visitors are given to {key}, which is not there"));
                return;
            };
            let deployment: Deployment = parse(&held.value);
            let at = deployment.rollout.as_ref().map_or(0, |rollout| rollout.step);
            let most = self.canary_step(&deployment, at).map_or(Share::ALL, |step| step.share);
            if deployment.phase == Phase::Rolling && split.share > most {
                self.fail(format!(
                    "{} of the visitors are given to {key}, whose step says {most}",
                    split.share
                ));
            }
        }
    }

    /// A release that never fails is not taken back for failing.
    pub(super) fn audit_verdict(&mut self, key: &str, new: &Deployment) {
        let Some(decision) = new.rollout.as_ref().and_then(|rollout| rollout.decisions.last()) else {
            return;
        };
        let is_for_numbers =
            decision.verdict == Verdict::Abort && decision.reason.contains("fails more often");
        if new.phase != Phase::Reverting || !is_for_numbers {
            return;
        }
        self.summary.aborts += 1;
        let Some(release) = self.release_of(new) else { return };
        let mut services = release.file.services.values();
        if services.all(|service| Behaviour::of(service.command.as_deref().unwrap_or_default()).errs == 0) {
            self.fail(format!("{key} was aborted although it never fails: {}", decision.reason));
        }
    }
}
