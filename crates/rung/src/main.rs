//! Rung in one binary: this crate only puts the rooms together.
//!
//! The same file is every role. `rung shim` and `rung ingress` are started by a running `rung up`; they branch off
//! before anything else, because a shim must stay small and the ingress brings its own runtimes.

// They panic when nobody reads, or a disk is full.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod addresses;
mod checkup;
mod data;
mod floating;
mod join;
mod known;
mod membership;
mod node_name;
mod porter;
mod restore;
mod server;
mod service;
mod signals;
mod successor;
mod up;
mod upgrade;

use std::process::ExitCode;

use rung_cli::note;
use rung_cli::{Cli, ClusterCommand, Command, ServiceCommand, Verb};

fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    match role.as_deref() {
        Some("shim") => rung_agent::shim_main(),
        Some("ingress") => run_ingress(),
        Some("git-gate") => rung_cli::gate_main(),
        _ => run_command(Cli::from_process()),
    }
}

fn run_ingress() -> ExitCode {
    write_log("warn");
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    match rung_ingress::run_process(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&anyhow::Error::new(error)),
    }
}

fn run_command(cli: Cli) -> ExitCode {
    let ended = match cli.command {
        Command::Up(up) => {
            write_log("warn");
            up::run(&cli.global, &up)
        }
        Command::Join(args) => {
            write_log("warn");
            join::run(&cli.global, &args)
        }
        Command::Upgrade(upgrade) => upgrade::ask(&cli.global, &upgrade),
        Command::Service(ServiceCommand::Install(install)) => service::install(&cli.global, &install),
        Command::Verb(Verb::Cluster { command: Some(ClusterCommand::Restore(restore)) }) => {
            restore::run(&cli.global, &restore)
        }
        Command::Verb(Verb::Doctor) => checkup::run(&cli.global),
        Command::Verb(verb) => return rung_cli::run(&cli.global, verb).into(),
        Command::GitGate(_) | Command::Ingress(_) | Command::Shim(_) => {
            unreachable!("these roles branched off before")
        }
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let (text, exit) = rung_cli::explain(error);
    if !text.is_empty() {
        note!("{text}");
    }
    exit.into()
}

/// `RUNG_LOG=debug` shows more, in the syntax of tracing-subscriber's filters.
fn write_log(default: &str) {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("RUNG_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would panic when it can't say that it can't write.
        .log_internal_errors(false)
        .init();
}
