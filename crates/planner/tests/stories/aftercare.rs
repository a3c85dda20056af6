//! After success: the watch for a regression.

use std::time::Duration;

use rung_model::appfile::rollout::{AbortIf, Share};
use rung_model::{AppFile, DeploymentKind, InstanceState, Phase, ReleaseNumber};

use crate::files::app;
use crate::scene::Scene;

const FAST: Duration = Duration::from_millis(20);

fn watched() -> AppFile {
    let mut file = app("shop", "good", 2);
    file.deploy.rollout.abort_if = Some(AbortIf { error_rate: Some(Share(200)), p95: None, requests: 10 });
    file.deploy.rollout.watch = Duration::from_secs(60);
    file
}

/// `d1` served 1000 requests, of which so many failed; `d2` has succeeded.
fn succeeded(failing_before: u64) -> Scene {
    let mut scene = Scene::new();
    scene.deploy(&watched(), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.requests(1, 1000, failing_before, FAST);
    scene.deploy(&watched(), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene
}

fn second(scene: &mut Scene, failing: u64) {
    scene.requests(2, 20, failing, FAST);
    scene.pass(Duration::from_secs(1));
    scene.beat();
}

#[test]
fn a_regression_after_success_brings_the_release_before_back() {
    let mut scene = succeeded(0);
    assert!(scene.says("shop", "a regression reverts it for 1 min"), "{:?}", scene.deployment("shop"));
    scene.hold_floor("shop", "web", 2);
    for _ in 0..5 {
        second(&mut scene, 4);
    }
    scene.play("the rollback's end", |scene| {
        scene.deployment("shop").number.0 == 3 && scene.has_ended("shop")
    });
    let rollback = scene.deployment("shop");
    assert_eq!((rollback.kind, rollback.phase), (DeploymentKind::Rollback, Phase::Succeeded));
    assert_eq!(rollback.by, "rung");
    let release = scene.world.release(&rollback.app, scene.app("shop").current.unwrap()).unwrap();
    assert_eq!((release.number, release.reason.as_str()), (ReleaseNumber(3), "rollback to v1"));
    let note = release.note.clone().unwrap();
    assert!(note.starts_with("v2 fails too often: ") && note.contains("after 0 of 1000"), "{note}");
    assert!(rollback.aftercare.is_none(), "a rollback is watched, and the two would take turns");
}

#[test]
fn what_the_release_before_did_as_well_is_no_regression() {
    let mut scene = succeeded(300);
    for _ in 0..70 {
        second(&mut scene, 6);
    }
    assert_eq!(scene.deployment("shop").number.0, 2, "{:?}", scene.deployment("shop").timeline);
    assert!(scene.says("shop", "the watch is over"), "{:?}", scene.deployment("shop").timeline);
    for _ in 0..30 {
        second(&mut scene, 20);
    }
    assert_eq!(scene.deployment("shop").number.0, 2, "it was watched beyond its time");
}

#[test]
fn a_crash_loop_within_the_watch_is_a_regression_too() {
    let mut scene = succeeded(0);
    let victim = scene.routed("shop", "web")[0].clone();
    scene.report_state(&crate::scene::id(&victim), InstanceState::CrashLooping);
    scene.settle();
    assert_eq!(scene.deployment("shop").kind, DeploymentKind::Rollback);
}

#[test]
fn the_watch_stands_still_while_another_deployment_goes_on_and_survives_a_change_of_leader() {
    let mut scene = succeeded(0);
    for _ in 0..20 {
        second(&mut scene, 0);
    }
    scene.change_leader();
    let mut failing = watched();
    crate::files::web(&mut failing).command = Some("never".into());
    scene.deploy(&failing, "tree 3");
    scene.play("the end", |scene| scene.has_ended("shop"));
    let live = scene.world.deployment(&crate::scene::name("shop"), rung_model::DeploymentNumber(2)).unwrap();
    let left = live.aftercare.as_ref().unwrap().watch.as_ref().unwrap().remaining;
    assert!((35..=45).contains(&left.as_secs()), "after 20 of 60 s there are {left:?} left");
    for _ in 0..10 {
        second(&mut scene, 5);
    }
    assert_eq!(scene.deployment("shop").kind, DeploymentKind::Rollback, "the watch did not go on");
}

/// `d1` and `d2` have succeeded, with so many instances each; `d2` settles.
fn settling(instances: u32) -> Scene {
    let mut file = app("shop", "good", instances);
    file.deploy.rollout.settle = Duration::from_secs(10);
    let mut scene = Scene::new();
    for tree in ["tree 1", "tree 2"] {
        scene.deploy(&file, tree);
        scene.play("success", |scene| scene.has_ended("shop"));
    }
    scene
}

fn exits(scene: &mut Scene, instance: usize) {
    let victim = scene.routed("shop", "web")[instance].clone();
    scene.report_state(&crate::scene::id(&victim), InstanceState::BackingOff);
    scene.settle();
}

#[test]
fn a_release_whose_instance_exits_within_its_first_seconds_is_taken_back() {
    let mut scene = settling(1);
    scene.pass(Duration::from_secs(3));
    exits(&mut scene, 0);
    let rollback = scene.deployment("shop").clone();
    assert_eq!((rollback.kind, rollback.by.as_str()), (DeploymentKind::Rollback, "rung"));
    scene.play("the rollback's end", |scene| scene.has_ended("shop"));
    let release = scene.world.release(&rollback.app, scene.app("shop").current.unwrap()).unwrap();
    assert_eq!(release.reason, "rollback to v1");
    let note = release.note.clone().unwrap();
    assert!(note.contains("did not stay up, within 10 s of success"), "{note}");
    assert!(scene.deployment("shop").aftercare.is_none(), "going back is in doubt itself");
}

#[test]
fn what_ends_with_the_platform_or_its_machine_speaks_against_no_release() {
    let mut scene = settling(1);
    scene.pass(Duration::from_secs(3));
    scene.started_again();
    scene.settle();
    assert_eq!(scene.deployment("shop").number.0, 2, "{:?}", scene.deployment("shop").timeline);
    exits(&mut scene, 0);
    assert_eq!(
        scene.deployment("shop").kind,
        DeploymentKind::Rollback,
        "what it does by itself counts as before"
    );
}

#[test]
fn what_exits_later_is_started_again_and_no_more() {
    let mut scene = settling(1);
    for _ in 0..11 {
        scene.pass(Duration::from_secs(1));
        scene.beat();
    }
    assert!(scene.deployment("shop").aftercare.is_none(), "it is in doubt for longer than it says");
    exits(&mut scene, 0);
    assert_eq!(scene.deployment("shop").number.0, 2, "{:?}", scene.deployment("shop"));
}

#[test]
fn one_exit_among_many_instances_speaks_against_no_release() {
    let mut scene = settling(4);
    exits(&mut scene, 0);
    assert_eq!(scene.deployment("shop").number.0, 2, "one of four: {:?}", scene.deployment("shop").timeline);
    exits(&mut scene, 0);
    assert_eq!(scene.deployment("shop").kind, DeploymentKind::Rollback, "two of four");
}

#[test]
fn a_first_deployment_has_nothing_to_go_back_to_and_a_restart_changes_nothing() {
    let mut file = app("shop", "good", 1);
    file.deploy.rollout.settle = Duration::from_secs(10);
    let mut scene = Scene::new();
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert!(scene.deployment("shop").aftercare.is_none());
    scene.redeploy("shop", DeploymentKind::Restart, ReleaseNumber(1));
    scene.play("success", |scene| scene.has_ended("shop"));
    assert!(scene.deployment("shop").aftercare.is_none(), "a restart brings what serves already");
}
