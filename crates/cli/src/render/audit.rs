//! `rung audit`.

use jiff::Timestamp;
use rung_api::Code;
use rung_api::audit::{AuditRecord, Broken, Head, ServerTrail, Standing};
use rung_model::NodeId;
use serde::{Serialize, Serializer};

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;

/// A change with what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The one that was asked.
    pub server: NodeId,
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

/// `several`: each change was asked of one of several servers.
pub fn render(changes: &[Change], several: bool, paint: Paint, clock: &Clock) -> String {
    if changes.is_empty() {
        return "nothing was changed yet".to_owned();
    }
    let rows: Vec<_> = changes
        .iter()
        .map(|change| {
            let (outcome, mood) = outcome(change.end.as_ref());
            let end = change.end.as_ref();
            let by = end.and_then(|end| end.by.as_deref());
            let mut row = vec![
                cell(change.sequence),
                cell(clock.ago(change.at)),
                cell(by.map_or_else(|| change.who.clone(), |by| format!("{} ({by})", change.who))),
                cell(&change.from),
                cell(&change.what),
                cell(change.app.as_deref().unwrap_or_default()),
                colored(outcome, mood),
                cell(end.and_then(|end| end.note.as_deref()).unwrap_or_default()),
            ];
            if several {
                row.insert(0, cell(&change.server));
            }
            row
        })
        .collect();
    let heads = ["SERVER", "", "WHEN", "WHO", "FROM", "WHAT", "APP", "OUTCOME", ""];
    table(&heads[usize::from(!several)..], &rows, paint)
}

/// What is not shown of a trail, or may not be all.
pub fn is_missing(trail: &ServerTrail, clock: &Clock) -> Option<String> {
    let server = &trail.server;
    let last = || trail.records.last().and_then(|record| Some((record.entry().ok()?, record)));
    let until = || match last() {
        Some((entry, _)) => {
            format!(
                "what others have copied of its trail goes to record {}, {}",
                entry.sequence,
                clock.ago(entry.at)
            )
        }
        None => "nobody has a copy of its trail".to_owned(),
    };
    match &trail.standing {
        Standing::Silent { why } => Some(format!("server {server} can't be asked ({why}); {}", until())),
        Standing::Gone => Some(format!("{server} is no server any more; {}", until())),
        Standing::Answered => {
            let trouble = trail.trouble.as_deref()?;
            Some(format!(
                "the trail of server {server} is not copied any more: {trouble}; see `rung audit verify`"
            ))
        }
    }
}

/// A trail that was read from its beginning to its end.
#[derive(Debug, Serialize)]
pub struct Checked {
    #[serde(serialize_with = "without_records", flatten)]
    pub trail: ServerTrail,
    #[serde(serialize_with = "in_words", rename = "whole")]
    pub found: Result<Option<(u64, Head)>, Broken>,
}

fn without_records<S: Serializer>(trail: &ServerTrail, serializer: S) -> Result<S::Ok, S::Error> {
    ServerTrail { records: Vec::<AuditRecord>::new(), ..trail.clone() }.serialize(serializer)
}

fn in_words<S: Serializer>(
    found: &Result<Option<(u64, Head)>, Broken>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let found = found.as_ref().map(|range| range.as_ref().map(|(first, head)| (first, head)));
    found.map_err(ToString::to_string).serialize(serializer)
}

/// What is whole, and what is to be kept elsewhere.
pub fn verified(checked: &[Checked]) -> String {
    let several = checked.len() > 1;
    let mut lines = Vec::new();
    let mut heads = Vec::new();
    for Checked { trail, found } in checked {
        let server = &trail.server;
        let what = match (&trail.standing, several) {
            (Standing::Answered, false) => "the audit trail".to_owned(),
            (Standing::Answered, true) => format!("the audit trail of {server}"),
            (Standing::Silent { .. } | Standing::Gone, _) => {
                format!("the copy here of the audit trail of {server}")
            }
        };
        match found {
            Ok(None) => lines.push(format!("{what} is empty")),
            Ok(Some((first, head))) => {
                lines.push(format!("{what} is whole, from record {first} to {}", head.sequence));
                heads.push(if several { format!("{server}:{head}") } else { head.to_string() });
            }
            Err(_) => {}
        }
    }
    match heads.len() {
        0 => {}
        1 => lines.push("keep this elsewhere, and give it with --seen the next time:".to_owned()),
        _ => lines.push("keep these elsewhere, and give each with --seen the next time:".to_owned()),
    }
    lines.extend(heads);
    lines.join("\n")
}

/// Whatever is not as it should be, with the way out.
pub fn unsound(checked: &[Checked]) -> Option<(String, &'static str)> {
    const CHANGED: &str =
        "somebody (or a damaged disk) has changed the files in `audit` of that server's data directory";
    let mut words = Vec::new();
    let mut hint = None;
    for Checked { trail, found } in checked {
        let server = &trail.server;
        if let Err(broken) = found {
            let of = if checked.len() > 1 { format!(" of server {server}") } else { String::new() };
            words.push(format!("the audit trail{of} is not whole: {broken}"));
            hint = Some(CHANGED);
        } else if let Some(trouble) = &trail.trouble {
            words.push(format!("the audit trail of server {server} is not copied here any more: {trouble}"));
            hint = Some(CHANGED);
        } else if let Standing::Silent { why } = &trail.standing {
            words.push(format!("server {server} can't be asked for its audit trail: {why}"));
            hint.get_or_insert("`rung cluster` tells how the servers are; check again when it is back");
        }
    }
    hint.map(|hint| (words.join("; "), hint))
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
            server: "web-1".parse().unwrap(),
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
        .assert_eq(&render(&changes, false, Paint::Plain, &clock));
        let one = render(&changes[..1], true, Paint::Plain, &clock);
        assert!(one.starts_with("SERVER") && one.contains("\nweb-1   1  3 min ago"), "{one}");
    }

    #[test]
    fn of_several_servers_each_is_told_of_and_what_is_not_known() {
        let head = |sequence| Head { sequence, hash: "77c1".repeat(16) };
        let trail = |server: &str, standing| ServerTrail {
            server: server.parse().unwrap(),
            joined: Timestamp::UNIX_EPOCH,
            standing,
            records: Vec::new(),
            copied: None,
            trouble: None,
        };
        let silent = Standing::Silent { why: "no answer".into() };
        let mut checked = vec![
            Checked { trail: trail("web-1", Standing::Answered), found: Ok(Some((1, head(416)))) },
            Checked { trail: trail("web-2", silent), found: Ok(Some((1, head(12)))) },
        ];
        let said = verified(&checked);
        assert!(said.contains("the audit trail of web-1 is whole, from record 1 to 416\n"), "{said}");
        assert!(said.contains("the copy here of the audit trail of web-2 is whole"), "{said}");
        assert!(said.contains("\nweb-2:12:77c1"), "{said}");
        let (words, _) = unsound(&checked).expect("not all could be asked");
        assert_eq!(words, "server web-2 can't be asked for its audit trail: no answer");
        checked.pop();
        assert!(unsound(&checked).is_none());
        checked[0].found = Err(Broken::Link { sequence: 3 });
        let (words, _) = unsound(&checked).expect("it was changed");
        assert!(words.starts_with("the audit trail is not whole: record 3"), "{words}");
        assert_eq!(verified(&checked), "");
    }
}
