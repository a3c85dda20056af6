//! Where instances run, and why not.

use rung_model::Phase;
use rung_planner::schedule::Refusal;

use crate::files::{app, web};
use crate::scene::Scene;

const MB: u64 = 1_000_000;

#[test]
fn without_room_instances_wait_with_a_typed_reason_and_the_deployment_names_it() {
    let mut scene = Scene::with_memory(1000 * MB);
    let mut file = app("shop", "good", 1);
    web(&mut file).memory_bytes = Some(600 * MB);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));

    scene.deploy(&file, "tree 2");
    scene.settle();
    let waiting = &scene.plan().waiting;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    let refusal = &waiting[0].reasons[&scene.node];
    assert_eq!(*refusal, Refusal::Memory { asked_bytes: 600 * MB, free_bytes: 400 * MB });
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    assert!(
        scene.trouble("shop").ends_with("box: 600 MB of memory are asked for, 400 MB are free"),
        "{}",
        scene.trouble("shop")
    );
}

#[test]
fn as_many_as_there_is_room_for_are_started() {
    let mut scene = Scene::with_memory(1000 * MB);
    let mut file = app("shop", "good", 1);
    web(&mut file).memory_bytes = Some(300 * MB);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.scale("shop", "web", 5);
    scene.play("three", |scene| scene.routed("shop", "web").len() == 3);
    assert_eq!(scene.plan().waiting[0].instances, 2);
}

#[test]
fn without_a_node_everything_waits_and_nothing_is_lost() {
    let mut scene = Scene::empty();
    let mut file = app("shop", "good", 1);
    file.build.command = Some("make".into());
    scene.deploy(&file, "tree 1");
    scene.settle();
    scene.join(1 << 30);
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
}
