//! The applications of the stories: what they are made of, and how they behave.

use std::time::Duration;

use fastrand::Rng;
use rung_model::appfile::rollout::{AbortIf, CanaryStep, Share, Strategy, WithoutTraffic};
use rung_model::appfile::{self, Check, Job, RolloutPolicy, Service};
use rung_model::{AppFile, AppName, CatchUp, Digest, JobName, Overlap, ServiceName};

/// How the processes of a command behave. Written as the command: `serve ready=120 dies=never stop=50`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// From the start until it is healthy; `None`: never.
    pub ready: Option<Duration>,
    /// From the start until it exits by itself; `None`: never.
    pub dies: Option<Duration>,
    /// From SIGTERM to its end; longer than the grace is a kill.
    pub stop: Duration,
    /// Of a hundred requests so many are answered with an error.
    pub errs: u32,
}

impl Behaviour {
    pub fn command(&self) -> String {
        let ms =
            |time: Option<Duration>| time.map_or("never".to_owned(), |time| time.as_millis().to_string());
        let (ready, dies) = (ms(self.ready), ms(self.dies));
        format!("serve ready={ready} dies={dies} stop={} errs={}", self.stop.as_millis(), self.errs)
    }

    pub fn of(command: &str) -> Self {
        let value = |key: &str| {
            let word = command.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
            word.parse().ok().map(Duration::from_millis)
        };
        let errs = value("errs").map_or(0, |errs| errs.as_millis() as u32);
        Self { ready: value("ready"), dies: value("dies"), stop: value("stop").unwrap_or_default(), errs }
    }

    /// It becomes healthy and stays so.
    pub fn is_good(&self) -> bool {
        // Slower than its grace period it is restarted before it is there.
        self.ready.is_some_and(|ready| ready < Duration::from_millis(2500)) && self.dies.is_none()
    }

    fn any(rng: &mut Rng) -> Self {
        let ms = |rng: &mut Rng, range| Duration::from_millis(rng.u64(range));
        let good = Self { ready: Some(ms(rng, 0..800)), dies: None, stop: ms(rng, 0..1500), errs: 0 };
        let good = Self { errs: if rng.u32(0..4) == 0 { 40 } else { 0 }, ..good };
        match rng.u32(0..20) {
            0 | 1 => Self { dies: Some(ms(rng, 0..500)), ready: None, ..good },
            2 => Self { ready: None, ..good },
            3 => Self { ready: Some(ms(rng, 2000..9000)), ..good },
            4 => Self { stop: Duration::from_secs(60), ..good },
            5 => Self { dies: Some(ms(rng, 2000..20_000)), ..good },
            _ => good,
        }
    }
}

pub fn digest(number: u64) -> Digest {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5151;
    Digest::new(format!("sha256:{}", format!("{mixed:016x}").repeat(4))).expect("it has 64 digits")
}

pub fn service_name(name: &str) -> ServiceName {
    ServiceName::new(name).expect("the stories' names are good")
}

/// An app file with a web service, and perhaps a worker, an exclusive service, a build, a release command.
pub fn any_file(app: &AppName, rng: &mut Rng) -> AppFile {
    let text = format!("app = \"{app}\"\n[services.web]\ncommand = \"x\"\n");
    let mut file = appfile::parse("rung.toml", &text).expect("the smallest file is good");
    let web = service_name("web");
    let base = file.services[&web].clone();
    file.services.insert(web, any_service(&base, rng));
    if rng.u32(0..3) == 0 {
        let mut worker = any_service(&base, rng);
        (worker.port, worker.health.check) = (false, Check::Up);
        file.services.insert(service_name("worker"), worker);
    }
    if rng.u32(0..4) == 0 {
        let mut ledger = any_service(&base, rng);
        (ledger.exclusive, ledger.instances) = (true, 1);
        file.services.insert(service_name("ledger"), ledger);
    }
    if rng.u32(0..3) == 0 {
        file.build.command = Some(any_run(rng));
        file.build.timeout = Duration::from_secs(8);
    }
    if rng.u32(0..3) == 0 {
        file.deploy.release = Some(any_run(rng));
    }
    file.deploy.release_timeout = Duration::from_secs(6);
    file.deploy.deadline = Duration::from_secs(rng.u64(6..20));
    file.deploy.rollout = any_rollout(rng);
    if rng.u32(0..3) == 0 {
        let job = any_job(rng);
        file.jobs.insert(JobName::new("tick").expect("the stories' names are good"), job);
    }
    file
}

