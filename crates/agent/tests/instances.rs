//! Stories of instances: started, adopted, killed, stopped, limited; and the applications that behave badly.

#![allow(clippy::unwrap_used, reason = "a test that can't go on shall say where")]

#[path = "support/world.rs"]
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rung_agent::{Shutdown, procfs};
use rung_model::appfile::Check;
use rung_model::assignment::Intent;
use rung_model::{InstanceState, VolumeName};
use support::{SERVER, World, eventually, fetch, id, service, worker};

fn kill_hard(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
}

/// The shim, the init, and the shim with everything below it.
struct Tree {
    shim: u32,
    init: u32,
    all: BTreeSet<u32>,
}

fn tree_of(world: &World, name: &str, attempt: u32) -> Tree {
    let life = world.data().join(format!("instances/{name}/{attempt}/life.json"));
    let life: serde_json::Value = serde_json::from_slice(&std::fs::read(life).unwrap()).unwrap();
    let pid = |who: &str| life[who]["pid"].as_u64().unwrap() as u32;
    let mut all = procfs::descendants(pid("shim"));
    all.insert(pid("shim"));
    Tree { shim: pid("shim"), init: pid("init"), all }
}

fn alive(pids: &BTreeSet<u32>) -> Vec<u32> {
    let state = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    pids.iter().copied().filter(|pid| !state(pid).is_empty() && !state(pid).contains(") Z ")).collect()
}

#[test]
fn an_instance_is_started_becomes_healthy_and_answers() {
    let mut world = World::new();
    world.run_web(service("exec ./server"), &[("server", SERVER)]);
    let healthy = world.await_state("a1", InstanceState::Healthy);
    let port = healthy.endpoint.expect("a service with a port has an endpoint").port();
    assert!((20_000..30_000).contains(&port), "it got port {port}");
    assert!(fetch(port).unwrap().ends_with("hello"));
    assert!(world.log("a1").contains("listening on"), "its output is not in the log: {}", world.log("a1"));
    assert_eq!(world.history("a1").last(), Some(&InstanceState::Healthy));
}

#[test]
fn an_agent_that_dies_leaves_everything_running_and_the_next_restarts_nothing() {
    let mut world = World::new();
    let talker = SERVER.replace(
        "http.server.Threading",
        "import threading\ndef talk():\n  n = 0\n  while True:\n    n += 1; print('tick', n, flush=True); time.sleep(0.01)\nthreading.Thread(target=talk, daemon=True).start()\nhttp.server.Threading",
    );
    world.run_web(service("exec ./server"), &[("server", &talker)]);
    let before = world.await_state("a1", InstanceState::Healthy);
    world.crash_agent();
    let port = before.endpoint.unwrap().port();
    assert!(fetch(port).unwrap().ends_with("hello"), "it went down with the agent");
    let ticks = || world.log("a1").matches("tick").count();
    let seen = ticks();
    eventually("its output is not kept while there is no agent", || ticks() > seen + 10);
    world.start_agent();
    let again = world.await_report("it was not adopted", |observed| {
        observed.agent_started != jiff::Timestamp::UNIX_EPOCH
            && observed.sequence == 1
            && observed.instances.get(&id("a1")).is_some_and(|a1| a1.state == InstanceState::Healthy)
    });
    let after = &again.instances[&id("a1")];
    assert_eq!((after.pid, after.endpoint, after.restarts), (before.pid, before.endpoint, 0));
    let history = world.history("a1");
    assert_eq!(
        history.iter().filter(|s| **s == InstanceState::Healthy).count(),
        1,
        "it was un-routed: {history:?}"
    );
}

