//! Deployments from their beginning to each of their ends.

use rung_model::{DeploymentKind, ImageName, ImageSource, Phase, ReleaseNumber, RunKind};

use crate::files::{add, app, web, worker};
use crate::scene::{Scene, name};

#[test]
fn a_first_deployment_is_built_released_started_routed_acknowledged_and_succeeds() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 2);
    file.build.command = Some("make".into());
    file.deploy.release = Some("migrate".into());
    scene.deploy(&file, "tree 1");

    scene.settle();
    assert_eq!(scene.phase("shop"), Phase::Building);
    assert!(scene.assigned("shop").is_empty(), "an instance was assigned before the build");
    let build = scene.assignment().runs.into_values().next().expect("the build was assigned");
    assert!(matches!(build.kind, RunKind::Build { .. }), "{build:?}");

    scene.play("released", |scene| scene.phase("shop") == Phase::Releasing);
    assert!(scene.assigned("shop").is_empty(), "an instance was assigned before the release command");
    scene.play("rolling", |scene| scene.phase("shop") == Phase::Rolling);
    assert_eq!(scene.assigned("shop").len(), 2, "two instances are wanted");
    assert!(scene.routed("shop", "web").is_empty(), "an instance is routed before it is healthy");

    // Healthy and routed, and the proxy has not acknowledged it.
    scene.proxy_is_silent = true;
    scene.play("routed", |scene| scene.routed("shop", "web").len() == 2);
    assert_eq!(scene.phase("shop"), Phase::Rolling, "it succeeded before its routes were acknowledged");
    scene.proxy_is_silent = false;
    scene.play("success", |scene| scene.has_ended("shop"));

    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    assert_eq!(scene.launched.len(), 2, "a build and a release command: {:?}", scene.launched);
    let record = scene.app("shop");
    assert_eq!(record.current, Some(ReleaseNumber(1)));
    assert_eq!(record.succeeded, [ReleaseNumber(1)]);
    assert!(scene.says("shop", "web: 2 of 2 healthy"), "{:?}", scene.deployment("shop").timeline);
}

#[test]
fn a_build_that_fails_ends_the_deployment_with_its_log_and_nothing_else_happens() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = scene.assigned("shop");

    let mut file = app("shop", "good", 1);
    file.build.command = Some("break".into());
    scene.failing_commands.insert("break".into());
    scene.deploy(&file, "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Failed);
    assert_eq!(scene.trouble("shop"), "build failed: exited with code 1");
    let trouble = scene.deployment("shop").trouble.clone().unwrap();
    assert_eq!(trouble.log_tail, ["no such table"]);
    assert_eq!(scene.app("shop").last_release, ReleaseNumber(1), "a release was made of a failed build");
    assert_eq!(scene.assigned("shop"), before, "a failed build changed what runs");
}

#[test]
fn a_release_command_that_fails_leaves_everything_as_it_was() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 2), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let (before, routes) = (scene.assigned("shop"), scene.routes("shop").cloned());

    let mut file = app("shop", "good", 2);
    file.deploy.release = Some("break".into());
    scene.failing_commands.insert("break".into());
    scene.deploy(&file, "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Failed);
    assert_eq!(scene.trouble("shop"), "release command failed: exited with code 1");
    assert_eq!(scene.assigned("shop"), before, "a failed release command changed what runs");
    assert_eq!(scene.routes("shop").cloned(), routes, "a failed release command changed the routes");
    assert_eq!(scene.app("shop").current, Some(ReleaseNumber(1)));
}

#[test]
fn a_release_command_runs_once_for_an_artifact() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.deploy.release = Some("migrate".into());
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.launched.len(), 1);

    for kind in [DeploymentKind::Config, DeploymentKind::Rollback] {
        scene.redeploy("shop", kind, ReleaseNumber(1));
        scene.play("success", |scene| scene.has_ended("shop"));
        assert_eq!(scene.phase("shop"), Phase::Succeeded);
        assert_eq!(scene.launched.len(), 1, "{kind:?} ran the release command again");
    }
    web(&mut file).instances = 2;
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.launched.len(), 1, "the same artifact was migrated twice");
    assert!(scene.says("shop", "ran for it already"));
    scene.deploy(&file, "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.launched.len(), 2, "a new artifact was not migrated");
}

#[test]
fn a_release_that_crash_loops_reverts_and_the_old_one_serves_all_the_time() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 2), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = scene.assigned("shop");
    scene.hold_floor("shop", "web", 2);

    scene.deploy(&app("shop", "crash", 2), "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    assert!(
        scene.trouble("shop").starts_with("web: instance shop-web-a3 failed"),
        "{}",
        scene.trouble("shop")
    );
    scene.play("the failed ones gone", |scene| scene.assigned("shop") == before);
    assert_eq!(scene.app("shop").current, Some(ReleaseNumber(1)));
    assert_eq!(scene.app("shop").last_release, ReleaseNumber(2), "numbers are never used twice");
    assert_eq!(scene.app("shop").succeeded, [ReleaseNumber(1)]);
}

#[test]
fn a_first_deployment_that_fails_ends_failed_and_leaves_no_instance() {
    let mut scene = Scene::new();
    let mut file = app("shop", "crash", 1);
    add(&mut file, "mail", worker("good", 2));
    scene.deploy(&file, "tree 1");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Failed);
    assert!(scene.trouble("shop").contains("exited with code 3") || !scene.trouble("shop").is_empty());
    assert!(scene.assigned("shop").is_empty(), "{:?} were left", scene.assigned("shop"));
    assert_eq!(scene.app("shop").current, None);
    assert!(scene.routes("shop").is_none(), "routes to nowhere were left");
}

