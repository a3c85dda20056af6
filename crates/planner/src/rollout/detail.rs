//! What a deployment's timeline tells of single instances, for those who look into it afterwards.

use rung_model::deployment::EntryKind;
use rung_model::{AppName, Deployment, DeploymentNumber, InstanceState, Intent, ServiceName, TimelineEntry};

use crate::draft::Draft;
use crate::fleet::{Member, Routing, members};
use crate::reconcile::services;

/// Notes what is new of the instances that come and of those that go.
pub(super) fn note_instances(draft: &mut Draft<'_>, app: &AppName, cohort: DeploymentNumber) {
    // Of a thousand instances only the first ones are told of.
    let deployment = draft.deployment(app).expect("the caller found one");
    let told = deployment.timeline.iter().filter(|entry| entry.kind == EntryKind::Detail);
    if told.count() >= Deployment::DETAILS_MAX {
        return;
    }
    for service in services(draft, app) {
        for member in members(draft, app, &service) {
            let told = if member.cohort == cohort {
                coming(draft, &service, &member)
            } else {
                going(&service, &member).into_iter().collect()
            };
            told.into_iter().for_each(|message| note_detail(draft, app, message));
        }
    }
}

/// Everything that is so by now; what was noted before is not noted again.
fn coming(draft: &Draft<'_>, service: &ServiceName, member: &Member) -> Vec<String> {
    let Member { id, node, .. } = member;
    if member.intent != Intent::Run {
        return Vec::new();
    }
    let mut told = vec![format!("{service}: {id} is started on {node}")];
    let Some(observed) = member.observed(draft) else { return told };
    let why = observed.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match observed.state {
        InstanceState::Preparing | InstanceState::Starting => {}
        InstanceState::Healthy => {
            let at = observed.endpoint.map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
            told.push(format!("{service}: {id} is healthy{at}"));
            if member.routing == Routing::Routed {
                told.push(format!("{service}: {id} gets requests"));
            }
        }
        InstanceState::Unhealthy => told.push(format!("{service}: {id} does not pass its checks{why}")),
        InstanceState::BackingOff | InstanceState::CrashLooping | InstanceState::Failed => {
            told.push(format!("{service}: {id} failed, restart {}{why}", observed.restarts));
        }
        InstanceState::Stopping | InstanceState::Stopped => {}
    }
    told
}

fn going(service: &ServiceName, member: &Member) -> Option<String> {
    let Member { id, release, .. } = member;
    match member.routing {
        Routing::Draining => Some(format!("{service}: {id} of {release} finishes its requests")),
        Routing::Absent | Routing::Routed => None,
    }
}

fn note_detail(draft: &mut Draft<'_>, app: &AppName, message: String) {
    let at = draft.input.clock.wall;
    let deployment = draft.deployment(app).expect("the caller found one");
    let details = deployment.timeline.iter().filter(|entry| entry.kind == EntryKind::Detail);
    let (mut count, mut is_known) = (0, false);
    for entry in details {
        count += 1;
        is_known |= entry.message == message;
    }
    if !is_known && count < Deployment::DETAILS_MAX {
        let phase = deployment.phase;
        draft.change_deployment(app).timeline.push(TimelineEntry::detail(at, phase, message));
    }
}
