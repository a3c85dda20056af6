//! The first seconds after a success: a release whose instances exit by themselves then is taken back.
//!
//! An application that lacks something often answers its health check first and ends a moment later. A deployment that
//! waited for that would make every good one slower; so success comes at once, and stays in doubt for some seconds. One
//! exit among many instances may happen with any release: half as many exits as a service has instances speak against
//! this one. It does not matter why: an instance that is restarted for its health has not stayed up either.

use std::collections::BTreeMap;

use rung_model::duration::in_words;
use rung_model::rollout::Aftercare;
use rung_model::{AppName, DeploymentNumber, InstanceId, Intent, Release, ServiceName};

use crate::draft::Draft;
use crate::fleet::{Member, members};

/// How often the cohort's instances had ended before now, of those that had.
pub(super) fn exits(
    draft: &Draft<'_>,
    app: &AppName,
    release: &Release,
    cohort: DeploymentNumber,
) -> BTreeMap<InstanceId, u32> {
    let services = release.file.services.keys();
    let all = services.flat_map(|service| serving(draft, app, service, cohort));
    all.map(|member| (member.id.clone(), exits_of(draft, &member))).filter(|(_, exits)| *exits > 0).collect()
}

/// Why the live release is taken back, when its instances do not stay up.
pub(super) fn unrest(
    draft: &Draft<'_>,
    app: &AppName,
    live: DeploymentNumber,
    aftercare: &Aftercare,
) -> Option<String> {
    let before = &aftercare.settling.as_ref()?.exits;
    let release = draft.deployment_of(app, live)?.release.and_then(|number| draft.release(app, number))?;
    let since = |member: &Member| {
        exits_of(draft, member).saturating_sub(before.get(&member.id).copied().unwrap_or(0))
    };
    release.file.services.keys().find_map(|service| {
        let all = serving(draft, app, service, live);
        let ended: u32 = all.iter().map(since).sum();
        if ended == 0 || (ended as usize) * 2 < all.len() {
            return None;
        }
        let first = all.iter().find(|member| since(member) > 0)?;
        let observed = first.observed(draft);
        let why = observed.and_then(|observed| observed.reason.as_ref());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let time = in_words(release.file.deploy.rollout.settle);
        let id = &first.id;
        Some(format!("{service}: instance {id} did not stay up, within {time} of success{why}"))
    })
}

fn serving(draft: &Draft<'_>, app: &AppName, service: &ServiceName, cohort: DeploymentNumber) -> Vec<Member> {
    let mut all = members(draft, app, service);
    all.retain(|member| member.cohort == cohort && member.intent == Intent::Run);
    all
}

fn exits_of(draft: &Draft<'_>, member: &Member) -> u32 {
    member.observed(draft).map_or(0, |observed| observed.exits)
}
