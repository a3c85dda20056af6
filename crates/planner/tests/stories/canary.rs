//! A share of the visitors first; the numbers decide whether the others follow.

use std::time::Duration;

use rung_model::appfile::rollout::{Share, WithoutTraffic};
use rung_model::rollout::{Stage, Verdict};
use rung_model::{DeploymentKind, InstanceId, Intent, Phase};

use crate::files::{add, app, canary, service, worker};
use crate::scene::Scene;

const FAST: Duration = Duration::from_millis(20);

/// Version 1 serves with so many instances, as `d1`; a canary of version 2 stands at its first step, as `d2`.
fn standing(instances: u32, steps: &[&str]) -> Scene {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", instances), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let mut file = app("shop", "good", instances);
    canary(&mut file, steps);
    scene.hold_floor("shop", "web", instances as usize);
    scene.deploy(&file, "tree 2");
    scene.play("the first step stands", |scene| scene.stage() != Stage::Moving);
    scene
}

/// A second of traffic at 50 requests a second, of which the new release gets its share.
fn second(scene: &mut Scene, new: u64, failing: u64) {
    scene.requests(1, 50 - new, 0, FAST);
    scene.requests(2, new, failing, FAST);
    scene.pass(Duration::from_secs(1));
    scene.beat();
}

#[test]
fn the_steps_are_taken_one_after_the_other_and_then_it_is_done() {
    let mut scene = standing(4, &["5% 60s", "50% 30s", "100%"]);
    assert_eq!(scene.share(), Some(Share(500)));
    assert_eq!(scene.assigned("shop").len(), 5, "5 % of four are one instance");
    assert!(scene.says("shop", "canary: 5 % of visitors get v2 for 1 min"), "{:?}", scene.deployment("shop"));
    let began = scene.elapsed;
    while scene.share() == Some(Share(500)) {
        second(&mut scene, 3, 0);
    }
    let held = scene.elapsed - began;
    assert!((60..64).contains(&held.as_secs()), "a step of 60 s was held for {held:?}");
    assert!(scene.says("shop", "v2 is no worse: 0 of"), "{:?}", scene.deployment("shop").timeline);
    scene.play("the second step stands", |scene| scene.stage() == Stage::Holding);
    assert_eq!(scene.share(), Some(Share(5000)));
    assert_eq!(scene.assigned("shop").len(), 6, "50 % of four are two instances");
    for _ in 0..31 {
        second(&mut scene, 25, 0);
    }
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 4);
    let decisions = &scene.deployment("shop").rollout.as_ref().unwrap().decisions;
    let verdicts: Vec<Verdict> = decisions.iter().map(|decision| decision.verdict).collect();
    assert_eq!(verdicts, [Verdict::Continue, Verdict::Continue]);
    assert!(decisions[0].new.requests >= 150, "the decision does not know its numbers: {:?}", decisions[0]);
}

#[test]
fn a_release_that_fails_every_fifth_request_is_reverted_and_says_by_which_numbers() {
    let mut scene = standing(2, &["5% 5m", "100%"]);
    let began = scene.elapsed;
    for at in 0..60 {
        second(&mut scene, 3, u64::from(at % 2 == 0));
        if scene.phase("shop") != Phase::Rolling {
            break;
        }
    }
    let took = scene.elapsed - began;
    assert!(took <= Duration::from_secs(12), "it took {took:?} to see it");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::RolledBack);
    let trouble = scene.trouble("shop");
    assert!(trouble.starts_with("v2 fails more often than v1: "), "{trouble}");
    assert!(trouble.contains("against 0 of") && trouble.ends_with("the limit is 2 %"), "{trouble}");
    let decisions = &scene.deployment("shop").rollout.as_ref().unwrap().decisions;
    assert_eq!(decisions.last().unwrap().verdict, Verdict::Abort);
    scene.play("only the old ones", |scene| scene.assigned("shop").len() == 2);
    assert_eq!(scene.share(), None);
}

