//! `rung cluster`.

use rung_api::wire::cluster::{ClusterReport, FrozenReport, MemberState, StoreKind};

use super::paint::{Mood, Paint};
use super::table::{cell, colored, table};
use super::time::Clock;
use super::{bytes, count, harmless};

pub fn render(report: &ClusterReport, paint: Paint, clock: &Clock) -> String {
    let counts = |state: MemberState| !matches!(state, MemberState::Learns | MemberState::Awaited);
    let servers = report.members.iter().filter(|member| counts(member.state)).count();
    let mut lines = vec![match report.store {
        StoreKind::Sqlite => "one machine: the state is in a file (SQLite)".to_owned(),
        StoreKind::Etcd if report.members.is_empty() => {
            "a cluster whose servers can't be told now: the state is in etcd".to_owned()
        }
        StoreKind::Etcd if servers == 1 => "a cluster of one server: the state is in etcd".to_owned(),
        StoreKind::Etcd => format!("a cluster of {servers} servers: the state is in etcd"),
    }];
    let leader = report.leader.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
    lines.push(format!("{leader} plans; generation {}.{}", report.epoch, report.revision));
    if report.store == StoreKind::Sqlite {
        lines.push(paint.dim("`rung cluster init` moves it to etcd, so that other servers can join"));
    }
    if !report.members.is_empty() {
        let rows = report.members.iter().map(|member| {
            let state = match member.state {
                MemberState::Leads => colored("leads etcd", Mood::Good),
                MemberState::Follows => colored("follows", Mood::Good),
                MemberState::Leaderless => colored("knows of no leader", Mood::Bad),
                MemberState::Learns => colored("gets the state", Mood::Warning),
                MemberState::Awaited => colored("is awaited", Mood::Warning),
                MemberState::Unreachable => colored("can't be reached", Mood::Bad),
            };
            let name = if member.name.is_empty() { "(to come)" } else { &member.name };
            vec![cell(name), state, cell(&member.client), cell(bytes(member.db_bytes))]
        });
        lines.push(String::new());
        lines.push(table(&["SERVER", "STATE", "ETCD", "SIZE"], &rows.collect::<Vec<_>>(), paint));
        lines.push(match report.snapshots.newest {
            Some(newest) => {
                format!("{}, the newest {}", count(report.snapshots.kept, "snapshot"), clock.ago(newest))
            }
            None => "no snapshot yet".to_owned(),
        });
    }
    if let Some(place) = &report.artifacts {
        lines.push(format!("artifacts are in {}", harmless(place)));
    }
    for problem in &report.problems {
        lines.push(String::new());
        lines.push(format!("{}  {}", paint.bad("!!"), harmless(&problem.what)));
        lines.push(format!("    {}", paint.dim(&problem.way_out)));
    }
    lines.join("\n")
}

/// What an operator approves.
pub fn plan(frozen: &FrozenReport) -> String {
    let mut lines = vec![format!("nothing was changed since {:.0}: {}", frozen.since, harmless(&frozen.why))];
    let names =
        |nodes: &[rung_model::NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !frozen.reported.is_empty() {
        lines.push(format!("nodes that have reported: {}", names(&frozen.reported)));
    }
    if !frozen.silent.is_empty() {
        lines.push(format!("nodes that have not: {}", names(&frozen.silent)));
    }
    if frozen.plan.is_empty() {
        lines.push("nothing would be changed".to_owned());
    } else {
        lines.push("this would be done first:".to_owned());
        lines.extend(frozen.plan.iter().map(|step| format!("  {}", harmless(step))));
    }
    lines.join("\n")
}