#[test]
fn killing_any_member_of_the_tree_leaves_no_orphan_and_no_leaked_port() {
    let mut world = World::new();
    let family =
        "sh -c 'sleep 1000 & sh -c \"sleep 1001 & wait\" & wait' & setsid sleep 1002 & exec ./server";
    world.run_web(service(family), &[("server", SERVER)]);
    let mut instance = world.await_state("a1", InstanceState::Healthy);
    for (attempt, member) in (1..).zip(["main", "shim", "init"]) {
        eventually("the family is not complete", || tree_of(&world, "a1", attempt).all.len() >= 8);
        let tree = tree_of(&world, "a1", attempt);
        kill_hard(match member {
            "main" => instance.pid.unwrap(),
            "shim" => tree.shim,
            _ => tree.init,
        });
        eventually(&format!("after its {member} was killed some of {:?} live on", tree.all), || {
            alive(&tree.all).is_empty()
        });
        let observed = world.await_report("it was not started again", |observed| {
            let a1 = &observed.instances[&id("a1")];
            a1.state == InstanceState::Healthy && a1.restarts == attempt
        });
        let next = observed.instances[&id("a1")].clone();
        assert_eq!(next.endpoint, instance.endpoint, "its port leaked");
        instance = next;
    }
}

#[test]
fn an_instance_that_ignores_sigterm_is_killed_after_its_grace_and_not_before() {
    let mut world = World::new();
    let mut stubborn = worker("trap '' TERM; while :; do sleep 0.1; done");
    stubborn.stop_grace = Duration::from_millis(700);
    world.run_web(stubborn, &[("x", "")]);
    world.await_state("a1", InstanceState::Healthy);
    let tree = tree_of(&world, "a1", 1).all;
    let asked = Instant::now();
    world.assign(|assignment| assignment.instances.get_mut(&id("a1")).unwrap().intent = Intent::Stop);
    world.await_state("a1", InstanceState::Stopped);
    assert!(asked.elapsed() >= Duration::from_millis(700), "it was killed before its grace was over");
    eventually("something of it lives on", || alive(&tree).is_empty());
    world.assign(|assignment| drop(assignment.instances.remove(&id("a1"))));
    world.await_report("it was not forgotten", |observed| observed.instances.is_empty());
}

#[test]
fn a_server_behind_a_shell_drains_after_sigterm() {
    let mut world = World::new();
    let script = "sh -c 'trap \"sleep 0.3; echo drained; exit 0\" TERM; while :; do sleep 0.05; done'; true";
    world.run_web(worker(script), &[("x", "")]);
    world.await_state("a1", InstanceState::Healthy);
    world.assign(|assignment| assignment.instances.get_mut(&id("a1")).unwrap().intent = Intent::Stop);
    world.await_state("a1", InstanceState::Stopped);
    assert!(world.log("a1").contains("drained"), "the server was killed with its shell: {}", world.log("a1"));
}

#[test]
fn a_command_that_forks_and_exits_leaves_nothing_behind_and_is_a_crash_loop() {
    let mut world = World::new();
    world.run_web(service("echo going; sleep 3141 & exit 0"), &[("x", "")]);
    let looping = world.await_state("a1", InstanceState::CrashLooping);
    assert!(looping.reason.unwrap().contains("exited with code 0"));
    assert_eq!(looping.log_tail, ["going"]);
    let left = std::process::Command::new("pgrep").args(["-f", "sleep 3141"]).output().unwrap();
    assert!(left.stdout.is_empty(), "it left a process behind");
}

#[test]
fn a_crash_loop_says_why_with_its_last_words() {
    let mut world = World::new();
    world.run_web(service("echo cannot reach the database >&2; exit 3"), &[("x", "")]);
    let looping = world.await_state("a1", InstanceState::CrashLooping);
    assert_eq!(looping.restarts, 4, "five exits make a crash loop");
    assert!(looping.reason.unwrap().starts_with("exited with code 3"));
    assert_eq!(looping.log_tail, ["cannot reach the database"]);
}

#[test]
fn a_command_that_does_not_exist_is_not_tried_for_ever() {
    let mut world = World::new();
    world.run_web(service("bin/serve"), &[("x", "")]);
    let failed = world.await_state("a1", InstanceState::Failed);
    let reason = failed.reason.unwrap();
    assert!(reason.contains("not found"), "the reason is {reason:?}");
    assert!(
        failed.log_tail.iter().any(|line| line.contains("bin/serve")),
        "the log is {:?}",
        failed.log_tail
    );
}

