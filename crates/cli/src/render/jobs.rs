//! `rung job list` and `rung job history`.

use std::time::Duration;

use rung_api::wire::JobListing;
use rung_model::{JobRun, Run, RunOutcome, RunState};

use super::harmless;
use super::paint::{Mood, Paint};
use super::table::{Cell, cell, colored, table};
use super::time::{Clock, span};

/// How much of a reason fits beside the other columns; a longer one has lines of its own below them.
const REASON_MAX: usize = 60;

pub fn render(jobs: &[JobListing], paint: Paint, clock: &Clock) -> String {
    if jobs.is_empty() {
        return "the app has no jobs; they are written `[jobs.<name>]` in rung.toml".to_owned();
    }
    let rows: Vec<_> = jobs.iter().map(|job| row(job, clock)).collect();
    table(&["JOB", "SCHEDULE", "ZONE", "NEXT", "LAST", "RELEASE"], &rows, paint)
}

fn row(job: &JobListing, clock: &Clock) -> Vec<Cell> {
    let next = match (&job.schedule, &job.paused, job.next.first()) {
        (None, _, _) => cell("on demand"),
        (Some(_), Some(paused), _) => {
            colored(format!("paused by {} {}", paused.by, clock.since(paused.since)), Mood::Warning)
        }
        (Some(_), None, Some(next)) => cell(clock.ahead(*next)),
        (Some(_), None, None) => colored("never", Mood::Warning),
    };
    let zone = job.schedule.as_ref().map(|_| job.timezone.as_str()).unwrap_or_default();
    let last = match &job.last {
        Some(run) => {
            let (outcome, mood) = outcome(run);
            colored(format!("{outcome} {}", clock.ago(run.at)), mood)
        }
        None => cell("never ran"),
    };
    vec![
        cell(&job.name),
        cell(job.schedule.as_ref().map(ToString::to_string).unwrap_or_default()),
        cell(zone),
        next,
        last,
        cell(job.pinned.map(|release| format!("pinned to {release}")).unwrap_or_default()),
    ]
}

pub fn history(runs: &[Run], paint: Paint, clock: &Clock) -> String {
    if runs.is_empty() {
        return "it never ran".to_owned();
    }
    let rows: Vec<_> = runs.iter().filter_map(|run| Some(record(run, run.of_job()?, clock))).collect();
    let mut out = table(&["RUN", "FOR", "OUTCOME", "TOOK", "RELEASE", "NODE", "BY", "WHY"], &rows, paint);
    for (run, reason) in
        runs.iter().filter_map(|run| Some((run, reason(run)?))).filter(|(_, why)| is_long(why))
    {
        out.push_str(&format!("\n\n{}\n  {}", paint.dim(run.id.as_str()), harmless(reason)));
    }
    out
}

fn record(run: &Run, of: &JobRun, clock: &Clock) -> Vec<Cell> {
    let (outcome, mood) = outcome(run);
    let when = match (of.scheduled, of.through) {
        (None, _) => "on demand".to_owned(),
        (Some(time), None) => clock.of_line(time),
        (Some(from), Some(through)) => format!("{} to {}", clock.of_line(from), clock.of_line(through)),
    };
    let when = if of.attempt > 1 { format!("{when}, try {}", of.attempt) } else { when };
    let release = run.release().filter(|_| !run.was_skipped());
    vec![
        cell(&run.id),
        cell(when),
        colored(outcome, mood),
        cell(took(run, of, clock).map(span).unwrap_or_default()),
        cell(release.map(|release| release.to_string()).unwrap_or_default()),
        cell(run.node.as_ref().map(ToString::to_string).unwrap_or_default()),
        cell(&run.by),
        cell(why(run)),
    ]
}

fn outcome(run: &Run) -> (&'static str, Mood) {
    match &run.state {
        RunState::Pending => ("waits", Mood::Neutral),
        RunState::Running { .. } => ("running", Mood::Neutral),
        RunState::Ended { outcome, .. } => match outcome {
            RunOutcome::Succeeded { .. } => ("succeeded", Mood::Good),
            RunOutcome::Failed { .. } => ("failed", Mood::Bad),
            RunOutcome::Cancelled => ("cancelled", Mood::Warning),
            RunOutcome::Skipped { .. } => ("skipped", Mood::Warning),
        },
    }
}

fn took(run: &Run, of: &JobRun, clock: &Clock) -> Option<Duration> {
    match &run.state {
        RunState::Pending => None,
        RunState::Running { since } => Some(clock.elapsed(*since)),
        RunState::Ended { at, .. } => Duration::try_from(at.duration_since(of.started?)).ok(),
    }
}

fn why(run: &Run) -> String {
    match reason(run) {
        Some(reason) if is_long(reason) => reason.chars().take(REASON_MAX).chain("…".chars()).collect(),
        reason => reason.unwrap_or_default().to_owned(),
    }
}

fn is_long(reason: &str) -> bool {
    reason.chars().count() > REASON_MAX
}

fn reason(run: &Run) -> Option<&str> {
    let RunState::Ended { outcome, .. } = &run.state else { return None };
    match outcome {
        RunOutcome::Failed { reason, .. } | RunOutcome::Skipped { reason } => Some(reason),
        RunOutcome::Succeeded { .. } | RunOutcome::Cancelled => None,
    }
}
