//! A cluster in memory: everything that a store would hold of it, taken in document by document as a server does, and
//! the nodes' and the proxy's parts played when they are due.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use rung_model::appfile::parse;
use rung_model::node::ContainerEngine;
use rung_model::{
    App, AppName, Deployment, DeploymentKind, DeploymentNumber, Document, Generation, InstanceState, Intent,
    Labels, MakingWay, Node, NodeFacts, NodeId, Observed, ObservedInstance, Phase, Release, ReleaseNumber,
    Scale, ServiceName, keys,
};
use rung_planner::{
    Clock, Input, Liveness, Plan, Progress, Proxies, Proxy, SHARED_MAX, Traffic, World, plan,
};

/// As in the published challenge: 6,100 nodes, 1,000 apps of 2,000 instances each. An app file may ask for 1,000
/// instances of a service, so each app has two.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub nodes: u32,
    pub apps: u32,
    pub of_service: u32,
    /// Whether instances are packed on few nodes, or spread over all.
    pub packed: bool,
}

const NODE_BYTES: u64 = 32_000_000_000;
const EPOCH: u64 = 1;
pub const SERVICES: [&str; 2] = ["web", "worker"];

pub struct Many {
    pub shape: Shape,
    pub world: World,
    liveness: Liveness,
    proxies: Proxies,
    traffic: Traffic,
    progress: Progress,
    elapsed: Duration,
}

/// What an instance asks for, by app and service: 96 MB on the average.
fn memory_mb(app: u32, service: usize) -> u32 {
    const SIZES: [u32; 5] = [64, 80, 96, 112, 128];
    SIZES[(app as usize + 2 * service) % SIZES.len()]
}

impl Shape {
    pub fn instances(self) -> u64 {
        u64::from(self.apps) * SERVICES.len() as u64 * u64::from(self.of_service)
    }

    /// No fewer nodes can hold what is asked for.
    pub fn fewest_nodes(self) -> u64 {
        let of_app = |app| -> u64 { (0..SERVICES.len()).map(|of| u64::from(memory_mb(app, of))).sum() };
        let asked: u64 = (0..self.apps).map(of_app).sum::<u64>() * u64::from(self.of_service);
        (asked * 1_000_000).div_ceil(NODE_BYTES)
    }
}

pub fn app_name(app: u32) -> AppName {
    AppName::new(format!("app-{app:04}")).expect("letters and digits")
}

pub fn service_name(service: usize) -> ServiceName {
    ServiceName::new(SERVICES[service]).expect("letters")
}

impl Many {
    /// Every node is empty, and every app has a release that nothing runs of.
    pub fn new(shape: Shape) -> anyhow::Result<Self> {
        let mut many = Self {
            shape,
            world: World::new(EPOCH),
            liveness: Liveness::default(),
            proxies: Proxies::default(),
            traffic: Traffic::default(),
            progress: Progress::default(),
            elapsed: Duration::from_secs(1),
        };
        for number in 1..=shape.nodes {
            let node = node(number);
            many.put(&keys::node(&node.id), &node.to_json())?;
        }
        for number in 0..shape.apps {
            many.add_app(number)?;
        }
        many.liveness.look(many.world.nodes.keys(), many.elapsed);
        many.proxy_polls();
        Ok(many)
    }

