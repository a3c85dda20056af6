//! The machine as data: stories, and properties over whatever may happen.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rung_model::appfile::{Check, Health, Service};
use rung_model::routes::Hold;
use rung_model::{
    AppFile, AppName, AssignedInstance, Assignment, DeploymentNumber, Digest, Generation, InstanceId,
    InstanceState, Intent, NodeId, Observed, Release, ReleaseNumber, ServiceName,
};

use super::{
    Cause, Converge, Effect, Event, ExitKind, Exited, Found, FoundLife, Now, PortChoice, ProbeOutcome,
};

fn id(name: &str) -> InstanceId {
    InstanceId::new(name).unwrap()
}

fn node() -> NodeId {
    NodeId::new("here").unwrap()
}

fn digest() -> Digest {
    Digest::new(format!("sha256:{}", "a".repeat(64))).unwrap()
}

fn release(check: Check) -> Release {
    let service = Service {
        command: Some("serve".into()),
        port: true,
        image_port: None,
        instances: 1,
        exclusive: false,
        memory_bytes: None,
        cpu_millis: None,
        health: Health {
            check,
            grace: Duration::from_secs(5),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            unhealthy_after: 2,
            restart_after: 4,
        },
        drain: Duration::from_secs(1),
        stop_grace: Duration::from_secs(10),
        response_timeout: Duration::from_secs(10),
        protocol: rung_model::Protocol::Http1,
        hold: Hold { max_requests: 1, max_time: Duration::from_secs(1) },
        mounts: BTreeMap::new(),
        place: Default::default(),
        allow: Vec::new(),
    };
    // By way of the wire, where what is not said has its default.
    let file = serde_json::json!({
        "app": "shop",
        "deploy": { "release": null, "release_timeout_ms": 60_000, "deadline_ms": 60_000 },
        "services": { "web": service },
    });
    let file: AppFile = serde_json::from_value(file).unwrap();
    Release {
        app: AppName::new("shop").unwrap(),
        number: ReleaseNumber(1),
        artifact: digest(),
        source: None,
        file,
        config: BTreeMap::new(),
        secrets: BTreeMap::new(),
        at: Timestamp::UNIX_EPOCH,
        by: "test".into(),
        reason: "deploy".into(),
        note: None,
        provenance: Default::default(),
    }
}

fn assigned(intent: Intent) -> AssignedInstance {
    AssignedInstance {
        app: AppName::new("shop").unwrap(),
        service: ServiceName::new("web").unwrap(),
        release: ReleaseNumber(1),
        deployment: DeploymentNumber(1),
        intent,
        fence: None,
        making_way: None,
    }
}

/// A machine with its clock; remembers everything that it asked for.
struct Bench {
    machine: Converge,
    now: Duration,
    generation: u64,
    effects: Vec<Effect>,
}

impl Bench {
    fn new() -> Self {
        let machine = Converge::new(node(), Timestamp::UNIX_EPOCH);
        Self { machine, now: Duration::from_secs(1000), generation: 0, effects: Vec::new() }
    }

    /// Release and artifact are here, and it has begun.
    fn ready() -> Self {
        let mut bench = Self::new();
        bench.tell(Event::Release(Box::new(release(Check::Tcp))));
        bench.tell(Event::Artifact { digest: digest() });
        bench.tell(Event::Begin);
        bench
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        let now = Now { elapsed: self.now, wall: Timestamp::UNIX_EPOCH };
        let effects = self.machine.step(event, now);
        self.effects.extend(effects.iter().cloned());
        effects
    }

    fn assign(&mut self, intents: &[(&str, Intent)]) -> Vec<Effect> {
        self.generation += 1;
        let mut assignment = Assignment::empty(node());
        assignment.generation = Generation::new(1, self.generation);
        assignment.instances = intents.iter().map(|(name, intent)| (id(name), assigned(*intent))).collect();
        self.tell(Event::Assigned(assignment))
    }

    fn wait(&mut self, duration: Duration) -> Vec<Effect> {
        self.now += duration;
        self.tell(Event::Tick)
    }

    fn start(&mut self, attempt: u32) -> Vec<Effect> {
        self.tell(Event::Started { instance: id("a1"), attempt, pid: 7, port: Some(20_000) })
    }

