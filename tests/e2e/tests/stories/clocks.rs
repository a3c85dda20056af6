//! The wall clock is set, forward and back by hours, while apps are served, deployed and jobs are due.

use std::collections::BTreeSet;

use rung_e2e::{Hosts, Load, Rung, Start, TestApp, WallClock, eventually};
use rung_model::{Run, RunOutcome, RunState};

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

#[test]
fn after_a_week_without_the_machine_the_last_night_is_made_up_for_and_the_others_have_a_record() {
    let clock = WallClock::new();
    let mut rung = Rung::start_with(Start { environment: clock.environment(), ..Start::default() });
    let mut app = TestApp::new("holiday", 1);
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    app.sections.push("[volumes.state]\nsize = \"1MB\"".into());
    let command = "command = 'echo \"$RUNG_JOB_SCHEDULED\" >> $RUNG_VOLUME_STATE/nights'";
    app.sections
        .push(format!("[jobs.nightly]\nschedule = \"@daily\"\n{command}\nmounts = {{ state = \"/state\" }}"));
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("holiday", "web", 1);

    assert!(rung.interrupt().success(), "{}", rung.output());
    clock.set_off_by(7 * 24);
    rung.up(None, &[]);
    rung.wait_until_settled("holiday", "web", 1);
    let history = || -> Vec<Run> {
        rung.cli(&["job", "history", "nightly", "--app", "holiday", "--json"]).succeeds().json()
    };
    let history = eventually("the last night has been made up for", || {
        let history = history();
        let has_run =
            |run: &Run| matches!(run.state, RunState::Ended { outcome: RunOutcome::Succeeded { .. }, .. });
        if history.iter().any(has_run) { Ok(history) } else { Err(format!("{history:#?}")) }
    });
    let nights = rung.page("holiday", "/state?name=nights");
    assert_eq!(nights.lines().count(), 1, "more than the last night was made up for:\n{nights}");
    let of_last = history[0].of_job().and_then(|run| run.scheduled).expect("it was scheduled");
    assert_eq!(nights.trim(), of_last.to_string(), "the run does not know which night it is for");
    assert_eq!(history.len(), 2, "six nights have one record: {history:#?}");
    let missed = history[1].of_job().expect("it is of the job");
    let (from, through) = (missed.scheduled.expect("it has a time"), missed.through.expect("and another"));
    let nights = (through.duration_since(from).as_hours(), of_last.duration_since(through).as_hours());
    assert_eq!(nights, (5 * 24, 24), "a night has no record: {history:#?}");
    rung.cli(&["job", "history", "nightly", "--app", "holiday", "--json"])
        .succeeds()
        .mentions("nothing was dispatched");
}

/// A battery that is empty, a zone that is wrong: the clock is set when a time service has been reached, and the server runs by then.
#[test]
fn a_server_that_starts_with_a_wrong_clock_is_believed_by_the_other_machines() {
    let (mut hosts, clock) = (Hosts::new(2), WallClock::new());
    hosts.host_mut(1).set_env(clock.environment());
    hosts.host_mut(1).serve();
    hosts.join(2, "worker");
    let app = TestApp::new("shop", 2);
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-2");

    clock.set_off_by(11);
    hosts.host_mut(1).stop();
    hosts.host_mut(1).serve();
    hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-2");

    clock.set_off_by(-72);
    hosts.host_mut(1).stop();
    hosts.host_mut(1).serve();
    clock.set_off_by(0);
    eventually("the other machine is heard of again", || {
        // Until its certificate is renewed nobody believes the server, people neither.
        let said = hosts.host(1).cli(&["node", "list"]);
        let is_ready = said.out.lines().any(|line| line.contains("host-2") && line.contains("ready"));
        if is_ready { Ok(()) } else { Err(said.everything()) }
    });
    hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-2");
}
