//! What every driver owes: one suite over lives as processes and lives as containers.

// The lint knows test functions only; here everything is a test.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/e2e/src/engine.rs"]
mod engine;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rung_agent::driver::docker::{ContainerSpec, Labels};
use rung_agent::driver::{Driver, Start, Status};
use rung_agent::engine::Engine;
use rung_agent::logs;
use rung_agent::shim::protocol::{Access, Exit, How, Io, Isolation, Limits, Spec};
use rung_api::attach::{Decoder, Frame};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const IMAGE: &str = "base:1";
const PATIENCE: Duration = Duration::from_secs(60);

/// How a command becomes a life.
trait Kind {
    fn driver(&self) -> Driver;
    fn start(&self, life: Life) -> Start;
}

/// What a test wants of a life.
#[derive(Default)]
struct Life {
    directory: PathBuf,
    logs: PathBuf,
    command: &'static str,
    env: BTreeMap<String, String>,
    limits: Limits,
    io: Option<Io>,
    time_limit_ms: Option<u64>,
}

struct AsProcess;

impl Kind for AsProcess {
    fn driver(&self) -> Driver {
        Driver::new(env!("CARGO_BIN_EXE_rung-test-shim").into(), Engine::at("/nowhere".into()), "rung-test")
    }

    fn start(&self, life: Life) -> Start {
        let tmp = life.directory.join("tmp");
        std::fs::create_dir_all(&tmp).unwrap();
        let mut env = life.env;
        env.insert("PATH".into(), "/usr/bin:/bin".into());
        Start::Process(Box::new(Spec {
            name: "life".into(),
            attempt: 1,
            directory: life.directory,
            logs: life.logs,
            command: life.command.into(),
            env,
            tree: tmp.clone(),
            tree_access: Access::ReadOnly,
            tmp,
            mounts: Vec::new(),
            names: BTreeMap::new(),
            masked: Vec::new(),
            isolation: Isolation::Plain,
            limits: life.limits,
            io: life.io.unwrap_or(Io::Logs),
            time_limit_ms: life.time_limit_ms,
            once: None,
            lease: None,
        }))
    }
}

struct AsContainer(engine::Dockerd);

impl Kind for AsContainer {
    fn driver(&self) -> Driver {
        Driver::new("/nowhere".into(), Engine::at(self.0.socket()), "rung-test")
    }

    fn start(&self, life: Life) -> Start {
        let config = serde_json::from_str("{}").unwrap();
        // Lives of one test have directories of their own; containers have names.
        let name = life.directory.file_name().unwrap().to_str().unwrap().to_owned();
        Start::Container(Box::new(ContainerSpec {
            name,
            attempt: 1,
            directory: life.directory,
            logs: life.logs,
            image: IMAGE.into(),
            image_name: IMAGE.into(),
            config,
            command: Some(life.command.into()),
            env: life.env,
            mounts: Vec::new(),
            fresh: Vec::new(),
            limits: life.limits,
            port: None,
            calls: None,
            names: BTreeMap::new(),
            io: life.io.unwrap_or(Io::Logs),
            time_limit_ms: life.time_limit_ms,
            labels: Labels::new(),
        }))
    }
}

struct Suite<'k> {
    kind: &'k dyn Kind,
    driver: Driver,
    home: TempDir,
}