    fn probe(&mut self, attempt: u32, outcome: ProbeOutcome) -> Vec<Effect> {
        self.tell(Event::Probed { instance: id("a1"), attempt, outcome })
    }

    fn fail(&mut self, attempt: u32) -> Vec<Effect> {
        self.probe(attempt, ProbeOutcome::Failed { reason: "status 500".into(), log_tail: Vec::new() })
    }

    fn exit(&mut self, attempt: u32) -> Vec<Effect> {
        self.exit_as(attempt, "exited with code 3", ExitKind::Ended)
    }

    fn exit_as(&mut self, attempt: u32, reason: &str, kind: ExitKind) -> Vec<Effect> {
        let log_tail = vec!["last words".into()];
        self.tell(Event::Exited(Exited {
            instance: id("a1"),
            attempt,
            reason: reason.into(),
            kind,
            log_tail,
        }))
    }

    fn healthy() -> Self {
        let mut bench = Self::ready();
        bench.assign(&[("a1", Intent::Run)]);
        bench.start(1);
        bench.probe(1, ProbeOutcome::Passed);
        assert_eq!(bench.state(), InstanceState::Healthy);
        bench
    }

    fn reason(&self) -> Option<String> {
        self.machine.observed().instances[&id("a1")].reason.clone()
    }

    fn state(&self) -> InstanceState {
        self.machine.observed().instances[&id("a1")].state
    }

    fn exits(&self) -> u32 {
        self.machine.observed().instances[&id("a1")].exits
    }
}

fn launches(effects: &[Effect]) -> Vec<u32> {
    effects
        .iter()
        .filter_map(|e| if let Effect::Launch { attempt, .. } = e { Some(*attempt) } else { None })
        .collect()
}

fn launched(effects: &[Effect]) -> Vec<String> {
    let launched = effects.iter().filter_map(|effect| match effect {
        Effect::Launch { instance, .. } => Some(instance.to_string()),
        _ => None,
    });
    launched.collect()
}

fn reported(effects: &[Effect]) -> Option<&Observed> {
    effects.iter().find_map(|e| if let Effect::Report { observed } = e { Some(&**observed) } else { None })
}

fn stops(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Stop { .. })).count()
}

#[test]
fn an_instance_is_fetched_launched_probed_and_reported() {
    let mut bench = Bench::new();
    bench.tell(Event::Begin);
    let effects = bench.assign(&[("a1", Intent::Run)]);
    assert!(effects.iter().any(|e| matches!(e, Effect::FetchRelease { .. })), "{effects:?}");
    let effects = bench.tell(Event::Release(Box::new(release(Check::Tcp))));
    assert!(effects.contains(&Effect::FetchArtifact { digest: digest() }), "{effects:?}");
    let effects = bench.tell(Event::Artifact { digest: digest() });
    assert_eq!(launches(&effects), [1]);
    let effects = bench.start(1);
    assert!(effects.iter().any(|e| matches!(e, Effect::Probe { attempt: 1, .. })), "{effects:?}");
    let effects = bench.probe(1, ProbeOutcome::Passed);
    let observed = reported(&effects).expect("health is reported at once");
    assert_eq!(observed.instances[&id("a1")].state, InstanceState::Healthy);
}

#[test]
fn an_older_assignment_is_refused() {
    let mut bench = Bench::healthy();
    let mut older = Assignment::empty(node());
    older.generation = Generation::ZERO;
    let effects = bench.tell(Event::Assigned(older));
    assert_eq!(stops(&effects), 0, "an old assignment stopped an instance");
    assert_eq!(bench.state(), InstanceState::Healthy);
}

#[test]
fn what_was_taken_off_the_node_unheard_ends_before_anything_else_is_started() {
    let mut bench = Bench::healthy();
    // The node was not heard of for a while: `a1` was replaced elsewhere, and its room was given to `a2`.
    let effects = bench.assign(&[("a2", Intent::Run)]);
    assert_eq!((stops(&effects), launched(&effects)), (1, vec![]), "{effects:?}");
    let effects = bench.wait(Duration::from_secs(3));
    assert_eq!(launched(&effects), Vec::<String>::new(), "a1 may run still");
    let effects = bench.exit(1);
    assert_eq!(launched(&effects), ["a2"], "a1 has ended, and a2 is not started: {effects:?}");
}

