//! `rung ps`, and how an instance's state is said.

use rung_api::wire::InstanceStatus;
use rung_model::InstanceState;

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;

pub fn state(state: InstanceState) -> (&'static str, Mood) {
    match state {
        InstanceState::Preparing => ("preparing", Mood::Warning),
        InstanceState::Starting => ("starting", Mood::Warning),
        InstanceState::Healthy => ("healthy", Mood::Good),
        InstanceState::Unhealthy => ("unhealthy", Mood::Bad),
        InstanceState::BackingOff => ("backing off", Mood::Bad),
        InstanceState::CrashLooping => ("crash looping", Mood::Bad),
        InstanceState::Stopping => ("stopping", Mood::Neutral),
        InstanceState::Stopped => ("stopped", Mood::Neutral),
        InstanceState::Failed => ("failed", Mood::Bad),
    }
}

/// An instance's state, and why it is in it. Of one on a lost node nobody knows.
fn standing(instance: &InstanceStatus) -> (&'static str, Mood, Option<String>) {
    if instance.lost {
        let why = format!("node {} was not heard of for a while", instance.node);
        return ("lost", Mood::Bad, Some(why));
    }
    let (word, mood) = state(instance.state);
    (word, mood, instance.reason.clone())
}

/// Whether it is told where instances are: on one machine alone they are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Shown,
    Known,
}

impl Place {
    /// `nodes`: how many the cluster has, as far as that is known.
    pub fn of(instances: &[InstanceStatus], nodes: usize) -> Self {
        let on_several = instances.windows(2).any(|pair| pair[0].node != pair[1].node);
        if nodes > 1 || on_several { Self::Shown } else { Self::Known }
    }
}

pub fn render(instances: &[InstanceStatus], place: Place, paint: Paint, clock: &Clock) -> String {
    if instances.is_empty() {
        return "no instances".to_owned();
    }
    let headings =
        ["INSTANCE", "NODE", "RELEASE", "STATE", "SINCE", "REQUESTS", "ADDRESS", "PID", "RESTARTS", "WHY"];
    let rows: Vec<_> = instances
        .iter()
        .map(|instance| {
            let (word, mood, why) = standing(instance);
            let optional = |value: Option<String>| cell(value.unwrap_or_default());
            vec![
                cell(&instance.id),
                optional((place == Place::Shown).then(|| instance.node.to_string())),
                cell(instance.release),
                colored(word, mood),
                cell(clock.since(instance.since)),
                cell(if instance.routed { "yes" } else { "" }),
                optional(instance.endpoint.map(|endpoint| endpoint.to_string())),
                optional(instance.pid.map(|pid| pid.to_string())),
                cell(if instance.restarts > 0 { instance.restarts.to_string() } else { String::new() }),
                optional(why),
            ]
        })
        .collect();
    table(&headings, &rows, paint)
}
