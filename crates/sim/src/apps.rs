//! The applications of the stories: what they are made of, and how they behave.

use std::time::Duration;

use fastrand::Rng;
use rung_model::appfile::{self, Check, Service};
use rung_model::{AppFile, AppName, Digest, ServiceName};

/// How the processes of a command behave. Written as the command: `serve ready=120 dies=never stop=50`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// From the start until it is healthy; `None`: never.
    pub ready: Option<Duration>,
    /// From the start until it exits by itself; `None`: never.
    pub dies: Option<Duration>,
    /// From SIGTERM to its end; longer than the grace is a kill.
    pub stop: Duration,
}

impl Behaviour {
    pub fn command(&self) -> String {
        let ms =
            |time: Option<Duration>| time.map_or("never".to_owned(), |time| time.as_millis().to_string());
        format!("serve ready={} dies={} stop={}", ms(self.ready), ms(self.dies), self.stop.as_millis())
    }

    pub fn of(command: &str) -> Self {
        let value = |key: &str| {
            let word = command.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
            word.parse().ok().map(Duration::from_millis)
        };
        Self { ready: value("ready"), dies: value("dies"), stop: value("stop").unwrap_or_default() }
    }

    /// It becomes healthy and stays so.
    pub fn is_good(&self) -> bool {
        // Slower than its grace period it is restarted before it is there.
        self.ready.is_some_and(|ready| ready < Duration::from_millis(2500)) && self.dies.is_none()
    }

    fn any(rng: &mut Rng) -> Self {
        let ms = |rng: &mut Rng, range| Duration::from_millis(rng.u64(range));
        let good = Self { ready: Some(ms(rng, 0..800)), dies: None, stop: ms(rng, 0..1500) };
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
    file
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