#[test]
fn what_can_not_be_ended_is_not_waited_for_for_ever() {
    let mut bench = Bench::healthy();
    bench.assign(&[("a2", Intent::Run)]);
    let mut effects = bench.wait(Duration::from_secs(21));
    effects.extend(bench.wait(Duration::from_secs(10)));
    assert_eq!(launched(&effects), ["a2"], "{effects:?}");
}

#[test]
fn the_first_restart_is_at_once_and_five_exits_are_a_crash_loop() {
    let mut bench = Bench::healthy();
    let effects = bench.exit(1);
    assert_eq!(launches(&effects), [2], "the first restart waited");
    assert_eq!(reported(&effects).unwrap().instances[&id("a1")].log_tail, ["last words"]);
    for attempt in 2..=5 {
        bench.start(attempt);
        let effects = bench.exit(attempt);
        assert!(reported(&effects).is_some(), "exit {attempt} was not reported at once");
        assert_eq!(launches(&effects), [0_u32; 0], "restart {attempt} did not wait");
        if attempt < 5 {
            assert_eq!(launches(&bench.wait(Duration::from_secs(2))), [attempt + 1]);
        }
    }
    assert_eq!(bench.state(), InstanceState::CrashLooping);
    assert_eq!(launches(&bench.wait(Duration::from_secs(20))), [0_u32; 0], "it goes on too fast");
    assert_eq!(launches(&bench.wait(Duration::from_secs(20))), [6], "it does not go on");
}

#[test]
fn a_command_that_ends_by_itself_is_told_to_stay_and_one_that_was_asked_to_end_is_not() {
    let mut bench = Bench::healthy();
    bench.exit_as(1, "exited with code 0", ExitKind::Finished);
    let reason = bench.reason().expect("it says why it is not there");
    assert!(
        reason.starts_with("exited with code 0: ") && reason.contains("stays in the foreground"),
        "{reason}"
    );
    let mut bench = Bench::healthy();
    bench.assign(&[("a1", Intent::Stop)]);
    bench.exit_as(1, "exited with code 0", ExitKind::Finished);
    assert_eq!((bench.state(), bench.reason()), (InstanceState::Stopped, Some("exited with code 0".into())));
}

#[test]
fn a_healthy_minute_forgives() {
    let mut bench = Bench::healthy();
    for attempt in 1..20 {
        bench.now += Duration::from_secs(61);
        assert_eq!(launches(&bench.exit(attempt)), [attempt + 1], "a crash a minute is a crash loop");
        bench.start(attempt + 1);
        bench.probe(attempt + 1, ProbeOutcome::Passed);
    }
}

#[test]
fn a_life_that_was_healthy_for_longer_than_the_pause_is_followed_at_once() {
    let mut bench = Bench::healthy();
    for attempt in 1..=4 {
        bench.now += Duration::from_secs(1);
        assert_eq!(launches(&bench.exit(attempt)), [attempt + 1], "kill {attempt} was followed by a pause");
        bench.start(attempt + 1);
        bench.probe(attempt + 1, ProbeOutcome::Passed);
    }
    bench.now += Duration::from_secs(1);
    assert_eq!(launches(&bench.exit(5)), [0_u32; 0], "a crash every second is not a crash loop");
}

#[test]
fn failures_un_route_first_and_restart_later() {
    let mut bench = Bench::healthy();
    bench.fail(1);
    assert_eq!(bench.state(), InstanceState::Healthy, "one failure is none");
    let effects = bench.fail(1);
    assert_eq!(reported(&effects).unwrap().instances[&id("a1")].state, InstanceState::Unhealthy);
    bench.fail(1);
    assert_eq!(stops(&bench.fail(1)), 1, "four failures do not restart it");
    let effects = bench.exit(1);
    let reason = reported(&effects).unwrap().instances[&id("a1")].reason.clone().unwrap();
    assert!(reason.contains("unhealthy") && reason.contains("status 500"), "the reason is {reason:?}");
}