/// What a release must not exceed, and how soon it is judged.
const LIMITS: AbortIf = AbortIf { error_rate: Some(Share(500)), p95: None, requests: 10 };

fn any_rollout(rng: &mut Rng) -> RolloutPolicy {
    let seconds = |rng: &mut Rng, range| Duration::from_secs(rng.u64(range));
    let strategy = match rng.u32(0..6) {
        0 => Strategy::Rolling { batch: Some(rng.u32(1..3)) },
        1 => Strategy::BlueGreen,
        2 | 3 => {
            let time = (rng.u32(0..4) > 0).then(|| seconds(rng, 1..6));
            let first = CanaryStep { share: Share(rng.u32(500..4000)), time };
            let second = CanaryStep { share: Share(5000), time: Some(seconds(rng, 1..5)) };
            Strategy::Canary { steps: vec![first, second, CanaryStep { share: Share::ALL, time: None }] }
        }
        _ => Strategy::default(),
    };
    let is_judged = matches!(strategy, Strategy::Canary { .. }) || rng.bool();
    RolloutPolicy {
        strategy,
        abort_if: is_judged.then_some(LIMITS),
        without_traffic: [WithoutTraffic::Wait, WithoutTraffic::Continue, WithoutTraffic::Abort]
            [rng.usize(0..3)],
        wait_at_most: seconds(rng, 5..20),
        keep: if rng.u32(0..3) == 0 { seconds(rng, 2..20) } else { Duration::ZERO },
        watch: if is_judged && rng.bool() { seconds(rng, 2..15) } else { Duration::ZERO },
        // Where visitors judge, nothing else takes a release back: the stories of either are not mixed up.
        settle: if is_judged { Duration::ZERO } else { Duration::from_secs(10) },
        ..RolloutPolicy::default()
    }
}

fn any_job(rng: &mut Rng) -> Job {
    let text = "app = \"a\"\n[services.web]\ncommand = \"x\"\n[jobs.tick]\ncommand = \"x\"\nschedule = \"*/7 * * * * *\"\n";
    let file = appfile::parse("rung.toml", text).expect("a job with a schedule is good");
    let mut job = file.jobs.into_values().next().expect("it has one job");
    job.command = any_run(rng);
    job.overlap = [Overlap::Forbid, Overlap::Allow, Overlap::Replace][rng.usize(0..3)];
    job.catch_up = [CatchUp::None, CatchUp::Last][rng.usize(0..2)];
    job.timeout = Duration::from_secs(5);
    job
}

fn any_service(base: &Service, rng: &mut Rng) -> Service {
    let mut service = base.clone();
    service.command = Some(Behaviour::any(rng).command());
    service.instances = rng.u32(1..4);
    service.health.grace = Duration::from_secs(3);
    service.health.interval = Duration::from_secs(1);
    service.health.timeout = Duration::from_secs(1);
    service.health.unhealthy_after = 2;
    service.health.restart_after = 4;
    service.drain = Duration::from_millis(rng.u64(0..4000));
    service.stop_grace = Duration::from_millis(rng.u64(100..2000));
    service
}

/// `run takes=200 ends=good`.
fn any_run(rng: &mut Rng) -> String {
    let end = match rng.u32(0..8) {
        0 => "bad",
        1 => "never",
        _ => "good",
    };
    format!("run takes={} ends={end} nonce={}", rng.u32(10..2000), rng.u32(..))
}