#[test]
fn a_release_that_is_slower_is_reverted_too() {
    let mut scene = standing(2, &["10% 5m", "100%"]);
    for _ in 0..60 {
        scene.requests(1, 45, 0, FAST);
        scene.requests(2, 5, 0, Duration::from_millis(1500));
        scene.pass(Duration::from_secs(1));
        scene.beat();
    }
    scene.play("the end", |scene| scene.has_ended("shop"));
    let trouble = scene.trouble("shop");
    assert!(trouble.starts_with("v2 answers more slowly than v1: p95 1."), "{trouble}");
}

#[test]
fn an_outage_that_both_go_through_is_not_the_new_one_s_fault() {
    let mut scene = standing(2, &["10% 30s", "100%"]);
    for _ in 0..25 {
        scene.requests(1, 45, 30, FAST);
        scene.requests(2, 5, 3, FAST);
        scene.pass(Duration::from_secs(1));
        scene.beat();
    }
    assert_eq!(scene.phase("shop"), Phase::Rolling, "{}", scene.trouble("shop"));
}

#[test]
fn too_few_requests_decide_nothing() {
    let mut scene = standing(2, &["5% 5m", "100%"]);
    for _ in 0..9 {
        second(&mut scene, 1, 1);
    }
    assert_eq!(scene.phase("shop"), Phase::Rolling, "9 requests decided: {}", scene.trouble("shop"));
    second(&mut scene, 1, 1);
    assert_ne!(scene.phase("shop"), Phase::Rolling, "10 failures of 10 decided nothing");
}

#[test]
fn a_canary_without_traffic_does_what_the_file_says_and_says_so() {
    for (policy, end, words) in [
        (WithoutTraffic::Continue, Phase::Succeeded, "going on, as configured"),
        (WithoutTraffic::Abort, Phase::RolledBack, "aborted, as configured"),
        (WithoutTraffic::Wait, Phase::RolledBack, "it waits for them, 2 min at most"),
    ] {
        let mut scene = Scene::new();
        scene.deploy(&app("shop", "good", 1), "tree 1");
        scene.play("success", |scene| scene.has_ended("shop"));
        let mut file = app("shop", "good", 1);
        canary(&mut file, &["5% 10s", "100%"]);
        file.deploy.rollout.without_traffic = policy;
        scene.deploy(&file, "tree 2");
        scene.play_within(Duration::from_secs(200), "the end", |scene| scene.has_ended("shop"));
        assert_eq!(scene.phase("shop"), end, "{policy:?}: {}", scene.trouble("shop"));
        let timeline = &scene.deployment("shop").timeline;
        assert!(scene.says("shop", words), "{policy:?} does not say {words:?}: {timeline:#?}");
        assert!(scene.says("shop", "got 0 requests; 10 are needed"), "{policy:?}: {timeline:#?}");
    }
}

#[test]
fn requests_that_come_late_end_the_wait_for_them() {
    let mut scene = standing(1, &["5% 10s", "100%"]);
    scene.play("the wait", |scene| scene.stage() == Stage::AwaitingTraffic);
    for _ in 0..10 {
        second(&mut scene, 3, 0);
    }
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
}

#[test]
fn a_step_without_a_time_waits_for_a_person_but_not_for_ever() {
    let mut scene = standing(2, &["20%", "100%"]);
    assert_eq!(scene.stage(), Stage::AwaitingWord);
    assert!(scene.says("shop", "it waits for `rung continue`, 2 min at most"));
    scene.pass(Duration::from_secs(60));
    scene.beat();
    assert_eq!(scene.phase("shop"), Phase::Rolling, "the deadline ended a wait");
    scene.go_on("shop");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);

    let mut scene = standing(2, &["20%", "100%"]);
    scene.play_within(Duration::from_secs(140), "the end", |scene| scene.has_ended("shop"));
    assert_eq!(scene.trouble("shop"), "nobody said `rung continue` within 2 min");
}

