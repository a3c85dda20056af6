//! From one machine to a cluster, and back: the state moves, applications do not notice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rung_e2e::{Load, Rung, Start, TestApp, eventually, process};

fn deployed(name: &str) -> (Rung, TestApp) {
    let rung = Rung::start_with(Start { options: vec!["--keep".into()], ..Start::default() });
    let mut app = TestApp::new(name, 2);
    app.version = "1".into();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 2);
    (rung, app)
}

/// The process of etcd that belongs to the platform.
fn etcd(rung: &Rung) -> process::Life {
    eventually("etcd runs", || {
        let mut all = rung.processes().into_iter();
        let found = all.find(|life| process::describe(life.pid).contains("--listen-peer-urls"));
        found.ok_or_else(|| "no process of that kind".to_owned())
    })
}

fn releases(rung: &Rung, app: &str) -> usize {
    let said = rung.cli(&["releases", "--app", app, "--json"]).succeeds();
    said.json::<Vec<serde_json::Value>>().len()
}

fn epoch(rung: &Rung) -> u64 {
    let report: serde_json::Value = rung.cli(&["cluster", "--json"]).json();
    report["epoch"].as_u64().expect("a report says its epoch")
}

#[test]
fn a_platform_climbs_to_etcd_and_goes_back_under_load_and_loses_nothing() {
    let (mut rung, mut app) = deployed("climber");
    rung.cli(&["config", "set", "COLOR=green", "--app", "climber"]).succeeds();
    rung.wait_until_settled("climber", "web", 2);
    let (lives, first) = (rung.lives("climber"), epoch(&rung));
    let load = Load::start(rung.http(), "climber.localhost", "/");
    load.wait_for(100);

    rung.cli(&["cluster", "init"]).succeeds().mentions("the state is in etcd");
    load.wait_for(100);
    assert_eq!(rung.lives("climber"), lives, "an instance was restarted by the climb");
    assert!(epoch(&rung) > first, "a new history goes on under the old epoch");
    rung.cli(&["cluster"]).succeeds().mentions("leads etcd");
    rung.cli(&["config", "get", "COLOR", "--app", "climber"]).succeeds().mentions("green");
    assert_eq!(releases(&rung, "climber"), 2, "the history of releases came along");

    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("climber", "/").contains("version 2 "), "a deploy on etcd serves its version");

    // etcd dies, and comes back with what was acknowledged.
    let member = etcd(&rung);
    process::kill_9(member.pid);
    process::wait_until_gone(member);
    let again = etcd(&rung);
    assert_ne!(again, member, "etcd was started again");
    rung.cli(&["config", "set", "COLOR=blue", "--app", "climber"]).succeeds();
    load.wait_for(100);

    // The platform dies, and adopts the etcd that it left.
    let again = etcd(&rung);
    rung.kill_9();
    rung.up(None, &["--keep".into()]);
    assert_eq!(etcd(&rung), again, "etcd was restarted with the platform");
    rung.wait_until_settled("climber", "web", 2);
    load.wait_for(100);

    let second = epoch(&rung);
    rung.cli(&["cluster", "dissolve"]).succeeds().mentions("on this machine alone");
    process::wait_until_gone(again);
    assert!(epoch(&rung) > second, "the way back goes on under the old epoch");
    rung.cli(&["config", "get", "COLOR", "--app", "climber"]).succeeds().mentions("blue");
    app.version = "3".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("climber", "/").contains("version 3 "));
    load.stop().assert_none_lost("a climb, kills, and the way back");
}

#[test]
fn a_platform_that_is_killed_while_it_climbs_has_all_of_its_state_in_one_place() {
    let (mut rung, _app) = deployed("faller");
    // Each of these appears at another step of the climb.
    for appears in ["etcd/tls/ca.crt", "etcd/pid.json", "etcd/member-1/member/snap/db", "cluster.json"] {
        let is_climbed = rung.data().join("cluster.json").exists();
        assert!(!is_climbed, "the earlier try was cut off before it came into force");
        let mut climbing = rung.cli_command(&["cluster", "init"]).spawn().expect("starting the climb");
        wait_for_file(&rung.data().join(appears));
        rung.kill_9();
        // It may have heard of the end of the climb, and wait for the server to come back.
        let _ = climbing.kill();
        let _ = climbing.wait().expect("a process that was killed ends");
        let is_climbed = rung.data().join("cluster.json").exists();
        rung.up(None, &["--keep".into()]);
        let report: serde_json::Value = rung.cli(&["cluster", "--json"]).json();
        let expected = if is_climbed { "etcd" } else { "sqlite" };
        assert_eq!(report["store"], expected, "killed when {appears} appeared: {report}");
        assert_eq!(releases(&rung, "faller"), 1, "killed when {appears} appeared");
        rung.wait_until_settled("faller", "web", 2);
        rung.cli(&["config", "set", &format!("STEP={}", appears.len()), "--app", "faller"]).succeeds();
        rung.cli(&["rollback", "v1", "--app", "faller"]).succeeds();
        if is_climbed {
            rung.cli(&["cluster", "dissolve"]).succeeds();
        }
        // Whatever was done goes on from here: only the count of releases is needed anew.
        rung.cli(&["destroy", "--app", "faller", "-y"]).succeeds();
        let app = TestApp::new("faller", 2);
        rung.deploy(app.directory()).succeeds();
    }
}

fn wait_for_file(path: &Path) {
    eventually(&format!("{} appears", path.display()), || {
        if path.exists() { Ok(()) } else { Err("it is not there".to_owned()) }
    });
}

