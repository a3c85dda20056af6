//! Stories of runs: builds that work and builds that do not, release commands, one-off commands with somebody at the
//! keyboard; and the logs of it all.

#![allow(clippy::unwrap_used, reason = "a test that can't go on shall say where")]

#[path = "support/world.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rung_api::attach::{Decoder, Frame, PROTOCOL};
use rung_api::wire::LogQuery;
use rung_api::{Address, Client, paths};
use rung_model::run::Terminal;
use rung_model::{InstanceState, ReleaseNumber, RunKind, RunOutcome};
use support::{SERVER, World, app, eventually, service, worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MINUTE: Duration = Duration::from_secs(60);

fn build(world: &World, files: &[(&str, &str)], command: &str, test: Option<&str>) -> RunKind {
    let (source, archive) = world.pack(files);
    world.server.artifacts.lock().unwrap().insert(source.to_string(), archive);
    let env = BTreeMap::from([("LEVEL".to_owned(), "high".to_owned())]);
    RunKind::Build { source, command: Some(command.into()), test: test.map(Into::into), env, image: None }
}

fn reason(outcome: RunOutcome) -> (String, Vec<String>) {
    match outcome {
        RunOutcome::Failed { reason, log_tail, .. } => (reason, log_tail),
        other => panic!("it did not fail: {other:?}"),
    }
}

#[test]
fn a_build_leaves_an_artifact_that_instances_run() {
    let mut world = World::new();
    let command = "echo building in $(pwd) as $(id -u) with $LEVEL $CI; cp template server; \
                   chmod 700 server; umask 077; mkdir made; echo x > made/by-build; echo cached > $HOME/kept";
    let kind = build(&world, &[("template", SERVER)], command, Some("test -s made/by-build && touch junk"));
    world.start_run("shop-build-1", kind, MINUTE);
    let RunOutcome::Succeeded { artifact: Some(digest) } = world.await_run("shop-build-1") else {
        panic!("the build failed: {}", world.run_log("shop-build-1"))
    };
    let log = world.run_log("shop-build-1");
    assert!(log.contains("building in /app as 70") && log.contains("with high true"), "its log is {log}");
    let tree = world.data().join("trees").join(digest.as_str().trim_start_matches("sha256:"));
    assert!(tree.join("made/by-build").exists(), "what was built is not there");
    assert!(!tree.join("junk").exists(), "what the test made is in the artifact");
    assert!(
        world.server.artifacts.lock().unwrap().contains_key(digest.as_str()),
        "the server did not get it"
    );
    eventually("the build's directory stays", || {
        std::fs::read_dir(world.data().join("build/shop")).unwrap().next().is_none()
    });
    let mut release = world.release(1, &[("web", service("exec ./server"))], &[("x", "")]);
    release.artifact = digest;
    world.server.launches.lock().unwrap().values_mut().for_each(|launch| launch.release = release.clone());
    world.run_instance("a1", "web", 1);
    world.await_state("a1", InstanceState::Healthy);
}

#[test]
fn a_build_without_a_test_is_kept_without_a_copy() {
    let mut world = World::new();
    let kind = build(&world, &[("x", "")], "umask 077; echo made > made; chmod 600 x", None);
    world.start_run("shop-build-1", kind, MINUTE);
    let RunOutcome::Succeeded { artifact: Some(digest) } = world.await_run("shop-build-1") else {
        panic!("the build failed: {}", world.run_log("shop-build-1"))
    };
    let tree = world.data().join("trees").join(digest.as_str().trim_start_matches("sha256:"));
    assert_eq!(rung_artifact::digest_tree(&tree).unwrap().digest, digest);
    let (sent, archive) =
        (tempfile::tempdir().unwrap(), world.server.artifacts.lock().unwrap()[digest.as_str()].clone());
    let unpacked = sent.path().join("tree");
    rung_artifact::unpack_verified(archive.as_slice(), &unpacked, &digest, rung_artifact::Limits::tree())
        .expect("what the server got has another digest");
}

#[test]
fn a_build_that_fails_says_how_with_its_last_lines() {
    let mut world = World::new();
    let kind = build(&world, &[("x", "")], "echo compiling; echo error: no such crate >&2; exit 101", None);
    world.start_run("shop-build-1", kind, MINUTE);
    let (reason, tail) = reason(world.await_run("shop-build-1"));
    assert_eq!(reason, "exited with code 101");
    assert_eq!(tail.last().map(String::as_str), Some("error: no such crate"));
}

#[test]
fn a_test_that_fails_is_the_end_of_a_build() {
    let mut world = World::new();
    let kind = build(&world, &[("x", "")], "true", Some("echo 3 of 9 failed; exit 1"));
    world.start_run("shop-build-1", kind, MINUTE);
    let (reason, tail) = reason(world.await_run("shop-build-1"));
    assert_eq!(
        (reason.as_str(), tail.as_slice()),
        ("test exited with code 1", &["3 of 9 failed".to_owned()][..])
    );
    let sources = world.server.artifacts.lock().unwrap().len();
    assert_eq!(sources, 1, "the artifact of a failed build was kept");
}

#[test]
fn a_build_that_hangs_is_ended_with_everything_that_it_started() {
    let mut world = World::new();
    let kind = build(&world, &[("x", "")], "setsid sleep 2718 & sleep 2718", None);
    world.start_run("shop-build-1", kind, Duration::from_millis(800));
    let (reason, _) = reason(world.await_run("shop-build-1"));
    assert_eq!(reason, "took longer than 800 ms");
    let left = std::process::Command::new("pgrep").args(["-f", "sleep 2718"]).output().unwrap();
    assert!(left.stdout.is_empty(), "it left a process behind");
}

#[test]
fn a_build_that_prints_a_gigabyte_is_bounded() {
    let mut world = World::new();
    let kind = build(
        &world,
        &[("x", "")],
        "yes abcdefghijklmnopqrstuvwxyz | head -c 1000000000; echo; exit 4",
        None,
    );
    world.start_run("shop-build-1", kind, MINUTE);
    let (reason, _) = reason(world.await_run("shop-build-1"));
    assert_eq!(reason, "exited with code 4");
    let size: u64 = std::fs::read_dir(world.data().join("logs/shop/.runs/shop-build-1"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size < 60_000_000, "{size} bytes of log were kept");
}

#[test]
fn a_run_that_is_cancelled_ends_at_once() {
    let mut world = World::new();
    let kind = build(&world, &[("x", "")], "echo on; sleep 1000", None);
    world.start_run("shop-build-1", kind, MINUTE);
    eventually("it did not start", || world.run_log("shop-build-1").contains("on\n"));
    world.assign(|assignment| assignment.runs.values_mut().for_each(|run| run.cancelled = true));
    assert_eq!(world.await_run("shop-build-1"), RunOutcome::Cancelled);
}

#[test]
fn a_release_command_goes_on_without_the_agent_and_runs_once() {
    let mut world = World::new();
    let mut web = worker("sleep 1000");
    web.mounts.insert(rung_model::VolumeName::new("db").unwrap(), "/data".into());
    world.release(1, &[("web", web)], &[("x", "")]);
    let command =
        "echo ran >> $RUNG_VOLUME_DB/log; echo $GREETING; while [ ! -e /data/go ]; do sleep 0.02; done";
    let kind = RunKind::Release { release: ReleaseNumber(1), command: command.into() };
    world.start_run("shop-release-1", kind, MINUTE);
    let volume = world.data().join("volumes/shop/db");
    eventually("it did not start", || volume.join("log").exists());
    world.crash_agent();
    world.start_agent();
    std::fs::write(volume.join("go"), "").unwrap();
    assert_eq!(world.await_run("shop-release-1"), RunOutcome::Succeeded { artifact: None });
    assert_eq!(std::fs::read_to_string(volume.join("log")).unwrap(), "ran\n", "it ran more than once");
    assert!(world.run_log("shop-release-1").contains("hello"), "it did not get the environment");
}

/// Attaches, types, and answers with everything that came and the exit code.
fn converse(world: &World, run: &str, say: Vec<Frame>) -> (String, String, i32) {
    let (socket, path) = (world.socket(), paths::AGENT_ATTACH.replace("{run}", run));
    eventually("the agent's socket is not there", || socket.exists());
    world.runtime.block_on(async move {
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: rung\r\nconnection: upgrade\r\nupgrade: {PROTOCOL}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("the head of the answer"));
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101"), "it was not upgraded: {answer}");
        for frame in say {
            stream.write_all(&frame.encode()).await.unwrap();
        }
        let (mut decoder, mut buffer) = (Decoder::default(), [0; 4096]);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the connection ended without an exit: {}", String::from_utf8_lossy(&out));
            for frame in decoder.push(&buffer[..count]).unwrap() {
                match frame {
                    Frame::Stdout(bytes) => out.extend(bytes),
                    Frame::Stderr(bytes) => err.extend(bytes),
                    Frame::Exit(code) => {
                        return (
                            String::from_utf8_lossy(&out).into(),
                            String::from_utf8_lossy(&err).into(),
                            code,
                        );
                    }
                    other => panic!("a process does not send {other:?}"),
                }
            }
        }
    })
}

