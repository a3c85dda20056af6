//! Every screen, as a person sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use expect_test::expect;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use rung_api::wire::{
    AppStatus, Cohort, DeploymentSummary, DoctorCheck, DoctorReport, DoctorState, EventRecord,
    InstanceStatus, LogLine, ReleaseListing, SecretListing, SecretVersion, ServiceStatus, Stream,
};
use rung_model::deployment::Trouble;
use rung_model::node::IsolationFact;
use rung_model::{
    AppName, Deployment, DeploymentKind, DeploymentNumber, Digest, InstanceId, InstanceState, NodeId, Phase,
    ReleaseNumber, Run, RunId, RunKind, RunState, SecretName, ServiceName, TimelineEntry,
};

use super::paint::Paint;
use super::time::Clock;
use super::*;

fn at(seconds: i64) -> Timestamp {
    "2026-03-04T10:00:00Z".parse::<Timestamp>().unwrap() + seconds.seconds()
}

fn clock() -> Clock {
    Clock { now: at(0), zone: TimeZone::UTC }
}

fn app() -> AppName {
    AppName::new("shop").unwrap()
}

fn instance(id: &str, state: InstanceState) -> InstanceStatus {
    let healthy = state == InstanceState::Healthy;
    InstanceStatus {
        id: InstanceId::new(id).unwrap(),
        node: NodeId::new("laptop").unwrap(),
        lost: false,
        service: ServiceName::new("web").unwrap(),
        release: ReleaseNumber(7),
        cohort: Cohort::Live,
        state,
        routed: healthy,
        endpoint: Some("127.0.0.1:20001".parse().unwrap()),
        pid: healthy.then_some(4711),
        restarts: 0,
        since: at(-185),
        reason: None,
        log_tail: Vec::new(),
    }
}

fn crashing() -> InstanceStatus {
    InstanceStatus {
        restarts: 5,
        since: at(-42),
        reason: Some("exited with code 1".into()),
        log_tail: vec![
            "Traceback (most recent call last):".into(),
            "KeyError: 'DATABASE_URL'\u{1b}[2J".into(),
        ],
        ..instance("shop-web-a8", InstanceState::CrashLooping)
    }
}

fn service(name: &str, desired: u32, instances: Vec<InstanceStatus>) -> ServiceStatus {
    let healthy = instances.iter().filter(|instance| instance.state == InstanceState::Healthy).count();
    ServiceStatus {
        name: ServiceName::new(name).unwrap(),
        desired,
        healthy: healthy as u32,
        exclusive: false,
        port: name == "web",
        scale: None,
        unplaced: None,
        inside: None,
        instances,
    }
}

fn healthy_status() -> AppStatus {
    AppStatus {
        app: app(),
        current: Some(ReleaseNumber(7)),
        urls: vec!["http://shop.localhost:8080".into()],
        services: vec![
            service("web", 1, vec![instance("shop-web-a7", InstanceState::Healthy)]),
            service("worker", 0, vec![]),
        ],
        deployment: Some(DeploymentSummary {
            number: DeploymentNumber(9),
            release: Some(ReleaseNumber(7)),
            phase: Phase::Succeeded,
            by: "ada@laptop".into(),
            at: at(-200),
            goal: rung_model::Goal::Serve,
            trouble: None,
        }),
        destroying: false,
        environments: vec![],
        problems: vec![],
    }
}

