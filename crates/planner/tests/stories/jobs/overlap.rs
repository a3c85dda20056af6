//! A run is due while an earlier one goes on.

use std::time::Duration;

use rung_model::{Overlap, RunState};

use super::{EACH_MINUTE, MINUTE, job, serving, with_job};
use crate::scene::Scene;

fn hanging(overlap: Overlap) -> Scene {
    let mut hanging = job(EACH_MINUTE, "hang");
    hanging.overlap = overlap;
    let mut scene = serving(&with_job(hanging));
    scene.play_to_the_minute();
    scene.play_for(Duration::from_secs(5));
    assert_eq!(scene.outcomes(), ["running"]);
    scene
}

fn running(scene: &Scene) -> usize {
    let runs = scene.world.runs.values();
    runs.filter(|run| matches!(run.value.state, RunState::Running { .. })).count()
}

#[test]
fn forbidden_the_time_is_recorded_as_skipped() {
    let mut scene = hanging(Overlap::Forbid);
    scene.play_for(2 * MINUTE);
    let skipped = "the run before it still goes on";
    assert_eq!(scene.outcomes(), ["running", skipped, skipped]);
}

#[test]
fn allowed_they_run_beside_each_other() {
    let mut scene = hanging(Overlap::Allow);
    scene.play_for(2 * MINUTE);
    assert_eq!(scene.outcomes(), ["running"; 3]);
}

#[test]
fn replaced_the_earlier_one_has_ended_before_the_next_is_given_to_a_node() {
    let mut scene = hanging(Overlap::Replace);
    for _ in 0..700 {
        scene.pass(Duration::from_millis(200));
        // Slower than the planner: what is assigned together would be seen together.
        scene.settle();
        assert!(scene.assignment().runs.len() <= 1, "two runs are assigned: {:?}", scene.assignment().runs);
        scene.node_moves();
        scene.settle();
        assert!(running(&scene) <= 1);
    }
    assert_eq!(scene.outcomes(), ["cancelled", "cancelled", "running"]);
}

#[test]
fn of_several_that_wait_for_their_turn_one_is_given_to_a_node_at_a_time() {
    let mut scene = serving(&with_job(job("@yearly", "report")));
    for n in 0..4 {
        scene.run_job(&format!("shop.report-n{n}"));
    }
    for _ in 0..30 {
        scene.settle();
        assert!(scene.assignment().runs.len() <= 1, "two runs of a job that forbids it");
        scene.beat();
    }
    assert_eq!(scene.outcomes(), ["succeeded"; 4]);
}

#[test]
fn of_several_that_replace_each_other_the_last_one_runs() {
    let mut replacing = job("@yearly", "report");
    replacing.overlap = Overlap::Replace;
    let mut scene = serving(&with_job(replacing));
    for n in 0..4 {
        scene.run_job(&format!("shop.report-n{n}"));
    }
    scene.play_for(Duration::from_secs(5));
    assert_eq!(scene.launched.len(), 1, "{:?}", scene.outcomes());
    assert_eq!(scene.outcomes().last().unwrap(), "succeeded");
    assert!(scene.outcomes()[0].contains("took its place before it was started"), "{:?}", scene.outcomes());
}
