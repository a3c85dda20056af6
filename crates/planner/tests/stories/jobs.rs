//! Jobs: each scheduled time has one record, whatever becomes of clocks, leaders and releases.

mod missed;
mod overlap;
mod properties;
mod releases;
mod retry;
mod scale;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rung_model::appfile::Job;
use rung_model::job::Paused;
use rung_model::{
    AppFile, CatchUp, JobName, JobRun, JobState, Overlap, Run, RunKind, RunOutcome, RunState, Schedule, Zone,
    keys,
};

use crate::files::app;
use crate::scene::{Scene, name};

pub fn job(schedule: &str, command: &str) -> Job {
    Job {
        command: command.into(),
        schedule: Some(Schedule::new(schedule).unwrap()),
        timezone: Zone::utc(),
        overlap: Overlap::Forbid,
        catch_up: CatchUp::Last,
        start_deadline: Duration::from_secs(24 * 3600),
        timeout: Duration::from_secs(3600),
        retries: 0,
        retry_after: Duration::from_secs(10),
        memory_bytes: None,
        cpu_millis: None,
        mounts: BTreeMap::new(),
    }
}

pub fn with_job(job: Job) -> AppFile {
    let mut file = app("shop", "good", 1);
    file.jobs.insert(report(), job);
    file
}

pub fn report() -> JobName {
    JobName::new("report").unwrap()
}

/// The app serves, and the job is known from now on.
pub fn serving(file: &AppFile) -> Scene {
    let mut scene = Scene::new();
    deploy(&mut scene, file, "tree 1");
    scene
}

pub fn deploy(scene: &mut Scene, file: &AppFile, source: &str) {
    scene.deploy(file, source);
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.settle();
}

impl Scene {
    /// Of all jobs, oldest first by the time that they are for.
    pub fn records(&self) -> Vec<Run> {
        let runs = self.world.runs.values().map(|held| held.value.clone());
        let mut records: Vec<Run> = runs.filter(|run| run.of_job().is_some()).collect();
        records.sort_by_key(|run| (of(run).scheduled, run.at, run.id.clone()));
        records
    }

    pub fn outcomes(&self) -> Vec<String> {
        self.records().iter().map(outcome).collect()
    }

    pub fn job_state(&self) -> &JobState {
        &self.world.jobs[&name("shop")][&report()].value
    }

    pub fn change_job(&mut self, change: impl FnOnce(&mut JobState, Timestamp)) {
        let mut state = self.job_state().clone();
        change(&mut state, self.clock().wall);
        self.put(keys::job(&name("shop"), &report()), &state);
    }

    pub fn pause_job(&mut self) {
        self.change_job(|state, since| state.paused = Some(Paused { since, by: "ada".into() }));
    }

    /// Beats on until then.
    pub fn play_for(&mut self, time: Duration) {
        let end = self.elapsed + time;
        while self.elapsed < end {
            self.beat();
        }
    }

    /// Passes without a beat: nobody dispatches, nothing runs on.
    pub fn sleep_for(&mut self, time: Duration) {
        self.pass(time);
        self.change_leader();
    }

    pub fn wall(&self) -> Timestamp {
        self.clock().wall
    }

    /// To the next whole minute of the wall clock, and a moment more.
    pub fn play_to_the_minute(&mut self) {
        let second = self.wall().as_second().rem_euclid(60);
        self.play_for(Duration::from_secs((60 - second).unsigned_abs()));
    }
}

pub fn of(run: &Run) -> &JobRun {
    run.of_job().expect("it is the record of a job")
}

pub fn outcome(run: &Run) -> String {
    match &run.state {
        RunState::Pending => "pending".into(),
        RunState::Running { .. } => "running".into(),
        RunState::Ended { outcome: RunOutcome::Succeeded { .. }, .. } => "succeeded".into(),
        RunState::Ended { outcome: RunOutcome::Failed { .. }, .. } => "failed".into(),
        RunState::Ended { outcome: RunOutcome::Cancelled, .. } => "cancelled".into(),
        RunState::Ended { outcome: RunOutcome::Skipped { reason }, .. } => reason.clone(),
    }
}

pub fn command(run: &Run) -> &str {
    let RunKind::Job { command, .. } = &run.kind else { panic!("it is the run of a job") };
    command
}

const MINUTE: Duration = Duration::from_secs(60);
const EACH_MINUTE: &str = "* * * * *";

#[test]
fn each_time_that_comes_gets_one_run() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.play_for(5 * MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"; 5]);
    let times: Vec<i64> = scene.records().iter().map(|run| of(run).scheduled.unwrap().as_second()).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 60), "{times:?}");
    assert_eq!(scene.launched.len(), 5, "each was launched once");
    let late = scene.records().iter().map(|run| run.at.duration_since(of(run).scheduled.unwrap())).max();
    assert!(late.unwrap() < SignedDuration::from_millis(400), "one was late by {late:?}");
}

