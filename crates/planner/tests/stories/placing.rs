//! Where instances run, and why not.

use rung_model::node::ContainerEngine;
use rung_model::{ImageName, ImageSource, JobName, Node, Phase, RunOutcome, RunState, keys};
use rung_planner::schedule::Refusal;

use crate::files::{app, web};
use crate::jobs::job;
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

/// The node says anew whether it has an engine.
fn engine_is(scene: &mut Scene, engine: ContainerEngine) {
    let mut node: Node = scene.world.nodes[&scene.node].value.clone();
    node.facts.engine = engine;
    scene.put(keys::node(&node.id), &node);
}

#[test]
fn an_app_of_an_image_waits_for_a_node_with_an_engine_and_says_so() {
    let mut scene = Scene::new();
    engine_is(&mut scene, ContainerEngine::Answers { name: "Docker 20.10".into() });
    let mut file = app("shop", "good", 1);
    file.build.image = Some(ImageSource::Name { image: ImageName::new("nginx").unwrap() });
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));

    let why = "no container engine answers (/run/docker.sock)";
    engine_is(&mut scene, ContainerEngine::Silent { why: why.into() });
    scene.scale("shop", "web", 2);
    scene.settle();
    assert_eq!(scene.assigned("shop").len(), 1, "an instance was given to a node that can't run it");
    let waiting = scene.plan().waiting;
    assert_eq!(waiting[0].reasons[&scene.node], Refusal::NoEngine { why: why.into() });
    assert_eq!(waiting[0].reasons[&scene.node].to_string(), why);

    engine_is(&mut scene, ContainerEngine::Answers { name: "Docker 20.10".into() });
    scene.play("both", |scene| scene.routed("shop", "web").len() == 2);
}

#[test]
fn a_node_whose_disk_is_full_gets_nothing_new_and_keeps_what_it_has() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let short = |scene: &mut Scene, short_of_disk| {
        let mut node: Node = scene.world.nodes[&scene.node].value.clone();
        node.facts.short_of_disk = short_of_disk;
        scene.put(keys::node(&node.id), &node);
    };
    short(&mut scene, Some(1_500_000));
    scene.scale("shop", "web", 2);
    scene.settle();
    assert_eq!(scene.routed("shop", "web").len(), 1, "what ran there must go on");
    let waiting = scene.plan().waiting;
    let why = "its disk is full: 1 MB were free when it became so";
    assert_eq!(waiting[0].reasons[&scene.node].to_string(), why);
    short(&mut scene, None);
    scene.play("both", |scene| scene.routed("shop", "web").len() == 2);
}

#[test]
fn without_any_engine_a_build_of_an_image_goes_to_a_node_that_says_what_is_missing() {
    let mut scene = Scene::new();
    engine_is(&mut scene, ContainerEngine::Silent { why: "none".into() });
    let mut file = app("shop", "good", 1);
    file.build.image = Some(ImageSource::Dockerfile { path: "Dockerfile".into() });
    scene.deploy(&file, "tree 1");
    scene.settle();
    assert_eq!(scene.assignment().runs.len(), 1, "the build waits, and nobody is told for what");
}

#[test]
fn jobs_are_given_no_more_memory_than_there_is_and_wait_with_a_reason() {
    let mut scene = Scene::with_memory(1000 * MB);
    let mut file = app("shop", "good", 1);
    web(&mut file).memory_bytes = Some(300 * MB);
    for (name, megabytes) in [("first", 600), ("second", 600), ("vast", 1200)] {
        let mut job = job("@hourly", "hang");
        job.memory_bytes = Some(megabytes * MB);
        file.jobs.insert(JobName::new(name).unwrap(), job);
    }
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.pass(std::time::Duration::from_secs(3600));
    scene.settle();
    assert_eq!(scene.assignment().runs.len(), 1, "two jobs of 600 MB run beside 300 MB on a node of 1000 MB");
    let waiting = scene.plan().waiting_runs;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    let refusal = &waiting[0].reasons[&scene.node];
    assert_eq!(*refusal, Refusal::Memory { asked_bytes: 600 * MB, free_bytes: 100 * MB });

    // What no node will ever have room for ends at once, and says why.
    let runs = scene.world.runs.values().map(|held| &held.value);
    let ended = runs.filter_map(|run| match &run.state {
        RunState::Ended { outcome: RunOutcome::Failed { reason, .. }, .. } => Some(reason.as_str()),
        _ => None,
    });
    let ended: Vec<&str> = ended.collect();
    assert_eq!(ended, ["it asks for 1200 MB of memory, and the largest node has 1000 MB"]);

    // An instance finds no room either while the job runs.
    scene.scale("shop", "web", 2);
    scene.settle();
    let waiting = scene.plan().waiting;
    let refusal = &waiting[0].reasons[&scene.node];
    assert_eq!(*refusal, Refusal::Memory { asked_bytes: 300 * MB, free_bytes: 100 * MB });
}
