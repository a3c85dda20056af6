//! `rung releases`.

use rung_api::wire::ReleaseListing;

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;

pub fn render(releases: &[ReleaseListing], paint: Paint, clock: &Clock) -> String {
    if releases.is_empty() {
        return "no release yet; deploy one with `rung deploy`".to_owned();
    }
    let rows: Vec<_> = releases
        .iter()
        .map(|release| {
            let (state, mood) = state(release);
            let commit = release.origin.as_ref().map(|origin| {
                let dirty = if origin.dirty { "+" } else { "" };
                format!("{}{dirty}", origin.commit.short())
            });
            vec![
                cell(release.number),
                colored(state, mood),
                cell(clock.ago(release.at)),
                cell(&release.by),
                cell(&release.reason),
                cell(commit.unwrap_or_default()),
                cell(release.note.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    table(&["RELEASE", "STATE", "MADE", "BY", "WHY", "COMMIT", "NOTE"], &rows, paint)
}

fn state(release: &ReleaseListing) -> (&'static str, Mood) {
    match release {
        ReleaseListing { current: true, .. } => ("current", Mood::Good),
        ReleaseListing { deploying: true, .. } => ("deploying", Mood::Neutral),
        ReleaseListing { cancelled: true, .. } => ("cancelled", Mood::Warning),
        ReleaseListing { failed: true, .. } => ("failed", Mood::Bad),
        ReleaseListing { available: false, .. } => ("pruned", Mood::Warning),
        ReleaseListing { waits: true, .. } => ("waits", Mood::Neutral),
        _ => ("", Mood::Neutral),
    }
}