#[test]
fn failures_before_the_grace_is_over_do_not_count() {
    let mut bench = Bench::ready();
    bench.assign(&[("a1", Intent::Run)]);
    bench.start(1);
    for _ in 0..100 {
        bench.now += Duration::from_millis(40);
        assert_eq!(stops(&bench.fail(1)), 0);
    }
    bench.now += Duration::from_secs(2);
    let stopped: usize = (0..4).map(|_| stops(&bench.fail(1))).sum();
    assert_eq!(stopped, 1);
}

#[test]
fn adopted_instances_are_proved_before_the_first_report() {
    let mut bench = Bench::new();
    bench.tell(Event::Release(Box::new(release(Check::Tcp))));
    bench.tell(Event::Artifact { digest: digest() });
    let life = FoundLife::Alive { pid: 7, running_for: Duration::from_secs(100) };
    bench.tell(Event::Found(Found {
        instance: id("a1"),
        assigned: assigned(Intent::Run),
        attempt: 3,
        port: Some(20_000),
        life,
    }));
    let effects = bench.tell(Event::Begin);
    assert!(reported(&effects).is_none(), "it is reported before it was proved");
    assert!(effects.iter().any(|e| matches!(e, Effect::Probe { attempt: 3, .. })), "{effects:?}");
    let effects = bench.probe(3, ProbeOutcome::Passed);
    let a1 = reported(&effects).expect("it was proved").instances[&id("a1")].clone();
    assert_eq!((a1.state, a1.pid, a1.restarts), (InstanceState::Healthy, Some(7), 2));
    assert_eq!(launches(&bench.effects), [0_u32; 0], "it was restarted");
}

/// On a machine that is so busy, a kill of the agent would otherwise un-route everything that it finds again.
#[test]
fn what_has_not_come_to_its_turn_yet_is_not_reported_as_unproved_and_what_fails_its_check_is() {
    let adopted = || {
        let mut bench = Bench::new();
        bench.tell(Event::Release(Box::new(release(Check::Tcp))));
        bench.tell(Event::Artifact { digest: digest() });
        let life = FoundLife::Alive { pid: 7, running_for: Duration::from_secs(100) };
        let found = Found {
            instance: id("a1"),
            assigned: assigned(Intent::Run),
            attempt: 3,
            port: Some(20_000),
            life,
        };
        bench.tell(Event::Found(found));
        bench.tell(Event::Begin);
        bench
    };
    let mut busy = adopted();
    assert!(reported(&busy.wait(Duration::from_secs(5))).is_none(), "it is reported before it was asked");
    let after = busy.probe(3, ProbeOutcome::Passed);
    let a1 = &reported(&after).expect("it was proved").instances[&id("a1")];
    assert_eq!(a1.state, InstanceState::Healthy);

    let mut sick = adopted();
    let failed = ProbeOutcome::Failed { reason: "refused".into(), log_tail: Vec::new() };
    let a1 = &reported(&sick.probe(3, failed)).expect("its check has failed").instances[&id("a1")].clone();
    assert_ne!(a1.state, InstanceState::Healthy);
}

#[test]
fn without_an_assignment_what_runs_goes_on() {
    let mut bench = Bench::new();
    let life = FoundLife::Alive { pid: 7, running_for: Duration::ZERO };
    let found = Found { instance: id("a1"), assigned: assigned(Intent::Run), attempt: 1, port: None, life };
    bench.tell(Event::Found(found));
    bench.tell(Event::Begin);
    for _ in 0..100 {
        bench.wait(Duration::from_secs(1));
    }
    assert_eq!(stops(&bench.effects), 0);
    assert_eq!(stops(&bench.assign(&[])), 1, "an instance that is not in the assignment is not stopped");
    assert!(bench.exit(1).contains(&Effect::Forget { instance: id("a1") }));
}

#[test]
fn a_taken_port_is_left_at_once() {
    let mut bench = Bench::ready();
    bench.assign(&[("a1", Intent::Run)]);
    bench.start(1);
    let effects = bench.probe(1, ProbeOutcome::PortTaken { reason: "port 20000 was taken".into() });
    assert_eq!(stops(&effects), 1);
    let effects = bench.exit(1);
    assert_eq!(bench.exits(), 1, "it has not stayed up");
    let new = effects.iter().any(|e| matches!(e, Effect::Launch { port: PortChoice::New, .. }));
    assert!(new, "it goes back to the taken port: {effects:?}");
}