    fn add_app(&mut self, number: u32) -> anyhow::Result<()> {
        let name = app_name(number);
        let (of_service, pack) = (self.shape.of_service, self.shape.packed);
        let text = format!(
            "app = \"{name}\"\n\
             [services.web]\ncommand = \"bin/web\"\ninstances = {of_service}\nmemory = \"{}MB\"\nplace = {{ pack = {pack} }}\n\
             [services.worker]\ncommand = \"bin/worker\"\nport = false\ninstances = {of_service}\nmemory = \"{}MB\"\nplace = {{ pack = {pack} }}\n",
            memory_mb(number, 0),
            memory_mb(number, 1),
        );
        let release = Release {
            app: name.clone(),
            number: ReleaseNumber(1),
            artifact: format!("sha256:{number:064x}").parse()?,
            source: None,
            file: parse("rung.toml", text)?,
            config: Default::default(),
            secrets: Default::default(),
            at: Timestamp::UNIX_EPOCH,
            by: "bench".into(),
            reason: "deploy".into(),
            note: None,
            provenance: Default::default(),
        };
        let app = App {
            live: Some(DeploymentNumber(1)),
            current: Some(ReleaseNumber(1)),
            last_release: ReleaseNumber(1),
            last_deployment: DeploymentNumber(1),
            succeeded: vec![ReleaseNumber(1)],
            ..App::new(name.clone())
        };
        let deployment = succeeded(&name);
        self.put(&keys::release(&name, release.number), &release.to_json())?;
        self.put(&keys::deployment(&name, deployment.number), &deployment.to_json())?;
        self.put(&keys::app(&name), &app.to_json())
    }

    fn put(&mut self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let revision = self.world.revision + 1;
        self.world.put(key, value, revision)?;
        self.world.revision = revision;
        Ok(())
    }

    /// The next plan, and the time of the processor that it took to make: one thread makes it, and does not wait.
    pub fn plan(&mut self) -> (Plan, Duration) {
        self.elapsed += Duration::from_millis(1);
        let input = Input {
            world: &self.world,
            proxies: &self.proxies,
            liveness: &self.liveness,
            traffic: &self.traffic,
            clock: Clock { elapsed: self.elapsed, wall: Timestamp::UNIX_EPOCH + self.elapsed },
            shared_max: SHARED_MAX,
        };
        let began = processor();
        let plan = plan(input, &mut self.progress);
        (plan, processor() - began)
    }

    /// As if nothing had been planned before.
    pub fn forget(&mut self) {
        self.progress = Progress::default();
    }

    /// Everything that a plan writes is written, and the proxy follows.
    pub fn write(&mut self, plan: Plan) -> anyhow::Result<()> {
        for step in plan.steps {
            let revision = self.world.revision + 1;
            for write in step.writes {
                match write.value {
                    Some(value) => self.world.put(&write.key, &value, revision)?,
                    None => self.world.delete(&write.key),
                }
            }
            self.world.revision = revision;
        }
        self.proxy_polls();
        Ok(())
    }

    fn proxy_polls(&mut self) {
        let acknowledged = Generation::new(EPOCH, self.world.revision);
        let proxy = Proxy { acknowledged, draining: Default::default(), silent_since: None };
        self.proxies.0.insert("ingress".into(), proxy);
    }

    /// Every node starts what it shall run, and says so.
    pub fn nodes_report(&mut self) -> anyhow::Result<()> {
        let is_behind = |node: &NodeId, generation| {
            self.world.observed.get(node).is_none_or(|held| held.value.assignment < generation)
        };
        let behind = self.world.assignments.iter();
        let behind = behind.filter(|(node, held)| is_behind(node, held.value.generation));
        let nodes: Vec<NodeId> = behind.map(|(node, _)| node.clone()).collect();
        for node in nodes {
            let report = report(&self.world.assignments[&node].value);
            self.put(&keys::observed(&node), &report.to_json())?;
        }
        Ok(())
    }

