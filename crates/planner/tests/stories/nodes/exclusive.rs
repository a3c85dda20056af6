//! An exclusive service whose node is lost: elsewhere once its lease is over, and not before.

use std::time::Duration;

use rung_model::{AppFile, NodeId};

use super::{GB, cluster, counts};
use crate::files::{app, web};
use crate::scene::Scene;

fn ledger() -> AppFile {
    let mut file = app("ledger", "good", 1);
    web(&mut file).exclusive = true;
    file
}

fn serving(names: &[&str]) -> Scene {
    let mut scene = cluster(names, GB);
    scene.deploy(&ledger(), "tree 1");
    scene.play("success", |scene| scene.has_ended("ledger"));
    assert_eq!(scene.running("ledger"), counts(&[("a", 1)]));
    scene
}

fn fence(scene: &Scene) -> u64 {
    let instances = scene.world.assignments.values().flat_map(|held| held.value.instances.values());
    instances.filter_map(|assigned| assigned.fence).max().expect("exclusive instances have one")
}

/// When it was told to stop, in vain.
fn is_told_to_stop(scene: &Scene) -> bool {
    scene.running("ledger").is_empty()
}

#[test]
fn it_comes_back_elsewhere_when_lease_grace_and_margin_are_over() {
    let mut scene = serving(&["a", "b", "c"]);
    let first = fence(&scene);
    scene.cut_off("a");
    scene.play("told to stop", is_told_to_stop);
    let told = scene.elapsed;
    let said = scene.plan().waiting[0].reasons[&NodeId::new("a").unwrap()].to_string();
    assert!(said.contains("ends by itself within 15 s"), "{said}");
    scene.play("another one", |scene| !scene.running("ledger").is_empty());
    let took = scene.elapsed - told;
    // Ten seconds of lease, two of grace, three of margin.
    assert!(took >= Duration::from_secs(15), "the old one may have been alive: {took:?}");
    assert!(took < Duration::from_secs(17), "it took {took:?}");
    assert!(fence(&scene) > first, "the token did not rise: {first}, {}", fence(&scene));
    scene.play("it serves", |scene| scene.routed("ledger", "web").len() == 1);
    scene.is_back("a");
    scene.play("all is quiet", |scene| scene.assigned("ledger").len() == 1);
}

#[test]
fn another_leader_waits_a_whole_lease_anew() {
    let mut scene = serving(&["a", "b", "c"]);
    scene.cut_off("a");
    scene.play("told to stop", is_told_to_stop);
    scene.pass(Duration::from_secs(5));
    scene.change_leader();
    let changed = scene.elapsed;
    scene.play("another one", |scene| !scene.running("ledger").is_empty());
    let took = scene.elapsed - changed;
    assert!(took >= Duration::from_secs(23), "eight seconds of silence and fifteen of lease: {took:?}");
}

#[test]
fn a_node_that_comes_back_in_time_is_asked_itself() {
    let mut scene = serving(&["a", "b", "c"]);
    scene.cut_off("a");
    scene.play("told to stop", is_told_to_stop);
    scene.is_back("a");
    let back = scene.elapsed;
    scene.play("another one", |scene| !scene.running("ledger").is_empty());
    assert!(scene.elapsed - back < Duration::from_secs(5), "its word was not taken");
}

#[test]
fn without_a_lease_nothing_is_started_until_somebody_says_that_the_machine_is_off() {
    let mut scene = serving(&["a", "b", "c"]);
    let a = NodeId::new("a").unwrap();
    let mut node = scene.world.nodes[&a].value.clone();
    node.facts.lease_ms = None;
    scene.put(rung_model::keys::node(&a), &node);
    scene.cut_off("a");
    scene.play("told to stop", is_told_to_stop);
    for _ in 0..500 {
        scene.beat();
    }
    assert!(scene.running("ledger").is_empty(), "it was started beside one that may be alive");
    let said = scene.plan().waiting[0].reasons[&a].to_string();
    assert!(said.contains("nothing ends it by itself"), "{said}");
    for key in [rung_model::keys::node(&a), rung_model::keys::assign(&a), rung_model::keys::observed(&a)] {
        scene.remove(&key);
    }
    scene.play("it serves", |scene| scene.routed("ledger", "web").len() == 1);
}