#[test]
fn a_restored_state_changes_nothing_until_somebody_has_approved_it() {
    let (mut rung, mut app) = deployed("lazarus");
    rung.cli(&["cluster", "init"]).succeeds();
    let snapshot = rung.cli(&["cluster", "snapshot"]).succeeds().out.trim().to_owned();
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("lazarus", "web", 2);
    let (lives, before) = (rung.lives("lazarus"), epoch(&rung));

    rung.cli(&["cluster", "restore", &snapshot, "-y"]).ends_with(1).mentions("is in use by a running rung");
    rung.interrupt();
    rung.cli(&["cluster", "restore", &snapshot]).ends_with(1).mentions("-y");
    rung.cli(&["cluster", "restore", &snapshot, "-y"]).succeeds().mentions("nothing is changed until");
    rung.up(None, &["--keep".into()]);
    assert!(epoch(&rung) > before, "nodes would refuse what the restored state says");
    rung.cli(&["cluster"]).ends_with(1).mentions("rung cluster approve");
    eventually("the node has reported", || {
        let report: serde_json::Value = rung.cli(&["cluster", "--json"]).json();
        let silent = report["frozen"]["silent"].as_array().map_or(0, Vec::len);
        if silent == 0 { Ok(()) } else { Err(report.to_string()) }
    });
    assert!(lives.values().all(|life| life.goes_on()), "an instance was touched before anybody approved");
    assert!(rung.page("lazarus", "/").contains("version 2 "), "what runs is served as it was");
    rung.cli(&["cluster", "approve"]).ends_with(1).mentions("nothing was approved");
    assert!(lives.values().all(|life| life.goes_on()), "showing the plan carried it out");

    rung.cli(&["cluster", "approve", "-y"]).succeeds();
    eventually("the restored release serves", || {
        let page = rung.page("lazarus", "/");
        if page.contains("version 1 ") { Ok(()) } else { Err(page) }
    });
    rung.wait_until_settled("lazarus", "web", 2);
    app.version = "3".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("lazarus", "/").contains("version 3 "));
}

/// A directory that can't be written, until this is dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn make(directory: &Path) -> Self {
        let mount = |arguments: &[&str]| {
            let output =
                Command::new("mount").args(arguments).arg(directory).output().expect("starting mount");
            assert!(output.status.success(), "this story mounts a directory, which takes root: {output:?}");
        };
        mount(&["--bind", directory.to_str().expect("temporary directories have names in UTF-8")]);
        let made = Self(directory.to_owned());
        mount(&["-o", "remount,bind,ro"]);
        made
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "umount failed");
    }
}

#[test]
fn an_etcd_that_can_not_write_is_told_and_goes_on_when_it_can() {
    let (rung, _app) = deployed("patient");
    rung.cli(&["cluster", "init"]).succeeds();
    rung.cli(&["config", "set", "COLOR=green", "--app", "patient"]).succeeds();
    rung.wait_until_settled("patient", "web", 2);
    let load = Load::start(rung.http(), "patient.localhost", "/");
    load.wait_for(50);

    let member = etcd(&rung);
    let read_only = ReadOnly::make(&rung.data().join("etcd"));
    process::kill_9(member.pid);
    process::wait_until_gone(member);
    // The first may have been on its way when etcd died: nobody knows what became of it.
    eventually("a change is refused with the reason", || {
        let said = rung.cli(&["config", "set", "COLOR=red", "--app", "patient"]).ends_with(1);
        if said.err.contains("no member of etcd can be reached") { Ok(()) } else { Err(said.everything()) }
    });
    eventually("it is told why etcd does not come back", || {
        let said = rung.cli(&["cluster"]).everything();
        if said.to_lowercase().contains("read-only file system") { Ok(()) } else { Err(said) }
    });
    load.wait_for(100);

    drop(read_only);
    eventually("changes are taken again", || {
        let said = rung.cli(&["config", "set", "COLOR=blue", "--app", "patient"]);
        if said.code == Some(0) { Ok(()) } else { Err(said.everything()) }
    });
    rung.wait_until_settled("patient", "web", 2);
    load.wait_for(50);
    load.stop().assert_none_lost("an etcd that can't write for a while");
    rung.cli(&["config", "get", "COLOR", "--app", "patient"]).succeeds().mentions("blue");
}

/// A process that sleeps most of the time, until this is dropped.
struct Slow {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    fn make(life: process::Life) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) && life.goes_on() {
                process::signal(life.pid, libc::SIGSTOP);
                std::thread::sleep(ASLEEP); // tidy: how slow it is
                process::signal(life.pid, libc::SIGCONT);
                std::thread::sleep(AWAKE); // tidy: how slow it is
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

const ASLEEP: Duration = Duration::from_millis(300);
const AWAKE: Duration = Duration::from_millis(30);

impl Drop for Slow {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn an_etcd_that_is_slow_delays_changes_and_loses_nothing() {
    let (rung, mut app) = deployed("unhurried");
    rung.cli(&["cluster", "init"]).succeeds();
    let lives = rung.lives("unhurried");
    let load = Load::start(rung.http(), "unhurried.localhost", "/");
    load.wait_for(50);
    let slow = Slow::make(etcd(&rung));
    rung.cli(&["status"]).succeeds();
    load.wait_for(50);
    assert_eq!(rung.lives("unhurried"), lives, "an instance was started again because etcd is slow");
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("unhurried", "/").contains("version 2 "));
    drop(slow);
    rung.wait_until_settled("unhurried", "web", 2);
    load.stop().assert_none_lost("a deploy over a slow etcd");
}
