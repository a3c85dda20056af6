//! A deployment as it goes on: one line a phase, and how it ended.

use std::time::Duration;

use jiff::Timestamp;
use rung_api::wire::AppStatus;
use rung_model::deployment::EntryKind;
use rung_model::{Deployment, DeploymentKind, Goal, Outcome, Phase};

use super::harmless;
use super::paint::{Mood, Paint};
use super::status::{doing, trouble_lines};
use super::time::span;

/// One phase of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseLine {
    pub phase: Phase,
    /// The last thing that happened in it.
    pub message: String,
    /// What was achieved in it, the newest word on each thing: `web: 2 of 2 healthy`.
    achieved: Vec<String>,
    pub began: Timestamp,
    /// `None` while it goes on.
    pub ended: Option<Timestamp>,
    pub troubled: bool,
}

impl PhaseLine {
    /// The word with which a phase began says what was about to be done; those after it say what was done.
    fn take(&mut self, message: &str) {
        message.clone_into(&mut self.message);
        let subject = |message: &str| message.split_once(": ").map(|(subject, _)| subject.to_owned());
        match self.achieved.iter_mut().find(|known| subject(known) == subject(message)) {
            Some(known) => message.clone_into(known),
            None => self.achieved.push(message.to_owned()),
        }
    }
}

/// The phases that a deployment went through, by its timeline. Phases only go forward, so each is there once.
pub fn phases(deployment: &Deployment) -> Vec<PhaseLine> {
    let mut lines: Vec<PhaseLine> = Vec::new();
    let mut end = None;
    for entry in deployment.timeline.iter().filter(|entry| entry.kind == EntryKind::Milestone) {
        if doing(entry.phase).is_none() {
            end = Some(entry.at);
            continue;
        }
        match lines.last_mut() {
            Some(last) if last.phase == entry.phase => last.take(&entry.message),
            _ => lines.push(PhaseLine {
                phase: entry.phase,
                message: entry.message.clone(),
                achieved: Vec::new(),
                began: if lines.is_empty() { deployment.at } else { entry.at },
                ended: None,
                troubled: false,
            }),
        }
    }
    let now = deployment.timeline.last().map_or(deployment.at, |entry| entry.at);
    if doing(deployment.phase).is_some() && lines.last().is_none_or(|last| last.phase != deployment.phase) {
        let line = PhaseLine {
            phase: deployment.phase,
            message: String::new(),
            achieved: Vec::new(),
            began: now,
            ended: None,
            troubled: false,
        };
        lines.push(line);
    }
    for at in 1..lines.len() {
        lines[at - 1].ended = Some(lines[at].began);
        lines[at - 1].troubled = lines[at].phase == Phase::Reverting;
    }
    if let (Some(last), Some(outcome)) = (lines.last_mut(), deployment.outcome()) {
        last.ended = end.or(Some(now));
        // Reverting is what it does well when the deployment was rolled back.
        last.troubled = last.phase != Phase::Reverting && outcome != Outcome::Succeeded;
    }
    lines
}

/// What a phase is called once it is over.
fn done(phase: Phase) -> &'static str {
    match phase {
        Phase::Building => "built",
        Phase::Releasing => "release command",
        Phase::Rolling => "rolled out",
        Phase::Reverting => "reverted",
        Phase::Succeeded | Phase::RolledBack | Phase::Failed => "ended",
    }
}

/// A line of work that has ended: `ok  built              12 s  npm ci`.
pub fn done_line(mood: Mood, what: &str, took: Duration, detail: &str, paint: Paint) -> String {
    let mark = match mood {
        Mood::Good | Mood::Neutral => "ok",
        Mood::Warning => "!!",
        Mood::Bad => "XX",
    };
    let line = format!("  {}  {what:<15} {:>8}  {}", paint.mood(mood, mark), span(took), harmless(detail));
    line.trim_end().to_owned()
}

pub fn phase_line(line: &PhaseLine, ended: Timestamp, paint: Paint) -> String {
    let took = Duration::try_from(ended.duration_since(line.began)).unwrap_or_default();
    let mood = match (line.troubled, line.phase) {
        (true, _) => Mood::Bad,
        (false, Phase::Reverting) => Mood::Warning,
        (false, _) => Mood::Good,
    };
    let what = match (line.troubled, line.phase) {
        (true, Phase::Building) => "building",
        (true, Phase::Rolling) => "rolling out",
        (_, phase) => done(phase),
    };
    done_line(mood, what, took, &line.achieved.join(", "), paint)
}

