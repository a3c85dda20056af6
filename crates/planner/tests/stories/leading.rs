//! Leaders come and go: a new one knows the store and nothing else.

use rung_model::app::Destroying;
use rung_model::{AppFile, Phase};

use crate::files::{app, web};
use crate::scene::Scene;

/// Everything that a deployment can go through.
fn full(command: &str, exclusive: bool) -> AppFile {
    let mut file = app("shop", command, if exclusive { 1 } else { 2 });
    file.build.command = Some("make".into());
    file.deploy.release = Some("migrate".into());
    web(&mut file).exclusive = exclusive;
    file
}

/// Plays a story with a new leader after the `nth` written step of all; says whether there were so many.
fn with_a_new_leader_after(nth: usize, first: &AppFile, second: &AppFile) -> (Scene, bool) {
    let mut scene = Scene::new();
    let mut written = 0;
    let mut changed = false;
    for (file, source) in [(first, "tree 1"), (second, "tree 2")] {
        scene.deploy(file, source);
        for _ in 0..900 {
            if scene.has_ended("shop") && scene.plan().steps.is_empty() {
                break;
            }
            for step in scene.plan().steps {
                scene.write(&step);
                written += 1;
                if written == nth {
                    changed = true;
                    scene.change_leader();
                    break;
                }
            }
            scene.pass(std::time::Duration::from_millis(200));
            scene.node_moves();
            scene.proxy_polls();
        }
        assert!(scene.has_ended("shop"), "a new leader after step {nth}: it does not end");
    }
    (scene, changed)
}

#[test]
fn a_new_leader_at_any_step_of_a_good_deployment_finishes_it() {
    for exclusive in [false, true] {
        let (first, second) = (full("good", exclusive), full("good 2", exclusive));
        for nth in 1.. {
            let (scene, changed) = with_a_new_leader_after(nth, &first, &second);
            assert_eq!(scene.phase("shop"), Phase::Succeeded, "a new leader after step {nth}");
            assert_eq!(scene.launched.len(), 4, "after step {nth}: {:?}", scene.launched);
            if !changed {
                break;
            }
        }
    }
}

#[test]
fn a_new_leader_at_any_step_of_a_bad_deployment_goes_back() {
    for exclusive in [false, true] {
        let (first, second) = (full("good", exclusive), full("crash", exclusive));
        for nth in 1.. {
            let (scene, changed) = with_a_new_leader_after(nth, &first, &second);
            assert_eq!(scene.phase("shop"), Phase::RolledBack, "a new leader after step {nth}");
            if !changed {
                break;
            }
        }
    }
}

#[test]
fn leaders_that_live_for_seconds_still_end_a_deployment() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "never", 1), "tree 1");
    scene.settle();
    for _ in 0..12 {
        for _ in 0..30 {
            scene.beat();
        }
        scene.change_leader();
    }
    assert_eq!(scene.phase("shop"), Phase::Failed, "each leader gave it its whole time again");
}

#[test]
fn leaders_that_live_for_less_than_a_look_at_the_time_still_end_a_deployment() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "never", 1), "tree 1");
    scene.settle();
    for _ in 0..60 {
        scene.change_leader();
        for _ in 0..10 {
            scene.beat();
        }
    }
    assert_eq!(scene.phase("shop"), Phase::Failed, "no leader lived long enough to take its time off");
}

#[test]
fn a_new_leader_waits_for_proxies_that_it_has_not_heard_of_yet() {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.proxy_is_silent = true;
    scene.change_leader();
    for _ in 0..40 {
        scene.beat();
        assert_eq!(scene.assigned("shop").len(), 1);
        assert!(scene.assigned("shop").values().all(|intent| *intent == rung_model::Intent::Run));
    }
    scene.play("after ten seconds", |scene| scene.world.apps.is_empty());
}
