//! Thousands of agents at one real server. Each is a client like a real one, with a key and a certificate of its own, that
//! asks for its assignment by long polls, over TLS, and beats every two seconds; it runs nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use rung_api::join::{JoinRequest, JoinToken};
use rung_api::{Address, Client, Tls};
use rung_e2e::{Hosts, process};
use rung_model::node::ContainerEngine;
use rung_model::{Generation, Labels, NodeFacts, NodeId, NodeRole};
use rung_trust::{Belief, Credentials, Identity, NodeKey, client_config};
use tokio::sync::mpsc;

use crate::rest::{TICKS, megabytes};
use crate::table::Table;

use super::{in_seconds, row};

/// As agents do.
const WAIT: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_secs(2);
/// That many join at the same time.
const JOINING: usize = 16;
/// For every agent to have been told.
const PATIENCE: Duration = Duration::from_secs(60);

/// An app of which each node runs one.
const FLEET: &str = "app = \"fleet\"\n\n[services.unit]\ncommand = \"sleep 100000\"\nport = false\ninstances = \"per-node\"\n";

pub fn measure(binary: &Path, agents: usize, rest: Duration, table: &mut Table) -> anyhow::Result<()> {
    let mut hosts = Hosts::with_binary(1, binary);
    hosts.host_mut(1).serve();
    let host = hosts.host(1);
    host.inside(|| -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (told, mut tellings) = mpsc::unbounded_channel();
        let trouble = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        runtime.block_on(join_all(&host.data(), agents, &told, &trouble))?;
        println!("{agents} agents have joined after {:?}", began.elapsed());

        // The last of what joining has left to do is not part of rest.
        std::thread::sleep(Duration::from_secs(10));
        let (began, before) = (Instant::now(), process::ticks(host.pid()));
        std::thread::sleep(rest);
        let used = process::ticks(host.pid()).saturating_sub(before) as f64 / TICKS;
        let cores = used / began.elapsed().as_secs_f64();
        let memory = megabytes(process::proportional_memory(host.pid()));
        table.push(row(
            format!("processor of one server that {agents} agents poll, at rest, in cores"),
            "1",
            &[cores],
            |cores| format!("{cores:.2}"),
        ));
        table.push(row("its memory", "500 MB", &[memory], |mb| format!("{mb:.0} MB")));

        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("rung.toml"), FLEET)?;
        let asked = Instant::now();
        let reached = std::thread::scope(|scope| {
            let deploying = scope.spawn(|| host.deploy(directory.path()));
            let reached = runtime.block_on(reached(&mut tellings, agents));
            // They run nothing, so it would go on until its deadline.
            host.cli(&["cancel", "--app", "fleet"]);
            drop(deploying.join());
            reached
        });
        let mut took: Vec<f64> =
            reached.into_iter().map(|at| at.saturating_duration_since(asked).as_secs_f64()).collect();
        took.sort_by(f64::total_cmp);
        anyhow::ensure!(took.len() == agents, "{} of {agents} agents were told in {PATIENCE:?}", took.len());
        let (half, last) = (took[took.len() / 2], took[took.len() - 1]);
        table.push(row(
            "from the command that gives each node one instance more until half of the agents were told",
            "",
            &[half],
            in_seconds,
        ));
        table.push(row("until all were told", "2 s", &[last], in_seconds));
        let trouble = trouble.load(Ordering::Relaxed);
        table.push(row("polls and beats that failed", "none", &[trouble as f64], |count| {
            format!("{count:.0}")
        }));
        runtime.shutdown_background();
        Ok(())
    })
}

async fn reached(tellings: &mut mpsc::UnboundedReceiver<Instant>, agents: usize) -> Vec<Instant> {
    let mut reached = Vec::new();
    let end = tokio::time::Instant::now() + PATIENCE;
    while reached.len() < agents
        && let Ok(Some(at)) = tokio::time::timeout_at(end, tellings.recv()).await
    {
        reached.push(at);
    }
    reached
}

async fn join_all(
    data: &Path,
    agents: usize,
    told: &mpsc::UnboundedSender<Instant>,
    trouble: &Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let person = Client::new(Address::Unix(data.join("api.sock")), None);
    let server: Address = "https://10.77.0.1:7864".parse()?;
    let mut joining = tokio::task::JoinSet::new();
    for number in 1..=agents {
        if joining.len() >= JOINING
            && let Some(joined) = joining.join_next().await
        {
            joined??;
        }
        if number % 500 == 0 {
            println!("{number} of {agents} join");
        }
        let (person, server, told, trouble) = (person.clone(), server.clone(), told.clone(), trouble.clone());
        joining.spawn(async move {
            let agent = Agent::join(&person, &server, number, trouble).await?;
            tokio::spawn(agent.clone().beat());
            tokio::spawn(agent.poll(told));
            anyhow::Ok(())
        });
    }
    while let Some(joined) = joining.join_next().await {
        joined??;
    }
    Ok(())
}

#[derive(Clone)]
struct Agent {
    node: NodeId,
    client: Client,
    trouble: Arc<AtomicU64>,
}

impl Agent {
    async fn join(
        person: &Client,
        server: &Address,
        number: usize,
        trouble: Arc<AtomicU64>,
    ) -> anyhow::Result<Self> {
        let node = NodeId::new(format!("agent-{number:05}"))?;
        let issued = person.make_join_token(NodeRole::Worker, "bench").await.context("asking for a token")?;
        let token: JoinToken = issued.token.parse()?;
        let key = NodeKey::generate();
        let request = JoinRequest {
            token: token.name.clone(),
            secret: token.secret.clone(),
            role: token.role,
            node: node.clone(),
            key: key.public().to_hex(),
            clock: Timestamp::now(),
        };
        let of_cluster = Tls::to_servers(client_config(Belief::Hash(token.authority), None));
        let stranger = Client::over_tls(server.clone(), None, of_cluster);
        let answer = stranger.join(&request).await.with_context(|| format!("joining as {node}"))?;
        let credentials = Credentials { key, certificate: answer.certificate, authority: answer.authority };
        let identity = Identity::new(&credentials)?;
        let belief = Belief::Authority(identity.authority().clone());
        let tls = Tls::to_servers(client_config(belief, Some(identity)));
        let client = Client::over_tls(server.clone(), None, tls);
        client.register(&node, &facts()).await.with_context(|| format!("registering {node}"))?;
        Ok(Self { node, client, trouble })
    }

    async fn beat(self) {
        loop {
            if self.client.beat(&self.node).await.is_err() {
                self.trouble.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Says when it is told of its first instance.
    async fn poll(self, told: mpsc::UnboundedSender<Instant>) {
        let mut after = Generation::ZERO;
        let mut is_empty = true;
        loop {
            match self.client.assignment(&self.node, after, WAIT).await {
                Ok(Some(assignment)) => {
                    after = assignment.generation;
                    if is_empty && !assignment.instances.is_empty() {
                        is_empty = false;
                        let _ = told.send(Instant::now());
                    }
                }
                Ok(None) => {}
                Err(_) => {
                    self.trouble.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent: "https://10.77.0.1:7865".into(),
        proxy: None,
        version: env!("CARGO_PKG_VERSION").into(),
        cpu_millis: 4000,
        memory_bytes: 16_000_000_000,
        engine: ContainerEngine::default(),
        disk_bytes: None,
        labels: Labels::new(),
        lease_ms: None,
        isolation: Vec::new(),
    }
}
