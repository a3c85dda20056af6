//! `docs/cli.md` is what clap says. Write it anew with `UPDATE_EXPECT=1`.

// A test that can't go on says where.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use clap::CommandFactory as _;
use rung_cli::Cli;

fn describe(command: &clap::Command, out: &mut String) {
    let title = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let depth = if title.contains(' ') { "##" } else { "#" };
    let help = command.clone().color(clap::ColorChoice::Never).term_width(100).render_help().to_string();
    // What holds for every command is told once, at the top.
    let help = if depth == "##" { help.split("\nFor every command:").next().unwrap() } else { &help };
    writeln!(out, "{depth} `{title}`\n\n```text\n{}\n```\n", help.trim_end()).unwrap();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        describe(sub, out);
    }
}

#[test]
fn the_reference_says_what_the_commands_say() {
    let mut command = Cli::command();
    command.build();
    let mut reference = String::from("<!-- Written by crates/cli/tests/reference.rs; do not edit. -->\n\n");
    let mut whole = String::new();
    describe(&command, &mut whole);
    reference.push_str(whole.trim_end());
    reference.push('\n');
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &reference).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == reference,
        "docs/cli.md is not what the commands say: write it anew with UPDATE_EXPECT=1"
    );
}

#[test]
fn the_tree_of_commands_is_consistent() {
    Cli::command().debug_assert();
}