#[test]
fn the_deadline_reverts_and_says_why() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.deploy(&app("shop", "never", 1), "tree 2");
    let began = scene.elapsed;
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    assert!(
        scene.trouble("shop").starts_with("web: 0 of 1 instances became healthy within the deadline of 20 s"),
        "{}",
        scene.trouble("shop")
    );
    let took = (scene.elapsed - began).as_secs();
    assert!((20..25).contains(&took), "a deadline of 20 s took {took} s");
}

#[test]
fn a_build_that_hangs_ends_when_its_time_is_over_and_is_stopped() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.build.command = Some("hang".into());
    scene.deploy(&file, "tree 1");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.trouble("shop"), "build failed: it took too long");
    scene.play("the run gone", |scene| scene.assignment().runs.is_empty());
}

#[test]
fn cancelled_while_rolling_it_goes_back_and_names_who_asked() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 2), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = scene.assigned("shop");
    scene.hold_floor("shop", "web", 2);
    scene.deploy(&app("shop", "never", 2), "tree 2");
    scene.play("new instances", |scene| scene.assigned("shop").len() == 4);
    scene.cancel("shop");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    assert_eq!(scene.trouble("shop"), "cancelled by bob");
    scene.play("the new ones gone", |scene| scene.assigned("shop") == before);
}

#[test]
fn cancelled_before_its_build_was_placed_nothing_is_run() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.build.command = Some("make".into());
    scene.deploy(&file, "tree 1");
    let plan = scene.plan();
    scene.write(&plan.steps[0]);
    assert!(scene.assignment().runs.is_empty(), "the run is placed by the next plan");
    scene.cancel("shop");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Failed);
    for _ in 0..5 {
        scene.beat();
    }
    assert!(scene.launched.is_empty(), "a cancelled build was run: {:?}", scene.launched);
}

#[test]
fn cancelled_while_it_builds_the_build_is_stopped() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.build.command = Some("hang".into());
    scene.deploy(&file, "tree 1");
    scene.play("the build running", |scene| scene.launched.len() == 1);
    scene.cancel("shop");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.trouble("shop"), "build failed: cancelled by bob");
    scene.play("the run gone", |scene| scene.assignment().runs.is_empty());
}

#[test]
fn a_restart_replaces_every_instance_of_the_same_release() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 2), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.hold_floor("shop", "web", 2);
    scene.begin("shop", DeploymentKind::Restart, None, Some(ReleaseNumber(1)));
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 2);
    let ids: Vec<String> = scene.assigned("shop").into_keys().collect();
    assert_eq!(ids, ["shop-web-a3", "shop-web-a4"]);
    assert_eq!(scene.app("shop").last_release, ReleaseNumber(1), "a restart makes no release");
}

#[test]
fn a_service_that_the_new_release_has_no_more_is_handed_off_and_ended() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    add(&mut file, "api", crate::files::service("good", 2));
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.hold_floor("shop", "web", 1);
    assert_eq!(scene.routed("shop", "api").len(), 2);

    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("new web", |scene| scene.assigned("shop").len() == 4);
    assert_eq!(scene.routed("shop", "api").len(), 2, "api serves until the deployment has succeeded");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("api gone", |scene| scene.assigned("shop").len() == 1);
    let services = &scene.routes("shop").unwrap().backends;
    assert_eq!(services.len(), 1, "{services:?}");
}

#[test]
fn a_service_that_loses_its_port_serves_until_the_deployment_has_succeeded() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    add(&mut file, "api", crate::files::service("good", 1));
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    file.services.insert(rung_model::ServiceName::new("api").unwrap(), worker("never", 1));
    scene.hold_floor("shop", "api", 1);
    scene.deploy(&file, "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);

    file.services.insert(rung_model::ServiceName::new("api").unwrap(), worker("good", 1));
    scene.history.floors.clear();
    scene.deploy(&file, "tree 3");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 2);
    assert!(scene.routed("shop", "api").is_empty());
}

#[test]
fn the_count_of_instances_survives_deploys_until_the_file_says_something_new() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.scale("shop", "web", 3);
    scene.play("three", |scene| scene.routed("shop", "web").len() == 3);
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("three new", |scene| scene.assigned("shop").len() == 3);
    scene.deploy(&app("shop", "good", 2), "tree 3");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("two, as the file says now", |scene| scene.assigned("shop").len() == 2);
    assert!(scene.world.apps[&name("shop")].value.scale.len() == 1);
}

#[test]
fn a_tag_that_names_another_image_than_in_the_release_that_serves_is_told() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    let image = ImageName::new("registry.example/shop:stable").expect("it is a name");
    file.build.image = Some(ImageSource::Name { image });
    for (content, moved) in [("image 1", false), ("image 1", false), ("image 2", true)] {
        // In these stories what a build makes differs with its source.
        scene.deploy(&file, content);
        scene.play("success", |scene| scene.has_ended("shop"));
        let said = scene.says("shop", "registry.example/shop:stable has moved");
        assert_eq!(said, moved, "{content}: {:?}", scene.deployment("shop").timeline);
    }
}
