//! What becomes of releases: made and not rolled out, rolled out later, with and without their release command.

use rung_model::deployment::EntryKind;
use rung_model::{
    Asked, DeploymentKind, Goal, ImageName, ImageSource, NotificationState, Phase, ReleaseCommand,
    ReleaseNumber, keys,
};

use crate::files::app;
use crate::scene::{Scene, name};

#[test]
fn a_release_can_be_made_and_rolled_out_later() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = scene.assigned("shop");

    file.build.command = Some("make".into());
    file.deploy.release = Some("migrate".into());
    scene.asked = Asked { goal: Goal::Release, ..Asked::default() };
    scene.deploy(&file, "tree 2");
    scene.play("the release", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    assert_eq!(scene.launched.len(), 1, "more than the build was run: {:?}", scene.launched);
    assert_eq!(scene.assigned("shop"), before, "something was started");
    let record = scene.app("shop");
    assert_eq!((record.current, record.last_release), (Some(ReleaseNumber(1)), ReleaseNumber(2)));
    let made = scene.world.release(&name("shop"), ReleaseNumber(2)).expect("the release was made");
    assert_eq!(made.provenance.build.as_ref(), Some(&scene.launched[0]), "its build is not known");

    scene.asked = Asked::default();
    scene.begin("shop", DeploymentKind::Deploy, None, Some(ReleaseNumber(2)));
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    assert_eq!(scene.app("shop").current, Some(ReleaseNumber(2)));
    assert_eq!(scene.launched.len(), 2, "the release command did not run, or the build ran again");
    assert_eq!(scene.deployment("shop").runs, scene.launched[1..], "a deployment names its runs");
}

#[test]
fn a_restore_point_is_made_before_the_release_command_and_without_it_nothing_happens() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.deploy.release = Some("migrate".into());
    file.deploy.before_release = Some("dump".into());
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let launched: Vec<&str> = scene.launched.iter().map(|run| run.as_str()).collect();
    assert_eq!(launched, ["shop.d1-before", "shop.d1-release"]);

    scene.failing_commands.insert("dump".into());
    scene.deploy(&file, "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Failed);
    assert_eq!(scene.trouble("shop"), "`dump`, before the release command, failed: exited with code 1");
    assert_eq!(scene.launched.len(), 3, "the release command ran without its restore point");
}

#[test]
fn a_release_command_is_left_out_when_asked_and_not_run_again_for_an_artifact_of_before() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.deploy.release = Some("migrate".into());
    for tree in ["tree 1", "tree 2", "tree 1"] {
        scene.deploy(&file, tree);
        scene.play("success", |scene| scene.has_ended("shop"));
    }
    assert_eq!(scene.launched.len(), 2, "it ran again for the first artifact: {:?}", scene.launched);
    scene.asked = Asked { release_command: ReleaseCommand::Skip, ..Asked::default() };
    scene.deploy(&file, "tree 3");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.launched.len(), 2);
    assert!(scene.says("shop", "left out, as asked"), "{:?}", scene.deployment("shop").timeline);
    scene.asked = Asked::default();
    scene.deploy(&file, "tree 3");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.launched.len(), 3, "what was left out counts as done");
}

#[test]
fn settings_are_those_of_the_release_that_serves_whatever_a_deployment_came_to() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let change = |scene: &mut Scene, command: &str, colour: &str| {
        let mut record = scene.app("shop").clone();
        record.config.insert("COLOUR".into(), colour.into());
        scene.put(keys::app(&record.name), &record);
        let number = scene.redeploy("shop", DeploymentKind::Config, ReleaseNumber(1));
        let mut deployment = scene.deployment("shop").clone();
        let draft = deployment.draft.as_mut().expect("it is not made yet");
        draft.config = record.config;
        draft.file = app("shop", command, 1);
        scene.put(keys::deployment(&deployment.app, number), &deployment);
        scene.play("the end", |scene| scene.has_ended("shop"));
    };
    change(&mut scene, "good", "green");
    assert_eq!(scene.app("shop").config["COLOUR"], "green");
    change(&mut scene, "crash", "red");
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    assert_eq!(
        scene.app("shop").config["COLOUR"],
        "green",
        "a change that was reverted waits for the next deploy"
    );
    scene.redeploy("shop", DeploymentKind::Rollback, ReleaseNumber(1));
    scene.play("success", |scene| scene.has_ended("shop"));
    assert!(scene.app("shop").config.is_empty(), "a rollback left the newer config for the next deploy");
}