impl Suite<'_> {
    fn life(&self, name: &str, command: &'static str) -> Life {
        let (directory, logs) = (self.home.path().join(name), self.home.path().join(format!("{name}-logs")));
        std::fs::create_dir_all(&directory).unwrap();
        Life { directory, logs, command, ..Life::default() }
    }

    async fn spawn(&self, life: Life) -> PathBuf {
        let start = self.kind.start(life);
        let spawned = self.driver.spawn(&start).await;
        spawned.unwrap_or_else(|error| panic!("it was not started: {error:?}"));
        start.directory().to_owned()
    }

    async fn ended(&self, directory: &std::path::Path) -> Exit {
        let ended = tokio::time::timeout(PATIENCE, self.driver.ended(directory, 1)).await;
        ended.expect("it does not end")
    }

    fn tail(&self, name: &str) -> Vec<String> {
        logs::tail(&self.home.path().join(format!("{name}-logs")))
    }

    async fn said(&self, name: &str, line: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.tail(name).iter().any(|found| found == line) {
            assert!(Instant::now() < until, "{name} never said {line:?}: {:?}", self.tail(name));
            tokio::time::sleep(Duration::from_millis(10)).await; // tidy: a file is looked at until a line is there
        }
    }

    async fn a_life_has_its_environment_and_its_end_and_its_last_lines_are_kept(&self) {
        let mut life = self.life("short", "echo \"$GREETING\"; echo aside >&2; exit 3");
        life.env.insert("GREETING".into(), "two\nlines".into());
        let directory = self.spawn(life).await;
        let exit = self.ended(&directory).await;
        assert_eq!(exit.how, How::Exited { code: 3 }, "{}", exit.describe());
        let mut said = self.tail("short");
        said.sort();
        assert_eq!(said, ["aside", "lines", "two"], "lines are missing at the life's end, or there twice");
        assert!(matches!(self.driver.status(&directory).await, Status::Ended(found) if found == exit));
        self.driver.release(&directory).await;
        assert!(matches!(self.driver.status(&directory).await, Status::Ended(_)), "its end was forgotten");
    }

    async fn a_stop_is_a_sigterm_and_a_kill_after_the_grace_period(&self) {
        let obeys = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.02; done";
        let directory = self.spawn(self.life("obeys", obeys)).await;
        let watching = self.driver.clone();
        let place = directory.clone();
        let watched = tokio::spawn(async move { watching.ended(&place, 1).await });
        self.said("obeys", "up").await;
        self.driver.stop(&directory, Duration::from_secs(20)).await.unwrap();
        let exit = watched.await.unwrap();
        assert_eq!(exit.how, How::Exited { code: 5 }, "{}", exit.describe());
        assert!(self.tail("obeys").contains(&"bye".to_owned()), "{:?}", self.tail("obeys"));

        let stubborn = "trap '' TERM; echo up; while :; do sleep 0.02; done";
        let directory = self.spawn(self.life("stubborn", stubborn)).await;
        let (watching, place) = (self.driver.clone(), directory.clone());
        let watched = tokio::spawn(async move { watching.ended(&place, 1).await });
        self.said("stubborn", "up").await;
        self.driver.stop(&directory, Duration::from_secs(1)).await.unwrap();
        let exit = watched.await.unwrap();
        assert_eq!(exit.how, How::Signaled { signal: 9 }, "{}", exit.describe());
    }

    async fn another_driver_finds_the_life_again(&self) {
        let directory = self.spawn(self.life("found", "echo here; while :; do sleep 0.02; done")).await;
        let other = self.kind.driver();
        let Status::Alive(living) = other.status(&directory).await else { panic!("it is not found alive") };
        assert!(living.pid > 0 && living.started_ms > 0, "{living:?}");
        let (watching, place) = (other.clone(), directory.clone());
        let watched = tokio::spawn(async move { watching.ended(&place, 1).await });
        self.said("found", "here").await;
        other.kill(&directory).await.unwrap();
        let exit = tokio::time::timeout(PATIENCE, watched).await.expect("it does not end").unwrap();
        assert_eq!(exit.how, How::Signaled { signal: 9 }, "{}", exit.describe());
        assert_eq!(self.tail("found"), ["here"], "what was printed before is missing, or there twice");
        let empty = self.home.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(matches!(other.status(&empty).await, Status::Lost));
    }

    async fn what_takes_too_long_is_ended(&self) {
        let life = Life { time_limit_ms: Some(700), ..self.life("slow", "while :; do sleep 0.02; done") };
        let directory = self.spawn(life).await;
        let exit = self.ended(&directory).await;
        assert!(exit.timed_out, "{exit:?}");
    }

    async fn a_check_runs_inside_and_says_why_it_fails(&self) {
        let life = self.life("checked", "while :; do sleep 0.02; done");
        let directory = self.spawn(life).await;
        let check = |command: &'static str| {
            let (driver, directory) = (self.driver.clone(), directory.clone());
            async move { driver.check(&directory, command, Duration::from_secs(20)).await }
        };
        assert_eq!(check("exit 0").await, Ok(()));
        assert_eq!(check("echo no such table; exit 4").await, Err("exited with code 4".into()));
        let hasty = self.driver.check(&directory, "sleep 30", Duration::from_millis(300)).await;
        assert_eq!(hasty, Err("took too long".into()));
        self.driver.end_life(&directory).await;
    }

    async fn a_person_attaches_and_the_exit_code_comes_last(&self) {
        let life =
            Life { io: Some(Io::Attached), ..self.life("attached", "read line; echo got $line; exit 6") };
        let directory = self.spawn(life).await;
        let mut person = self.driver.attach(&directory).await.unwrap();
        person.write_all(&Frame::Stdin(b"a word\n".to_vec()).encode()).await.unwrap();
        let (watching, place) = (self.driver.clone(), directory.clone());
        let watched = tokio::spawn(async move { watching.ended(&place, 1).await });
        let (mut decoder, mut frames, mut chunk) = (Decoder::default(), Vec::new(), vec![0; 4096]);
        let heard = async {
            while let Ok(count @ 1..) = person.read(&mut chunk).await {
                frames.extend(decoder.push(&chunk[..count]).unwrap());
                if matches!(frames.last(), Some(Frame::Exit(_))) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the exit code does not come");
        let output: Vec<u8> = frames
            .iter()
            .filter_map(|frame| if let Frame::Stdout(bytes) = frame { Some(bytes.clone()) } else { None })
            .flatten()
            .collect();
        assert_eq!(String::from_utf8_lossy(&output), "got a word\n");
        assert_eq!(frames.last(), Some(&Frame::Exit(6)));
        assert_eq!(watched.await.unwrap().how, How::Exited { code: 6 });
        self.driver.release(&directory).await;
    }
}

fn owes(kind: &dyn Kind) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let suite = Suite { kind, driver: kind.driver(), home: tempfile::tempdir().unwrap() };
    runtime.block_on(async {
        suite.a_life_has_its_environment_and_its_end_and_its_last_lines_are_kept().await;
        suite.a_stop_is_a_sigterm_and_a_kill_after_the_grace_period().await;
        suite.another_driver_finds_the_life_again().await;
        suite.what_takes_too_long_is_ended().await;
        suite.a_check_runs_inside_and_says_why_it_fails().await;
        suite.a_person_attaches_and_the_exit_code_comes_last().await;
    });
}