#[test]
fn a_shutdown_stops_everything_and_starts_nothing() {
    let mut bench = Bench::healthy();
    assert_eq!(stops(&bench.tell(Event::ShutDown)), 1);
    assert!(!bench.machine.is_quiet());
    let effects = bench.exit(1);
    assert!(bench.machine.is_quiet());
    assert_eq!(bench.exits(), 0, "it did not end by itself");
    assert_ne!(bench.state(), InstanceState::Stopped, "the server would take it for stopped by intent");
    assert_eq!(launches(&effects), [0_u32; 0]);
    assert!(bench.machine.wake_at().is_none_or(|at| at > bench.now), "it spins");
}

#[test]
fn an_artifact_that_is_broken_is_not_fetched_for_ever() {
    let mut bench = Bench::new();
    bench.tell(Event::Release(Box::new(release(Check::Tcp))));
    bench.tell(Event::Begin);
    bench.assign(&[("a1", Intent::Run)]);
    let failed = |cause| Event::ArtifactFailed { digest: digest(), reason: "torn".into(), cause };
    bench.tell(failed(Cause::Passing));
    assert_eq!(bench.state(), InstanceState::Preparing);
    let effects = bench.wait(Duration::from_secs(3));
    assert!(effects.contains(&Effect::FetchArtifact { digest: digest() }), "it is not tried again");
    bench.tell(failed(Cause::Lasting));
    assert_eq!(bench.state(), InstanceState::Failed);
    let effects = bench.wait(Duration::from_secs(60));
    assert!(!effects.contains(&Effect::FetchArtifact { digest: digest() }), "it is fetched again and again");
    let effects = bench.assign(&[("a1", Intent::Run), ("a2", Intent::Run)]);
    let is_asked = effects.contains(&Effect::FetchArtifact { digest: digest() });
    assert!(is_asked, "an instance of a later deploy, which stored it anew, gets what was wrong before");
}

/// What may happen at any moment, in any order, late, twice or never.
#[derive(Debug, Clone)]
enum Happening {
    Assign(Option<Intent>),
    Old,
    Started,
    StartFailed,
    Probed(bool),
    Exited,
    Stale,
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        prop_oneof![Just(Some(Intent::Run)), Just(Some(Intent::Run)), Just(Some(Intent::Stop)), Just(None)]
            .prop_map(Happening::Assign),
        Just(Happening::Old),
        Just(Happening::Started),
        Just(Happening::StartFailed),
        any::<bool>().prop_map(Happening::Probed),
        Just(Happening::Exited),
        Just(Happening::Stale),
        (1..40_000_u64).prop_map(Happening::Wait),
    ]
}

/// A world of one instance that can only do what a real one can: a process lives from its start to its exit.
#[derive(Debug, Default)]
struct World {
    launched: Option<u32>,
    running: Option<u32>,
    highest: u32,
}

