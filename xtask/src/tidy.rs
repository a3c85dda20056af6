//! `cargo xtask tidy`: the house's own rules, that no compiler checks.
//!
//! Each rule is a function from texts to violations, so that the tests below can show that it catches what it is for.

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;

mod prose;
mod rooms;
mod sources;

/// A tracked text file, with its path from the repository's root.
#[derive(Debug, Clone)]
struct File {
    path: String,
    text: String,
}

/// One place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    path: String,
    /// Counted from 1.
    line: usize,
    what: String,
    why: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n    because {}", self.path, self.line, self.what, self.why)
    }
}

pub fn run() -> anyhow::Result<ExitCode> {
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// Checks every rule and prints each violation; `Err` when there is one.
pub fn check() -> anyhow::Result<()> {
    let files = read_files()?;
    let mut violations = Vec::new();
    for rule in RULES {
        violations.extend(rule(&files));
    }
    violations.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    for violation in &violations {
        println!("{violation}");
    }
    anyhow::ensure!(violations.is_empty(), "{} violations of the house's rules", violations.len());
    println!("{} files keep the house's rules", files.len());
    Ok(())
}

type Rule = fn(&[File]) -> Vec<Violation>;

const RULES: &[Rule] = &[
    rooms::imports_follow_the_rooms,
    rooms::pure_crates_stay_pure,
    sources::names_say_something,
    sources::files_read_in_one_sitting,
    sources::tests_are_never_ignored,
    sources::tests_wait_for_events,
    sources::each_crate_introduces_itself,
    prose::no_machine_is_named,
    prose::decisions_are_short,
    prose::decisions_are_counted,
    prose::links_lead_somewhere,
];

/// Every text file that is tracked, or would be.
fn read_files() -> anyhow::Result<Vec<File>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("listing the repository's files with git")?;
    anyhow::ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut files = Vec::new();
    for path in output.stdout.split(|&b| b == 0).filter(|path| !path.is_empty()) {
        let path = String::from_utf8_lossy(path).into_owned();
        // What git still lists may be deleted in the work tree, and what is not UTF-8 is no text.
        if let Some(text) =
            std::fs::read(Path::new(&path)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
        {
            files.push(File { path, text });
        }
    }
    Ok(files)
}

/// The lines of a file that match, as violations.
fn lines_where(file: &File, what: &str, why: &'static str, matches: impl Fn(&str) -> bool) -> Vec<Violation> {
    file.text
        .lines()
        .enumerate()
        .filter(|(_, line)| matches(line))
        .map(|(index, line)| Violation {
            path: file.path.clone(),
            line: index + 1,
            what: format!("{what}: `{}`", line.trim()),
            why,
        })
        .collect()
}

#[cfg(test)]
fn file(path: &str, text: &str) -> File {
    File { path: path.into(), text: text.into() }
}
