//! Side-by-side measurements: Rung and a peer do the same, in turns, in one run on one machine.
//!
//! `first-rung` measures what the first rung promises (see `bench/RESULTS.md` for the last run) beside Docker Swarm.
//! The application is this very program (`rung-bench serve`): it starts in about a millisecond, so that what is
//! measured is the platform. `ingress` measures what a request costs in the ingress, beside other proxies. `releases`
//! measures going back, canaries that are taken back, and jobs on time. `cluster` loses machines of network
//! namespaces, beside Docker Swarm. `scale` is about two million instances. Rounds are interleaved, medians are shown with
//! their range, and what could not be measured is named.

mod canary;
mod cluster;
mod containers;
mod deploys;
mod docker;
mod ingress;
mod loss;
mod machine;
mod page;
mod payload;
mod releases;
mod rest;
mod sampler;
mod scale;
mod serve;
mod stream;
mod swarm;
mod table;
mod timed;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use rung_e2e::{Rung, Start};

use crate::payload::Payload;
use crate::swarm::Swarm;
use crate::table::{Row, Table};

/// A manager's loss costs Swarm the most of all that is waited for: about a minute.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Parser)]
#[command(name = "rung-bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Deploys, restarts, memory and losses of one machine, beside Docker Swarm
    FirstRung(FirstRung),
    /// What a request costs in the ingress, beside nginx, HAProxy and others
    Ingress(ingress::Arguments),
    /// Rollbacks, canaries, and jobs on time
    Releases(releases::Arguments),
    /// Machines that are lost, drained and started again, and an address that moves
    Cluster(cluster::Arguments),
    /// Two million instances on 6,100 nodes: the planner, and etcd
    Scale(scale::Arguments),
    /// The application that is deployed
    #[command(hide = true)]
    Serve,
    /// Holds idle connections
    #[command(hide = true)]
    Hold(ingress::HoldArguments),
}

#[derive(Debug, clap::Args)]
struct FirstRung {
    /// How often deploys and kills are measured
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How many requests are made at least while things change
    #[arg(long, default_value_t = 500_000)]
    requests: u64,
    /// How long the platforms are watched at rest, in seconds
    #[arg(long, default_value_t = 30)]
    rest: u64,
    /// Where the section `The first rung` is written
    #[arg(long, default_value = "bench/RESULTS.md")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Serve => serve::run(),
        What::Hold(arguments) => ingress::hold(&arguments),
        What::Ingress(arguments) => ingress::run(&arguments),
        What::Releases(arguments) => releases::run(&arguments),
        What::Cluster(arguments) => cluster::run(&arguments),
        What::Scale(arguments) => scale::run(&arguments),
        What::FirstRung(arguments) => first_rung(&arguments),
    }
}

fn first_rung(arguments: &FirstRung) -> anyhow::Result<()> {
    let binary = std::env::current_exe()?.with_file_name("rung");
    anyhow::ensure!(binary.exists(), "{} is missing: run `cargo xtask bench first-rung`", binary.display());
    let start = payload::own_start()?;
    println!("the application's own start takes {start:?}");

    let mut swarm = match Swarm::start() {
        Ok(swarm) => Some(swarm),
        Err(error) => {
            println!("Docker Swarm is not measured: {error:#}");
            None
        }
    };
    let rung = Rung::start_with(Start { binary: Some(binary.clone()), ..Start::default() });
    let mut pair = Payload::new("pair", 2)?;
    let solo = Payload::new("solo", 1)?;
    deploys::begin(&rung, &pair)?;
    if let Some(swarm) = &mut swarm {
        swarm.begin(&pair, "pair", pair.instances)?;
    }

    let mut table = Table::new(start);
    rest::measure(&rung, &binary, swarm.as_ref(), Duration::from_secs(arguments.rest), &mut table)?;
    deploys::begin(&rung, &solo)?;
    if let Some(swarm) = &mut swarm {
        swarm.begin(&solo, "solo", solo.instances)?;
    }
    deploys::measure(&rung, swarm.as_mut(), &mut pair, arguments.rounds, start, &mut table)?;
    // Rung alone again: a load takes every core.
    drop(swarm);
    loss::measure(&rung, &mut pair, arguments.requests, &mut table)?;

    let text = table.markdown("first-rung", &machine::describe());
    println!("\n{text}");
    page::replace_section(&arguments.out, "The first rung", &text)?;
    println!("written to {}", arguments.out.display());
    Ok(())
}

/// A row of durations in milliseconds.
fn milliseconds(what: &str, aim: &str, rung: &[Duration], peer: &[Duration]) -> Row {
    let spell = |d: f64| format!("{:.0} ms", d * 1000.0);
    Row::of(what, aim, &seconds(rung), &seconds(peer), spell)
}

fn seconds(durations: &[Duration]) -> Vec<f64> {
    durations.iter().map(Duration::as_secs_f64).collect()
}

/// Looks until `probe` finds something; an error ends it.
fn until<T>(what: &str, mut probe: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "waited {} s in vain until {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK_EVERY);
    }
}
