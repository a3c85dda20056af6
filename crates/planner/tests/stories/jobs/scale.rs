//! Many jobs at once.

use std::time::Duration;

use rung_model::JobName;

use super::{EACH_MINUTE, job, serving};
use crate::files::app;

/// Of a transaction, in every backend; the leader's guard is one more.
const OPERATIONS: usize = 127;
const BYTES: usize = 1024 * 1024;

#[test]
fn a_thousand_jobs_of_one_second_are_recorded_in_a_few_transactions_and_all_run() {
    let mut file = app("shop", "good", 1);
    for n in 0..1000 {
        file.jobs.insert(JobName::new(format!("report-{n}")).unwrap(), job(EACH_MINUTE, "report"));
    }
    let mut scene = serving(&file);
    scene.pass(Duration::from_secs(60));
    let plan = scene.plan();
    let dispatches = plan.steps.iter().filter(|step| step.why == "dispatch jobs").count();
    assert!(dispatches <= 20, "{dispatches} transactions for a thousand jobs");
    for _ in 0..100 {
        for step in scene.plan().steps {
            let bytes: usize =
                step.writes.iter().filter_map(|write| write.value.as_ref()).map(Vec::len).sum();
            assert!(step.writes.len() <= OPERATIONS, "{:?} has {} writes", step.why, step.writes.len());
            assert!(bytes < BYTES, "{:?} has {bytes} bytes", step.why);
            scene.write(&step);
        }
        scene.node_moves();
    }
    assert_eq!(scene.launched.len(), 1000);
    assert!(scene.outcomes().iter().all(|outcome| outcome == "succeeded"));
}

#[test]
fn long_commands_never_make_a_document_that_the_store_refuses() {
    let mut file = app("shop", "good", 1);
    for n in 0..60 {
        let long = format!("report {}", "\"quoted\" ".repeat(5000));
        file.jobs.insert(JobName::new(format!("report-{n}")).unwrap(), job(EACH_MINUTE, &long));
    }
    let mut scene = serving(&file);
    scene.pass(Duration::from_secs(60));
    for _ in 0..200 {
        for step in scene.plan().steps {
            let bytes: usize =
                step.writes.iter().filter_map(|write| write.value.as_ref()).map(Vec::len).sum();
            assert!(bytes < BYTES, "{:?} has {bytes} bytes", step.why);
            scene.write(&step);
        }
        scene.node_moves();
    }
    assert_eq!(scene.launched.len(), 60, "each had its turn");
}

#[test]
fn a_job_for_each_second_runs_each_second() {
    let mut file = app("shop", "good", 1);
    file.jobs.insert(super::report(), job("* * * * * *", "report"));
    let mut scene = serving(&file);
    let before = scene.launched.len();
    scene.play_for(Duration::from_secs(60));
    let launched = scene.launched.len() - before;
    assert!((59..=61).contains(&launched), "{launched} runs in a minute: {:?}", scene.outcomes());
}