fn one_off(command: &str, terminal: Option<Terminal>) -> RunKind {
    RunKind::OneOff { release: ReleaseNumber(1), command: command.into(), terminal }
}

#[test]
fn a_one_off_command_reads_what_is_typed_and_its_exit_code_comes_back() {
    let mut world = World::new();
    world.release(1, &[("web", worker("sleep 1000"))], &[("x", "")]);
    world.start_run("shop-run-1", one_off("cat; echo oops >&2; exit 7", None), MINUTE);
    let typed = vec![Frame::Stdin(b"some words\n".to_vec()), Frame::StdinEof];
    let (out, err, code) = converse(&world, "shop-run-1", typed);
    assert_eq!((out.as_str(), err.as_str(), code), ("some words\n", "oops\n", 7));
    let (reason, _) = reason(world.await_run("shop-run-1"));
    assert_eq!(reason, "exited with code 7");
}

#[test]
fn a_one_off_command_that_is_quicker_than_its_reader_loses_nothing() {
    let mut world = World::new();
    world.release(1, &[("web", worker("sleep 1000"))], &[("x", "")]);
    world.start_run("shop-run-1", one_off("echo quick", None), MINUTE);
    let exit = world.data().join("runs/shop-run-1/main/exit.json");
    eventually("the command did not end", || exit.exists());
    assert_eq!(converse(&world, "shop-run-1", Vec::new()).0, "quick\n");
    world.await_run("shop-run-1");
}

