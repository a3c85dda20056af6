//! Instances that die, hang, fork and shout.

use std::process::Stdio;

use rung_e2e::process::{self, Life};
use rung_e2e::{Load, Rung, TestApp, eventually};
use rung_model::observed::InstanceState;

fn deployed(name: &str, instances: u32) -> (Rung, TestApp) {
    let rung = Rung::start();
    let app = TestApp::new(name, instances);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", instances as usize);
    (rung, app)
}

#[test]
fn instances_that_are_killed_come_back_and_nobody_notices() {
    let (rung, _app) = deployed("cat", 2);
    let load = Load::start(rung.http(), "cat.localhost", "/");
    load.wait_for(100);
    // In turns: one that dies again and again is started later each time.
    for n in 0..4 {
        let before = rung.wait_until_settled("cat", "web", 2);
        let victim = before[n % 2].pid.and_then(process::life).expect("a healthy instance has a process");
        process::kill_9(victim.pid);
        eventually("the instance is back with another process", || {
            let now = rung.instances("cat");
            let fine = now
                .iter()
                .any(|i| i.id == before[n % 2].id && i.routed && i.pid.is_some_and(|pid| pid != victim.pid));
            if fine { Ok(()) } else { Err(format!("{now:?}")) }
        });
        load.wait_for(50);
    }
    load.stop().assert_none_lost("four kills of instances");
}

#[test]
fn no_child_outlives_its_instance() {
    let (rung, _app) = deployed("rabbit", 1);
    let main = rung.instances("rabbit")[0].pid.expect("a healthy instance has a process");
    for _ in 0..3 {
        rung.page("rabbit", "/fork");
    }
    let children: Vec<Life> = eventually("three children run", || {
        let children = process::children(main);
        if children.len() == 3 { Ok(children) } else { Err(format!("{children:?}")) }
    });
    process::kill_9(main);
    children.into_iter().for_each(process::wait_until_gone);
    rung.wait_until_settled("rabbit", "web", 1);
    assert!(rung.page("rabbit", "/").contains("version 1 "), "it came back on its port");
}

#[test]
fn an_instance_that_is_deaf_to_sigterm_is_killed_after_its_grace() {
    let rung = Rung::start();
    let mut app = TestApp::new("deaf", 1);
    app.set("BE_DEAF", "yes");
    app.web().lines.push("stop_grace = \"500ms\"".into());
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("deaf", "web", 1);
    let old = rung.lives("deaf");
    rung.cli(&["restart", "--app", "deaf"]).succeeds();
    old.into_values().for_each(process::wait_until_gone);
    rung.wait_until_settled("deaf", "web", 1);
}

#[test]
fn a_crash_loop_is_shown_as_one_with_its_last_words() {
    let (rung, _app) = deployed("loop", 1);
    eventually("the instance is shown as crash looping", || {
        let instance = rung.instances("loop").pop().ok_or("no instance")?;
        if instance.state == InstanceState::CrashLooping {
            return Ok(());
        }
        // An answer can't come: it exits in the middle of it.
        let _ = rung.get("loop", "/crash?code=42");
        Err(format!("{instance:?}"))
    });
    rung.cli(&["status", "--app", "loop"]).mentions("crash").mentions("42");
    rung.cli(&["logs", "--app", "loop"]).succeeds().mentions("crashing because somebody asked for it");
}

#[test]
fn an_instance_that_becomes_unhealthy_gets_no_requests_and_is_restarted() {
    let (rung, _app) = deployed("ill", 2);
    let lives = rung.lives("ill");
    rung.page("ill", "/become?flag=BE_UNHEALTHY&value=a%20headache");
    eventually("one instance was restarted, and both are healthy", || {
        let now = rung.instances("ill");
        let restarted = now.iter().filter(|i| i.restarts > 0).count();
        let healthy = now.iter().all(|i| i.state == InstanceState::Healthy && i.routed);
        if restarted == 1 && healthy { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let left = rung.lives("ill");
    assert_eq!(
        lives.iter().filter(|(id, life)| left.get(*id) == Some(life)).count(),
        1,
        "the healthy one was let alone"
    );
}

#[test]
fn an_instance_sees_its_tree_read_only_and_has_a_place_for_temporary_files() {
    let (rung, _app) = deployed("tidy", 1);
    let answer = rung.get("tidy", "/write?path=app.py").expect("an answer");
    assert_eq!(answer.status, 403, "the artifact can be written to: {}", answer.text());
    assert_eq!(rung.page("tidy", "/write?path=/tmp/mine"), "written\n");
}

#[test]
fn a_service_without_a_port_runs_beside_the_web() {
    let rung = Rung::start();
    let mut app = TestApp::new("both", 1);
    app.services.push(rung_e2e::Service {
        name: "worker".into(),
        instances: 2,
        lines: vec!["port = false".into()],
    });
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("both", "worker", 2);
    rung.cli(&["logs", "--app", "both", "--service", "worker"]).succeeds().mentions("worker 1 runs");
}

#[test]
fn a_one_off_command_runs_in_the_release_and_hands_on_its_code() {
    let (rung, mut app) = deployed("one-off", 1);
    app.set("COLOUR", "blue");
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["run", "--app", "one-off", "--", "sh", "-c", "cat version; echo; echo $COLOUR"])
        .succeeds()
        .mentions("blue");
    let said = rung.cli(&["run", "--app", "one-off", "--", "sh", "-c", "echo alas; exit 9"]);
    assert_ne!(said.code, Some(0), "a failed command is a failure; {}", said.everything());
}

#[test]
fn what_runs_is_listed_and_ended_and_wrong_names_are_told() {
    let (rung, _app) = deployed("listed", 1);
    let mut running = rung.cli_command(&["run", "--app", "listed", "sleep 1000; echo slept"]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting rung run");
    let id = eventually("the run is listed", || {
        let runs: Vec<serde_json::Value> = rung.cli(&["run", "--app", "listed", "--list", "--json"]).json();
        let run = runs.iter().find(|run| run["state"]["state"] == "running").ok_or(format!("{runs:?}"))?;
        Ok(run["id"].as_str().expect("an id is a text").to_owned())
    });
    rung.cli(&["ps", "--app", "listed"]).succeeds().mentions(&id).mentions("sleep 1000");
    rung.cli(&["run", "--app", "listed", "--cancel", &id]).succeeds().mentions("has ended");
    eventually("the person's command ends with its run", || match running.try_wait() {
        Ok(Some(status)) if !status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    rung.cli(&["run", "--app", "listed", "--list"]).succeeds().mentions("nothing runs");
    rung.cli(&["logs", "--app", "listed", "-s", "nope"]).ends_with(1).mentions("no service nope; it has web");
    rung.cli(&["logs", "--app", "listed", "-i", "nope"])
        .ends_with(1)
        .mentions("no instance nope; there are listed");
    rung.cli(&["logs", "--app", "listed", "--run", "nope"]).ends_with(1).mentions(&id);
    rung.cli(&["logs", "--app", "listed", "--run", &id]).succeeds();
}

#[test]
fn destroy_leaves_nothing_of_an_app() {
    let (rung, _app) = deployed("gone", 2);
    let lives = rung.lives("gone");
    rung.cli(&["destroy", "--app", "gone", "-y"]).succeeds();
    lives.into_values().for_each(process::wait_until_gone);
    assert!(!rung.data().join("node/logs/gone").exists(), "its logs are left");
    eventually("the app is unknown", || match rung.try_app("gone") {
        Err(instead) if instead.contains("404") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let answer = rung.get("gone", "/").expect("the ingress answers still");
    assert_eq!(answer.status, 404, "{}", answer.text());
}
