//! Memory and processor time of whole platforms at rest.

use std::path::Path;
use std::time::{Duration, Instant};

use rung_e2e::Rung;
use rung_e2e::process::{self, Life};

use crate::swarm::Swarm;
use crate::table::{Row, Table};

/// Clock ticks a second, in `/proc/<pid>/stat`, on every Linux that Rung runs on.
const TICKS: f64 = 100.0;

pub fn measure(
    rung: &Rung,
    binary: &Path,
    swarm: Option<&Swarm>,
    time: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    let ours = of_rung(rung, binary);
    let theirs = swarm.map(Swarm::processes).unwrap_or_default();
    for (name, lives) in [("Rung", &ours), ("Docker", &theirs)] {
        let shown: Vec<String> = lives
            .iter()
            .map(|life| {
                format!(
                    "  {:>6.1} MB  {}",
                    megabytes(process::proportional_memory(life.pid)),
                    process::describe(life.pid)
                )
            })
            .collect();
        println!("{name} at rest, two instances:\n{}", shown.join("\n"));
    }
    let used = |lives: &[Life]| lives.iter().map(|life| process::ticks(life.pid)).sum::<u64>();
    let (began, before) = (Instant::now(), (used(&ours), used(&theirs)));
    std::thread::sleep(time);
    let (took, after) = (began.elapsed().as_secs_f64(), (used(&ours), used(&theirs)));

    let memory = |lives: &[Life]| -> Vec<f64> {
        if lives.is_empty() {
            Vec::new()
        } else {
            vec![lives.iter().map(|life| megabytes(process::proportional_memory(life.pid))).sum()]
        }
    };
    let share = |before: u64, after: u64| (after.saturating_sub(before)) as f64 / TICKS / took * 100.0;
    let peer = if theirs.is_empty() { Vec::new() } else { vec![share(before.1, after.1)] };
    table.push(Row::of(
        "memory of the platform at rest, one app of two instances (proportional set size)",
        "40 MB",
        &memory(&ours),
        &memory(&theirs),
        |mb| format!("{mb:.1} MB"),
    ));
    table.push(Row::of(
        "processor at rest, of one core",
        "0.3 %",
        &[share(before.0, after.0)],
        &peer,
        |percent| format!("{percent:.2} %"),
    ));
    Ok(())
}

/// Everything that runs Rung's binary for this platform: the platform, the ingress, shims and their helpers.
fn of_rung(rung: &Rung, binary: &Path) -> Vec<Life> {
    let binary = binary.canonicalize().unwrap_or_else(|_| binary.to_owned());
    let is_ours =
        |life: &Life| std::fs::read_link(format!("/proc/{}/exe", life.pid)).is_ok_and(|exe| exe == binary);
    let platform: Vec<Life> = process::all().into_iter().filter(is_ours).collect();
    let concerned = rung.processes();
    let roots: Vec<Life> = platform.iter().copied().filter(|life| concerned.contains(life)).collect();
    // A shim's inner half may name nothing: it counts by its parent.
    let below =
        roots.iter().flat_map(|life| process::children(life.pid)).filter(|life| platform.contains(life));
    let mut all: Vec<Life> = roots.iter().copied().chain(below).collect();
    all.sort();
    all.dedup();
    all
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_000_000.0
}