#[test]
fn an_application_that_listens_elsewhere_is_told_where() {
    let mut world = World::new();
    let elsewhere = SERVER.replace("int(os.environ[\"PORT\"])", "0");
    let mut lost = service("exec ./server");
    lost.health.grace = Duration::from_secs(2);
    (lost.health.restart_after, lost.health.interval) = (3, Duration::from_millis(100));
    world.run_web(lost, &[("server", &elsewhere)]);
    let observed = world.await_report("it is not said where it listens", |observed| {
        let reason = observed.instances.get(&id("a1")).and_then(|a1| a1.reason.clone());
        reason.is_some_and(|reason| reason.contains("instead of 127.0.0.1:2") && reason.contains("($PORT)"))
    });
    assert_eq!(observed.instances[&id("a1")].state, InstanceState::Starting);
    let restarted = world.await_state("a1", InstanceState::Stopping);
    let reason = restarted.reason.unwrap();
    assert!(reason.contains("listens on"), "it was said, and at the end it is not any more: {reason:?}");
}

#[test]
fn an_application_that_never_listens_is_restarted_after_its_grace() {
    let mut world = World::new();
    let mut deaf = service("sleep 1000");
    deaf.health.grace = Duration::from_millis(200);
    world.run_web(deaf, &[("x", "")]);
    let backing_off = world.await_state("a1", InstanceState::BackingOff);
    let reason = backing_off.reason.unwrap();
    assert!(
        reason.contains("never healthy") && reason.contains("nothing listens"),
        "the reason is {reason:?}"
    );
}

#[test]
fn a_port_that_somebody_else_takes_is_given_up_for_another() {
    let mut world = World::new();
    let mut late = service("while [ ! -e /tmp/../data/go ]; do sleep 0.02; done; exec ./server");
    late.mounts.insert(VolumeName::new("flag").unwrap(), "/data".into());
    world.run_web(late, &[("server", SERVER)]);
    let starting = world.await_state("a1", InstanceState::Starting);
    let port = starting.endpoint.unwrap().port();
    let _thief = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::fs::write(world.data().join("volumes/shop/flag/go"), "").unwrap();
    let healthy = world.await_state("a1", InstanceState::Healthy);
    assert_ne!(healthy.endpoint.unwrap().port(), port, "somebody else's server was taken for the instance");
}

#[test]
fn an_unhealthy_instance_is_said_to_be_so_and_restarted() {
    let mut world = World::new();
    let mut checked = service("exec ./server");
    checked.health.check = Check::Http { path: "/up".into() };
    world.run_web(checked, &[("server", SERVER)]);
    world.await_state("a1", InstanceState::Healthy);
    let lives = world.data().join("instances/a1/1/tmp/sick");
    std::fs::write(lives, "").unwrap();
    let unhealthy = world.await_state("a1", InstanceState::Unhealthy);
    assert!(unhealthy.reason.unwrap().contains("status 500"));
    world.await_report("it was not restarted", |observed| {
        let a1 = &observed.instances[&id("a1")];
        a1.state == InstanceState::Healthy && a1.restarts == 1
    });
}

#[test]
fn a_server_is_not_left_in_the_middle_of_its_answer_to_a_check() {
    let mut world = World::new();
    let mut checked = service("exec ./server");
    checked.health.check = Check::Http { path: "/long".into() };
    checked.health.interval = Duration::from_millis(50);
    let long = SERVER.replace("b\"hello\"", "b\"hello\" * 100_000");
    let long = long.replace("def do_GET(self):", "def do_GET(self):\n        print('asked', flush=True)");
    world.run_web(checked, &[("server", &long)]);
    world.await_state("a1", InstanceState::Healthy);
    eventually("it is not asked again", || world.log("a1").matches("asked").count() > 5);
    let log = world.log("a1");
    assert!(!log.contains("Traceback") && !log.contains("Error"), "it complains: {log}");
}

