//! Runs other programs, and says which one failed.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};

use anyhow::Context;

/// The cargo that runs this task, so that a chosen toolchain stays chosen.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// The command as a person would type it.
pub fn spell(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    if let Some(name) = words[0].rsplit('/').next() {
        words[0] = name.to_owned();
    }
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs it to its end with this process's output. `Err` says that it could not be started or failed.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let words = spell(command);
    println!("$ {words}");
    let status = command.status().with_context(|| format!("starting {words}"))?;
    anyhow::ensure!(status.success(), "{words} ended with {status}");
    Ok(())
}

/// Whether it can be started and succeeds; its output goes nowhere.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs it and hands on every line of its errors as it comes; answers with those lines and whether it succeeded.
pub fn run_and_read_errors(command: &mut Command) -> anyhow::Result<(Vec<String>, bool)> {
    let words = spell(command);
    println!("$ {words}");
    std::io::stdout().flush()?;
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("starting {words}"))?;
    let mut lines = Vec::new();
    let mut out = std::io::stdout();
    for line in BufReader::new(child.stderr.take().expect("it was piped")).split(b'\n') {
        let line = line.with_context(|| format!("reading what {words} says"))?;
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        lines.push(String::from_utf8_lossy(&line).into_owned());
    }
    let status = child.wait().with_context(|| format!("waiting for {words}"))?;
    Ok((lines, status.success()))
}

pub fn colour() -> &'static str {
    if std::io::stdout().is_terminal() { "always" } else { "never" }
}
