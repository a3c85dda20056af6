//! Jobs: work that runs once, by the clock or because somebody asks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rung_e2e::{Rung, TestApp, eventually};
use rung_model::{JobRun, Run, RunOutcome, RunState};

/// An app whose web service shows what its jobs leave on the volume.
fn with_jobs(name: &str, jobs: &[&str]) -> TestApp {
    let mut app = TestApp::new(name, 1);
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    app.sections.push("[volumes.state]\nsize = \"1MB\"".into());
    app.sections.extend(jobs.iter().map(|job| format!("{job}\nmounts = {{ state = \"/state\" }}")));
    app
}

fn serving(app: &TestApp) -> Rung {
    let rung = Rung::start();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(&app.name, "web", 1);
    rung
}

const TICK: &str = r#"[jobs.tick]
schedule = "* * * * * *"
command = 'echo "$RUNG_JOB_SCHEDULED try $RUNG_JOB_ATTEMPT" >> $RUNG_VOLUME_STATE/ticks && echo "$RUNG_JOB has ticked"'"#;

/// The lines that the job has left so far.
fn ticks(rung: &Rung, app: &str) -> Vec<String> {
    let page = rung.get(app, "/state?name=ticks").map(|answer| answer.text()).unwrap_or_default();
    page.lines().filter(|line| line.contains(" try ")).map(str::to_owned).collect()
}

fn wait_for_ticks(rung: &Rung, app: &str, count: usize) -> Vec<String> {
    eventually(&format!("the job has run {count} times"), || {
        let ticks = ticks(rung, app);
        if ticks.len() >= count { Ok(ticks) } else { Err(format!("{ticks:?}")) }
    })
}

fn history(rung: &Rung, app: &str, job: &str) -> Vec<Run> {
    rung.cli(&["job", "history", job, "--app", app, "--json"]).succeeds().json()
}

fn of(run: &Run) -> &JobRun {
    run.of_job().expect("the history of a job has its runs")
}

fn ended(run: &Run) -> Option<&RunOutcome> {
    match &run.state {
        RunState::Ended { outcome, .. } => Some(outcome),
        RunState::Pending | RunState::Running { .. } => None,
    }
}

fn wait_for_history(
    rung: &Rung,
    app: &str,
    job: &str,
    what: &str,
    is_there: impl Fn(&[Run]) -> bool,
) -> Vec<Run> {
    eventually(what, || {
        let runs = history(rung, app, job);
        if is_there(&runs) { Ok(runs) } else { Err(format!("{runs:#?}")) }
    })
}

fn assert_no_time_twice(ticks: &[String]) {
    let distinct: BTreeSet<&String> = ticks.iter().collect();
    assert_eq!(distinct.len(), ticks.len(), "a time was dispatched twice: {ticks:#?}");
}

#[test]
fn a_scheduled_job_runs_once_for_each_time_and_its_history_and_log_can_be_read() {
    let app = with_jobs("ticker", &[TICK]);
    let rung = serving(&app);
    let ticks = wait_for_ticks(&rung, "ticker", 4);
    assert_no_time_twice(&ticks);
    let runs = wait_for_history(&rung, "ticker", "tick", "runs have ended well", |runs| {
        runs.iter().filter(|run| matches!(ended(run), Some(RunOutcome::Succeeded { .. }))).count() >= 4
    });
    let run = runs.iter().rev().find(|run| ended(run).is_some()).expect("some have ended");
    assert!(run.node.is_some() && of(run).started.is_some(), "node and duration are known: {run:#?}");
    rung.cli(&["logs", "--app", "ticker", "--run", run.id.as_str()]).succeeds().mentions("tick has ticked");
    rung.cli(&["job", "list", "--app", "ticker"]).succeeds().mentions("* * * * * *").mentions("tick");

    rung.cli(&["job", "pause", "tick", "--app", "ticker"]).succeeds();
    let paused_at = Instant::now();
    wait_for_history(&rung, "ticker", "tick", "nothing goes on", |runs| {
        runs.iter().all(|run| ended(run).is_some())
    });
    let paused = history(&rung, "ticker", "tick");
    rung.cli(&["job", "list", "--app", "ticker"]).succeeds().mentions("paused by");
    rung.cli(&["job", "run", "tick", "--app", "ticker"]).succeeds().mentions("tick has ticked");
    let on_demand = history(&rung, "ticker", "tick");
    assert_eq!(on_demand.iter().filter(|run| of(run).scheduled.is_some()).count(), paused.len());
    eventually("a scheduled time has passed", || match paused_at.elapsed() {
        elapsed if elapsed > Duration::from_millis(1100) => Ok(()),
        elapsed => Err(format!("{elapsed:?}")),
    });
    rung.cli(&["job", "resume", "tick", "--app", "ticker"]).succeeds();
    wait_for_history(&rung, "ticker", "tick", "the pause is recorded, and the job goes on", |runs| {
        let reasons = runs.iter().filter_map(ended);
        let mut pauses = reasons
            .filter(|outcome| matches!(outcome, RunOutcome::Skipped { reason } if reason.contains("paused")));
        pauses.next().is_some() && of(&runs[0]).scheduled.is_some() && !runs[0].was_skipped()
    });
}