    /// Plans and writes until there is nothing to do.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..20 {
            self.nodes_report()?;
            let (plan, _) = self.plan();
            if plan.steps.is_empty() {
                return Ok(());
            }
            self.write(plan)?;
        }
        anyhow::bail!("the planner does not come to rest")
    }

    /// Somebody wants so many more, or fewer, of a service.
    pub fn scale(&mut self, app: u32, service: usize, by: i32) -> anyhow::Result<()> {
        let name = app_name(app);
        let mut record = self.world.apps[&name].value.clone();
        let from_file = self.shape.of_service;
        let count = record.count(&service_name(service), from_file).saturating_add_signed(by);
        record.scale.insert(service_name(service), Scale { count, from_file });
        self.put(&keys::app(&name), &record.to_json())
    }

    /// One instance of a service shall not stay on its node.
    pub fn displace(&mut self, app: u32, service: usize, nth: usize) -> anyhow::Result<()> {
        let (app, service) = (app_name(app), service_name(service));
        let nodes = self.world.assignments.values().map(|held| &held.value);
        let found = nodes.cycle().skip(nth).find_map(|assignment| {
            let mut of_service = assignment.instances.iter().filter(|(_, assigned)| {
                assigned.app == app
                    && assigned.service == service
                    && assigned.intent == Intent::Run
                    && assigned.making_way.is_none()
            });
            of_service.next().map(|(id, _)| (assignment.node.clone(), id.clone()))
        });
        let (node, id) = found.expect("there are hundreds of each service");
        let mut assignment = self.world.assignments[&node].value.clone();
        let assigned = assignment.instances.get_mut(&id).expect("it was just found");
        assigned.making_way = Some(Box::new(MakingWay::Rebalanced));
        self.put(&keys::assign(&node), &assignment.to_json())
    }

    /// Instances that shall run, those that shall stop, and how many were ever made.
    pub fn counts(&self) -> (u64, u64, u64) {
        self.world.assignments.values().fold((0, 0, 0), |(run, stop, minted), held| {
            let all = held.value.instances.len() as u64;
            let running = held.value.instances.values().filter(|one| one.intent == Intent::Run);
            let running = running.count() as u64;
            (run + running, stop + all - running, minted + held.value.minted)
        })
    }

    pub fn used_nodes(&self) -> u64 {
        self.world.assignments.values().filter(|held| !held.value.instances.is_empty()).count() as u64
    }
}

/// What this thread has had of the processor, in it and in the kernel for it.
fn processor() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("every thread may ask for its own");
    [usage.user_time(), usage.system_time()].into_iter().map(spell).sum()
}

fn spell(time: TimeVal) -> Duration {
    Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))
}

fn node(number: u32) -> Node {
    let [a, b] = (number as u16).to_be_bytes();
    let agent = format!("https://10.1.{a}.{b}:7865");
    let id = NodeId::new(format!("node-{number:04}")).expect("letters and digits");
    let facts =
        NodeFacts { proxy: Some(SocketAddr::from((Ipv4Addr::new(10, 1, a, b), 7866))), ..facts(agent) };
    Node { id, number, facts, labels: Labels::new(), drain: None }
}

/// What a machine says of itself, and where it is reached.
pub fn facts(agent: String) -> NodeFacts {
    NodeFacts {
        agent,
        proxy: None,
        version: "1".into(),
        cpu_millis: 16_000,
        memory_bytes: NODE_BYTES,
        engine: ContainerEngine::default(),
        disk_bytes: None,
        short_of_disk: None,
        labels: Labels::new(),
        lease_ms: Some(10_000),
        isolation: Vec::new(),
    }
}

/// The deployment that brought the release that serves.
fn succeeded(app: &AppName) -> Deployment {
    Deployment {
        app: app.clone(),
        number: DeploymentNumber(1),
        kind: DeploymentKind::Deploy,
        by: "bench".into(),
        at: Timestamp::UNIX_EPOCH,
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
    }
}

/// Everything runs, and what shall stop has stopped.
pub fn report(assignment: &rung_model::Assignment) -> Observed {
    let instances = assignment.instances.iter().zip(20_000..).map(|((id, assigned), port)| {
        let has_port = assigned.service.as_str() == SERVICES[0];
        let seen = ObservedInstance {
            app: assigned.app.clone(),
            service: assigned.service.clone(),
            release: assigned.release,
            state: match assigned.intent {
                Intent::Run => InstanceState::Healthy,
                Intent::Stop => InstanceState::Stopped,
            },
            endpoint: has_port.then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            pid: Some(u32::from(port)),
            restarts: 0,
            exits: 0,
            since: Timestamp::UNIX_EPOCH,
            reason: None,
            log_tail: Vec::new(),
        };
        (id.clone(), seen)
    });
    Observed {
        node: assignment.node.clone(),
        assignment: assignment.generation,
        sequence: 1,
        agent_started: Timestamp::UNIX_EPOCH,
        instances: instances.collect(),
        runs: Default::default(),
        artifacts: Vec::new(),
    }
}