#[test]
fn a_word_cuts_a_step_short_and_ends_just_one() {
    let mut scene = standing(2, &["5% 10m", "50%", "100%"]);
    scene.go_on("shop");
    scene.play("the second step", |scene| scene.stage() == Stage::AwaitingWord);
    assert_eq!(scene.share(), Some(Share(5000)));
    for _ in 0..20 {
        scene.beat();
    }
    assert_eq!(scene.phase("shop"), Phase::Rolling, "one word ended two steps");
}

#[test]
fn a_canary_that_is_cancelled_goes_back_at_once() {
    let mut scene = standing(2, &["20%", "100%"]);
    scene.cancel("shop");
    scene.settle();
    assert_eq!(scene.routed("shop", "web"), ["shop-web-a1", "shop-web-a2"], "the canary is still routed");
    scene.play("the end", |scene| scene.has_ended("shop"));
    assert_eq!(
        (scene.phase("shop"), scene.trouble("shop").as_str()),
        (Phase::RolledBack, "cancelled by bob")
    );
}

#[test]
fn a_new_leader_goes_on_where_the_step_was() {
    let mut scene = standing(2, &["5% 60s", "100%"]);
    for _ in 0..30 {
        second(&mut scene, 3, 0);
    }
    let before = scene.deployment("shop").rollout.clone().unwrap();
    assert!(before.new.requests >= 70, "what was counted is not kept: {:?}", before.new);
    scene.change_leader();
    let began = scene.elapsed;
    while scene.share() == Some(Share(500)) {
        second(&mut scene, 3, 0);
    }
    let held = scene.elapsed - began;
    // What passed is written every five seconds.
    assert!((23..32).contains(&held.as_secs()), "after 36 of 60 s a new leader held it for {held:?}");
    let decision = scene.deployment("shop").rollout.as_ref().unwrap().decisions[0].clone();
    assert!(decision.new.requests >= before.new.requests, "what was counted before is lost: {decision:?}");
}

#[test]
fn an_exclusive_service_changes_hands_with_the_last_step() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 2);
    let mut ledger = service("good", 1);
    ledger.exclusive = true;
    add(&mut file, "ledger", ledger);
    add(&mut file, "mail", worker("good", 2));
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = scene.routed("shop", "ledger");
    canary(&mut file, &["50%", "100%"]);
    scene.deploy(&file, "tree 2");
    scene.play("the step", |scene| scene.stage() == Stage::AwaitingWord);
    assert_eq!(scene.routed("shop", "ledger"), before, "the exclusive one changed hands too early");
    let mails = scene.assigned("shop").keys().filter(|id| id.contains("mail")).count();
    assert_eq!(mails, 3, "half of two workers beside the two old ones");
    scene.go_on("shop");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_ne!(scene.routed("shop", "ledger"), before);
    scene.play("as many as wanted", |scene| scene.assigned("shop").len() == 5);
}

#[test]
fn a_first_deployment_and_a_rollback_have_nobody_to_ask() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    canary(&mut file, &["5%", "100%"]);
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.deploy(&file, "tree 2");
    scene.play("the step", |scene| scene.stage() == Stage::AwaitingWord);
    scene.go_on("shop");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.redeploy("shop", DeploymentKind::Rollback, rung_model::ReleaseNumber(1));
    scene.play_within(Duration::from_secs(10), "back at once", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    assert!(scene.assigned("shop").values().any(|intent| *intent == Intent::Run));
}

#[test]
fn planned_again_without_new_facts_a_canary_has_nothing_to_do() {
    let mut scene = standing(2, &["5% 60s", "100%"]);
    for _ in 0..20 {
        second(&mut scene, 3, 0);
        assert_eq!(scene.plan().steps, [], "the same facts gave another plan");
    }
}

/// How many instances of a release shall run.
fn of_release(scene: &Scene, release: u64) -> usize {
    let instances = scene.listed_world().assignments.into_values().flat_map(|held| held.value.instances);
    let runs =
        instances.filter(|(_, assigned)| assigned.intent == Intent::Run && assigned.release.0 == release);
    runs.count()
}

