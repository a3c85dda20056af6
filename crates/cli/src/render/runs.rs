//! `rung run --list`, and the end of `rung ps`: runs that go on.

use rung_model::{Run, RunKind, RunState};

use super::paint::Paint;
use super::table::{Cell, cell, table};
use super::time::Clock;

/// How much of a command fits beside the other columns; `--json` has all of it.
const COMMAND_MAX: usize = 60;

pub fn render(runs: &[Run], paint: Paint, clock: &Clock) -> String {
    if runs.is_empty() {
        return "nothing runs beside the instances".to_owned();
    }
    let rows: Vec<_> = runs.iter().map(|run| row(run, clock)).collect();
    table(&["RUN", "WHAT", "SINCE", "BY", "COMMAND"], &rows, paint)
}

fn row(run: &Run, clock: &Clock) -> Vec<Cell> {
    let (what, command) = match &run.kind {
        RunKind::Build { command, test, .. } => ("build", command.as_ref().or(test.as_ref()).cloned()),
        RunKind::Release { command, .. } => ("release command", Some(command.clone())),
        RunKind::Job { command, .. } => ("job", Some(command.clone())),
        RunKind::OneOff { command, .. } => ("command", Some(command.clone())),
    };
    let since = match &run.state {
        RunState::Running { since } => clock.since(*since),
        RunState::Pending | RunState::Ended { .. } => "waits".to_owned(),
    };
    let since = if run.cancelled { format!("{since}, is being ended") } else { since };
    vec![cell(&run.id), cell(what), cell(since), cell(&run.by), cell(short(&command.unwrap_or_default()))]
}

fn short(command: &str) -> String {
    let line = command.lines().next().unwrap_or_default();
    if line.len() == command.len() && line.chars().count() <= COMMAND_MAX {
        return line.to_owned();
    }
    line.chars().take(COMMAND_MAX).chain("…".chars()).collect()
}
