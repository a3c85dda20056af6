//! What is there at the beginning, what people and fate do, and the end.

use std::time::Duration;

use jiff::Timestamp;
use rung_model::{
    App, AppName, AssignedInstance, Deployment, DeploymentKind, DeploymentNumber, Node, NodeFacts, NodeId,
    Phase, Release, ReleaseNumber, Scale, ServiceName, appfile, keys,
};
use rung_store::{Guard, Op, Txn};
use serde::Serialize;

use super::machine::{Disk, LEASE};
use super::{FAULTS_END, Happening, NODES, PROXIES, Pace, REST_WITHIN, SERVERS, Story};
use crate::apps::digest;

/// Of every service, from SIGTERM to SIGKILL.
pub const GRACE: Duration = Duration::from_secs(2);
pub const MEMORY: u64 = 1_000_000_000;
/// What one of `batch` asks for: three fit on a node.
pub const ASKED: u64 = 300_000_000;

const FILE: &str = r#"
app = "shop"
[services.ledger]
command = "x"
port = false
exclusive = true
stop_grace = "2s"
[services.batch]
command = "x"
port = false
instances = 5
memory = "300MB"
stop_grace = "2s"
[services.web]
command = "x"
instances = 3
stop_grace = "2s"
"#;

pub fn wall(now: Duration) -> Timestamp {
    let ms = 1_700_000_000_000 + i64::try_from(now.as_millis()).unwrap_or(0);
    Timestamp::from_millisecond(ms).expect("the stories play in this century")
}

pub fn is_exclusive(assigned: &AssignedInstance) -> bool {
    assigned.service.as_str() == "ledger"
}

/// Gets requests.
pub fn is_routed(assigned: &AssignedInstance) -> bool {
    assigned.service.as_str() == "web"
}

fn app() -> AppName {
    AppName::new("shop").expect("a good name")
}

fn service(name: &str) -> ServiceName {
    ServiceName::new(name).expect("a good name")
}

impl Story {
    pub(super) fn set_the_stage(&mut self) {
        for node in 0..NODES {
            let id = self.machines[node].id.clone();
            self.put(keys::node(&id), &any_node(&id, node));
            self.after_ms(0, 1000, Happening::NodeTurn(node));
        }
        self.put_app();
        self.at(Duration::ZERO, Happening::Elect(0));
        self.at(Duration::from_secs(1), Happening::Campaign);
        for server in 0..SERVERS {
            self.at(Duration::ZERO, Happening::Watch(server));
            self.after_ms(0, 1000, Happening::TellServed(server));
        }
        for proxy in 0..PROXIES {
            self.after_ms(0, 1000, Happening::ProxyStarts(proxy));
            self.after_ms(0, 1000, Happening::Request(proxy));
        }
        self.at(Duration::from_secs(5), Happening::PersonScales);
        self.at(Duration::from_secs(10), Happening::Fault);
        self.at(FAULTS_END, Happening::FaultsEnd);
    }

    fn put<T: Serialize>(&mut self, key: String, value: &T) {
        let value = serde_json::to_vec(value).expect("documents of the model serialize");
        self.txn(&[], vec![Op::Put { key, value, lease: None }]);
    }

    /// Deployed, with success, before the story begins.
    fn put_app(&mut self) {
        let (name, at) = (app(), wall(Duration::ZERO));
        let file = appfile::parse("rung.toml", FILE).expect("the story's file is good");
        let record = App {
            live: Some(DeploymentNumber(1)),
            current: Some(ReleaseNumber(1)),
            last_release: ReleaseNumber(1),
            last_deployment: DeploymentNumber(1),
            succeeded: vec![ReleaseNumber(1)],
            ..App::new(name.clone())
        };
        let release = Release {
            app: name.clone(),
            number: ReleaseNumber(1),
            artifact: digest(1),
            source: None,
            file,
            config: Default::default(),
            secrets: Default::default(),
            at,
            by: "ada".into(),
            reason: "a story".into(),
            note: None,
            provenance: Default::default(),
        };
        let deployment = Deployment {
            app: name.clone(),
            number: DeploymentNumber(1),
            kind: DeploymentKind::Deploy,
            by: "ada".into(),
            at,
            phase: Phase::Succeeded,
            draft: None,
            release: Some(ReleaseNumber(1)),
            from: None,
            run: None,
            remaining: Duration::ZERO,
            cancelled_by: None,
            trouble: None,
            timeline: Vec::new(),
            asked: Default::default(),
            runs: Vec::new(),
            notification: None,
            rollout: None,
            aftercare: None,
        };
        self.put(keys::release(&name, ReleaseNumber(1)), &release);
        self.put(keys::deployment(&name, DeploymentNumber(1)), &deployment);
        self.put(keys::app(&name), &record);
    }

    pub(super) fn record(&self) -> App {
        let held = self.store.get(&keys::app(&app())).value.expect("nobody destroys it");
        serde_json::from_slice(&held.value).expect("only documents are stored")
    }