#[test]
fn kill_9_at_any_moment_dispatches_no_time_twice() {
    let app = with_jobs("lasting", &[TICK]);
    let mut rung = serving(&app);
    let mut seen = wait_for_ticks(&rung, "lasting", 1).len();
    for moment in [0, 170, 340, 510, 680, 850] {
        seen = wait_for_ticks(&rung, "lasting", seen + 1).len();
        std::thread::sleep(Duration::from_millis(moment)); // tidy: the moment within the second is what is tested
        rung.kill_9();
        rung.up(None, &[]);
        rung.wait_until_settled("lasting", "web", 1);
    }
    let ticks = wait_for_ticks(&rung, "lasting", seen + 2);
    assert_no_time_twice(&ticks);
    let runs = history(&rung, "lasting", "tick");
    let times: BTreeSet<_> = runs.iter().map(|run| of(run).scheduled).collect();
    assert_eq!(times.len(), runs.len(), "a time has two records: {runs:#?}");
}

#[test]
fn a_job_on_demand_gets_arguments_and_environment_and_exits_as_its_command() {
    let app = with_jobs(
        "errand",
        &[
            "[jobs.import]\ncommand = 'f() { printf \"<%s>\" \"$@\"; echo \" from $SOURCE as $RUNG_JOB\"; exit ${CODE:-0}; }; f'",
        ],
    );
    let rung = serving(&app);
    let said =
        rung.cli(&["job", "run", "import", "--app", "errand", "-e", "SOURCE=there", "--", "a b", "$HOME; c"]);
    said.succeeds().mentions("<a b><$HOME; c> from there as import");
    rung.cli(&["job", "run", "import", "--app", "errand", "-e", "CODE=7"]).ends_with(7);
    rung.cli(&["job", "history", "import", "--app", "errand"]).succeeds().mentions("exited with code 7");
    rung.cli(&["job", "run", "imprt", "--app", "errand"]).ends_with(1).mentions("it has import");
    rung.cli(&["job", "list", "--app", "errand"]).succeeds().mentions("on demand");
    rung.cli(&["job", "run", "import", "--app", "errand", "-e", "1A=x"])
        .ends_with(1)
        .mentions("\"1A\" is not the name of a variable: it starts with a digit");
    rung.cli(&["job", "pin", "import", "v9", "--app", "errand"])
        .ends_with(1)
        .mentions("`rung releases` lists");
    rung.cli(&["job", "cancel", "errand.import-n9", "--app", "errand"])
        .ends_with(1)
        .mentions("has no run errand.import-n9")
        .mentions("`rung job history`");
}

#[test]
fn a_job_that_fails_is_tried_again_until_it_succeeds() {
    let app = with_jobs(
        "stubborn",
        &[
            "[jobs.flaky]\nretries = 3\nretry_after = \"1s\"\ncommand = 'echo try $RUNG_JOB_ATTEMPT; test $RUNG_JOB_ATTEMPT -ge 3'",
        ],
    );
    let rung = serving(&app);
    rung.cli(&["job", "run", "flaky", "--app", "stubborn"]).ends_with(1).mentions("it is tried again");
    let runs = wait_for_history(&rung, "stubborn", "flaky", "the third try succeeds", |runs| {
        runs.iter().any(|run| matches!(ended(run), Some(RunOutcome::Succeeded { .. })))
    });
    let attempts: Vec<u32> = runs.iter().map(|run| of(run).attempt).collect();
    assert_eq!(attempts, [3, 2, 1], "{runs:#?}");
}

