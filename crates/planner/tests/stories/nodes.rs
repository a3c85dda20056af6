//! Several machines: where instances go, and when they move.

mod exclusive;
mod priorities;
mod properties;
mod rebalance;

use std::collections::BTreeMap;

use rung_model::appfile::{Count, Spread, Volume};
use rung_model::{Label, Labels, NodeId, VolumeName};
use rung_planner::schedule::Refusal;

use crate::files::{app, web, worker};
use crate::scene::Scene;

const GB: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;

/// Machines of those names, each with so much memory.
fn cluster(names: &[&str], memory_bytes: u64) -> Scene {
    let mut scene = Scene::empty();
    for name in names {
        scene.join_as(name, memory_bytes, &[]);
    }
    scene
}

fn counts(of: &[(&str, usize)]) -> BTreeMap<String, usize> {
    of.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect()
}

fn labels(of: &[&str]) -> Labels {
    of.iter().map(|label| label.parse::<Label>().unwrap()).map(|label| (label.name, label.value)).collect()
}

fn refusal(scene: &mut Scene, node: &str) -> Refusal {
    let waiting = scene.plan().waiting;
    waiting.first().expect("something waits").reasons[&NodeId::new(node).unwrap()].clone()
}

#[test]
fn instances_are_spread_over_the_nodes() {
    let mut scene = cluster(&["a", "b", "c"], GB);
    scene.deploy(&app("shop", "good", 7), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.running("shop"), counts(&[("a", 3), ("b", 2), ("c", 2)]));
}

#[test]
fn of_nodes_that_have_equally_many_the_one_with_more_room_is_taken() {
    let mut scene = Scene::empty();
    scene.join_as("a", GB, &[]);
    scene.join_as("b", 4 * GB, &[]);
    let mut heavy = app("heavy", "good", 2);
    web(&mut heavy).memory_bytes = Some(400 * MB);
    scene.deploy(&heavy, "tree 1");
    scene.play("success", |scene| scene.has_ended("heavy"));
    scene.deploy(&app("light", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("light"));
    assert_eq!(scene.running("light"), counts(&[("b", 1)]), "four tenths of a are given out, one of b");
}

#[test]
fn zones_count_among_equals_and_first_when_the_file_says_so() {
    let mut scene = Scene::empty();
    for (name, zone) in [("a", "zone=x"), ("b", "zone=x"), ("c", "zone=x"), ("d", "zone=y")] {
        scene.join_as(name, GB, &[zone]);
    }
    let usual = app("usual", "good", 2);
    scene.deploy(&usual, "tree 1");
    scene.play("success", |scene| scene.has_ended("usual"));
    assert_eq!(scene.running("usual"), counts(&[("a", 1), ("d", 1)]), "both are in one zone");
    let mut zoned = app("zoned", "good", 4);
    web(&mut zoned).place.spread = Spread::Zone;
    scene.deploy(&zoned, "tree 1");
    scene.play("success", |scene| scene.has_ended("zoned"));
    assert_eq!(scene.running("zoned")["d"], 2, "{:?}", scene.running("zoned"));
}

#[test]
fn packed_instances_fill_one_node_after_the_other() {
    let mut scene = cluster(&["a", "b", "c"], GB);
    let mut file = app("shop", "good", 4);
    web(&mut file).memory_bytes = Some(300 * MB);
    web(&mut file).place.spread = Spread::Pack;
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.running("shop"), counts(&[("a", 3), ("b", 1)]));
}

#[test]
fn a_required_label_is_waited_for_and_a_preferred_one_is_not() {
    let mut scene = cluster(&["a", "b"], GB);
    let mut file = app("shop", "good", 1);
    web(&mut file).place.require = labels(&["disk=ssd"]);
    scene.label("a", "disk=hdd");
    scene.deploy(&file, "tree 1");
    scene.settle();
    assert_eq!(refusal(&mut scene, "a").to_string(), "its label disk is hdd, and ssd is asked for");
    assert_eq!(refusal(&mut scene, "b").to_string(), "it has no label disk=ssd");
    scene.label("b", "disk=ssd");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.running("shop"), counts(&[("b", 1)]));

    let mut wish = app("wish", "good", 2);
    web(&mut wish).place.prefer = labels(&["disk=ssd"]);
    web(&mut wish).memory_bytes = Some(700 * MB);
    scene.deploy(&wish, "tree 1");
    scene.play("success", |scene| scene.has_ended("wish"));
    assert_eq!(scene.running("wish"), counts(&[("a", 1), ("b", 1)]), "the second one had no room on b");
}

