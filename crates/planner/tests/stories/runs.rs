//! Runs: placed, recorded, forgotten.

use rung_model::{RunOutcome, RunState};

use crate::files::app;
use crate::scene::Scene;

fn serving() -> Scene {
    let mut scene = Scene::new();
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene
}

#[test]
fn a_run_is_placed_followed_and_its_outcome_is_recorded_as_it_leaves_its_node() {
    let mut scene = serving();
    let run = scene.run("shop", "shop-run-1", "echo");
    scene.settle();
    assert!(scene.assignment().runs.contains_key(&run), "it was not placed");
    assert_eq!(scene.world.runs[&run].value.node.as_ref(), Some(&scene.node), "its place is not recorded");
    scene.play("its end", |scene| scene.world.runs[&run].value.has_ended());
    assert!(!scene.assignment().runs.contains_key(&run), "it ended and is still assigned");
    let RunState::Ended { outcome, .. } = &scene.world.runs[&run].value.state else { panic!("it has ended") };
    assert_eq!(*outcome, RunOutcome::Succeeded { artifact: None });
}

#[test]
fn a_cancelled_run_is_stopped_on_its_node_or_never_gets_there() {
    let mut scene = serving();
    let cancel = |scene: &mut Scene, run: &rung_model::RunId| {
        let mut record = scene.world.runs[run].value.clone();
        record.cancelled = true;
        scene.put(rung_model::keys::run(&record.app, run), &record);
    };
    let running = scene.run("shop", "shop-run-1", "hang");
    scene.play("it runs", |scene| scene.launched.contains(&running));
    cancel(&mut scene, &running);
    let unplaced = scene.run("shop", "shop-run-2", "hang");
    cancel(&mut scene, &unplaced);
    scene.play("both ended", |scene| scene.world.runs.values().all(|run| run.value.has_ended()));
    assert!(!scene.launched.contains(&unplaced), "it was launched although it was cancelled before");
}

#[test]
fn without_a_node_runs_wait_and_then_all_are_placed_within_the_limits_of_a_transaction() {
    let mut scene = Scene::empty();
    scene.join(1 << 30);
    scene.deploy(&app("shop", "good", 1), "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let runs: Vec<_> = (0..300).map(|n| scene.run("shop", &format!("shop-run-{n}"), "echo")).collect();
    loop {
        let plan = scene.plan();
        if plan.steps.is_empty() {
            break;
        }
        for step in &plan.steps {
            // A guard for each, the leader's beside; etcd allows 128.
            assert!(step.writes.len() <= 100, "{:?} has {} writes", step.why, step.writes.len());
            scene.write(step);
        }
    }
    assert_eq!(scene.assignment().runs.len(), 300);
    scene.play("all ended", |scene| {
        runs.iter().all(|run| scene.world.runs.get(run).is_none_or(|held| held.value.has_ended()))
    });
}

#[test]
fn only_the_newest_ended_runs_are_kept() {
    let mut scene = serving();
    for n in 0..130 {
        scene.run("shop", &format!("shop-run-{n}"), "echo");
    }
    scene.play("all ended", |scene| scene.world.runs.values().all(|run| run.value.has_ended()));
    scene.settle();
    assert_eq!(scene.world.runs.len(), 100);
}
