//! `kill -9` of the platform at any moment of what it is doing: what was begun ends, and nobody who asks notices.

use std::time::{Duration, Instant};

use rung_e2e::{Load, Outcome, Rung, Tally, TestApp, eventually, long, process};
use rung_model::deployment::{Deployment, Phase};

/// `RUNG_TEST_SEED` plays a run again.
fn seeded() -> fastrand::Rng {
    let seed = std::env::var("RUNG_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("RUNG_TEST_SEED={seed} plays the same moments again");
    fastrand::Rng::with_seed(seed)
}

/// How a round's deploy would end if nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// Its instances never become healthy.
    Sick,
    /// Its release command fails.
    Stuck,
    /// It is healthy, and fails half of the requests.
    Failing,
}

impl Fate {
    fn end(self) -> Phase {
        match self {
            Self::Good => Phase::Succeeded,
            Self::Sick | Self::Failing => Phase::RolledBack,
            Self::Stuck => Phase::Failed,
        }
    }

    fn befall(self, app: &mut TestApp) {
        for flag in ["BE_CRASHING", "BE_RELEASE_FAILS", "BE_FAILING"] {
            app.unset(flag);
        }
        match self {
            Self::Good => {}
            Self::Sick => app.set("BE_CRASHING", "the moon is full"),
            Self::Stuck => app.set("BE_RELEASE_FAILS", "the table is locked"),
            Self::Failing => app.set("BE_FAILING", "50"),
        }
    }
}

fn wait_for_its_end(rung: &Rung, app: &str) -> Deployment {
    eventually("the deployment has ended", || {
        let last = rung.last_deployment(app);
        if last.has_ended() { Ok(last) } else { Err(format!("{last:#?}")) }
    })
}

/// Kills the platform so long after a deploy was begun, and starts it again.
fn kill_during_deploy(rung: &mut Rung, app: &TestApp, after: Duration) {
    let mut deploy = rung.begin_deploy(app.directory());
    std::thread::sleep(after); // tidy: the moment is what is tested
    rung.kill_9();
    // It would ask the dead server on, for a minute.
    deploy.kill().expect("it is a child of ours");
    deploy.wait().expect("it is a child of ours");
    rung.up(None, &[]);
}

/// So many deploys by this `[deploy]`, in which these fates take turns, each killed at a random moment.
fn kill_deploys(name: &str, policy: &str, fates: &[Fate], rounds: usize) {
    let mut random = seeded();
    let mut rung = Rung::start();
    let mut app = TestApp::new(name, 2);
    let release = "release = \"python3 -B app.py release\"\ndeadline = \"60s\"";
    app.sections.push(format!("[deploy]\n{release}\n{policy}"));
    app.sections.push("[build]\ncommand = \"date > built\"".into());
    app.sections.push("[volumes.state]".into());
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", 2);
    let load =
        Load::start_clients(rung.http(), &format!("{name}.localhost"), "/", 2, Duration::from_millis(10));
    load.wait_for(20);
    app.version = "undisturbed".into();
    let took = rung.deploy(app.directory()).succeeds().took;
    let mut serving = app.version.clone();

    for round in 0..rounds {
        let fate = fates[round % fates.len()];
        let after = took.mul_f64(random.f64() * 1.2);
        let context = format!("round {round}: a deploy that shall be {fate:?}, killed after {after:?}");
        app.version = format!("round-{round}");
        fate.befall(&mut app);
        let before = rung.last_deployment(name).number;
        kill_during_deploy(&mut rung, &app, after);

        let ended = wait_for_its_end(&rung, name);
        // It may have been killed before it had heard of the deploy.
        if ended.number > before {
            assert_eq!(ended.phase, fate.end(), "{context}; it ended otherwise: {ended:#?}");
            if fate == Fate::Good {
                serving.clone_from(&app.version);
            }
        }
        rung.wait_until_settled(name, "web", 2);
        let page = rung.page(name, "/");
        assert!(page.contains(&format!("version {serving} ")), "{context}; now answers {page}");
        let tally = load.tally();
        let lost = tally.lost() - failed_by_itself(&tally, fates);
        assert_eq!(lost, 0, "{context}; requests were lost: {:?}", tally.troubles);
    }
    let tally = load.stop();
    assert_eq!(tally.lost(), failed_by_itself(&tally, fates), "{:?}\n{:?}", tally.outcomes, tally.troubles);
    let released = rung.page(name, "/state?name=released");
    let mut lines: Vec<&str> = released.lines().collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "a release command ran twice for one artifact:\n{released}");
}