#[test]
fn what_is_scaled_during_a_canary_is_scaled_for_both_releases() {
    let mut scene = standing(2, &["50%", "100%"]);
    assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (2, 1));
    scene.scale("shop", "web", 4);
    scene.play("both have grown", |scene| scene.routed("shop", "web").len() == 6);
    assert_eq!(
        (of_release(&scene, 1), of_release(&scene, 2)),
        (4, 2),
        "half of the visitors are for two of four"
    );
    assert_eq!(scene.phase("shop"), Phase::Rolling);
    scene.go_on("shop");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("the old ones gone", |scene| scene.assigned("shop").len() == 4);
    assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (0, 4));
}

#[test]
fn what_is_scaled_down_during_a_canary_shrinks_in_both_releases() {
    for goes_on in [true, false] {
        let mut scene = standing(4, &["50%", "100%"]);
        assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (4, 2));
        // A request that an old one is busy with is waited for.
        scene.in_flight.insert(InstanceId::new("shop-web-a4").unwrap(), 1);
        scene.hold_floor("shop", "web", 2);
        scene.scale("shop", "web", 2);
        scene.play("both have shrunk", |scene| scene.routed("shop", "web").len() == 3);
        scene.play("all that are not busy have ended", |scene| scene.assigned("shop").len() == 4);
        assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (3, 1), "a busy one was ended");
        scene.in_flight.clear();
        scene.play("the busy one has ended", |scene| scene.assigned("shop").len() == 3);
        assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (2, 1));
        assert_eq!(
            scene.routed("shop", "web"),
            ["shop-web-a5", "shop-web-a1", "shop-web-a2"],
            "the oldest stay"
        );
        assert_eq!(scene.share(), Some(Share(5000)), "the share of visitors is another one");
        assert_eq!(scene.phase("shop"), Phase::Rolling);
        if goes_on {
            scene.go_on("shop");
        } else {
            scene.cancel("shop");
        }
        scene.play("the end", |scene| scene.has_ended("shop"));
        scene.play("one release is left", |scene| scene.assigned("shop").len() == 2);
        let left = if goes_on { (0, 2) } else { (2, 0) };
        assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), left);
    }
}

#[test]
fn what_is_scaled_to_nothing_and_back_during_a_canary_comes_back_in_both_releases() {
    let mut scene = standing(2, &["50%", "100%"]);
    scene.hold_floor("shop", "web", 0);
    scene.scale("shop", "web", 0);
    scene.play("nothing runs", |scene| scene.assigned("shop").is_empty());
    assert_eq!(scene.phase("shop"), Phase::Rolling, "{}", scene.trouble("shop"));
    scene.scale("shop", "web", 2);
    scene.play("both are back", |scene| scene.routed("shop", "web").len() == 3);
    assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (2, 1));
    assert_eq!(scene.share(), Some(Share(5000)));
}

#[test]
fn a_machine_that_is_lost_during_a_canary_takes_no_instance_of_the_old_release_for_long() {
    for is_drained in [true, false] {
        let mut scene = Scene::new();
        scene.join_as("second", 8_000_000_000, &[]);
        scene.deploy(&app("shop", "good", 2), "tree 1");
        scene.play("success", |scene| scene.has_ended("shop"));
        assert_eq!(scene.running("shop").len(), 2, "they are spread: {:?}", scene.running("shop"));
        let mut file = app("shop", "good", 2);
        canary(&mut file, &["50%", "100%"]);
        scene.deploy(&file, "tree 2");
        scene.play("the canary waits", |scene| scene.stage() == Stage::AwaitingWord);
        if is_drained {
            scene.hold_floor("shop", "web", 2);
            scene.drain("second");
        } else {
            scene.cut_off("second");
        }
        scene.play_within(Duration::from_secs(60), "all run on the first", |scene| {
            scene.running("shop").keys().all(|node| node != "second")
                && scene.routed("shop", "web").len() == 3
        });
        assert_eq!((of_release(&scene, 1), of_release(&scene, 2)), (2, 1), "drained: {is_drained}");
        assert_eq!(scene.share(), Some(Share(5000)));
        assert_eq!(scene.phase("shop"), Phase::Rolling, "{}", scene.trouble("shop"));
    }
}
