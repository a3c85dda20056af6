//! The end of an app: everything of it goes, then its name is free.

use rung_model::app::Destroying;
use rung_model::{App, Generation, Phase, keys};

use crate::files::{add, app, worker};
use crate::scene::{Scene, name};

fn serving() -> Scene {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 2);
    add(&mut file, "mail", worker("good", 1));
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene
}

fn keys_left(scene: &Scene) -> Vec<&String> {
    scene.store.keys().filter(|key| key.contains("/shop")).collect()
}

#[test]
fn destroyed_its_instances_leave_in_order_and_nothing_is_left() {
    let mut scene = serving();
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.settle();
    assert!(scene.routed("shop", "web").is_empty());
    assert!(scene.routes("shop").unwrap().hosts.is_empty(), "it still answers to its host");
    scene.play("gone", |scene| scene.world.apps.is_empty());
    assert_eq!(keys_left(&scene), Vec::<&String>::new());
    assert!(
        scene.purged.contains(&("shop".to_owned(), Destroying::KeepVolumes)),
        "its logs were not removed"
    );
    assert!(!scene.purged.contains(&("shop".to_owned(), Destroying::WithVolumes)), "volumes were to be kept");
    assert!(scene.assignment().purges().next().is_none(), "a new app of that name would be purged");
}

#[test]
fn with_volumes_its_name_is_free_only_after_the_node_has_removed_them() {
    let mut scene = serving();
    scene.destroy("shop", Destroying::WithVolumes);
    scene.play("told to purge", |scene| !scene.assignment().purge.is_empty());
    // The node has the old assignment: it knows nothing of a purge.
    let told = scene.assignment().generation;
    let before = scene.observed().unwrap().clone();
    assert!(before.assignment < told);
    scene.settle();
    assert!(scene.world.apps.contains_key(&name("shop")), "the name was free before the volumes were gone");
    scene.report(Generation::new(told.epoch, told.revision), before.instances, before.runs);
    scene.settle();
    assert_eq!(keys_left(&scene), Vec::<&String>::new());
    assert!(scene.assignment().purge.is_empty(), "a new app of that name would be purged");
}

#[test]
fn a_purge_is_taken_back_when_the_record_goes_by_a_late_transaction() {
    let mut scene = serving();
    scene.destroy("shop", Destroying::WithVolumes);
    scene.play("told to purge", |scene| !scene.assignment().purge.is_empty());
    // A deletion whose outcome was unknown arrives after the purge was asked for anew.
    scene.delete(keys::app(&name("shop")));
    scene.settle();
    assert!(scene.assignment().purge.is_empty(), "the next app of that name would lose its volumes");
}

#[test]
fn destroyed_in_the_middle_of_a_deployment_that_one_ends_first() {
    let mut scene = serving();
    let mut file = app("shop", "good", 2);
    file.build.command = Some("hang".into());
    scene.deploy(&file, "tree 2");
    scene.play("it builds", |scene| scene.launched.len() == 1);
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.settle();
    assert_eq!(scene.phase("shop"), Phase::Failed);
    scene.play("gone", |scene| scene.world.apps.is_empty());
    assert!(scene.assignment().runs.is_empty(), "its build goes on");
}

#[test]
fn a_long_history_is_forgotten_before_the_name_is_free() {
    let mut scene = serving();
    let record: App = scene.app("shop").clone();
    let deployment = scene.deployment("shop").clone();
    for n in 2..=150 {
        let mut old = deployment.clone();
        old.number = rung_model::DeploymentNumber(n);
        scene.put(keys::deployment(&record.name, old.number), &old);
    }
    scene.destroy("shop", Destroying::KeepVolumes);
    // At no moment is there something of the app without the app.
    for _ in 0..100 {
        scene.pass(std::time::Duration::from_millis(500));
        scene.node_moves();
        for step in scene.plan().steps {
            scene.write(&step);
            let is_free = !scene.world.apps.contains_key(&record.name);
            let left =
                scene.store.keys().any(|key| key.starts_with("deployments/") || key.starts_with("releases/"));
            assert!(
                !(is_free && left),
                "the name is free and a new app would meet what is left of the old one"
            );
        }
        scene.proxy_polls();
    }
    assert!(scene.world.apps.is_empty(), "it was not forgotten");
}

#[test]
fn what_a_node_still_says_of_the_old_app_is_not_taken_for_the_new_one() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.build.command = Some("hang".into());
    scene.deploy(&file, "tree 1");
    scene.play("it builds", |scene| scene.launched.len() == 1);
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.settle();
    scene.pass(std::time::Duration::from_secs(1));
    scene.node_moves();
    scene.settle();
    assert!(scene.assignment().runs.is_empty(), "the cancelled build is still assigned");
    assert!(
        scene.world.apps.contains_key(&name("shop")),
        "the name is free while the node reports the old build"
    );
    scene.play("gone", |scene| scene.world.apps.is_empty());
}

#[test]
fn recreated_under_its_name_it_starts_anew() {
    let mut scene = serving();
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.play("gone", |scene| scene.world.apps.is_empty());
    scene.deploy(&app("shop", "good", 1), "tree 9");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    assert_eq!(
        scene.assigned("shop").into_keys().collect::<Vec<_>>(),
        ["shop-web-a4"],
        "an id was used twice"
    );
}
