//! `rung releases v7` and `rung status --commit`.

use rung_api::wire::{CommitState, CommitStatus, DeploymentSummary, ReleaseDetail};
use rung_model::{AppName, Goal, Origin, Phase, Run, RunKind, RunOutcome, RunState};

use super::harmless;
use super::paint::{Mood, Paint};
use super::status::{doing, trouble_lines};
use super::time::Clock;

/// `logs`: the last lines of each run.
pub fn render(
    app: &AppName,
    detail: &ReleaseDetail,
    logs: &[Vec<String>],
    paint: Paint,
    clock: &Clock,
) -> String {
    let listing = &detail.listing;
    let state = if listing.current { "  current" } else { "" };
    let mut out = vec![format!("{}{}", paint.bold(&format!("{app} {}", listing.number)), paint.good(state))];
    let mut fact = |name: &str, value: String| out.push(format!("  {name:<9} {}", harmless(&value)));
    fact("made", format!("{} by {}: {}", clock.ago(listing.at), listing.by, listing.reason));
    if let Some(note) = &listing.note {
        fact("note", note.clone());
    }
    if let Some(origin) = &listing.origin {
        fact("commit", in_words(origin));
    }
    if let Some(promoted) = &detail.promoted_from {
        fact("promoted", format!("from {} {}", promoted.app, promoted.release));
    }
    fact("artifact", listing.artifact.to_string());
    if !detail.config.is_empty() {
        let config = detail.config.iter().map(|(name, value)| format!("{name}={value}"));
        fact("config", config.collect::<Vec<_>>().join(" "));
    }
    if !detail.secrets.is_empty() {
        let secrets = detail.secrets.iter().map(|(name, version)| format!("{name} (version {version})"));
        fact("secrets", secrets.collect::<Vec<_>>().join(", "));
    }
    out.extend(
        detail.deployments.iter().map(|deployment| format!("  {}", outcome(deployment, paint, clock))),
    );
    for (run, log) in detail.runs.iter().zip(logs) {
        out.extend(run_lines(run, log, paint));
    }
    if let Some(build) =
        detail.build.as_ref().filter(|build| !detail.runs.iter().any(|run| run.id == **build))
    {
        let of = paint.dim(&format!("`rung logs --build {}` shows its log", listing.number));
        out.push(format!("  built by {build}; {of}"));
    }
    out.join("\n")
}

/// `1a2b3c4d5e on main, with changes that are not committed`.
pub fn in_words(origin: &Origin) -> String {
    let branch = origin.branch.as_ref().map(|branch| format!(" on {branch}")).unwrap_or_default();
    let dirty = if origin.dirty { ", with changes that are not committed" } else { "" };
    format!("{}{branch}{dirty}", origin.commit.short())
}

fn outcome(deployment: &DeploymentSummary, paint: Paint, clock: &Clock) -> String {
    let DeploymentSummary { number, by, at, phase, goal, .. } = deployment;
    let (mood, word) = match (phase, goal) {
        (Phase::Succeeded, Goal::Release) => (Mood::Neutral, "made it"),
        (Phase::Succeeded, Goal::Serve) => (Mood::Good, "succeeded"),
        (Phase::RolledBack, _) => (Mood::Bad, "was rolled back"),
        (Phase::Failed, _) => (Mood::Bad, "failed"),
        (going, _) => (Mood::Warning, doing(*going).unwrap_or("goes on")),
    };
    let line = format!("{number} by {} {} {}", harmless(by), paint.mood(mood, word), clock.ago(*at));
    let why = deployment.trouble.as_ref().map(|trouble| format!(": {}", harmless(&trouble.reason)));
    line + &why.unwrap_or_default()
}

/// A run of a deployment, and the end of its log.
pub fn run_lines(run: &Run, log: &[String], paint: Paint) -> Vec<String> {
    let what = match &run.kind {
        RunKind::Build { .. } => "build",
        RunKind::Release { command, .. } => command,
        RunKind::Job { command, .. } | RunKind::OneOff { command, .. } => command,
    };
    let (mood, word) = match &run.state {
        RunState::Pending | RunState::Running { .. } => (Mood::Warning, "goes on".to_owned()),
        RunState::Ended { outcome, .. } => match outcome {
            RunOutcome::Succeeded { .. } => (Mood::Good, "succeeded".to_owned()),
            RunOutcome::Failed { reason, .. } | RunOutcome::Skipped { reason } => (Mood::Bad, reason.clone()),
            RunOutcome::Cancelled => (Mood::Bad, "was cancelled".to_owned()),
        },
    };
    let mut lines =
        vec![format!("  {}: {} {}", run.id, paint.name(&harmless(what)), paint.mood(mood, &harmless(&word)))];
    lines.extend(log.iter().map(|line| paint.dim(&format!("    | {}", harmless(line)))));
    lines
}

pub fn commit(app: &AppName, status: &CommitStatus, paint: Paint, clock: &Clock) -> String {
    let CommitStatus { commit, state, deployment, serves } = status;
    let release = deployment.release.map(|release| format!(" as {release}")).unwrap_or_default();
    let (mood, word) = match (state, deployment.goal) {
        (CommitState::Going, _) => (Mood::Warning, "is being deployed".to_owned()),
        (CommitState::Succeeded, Goal::Release) => (Mood::Good, format!("is built{release}")),
        (CommitState::Succeeded, Goal::Serve) if *serves => (Mood::Good, format!("serves{release}")),
        (CommitState::Succeeded, Goal::Serve) => (Mood::Good, format!("has served{release}")),
        (CommitState::RolledBack, _) => (Mood::Bad, format!("was rolled back{release}")),
        (CommitState::Failed, _) => (Mood::Bad, "could not be deployed".to_owned()),
    };
    let by = harmless(&deployment.by);
    let at = paint.dim(&format!("({} by {by}, {})", deployment.number, clock.ago(deployment.at)));
    let mut lines = vec![format!("{app} {} {} {at}", commit.short(), paint.mood(mood, &word))];
    if let Some(trouble) = &deployment.trouble {
        lines.extend(trouble_lines(trouble, "  ", paint));
    }
    lines.join("\n")
}
