//! A better place, when there is one for good.

use std::time::Duration;

use super::{GB, cluster, counts, labels};
use crate::files::{app, web, worker};
use crate::scene::Scene;

#[test]
fn a_new_node_gets_its_part_one_by_one_and_nothing_stops_serving() {
    let mut scene = cluster(&["a", "b"], GB);
    scene.deploy(&app("shop", "good", 6), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.hold_floor("shop", "web", 6);
    scene.join_as("c", GB, &[]);
    for _ in 0..250 {
        scene.beat();
    }
    assert_eq!(scene.running("shop"), counts(&[("a", 3), ("b", 3)]), "it was moved before a minute was over");
    let mut most = 0;
    scene.play_within(Duration::from_secs(300), "it is even", |scene| {
        scene.running("shop") == counts(&[("a", 2), ("b", 2), ("c", 2)]) && scene.assigned("shop").len() == 6
    });
    for _ in 0..300 {
        scene.beat();
        most = most.max(scene.assigned("shop").len());
    }
    assert_eq!(most, 6, "it goes on moving although nothing is gained");
}

#[test]
fn a_node_that_comes_and_goes_moves_nothing() {
    let mut scene = cluster(&["a", "b", "c"], GB);
    scene.deploy(&app("shop", "good", 6), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.cut_off("c");
    scene.play("it runs on two", |scene| scene.routed("shop", "web").len() == 6 && !uses(scene, "c"));
    for _ in 0..8 {
        scene.is_back("c");
        for _ in 0..100 {
            scene.beat();
        }
        assert!(!uses(&scene, "c"), "twenty seconds are no reason to move");
        scene.cut_off("c");
        for _ in 0..60 {
            scene.beat();
        }
    }
}

fn uses(scene: &Scene, node: &str) -> bool {
    scene.routes("shop").unwrap().backends.values().any(|backend| {
        backend.endpoints.iter().any(|endpoint| endpoint.node.as_ref().is_some_and(|at| at.as_str() == node))
    })
}

#[test]
fn workers_without_a_port_are_never_fewer_and_preferred_labels_are_found() {
    let mut scene = cluster(&["a", "b"], GB);
    let mut file = app("shop", "good", 1);
    let mut mail = worker("good", 2);
    mail.place.prefer = labels(&["disk=ssd"]);
    crate::files::add(&mut file, "mail", mail);
    web(&mut file).mounts.clear();
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.join_as("c", GB, &["disk=ssd"]);
    let mail_on_c = |scene: &Scene| {
        let held = &scene.world.assignments.get(&rung_model::NodeId::new("c").unwrap());
        held.map_or(0, |held| {
            held.value.instances.values().filter(|is| is.service.as_str() == "mail").count()
        })
    };
    scene.play_within(Duration::from_secs(300), "both are where the disk is", |scene| mail_on_c(scene) == 2);
    scene.play("the old ones are gone", |scene| scene.assigned("shop").len() == 3);
}
