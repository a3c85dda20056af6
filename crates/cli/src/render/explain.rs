//! `rung explain`: a deployment afterwards, with all that its timeline tells.

use std::time::Duration;

use rung_model::deployment::EntryKind;
use rung_model::{
    Deployment, DeploymentKind, Goal, NotificationState, Outcome, ReleaseCommand, Run, TimelineEntry,
};

use super::harmless;
use super::paint::{Mood, Paint};
use super::release::run_lines;
use super::status::{doing, trouble_lines};
use super::time::{Clock, span};

pub fn render(deployment: &Deployment, runs: &[Run], paint: Paint, clock: &Clock) -> String {
    let mut out = vec![headline(deployment, paint)];
    out.push(format!("  begun {} by {}", clock.ago(deployment.at), harmless(&deployment.by)));
    if let Some(by) = &deployment.cancelled_by {
        out.push(format!("  cancelled by {}", harmless(by)));
    }
    out.push(String::new());
    let mut phase = None;
    for entry in &deployment.timeline {
        if phase.replace(entry.phase) != Some(entry.phase)
            && let Some(doing) = doing(entry.phase)
        {
            out.push(paint.dim(doing));
        }
        out.push(line(deployment, entry, paint));
    }
    if let Some(trouble) = &deployment.trouble {
        out.push(String::new());
        out.extend(trouble_lines(trouble, "  ", paint));
    }
    if !runs.is_empty() {
        out.push(String::new());
        out.extend(runs.iter().flat_map(|run| run_lines(run, &[], paint)));
    }
    out.extend(notification(deployment, clock).map(|line| format!("\n  {line}")));
    out.join("\n")
}

fn headline(deployment: &Deployment, paint: Paint) -> String {
    let kind = match (deployment.kind, deployment.asked.goal) {
        (DeploymentKind::Deploy, Goal::Release) => "build of a release",
        (DeploymentKind::Deploy, Goal::Serve) => "deploy",
        (DeploymentKind::Config, _) => "config change",
        (DeploymentKind::Secret, _) => "change of secrets",
        (DeploymentKind::Rollback, _) => "rollback",
        (DeploymentKind::Restart, _) => "restart",
        (DeploymentKind::Promote, _) => "promotion",
    };
    let from = deployment.from.map_or_else(|| "nothing".to_owned(), |release| release.to_string());
    let to = deployment.release.map_or_else(|| "no release".to_owned(), |release| release.to_string());
    let skipped = match deployment.asked.release_command {
        ReleaseCommand::Skip => ", without its release command",
        ReleaseCommand::Once => "",
    };
    let (mood, outcome) = match deployment.outcome() {
        None => (Mood::Warning, "goes on"),
        Some(Outcome::Succeeded) => (Mood::Good, "succeeded"),
        Some(Outcome::RolledBack) => (Mood::Bad, "was rolled back"),
        Some(Outcome::Failed) => (Mood::Bad, "failed"),
    };
    let name = paint.bold(&format!("{} {}", deployment.app, deployment.number));
    let change = match deployment.kind {
        // A tag that has not moved.
        DeploymentKind::Deploy if deployment.release.is_some() && deployment.release == deployment.from => {
            format!(", with nothing new to {to}")
        }
        _ => format!(", from {from} to {to}"),
    };
    format!("{name}  {kind}{change}{skipped}  {}", paint.mood(mood, outcome))
}

/// `+  1.2 s  web: 2 of 2 healthy`.
fn line(deployment: &Deployment, entry: &TimelineEntry, paint: Paint) -> String {
    let after = Duration::try_from(entry.at.duration_since(deployment.at)).unwrap_or_default();
    let text = format!("  +{:>8}  {}", span(after), harmless(&entry.message));
    match entry.kind {
        EntryKind::Milestone => text,
        EntryKind::Detail => paint.dim(&text),
    }
}

fn notification(deployment: &Deployment, clock: &Clock) -> Option<String> {
    let notification = deployment.notification.as_ref()?;
    let webhook = harmless(&notification.webhook);
    Some(match &notification.state {
        NotificationState::Pending => format!("{webhook} is being told"),
        NotificationState::Delivered { at } => format!("{webhook} was told {}", clock.ago(*at)),
        NotificationState::GivenUp { reason } => {
            format!("{webhook} could not be told: {}", harmless(reason))
        }
    })
}