#[test]
fn status_of_an_app_that_is_well() {
    expect![[r#"
        shop  v7
          http://shop.localhost:8080
          web     1 of 1 healthy
          worker  scaled to 0  no port
          deployed 3 min ago (09:56) by ada@laptop"#]]
    .assert_eq(&status::render(&healthy_status(), Paint::Plain, &clock()));
}

#[test]
fn status_of_an_app_in_trouble_explains_it() {
    let mut troubled = healthy_status();
    troubled.services[0] =
        service("web", 2, vec![instance("shop-web-a7", InstanceState::Healthy), crashing()]);
    troubled.problems = vec!["waiting for memory: web needs 512 MB, the machine has 100 MB left".into()];
    let summary = troubled.deployment.as_mut().unwrap();
    summary.phase = Phase::Rolling;
    summary.release = Some(ReleaseNumber(8));
    summary.at = at(-12);
    expect![[r#"
        shop  v7
          http://shop.localhost:8080
          web     1 of 2 healthy
          worker  scaled to 0  no port
          deployment d9 of v8 by ada@laptop: rolling out, 12 s so far

        problems
          waiting for memory: web needs 512 MB, the machine has 100 MB left
          shop-web-a8 crash looping: exited with code 1 (42 s ago, 5 restarts)
            | Traceback (most recent call last):
            | KeyError: 'DATABASE_URL'�[2J"#]]
    .assert_eq(&status::render(&troubled, Paint::Plain, &clock()));
}

#[test]
fn status_after_a_deployment_that_was_rolled_back_says_why() {
    let mut status = healthy_status();
    let summary = status.deployment.as_mut().unwrap();
    summary.phase = Phase::RolledBack;
    summary.release = Some(ReleaseNumber(8));
    summary.trouble =
        Some(Trouble { reason: "shop-web-a8 did not become healthy".into(), log_tail: vec!["boom".into()] });
    expect![[r#"
        shop  v7
          http://shop.localhost:8080
          web     1 of 1 healthy
          worker  scaled to 0  no port
          deployment d9 of v8 by ada@laptop was rolled back 3 min ago (09:56)
            shop-web-a8 did not become healthy
            | boom"#]]
    .assert_eq(&status::render(&status, Paint::Plain, &clock()));
    assert_eq!(
        status::render_all(&[], Paint::Plain, &clock()),
        "no app yet; deploy one with `rung deploy DIR`"
    );
}

#[test]
fn instances_are_listed_with_what_is_wrong() {
    let all = [instance("shop-web-a7", InstanceState::Healthy), crashing()];
    expect![[r#"
        INSTANCE     RELEASE  STATE          SINCE      REQUESTS  ADDRESS          PID   RESTARTS  WHY
        shop-web-a7  v7       healthy        3 min ago  yes       127.0.0.1:20001  4711
        shop-web-a8  v7       crash looping  42 s ago             127.0.0.1:20001        5         exited with code 1"#]]
    .assert_eq(&instances::render(&all, instances::Place::Known, Paint::Plain, &clock()));
}

#[test]
fn where_instances_are_is_told_when_there_are_several_machines() {
    let mut all = [instance("shop-web-a7", InstanceState::Healthy)];
    assert_eq!(instances::Place::of(&all, 1), instances::Place::Known);
    assert_eq!(
        instances::Place::of(&all, 3),
        instances::Place::Shown,
        "one instance, and three machines that it may be on"
    );
    all[0].node = NodeId::new("web-2").unwrap();
    let elsewhere = [all[0].clone(), instance("shop-web-a8", InstanceState::Healthy)];
    assert_eq!(instances::Place::of(&elsewhere, 0), instances::Place::Shown, "whoever may not see the nodes");
    expect![[r#"
        INSTANCE     NODE   RELEASE  STATE    SINCE      REQUESTS  ADDRESS          PID
        shop-web-a7  web-2  v7       healthy  3 min ago  yes       127.0.0.1:20001  4711"#]]
    .assert_eq(&instances::render(&all, instances::Place::Shown, Paint::Plain, &clock()));
}

#[test]
fn releases_are_listed_with_who_and_why() {
    let release = |number, current, available| ReleaseListing {
        number: ReleaseNumber(number),
        current,
        at: at(-(number as i64) * 40_000),
        by: "ada@laptop".into(),
        reason: "deploy".into(),
        note: (number == 7).then(|| "new cart".into()),
        origin: None,
        artifact: Digest::new(format!("sha256:{}", "a".repeat(64))).unwrap(),
        available,
        waits: false,
        failed: number == 4,
        cancelled: false,
        deploying: number == 8,
    };
    expect![[r#"
        RELEASE  STATE      MADE                       BY          WHY     NOTE
        v8       deploying  3 days ago (Feb 28 17:06)  ada@laptop  deploy
        v7       current    3 days ago (Mar 1 04:13)   ada@laptop  deploy  new cart
        v6                  2 days ago (Mar 1 15:20)   ada@laptop  deploy
        v5       pruned     2 days ago (Mar 2 02:26)   ada@laptop  deploy
        v4       failed     44 h ago (Mar 2 13:33)     ada@laptop  deploy"#]]
    .assert_eq(&releases::render(
        &[
            release(8, false, false),
            release(7, true, true),
            release(6, false, true),
            release(5, false, false),
            release(4, false, false),
        ],
        Paint::Plain,
        &clock(),
    ));
}

fn timeline(entries: &[(i64, Phase, &str)]) -> Vec<TimelineEntry> {
    let entry = |&(seconds, phase, message): &(i64, Phase, &str)| {
        TimelineEntry::milestone(at(seconds), phase, message)
    };
    entries.iter().map(entry).collect()
}

fn deployment(phase: Phase, entries: &[(i64, Phase, &str)]) -> Deployment {
    Deployment {
        app: app(),
        number: DeploymentNumber(9),
        kind: DeploymentKind::Deploy,
        by: "ada@laptop".into(),
        at: at(0),
        phase,
        draft: None,
        release: Some(ReleaseNumber(8)),
        from: Some(ReleaseNumber(7)),
        run: None,
        remaining: Duration::ZERO,
        cancelled_by: None,
        trouble: None,
        timeline: timeline(entries),
        asked: Default::default(),
        runs: vec![],
        notification: None,
        rollout: None,
        aftercare: None,
    }
}

fn shown(deployment: &Deployment) -> String {
    let lines = progress::phases(deployment).into_iter().map(|line| match line.ended {
        Some(ended) => progress::phase_line(&line, ended, Paint::Plain),
        None => progress::moving_line(&line, at(20)),
    });
    std::iter::once("deploying shop".to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

#[test]
fn runs_that_go_on_are_listed_with_what_they_do() {
    let run = |id: &str, state, kind| Run {
        id: RunId::new(id).unwrap(),
        app: app(),
        kind,
        by: "ada@laptop".into(),
        at: at(-50),
        node: None,
        timeout: Duration::from_secs(60),
        cancelled: false,
        state,
    };
    let one_off = |command: &str| RunKind::OneOff {
        release: ReleaseNumber(7),
        command: command.into(),
        terminal: None,
    };
    let mut ending = run("shop.run-n2", RunState::Running { since: at(-42) }, one_off("sleep 1000\nls"));
    ending.cancelled = true;
    let migration = RunKind::Release { release: ReleaseNumber(8), command: "bin/migrate".into() };
    expect![[r#"
        RUN          WHAT             SINCE                     BY          COMMAND
        shop.run-n2  command          42 s ago, is being ended  ada@laptop  sleep 1000…
        shop.d9      release command  waits                     ada@laptop  bin/migrate"#]]
    .assert_eq(&runs::render(
        &[ending, run("shop.d9", RunState::Pending, migration)],
        Paint::Plain,
        &clock(),
    ));
    assert_eq!(runs::render(&[], Paint::Plain, &clock()), "nothing runs beside the instances");
}

#[test]
fn a_deployment_shows_one_line_a_phase() {
    let going_on = deployment(
        Phase::Rolling,
        &[
            (0, Phase::Building, "npm ci"),
            (12, Phase::Building, "npm test passed"),
            (12, Phase::Releasing, "bin/migrate"),
            (15, Phase::Rolling, "v8 is made"),
            (16, Phase::Rolling, "web: 1 of 2 healthy"),
            (17, Phase::Rolling, "worker: 1 of 1 healthy"),
            (18, Phase::Rolling, "web: 2 of 2 healthy"),
        ],
    );
    expect![[r#"
        deploying shop
          ok  built               12 s  npm test passed
          ok  release command    3.0 s
        rolling out 5.0 s: web: 2 of 2 healthy"#]]
    .assert_eq(&shown(&going_on));

    let mut done = going_on.clone();
    done.phase = Phase::Succeeded;
    done.timeline.extend(timeline(&[(18, Phase::Succeeded, "all traffic is on v8")]));
    assert!(
        shown(&done).ends_with("ok  rolled out         3.0 s  web: 2 of 2 healthy, worker: 1 of 1 healthy"),
        "{}",
        shown(&done)
    );
    expect![[r#"
        shop v8 is live at http://shop.localhost:8080 in place of v7 (17 s)
          web 1/1, worker 0/0"#]]
    .assert_eq(&progress::ending(&done, Some(&healthy_status()), Duration::from_secs(17), Paint::Plain));
}

#[test]
fn a_deployment_that_was_rolled_back_shows_where_and_why() {
    let mut reverted = deployment(
        Phase::RolledBack,
        &[
            (0, Phase::Rolling, "starting 2 instances"),
            (8, Phase::Reverting, "stopping 2 instances"),
            (9, Phase::RolledBack, "v7 goes on"),
        ],
    );
    reverted.trouble =
        Some(Trouble { reason: "shop-web-a8 exited with code 1".into(), log_tail: vec!["boom".into()] });
    expect![[r#"
        deploying shop
          XX  rolling out        8.0 s
          !!  reverted           1.0 s"#]]
    .assert_eq(&shown(&reverted));
    expect![[r#"
        shop v8 was rolled back after 9.0 s; v7 goes on
          shop-web-a8 exited with code 1
            | boom"#]]
    .assert_eq(&progress::ending(&reverted, None, Duration::from_secs(9), Paint::Plain));
}

#[test]
fn a_build_that_fails_says_that_nothing_changed() {
    let mut failed = deployment(
        Phase::Failed,
        &[(0, Phase::Building, "npm ci"), (3, Phase::Failed, "test exited with code 1")],
    );
    failed.trouble =
        Some(Trouble { reason: "test exited with code 1".into(), log_tail: vec!["1 failed".into()] });
    assert_eq!(shown(&failed), "deploying shop\n  XX  building           3.0 s");
    expect![[r#"
        deploying shop failed after 3.0 s; v7 goes on
          test exited with code 1
            | 1 failed"#]]
    .assert_eq(&progress::ending(&failed, None, Duration::from_secs(3), Paint::Plain));
}

#[test]
fn secrets_are_listed_without_values_and_config_as_a_shell_reads_it() {
    let secret = |name: &str, version, required| SecretListing {
        name: SecretName::new(name).unwrap(),
        version,
        required,
        versions: Vec::new(),
    };
    let mut set = secret("API_KEY", 3, false);
    set.versions = [(3, [7, 8].as_slice()), (2, &[6])]
        .into_iter()
        .map(|(version, releases)| SecretVersion {
            version,
            at: (version == 3).then(|| clock().now - jiff::SignedDuration::from_mins(3)),
            by: (version == 3).then(|| "ada@laptop".to_owned()),
            releases: releases.iter().map(|number| ReleaseNumber(*number)).collect(),
        })
        .collect();
    let all = [set, secret("SECRET_KEY_BASE", 0, true)];
    expect![[r#"
        SECRET           VERSION  SET                BY
        API_KEY          3        3 min ago (09:57)  ada@laptop
        SECRET_KEY_BASE  not set                                 required"#]]
    .assert_eq(&config::render_secrets(&all, Paint::Plain, &clock()));
    expect![[r#"
        VERSION  STATE    SET                BY          RELEASES
        3        current  3 min ago (09:57)  ada@laptop  v7 v8
        2                                                v6"#]]
    .assert_eq(&config::render_versions(&all[0], Paint::Plain, &clock()));
    let set = BTreeMap::from([
        ("LOG_LEVEL".to_owned(), "info".to_owned()),
        ("TITLE".to_owned(), "My Shop".to_owned()),
    ]);
    assert_eq!(config::render(&set), "LOG_LEVEL=info\nTITLE='My Shop'");
}

#[test]
fn doctor_says_what_is_not_guaranteed() {
    let report = DoctorReport {
        version: "0.1.0".into(),
        checks: vec![
            DoctorCheck {
                name: "store".into(),
                state: DoctorState::Fine,
                detail: "sqlite, 1.2 MB".into(),
                hint: None,
            },
            DoctorCheck {
                name: "disk".into(),
                state: DoctorState::Broken,
                detail: "100 KB left in /var/lib/rung".into(),
                hint: Some("make room; nothing can be deployed".into()),
            },
        ],
        isolation: BTreeMap::from([(
            NodeId::new("laptop").unwrap(),
            vec![
                IsolationFact { name: "pid namespace".into(), available: true, consequence: String::new() },
                IsolationFact {
                    name: "memory limit".into(),
                    available: false,
                    consequence: "`memory` is not enforced; start rung as root".into(),
                },
            ],
        )]),
    };
    expect![[r#"
        rung 0.1.0
          ok  store: sqlite, 1.2 MB
          XX  disk: 100 KB left in /var/lib/rung
              make room; nothing can be deployed

        isolation of instances on laptop
          ok  pid namespace
          --  memory limit: `memory` is not enforced; start rung as root"#]]
    .assert_eq(&doctor::render(&report, Paint::Plain));
    assert!(doctor::is_broken(&report));
}

#[test]
fn log_lines_and_events_say_when_and_who() {
    let mut line = LogLine {
        at: at(-60),
        source: "shop-web-a7".into(),
        service: None,
        stream: Stream::Stdout,
        text: "GET /\u{7}".into(),
        partial: false,
    };
    assert_eq!(stream::log_line(&line, Paint::Plain, &clock()), "09:59:00 shop-web-a7 GET /\u{fffd}");
    line.stream = Stream::Rung;
    line.text = "120 lines were dropped".into();
    line.at = at(-86_400);
    expect!["2026-03-03 10:00:00 shop-web-a7 -- 120 lines were dropped"].assert_eq(&stream::log_line(
        &line,
        Paint::Plain,
        &clock(),
    ));
    let record = EventRecord {
        sequence: 1,
        at: at(-1),
        server: None,
        sequence_there: None,
        app: Some(app()),
        kind: "instance_exited".into(),
        message: "shop-web-a7 was killed by signal 9".into(),
    };
    expect!["09:59:59 shop instance_exited: shop-web-a7 was killed by signal 9"].assert_eq(&stream::event(
        &record,
        Paint::Plain,
        &clock(),
    ));
}

#[test]
fn colours_go_around_words_and_columns_still_line_up() {
    let colored = instances::render(
        &[instance("shop-web-a7", InstanceState::Healthy)],
        instances::Place::Known,
        Paint::Color,
        &clock(),
    );
    let plain = instances::render(
        &[instance("shop-web-a7", InstanceState::Healthy)],
        instances::Place::Known,
        Paint::Plain,
        &clock(),
    );
    assert!(colored.contains("\u{1b}[32mhealthy\u{1b}[0m"), "{colored:?}");
    assert_eq!(console::strip_ansi_codes(&colored), plain);
}

#[test]
fn sizes_and_spans_are_short() {
    assert_eq!(
        [bytes(12), bytes(34_500), bytes(1_230_000), bytes(512_000_000)],
        ["12 bytes", "34.5 KB", "1.2 MB", "512 MB"]
    );
    let spans = [250, 12_400, 125_000, 7_260_000].map(|ms| time::span(Duration::from_millis(ms)));
    assert_eq!(spans, ["0.2 s", "12 s", "2 min 5 s", "2 h 1 min"]);
    assert_eq!(clock().since(at(5)), "just now", "the server's clock is ahead");
}

mod jobs {
    use rung_api::wire::JobListing;
    use rung_model::job::Paused;
    use rung_model::{JobName, JobRun, Run, RunId, RunKind, RunOutcome, RunState, Schedule, Zone};

    use super::*;

    fn run(id: &str, scheduled: Option<Timestamp>, outcome: Option<RunOutcome>) -> Run {
        let begun = scheduled.unwrap_or_else(|| at(-100));
        let ran = !matches!(outcome, Some(RunOutcome::Skipped { .. }));
        Run {
            id: RunId::new(id).unwrap(),
            app: app(),
            kind: RunKind::Job {
                release: ReleaseNumber(7),
                run: JobRun {
                    job: JobName::new("report").unwrap(),
                    scheduled,
                    through: None,
                    started: ran.then_some(begun),
                    attempt: 1,
                    retries_left: 0,
                    retry_after: Duration::from_secs(10),
                },
                command: "bin/report".into(),
                env: BTreeMap::new(),
            },
            by: if scheduled.is_some() { "schedule".into() } else { "ada@laptop".into() },
            at: begun,
            node: ran.then(|| NodeId::new("laptop").unwrap()),
            timeout: Duration::from_secs(60),
            cancelled: false,
            state: match outcome {
                Some(outcome) => RunState::Ended { at: begun + 42.seconds(), outcome },
                None => RunState::Running { since: begun },
            },
        }
    }

    fn listing(name: &str, schedule: Option<&str>, last: Option<Run>) -> JobListing {
        JobListing {
            name: JobName::new(name).unwrap(),
            schedule: schedule.map(|text| Schedule::new(text).unwrap()),
            timezone: Zone::new("Europe/Vienna").unwrap(),
            command: "bin/report".into(),
            paused: None,
            pinned: None,
            next: schedule.map(|_| at(60_000)).into_iter().collect(),
            last,
        }
    }

    fn succeeded() -> Option<RunOutcome> {
        Some(RunOutcome::Succeeded { artifact: None })
    }

    fn failed(reason: &str) -> Option<RunOutcome> {
        Some(RunOutcome::Failed { reason: reason.into(), exit_code: Some(3), log_tail: Vec::new() })
    }

    #[test]
    fn the_list_says_when_each_is_due_and_what_came_of_it_last() {
        let last = run("shop.report-1", Some(at(-26_000)), failed("exited with code 3"));
        let paused = Some(Paused { since: at(-300), by: "bob".into() });
        let pinned = Some(ReleaseNumber(6));
        let jobs = [
            listing("report", Some("0 3 * * *"), Some(last)),
            JobListing { paused, pinned, ..listing("sweep", Some("@hourly"), None) },
            listing("import", None, Some(run("shop.import-n1", None, succeeded()))),
        ];
        expect![[r#"
            JOB     SCHEDULE   ZONE           NEXT                     LAST                         RELEASE
            report  0 3 * * *  Europe/Vienna  in 16 h (Mar 5 02:40)    failed 7 h ago (02:46)
            sweep   @hourly    Europe/Vienna  paused by bob 5 min ago  never ran                    pinned to v6
            import                            on demand                succeeded 100 s ago (09:58)"#]].assert_eq(&super::super::jobs::render(&jobs, Paint::Plain, &clock()));
        expect!["the app has no jobs; they are written `[jobs.<name>]` in rung.toml"]
            .assert_eq(&super::super::jobs::render(&[], Paint::Plain, &clock()));
    }

    #[test]
    fn the_history_has_every_time_with_what_came_of_it() {
        let skipped = |reason: &str| Some(RunOutcome::Skipped { reason: reason.into() });
        let mut retry = run("shop.report-2-try2", Some(at(-7000)), succeeded());
        let mut missed = run("shop.report-0", Some(at(-600_000)), skipped("it was paused by ada@laptop"));
        if let RunKind::Job { run, .. } = &mut retry.kind {
            run.attempt = 2;
        }
        if let RunKind::Job { run, .. } = &mut missed.kind {
            run.through = Some(at(-90_000));
        }
        let nowhere =
            "no node has room for 64 GB: laptop has 12 GB free of 16 GB, and desktop 28 GB free of 32 GB";
        let runs = [
            run("shop.report-n1", None, None),
            run("shop.report-3", Some(at(-3600)), skipped("the run before it still goes on")),
            retry,
            run("shop.report-2", Some(at(-7000)), failed("exited with code 3")),
            run("shop.report-1", Some(at(-90_000)), Some(RunOutcome::Cancelled)),
            run("shop.report-0-try2", Some(at(-90_000)), failed(nowhere)),
            missed,
        ];
        expect![[r#"
            RUN                 FOR                                         OUTCOME    TOOK   RELEASE  NODE    BY          WHY
            shop.report-n1      on demand                                   running    100 s  v7       laptop  ada@laptop
            shop.report-3       09:00:00                                    skipped                            schedule    the run before it still goes on
            shop.report-2-try2  08:03:20, try 2                             succeeded  42 s   v7       laptop  schedule
            shop.report-2       08:03:20                                    failed     42 s   v7       laptop  schedule    exited with code 3
            shop.report-1       2026-03-03 09:00:00                         cancelled  42 s   v7       laptop  schedule
            shop.report-0-try2  2026-03-03 09:00:00                         failed     42 s   v7       laptop  schedule    no node has room for 64 GB: laptop has 12 GB free of 16 GB, …
            shop.report-0       2026-02-25 11:20:00 to 2026-03-03 09:00:00  skipped                            schedule    it was paused by ada@laptop

            shop.report-0-try2
              no node has room for 64 GB: laptop has 12 GB free of 16 GB, and desktop 28 GB free of 32 GB"#]].assert_eq(&super::super::jobs::history(&runs, Paint::Plain, &clock()));
        expect!["it never ran"].assert_eq(&super::super::jobs::history(&[], Paint::Plain, &clock()));
    }
}
