//! What matters more gets room; what matters less loses some instances, and never the last.

use rung_model::AppFile;
use rung_model::appfile::Priority;

use super::{GB, MB, cluster, counts};
use crate::files::{app, web};

fn file(name: &str, instances: u32, memory_bytes: u64, priority: Priority) -> AppFile {
    let mut file = app(name, "good", instances);
    web(&mut file).memory_bytes = Some(memory_bytes);
    web(&mut file).place.priority = priority;
    file
}

#[test]
fn the_lowest_make_way_in_the_handoffs_order_and_keep_one_each() {
    let mut scene = cluster(&["a"], GB);
    scene.deploy(&file("batch", 3, 200 * MB, Priority::Low), "tree 1");
    scene.play("success", |scene| scene.has_ended("batch"));
    scene.deploy(&file("blog", 2, 200 * MB, Priority::Normal), "tree 1");
    scene.play("success", |scene| scene.has_ended("blog"));
    scene.hold_floor("batch", "web", 1);
    scene.hold_floor("blog", "web", 2);
    scene.deploy(&file("shop", 2, 200 * MB, Priority::High), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.running("shop"), counts(&[("a", 2)]));
    assert_eq!(scene.running("batch"), counts(&[("a", 1)]), "its floor is one");
    assert_eq!(scene.running("blog"), counts(&[("a", 2)]), "the lower one made way");
    assert_eq!(scene.plan().waiting[0].instances, 2, "batch waits for its other two");
}

#[test]
fn nobody_makes_way_for_the_same_priority_or_for_what_would_not_fit_anyway() {
    let mut scene = cluster(&["a"], GB);
    scene.deploy(&file("blog", 5, 200 * MB, Priority::Normal), "tree 1");
    scene.play("success", |scene| scene.has_ended("blog"));
    scene.hold_floor("blog", "web", 5);
    scene.deploy(&file("news", 1, 200 * MB, Priority::Normal), "tree 1");
    scene.play("the end", |scene| scene.has_ended("news"));
    assert!(scene.running("news").is_empty());
    scene.deploy(&file("giant", 1, 900 * MB, Priority::High), "tree 1");
    scene.play("the end", |scene| scene.has_ended("giant"));
    assert_eq!(scene.running("blog"), counts(&[("a", 5)]), "they made way for nothing");
}

#[test]
fn what_was_asked_to_make_way_stays_when_the_room_is_not_needed_any_more() {
    let mut scene = cluster(&["a"], GB);
    scene.deploy(&file("batch", 5, 200 * MB, Priority::Low), "tree 1");
    scene.play("success", |scene| scene.has_ended("batch"));
    scene.proxy_falls_silent();
    scene.deploy(&file("shop", 1, 200 * MB, Priority::High), "tree 1");
    scene.settle();
    let asked = |scene: &crate::scene::Scene| {
        let all = scene.world.assignments.values().flat_map(|held| held.value.instances.values());
        all.filter(|assigned| assigned.making_way.is_some()).count()
    };
    assert_eq!(asked(&scene), 1, "one is enough");
    scene.cancel("shop");
    scene.settle();
    assert_eq!(asked(&scene), 0, "nobody waits for its room");
    scene.proxy_is_silent = false;
    scene.play("all serve again", |scene| scene.routed("batch", "web").len() == 5);
}
