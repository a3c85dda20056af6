//! `cargo xtask bench first-rung` and its like: builds everything with optimizations, then hands over to the bench
//! crate.

use std::process::ExitCode;

use crate::process;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(value_parser = ["first-rung", "ingress", "releases", "cluster", "scale"])]
    what: String,
    /// Passed on to the bench, after `--`
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    process::run(&mut process::cargo(&["build", "--locked", "--release", "-p", "rung", "-p", "rung-bench"]))?;
    let mut command = process::cargo(&["run", "--locked", "--release", "--quiet", "-p", "rung-bench", "--"]);
    process::run(command.arg(&arguments.what).args(&arguments.rest))?;
    Ok(ExitCode::SUCCESS)
}
