//! Runs that fail are tried again.

use std::time::Duration;

use jiff::SignedDuration;
use rung_model::{Overlap, RunState, keys};

use super::{EACH_MINUTE, MINUTE, job, of, serving, with_job};
use crate::scene::Scene;

fn failing(retries: u32, overlap: Overlap, schedule: &str) -> Scene {
    let mut failing = job(schedule, "break");
    (failing.retries, failing.overlap) = (retries, overlap);
    let mut scene = serving(&with_job(failing));
    scene.failing_commands.insert("break".into());
    scene
}

/// One run on demand that fails at its first try.
fn failed_once(retries: u32) -> Scene {
    let mut scene = failing(retries, Overlap::Forbid, "@yearly");
    scene.run_job("shop.report-n1");
    scene.play("it failed", |scene| scene.outcomes() == ["failed"]);
    scene
}

#[test]
fn the_pauses_between_the_tries_double() {
    let mut scene = failed_once(3);
    scene.play_for(2 * MINUTE);
    assert_eq!(scene.outcomes(), ["failed"; 4]);
    let ends: Vec<_> = scene.records().iter().map(|run| run.state.clone()).collect();
    let begins: Vec<_> = scene.records().iter().map(|run| run.at).collect();
    for (nth, pause) in [10, 20, 40].into_iter().enumerate() {
        let RunState::Ended { at, .. } = ends[nth] else { panic!("it has ended") };
        let waited = begins[nth + 1].duration_since(at).as_secs();
        assert!((pause..=pause + 1).contains(&waited), "try {} came after {waited} s", nth + 2);
    }
    let attempts: Vec<u32> = scene.records().iter().map(|run| of(run).attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    scene.play_for(5 * MINUTE);
    assert_eq!(scene.records().len(), 4, "there were no tries left");
}

#[test]
fn a_try_that_succeeds_is_the_last() {
    let mut scene = failed_once(3);
    scene.failing_commands.clear();
    scene.play_for(2 * MINUTE);
    assert_eq!(scene.outcomes(), ["failed", "succeeded"]);
}

#[test]
fn a_retry_happens_once_whatever_is_forgotten_and_whoever_leads() {
    let mut scene = failed_once(1);
    scene.play_for(Duration::from_secs(20));
    assert_eq!(scene.outcomes(), ["failed", "failed"]);
    let second = scene.records()[1].id.clone();
    scene.remove(&keys::run(&crate::scene::name("shop"), &second));
    scene.change_leader();
    scene.play_for(MINUTE);
    assert_eq!(scene.launched.len(), 2, "it was tried again");
}

#[test]
fn a_clock_that_goes_back_does_not_hold_a_retry_up() {
    let mut scene = failed_once(1);
    scene.step_clock(SignedDuration::from_hours(-24));
    scene.play_for(Duration::from_secs(15));
    assert_eq!(scene.launched.len(), 2);
}

#[test]
fn a_newer_run_of_a_job_that_runs_alone_ends_the_tries_of_the_one_before() {
    let mut scene = failing(10, Overlap::Forbid, EACH_MINUTE);
    scene.play_to_the_minute();
    scene.play_for(3 * MINUTE);
    let mut firsts: Vec<_> = scene.records().iter().map(|run| of(run).scheduled).collect();
    firsts.dedup();
    assert_eq!(firsts.len(), 4, "each time had its run: {:?}", scene.outcomes());
    let tries = |nth: usize| scene.records().iter().filter(|run| of(run).scheduled == firsts[nth]).count();
    assert_eq!(tries(0), 3, "at once, after 10 s and after 20 s more; then the next time came");
}

#[test]
fn a_paused_job_is_not_tried_again() {
    let mut scene = failed_once(3);
    scene.pause_job();
    scene.play_for(2 * MINUTE);
    scene.change_job(rung_model::JobState::resume);
    scene.play_for(2 * MINUTE);
    assert_eq!(scene.launched.len(), 1, "{:?}", scene.outcomes());
}