    pub(super) fn person_scales(&mut self) {
        if self.faults_have_ended {
            return;
        }
        self.after_ms(3000, 20_000, Happening::PersonScales);
        if self.store_is_full() {
            return;
        }
        let held = self.store.get(&keys::app(&app())).value.expect("nobody destroys it");
        let mut record = self.record();
        let (name, from_file, most) = if self.rng.bool() { ("batch", 5, 10) } else { ("web", 3, 6) };
        let count = self.rng.u32(0..=most);
        record.scale.insert(service(name), Scale { count, from_file });
        let guard = Guard::Modified { key: held.key.clone(), revision: held.modified };
        let value = serde_json::to_vec(&record).expect("documents of the model serialize");
        if let Txn::Committed(_) = self.txn(&[guard], vec![Op::Put { key: held.key, value, lease: None }]) {
            self.scaled_to.insert(name, count);
        }
    }

    pub(super) fn wanted(&self, name: &str) -> usize {
        let from_file = if name == "batch" { 5 } else { 3 };
        self.record().count(&service(name), from_file) as usize
    }

    pub(super) fn fault(&mut self) {
        if self.faults_have_ended {
            return;
        }
        self.summary.faults += 1;
        match self.pace {
            Pace::Stormy => self.after_ms(500, 12_000, Happening::Fault),
            Pace::Calm => self.after_ms(10_000, 45_000, Happening::Fault),
        }
        let until = self.now + self.seconds(1, 60);
        let (server, node) = (self.rng.usize(0..SERVERS), self.rng.usize(0..NODES));
        let proxy = self.rng.usize(0..PROXIES);
        let kind = self.rng.u32(0..24);
        self.note(|_| {
            format!("fault {kind}, node-{node}, server {server}, until {:.3} s", until.as_secs_f64())
        });
        match kind {
            0..=2 => self.machines[node].cut(until),
            // What counts most is where something runs that must be alone.
            3 | 4 => {
                let home = self.last_home.unwrap_or(node);
                self.machines[home].cut(until);
            }
            5 => {
                // A switch fails: most of them at once, and they come back one after the other.
                for node in 0..NODES - 1 {
                    let late = self.seconds(0, 10);
                    self.machines[node].cut(until + late);
                }
            }
            6 => self.machines[node].mute_until = until,
            7 => self.machines[node].deaf_until = until,
            8 => {
                let disk = if self.rng.bool() { Disk::Kept } else { Disk::Lost };
                self.machines[node].lose_power(until, disk);
            }
            9 => self.crash(node),
            10 => {
                self.servers[server].cut_until = until;
            }
            11 => {
                self.servers[server].paused_until = until;
            }
            12 => self.kill(server),
            13 => self.servers[server].clock_ahead = self.rng.i64(-7200..7200),
            14 => {
                // A server and a node are on one side, everything else on the other.
                self.servers[server].cut_until = until;
                for other in (0..SERVERS).filter(|other| *other != server) {
                    self.machines[node].parted_until[other] = until;
                }
            }
            15 => self.kill_proxy(proxy),
            16 => {
                self.proxies[proxy].mute_until = until;
            }
            17 => {
                self.proxies[proxy].deaf_until = until;
            }
            18 => self.servers[server].late_until = until,
            19 => self.full_until = until,
            // An upgrade, behind which a proxy is left alone for a moment.
            20..=22 => self.kill(self.proxies[proxy].server),
            _ => self.after_ms(0, 100, Happening::Elect(server)),
        }
        self.at(until, Happening::Mended);
    }

    pub(super) fn mended(&mut self) {
        (0..SERVERS).for_each(|server| self.send(Happening::Watch(server)));
    }

    pub(super) fn end_faults(&mut self) {
        self.faults_have_ended = true;
        let now = self.now;
        self.full_until = now;
        for machine in &mut self.machines {
            (machine.mute_until, machine.deaf_until, machine.off_until) = (now, now, now);
            machine.parted_until = [now; SERVERS];
        }
        for proxy in &mut self.proxies {
            (proxy.mute_until, proxy.deaf_until) = (now, now);
        }
        for server in &mut self.servers {
            (server.cut_until, server.paused_until, server.late_until) = (now, now, now);
        }
        self.after_ms(1, 100, Happening::Elect(0));
        self.after_ms(100, 200, Happening::Mended);
        self.at(now + REST_WITHIN, Happening::Look);
    }
}

fn any_node(id: &NodeId, number: usize) -> Node {
    let facts = NodeFacts {
        agent: "unix:agent.sock".into(),
        proxy: Some(std::net::SocketAddr::from(([10, 0, 0, 1], 7865))),
        version: "1".into(),
        cpu_millis: 2000,
        memory_bytes: MEMORY,
        engine: rung_model::node::ContainerEngine::default(),
        disk_bytes: None,
        short_of_disk: None,
        labels: Default::default(),
        lease_ms: Some(LEASE.as_millis() as u64),
        isolation: Vec::new(),
    };
    Node { id: id.clone(), number: number as u32 + 1, facts, labels: Default::default(), drain: None }
}