#[test]
fn a_terminal_is_one_and_has_the_size_of_the_persons() {
    let mut world = World::new();
    world.release(1, &[("web", worker("sleep 1000"))], &[("x", "")]);
    let terminal = Some(Terminal { rows: 33, columns: 99 });
    let command = "test -t 0 && stty size; read answer; echo got $answer; stty size; echo > /dev/tty; \
                   echo at $(tty) && echo by name > $(tty)";
    world.start_run("shop-run-1", one_off(command, terminal), MINUTE);
    let typed = vec![Frame::Resize { rows: 44, columns: 111 }, Frame::Stdin(b"yes\n".to_vec())];
    let (out, _, code) = converse(&world, "shop-run-1", typed);
    assert!(out.contains("got yes\r\n44 111"), "the terminal showed {out:?}");
    assert_eq!(code, 0, "the terminal showed {out:?}");
    assert!(out.contains("at /dev/pts/") && out.contains("by name"), "it has no name: {out:?}");
}

#[test]
fn logs_are_read_and_followed_through_the_agents_api() {
    let mut world = World::new();
    world.run_web(
        worker("echo one; while [ ! -e /data/go ]; do sleep 0.02; done; echo two; exec sleep 1000"),
        &[("x", "")],
    );
    world.await_state("a1", InstanceState::Healthy);
    let client = Client::new(Address::Unix(world.socket()), None);
    let query = LogQuery { app: Some(app()), follow: true, ..LogQuery::default() };
    let path = format!("{}?{}", paths::AGENT_LOGS, rung_api::client::log_query(&query));
    let lines: Vec<String> = world.runtime.block_on(async {
        let mut stream = client.stream::<rung_api::wire::LogLine>(&path).await.unwrap();
        let mut lines = Vec::new();
        while lines.len() < 2 {
            let line =
                tokio::time::timeout(support::PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
            lines.push(line.text);
        }
        lines
    });
    assert_eq!(lines, ["started", "one"]);
}

#[test]
fn a_release_is_fetched_once_however_many_of_its_runs_begin_at_once() {
    let mut world = World::new();
    world.release(1, &[("web", service("true"))], &[("x", "")]);
    let names: Vec<String> = (0..40).map(|n| format!("shop.run-n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let kind = RunKind::Release { release: ReleaseNumber(1), command: "exit 0".into() };
    world.start_runs(&names, &kind, MINUTE);
    for name in names {
        assert_eq!(world.await_run(name), RunOutcome::Succeeded { artifact: None });
    }
    let fetched = world.server.fetched.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(fetched, 1, "the server was asked {fetched} times for one release");
}