#[test]
fn the_timeline_tells_of_instances_beside_milestones_and_stays_bounded() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.deploy(&app("shop", "good", 2), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    for words in [
        "web: shop-web-a2 is started on box",
        "web: shop-web-a3 is healthy",
        "web: shop-web-a2 gets requests",
    ] {
        assert!(scene.says("shop", words), "{words}: {:#?}", scene.deployment("shop").timeline);
    }
    scene.deploy(&app("shop", "good", 60), "tree 3");
    scene.play("success", |scene| scene.has_ended("shop"));
    let timeline = &scene.deployment("shop").timeline;
    let details = timeline.iter().filter(|entry| entry.kind == EntryKind::Detail).count();
    assert_eq!(details, rung_model::Deployment::DETAILS_MAX, "of {}", timeline.len());
    assert!(scene.says("shop", "all traffic is on v3"), "milestones stay: {timeline:#?}");
}

#[test]
fn whom_the_end_is_told_stands_in_the_deployment_however_it_ends() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    let webhook = "https://example.com/deployed".to_owned();
    file.notify = Some(rung_model::appfile::Notify { webhook: webhook.clone(), secret: None });
    scene.deploy(&file, "tree 1");
    assert_eq!(scene.deployment("shop").notification, None);
    scene.play("success", |scene| scene.has_ended("shop"));
    file.build.command = Some("break".into());
    scene.failing_commands.insert("break".into());
    let succeeded = scene.deployment("shop").notification.clone().expect("it ended");
    assert_eq!((succeeded.webhook.as_str(), succeeded.state), (webhook.as_str(), NotificationState::Pending));
    scene.deploy(&file, "tree 2");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert!(scene.deployment("shop").notification.is_some(), "a failed build is told to nobody");
}

#[test]
fn a_tag_that_has_not_moved_makes_no_release_and_starts_nothing() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    file.build.image = Some(ImageSource::Name { image: ImageName::new("acme/shop:2").unwrap() });
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = scene.assigned("shop");

    scene.deploy(&file, "tree 1");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    assert!(scene.says("shop", "acme/shop:2 is the image of v1, and nothing else has changed"));
    assert_eq!(scene.deployment("shop").release, Some(ReleaseNumber(1)));
    let record = scene.app("shop");
    assert_eq!((record.current, record.last_release), (Some(ReleaseNumber(1)), ReleaseNumber(1)));
    assert_eq!(scene.assigned("shop"), before, "something was started");

    // A release command that was left out is made up for.
    file.deploy.release = Some("migrate".into());
    scene.asked = Asked { release_command: ReleaseCommand::Skip, ..Asked::default() };
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.app("shop").current, Some(ReleaseNumber(2)), "the app file has changed");
    scene.asked = Asked::default();
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert!(scene.launched.iter().any(|run| run.as_str() == "shop.d4-release"), "{:?}", scene.launched);
}

#[test]
fn of_two_first_deployments_that_ask_for_one_host_the_first_to_have_a_release_gets_it() {
    let mut scene = Scene::new();
    let asking = |name: &str| {
        let mut file = app(name, "good", 1);
        file.domains = vec!["shop.example".into()];
        file
    };
    let mut slow = asking("bazaar");
    slow.build.command = Some("make".into());
    scene.deploy(&slow, "tree 1");
    scene.deploy(&asking("shop"), "tree 2");
    scene.play("both ends", |scene| scene.has_ended("shop") && scene.has_ended("bazaar"));
    let phases = [scene.phase("shop"), scene.phase("bazaar")];
    assert_eq!(phases, [Phase::Succeeded, Phase::Failed], "both have it, or nobody");
    assert!(scene.trouble("bazaar").contains("host shop.example belongs to another app by now"));
    assert!(scene.routes("bazaar").is_none_or(|document| document.hosts.is_empty()));
}
