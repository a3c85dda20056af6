//! Jobs over deploys, pins, and the end of the app.

use std::time::Duration;

use rung_model::app::Destroying;
use rung_model::{DeploymentKind, ReleaseNumber, RunKind, Schedule, keys};

use super::{EACH_MINUTE, MINUTE, command, deploy, job, report, serving, with_job};
use crate::files::app;
use crate::scene::name;

fn release(run: &rung_model::Run) -> u64 {
    let RunKind::Job { release, .. } = &run.kind else { panic!("it is the run of a job") };
    release.0
}

#[test]
fn a_deploy_leaves_a_run_that_goes_on_alone() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "hang 1")));
    scene.play_to_the_minute();
    scene.play_for(Duration::from_secs(2));
    deploy(&mut scene, &with_job(job(EACH_MINUTE, "hang 2")), "tree 2");
    deploy(&mut scene, &app("shop", "good", 1), "tree 3");
    assert_eq!(scene.outcomes()[0], "running");
    assert!(scene.assignment().runs.values().all(|run| !run.cancelled), "it was told to stop");
}

#[test]
fn jobs_run_the_release_that_serves() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "one")));
    scene.play_to_the_minute();
    deploy(&mut scene, &with_job(job(EACH_MINUTE, "two")), "tree 2");
    scene.play_for(MINUTE);
    let commands: Vec<String> = scene.records().iter().map(|run| command(run).to_owned()).collect();
    assert_eq!(commands, ["one", "two"]);
}

#[test]
fn a_pinned_job_runs_what_that_release_says_when_the_serving_one_says() {
    let mut scene = serving(&with_job(job("@yearly", "one")));
    scene.change_job(|state, _| state.pinned = Some(ReleaseNumber(1)));
    deploy(&mut scene, &with_job(job(EACH_MINUTE, "two")), "tree 2");
    scene.play_for(MINUTE);
    let records = scene.records();
    assert_eq!((records.len(), command(&records[0]), release(&records[0])), (1, "one", 1));
    scene.change_job(|state, _| state.pinned = None);
    scene.play_for(MINUTE);
    let records = scene.records();
    assert_eq!((command(&records[1]), release(&records[1])), ("two", 2));
}

#[test]
fn the_release_that_a_job_is_pinned_to_is_kept() {
    let mut scene = serving(&with_job(job("@yearly", "one")));
    scene.change_job(|state, _| state.pinned = Some(ReleaseNumber(1)));
    for number in 2..=104 {
        let first = scene.world.release(&name("shop"), ReleaseNumber(1)).unwrap().clone();
        let next = rung_model::Release { number: ReleaseNumber(number), ..first };
        scene.put(keys::release(&name("shop"), ReleaseNumber(number)), &next);
    }
    let mut record = scene.app("shop").clone();
    record.current = Some(ReleaseNumber(104));
    scene.put(keys::app(&name("shop")), &record);
    scene.settle();
    let kept: Vec<u64> = scene.world.releases[&name("shop")].keys().map(|number| number.0).collect();
    assert!(kept.contains(&1) && !kept.contains(&2) && !kept.contains(&4), "{kept:?}");
}

#[test]
fn another_schedule_counts_from_its_release_on() {
    let mut scene = serving(&with_job(job("0 3 * * *", "report")));
    scene.sleep_for(Duration::from_secs(24 * 3600));
    scene.play_for(Duration::from_secs(5));
    let records = scene.records().len();
    // An hour ago, that is: the day's time has passed, and the day before's was handled.
    let hour = (scene.wall().as_second() / 3600 - 1).rem_euclid(24);
    let mut other = job("0 3 * * *", "report");
    other.schedule = Some(Schedule::new(&format!("0 {hour} * * *")).unwrap());
    deploy(&mut scene, &with_job(other), "tree 2");
    scene.play_for(MINUTE);
    assert_eq!(scene.records().len(), records, "a deploy ran the job: {:?}", scene.outcomes());
}

#[test]
fn a_job_that_is_taken_out_stops_and_comes_back_with_its_pause_and_no_debts() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.play_to_the_minute();
    deploy(&mut scene, &app("shop", "good", 1), "tree 2");
    scene.play_for(3 * MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"]);
    let number = scene.redeploy("shop", DeploymentKind::Rollback, ReleaseNumber(1));
    scene.play("back", |scene| scene.has_ended("shop"));
    scene.settle();
    assert!(number.0 > 2);
    assert_eq!(scene.outcomes(), ["succeeded"], "what was due while it was not there is nobody's");
    scene.play_for(MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"; 2]);
    scene.pause_job();
    deploy(&mut scene, &app("shop", "good", 1), "tree 3");
    scene.redeploy("shop", DeploymentKind::Rollback, ReleaseNumber(1));
    scene.play("back again", |scene| scene.has_ended("shop"));
    scene.play_for(2 * MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"; 2], "it was paused, and still is");
}

#[test]
fn the_state_of_a_job_that_no_release_names_is_forgotten() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    deploy(&mut scene, &app("shop", "good", 1), "tree 2");
    scene.remove(&keys::release(&name("shop"), ReleaseNumber(1)));
    scene.settle();
    assert!(scene.world.jobs.get(&name("shop")).is_none_or(|jobs| !jobs.contains_key(&report())));
}

#[test]
fn a_destroyed_app_ends_its_runs_and_dispatches_nothing() {
    let mut scene = serving(&with_job(job("* * * * * *", "hang")));
    scene.play_for(Duration::from_secs(3));
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.play("it is forgotten", |scene| scene.world.apps.is_empty());
    assert!(scene.world.jobs.is_empty() && scene.world.runs.is_empty(), "something of it is left");
    scene.play_for(Duration::from_secs(5));
    assert_eq!(scene.launched.len(), 1);
}