#[test]
fn what_was_due_before_the_job_was_known_is_nobodys() {
    let mut file = app("shop", "good", 1);
    let mut scene = serving(&file);
    scene.play_for(3 * MINUTE);
    file.jobs.insert(report(), job(EACH_MINUTE, "report"));
    deploy(&mut scene, &file, "tree 1");
    assert_eq!(scene.outcomes(), [""; 0]);
    scene.play_for(MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"]);
}

#[test]
fn a_plan_says_when_the_next_job_is_due() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    let plan = scene.plan();
    let clock = scene.clock();
    let wakes = clock.wall + (plan.wake_at.expect("a job is due some time") - clock.elapsed);
    assert_eq!(wakes.as_second() % 60, 0);
    assert!(wakes > clock.wall && wakes <= clock.wall + MINUTE);
}

#[test]
fn a_new_leader_after_any_step_dispatches_nothing_twice() {
    let mut scene = serving(&with_job(job("*/10 * * * * *", "report")));
    for _ in 0..600 {
        scene.pass(Duration::from_millis(200));
        scene.node_moves();
        if let Some(step) = scene.plan().steps.first().cloned() {
            scene.write(&step);
            scene.change_leader();
        }
    }
    scene.settle();
    let mut launched = scene.launched.clone();
    launched.dedup();
    assert_eq!(launched, scene.launched, "a run was launched twice");
    assert_eq!(scene.launched.len(), 12, "{:?}", scene.launched);
}

#[test]
fn a_clock_that_goes_back_finds_its_times_handled() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.play_for(5 * MINUTE);
    scene.step_clock(SignedDuration::from_mins(-3));
    scene.play_for(3 * MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"; 5], "a time was dispatched twice");
    scene.play_for(2 * MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"; 7]);
}

#[test]
fn a_job_whose_clock_was_years_ahead_is_brought_back_by_resuming_it() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.step_clock(SignedDuration::from_hours(24 * 3650));
    scene.play_for(MINUTE);
    let ahead = scene.records().len();
    scene.step_clock(SignedDuration::from_hours(-24 * 3650));
    scene.play_for(5 * MINUTE);
    assert_eq!(scene.records().len(), ahead, "times are not dispatched twice by themselves");
    scene.change_job(JobState::resume);
    scene.play_for(3 * MINUTE);
    assert_eq!(scene.records().len(), ahead + 3);
}

#[test]
fn a_write_of_somebody_else_in_between_leads_to_a_new_plan_and_no_second_run() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.pass(MINUTE);
    let plan = scene.plan();
    let dispatch = plan.steps.iter().find(|step| step.why == "dispatch jobs").expect("a job is due");
    scene.pause_job();
    let held = scene.store[&keys::job(&name("shop"), &report())].1;
    let write = dispatch.writes.iter().find(|write| write.key.starts_with(keys::JOBS));
    assert_ne!(write.expect("the state is written with the run").replaces, Some(held), "it is not guarded");
    assert!(
        dispatch.writes.iter().any(|write| write.key.starts_with(keys::RUNS) && write.replaces.is_none())
    );
    scene.settle();
    assert_eq!(scene.outcomes(), [""; 0], "it was paused before");
}

#[test]
fn a_paused_job_does_nothing_and_its_times_are_recorded_when_it_is_resumed() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.play_for(MINUTE);
    scene.pause_job();
    scene.play_for(3 * MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded"]);
    scene.change_job(JobState::resume);
    scene.settle();
    assert_eq!(scene.outcomes(), ["succeeded", "it was paused by ada"]);
    let paused = &scene.records()[1];
    let (from, through) = (of(paused).scheduled.unwrap(), of(paused).through.unwrap());
    assert_eq!(through.duration_since(from), SignedDuration::from_mins(2), "three times in a record");
    scene.play_for(MINUTE);
    assert_eq!(scene.outcomes(), ["succeeded", "it was paused by ada", "succeeded"]);
}

#[test]
fn a_pause_that_no_time_fell_into_leaves_no_record() {
    let mut scene = serving(&with_job(job("@daily", "report")));
    scene.pause_job();
    scene.play_for(MINUTE);
    scene.change_job(JobState::resume);
    scene.play_for(MINUTE);
    assert_eq!(scene.outcomes(), [""; 0]);
    assert_eq!(scene.job_state().passed_over, None);
}

#[test]
fn history_is_bounded_and_skipped_times_do_not_push_out_runs() {
    let mut scene = serving(&with_job(job("* * * * * *", "report")));
    scene.play_for(Duration::from_secs(30));
    let mut hanging = job("* * * * * *", "hang");
    hanging.timeout = Duration::from_secs(3600);
    deploy(&mut scene, &with_job(hanging), "tree 2");
    scene.play_for(Duration::from_secs(60));
    let ran = scene.outcomes().iter().filter(|outcome| *outcome == "succeeded").count();
    let skipped = scene.outcomes().iter().filter(|outcome| outcome.contains("still goes on")).count();
    assert_eq!((ran, skipped), (20, 20), "{:?}", scene.outcomes());
}
