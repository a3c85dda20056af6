//! Thousands of agents at one server: the real server, and clients that join, beat, poll and report as agents do, each with
//! a key and a certificate of its own, over mutual TLS.
//!
//! They run nothing: what is assigned is reported as running at once. The proxies that machines have beside their agents are
//! not played. It needs root, for a network that the server can be reached in from elsewhere.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rung_api::join::{JoinRequest, JoinToken};
use rung_api::wire::{RestartRequest, Started};
use rung_api::{Address, Client, ClientError, Tls};
use rung_e2e::{Host, Hosts, process};
use rung_model::{AppName, DeploymentNumber, Generation, Intent, Label, NodeFacts, NodeId, NodeRole, Phase};
use rung_trust::{Belief, Credentials, Identity, NodeKey, client_config};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::many::{facts, report};
use super::{in_seconds, row};
use crate::table::Table;

/// As agents do.
const BEAT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_secs(10);
const MEMBERS: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(500);

/// So many join at once.
const JOINING: usize = 128;
/// How long the server is watched while nothing happens.
const REST: Duration = Duration::from_secs(30);
/// A deployment that touches all of them is given up after this.
const WITHIN: Duration = Duration::from_secs(120);

const APP: &str = "everywhere";

pub fn measure(count: usize, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let binary = std::env::current_exe()?.with_file_name("rung");
    anyhow::ensure!(binary.exists(), "{} is missing: run `cargo xtask bench scale`", binary.display());
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut hosts = Hosts::with_binary(1, &binary);
    hosts.host_mut(1).serve();
    let server = hosts.host(1);
    deploy(server)?;
    // One thread: the server has the other core.
    server.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(watch(server, count, rounds, table))
    })
}

/// One instance on each machine that has the label; none has it yet.
fn deploy(server: &Host) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("rung-bench-").tempdir()?;
    let file = format!(
        "app = \"{APP}\"\n\n[services.worker]\ncommand = \"sleep 1000000\"\nport = false\ninstances = \"per-node\"\n\
         place = {{ require = {{ played = \"yes\" }} }}\n"
    );
    std::fs::write(directory.path().join("rung.toml"), file)?;
    server.deploy(directory.path()).succeeds();
    Ok(())
}

async fn watch(server: &Host, count: usize, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let people = Client::new(Address::Unix(server.data().join("api.sock")), None);
    let (told, mut news) = mpsc::unbounded_channel();
    let failures = Arc::<Failures>::default();
    let began = Instant::now();
    let mut agents = start(server.address, &people, count, &told, &failures).await?;
    wait_for_all(&mut news, count, DeploymentNumber(1)).await?;
    println!("{count} agents have joined and run their part after {:?}", began.elapsed());
    runs_once_everywhere(&people, count).await?;
    follow_members(&agents.0, &failures, &mut agents.1).await?;
    tokio::time::sleep(POLL).await;
    let (share, bytes) = at_rest(server.pid()).await;
    let asked = format!("{count} agents, mutual TLS: processor of the server at rest, of one core");
    table.push(row(asked, "100 %", &[share * 100.0], |percent| format!("{percent:.0} %")));
    table.push(row("the same: its memory (proportional set size)", "500 MB", &[bytes as f64 / 1e6], |mb| {
        format!("{mb:.0} MB")
    }));
    let (mut reached, mut done, mut cost) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (ticks, began) = (process::ticks(server.pid()), Instant::now());
        let app = AppName::new(APP)?;
        let started = people.restart(&app, &RestartRequest { by: "bench".into() }).await?;
        let Started::Deployment { number, .. } = started else { anyhow::bail!("no deployment: {started:?}") };
        let last = wait_for_all(&mut news, count, number).await?;
        reached.push((last - began).as_secs_f64());
        tokio::time::timeout(WITHIN, succeeded(&people, &app, number)).await??;
        done.push(began.elapsed().as_secs_f64());
        cost.push(seconds(process::ticks(server.pid()) - ticks));
        println!("all of them, {round} of {rounds}: {:?}, {:?}", reached.last(), done.last());
        tokio::time::sleep(BEAT * 2).await;
    }
    table.push(row(
        "a deployment that touches all: until the last has been told",
        "2 s",
        &reached,
        in_seconds,
    ));
    table.push(row("the same: until all have reported and it has succeeded", "", &done, in_seconds));
    table.push(row("the same: time of the server's processor", "", &cost, in_seconds));
    let bytes = process::proportional_memory(server.pid());
    let asked = format!("its memory after {rounds} of these");
    table.push(row(asked, "500 MB", &[bytes as f64 / 1e6], |mb| format!("{mb:.0} MB")));
    let failed = failures.told();
    for (why, count) in &failed {
        println!("{count} questions failed: {why}");
    }
    let failed = failed.values().sum::<usize>() as f64;
    table.push(row("questions of these agents that failed", "0", &[failed], |count| format!("{count:.0}")));
    Ok(())
}

