//! App files made in code.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_model::appfile::rollout::{AbortIf, Share, Strategy};
use rung_model::appfile::values::canary_step;
use rung_model::appfile::{Build, Check, DeployPolicy, Health, RolloutPolicy, Service};
use rung_model::{AppFile, AppName, Digest, Hold, ServiceName};

/// A digest for a name.
pub fn digest(name: &str) -> Digest {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Digest::new(format!("sha256:{}", format!("{hash:016x}").repeat(4))).unwrap()
}

/// An app with one service `web`; the command's words say how its instances behave.
pub fn app(name: &str, command: &str, instances: u32) -> AppFile {
    let mut file = AppFile {
        app: AppName::new(name).unwrap(),
        domains: Vec::new(),
        build: Build { timeout: Duration::from_secs(30), ..Build::default() },
        env: BTreeMap::new(),
        required_secrets: Vec::new(),
        volumes: BTreeMap::new(),
        deploy: DeployPolicy {
            release: None,
            before_release: None,
            release_timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(20),
            rollout: at_once(),
        },
        git: Default::default(),
        services: BTreeMap::new(),
        jobs: BTreeMap::new(),
        routes: Vec::new(),
        pages: Default::default(),
        notify: None,
    };
    add(&mut file, "web", service(command, instances));
    file
}

pub fn add(file: &mut AppFile, name: &str, service: Service) {
    file.services.insert(ServiceName::new(name).unwrap(), service);
}

pub fn web(file: &mut AppFile) -> &mut Service {
    let web = ServiceName::new("web").unwrap();
    file.services.get_mut(&web).expect("every file of these stories has a web service")
}

pub fn service(command: &str, instances: u32) -> Service {
    Service {
        command: Some(command.into()),
        port: true,
        image_port: None,
        instances,
        exclusive: false,
        memory_bytes: None,
        cpu_millis: None,
        health: Health {
            check: Check::Tcp,
            grace: Duration::from_secs(5),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_after: 2,
            restart_after: 5,
        },
        drain: Duration::from_secs(5),
        stop_grace: Duration::from_secs(2),
        response_timeout: Duration::from_secs(10),
        protocol: rung_model::Protocol::Http1,
        hold: Hold { max_requests: 100, max_time: Duration::from_secs(30) },
        mounts: BTreeMap::new(),
        place: Default::default(),
        allow: Vec::new(),
    }
}

pub fn worker(command: &str, instances: u32) -> Service {
    let mut service = service(command, instances);
    service.port = false;
    service.health.check = Check::Up;
    service
}

/// Canary by steps like `("5% 60s", "100%")`, and a limit of 2 % of errors and 800 ms.
pub fn canary(file: &mut AppFile, steps: &[&str]) {
    let steps = steps.iter().map(|step| canary_step(step).unwrap()).collect();
    file.deploy.rollout = RolloutPolicy {
        strategy: Strategy::Canary { steps },
        abort_if: Some(AbortIf {
            error_rate: Some(Share(200)),
            p95: Some(Duration::from_millis(800)),
            requests: 10,
        }),
        wait_at_most: Duration::from_secs(120),
        ..at_once()
    };
}

/// Without the seconds in which a release settles: instances end in these stories for many reasons.
fn at_once() -> RolloutPolicy {
    RolloutPolicy { settle: Duration::ZERO, ..RolloutPolicy::default() }
}