/// What goes on now, for the line that moves.
pub fn moving_line(line: &PhaseLine, now: Timestamp) -> String {
    let took = Duration::try_from(now.duration_since(line.began)).unwrap_or_default();
    let doing = doing(line.phase).unwrap_or("ending");
    let message =
        if line.message.is_empty() { String::new() } else { format!(": {}", harmless(&line.message)) };
    format!("{doing} {}{message}", span(took))
}

/// The last words: where it is served, or why not.
pub fn ending(deployment: &Deployment, status: Option<&AppStatus>, took: Duration, paint: Paint) -> String {
    let app = &deployment.app;
    let took = span(took);
    let Some(outcome) = deployment.outcome() else {
        return format!("deployment {} of {app} goes on", deployment.number);
    };
    // Whoever aborts one that goes on for an hour has not waited for that long.
    let last = deployment.timeline.last().map(|entry| entry.at.duration_since(deployment.at));
    let lasted = last.and_then(|lasted| Duration::try_from(lasted).ok()).map_or_else(|| took.clone(), span);
    match outcome {
        Outcome::Succeeded => success(deployment, status, &took, paint),
        Outcome::RolledBack => {
            let back = deployment.from.map(|from| format!("; {from} goes on")).unwrap_or_default();
            let what = deployment
                .release
                .map_or_else(|| deployment.number.to_string(), |release| release.to_string());
            trouble(deployment, format!("{app} {what} was rolled back after {lasted}{back}"), paint)
        }
        Outcome::Failed => {
            let back = match deployment.from {
                Some(from) => format!("; {from} goes on"),
                None => "; nothing is deployed".to_owned(),
            };
            trouble(deployment, format!("deploying {app} failed after {lasted}{back}"), paint)
        }
    }
}

fn success(deployment: &Deployment, status: Option<&AppStatus>, took: &str, paint: Paint) -> String {
    let app = &deployment.app;
    let release = deployment.release.map(|release| format!(" {release}")).unwrap_or_default();
    if deployment.kind == DeploymentKind::Deploy && deployment.release == deployment.from {
        return paint.good(&format!("{app}{release} is live already: nothing has changed ({took})"));
    }
    if deployment.asked.goal == Goal::Release {
        let done = paint.good(&format!("{app}{release} is built ({took})"));
        return format!("{done}\n  what serves was left alone; `rung deploy{release}` rolls it out");
    }
    let change = match (deployment.kind, deployment.from) {
        (DeploymentKind::Restart, _) => " restarted".to_owned(),
        (_, Some(from)) => format!(" in place of {from}"),
        (_, None) => String::new(),
    };
    let urls = status.map(|status| status.urls.join("  ")).unwrap_or_default();
    let at = if urls.is_empty() { String::new() } else { format!(" at {urls}") };
    let headline = match deployment.kind {
        DeploymentKind::Restart => format!("{app}{release}{change} in {took}"),
        _ => format!("{app}{release} is live{at}{change} ({took})"),
    };
    let mut lines = vec![paint.good(&headline)];
    if let Some(status) = status {
        let service = |service: &rung_api::wire::ServiceStatus| {
            format!("{} {}/{}", service.name, service.healthy, service.desired)
        };
        let services = status.services.iter().map(service).collect::<Vec<_>>().join(", ");
        lines.push(paint.dim(&format!("  {services}")));
    }
    lines.join("\n")
}

fn trouble(deployment: &Deployment, headline: String, paint: Paint) -> String {
    let mut lines = vec![paint.bad(&headline)];
    let is_told = deployment.trouble.as_ref().is_some_and(|trouble| trouble.reason.contains("cancelled by"));
    if let Some(by) = deployment.cancelled_by.as_ref().filter(|_| !is_told) {
        lines.push(format!("  cancelled by {}", harmless(by)));
    }
    if let Some(trouble) = &deployment.trouble {
        lines.extend(trouble_lines(trouble, "  ", paint));
    }
    lines.join("\n")
}