#[test]
fn a_process_is_a_life() {
    owes(&AsProcess);
}

#[test]
fn a_container_is_a_life() {
    let kind = AsContainer(engine::Dockerd::start());
    owes(&kind);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Nobody has a record of these any more: their directories went with the suite.
    let removed = runtime.block_on(kind.driver().containers().sweep(&[])).unwrap();
    assert_eq!(
        kind.0.containers(),
        Vec::<String>::new(),
        "{removed} containers were swept, and some are left"
    );
}

/// Two agents may ask for it: one that was killed just after it had, and the next one.
#[tokio::test]
async fn a_command_that_runs_once_is_begun_by_the_first_shim_that_comes_so_far_and_by_no_other() {
    let kind = AsProcess;
    let suite = Suite { kind: &kind, driver: kind.driver(), home: tempfile::tempdir().unwrap() };
    let mark = suite.home.path().join("begun");
    let once = |name| {
        let Start::Process(mut spec) = kind.start(suite.life(name, "echo done")) else { unreachable!() };
        spec.once = Some(mark.clone());
        Start::Process(spec)
    };
    let (first, second) = (once("first"), once("second"));
    suite.driver.spawn(&first).await.expect("nobody else has begun it");
    suite.ended(first.directory()).await;
    assert!(mark.exists(), "nothing tells that it was begun");
    let refused = suite.driver.spawn(&second).await.expect_err("it was begun twice");
    assert!(refused.to_string().contains("begun before"), "it was refused otherwise: {refused}");
    assert!(!suite.tail("second").contains(&"done".to_owned()), "the command ran twice");
}