#[test]
fn a_run_that_goes_on_is_let_alone_or_replaced_as_the_app_file_says() {
    let job = |name: &str, overlap: &str| {
        format!(
            "[jobs.{name}]\nschedule = \"* * * * * *\"\noverlap = \"{overlap}\"\ncommand = \"exec sleep 1000\""
        )
    };
    let app = with_jobs("crowd", &[&job("alone", "forbid"), &job("newest", "replace")]);
    let rung = serving(&app);
    wait_for_history(&rung, "crowd", "alone", "times are skipped", |runs| {
        runs.iter().filter(|run| run.was_skipped()).count() >= 2
    });
    let runs = history(&rung, "crowd", "alone");
    assert_eq!(runs.iter().filter(|run| ended(run).is_none()).count(), 1, "{runs:#?}");
    let runs = wait_for_history(&rung, "crowd", "newest", "runs were replaced", |runs| {
        runs.iter().filter(|run| matches!(ended(run), Some(RunOutcome::Cancelled))).count() >= 2
    });
    let running = runs.iter().filter(|run| matches!(run.state, RunState::Running { .. })).count();
    assert!(running <= 1, "two run at a time: {runs:#?}");
}

#[test]
fn deploys_leave_a_run_and_its_tree_alone() {
    let long = "until test -e $RUNG_VOLUME_STATE/go; do sleep 0.1; done; echo version $(cat version) is done";
    let jobs = [
        format!("[jobs.long]\ncommand = '{long}'"),
        "[jobs.go]\ncommand = 'touch $RUNG_VOLUME_STATE/go'".to_owned(),
    ];
    let mut app = with_jobs("patient", &[&jobs[0], &jobs[1]]);
    let rung = serving(&app);
    let run: Run =
        rung.cli(&["job", "run", "long", "--no-wait", "--app", "patient", "--json"]).succeeds().json();
    wait_for_history(&rung, "patient", "long", "it runs", |runs| {
        matches!(runs[0].state, RunState::Running { .. })
    });
    for version in ["2", "3", "4", "5", "6"] {
        app.version = version.into();
        rung.deploy(app.directory()).succeeds();
    }
    assert!(ended(&history(&rung, "patient", "long")[0]).is_none(), "a deploy ended it");
    rung.cli(&["job", "run", "go", "--app", "patient"]).succeeds();
    wait_for_history(&rung, "patient", "long", "it ends well", |runs| {
        matches!(ended(&runs[0]), Some(RunOutcome::Succeeded { .. }))
    });
    let log = rung.cli(&["logs", "--app", "patient", "--run", run.id.as_str()]).succeeds();
    log.mentions("version 1 is done");
}

#[test]
fn a_job_runs_the_release_that_serves_unless_it_is_pinned_to_another_one() {
    let mut app = with_jobs("loyal", &["[jobs.tell]\ncommand = 'echo version $(cat version)'"]);
    let rung = serving(&app);
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    let tells = |version: &str| {
        rung.cli(&["job", "run", "tell", "--app", "loyal"])
            .succeeds()
            .mentions(&format!("version {version}"));
    };
    tells("2");
    rung.cli(&["job", "pin", "tell", "v1", "--app", "loyal"]).succeeds();
    tells("1");
    rung.cli(&["job", "list", "--app", "loyal"]).succeeds().mentions("pinned to v1");
    app.version = "3".into();
    rung.deploy(app.directory()).succeeds();
    tells("1");
    rung.cli(&["job", "pin", "tell", "--none", "--app", "loyal"]).succeeds();
    tells("3");
}

#[test]
fn a_schedule_that_can_not_be_read_is_explained_and_nothing_is_deployed() {
    let rung = Rung::start();
    let app = with_jobs("typo", &["[jobs.early]\nschedule = \"0 25 * * *\"\ncommand = 'true'"]);
    rung.deploy(app.directory())
        .ends_with(1)
        .mentions("its hour `25` can't be read: 25 is beyond 23")
        .mentions("an hour is 0 to 23, like `3`, `9,17`, `9-17` or `*/2`");
    assert!(rung.try_app("typo").is_err(), "something was begun");
}

#[test]
fn a_run_can_be_cancelled() {
    let app = with_jobs("hasty", &["[jobs.long]\ncommand = 'exec sleep 1000'"]);
    let rung = serving(&app);
    let run: Run =
        rung.cli(&["job", "run", "long", "--no-wait", "--app", "hasty", "--json"]).succeeds().json();
    rung.cli(&["job", "run", "long", "--app", "hasty"]).ends_with(1).mentions("rung job cancel");
    rung.cli(&["job", "cancel", run.id.as_str(), "--app", "hasty"]).succeeds();
    wait_for_history(&rung, "hasty", "long", "it is cancelled", |runs| {
        matches!(ended(&runs[0]), Some(RunOutcome::Cancelled))
    });
}
