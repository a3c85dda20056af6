//! `rung audit`.

use jiff::Timestamp;
use rung_api::Code;
use serde::Serialize;

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;

/// A change with what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub sequence: u64,
    pub at: Timestamp,
    pub who: String,
    pub from: String,
    pub what: String,
    pub method: String,
    pub path: String,
    pub app: Option<String>,
    /// `None`: it goes on, or the server was killed in the middle of it.
    pub end: Option<End>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    pub refused: Option<Code>,
    pub status: u16,
    pub note: Option<String>,
    pub by: Option<String>,
}

pub fn render(changes: &[Change], paint: Paint, clock: &Clock) -> String {
    if changes.is_empty() {
        return "nothing was changed yet".to_owned();
    }
    let rows: Vec<_> = changes
        .iter()
        .map(|change| {
            let (outcome, mood) = outcome(change.end.as_ref());
            let end = change.end.as_ref();
            let by = end.and_then(|end| end.by.as_deref());
            vec![
                cell(change.sequence),
                cell(clock.ago(change.at)),
                cell(by.map_or_else(|| change.who.clone(), |by| format!("{} ({by})", change.who))),
                cell(&change.from),
                cell(&change.what),
                cell(change.app.as_deref().unwrap_or_default()),
                colored(outcome, mood),
                cell(end.and_then(|end| end.note.as_deref()).unwrap_or_default()),
            ]
        })
        .collect();
    table(&["", "WHEN", "WHO", "FROM", "WHAT", "APP", "OUTCOME", ""], &rows, paint)
}

fn outcome(end: Option<&End>) -> (String, Mood) {
    match end {
        None => ("not known".to_owned(), Mood::Warning),
        Some(End { status: 200..=399, .. }) => ("done".to_owned(), Mood::Good),
        Some(End { refused: Some(code), .. }) => {
            let code = serde_json::to_value(code).ok();
            let code = code.as_ref().and_then(|code| code.as_str()).unwrap_or("refused");
            (code.replace('_', " "), Mood::Bad)
        }
        Some(End { status, .. }) => (format!("status {status}"), Mood::Bad),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn the_trail_tells_who_did_what_and_what_came_of_it() {
        let now: Timestamp = "2026-03-04T10:00:00Z".parse().unwrap();
        let clock = Clock { now, zone: TimeZone::UTC };
        let change = |sequence, who: &str, end| Change {
            sequence,
            at: "2026-03-04T09:57:00Z".parse().unwrap(),
            who: who.into(),
            from: "192.0.2.7".into(),
            what: "Change counts of instances".into(),
            method: "POST".into(),
            path: "/v1/apps/shop/scale".into(),
            app: Some("shop".into()),
            end,
        };
        let end = |refused, status| {
            Some(End { refused, status, note: Some("web=3".into()), by: Some("ada@laptop".into()) })
        };
        let changes = [
            change(1, "ci", end(None, 200)),
            change(3, "eve", end(Some(Code::NotFound), 404)),
            change(5, "owner", None),
        ];
        expect![[r#"
               WHEN               WHO               FROM       WHAT                        APP   OUTCOME
            1  3 min ago (09:57)  ci (ada@laptop)   192.0.2.7  Change counts of instances  shop  done       web=3
            3  3 min ago (09:57)  eve (ada@laptop)  192.0.2.7  Change counts of instances  shop  not found  web=3
            5  3 min ago (09:57)  owner             192.0.2.7  Change counts of instances  shop  not known"#]]
        .assert_eq(&render(&changes, Paint::Plain, &clock));
    }
}
