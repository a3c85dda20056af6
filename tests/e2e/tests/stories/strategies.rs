//! Releases that move over step by step, or all at once, and come back by themselves.

use std::time::Duration;

use rung_e2e::http::Connection;
use rung_e2e::{Load, Outcome, Rung, TestApp, eventually};
use rung_model::Phase;
use rung_model::rollout::{Stage, Verdict};

/// Version 1 serves with two instances; what comes next goes by this `[deploy]`.
fn deployed(name: &str, policy: &str) -> (Rung, TestApp) {
    let rung = Rung::start();
    let mut app = TestApp::new(name, 2);
    app.sections.push(format!("[deploy]\n{policy}"));
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 2);
    app.version = "2".into();
    (rung, app)
}

/// Fifty requests a second.
fn visitors(rung: &Rung, app: &TestApp) -> Load {
    let host = format!("{}.localhost", app.name);
    let load = Load::start_clients(rung.http(), &host, "/", 5, Duration::from_millis(100));
    load.wait_for(20);
    load
}

fn wait_until_at(rung: &Rung, app: &str, step: u32, stage: Stage) {
    eventually(&format!("the deployment is {stage:?} at step {step}"), || {
        let deployment = rung.last_deployment(app);
        let rollout = deployment.rollout.clone().unwrap_or_default();
        let is_there = deployment.phase == Phase::Rolling && (rollout.step, rollout.stage) == (step, stage);
        if is_there { Ok(()) } else { Err(format!("{deployment:?}")) }
    });
}

#[test]
fn a_canary_that_fails_every_fifth_request_is_aborted_by_itself_and_says_by_which_numbers() {
    let policy = "strategy = \"canary\"\nsteps = [\"5% 10m\", \"100%\"]\nabort_if = { error_rate = \"2%\" }";
    let (rung, mut app) = deployed("canary", policy);
    app.set("BE_FAILING", "20");
    let load = visitors(&rung, &app);
    let said = rung.deploy(app.directory()).ends_with(3).mentions("fails more often than v1");
    let said = said.mentions("the limit is 2 %").mentions("at the same time");
    load.wait_for(50);
    let tally = load.stop();
    let failed = tally.count(Outcome::ServerError(500));
    assert_eq!(tally.lost(), failed, "more was lost than what version 2 failed by itself: {tally:?}");
    let all = tally.answered() + failed;
    assert!(failed * 50 <= all, "of {all} requests {failed} saw a fault of a canary of 5 %");
    assert!(failed > 0, "{}", said.everything());
    let deployment = rung.last_deployment("canary");
    assert_eq!(deployment.phase, Phase::RolledBack);
    let decision = deployment.rollout.expect("it had steps").decisions.pop().expect("it was decided");
    assert_eq!(decision.verdict, Verdict::Abort);
    assert!(decision.new.requests >= 10 && decision.new.errors >= 2, "{decision:?}");
    // At 50 requests a second 25 come to it in ten seconds; the others are for a machine that is busy.
    assert!(decision.new.requests <= 50, "it took too many visitors to see it: {decision:?}");
    assert!(decision.new.requests * 10 <= decision.old.requests, "5 % of the visitors were {decision:?}");
    rung.wait_until_settled("canary", "web", 2);
    assert!(rung.page("canary", "/").contains("version 1 "));
}

#[test]
fn a_canary_that_answers_late_is_aborted_by_itself_although_it_never_fails() {
    let policy = "strategy = \"canary\"\nsteps = [\"20% 10m\", \"100%\"]\nabort_if = { p95 = \"400ms\" }";
    let (rung, mut app) = deployed("late", policy);
    app.set("BE_LAGGING", "1000");
    let load = visitors(&rung, &app);
    rung.deploy(app.directory())
        .ends_with(3)
        .mentions("answers more slowly than v1: p95 1")
        .mentions("the limit is 400 ms");
    load.wait_for(50);
    load.stop().assert_none_lost("a canary that was late");
    rung.wait_until_settled("late", "web", 2);
    assert!(rung.page("late", "/").contains("version 1 "));
}