/// What a release answered with 500 that was made to.
fn failed_by_itself(tally: &Tally, fates: &[Fate]) -> u64 {
    if fates.contains(&Fate::Failing) { tally.count(Outcome::ServerError(500)) } else { 0 }
}

#[test]
fn kill_9_at_any_moment_of_a_deploy_ends_it_in_one_of_its_three_ends_without_a_lost_request() {
    let fates = [Fate::Good, Fate::Good, Fate::Sick, Fate::Stuck];
    kill_deploys("mayfly", "", &fates, if long() { 200 } else { 10 });
}

#[test]
fn kill_9_at_any_moment_of_a_deploy_by_steps_ends_it_and_what_fails_is_still_taken_back() {
    let policy = "strategy = \"canary\"\nsteps = [\"50% 2s\", \"100%\"]\nabort_if = { error_rate = \"2%\" }";
    let fates = [Fate::Good, Fate::Failing, Fate::Sick, Fate::Stuck];
    kill_deploys("canary", policy, &fates, if long() { 200 } else { 8 });
}

#[test]
fn kill_9_at_any_moment_of_a_deploy_by_blue_and_green_ends_it_with_all_on_one_of_the_two() {
    let fates = [Fate::Good, Fate::Good, Fate::Sick, Fate::Stuck];
    kill_deploys("twins", "strategy = \"bluegreen\"\nkeep = \"1s\"", &fates, if long() { 200 } else { 8 });
}

#[test]
fn kill_9_in_the_middle_of_an_exclusive_handoff_runs_never_two_and_loses_no_held_request() {
    let mut random = seeded();
    let mut rung = Rung::start();
    let mut app = TestApp::new("ledger", 1);
    app.set("BE_EXCLUSIVE", "yes");
    app.sections.push("[volumes.state]".into());
    app.web().lines.extend(["exclusive = true".into(), "mounts = { state = \"/state\" }".into()]);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("ledger", "web", 1);
    app.version = "undisturbed".into();
    let took = rung.deploy(app.directory()).succeeds().took;

    let load = Load::start_clients(rung.http(), "ledger.localhost", "/count", 3, Duration::from_millis(10));
    load.wait_for(50);
    for round in 0..if long() { 40 } else { 6 } {
        app.version = format!("round-{round}");
        // The second half of a deploy is the handoff.
        let after = took.mul_f64(0.3 + random.f64() * 0.8);
        kill_during_deploy(&mut rung, &app, after);
        let ended = wait_for_its_end(&rung, "ledger");
        assert_eq!(ended.phase, Phase::Succeeded, "killed after {after:?}: {ended:#?}");
        rung.wait_until_settled("ledger", "web", 1);
        let mark = rung.get("ledger", "/state?name=two-at-a-time").expect("an answer");
        assert_eq!(mark.status, 404, "two were alive at a time, killed after {after:?}: {}", mark.text());
        load.wait_for(20);
    }
    let tally = load.stop();
    tally.assert_none_lost("a kill -9 in the middle of each handoff of an exclusive service");
    let count: u64 = rung.page("ledger", "/state?name=count").trim().parse().expect("a number");
    assert_eq!(count, tally.answered(), "every request was done once");
}

#[test]
fn instances_that_were_stopped_by_a_killed_platform_leave_nothing_behind() {
    let mut rung = Rung::start();
    let mut app = TestApp::new("remnant", 2);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("remnant", "web", 2);
    let old = rung.lives("remnant");
    app.version = "2".into();
    let mut deploy = rung.begin_deploy(app.directory());
    let began = Instant::now();
    eventually("instances of both releases run", || {
        let now = rung.lives("remnant").len();
        if now > 2 { Ok(()) } else { Err(format!("{now} after {:?}", began.elapsed())) }
    });
    rung.kill_9();
    deploy.kill().expect("it is a child of ours");
    deploy.wait().expect("it is a child of ours");
    rung.up(None, &[]);
    wait_for_its_end(&rung, "remnant");
    rung.wait_until_settled("remnant", "web", 2);
    old.into_values().for_each(process::wait_until_gone);
}