impl World {
    fn see(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Launch { attempt, .. } => {
                    assert!(
                        self.launched.is_none() && self.running.is_none(),
                        "two lives at one time: {self:?}"
                    );
                    assert!(*attempt > self.highest, "an attempt was used twice");
                    (self.launched, self.highest) = (Some(*attempt), *attempt);
                }
                Effect::Forget { .. } => {
                    assert!(self.launched.is_none() && self.running.is_none(), "forgotten while it lives");
                    self.highest = 0;
                }
                Effect::Probe { attempt, .. } | Effect::Stop { attempt, .. } => {
                    assert_eq!(Some(*attempt), self.running, "an effect for a life that is not");
                }
                _ => {}
            }
        }
    }

    fn happen(&mut self, bench: &mut Bench, happening: &Happening) {
        let effects = match happening {
            Happening::Assign(intent) => {
                bench.assign(&intent.map(|intent| ("a1", intent)).into_iter().collect::<Vec<_>>())
            }
            Happening::Old => bench.tell(Event::Assigned(Assignment {
                generation: Generation::ZERO,
                ..Assignment::empty(node())
            })),
            Happening::Started => {
                let Some(attempt) = self.launched.take() else { return };
                self.running = Some(attempt);
                bench.start(attempt)
            }
            Happening::StartFailed => {
                let Some(attempt) = self.launched.take() else { return };
                bench.tell(Event::StartFailed { instance: id("a1"), attempt, reason: "no disk".into() })
            }
            Happening::Probed(true) => bench.probe(self.highest, ProbeOutcome::Passed),
            Happening::Probed(false) => bench.fail(self.highest),
            Happening::Exited => {
                let Some(attempt) = self.running.take() else { return };
                bench.exit(attempt)
            }
            Happening::Stale => bench.exit(self.highest.saturating_sub(1)),
            Happening::Wait(ms) => bench.wait(Duration::from_millis(*ms)),
        };
        self.see(&effects);
        self.answer_fetches(bench, &effects);
    }

    fn answer_fetches(&mut self, bench: &mut Bench, effects: &[Effect]) {
        for effect in effects {
            let event = match effect {
                Effect::FetchRelease { .. } => Event::Release(Box::new(release(Check::Tcp))),
                Effect::FetchArtifact { digest } => Event::Artifact { digest: digest.clone() },
                _ => continue,
            };
            let effects = bench.tell(event);
            self.see(&effects);
            self.answer_fetches(bench, &effects);
        }
    }

    /// No more faults: starts succeed, stops are obeyed, probes pass.
    fn settle(&mut self, bench: &mut Bench) {
        for _ in 0..200 {
            self.happen(bench, &Happening::Started);
            let stopping =
                bench.machine.observed().instances.values().any(|i| i.state == InstanceState::Stopping);
            if stopping && self.running.is_some() {
                self.happen(bench, &Happening::Exited);
            } else if self.running.is_some() {
                self.happen(bench, &Happening::Probed(true));
            }
            self.happen(bench, &Happening::Wait(1000));
        }
    }
}

proptest! {
    /// Never two lives of one instance, no effect for a life that is not, attempts only rise.
    #[test]
    fn one_life_at_a_time_whatever_happens(happenings in prop::collection::vec(happening(), 0..60)) {
        let (mut bench, mut world) = (Bench::ready(), World::default());
        for happening in &happenings {
            world.happen(&mut bench, happening);
        }
    }

    /// When faults stop, it converges: running and healthy, stopped, or forgotten, as the assignment says.
    #[test]
    fn it_converges_when_faults_stop(
        happenings in prop::collection::vec(happening(), 0..60),
        last in prop_oneof![Just(Some(Intent::Run)), Just(Some(Intent::Stop)), Just(None)],
    ) {
        let (mut bench, mut world) = (Bench::ready(), World::default());
        for happening in &happenings {
            world.happen(&mut bench, happening);
        }
        world.happen(&mut bench, &Happening::Assign(last));
        world.settle(&mut bench);
        let observed = bench.machine.observed();
        let state = observed.instances.get(&id("a1")).map(|instance| instance.state);
        match last {
            Some(Intent::Run) => prop_assert_eq!(state, Some(InstanceState::Healthy)),
            Some(Intent::Stop) => prop_assert_eq!(state, Some(InstanceState::Stopped)),
            None => prop_assert_eq!(state, None),
        }
        let last_report = bench.effects.iter().rev().find_map(|effect| match effect {
            Effect::Report { observed } => Some(observed.instances.clone()),
            _ => None,
        });
        prop_assert_eq!(last_report, Some(observed.instances), "the server does not know how it ended");
    }

    /// A machine that wants to be woken in the past, after it was just woken, would spin.
    #[test]
    fn it_never_spins(happenings in prop::collection::vec(happening(), 0..60)) {
        let (mut bench, mut world) = (Bench::ready(), World::default());
        for happening in &happenings {
            world.happen(&mut bench, happening);
            let effects = bench.tell(Event::Tick);
            world.see(&effects);
            world.answer_fetches(&mut bench, &effects);
            let wake = bench.machine.wake_at();
            prop_assert!(wake.is_none_or(|at| at > bench.now), "woken at {:?}, wants {:?}", bench.now, wake);
        }
    }
}
