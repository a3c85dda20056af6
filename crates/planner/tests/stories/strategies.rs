//! By batches, and blue-green.

use std::time::Duration;

use rung_model::appfile::rollout::Strategy;
use rung_model::{AppFile, DeploymentKind, InstanceState, Phase, ReleaseNumber};

use crate::files::{add, app, web, worker};
use crate::scene::{Scene, id};

fn batched(batch: u32, instances: u32) -> AppFile {
    let mut file = app("shop", "good", instances);
    file.deploy.rollout.strategy = Strategy::Rolling { batch: Some(batch) };
    file
}

fn bluegreen(instances: u32) -> AppFile {
    let mut file = app("shop", "good", instances);
    file.deploy.rollout.strategy = Strategy::BlueGreen;
    file.deploy.rollout.keep = Duration::from_secs(60);
    file
}

fn serving(file: &AppFile) -> Scene {
    let mut scene = Scene::new();
    scene.deploy(file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene
}

#[test]
fn a_batch_is_all_that_runs_beyond_the_count_and_the_floor_holds() {
    for batch in 1..=3_u32 {
        let mut scene = serving(&batched(batch, 4));
        scene.hold_floor("shop", "web", 4);
        scene.deploy(&batched(batch, 4), "tree 2");
        let mut most = 0;
        while !scene.has_ended("shop") {
            scene.beat();
            most = most.max(scene.assigned("shop").len());
        }
        assert_eq!(scene.phase("shop"), Phase::Succeeded, "{}", scene.trouble("shop"));
        assert_eq!(most, 4 + batch as usize, "with a batch of {batch}");
        scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 4);
    }
}

#[test]
fn workers_go_by_batches_too() {
    let mut file = batched(1, 1);
    add(&mut file, "mail", worker("good", 3));
    let mut scene = serving(&file);
    scene.deploy(&file, "tree 2");
    let mut most = 0;
    while !scene.has_ended("shop") {
        scene.beat();
        let assigned = scene.assigned("shop");
        most = most.max(assigned.keys().filter(|id| id.contains("mail")).count());
    }
    assert_eq!(most, 4, "three workers and a batch of one");
    scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 4);
}

#[test]
fn a_release_of_another_size_goes_by_batches_too() {
    for (from, to) in [(4, 2), (2, 5), (3, 1)] {
        let mut scene = serving(&batched(1, from));
        scene.hold_floor("shop", "web", from.min(to) as usize);
        scene.deploy(&batched(1, to), "tree 2");
        scene.play("success", |scene| scene.has_ended("shop"));
        assert_eq!(scene.phase("shop"), Phase::Succeeded, "from {from} to {to}: {}", scene.trouble("shop"));
        scene.play("as many as wanted", |scene| scene.assigned("shop").len() == to as usize);
    }
}

#[test]
fn a_batch_that_fails_in_the_middle_brings_the_old_ones_back() {
    let mut scene = serving(&batched(1, 3));
    scene.hold_floor("shop", "web", 3);
    scene.deploy(&batched(1, 3), "tree 2");
    scene.play("the first old one gone", |scene| !scene.assigned("shop").contains_key("shop-web-a3"));
    scene.cancel("shop");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    scene.play("three of the old release", |scene| {
        let web = scene.routes("shop").unwrap().backends.values().next().unwrap().clone();
        web.endpoints.len() == 3 && web.endpoints.iter().all(|endpoint| endpoint.release == ReleaseNumber(1))
    });
}

#[test]
fn blue_gets_every_request_until_all_of_green_is_healthy_and_then_none() {
    let mut scene = serving(&bluegreen(3));
    scene.hold_floor("shop", "web", 3);
    scene.deploy(&bluegreen(3), "tree 2");
    let blue = scene.routed("shop", "web");
    let mut seen = vec![blue.clone()];
    while !scene.has_ended("shop") {
        scene.beat();
        let routed = scene.routed("shop", "web");
        if seen.last() != Some(&routed) {
            seen.push(routed);
        }
    }
    assert_eq!(seen.len(), 2, "blue and green were mixed: {seen:?}");
    assert_eq!(seen[1], ["shop-web-a4", "shop-web-a5", "shop-web-a6"]);
    assert_eq!(scene.assigned("shop").len(), 6, "blue is not kept warm");
    assert!(
        scene.says("shop", "3 instances of v1 are kept warm for 1 min"),
        "{:?}",
        scene.deployment("shop")
    );
    let succeeded = scene.elapsed;
    scene.play("blue gone", |scene| scene.assigned("shop").len() == 3);
    let kept = scene.elapsed - succeeded;
    assert!((59..70).contains(&kept.as_secs()), "blue was to be kept for 60 s and was for {kept:?}");
}

#[test]
fn going_back_to_warm_instances_starts_nothing_and_takes_one_plan() {
    let mut scene = serving(&bluegreen(2));
    let blue = scene.routed("shop", "web");
    scene.deploy(&bluegreen(2), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("at rest", |scene| scene.assigned("shop").len() == 4);
    let green = scene.routed("shop", "web");
    scene.hold_floor("shop", "web", 2);
    scene.redeploy("shop", DeploymentKind::Rollback, ReleaseNumber(1));
    let plan = scene.plan();
    for step in &plan.steps {
        scene.write(step);
    }
    assert_eq!(scene.routed("shop", "web"), blue, "it takes more than one plan");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.assigned("shop").len(), 4, "an instance was started: {:?}", scene.assigned("shop"));
    // And forward again, as green is warm now.
    scene.redeploy("shop", DeploymentKind::Rollback, ReleaseNumber(2));
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.routed("shop", "web"), green);
    scene.play("their time over", |scene| scene.assigned("shop").len() == 2);
}

#[test]
fn green_that_never_gets_ready_is_reverted_and_blue_never_noticed() {
    let mut scene = serving(&bluegreen(2));
    let blue = scene.routed("shop", "web");
    let mut file = bluegreen(2);
    web(&mut file).command = Some("never".into());
    scene.deploy(&file, "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    assert_eq!(scene.routed("shop", "web"), blue);
}

#[test]
fn what_is_kept_warm_gives_way_to_what_is_needed() {
    let mut file = bluegreen(2);
    web(&mut file).memory_bytes = Some(100_000_000);
    let mut scene = Scene::with_memory(400_000_000);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.deploy(&file, "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.assigned("shop").len(), 4);
    scene.scale("shop", "web", 3);
    scene.play_within(Duration::from_secs(20), "three serve", |scene| scene.routed("shop", "web").len() == 3);
    assert!(scene.says("shop", "let go: their memory is needed"), "{:?}", scene.deployment("shop").timeline);
}

#[test]
fn a_green_instance_that_falls_ill_after_the_change_is_stood_in_for_by_blue() {
    let mut scene = serving(&bluegreen(1));
    let mut file = bluegreen(1);
    add(&mut file, "slow", worker("good", 1));
    scene.deploy(&file, "tree 2");
    scene.proxy_is_silent = true;
    scene.play("the change", |scene| scene.routed("shop", "web") == ["shop-web-a3"]);
    scene.report_state(&id("shop-web-a3"), InstanceState::Unhealthy);
    scene.settle();
    assert_eq!(scene.routed("shop", "web"), ["shop-web-a1"], "nobody stood in");
}
