//! The wall clock is set, forward and back by hours, while apps are served, deployed and jobs are due.

use std::collections::BTreeSet;

use rung_e2e::{Load, Rung, Start, TestApp, WallClock, eventually};
use rung_model::Run;

const TICK: &str = r#"[jobs.tick]
schedule = "* * * * * *"
command = 'echo "$RUNG_JOB_SCHEDULED" >> $RUNG_VOLUME_STATE/ticks'
mounts = { state = "/state" }"#;

/// The scheduled times for which the job has run so far.
fn ticks(rung: &Rung) -> Vec<String> {
    let page = rung.get("clockwork", "/state?name=ticks").map(|answer| answer.text()).unwrap_or_default();
    page.lines().filter(|line| line.contains('T')).map(str::to_owned).collect()
}

fn wait_for_more_ticks(rung: &Rung) {
    let before = ticks(rung).len();
    eventually("the job has run twice more", || {
        let now = ticks(rung).len();
        if now >= before + 2 { Ok(()) } else { Err(format!("{now} times, {before} before")) }
    });
}

#[test]
fn a_clock_that_is_set_by_hours_disturbs_neither_requests_nor_deploys_nor_jobs() {
    let clock = WallClock::new();
    let mut rung = Rung::start_with(Start { environment: clock.environment(), ..Start::default() });
    let mut app = TestApp::new("clockwork", 2);
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    app.sections.push("[volumes.state]\nsize = \"1MB\"".into());
    app.sections.push(TICK.into());
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("clockwork", "web", 2);
    wait_for_more_ticks(&rung);
    let load = Load::start(rung.http(), "clockwork.localhost", "/");

    clock.set_off_by(3);
    app.version = "ahead".into();
    rung.deploy(app.directory()).succeeds();
    wait_for_more_ticks(&rung);

    clock.set_off_by(-3);
    app.version = "behind".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("clockwork", "/").contains("version behind "));
    rung.page("clockwork", "/print?text=written%20in%20the%20past");
    eventually("the log has the line", || {
        let said = rung.cli(&["logs", "--app", "clockwork"]).succeeds();
        if said.out.contains("written in the past") { Ok(()) } else { Err(said.everything()) }
    });
    rung.cli(&["scale", "web=3", "--app", "clockwork"]).succeeds();
    rung.wait_until_settled("clockwork", "web", 3);
    rung.cli(&["job", "run", "tick", "--app", "clockwork"]).succeeds();
    rung.cli(&["rollback", "--app", "clockwork"]).succeeds();
    assert!(rung.page("clockwork", "/").contains("version ahead "));

    // Those of the release before drain a while longer.
    rung.wait_until_settled("clockwork", "web", 3);
    let lives = rung.lives("clockwork");
    rung.kill_9();
    rung.up(None, &[]);
    rung.wait_until_settled("clockwork", "web", 3);
    assert_eq!(rung.lives("clockwork"), lives, "a start in the past adopts what a later time began");

    clock.set_off_by(4);
    wait_for_more_ticks(&rung);
    load.stop().assert_none_lost("a clock that was set forward, back and forward");
    let ticks = ticks(&rung);
    let scheduled: Vec<&String> = ticks.iter().filter(|tick| !tick.is_empty()).collect();
    let distinct: BTreeSet<_> = scheduled.iter().collect();
    assert_eq!(distinct.len(), scheduled.len(), "a time was dispatched twice: {ticks:#?}");
    let history: Vec<Run> = rung.cli(&["job", "history", "tick", "--app", "clockwork", "--json"]).json();
    let times: Vec<_> = history.iter().filter_map(|run| run.of_job()?.scheduled).collect();
    assert_eq!(times.iter().collect::<BTreeSet<_>>().len(), times.len(), "a time has two records");
}