#[test]
fn what_a_failing_health_command_says_is_in_the_log_once() {
    let mut world = World::new();
    let mut checked = worker("exec sleep 1000");
    // More than a pipe holds; only the end is of interest.
    let command = "head -c 200000 /dev/zero | tr '\\0' x; echo; echo no database >&2; exit 1";
    checked.health.check = Check::Command { command: command.into() };
    checked.health.grace = Duration::from_millis(1);
    checked.health.interval = Duration::from_millis(20);
    checked.health.restart_after = 100;
    world.run_web(checked, &[("x", "")]);
    eventually("it is not in the log", || world.log("a1").contains("health command: no database"));
    world.await_report("it does not say that it fails", |observed| {
        let reason = observed.instances.get(&id("a1")).and_then(|a1| a1.reason.as_deref());
        reason == Some("health command exited with code 1")
    });
    assert_eq!(world.log("a1").matches("no database").count(), 1, "it says the same again and again");
}

#[test]
fn a_health_command_runs_inside_the_instance() {
    let mut world = World::new();
    let mut checked = worker("echo $$ > /tmp/pid; exec sleep 1000");
    checked.health.check = Check::Command { command: "test -s /tmp/pid && [ \"$GREETING\" = hello ]".into() };
    let mode = || std::os::unix::fs::MetadataExt::mode(&std::fs::metadata("/dev/null").unwrap());
    let before = mode();
    world.run_web(checked, &[("x", "")]);
    world.await_state("a1", InstanceState::Healthy);
    assert_eq!(mode(), before, "the machine's /dev/null was changed");
}

#[test]
fn more_memory_than_its_limit_is_the_end_of_an_instance_with_a_reason() {
    let mut world = World::new();
    let mut hungry = worker("exec python3 -c 'x = b\"x\" * 200_000_000; import time; time.sleep(100)'");
    hungry.memory_bytes = Some(64_000_000);
    world.run_web(hungry, &[("x", "")]);
    let backing_off = world.await_state("a1", InstanceState::BackingOff);
    assert_eq!(backing_off.reason.as_deref(), Some("killed: used more than its memory limit of 64 MB"));
}

#[test]
fn an_instance_that_prints_without_end_is_not_held_up_and_its_logs_are_bounded() {
    let mut world = World::new();
    // 100 MB of noise, binary included, as fast as it can; then it says that it is done.
    let loud = "head -c 100000000 /dev/urandom; echo; touch /data/done; exec sleep 1000";
    let mut loud = worker(loud);
    loud.mounts.insert(VolumeName::new("flag").unwrap(), "/data".into());
    world.run_web(loud, &[("x", "")]);
    eventually("it is held up by its log", || world.data().join("volumes/shop/flag/done").exists());
    let directory = world.data().join("logs/shop/web/a1");
    let size = || -> u64 {
        std::fs::read_dir(&directory)
            .unwrap()
            .map(|f| f.unwrap().metadata().map_or(0, |meta| meta.len()))
            .sum()
    };
    assert!(size() < 120_000_000, "{} bytes of log were kept", size());
}

#[test]
fn of_an_app_that_is_gone_nothing_stays_but_its_volumes_and_those_when_asked() {
    let mut world = World::new();
    let mut keeper = worker("echo hello; touch /data/kept; exec sleep 1000");
    keeper.mounts.insert(VolumeName::new("flag").unwrap(), "/data".into());
    world.run_web(keeper, &[("x", "")]);
    world.await_state("a1", InstanceState::Healthy);
    let (kept, logs) = (world.data().join("volumes/shop/flag/kept"), world.data().join("logs/shop"));
    eventually("it did not write to its volume", || kept.exists());
    for place in ["cache/shop", "build/shop/shop-build-1"] {
        std::fs::create_dir_all(world.data().join(place)).unwrap();
    }
    world.assign(|assignment| {
        assignment.instances.clear();
        assignment.purge_but_volumes.push(support::app());
    });
    let told = world.server.assignment.borrow().generation;
    world.await_report("the removal was not acknowledged", |observed| observed.assignment == told);
    let left = [logs, world.data().join("cache/shop"), world.data().join("build/shop")];
    assert!(left.iter().all(|place| !place.exists()), "something of {left:?} is left");
    assert!(kept.exists(), "its volume is gone");
    world.assign(|assignment| {
        assignment.purge_but_volumes.clear();
        assignment.purge.push(support::app());
    });
    let told = world.server.assignment.borrow().generation;
    world.await_report("the removal was not acknowledged", |observed| observed.assignment == told);
    assert!(!kept.exists(), "its volume is left");
}

