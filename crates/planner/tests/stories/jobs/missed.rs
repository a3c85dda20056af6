//! Times that passed while nobody dispatched.

use std::time::Duration;

use jiff::SignedDuration;
use rung_model::{CatchUp, Overlap};

use super::{EACH_MINUTE, MINUTE, job, of, serving, with_job};

const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

#[test]
fn after_a_week_off_the_last_time_runs_and_one_record_stands_for_the_others() {
    let mut scene = serving(&with_job(job(EACH_MINUTE, "report")));
    scene.play_to_the_minute();
    assert_eq!(scene.outcomes(), ["succeeded"]);
    let before = of(&scene.records()[0]).scheduled.unwrap();
    scene.step_clock(WEEK);
    scene.play_for(Duration::from_secs(2));
    let records = scene.records();
    assert_eq!(records.len(), 3, "{:?}", scene.outcomes());
    assert_eq!(of(&records[1]).scheduled.unwrap(), before + MINUTE, "the record begins with the first");
    assert_eq!(of(&records[2]).scheduled.unwrap(), before + WEEK, "the last one runs");
    assert_eq!(of(&records[1]).through.unwrap(), before + WEEK - MINUTE, "nothing lies between them");
    assert_eq!(scene.outcomes()[2], "succeeded");
    assert!(scene.outcomes()[1].contains("passed while nothing was dispatched"), "{:?}", scene.outcomes());
}

#[test]
fn without_catching_up_a_week_off_leaves_one_record() {
    let mut nothing = job(EACH_MINUTE, "report");
    nothing.catch_up = CatchUp::None;
    let mut scene = serving(&with_job(nothing));
    scene.play_to_the_minute();
    scene.step_clock(WEEK + SignedDuration::from_secs(30));
    scene.play_for(Duration::from_secs(2));
    assert_eq!(scene.launched.len(), 1, "a missed time ran: {:?}", scene.outcomes());
    assert_eq!(scene.records().len(), 2);
    scene.play_to_the_minute();
    assert_eq!(scene.launched.len(), 2, "times that come run as before");
}

#[test]
fn catching_up_with_all_runs_the_newest_hundred_in_transactions_that_fit() {
    let mut all = job("* * * * * *", &"report ".repeat(2000));
    (all.catch_up, all.overlap) = (CatchUp::All, Overlap::Allow);
    let mut scene = serving(&with_job(all));
    let launched = scene.launched.len();
    scene.pass(Duration::from_secs(1000));
    for _ in 0..50 {
        for step in scene.plan().steps {
            let bytes: usize =
                step.writes.iter().filter_map(|write| write.value.as_ref()).map(Vec::len).sum();
            assert!(step.writes.len() < 120, "{:?} has {} writes", step.why, step.writes.len());
            assert!(bytes < 1_000_000, "{:?} has {bytes} bytes", step.why);
            scene.write(&step);
        }
        scene.node_moves();
    }
    assert_eq!(scene.launched.len() - launched, 100);
    let missed: Vec<String> =
        scene.outcomes().into_iter().filter(|outcome| outcome.contains("passed while")).collect();
    assert_eq!(missed.len(), 1, "{missed:?}");
}

#[test]
fn a_time_that_is_too_long_ago_is_not_started() {
    let mut late = job("0 * * * *", "report");
    late.start_deadline = Duration::from_secs(600);
    let mut scene = serving(&with_job(late.clone()));
    let second = scene.wall().as_second().rem_euclid(3600);
    scene.sleep_for(Duration::from_secs((3600 - second + 900).unsigned_abs()));
    scene.play_for(Duration::from_secs(2));
    assert_eq!(scene.launched.len(), 0, "{:?}", scene.outcomes());
    assert_eq!(scene.records().len(), 1, "its record says so");
    scene.sleep_for(Duration::from_secs(3600 - 600));
    scene.play_for(Duration::from_secs(2));
    assert_eq!(scene.launched.len(), 1, "five minutes late are not too late: {:?}", scene.outcomes());
}

#[test]
fn a_run_that_found_no_node_until_its_deadline_is_recorded_as_never_started() {
    let mut impatient = job(EACH_MINUTE, "report");
    impatient.start_deadline = Duration::from_secs(20);
    let mut scene = serving(&with_job(impatient));
    scene.play_to_the_minute();
    let node = rung_model::keys::node(&scene.node);
    scene.remove(&node);
    scene.pass(MINUTE);
    scene.settle();
    assert_eq!(scene.outcomes().last().unwrap(), "pending");
    scene.pass(Duration::from_secs(25));
    scene.settle();
    assert_eq!(scene.outcomes().last().unwrap(), "it could not be started within 20 s");
}
