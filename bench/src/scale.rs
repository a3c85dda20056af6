//! What a large cluster asks of a server: the planner at the shape of the published challenge of two million containers,
//! and its plan's way into etcd.

mod agents;
mod durable;
mod many;

use std::path::PathBuf;
use std::time::Duration;

use many::{Many, Shape};

use crate::table::{Row, Table};
use crate::{machine, page};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 6_100)]
    nodes: u32,
    #[arg(long, default_value_t = 1_000)]
    apps: u32,
    /// Instances of each of an app's two services
    #[arg(long, default_value_t = 1_000)]
    instances: u32,
    /// How many single placements are asked for at once
    #[arg(long, default_value_t = 10_000)]
    changes: u32,
    /// How often each is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long assignments in etcd are written anew, in seconds
    #[arg(long, default_value_t = 300)]
    churn: u64,
    /// How many agents poll one server
    #[arg(long, default_value_t = 5_000)]
    agents: usize,
    /// What is measured
    #[arg(long, value_delimiter = ',', default_value = "planner,agents")]
    parts: Vec<Part>,
    /// Where the section `Scale` is written; only when all parts are measured
    #[arg(long, default_value = "bench/RESULTS.md")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Placing two million instances, writing them to etcd, changing a few
    Planner,
    /// One server and thousands of agents
    Agents,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { nodes, apps, instances, .. } = *arguments;
    let shape = Shape { nodes, apps, of_service: instances, packed: false };
    let planned = format!(
        "{apps} apps of {} instances each, in two services, one with a port; {nodes} nodes of 32 GB; an instance asks for 64 \
         to 128 MB, so that what is asked for fills {:.1} % of the nodes. What the planner takes is time of the \
         processor, one core of it: from the index of the store to the documents to be written, as JSON.",
        2 * instances,
        shape.fewest_nodes() as f64 / f64::from(nodes) * 100.0
    );
    let agents = "Agents have keys and certificates of their own, and beat, poll and report as real ones do; what they are told \
                  to run is reported as running at once. The proxies beside them are not played, and each begins with a \
                  list of members at hand. They share the machine with the server: one core for all of them.";
    let mut table = Table::with_notes(vec![planned, agents.to_owned()]);
    let churn = Duration::from_secs(arguments.churn);
    if arguments.parts.contains(&Part::Planner) {
        let mut many = place(shape, arguments.rounds, churn, &mut table)?;
        place(Shape { packed: true, ..shape }, 1, churn, &mut table)?;
        changes(&mut many, arguments, &mut table)?;
    }
    if arguments.parts.contains(&Part::Agents) {
        agents::measure(arguments.agents, arguments.rounds, &mut table)?;
    }
    let text = table.markdown("scale", &machine::describe());
    println!("\n{text}");
    if ![Part::Planner, Part::Agents].iter().all(|part| arguments.parts.contains(part)) {
        return Ok(());
    }
    page::replace_section(&arguments.out, "Scale", &text)?;
    println!("written to {}", arguments.out.display());
    Ok(())
}

fn row(what: impl Into<String>, aim: &str, values: &[f64], spell: impl Fn(f64) -> String) -> Row {
    Row::of(&what.into(), aim, values, &[], spell)
}

fn in_seconds(value: f64) -> String {
    if value < 0.1 { format!("{:.1} ms", value * 1000.0) } else { format!("{value:.2} s") }
}

