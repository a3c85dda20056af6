//! Logs: bounded, whole or said to be not, and safe to look at.

use std::path::{Path, PathBuf};

use rung_e2e::{Load, Rung, TestApp, eventually, process};

fn deployed(name: &str) -> (Rung, TestApp) {
    let rung = Rung::start();
    let app = TestApp::new(name, 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 1);
    (rung, app)
}

/// Below it are the files of one instance's or run's log.
fn bytes_below(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let size = |path: PathBuf| match std::fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => bytes_below(&path),
        Ok(meta) => meta.len(),
        Err(_) => 0, // rotated away
    };
    entries.map(|entry| size(entry.path())).sum()
}

/// Five files of ten megabytes, and what one write may be over.
const LOG_MAX: u64 = 55_000_000;

#[test]
fn a_flood_of_output_is_bounded_and_disturbs_nobody() {
    let (rung, _app) = deployed("geyser");
    let load = Load::start(rung.http(), "geyser.localhost", "/");
    load.wait_for(50);
    // As fast as it can, which is hundreds of megabytes a second.
    rung.page("geyser", "/flood?megabytes=300");
    eventually("the end of the flood is in the log", || {
        let said = rung.cli(&["logs", "--app", "geyser", "--tail", "20"]).succeeds();
        if said.out.contains("the flood is over") { Ok(()) } else { Err(said.everything()) }
    });
    // It is told each second, and so much of a flood is kept in a second.
    let told = rung.cli(&["logs", "--app", "geyser", "--tail", "8000"]).succeeds();
    assert!(
        told.out.contains("were dropped: more than 5 MB a second"),
        "it is not told that lines are missing"
    );
    let kept = bytes_below(&rung.data().join("node/logs/geyser/web"));
    assert!(kept <= LOG_MAX, "{kept} bytes were kept");
    let memory = process::proportional_memory(rung.pid());
    assert!(memory < 200_000_000, "the platform holds {memory} bytes");
    load.stop().assert_none_lost("a flood of output");
}

#[test]
fn whatever_bytes_are_printed_the_log_is_text_that_moves_no_cursor() {
    let (rung, _app) = deployed("binary");
    rung.page("binary", "/print?text=%00%07%1b%5B2J%1b%5D0%3Btitle%07%7Fend%20of%20it");
    rung.page("binary", "/bytes?hex=fffe80c328");
    let log = eventually("both lines are in the log", || {
        let said = rung.cli(&["logs", "--app", "binary"]).succeeds();
        if said.out.contains("end of it") && said.out.contains("\\xff") {
            Ok(said.out)
        } else {
            Err(said.out)
        }
    });
    assert!(log.contains("\\x1b[2J") && log.contains("\\x00"), "{log}");
    let harmful = log.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    assert_eq!(harmful, None, "{log:?}");
}

#[test]
fn a_log_that_can_not_be_read_is_an_error_and_an_empty_one_is_said_to_be_empty() {
    let (rung, _app) = deployed("torn");
    let instance = rung.instances("torn")[0].id.to_string();
    let log = rung.data().join("node/logs/torn/web").join(&instance).join("log");
    rung.cli(&["logs", "--app", "torn"]).succeeds().mentions("listens on");
    rung.cli(&["logs", "--app", "torn", "--since", "0s"])
        .succeeds()
        .mentions("has logged nothing since then");
    std::fs::rename(&log, log.with_extension("aside")).expect("the log is there");
    std::fs::create_dir(&log).expect("a directory in its place");
    for follow in [&["logs", "--app", "torn"][..], &["logs", "-f", "--app", "torn"]] {
        let said = rung.cli(follow).ends_with(1);
        assert!(said.err.contains("error: reading the logs of torn"), "{}", said.everything());
        said.mentions(&instance);
    }
}

#[test]
fn a_build_that_prints_a_gigabyte_ends_and_its_last_words_are_shown() {
    let rung = Rung::start();
    let mut app = TestApp::new("chatty", 1);
    let build = "import os, sys; line = b'x' * 999 + b'\\n'; [os.write(1, line * 100) for _ in range(10000)]; sys.exit('no rule to make target all')";
    app.sections.push(format!("[build]\ncommand = '''python3 -c \"{}\"'''", build.replace('\\', "\\\\")));
    let said = rung.deploy(app.directory()).ends_with(1);
    assert!(
        said.err.contains("no rule to make target all") || said.out.contains("no rule to make target all")
    );
    let kept = bytes_below(&rung.data().join("node/logs/chatty"));
    assert!(kept <= LOG_MAX, "{kept} bytes were kept");
    let memory = process::proportional_memory(rung.pid());
    assert!(memory < 200_000_000, "the platform holds {memory} bytes");

    // Nothing is left of it that stands in the next one's way.
    app.sections.pop();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("chatty", "/").contains("version 1 "));
}

#[test]
fn every_line_of_a_build_is_shown_once_also_of_one_that_ends_before_anybody_looks() {
    let rung = Rung::start();
    let mut app = TestApp::new("told", 1);
    for lines in [1, 2, 20_000] {
        app.sections = vec![format!("[build]\ncommand = \"touch {lines} && seq -f 'line %.0f.' 1 {lines}\"")];
        let shown = rung.deploy(app.directory()).succeeds();
        let wrong: Vec<_> = (1..=lines)
            .map(|line| (line, shown.out.matches(&format!("line {line}.")).count()))
            .filter(|(_, times)| *times != 1)
            .take(5)
            .collect();
        assert!(wrong.is_empty(), "of {lines} lines these were shown so often: {wrong:?}");
    }
}