#[test]
fn a_canary_waits_for_a_word_and_another_one_is_aborted() {
    let (rung, mut app) = deployed("patience", "strategy = \"canary\"\nsteps = [\"50%\", \"100%\"]");
    let load = visitors(&rung, &app);
    let mut deploy = rung.begin_deploy(app.directory());
    wait_until_at(&rung, "patience", 0, Stage::AwaitingWord);
    load.wait_for(100);
    rung.cli(&["status", "--app", "patience"]).succeeds().mentions("rung continue");
    rung.cli(&["continue", "--app", "patience"]).succeeds();
    assert!(deploy.wait().expect("waiting for rung deploy").success(), "what was continued did not succeed");
    assert!(rung.page("patience", "/").contains("version 2 "));
    rung.cli(&["continue", "--app", "patience"])
        .ends_with(1)
        .mentions("no deployment of patience is going on");

    app.version = "3".into();
    let mut deploy = rung.begin_deploy(app.directory());
    wait_until_at(&rung, "patience", 0, Stage::AwaitingWord);
    rung.cli(&["abort", "--app", "patience"]).succeeds();
    assert_eq!(
        deploy.wait().expect("waiting for rung deploy").code(),
        Some(3),
        "an aborted one is rolled back"
    );
    rung.cli(&["releases", "--app", "patience"]).succeeds().mentions("cancelled");
    load.wait_for(50);
    let tally = load.stop();
    tally.assert_none_lost("a canary that was continued and one that was aborted");
    assert!(tally.versions.contains("1") && tally.versions.contains("2"), "{:?}", tally.versions);
    assert!(rung.page("patience", "/").contains("version 2 "));
    rung.wait_until_settled("patience", "web", 2);
}

#[test]
fn scaling_during_a_canary_changes_both_releases_and_waits_only_for_the_one_that_serves() {
    let policy = "strategy = \"canary\"\nsteps = [\"50%\", \"100%\"]\nkeep = \"10m\"";
    let (rung, app) = deployed("scaled", policy);
    let load = visitors(&rung, &app);
    let mut deploy = rung.begin_deploy(app.directory());
    wait_until_at(&rung, "scaled", 0, Stage::AwaitingWord);
    let scale = |count: &str, healthy: &str| {
        rung.cli(&["scale", count, "--app", "scaled"]).succeeds().mentions(healthy);
    };
    let runs = |count: usize| {
        eventually(&format!("{count} instances run"), || match rung.lives("scaled") {
            lives if lives.len() == count => Ok(()),
            lives => Err(format!("{lives:?}")),
        });
    };
    scale("web=4", "4 of 4 healthy");
    runs(6);
    // Down again while visitors are at both: the old release does not keep what nobody asks for.
    scale("web=1", "1 of 1 healthy");
    runs(2);
    assert_eq!(rung.last_deployment("scaled").phase, Phase::Rolling, "scaling has ended the step");
    load.wait_for(50);
    rung.cli(&["continue", "--no-wait", "--app", "scaled"]).succeeds();
    assert!(deploy.wait().expect("waiting for rung deploy").success());
    // The old one is kept warm, and nobody waits for it.
    scale("web=2", "2 of 2 healthy");
    runs(3);
    load.wait_for(50);
    load.stop().assert_none_lost("scaling up and down in the middle of a canary");
    assert!(rung.page("scaled", "/").contains("version 2 "));
}

#[test]
fn blue_and_green_change_places_and_back_without_a_start_or_a_lost_request() {
    let (rung, app) = deployed("twins", "strategy = \"bluegreen\"\nkeep = \"5m\"");
    let blue = rung.lives("twins");
    let load = Load::start(rung.http(), "twins.localhost", "/");
    load.wait_for(100);
    rung.deploy(app.directory()).succeeds().mentions("stay for");
    assert!(rung.page("twins", "/").contains("version 2 "));
    let both = rung.lives("twins");
    assert_eq!(both.len(), 4, "blue is not kept: {both:?}");
    load.wait_for(100);
    let said = rung.cli(&["rollback", "--app", "twins"]).succeeds();
    assert!(rung.page("twins", "/").contains("version 1 "));
    assert_eq!(rung.lives("twins"), both, "going back started or ended an instance; {}", said.everything());
    assert!(blue.values().all(|life| life.goes_on()));
    load.wait_for(100);
    load.stop().assert_none_lost("a change of places and back");
}