/// What is measured is one instance on each of them.
async fn runs_once_everywhere(people: &Client, count: usize) -> anyhow::Result<()> {
    let status = people.app(&AppName::new(APP)?).await?;
    let there: usize = status.services.iter().map(|service| service.instances.len()).sum();
    anyhow::ensure!(there == count, "{there} instances run on {count} nodes");
    Ok(())
}

async fn succeeded(people: &Client, app: &AppName, number: DeploymentNumber) -> anyhow::Result<()> {
    loop {
        // Whatever its timeline says meanwhile.
        let deployment = people.deployment(app, number, usize::MAX, POLL).await?;
        if deployment.has_ended() {
            anyhow::ensure!(deployment.phase == Phase::Succeeded, "it ended as {:?}", deployment.phase);
            return Ok(());
        }
    }
}

fn seconds(ticks: u64) -> f64 {
    // The kernel counts a hundred a second for all who ask.
    ticks as f64 / 100.0
}

/// The part of a core that the server takes, and its memory.
async fn at_rest(pid: u32) -> (f64, u64) {
    let (ticks, began) = (process::ticks(pid), Instant::now());
    tokio::time::sleep(REST).await;
    let share = seconds(process::ticks(pid) - ticks) / began.elapsed().as_secs_f64();
    (share, process::proportional_memory(pid))
}

/// An agent holds an instance of this cohort from then on.
struct News {
    agent: usize,
    cohort: DeploymentNumber,
    at: Instant,
}

/// When the last one was told.
async fn wait_for_all(
    news: &mut mpsc::UnboundedReceiver<News>,
    count: usize,
    cohort: DeploymentNumber,
) -> anyhow::Result<Instant> {
    let mut missing: Vec<bool> = vec![true; count];
    let (mut left, mut last) = (count, Instant::now());
    while left > 0 {
        let heard = tokio::time::timeout(WITHIN, news.recv()).await;
        let heard = heard.with_context(|| format!("{left} of {count} agents are not told"))?;
        let heard = heard.context("no agent is left")?;
        if heard.cohort >= cohort && std::mem::replace(&mut missing[heard.agent], false) {
            (left, last) = (left - 1, heard.at);
        }
    }
    Ok(last)
}

#[derive(Clone)]
struct Agent {
    number: usize,
    node: NodeId,
    client: Client,
}

/// All of them join, a few at a time, and go on as agents do.
async fn start(
    server: Ipv4Addr,
    people: &Client,
    count: usize,
    told: &mpsc::UnboundedSender<News>,
    failures: &Arc<Failures>,
) -> anyhow::Result<(Vec<Agent>, JoinSet<()>)> {
    let turns = Arc::new(Semaphore::new(JOINING));
    let mut joining = JoinSet::new();
    let mut lives = JoinSet::new();
    for number in 0..count {
        let (people, turns) = (people.clone(), turns.clone());
        joining.spawn(async move {
            let _turn = turns.acquire_owned().await;
            join(server, &people, number).await
        });
    }
    let mut agents = Vec::new();
    while let Some(joined) = joining.join_next().await {
        let agent = joined.context("joining panicked")??;
        lives.spawn(beat(agent.clone(), count, failures.clone()));
        lives.spawn(follow(agent.clone(), told.clone(), failures.clone()));
        agents.push(agent);
        if agents.len() % 500 == 0 {
            println!("{} of {count} agents have joined", agents.len());
        }
    }
    Ok((agents, lives))
}

