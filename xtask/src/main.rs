//! Development tasks: `cargo xtask test`, `cargo xtask tidy`, `cargo xtask bench first-rung`.

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod fuzz;
mod machine;
mod needs;
mod process;
mod summary;
mod test;
mod tidy;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Rung")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what is missing, then runs everything: tidy, format, clippy, build, tests, end to end
    Test(test::Arguments),
    /// Checks what no compiler checks: who imports whom, sizes, names, links
    Tidy,
    /// Measures side by side with peers, and writes the table
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    // Every task speaks of paths from the repository's root.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
    let outcome =
        std::env::set_current_dir(root).map_err(Into::into).and_then(|()| match Arguments::parse().task {
            Task::Test(arguments) => test::run(&arguments),
            Task::Tidy => tidy::run(),
            Task::Bench(arguments) => bench::run(&arguments),
        });
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
