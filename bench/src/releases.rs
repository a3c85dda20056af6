//! What the second rung promises: going back, by itself too, and jobs on time, with no request lost meanwhile.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rung_e2e::{Load, Rung, Start, Tally};

use crate::payload::{self, Payload};
use crate::sampler::Sampler;
use crate::table::{Row, Table};
use crate::{canary, containers, machine, milliseconds, page, timed};

/// Few enough to leave the machine to what is measured, enough to notice a gap.
const CLIENTS: usize = 2;
const BETWEEN: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often a rollback is measured
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How often a canary that fails is brought out
    #[arg(long, default_value_t = 9)]
    canaries: usize,
    /// How many jobs are due in the same second
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// How many runs of a lone job are looked at, one a second
    #[arg(long, default_value_t = 300)]
    runs: usize,
    /// Where the section `Releases and jobs` is written
    #[arg(long, default_value = "bench/RESULTS.md")]
    out: PathBuf,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binary = std::env::current_exe()?.with_file_name("rung");
    anyhow::ensure!(binary.exists(), "{} is missing: run `cargo xtask bench releases`", binary.display());
    let start = payload::own_start()?;
    let rung = Rung::start_with(Start { binary: Some(binary.clone()), ..Start::default() });
    let mut app = Payload::new("shop", 2)?;
    crate::deploys::begin(&rung, &app)?;
    let mut twins = Payload::new("twins", 2)?;
    twins.declare("[deploy]\nstrategy = \"bluegreen\"\nkeep = \"10m\"\n")?;
    crate::deploys::begin(&rung, &twins)?;
    let loads = [&app, &twins].map(|app| {
        let host = format!("{}.localhost", app.name);
        Load::start_clients(rung.http(), &host, "/", CLIENTS, BETWEEN)
    });

    let mut table = Table::with_notes(vec![format!(
        "The application's own start ({:.1} ms, the median of nine without any platform) is taken off rollbacks.",
        start.as_secs_f64() * 1000.0
    )]);
    let warm = rollbacks(&rung, &mut twins, arguments.rounds)?;
    table.push(milliseconds(
        "rollback, the old release's instances being kept warm: from the command to all traffic back",
        "200 ms",
        &warm,
        &[],
    ));
    let cold = rollbacks(&rung, &mut app, arguments.rounds)?;
    let cold: Vec<Duration> = cold.into_iter().map(|took| took.saturating_sub(start)).collect();
    table.push(milliseconds(
        "rollback, the old release's instances being gone: from the command to all traffic back",
        "300 ms",
        &cold,
        &[],
    ));
    canary::measure(&rung, arguments.canaries, &mut table)?;
    timed::lone(&rung, arguments.runs, &mut table)?;
    timed::together(&rung, arguments.jobs, &mut table)?;
    lost(loads, &mut table);
    drop(rung);
    containers::deploys(&binary, arguments.rounds, &mut table)?;

    let text = table.markdown("releases", &machine::describe());
    println!("\n{text}");
    page::replace_section(&arguments.out, "Releases and jobs", &text)?;
    println!("written to {}", arguments.out.display());
    Ok(())
}

/// From `rung rollback` to all answers by the release before. Where its instances are gone, new ones start.
fn rollbacks(rung: &Rung, app: &mut Payload, rounds: usize) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    // Each round's deploy is taken back, so it is this one that serves before each of them.
    let before = app.spelled();
    for round in 1..=rounds {
        println!("rollback {round} of {rounds} of {}", app.name);
        app.next()?;
        rung.deploy(app.directory()).succeeds();
        let sampler = Sampler::start(rung.http(), format!("{}.localhost", app.name));
        sampler.all_on(&app.spelled());
        let began = Instant::now();
        rung.cli(&["rollback", "--app", &app.name]).succeeds();
        took.push(sampler.all_on(&before).saturating_duration_since(began));
    }
    Ok(took)
}

fn lost(loads: impl IntoIterator<Item = Load>, table: &mut Table) {
    let tallies: Vec<Tally> = loads.into_iter().map(Load::stop).collect();
    let made: u64 = tallies.iter().flat_map(|tally| tally.outcomes.values()).sum();
    for tally in &tallies {
        println!("{:?}\n{}", tally.outcomes, tally.troubles.join("\n"));
    }
    let lost: u64 = tallies.iter().map(Tally::lost).sum();
    let longest = tallies.iter().map(|tally| tally.longest).max().unwrap_or_default();
    table.push(Row {
        what: format!("requests lost of {made}, during all of this"),
        aim: "none".into(),
        rung: lost.to_string(),
        peer: String::new(),
        ratio: String::new(),
    });
    table.note(format!(
        "The load is {CLIENTS} clients on each of two apps, over kept connections, with {} ms between two requests; the longest answer took {:.0} ms.",
        BETWEEN.as_millis(),
        longest.as_secs_f64() * 1000.0
    ));
}