async fn join(server: Ipv4Addr, people: &Client, number: usize) -> anyhow::Result<Agent> {
    let issued = people.make_join_token(NodeRole::Worker, "bench").await?;
    let token: JoinToken = issued.token.parse()?;
    let address = Address::Tls(format!("{server}:7864"));
    let node = NodeId::new(format!("played-{number:04}"))?;
    let key = NodeKey::generate();
    let stranger = Tls::to_servers(client_config(Belief::Hash(token.authority), None));
    let request = JoinRequest {
        token: token.name,
        secret: token.secret,
        role: NodeRole::Worker,
        node: node.clone(),
        key: key.public().to_hex(),
        clock: Timestamp::now(),
    };
    let certified = Client::over_tls(address.clone(), None, stranger).join(&request).await?;
    let (certificate, authority) = (certified.certificate, certified.authority);
    let identity = Identity::new(&Credentials { key, certificate, authority })?;
    let belief = Belief::Authority(identity.authority().clone());
    let client = Client::over_tls(address, None, Tls::to_servers(client_config(belief, Some(identity))));
    while let Err(error) = client.register(&node, &about(number)).await {
        // As agents do.
        println!("{node} registers again: {error:#}");
        tokio::time::sleep(RETRY).await;
    }
    Ok(Agent { number, node, client })
}

fn about(number: usize) -> NodeFacts {
    let [_, _, a, b] = (number as u32).to_be_bytes();
    let played: Label = "played=yes".parse().expect("a name and a value");
    NodeFacts { labels: [(played.name, played.value)].into(), ..facts(format!("https://10.1.{a}.{b}:7865")) }
}

/// Questions that were not answered, by what was said.
#[derive(Default)]
struct Failures(Mutex<BTreeMap<String, usize>>);

impl Failures {
    /// As agents do, it waits a little.
    async fn note(&self, error: ClientError) {
        let why = format!("{:#}", anyhow::Error::from(error));
        *self.0.lock().expect("counting does not panic").entry(why).or_default() += 1;
        tokio::time::sleep(RETRY).await;
    }

    fn told(&self) -> BTreeMap<String, usize> {
        self.0.lock().expect("counting does not panic").clone()
    }
}

async fn beat(agent: Agent, count: usize, failures: Arc<Failures>) {
    // Machines that were started at different times.
    tokio::time::sleep(BEAT.mul_f64(agent.number as f64 / count as f64)).await;
    loop {
        match agent.client.beat(&agent.node).await {
            Ok(()) => tokio::time::sleep(BEAT).await,
            Err(error) => failures.note(error).await,
        }
    }
}

/// Does what it is told at once, and says so.
async fn follow(agent: Agent, told: mpsc::UnboundedSender<News>, failures: Arc<Failures>) {
    let (agent_started, mut sequence, mut after) = (Timestamp::now(), 0, Generation::ZERO);
    loop {
        let assignment = match agent.client.assignment(&agent.node, after, POLL).await {
            Ok(Some(assignment)) => assignment,
            Ok(None) => continue,
            Err(error) => {
                failures.note(error).await;
                continue;
            }
        };
        (after, sequence) = (assignment.generation, sequence + 1);
        let running = assignment.instances.values().filter(|assigned| assigned.intent == Intent::Run);
        if let Some(cohort) = running.map(|assigned| assigned.deployment).max() {
            // Nobody listens any more at the end.
            let _ = told.send(News { agent: agent.number, cohort, at: Instant::now() });
        }
        let mut observed = report(&assignment);
        (observed.agent_started, observed.sequence) = (agent_started, sequence);
        while let Err(error) = agent.client.report(&observed).await {
            failures.note(error).await;
        }
    }
}

/// Each waits for changes of the list of members, which one of them has fetched.
async fn follow_members(
    agents: &[Agent],
    failures: &Arc<Failures>,
    lives: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let first = agents.first().context("there is an agent")?;
    let mark = first.client.members("", MEMBERS).await?.mark;
    for (number, agent) in agents.iter().enumerate() {
        let (client, failures, mut mark) = (agent.client.clone(), failures.clone(), mark.clone());
        let begin = MEMBERS.mul_f64(number as f64 / agents.len() as f64);
        lives.spawn(async move {
            tokio::time::sleep(begin).await;
            loop {
                match client.members(&mark, MEMBERS).await {
                    Ok(report) => mark = report.mark,
                    Err(error) => failures.note(error).await,
                }
            }
        });
    }
    Ok(())
}
