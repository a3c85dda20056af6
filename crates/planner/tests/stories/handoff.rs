//! start -> healthy -> routed -> old un-routed -> drained -> stop -> removed; never in another order.

use std::time::Duration;

use rung_model::{InstanceState, Intent, Phase};

use crate::files::{app, web};
use crate::scene::{PROXY, Scene, id};

fn serving(instances: u32) -> Scene {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", instances), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene
}

#[test]
fn a_rolling_update_keeps_the_floor_in_every_state_between() {
    let mut scene = serving(3);
    scene.hold_floor("shop", "web", 3);
    scene.deploy(&app("shop", "good", 3), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 3);
    assert_eq!(scene.routed("shop", "web"), ["shop-web-a4", "shop-web-a5", "shop-web-a6"]);
}

#[test]
fn with_one_instance_the_new_one_starts_first() {
    let mut scene = serving(1);
    scene.hold_floor("shop", "web", 1);
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("the old one gone", |scene| scene.assigned("shop").len() == 1);
}

#[test]
fn a_release_that_wants_fewer_keeps_all_the_old_ones_until_they_are_there() {
    let mut scene = serving(3);
    scene.hold_floor("shop", "web", 3);
    scene.deploy(&app("shop", "never", 1), "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    scene.history.floors.clear();
    scene.hold_floor("shop", "web", 1);
    scene.deploy(&app("shop", "good", 1), "tree 3");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("one left", |scene| scene.assigned("shop").len() == 1);
}

#[test]
fn old_instances_stay_until_the_deployment_has_succeeded_and_then_leave_in_order() {
    let mut scene = serving(1);
    scene.in_flight.insert(id("shop-web-a1"), 2);
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("the new one routed", |scene| scene.routed("shop", "web") == ["shop-web-a2"]);
    assert_eq!(scene.draining("shop", "web"), ["shop-web-a1"], "the old one is not named as draining");
    assert_eq!(scene.assigned("shop")["shop-web-a1"], Intent::Run);

    scene.play("success", |scene| scene.has_ended("shop"));
    for _ in 0..5 {
        scene.beat();
        assert_eq!(
            scene.assigned("shop")["shop-web-a1"],
            Intent::Run,
            "it was stopped with requests in flight"
        );
    }
    scene.in_flight.clear();
    scene.proxy_polls();
    scene.settle();
    assert_eq!(scene.assigned("shop")["shop-web-a1"], Intent::Stop, "it is drained and not stopped");
    scene.play("it is gone", |scene| scene.assigned("shop").len() == 1);
}

#[test]
fn requests_that_never_end_are_waited_for_as_long_as_the_drain_time() {
    let mut scene = serving(1);
    scene.in_flight.insert(id("shop-web-a1"), 1);
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    let succeeded = scene.elapsed;
    scene.play("the stop", |scene| scene.assigned("shop")["shop-web-a1"] == Intent::Stop);
    let drained = scene.elapsed - succeeded;
    assert!((4..=6).contains(&drained.as_secs()), "a drain time of 5 s took {drained:?}");
}

#[test]
fn each_way_out_has_the_whole_drain_time() {
    let mut scene = serving(2);
    let second = id("shop-web-a2");
    scene.in_flight.insert(second.clone(), 1);
    scene.scale("shop", "web", 1);
    scene.play("un-routed", |scene| scene.draining("shop", "web") == ["shop-web-a2"]);
    scene.beat();
    scene.scale("shop", "web", 2);
    scene.play("routed again", |scene| scene.routed("shop", "web").len() == 2);
    scene.pass(Duration::from_secs(60));
    scene.scale("shop", "web", 1);
    scene.play("un-routed", |scene| scene.draining("shop", "web") == ["shop-web-a2"]);
    for _ in 0..5 {
        scene.beat();
        assert_eq!(scene.assigned("shop")["shop-web-a2"], Intent::Run, "the time of its first drain counted");
    }
}

#[test]
fn scaling_up_and_down_un_routes_before_it_stops() {
    let mut scene = serving(1);
    scene.hold_floor("shop", "web", 1);
    scene.scale("shop", "web", 3);
    scene.play("three", |scene| scene.routed("shop", "web").len() == 3);
    scene.scale("shop", "web", 1);
    scene.settle();
    assert_eq!(scene.routed("shop", "web"), ["shop-web-a1"], "the oldest stays");
    assert_eq!(scene.draining("shop", "web").len(), 2);
    assert!(
        scene.assigned("shop").values().all(|intent| *intent == Intent::Run),
        "stopped before acknowledged"
    );
    scene.play("one", |scene| scene.assigned("shop").len() == 1);
    scene.history.floors.clear();
    scene.scale("shop", "web", 0);
    scene.play("none", |scene| scene.assigned("shop").is_empty());
    let explanation = &scene.routes("shop").unwrap().backends.values().next().unwrap().explanation;
    assert_eq!(explanation, "web is scaled to 0 instances");
}

#[test]
fn an_unhealthy_instance_is_un_routed_at_once_and_comes_back() {
    let mut scene = serving(2);
    scene.report_state(&id("shop-web-a1"), InstanceState::Unhealthy);
    scene.settle();
    assert_eq!(scene.routed("shop", "web"), ["shop-web-a2"]);
    scene.report_state(&id("shop-web-a1"), InstanceState::Healthy);
    scene.settle();
    assert_eq!(scene.routed("shop", "web").len(), 2);
}

#[test]
fn when_new_instances_fall_ill_a_waiting_old_one_comes_back() {
    let mut scene = serving(1);
    // Two services: the second keeps the deployment from succeeding.
    let mut file = app("shop", "good", 1);
    crate::files::add(&mut file, "slow", crate::files::worker("never", 1));
    scene.deploy(&file, "tree 2");
    scene.play("the new one routed alone", |scene| scene.routed("shop", "web") == ["shop-web-a3"]);
    scene.report_state(&id("shop-web-a3"), InstanceState::Unhealthy);
    scene.settle();
    assert_eq!(scene.routed("shop", "web"), ["shop-web-a1"], "nobody stood in");
}

#[test]
fn a_silent_proxy_leaves_the_wait_after_ten_seconds() {
    let mut scene = serving(1);
    scene.proxy_falls_silent();
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("the new one routed", |scene| scene.routed("shop", "web").len() == 2);
    let silent = scene.proxies.0[PROXY].silent_since.unwrap();
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    let waited = scene.clock().elapsed - silent;
    assert!((10..12).contains(&waited.as_secs()), "a silent proxy was waited for {waited:?}");
    let named = format!("proxy {PROXY} was not heard of for 10 s and is not waited for");
    assert!(scene.says("shop", &named), "{:?}", scene.deployment("shop").timeline);
}

#[test]
fn the_plan_says_when_to_look_again() {
    let mut scene = serving(1);
    scene.in_flight.insert(id("shop-web-a1"), 1);
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.beat();
    let wake = scene.plan().wake_at.expect("a drain time ends");
    scene.pass(wake - scene.clock().elapsed);
    scene.settle();
    assert_eq!(scene.assigned("shop")["shop-web-a1"], Intent::Stop, "woken, it did nothing");
}

#[test]
fn planned_again_without_new_facts_there_is_nothing_to_do() {
    let mut scene = serving(2);
    assert_eq!(scene.plan().steps, []);
    scene.deploy(&app("shop", "good", 2), "tree 2");
    scene.settle();
    for _ in 0..20 {
        assert_eq!(scene.plan().steps, [], "the same facts gave another plan");
        scene.beat();
    }
}

#[test]
fn a_drain_time_of_nothing_still_waits_for_the_acknowledgement() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    web(&mut file).drain = Duration::ZERO;
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.proxy_is_silent = true;
    scene.scale("shop", "web", 0);
    for _ in 0..10 {
        scene.beat();
    }
    assert_eq!(scene.assigned("shop")["shop-web-a1"], Intent::Run);
}