#[test]
fn an_instance_whose_node_loses_the_label_moves_and_serves_until_the_other_does() {
    let mut scene = Scene::empty();
    scene.join_as("a", GB, &["disk=ssd"]);
    scene.join_as("b", GB, &[]);
    let mut file = app("shop", "good", 1);
    web(&mut file).place.require = labels(&["disk=ssd"]);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.hold_floor("shop", "web", 1);
    scene.label("a", "disk=hdd");
    scene.beat();
    assert_eq!(scene.running("shop"), counts(&[("a", 1)]), "there is no better place, so it stays");
    assert!(!scene.plan().waiting.is_empty(), "nobody is told");
    scene.label("b", "disk=ssd");
    scene.play("it has moved", |scene| {
        scene.assigned("shop").len() == 1 && scene.running("shop").contains_key("b")
    });
}

#[test]
fn a_service_with_one_a_node_follows_the_nodes() {
    let mut scene = cluster(&["a", "b"], GB);
    scene.join_as("c", GB, &["kind=gpu"]);
    let mut file = app("shop", "good", 1);
    let mut agent = worker("good", 1);
    agent.place.count = Count::PerNode;
    crate::files::add(&mut file, "agent", agent);
    web(&mut file).place.require = labels(&["kind=gpu"]);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.running("shop"), counts(&[("a", 1), ("b", 1), ("c", 2)]));
    scene.join_as("d", GB, &[]);
    scene.play("the new node has one", |scene| scene.running("shop").contains_key("d"));
    scene.drain("b");
    scene.play("the drained node has none", |scene| {
        scene.running("shop") == counts(&[("a", 1), ("c", 2), ("d", 1)]) && scene.assigned("shop").len() == 4
    });
    assert_eq!(scene.plan().waiting, vec![], "one waits for a place that nobody wants");
}

#[test]
fn volumes_take_disk_and_keep_their_service() {
    let mut scene = cluster(&["a", "b"], GB);
    let name = VolumeName::new("data").unwrap();
    for node in ["a", "b"] {
        let mut node = scene.world.nodes[&NodeId::new(node).unwrap()].value.clone();
        node.facts.disk_bytes = Some(if node.id.as_str() == "a" { GB } else { 10 * GB });
        scene.put(rung_model::keys::node(&node.id), &node);
    }
    let with = |app_name: &str, size: u64| {
        let mut file = app(app_name, "good", 1);
        file.volumes.insert(name.clone(), Volume { size_bytes: Some(size) });
        web(&mut file).mounts.insert(name.clone(), "/data".into());
        file
    };
    scene.deploy(&with("shop", 8 * GB), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.running("shop"), counts(&[("b", 1)]), "a has too small a disk");
    scene.deploy(&with("blog", 5 * GB), "tree 1");
    scene.settle();
    assert_eq!(refusal(&mut scene, "b"), Refusal::Disk { asked_bytes: 5 * GB, free_bytes: 2 * GB });
    scene.drain("b");
    scene.beat();
    assert_eq!(scene.running("shop"), counts(&[("b", 1)]), "its data is there");
}

#[test]
fn a_plan_does_not_hang_on_how_the_world_came_to_be() {
    let mut scene = cluster(&["a", "b", "c"], GB);
    scene.deploy(&app("shop", "good", 5), "tree 1");
    scene.deploy(&app("blog", "good", 2), "tree 1");
    for _ in 0..40 {
        let kept = scene.plan();
        assert_eq!(kept, scene.plan(), "two plans of the same world differ");
        assert_eq!(scene.world, scene.listed_world());
        scene.beat();
    }
}