#[test]
fn a_canary_goes_on_where_it_was_after_kill_9_of_the_platform() {
    let (mut rung, app) = deployed("lazarus", "strategy = \"canary\"\nsteps = [\"50% 12s\", \"100%\"]");
    let load = visitors(&rung, &app);
    let mut deploy = rung.begin_deploy(app.directory());
    wait_until_at(&rung, "lazarus", 0, Stage::Holding);
    let lives = rung.lives("lazarus");
    rung.kill_9();
    // Who followed it has lost its server, which comes back at another port.
    deploy.kill().and_then(|()| deploy.wait()).expect("ending rung deploy");
    load.wait_for(50);
    rung.up(None, &[]);
    wait_until_at(&rung, "lazarus", 0, Stage::Holding);
    assert_eq!(rung.lives("lazarus"), lives, "the canary was started anew");
    eventually("the canary has gone on to its end", || {
        let deployment = rung.last_deployment("lazarus");
        if deployment.phase == Phase::Succeeded { Ok(()) } else { Err(format!("{deployment:?}")) }
    });
    assert!(rung.page("lazarus", "/").contains("version 2 "));
    load.stop().assert_none_lost("kill -9 in the middle of a step");
}

#[test]
fn a_regression_after_success_reverts_by_itself() {
    let policy = "abort_if = { error_rate = \"2%\" }\nwatch = \"10m\"";
    let (rung, app) = deployed("regression", policy);
    let load = visitors(&rung, &app);
    rung.deploy(app.directory()).succeeds();
    load.wait_for(50);
    for _ in 0..8 {
        // Balanced over both instances.
        rung.get("regression", "/become?flag=BE_FAILING&value=50").expect("the application is told");
    }
    eventually("the release before it is back", || {
        let deployment = rung.last_deployment("regression");
        match (deployment.number.0, deployment.phase) {
            (3, Phase::Succeeded) => Ok(()),
            _ => Err(format!("{deployment:?}")),
        }
    });
    let deployment = rung.last_deployment("regression");
    assert_eq!(deployment.by, "rung");
    assert!(deployment.timeline[0].message.contains("v2 fails too often"), "{:?}", deployment.timeline);
    assert!(rung.page("regression", "/").contains("version 1 "));
    let tally = load.stop();
    assert_eq!(tally.lost(), tally.count(Outcome::ServerError(500)), "{tally:?}");
}

#[test]
fn a_release_that_is_healthy_at_first_and_exits_within_its_first_seconds_is_taken_back() {
    let (rung, mut app) = deployed("brief", "");
    // By then the deploy has succeeded: it does not wait for what may come.
    app.set("BE_SHORT_LIVED", "2500");
    rung.deploy(app.directory()).succeeds();
    eventually("the release before it is back", || {
        let deployment = rung.last_deployment("brief");
        match (deployment.number.0, deployment.phase) {
            (3, Phase::Succeeded) => Ok(()),
            _ => Err(format!("{deployment:?}")),
        }
    });
    let deployment = rung.last_deployment("brief");
    assert_eq!(deployment.by, "rung");
    let why = &deployment.timeline[0].message;
    assert!(why.contains("did not stay up, within 10 s of success: exited with code 7"), "{why}");
    assert!(rung.page("brief", "/").contains("version 1 "));
    rung.wait_until_settled("brief", "web", 2);
    rung.cli(&["releases", "--app", "brief"]).succeeds().mentions("rollback to v1");
    rung.cli(&["explain", "d2", "--app", "brief"]).succeeds().mentions("going back to v1");
}