#[test]
fn the_platform_stops_with_its_instances_and_starts_them_again() {
    let mut world = World::new();
    world.run_web(service("exec ./server"), &[("server", SERVER)]);
    let before = world.await_state("a1", InstanceState::Healthy);
    let tree = tree_of(&world, "a1", 1).all;
    world.stop_agent(Shutdown::StopInstances);
    eventually("an instance runs on after the platform was stopped", || alive(&tree).is_empty());
    world.start_agent();
    let after = world.await_report("it was not started again", |observed| {
        observed
            .instances
            .get(&id("a1"))
            .is_some_and(|a1| a1.state == InstanceState::Healthy && a1.restarts == 1)
    });
    assert_eq!(after.instances[&id("a1")].endpoint, before.endpoint, "its port is kept");
}

#[test]
fn what_an_instance_can_see_and_do_is_little() {
    let mut world = World::new();
    let probe = r#"#!/bin/sh
echo "uid $(id -u) home $HOME cwd $(pwd) greeting $GREETING"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
echo "processes $(ls /proc | grep -c '^[0-9]')"
touch /app/x 2>/dev/null || echo "tree is read-only"
ls DATA >/dev/null 2>&1 || echo "data is out of sight"
touch /tmp/mine && echo "tmp is mine"
touch "$RUNG_VOLUME_UPLOADS/kept" && echo "volume at $RUNG_VOLUME_UPLOADS"
umask
unshare -U true 2>/dev/null || echo "no namespaces of its own"
id -un
echo done
exec sleep 1000
"#
    .replace("DATA", world.directory.path().join("data").to_str().unwrap());
    let mut service = worker("./probe");
    service.mounts.insert(VolumeName::new("uploads").unwrap(), "/srv/deep/uploads".into());
    world.run_web(service, &[("probe", &probe)]);
    world.await_state("a1", InstanceState::Healthy);
    let log = world.log("a1");
    for expected in [
        "home /tmp cwd /app greeting hello",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "no namespaces of its own",
        "tree is read-only",
        "data is out of sight",
        "tmp is mine",
        "volume at /srv/deep/uploads",
        "0022",
        "done",
    ] {
        assert!(log.contains(expected), "{expected:?} is missing in what it saw: {log}");
    }
    assert!(!log.contains("uid 0 "), "it runs as root: {log}");
    let processes = log.split("processes ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(processes.parse::<u32>().unwrap() < 8, "it sees {processes} processes");
    assert!(world.data().join("volumes/shop/uploads/kept").exists(), "the volume is not on the disk");
    assert!(!std::path::Path::new("/srv/deep").exists(), "a mount point was made on the machine itself");
}

#[test]
fn a_volume_is_not_mounted_through_a_link() {
    let mut world = World::new();
    let mut service = worker("sleep 1000");
    // A link on every Debian, to /run.
    service.mounts.insert(VolumeName::new("uploads").unwrap(), "/var/run/rung-test-link/x".into());
    world.run_web(service, &[("x", "")]);
    let backing_off = world.await_state("a1", InstanceState::BackingOff);
    let reason = backing_off.reason.unwrap();
    assert!(reason.contains("goes through the link /var/run"), "the reason is {reason:?}");
    assert!(!std::path::Path::new("/run/rung-test-link").exists(), "a directory was made on the machine");
}
