//! Nobody listens: closed pipes, a full disk behind the output, a terminal that is gone, words that mean nothing here.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use rung_e2e::{Rung, TestApp, eventually, process};

/// The writing end of a pipe that nobody reads, as behind `| head -1`.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// Every write fails with "no space left on device".
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("every Linux has it").into()
}

/// How a command ends whose output goes there.
fn ends(mut command: Command, out: Stdio) -> Option<i32> {
    command.stdout(out).status().expect("starting rung").code()
}

#[test]
fn a_reader_that_stops_reading_does_not_stop_what_is_done() {
    let rung = Rung::start();
    let mut app = TestApp::new("shop", 1);
    let deploy = |app: &TestApp| {
        let directory = app.directory().to_str().expect("temporary directories have names in UTF-8");
        rung.cli_command(&["deploy", directory])
    };
    assert_eq!(ends(deploy(&app), closed()), Some(0));
    assert!(rung.page("shop", "/").contains("version 1"), "the deploy ended with its reader");
    app.version = "2".into();
    assert_eq!(ends(deploy(&app), full()), Some(0));
    assert!(rung.page("shop", "/").contains("version 2"), "the deploy ended because its output was full");
    assert_eq!(ends(rung.cli_command(&["config", "set", "A=1", "--app", "shop"]), closed()), Some(0));
    rung.cli(&["config", "get", "A", "--app", "shop"]).succeeds().mentions("1");
}

#[test]
fn the_platform_goes_on_when_its_output_is_closed_or_full_and_ends_with_its_terminal() {
    let mut rung = Rung::start();
    let app = TestApp::new("shop", 1);
    for out in [closed, full] {
        rung.interrupt();
        let mut command = rung.up_command(Some(app.directory()), &[]);
        let mut unheard = command.stdout(out()).stderr(out()).spawn().expect("starting rung");
        eventually("the app is deployed and serves", || {
            rung.try_app("shop")?;
            match rung.get("shop", "/") {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        rung.cli(&["upgrade"]).succeeds();
        assert_eq!(rung.get("shop", "/").expect("it serves").status, 200);
        let before = unheard.try_wait().expect("it is a child of this process");
        assert_eq!(before, None, "it ended because nobody heard it");
        process::signal(unheard.id(), libc::SIGHUP);
        let status = unheard.wait().expect("it is a child of this process");
        assert!(status.success(), "the end of its terminal is an orderly end: {status}");
        rung.wait_until_nothing_is_left();
        rung.up(None, &[]);
    }
}

#[test]
fn a_name_that_means_nothing_is_not_taken_for_another_question() {
    let rung = Rung::start();
    rung.deploy(TestApp::new("shop", 1).directory()).succeeds();
    rung.cli(&["status", "--env", "nope"]).ends_with(2).mentions("no app in environment nope");
    rung.cli(&["events", "--env", "nope"]).ends_with(2).mentions("no app in environment nope");
    rung.cli(&["events", "--app", "nope"]).ends_with(1).mentions("nope");
    rung.cli(&["config", "unset", "NOPE", "--app", "shop"])
        .ends_with(1)
        .mentions("NOPE is not set")
        .mentions("nothing was changed");
    rung.cli(&["rollback", "--app", "shop"]).ends_with(1).mentions("deploy another one first");
    rung.cli(&["service", "install", "--print", "--http", "nonsense"]).ends_with(2).mentions("0.0.0.0:80");
    let long = rung.data().join("x".repeat(100));
    let long = long.to_str().expect("temporary directories have names in UTF-8");
    rung.cli(&["up", "--data", long]).ends_with(2).mentions("shorter").mentions("--data");
}
