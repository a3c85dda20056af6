//! Jobs on time: how late they are recorded, and how late they start.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::{RoundMode, Timestamp, Unit};
use rung_api::wire::JobListing;
use rung_e2e::Rung;
use rung_model::Run;
use tempfile::TempDir;

use crate::table::{Row, Table};

/// A deploy with so many jobs is done well before.
const AHEAD: Duration = Duration::from_secs(30);

/// What takes longer is no result but a fault.
const PATIENCE: Duration = Duration::from_secs(120);

/// A list of so many jobs is work for the server, too.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(50);

/// A job for each second, alone.
pub fn lone(rung: &Rung, runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let directory = app("lone", "[jobs.tick]\ncommand = \":\"\nschedule = \"* * * * * *\"\n")?;
    rung.deploy(directory.path()).succeeds();
    // The history is bounded: it is looked at while it grows.
    let mut seen = std::collections::BTreeMap::new();
    while seen.len() < runs {
        let text = rung.api_get("/v1/apps/lone/jobs/tick/runs").map_err(anyhow::Error::msg)?;
        let history: Vec<Run> = serde_json::from_slice(&text).context("reading the job's runs")?;
        seen.extend(history.iter().filter_map(|run| Some((run.id.clone(), started_late(run)?))));
        std::thread::sleep(Duration::from_secs(5));
    }
    rung.cli(&["job", "pause", "tick", "--app", "lone"]).succeeds();
    let mut started: Vec<f64> = seen.into_values().collect();
    started.sort_by(f64::total_cmp);
    let (p50, p99) = (share(&started, 0.5), share(&started, 0.99));
    table.push(Row {
        what: format!(
            "lateness of a lone job, from its time to its start: p50, p99 of {} runs",
            started.len()
        ),
        aim: "p99 below 100 ms".into(),
        rung: format!("{:.0} ms, {:.0} ms", p50 * 1000.0, p99 * 1000.0),
        peer: String::new(),
        ratio: String::new(),
    });
    Ok(())
}

/// Many jobs that are due in the same second.
pub fn together(rung: &Rung, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let due = Timestamp::now().checked_add(AHEAD)?;
    let time = in_cron_words(due);
    let job = |n| format!("[jobs.j{n}]\ncommand = \":\"\nschedule = {time:?}\n");
    let directory = app("crowd", &(0..count).map(job).collect::<String>())?;
    println!("{count} jobs are due at {time}");
    rung.deploy(directory.path()).succeeds();
    let due = due.round(jiff::TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Floor))?;
    let recorded = recorded(rung, count, due)?;
    let started = started(rung, count)?.into_iter().fold(0.0, f64::max);
    for (what, aim, value) in
        [("until the last is recorded", "1 s", recorded), ("until the last has started", "10 s", started)]
    {
        table.push(Row {
            what: format!("{count} jobs due in the same second: {what}"),
            aim: aim.into(),
            rung: format!("{value:.2} s"),
            peer: String::new(),
            ratio: String::new(),
        });
    }
    Ok(())
}

/// How long after it was due every job has its record: seen through the API, which shows only what is durable.
fn recorded(rung: &Rung, count: usize, due: Timestamp) -> anyhow::Result<f64> {
    let ahead = due.duration_since(Timestamp::now());
    anyhow::ensure!(ahead.is_positive(), "the jobs were deployed after their time");
    std::thread::sleep(ahead.unsigned_abs());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listed = jobs(rung)?;
        let since = Timestamp::now().duration_since(due).as_secs_f64();
        let recorded = listed.iter().filter(|job| job.last.is_some()).count();
        if recorded == count {
            return Ok(since);
        }
        anyhow::ensure!(Instant::now() < deadline, "only {recorded} of {count} jobs have a record");
        std::thread::sleep(LOOK_CLOSELY_EVERY);
    }
}

/// Waits until every job has started; how late each did.
fn started(rung: &Rung, count: usize) -> anyhow::Result<Vec<f64>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        std::thread::sleep(LOOK_EVERY);
        let listed = jobs(rung)?;
        let lates: Vec<f64> = listed.iter().filter_map(|job| started_late(job.last.as_ref()?)).collect();
        if lates.len() == count {
            return Ok(lates);
        }
        anyhow::ensure!(Instant::now() < deadline, "only {} of {count} jobs have started", lates.len());
    }
}

fn jobs(rung: &Rung) -> anyhow::Result<Vec<JobListing>> {
    let text = rung.api_get("/v1/apps/crowd/jobs").map_err(anyhow::Error::msg)?;
    serde_json::from_slice(&text).context("reading the jobs")
}

/// From a run's time to its start, in seconds. `None` until it has started.
fn started_late(run: &Run) -> Option<f64> {
    let of = run.of_job()?;
    Some(of.started?.duration_since(of.scheduled?).as_secs_f64())
}

fn share(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A second of this year in cron's words, in UTC.
fn in_cron_words(then: Timestamp) -> String {
    let then = then.to_zoned(jiff::tz::TimeZone::UTC);
    format!("{} {} {} {} {} *", then.second(), then.minute(), then.hour(), then.day(), then.month())
}

/// An app of jobs, and of a service that does nothing.
fn app(name: &str, jobs: &str) -> anyhow::Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("rung-bench-").tempdir()?;
    let file = format!(
        "app = {name:?}\n\n[services.idle]\ncommand = \"exec sleep 1000000\"\nport = false\n\n{jobs}"
    );
    std::fs::write(directory.path().join("rung.toml"), file)?;
    Ok(directory)
}