/// Everything from nothing. What was placed last is returned.
fn place(shape: Shape, rounds: usize, churn: Duration, table: &mut Table) -> anyhow::Result<Many> {
    let manner = if shape.packed { "packed" } else { "spread" };
    let mut many = Many::new(shape)?;
    let (mut took, mut plan) = (Vec::new(), None);
    for round in 1..=rounds {
        // The one before is not kept while the next is made.
        drop(plan.take());
        let (made, time) = many.plan();
        println!("{manner}, from nothing, {round} of {rounds}: {time:?}, {} steps", made.steps.len());
        took.push(time.as_secs_f64());
        plan = Some(made);
        many.forget();
    }
    let plan = plan.expect("one round at least");
    anyhow::ensure!(plan.waiting.is_empty(), "{} services wait for nodes", plan.waiting.len());
    if !shape.packed {
        let made = Duration::from_secs_f64(took[took.len() / 2]);
        durable::measure(&plan, made, churn, table)?;
    }
    let placed = shape.instances();
    let aim = if shape.packed { "" } else { "2 s" };
    table.push(row(format!("{placed} instances placed from nothing, {manner}"), aim, &took, in_seconds));
    many.write(plan)?;
    anyhow::ensure!(many.counts().0 == placed, "{} of {placed} were placed", many.counts().0);
    if shape.packed {
        let (used, fewest) = (many.used_nodes(), shape.fewest_nodes());
        let more = (used as f64 / fewest as f64 - 1.0) * 100.0;
        table.push(row(
            format!("nodes used when packed, beyond the {fewest} that hold it at the least"),
            "2 %",
            &[more],
            |percent| format!("{percent:.2} %"),
        ));
    } else {
        let rates: Vec<f64> = took.iter().map(|took| placed as f64 / took).collect();
        table.push(row("the same, instances a second", "", &rates, |rate| format!("{rate:.0} /s")));
        table.push(memory("memory of the process when they are placed, its peak", "2 GB"));
    }
    Ok(many)
}

/// The most that this process ever had.
fn memory(what: &str, aim: &str) -> Row {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<f64>().ok());
    row(what, aim, kilobytes.as_slice(), |kilobytes| format!("{:.2} GB", kilobytes * 1024.0 / 1e9))
}

/// Everything runs and is routed; then one is started, one stopped, one moved, of services all over.
fn changes(many: &mut Many, arguments: &Arguments, table: &mut Table) -> anyhow::Result<()> {
    many.settle()?;
    let (mut idle, mut alone, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let (plan, took) = many.plan();
        anyhow::ensure!(plan.steps.is_empty(), "there is something to do at rest: {}", plan.steps[0].why);
        idle.push(took.as_secs_f64());
        alone.push(changed(many, round as u32..round as u32 + 1)?.as_secs_f64());
        many.settle()?;
        let took = changed(many, 0..arguments.changes)?;
        rates.push(f64::from(arguments.changes) / took.as_secs_f64());
        println!("{} changes, {round} of {}: {took:?}", arguments.changes, arguments.rounds);
        many.settle()?;
    }
    table.push(row("a plan with nothing to do, when all of them run", "", &idle, in_seconds));
    table.push(row("a plan for one instance more, less, or elsewhere", "", &alone, in_seconds));
    table.push(row(
        format!("{} of these in one plan, as many of each, all over: decided a second", arguments.changes),
        "10000 /s",
        &rates,
        |rate| format!("{rate:.0} /s"),
    ));
    table.push(memory("memory of the process at the end of all this, its peak", "2 GB"));
    Ok(())
}

/// Asks for changes and plans once; each must have been decided on.
fn changed(many: &mut Many, changes: std::ops::Range<u32>) -> anyhow::Result<Duration> {
    let before = many.counts();
    let (mut starts, mut stops) = (0, 0);
    for change in changes {
        let app = change / 3 % many.shape.apps;
        match change % 3 {
            0 => many.scale(app, 0, 1)?,
            1 => many.scale(app, 1, -1)?,
            _ => many.displace(app, 0, change as usize)?,
        }
        starts += u64::from(change % 3 != 1);
        stops += u64::from(change % 3 == 1);
    }
    let (plan, took) = many.plan();
    many.write(plan)?;
    let after = many.counts();
    anyhow::ensure!(after.2 - before.2 == starts, "{} of {starts} were started", after.2 - before.2);
    anyhow::ensure!(after.1 - before.1 == stops, "{} of {stops} were stopped", after.1 - before.1);
    Ok(took)
}
