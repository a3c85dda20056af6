//! `cargo xtask test`: installs what is missing, runs every stage, and says at the end what came of each.
//!
//! A failed stage does not stop the others, so that one run shows all there is to mend; only what can't be run
//! without a failed one (nothing without the build) is passed over, named, and fails the run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::needs::{self, Consent};
use crate::summary::{self, Count};
use crate::{fuzz, machine, process, tidy};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Install what is missing without asking
    #[arg(short, long)]
    yes: bool,
    /// Many more simulation seeds and longer loads
    #[arg(long)]
    long: bool,
    /// Run this stage only (may be given more than once)
    #[arg(long, value_name = "STAGE")]
    only: Vec<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    Needs,
    Tidy,
    Format,
    Clippy,
    Build,
    Tests,
    EndToEnd,
    /// Of the long tests
    Fuzz,
    /// Of the long tests
    Machine,
}

impl Stage {
    fn title(self) -> &'static str {
        match self {
            Self::Needs => "what the tests need",
            Self::Tidy => "tidy: the house's own rules",
            Self::Format => "format",
            Self::Clippy => "clippy",
            Self::Build => "build of the real binary",
            Self::Tests => "unit, property, conformance and simulation tests",
            Self::EndToEnd => "end to end: the real binary, real components",
            Self::Fuzz => "fuzzing of the ingress's parsers",
            Self::Machine => "a machine with systemd that reboots",
        }
    }

    /// Stages that must have succeeded before this one can say anything.
    fn needs(self) -> &'static [Stage] {
        match self {
            Self::Needs | Self::Tidy | Self::Format | Self::Clippy | Self::Build | Self::Fuzz => &[],
            Self::Tests => &[Self::Build],
            Self::EndToEnd => &[Self::Needs, Self::Build],
            Self::Machine => &[Self::Build],
        }
    }

    /// It takes long: it runs with the long tests, or when it is asked for by name.
    fn is_long(self) -> bool {
        matches!(self, Self::Fuzz | Self::Machine)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    NotRun(String),
}

struct Record {
    stage: Stage,
    outcome: Outcome,
    took: Duration,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut records: Vec<Record> = Vec::new();
    let mut count = Count::default();
    for &stage in Stage::value_variants() {
        let is_asked_for = match arguments.only.as_slice() {
            [] => arguments.long || !stage.is_long(),
            only => only.contains(&stage),
        };
        if !is_asked_for {
            continue;
        }
        let started = Instant::now();
        println!("\n=== {} ===", stage.title());
        let outcome = match blocked_by(stage, &records) {
            Some(blocker) => Outcome::NotRun(format!("{} failed", blocker.title())),
            None => match execute(stage, arguments, &mut count) {
                Ok(()) => Outcome::Passed,
                Err(error) => Outcome::Failed(format!("{error:#}")),
            },
        };
        let took = started.elapsed();
        println!("=== {}: {} in {} ===", stage.title(), word(&outcome), spell(took));
        records.push(Record { stage, outcome, took });
    }
    print_table(&records);
    let all_passed = records.iter().all(|record| record.outcome == Outcome::Passed);
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn blocked_by(stage: Stage, records: &[Record]) -> Option<Stage> {
    let failed = |need: &&Stage| records.iter().any(|r| r.stage == **need && r.outcome != Outcome::Passed);
    stage.needs().iter().find(failed).copied()
}

fn execute(stage: Stage, arguments: &Arguments, count: &mut Count) -> anyhow::Result<()> {
    match stage {
        Stage::Needs => needs::ensure(consent(arguments)),
        Stage::Tidy => tidy::check(),
        Stage::Format => process::run(&mut process::cargo(&["fmt", "--all", "--check"])),
        Stage::Clippy => {
            let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
            process::run(&mut process::cargo(&arguments))
        }
        // The whole workspace with its tests, so that every later stage takes these very artifacts: cargo unifies
        // features over what is built together, and a build of one crate alone would compile half of it again.
        Stage::Build => {
            process::run(&mut process::cargo(&["build", "--locked", "--workspace", "--all-targets"]))
        }
        Stage::Tests => nextest("not package(rung-e2e)", arguments, count),
        Stage::EndToEnd => nextest("package(rung-e2e)", arguments, count),
        Stage::Fuzz => needs::ensure_fuzzing(consent(arguments)).and_then(|()| fuzz::run()),
        Stage::Machine => needs::ensure_machine(consent(arguments)).and_then(|()| machine::run()),
    }
}

fn consent(arguments: &Arguments) -> Consent {
    let agreed = arguments.yes || std::env::var("CI").is_ok_and(|ci| ci == "true");
    if agreed { Consent::Given } else { Consent::Ask }
}

fn nextest(filter: &str, arguments: &Arguments, count: &mut Count) -> anyhow::Result<()> {
    let mut command = process::cargo(&["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
    command.args(["--color", process::colour(), "-E", filter]);
    if arguments.long {
        command.env("RUNG_TEST_LONG", "1");
    }
    let (lines, succeeded) = process::run_and_read_errors(&mut command)?;
    let Some(of_run) = summary::read(&lines) else {
        anyhow::bail!("nextest came to no summary");
    };
    *count += of_run;
    anyhow::ensure!(succeeded, "{} of {} tests failed", of_run.failed, of_run.passed + of_run.failed);
    Ok(())
}

fn print_table(records: &[Record]) {
    println!("\n=== all stages ===");
    for record in records {
        let why = match &record.outcome {
            Outcome::Passed => String::new(),
            Outcome::Failed(why) | Outcome::NotRun(why) => {
                format!("  {}", why.lines().next().unwrap_or_default())
            }
        };
        let title = record.stage.title();
        println!("{:<50} {:<8} {:>8}{why}", title, word(&record.outcome), spell(record.took));
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "FAILED",
        Outcome::NotRun(_) => "NOT RUN",
    }
}

fn spell(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} m {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_on_a_failed_build_is_named_as_not_run() {
        let records =
            [Record { stage: Stage::Build, outcome: Outcome::Failed("x".into()), took: Duration::ZERO }];
        assert_eq!(blocked_by(Stage::EndToEnd, &records), Some(Stage::Build));
        assert_eq!(blocked_by(Stage::Tests, &records), Some(Stage::Build));
        assert_eq!(blocked_by(Stage::Tests, &[]), None, "a stage that was not asked for does not block");
    }
}
