//! Exclusive services: one process owns its state. Requests are held while it changes hands, and never two are alive.

use rung_e2e::process;
use rung_e2e::{Load, Rung, TestApp, eventually};

fn ledger() -> TestApp {
    let mut app = TestApp::new("ledger", 1);
    app.set("BE_EXCLUSIVE", "yes");
    app.sections.push("[volumes.state]".into());
    app.web().lines.extend(["exclusive = true".into(), "mounts = { state = \"/state\" }".into()]);
    app
}

fn assert_never_two(rung: &Rung) {
    let mark = rung.get("ledger", "/state?name=two-at-a-time").expect("an answer");
    assert_eq!(mark.status, 404, "two were alive at a time: {}", mark.text());
}

#[test]
fn a_handoff_holds_the_requests_and_never_runs_two() {
    let rung = Rung::start();
    let mut app = ledger();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("ledger", "web", 1);
    let load = Load::start(rung.http(), "ledger.localhost", "/count");
    load.wait_for(100);
    for version in 2..=4 {
        app.version = version.to_string();
        rung.deploy(app.directory()).succeeds();
        load.wait_for(50);
    }
    rung.cli(&["restart", "--app", "ledger"]).succeeds();
    rung.cli(&["rollback", "--app", "ledger"]).succeeds();
    load.wait_for(50);
    let tally = load.stop();
    tally.assert_none_lost("three deploys, a restart and a rollback of an exclusive service");
    let count: u64 = rung.page("ledger", "/state?name=count").trim().parse().expect("a number");
    assert_eq!(count, tally.answered(), "every request was done once");
    assert_never_two(&rung);
}

#[test]
fn an_exclusive_instance_that_is_killed_comes_back_alone() {
    let rung = Rung::start();
    let app = ledger();
    rung.deploy(app.directory()).succeeds();
    for _ in 0..3 {
        // What is shown may be the life before for a moment: the process itself says which one it is.
        let life = eventually("the shown process lives", || {
            let pid = rung.wait_until_settled("ledger", "web", 1)[0].pid;
            pid.and_then(process::life).ok_or_else(|| format!("{pid:?} does not"))
        });
        let pid = life.pid;
        process::kill_9(pid);
        process::wait_until_gone(life);
        rung.wait_until_settled("ledger", "web", 1);
    }
    assert_never_two(&rung);
}