#[test]
fn a_canary_that_nobody_visits_waits_or_ends_as_the_file_says_and_says_which() {
    let policy = |rest: &str| {
        let judged =
            "strategy = \"canary\"\nsteps = [\"50% 1s\", \"100%\"]\nabort_if = { error_rate = \"2%\" }";
        format!("[deploy]\n{judged}\n{rest}")
    };
    let (rung, mut app) = deployed("desert", "");
    app.sections = vec![policy("without_traffic = \"abort\"")];
    rung.deploy(app.directory())
        .ends_with(3)
        .mentions("v2 got 0 requests; 10 are needed to judge it; aborted, as configured");
    app.sections = vec![policy("without_traffic = \"continue\"")];
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["explain", "--app", "desert"])
        .succeeds()
        .mentions("v3 got 0 requests; 10 are needed to judge it; going on, as configured");
    app.version = "3".into();
    app.sections = vec![policy("wait_at_most = \"2s\"")];
    rung.deploy(app.directory())
        .ends_with(3)
        .mentions("v4 got 0 requests; 10 are needed to judge it, within 2 s");

    app.sections = vec![policy("wait_at_most = \"10m\"")];
    let mut deploy = rung.begin_deploy(app.directory());
    wait_until_at(&rung, "desert", 0, Stage::AwaitingTraffic);
    rung.cli(&["status", "--app", "desert"]).succeeds().mentions("waits for requests");
    let load = visitors(&rung, &app);
    assert!(deploy.wait().expect("waiting for rung deploy").success(), "it did not go on once visitors came");
    load.wait_for(20);
    load.stop().assert_none_lost("a canary that waited for visitors");
    rung.cli(&["explain", "--app", "desert"])
        .succeeds()
        .mentions("it waits for them")
        .mentions("v5 is no worse");
    assert!(rung.page("desert", "/").contains("version 3 "));
}

/// Which version a request with these headers is answered by.
fn version_for(rung: &Rung, app: &str, headers: &[(&str, &str)]) -> String {
    let mut connection = Connection::open(rung.http()).expect("connecting");
    let answer = connection.ask("GET", &format!("{app}.localhost"), "/", headers, b"").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-version").expect("every page says its version").to_owned()
}

#[test]
fn testers_come_first_then_half_of_the_sessions_each_of_which_stays_with_what_it_got() {
    let policy = "strategy = \"canary\"\nsteps = [\"0%\", \"50%\", \"100%\"]\n\
                  testers = { header = \"X-Beta\", is = \"on\" }\nsplit = { cookie = \"session\" }";
    let (rung, app) = deployed("variants", policy);
    let mut deploy = rung.begin_deploy(app.directory());
    wait_until_at(&rung, "variants", 0, Stage::AwaitingWord);
    for _ in 0..10 {
        assert_eq!(version_for(&rung, "variants", &[("X-Beta", "on")]), "2", "a tester got the old release");
        assert_eq!(version_for(&rung, "variants", &[]), "1", "somebody got it who is no tester");
    }
    rung.cli(&["continue", "--no-wait", "--app", "variants"]).succeeds();
    wait_until_at(&rung, "variants", 1, Stage::AwaitingWord);
    let of_session = |number: u32| {
        let cookie = format!("theme=dark; session={number}");
        version_for(&rung, "variants", &[("Cookie", &cookie)])
    };
    let got: Vec<String> = (0..100).map(of_session).collect();
    let new = got.iter().filter(|version| *version == "2").count();
    assert!((30..=70).contains(&new), "half of a hundred sessions were {new}");
    let again: Vec<String> = (0..100).map(of_session).collect();
    assert_eq!(got, again, "a session changed its release");
    rung.cli(&["continue", "--app", "variants"]).succeeds();
    assert!(deploy.wait().expect("waiting for rung deploy").success());
    assert!(
        (0..20).all(|number| of_session(number) == "2"),
        "the variant won, and somebody got the other one"
    );
}

#[test]
fn a_rolling_deploy_by_batches_never_runs_more_than_its_batch_beyond_the_count() {
    let (rung, mut app) = deployed("batches", "strategy = \"rolling\"\nbatch = 1");
    app.web().instances = 3;
    app.version = "1.1".into();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("batches", "web", 3);
    let load = Load::start(rung.http(), "batches.localhost", "/");
    load.wait_for(50);
    app.version = "2".into();
    let mut deploy = rung.begin_deploy(app.directory());
    let mut most = 0;
    let code = eventually("the deployment has ended", || {
        most = most.max(rung.lives("batches").len());
        deploy
            .try_wait()
            .expect("asking for rung deploy")
            .ok_or_else(|| format!("{:?}", rung.last_deployment("batches")))
    });
    assert!(code.success(), "{:?}", rung.last_deployment("batches"));
    assert!(most <= 4, "{most} instances ran at the same time: three and a batch of one are four");
    load.wait_for(50);
    load.stop().assert_none_lost("a deploy by batches");
    rung.wait_until_settled("batches", "web", 3);
    assert!(rung.page("batches", "/").contains("version 2 "));
}
