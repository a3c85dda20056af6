//! Deploys that fail: the old release goes on, and the person learns why.

use rung_e2e::{Load, Rung, Said, TestApp, eventually, process};
use rung_model::deployment::Phase;

fn deployed(name: &str) -> (Rung, TestApp) {
    let rung = Rung::start();
    let mut app = TestApp::new(name, 2);
    app.sections.push("[deploy]\ndeadline = \"8s\"\nrelease = \"python3 -B app.py release\"".into());
    app.sections.push("[volumes.state]".into());
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 2);
    (rung, app)
}

/// Deploys version 2 under load, which shall fail; the old instances must live on untouched.
fn deploy_in_vain(rung: &Rung, app: &mut TestApp) -> Said {
    let lives = rung.lives(&app.name);
    let load = Load::start(rung.http(), &format!("{}.localhost", app.name), "/");
    app.version = "2".into();
    let said = rung.deploy(app.directory());
    load.wait_for(50);
    load.stop().assert_none_lost("a deploy that failed");
    rung.wait_until_settled(&app.name, "web", 2);
    assert_eq!(rung.lives(&app.name), lives, "the old instances were not touched; {}", said.everything());
    assert!(rung.page(&app.name, "/").contains("version 1 "));
    said
}

#[test]
fn a_release_that_never_becomes_healthy_is_reverted_and_says_why() {
    let (rung, mut app) = deployed("sick");
    app.set("BE_UNHEALTHY", "the moon is full");
    deploy_in_vain(&rung, &mut app).ends_with(3).mentions("the moon is full");
    assert_eq!(rung.last_deployment("sick").phase, Phase::RolledBack);
}

#[test]
fn a_release_that_crashes_at_its_start_is_reverted_and_says_why() {
    let (rung, mut app) = deployed("crashy");
    app.set("BE_CRASHING", "of a missing library");
    deploy_in_vain(&rung, &mut app).ends_with(3).mentions("of a missing library");
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let (rung, mut app) = deployed("typo");
    app.web().lines.push("command = \"bin/serverr --fast\"".into());
    deploy_in_vain(&rung, &mut app).ends_with(3).mentions("bin/serverr");
}

#[test]
fn a_release_command_that_fails_changes_nothing() {
    let (rung, mut app) = deployed("stuck");
    app.set("BE_RELEASE_FAILS", "the table is locked");
    deploy_in_vain(&rung, &mut app).ends_with(1).mentions("the table is locked");
}

#[test]
fn a_release_command_that_hangs_is_ended_when_its_time_is_over_and_changes_nothing() {
    let (rung, mut app) = deployed("hanging");
    app.sections[0] = "[deploy]\nrelease = \"exec sleep 8641\"\nrelease_timeout = \"1s\"".into();
    deploy_in_vain(&rung, &mut app).ends_with(1).mentions("release command").mentions("took longer than 1 s");
    let left = process::all().into_iter().filter(|life| process::describe(life.pid).contains("sleep 8641"));
    assert_eq!(left.collect::<Vec<_>>(), [], "the release command goes on");
}

#[test]
fn a_build_that_fails_starts_nothing() {
    let (rung, mut app) = deployed("broken-build");
    app.sections.push("[build]\ncommand = \"echo cannot find the compiler; exit 7\"".into());
    deploy_in_vain(&rung, &mut app).ends_with(1).mentions("cannot find the compiler").mentions("7");
}

#[test]
fn tests_that_fail_are_a_gate() {
    let (rung, mut app) = deployed("gated");
    app.sections.push("[build]\ntest = \"echo 1 of 12 tests failed; exit 1\"".into());
    deploy_in_vain(&rung, &mut app).ends_with(1).mentions("1 of 12 tests failed");
}

#[test]
fn a_first_deploy_that_fails_leaves_nothing_running() {
    let rung = Rung::start();
    let mut app = TestApp::new("stillborn", 2);
    app.sections.push("[deploy]\ndeadline = \"5s\"".into());
    app.set("BE_CRASHING", "it was a bad day");
    rung.deploy(app.directory()).ends_with(1).mentions("it was a bad day");
    eventually("no instance is left", || {
        let left = rung.instances("stillborn");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn the_second_of_two_deploys_at_once_is_told_who_is_deploying() {
    let (rung, mut app) = deployed("busy");
    app.version = "2".into();
    app.set("BE_SLOW_TO_START", "4000");
    let mut first = rung.begin_deploy(app.directory());
    eventually("the first deploy has begun", || {
        let deployments = rung.deployments("busy");
        if deployments.len() == 2 { Ok(()) } else { Err(format!("{} deployments", deployments.len())) }
    });
    app.version = "3".into();
    rung.deploy(app.directory()).ends_with(4).mentions("deploying");
    assert!(first.wait().expect("waiting for the first deploy").success(), "the first one was not disturbed");
    assert!(rung.page("busy", "/").contains("version 2 "));
}

#[test]
fn a_deploy_can_be_cancelled() {
    let (rung, mut app) = deployed("regret");
    app.version = "2".into();
    app.set("BE_SLOW_TO_START", "7000");
    let mut deploy = rung.begin_deploy(app.directory());
    eventually("the deploy has begun to roll", || {
        let last = rung.last_deployment("regret");
        if last.number.0 == 2 && last.phase == Phase::Rolling { Ok(()) } else { Err(format!("{last:?}")) }
    });
    rung.cli(&["cancel", "--app", "regret"]).succeeds();
    assert_eq!(
        deploy.wait().expect("waiting for rung deploy").code(),
        Some(3),
        "a cancelled deploy was rolled back"
    );
    rung.wait_until_settled("regret", "web", 2);
    assert!(rung.page("regret", "/").contains("version 1 "));
}
