//! One process owns its state: never two, and its requests are held meanwhile.

use rung_model::{AppFile, Intent, Phase};

use crate::files::{app, web};
use crate::scene::Scene;

fn ledger(command: &str) -> AppFile {
    let mut file = app("ledger", command, 1);
    web(&mut file).exclusive = true;
    file
}

fn serving() -> Scene {
    let mut scene = Scene::new();
    scene.deploy(&ledger("good"), "tree 1");
    scene.play("success", |scene| scene.has_ended("ledger"));
    scene
}

fn holds(scene: &Scene) -> bool {
    scene.routes("ledger").unwrap().backends.values().all(|backend| backend.hold.is_some())
}

#[test]
fn the_old_one_has_ended_before_the_new_one_is_assigned() {
    let mut scene = serving();
    scene.deploy(&ledger("good"), "tree 2");
    scene.settle();
    assert!(scene.routed("ledger", "web").is_empty(), "it is un-routed first");
    assert_eq!(scene.draining("ledger", "web"), ["ledger-web-a1"]);
    assert!(holds(&scene), "its requests are not held");
    scene.play("told to stop", |scene| scene.assigned("ledger")["ledger-web-a1"] == Intent::Stop);
    // The invariants assert that there is never a second one beside it.
    scene.play("the new one", |scene| scene.assigned("ledger").contains_key("ledger-web-a2"));
    assert!(holds(&scene));
    scene.play("success", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.phase("ledger"), Phase::Succeeded);
}

#[test]
fn reverting_starts_the_old_release_again() {
    let mut scene = serving();
    scene.deploy(&ledger("crash"), "tree 2");
    scene.play("the end", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.phase("ledger"), Phase::RolledBack);
    assert_eq!(scene.routed("ledger", "web"), ["ledger-web-a3"], "the old release does not serve");
    let routed = &scene.routes("ledger").unwrap().backends.values().next().unwrap().endpoints[0];
    assert_eq!(routed.release.0, 1);
}

#[test]
fn cancelled_before_the_old_one_was_told_to_stop_it_goes_on() {
    let mut scene = serving();
    scene.proxy_is_silent = true;
    scene.deploy(&ledger("good"), "tree 2");
    scene.settle();
    scene.cancel("ledger");
    scene.settle();
    scene.proxy_is_silent = false;
    scene.play("the end", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.routed("ledger", "web"), ["ledger-web-a1"], "it was ended for nothing");
}

#[test]
fn becoming_exclusive_ends_all_the_old_ones_first() {
    let mut scene = Scene::new();
    scene.deploy(&app("ledger", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("ledger"));
    scene.scale("ledger", "web", 3);
    scene.play("three", |scene| scene.routed("ledger", "web").len() == 3);
    // Scaled to three, and the file still says one: exclusive wins.
    scene.deploy(&ledger("good"), "tree 2");
    scene.play("success", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.phase("ledger"), Phase::Succeeded, "{}", scene.trouble("ledger"));
    assert_eq!(scene.assigned("ledger").len(), 1);
    scene.deploy(&app("ledger", "good", 2), "tree 3");
    scene.play("success", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.routed("ledger", "web").len(), 2);
}

#[test]
fn hopeless_instances_hold_nobody_up() {
    let mut scene = Scene::new();
    let mut file = ledger("crash");
    file.deploy.deadline = std::time::Duration::from_secs(20);
    scene.deploy(&file, "tree 1");
    scene.play("the end", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.phase("ledger"), Phase::Failed);
    let held =
        scene.routes("ledger").is_some_and(|routes| routes.backends.values().any(|b| b.hold.is_some()));
    assert!(!held, "requests are held for an instance that will not come");
}
