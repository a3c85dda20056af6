//! One of three machines loses its power under load: Rung and Docker Swarm in turns, in the same way.

use std::path::Path;
use std::time::{Duration, Instant};

use rung_api::wire::AppStatus;
use rung_e2e::Hosts;
use rung_model::observed::InstanceState;

use super::swarm::{Image, Swarm};
use crate::payload::Payload;
use crate::stream::{Asked, Asking, Outcome, Stream};
use crate::table::{Row, Table};
use crate::{milliseconds, seconds, until};

const INSTANCES: usize = 6;

/// Which of the three servers, or managers, is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Other,
    Leader,
}

impl Victim {
    /// The first machine leads from the beginning.
    fn machine(self) -> usize {
        match self {
            Self::Other => 3,
            Self::Leader => 1,
        }
    }

    /// Where the client is, and what else is left.
    fn left(self) -> [usize; 2] {
        match self {
            Self::Other => [1, 2],
            Self::Leader => [2, 3],
        }
    }

    fn named(self) -> &'static str {
        match self {
            Self::Other => "one of three servers, with a third of six instances, is lost",
            Self::Leader => "the one of them that leads is lost",
        }
    }
}

/// What a loss cost.
#[derive(Debug, Default)]
struct Costs {
    until_whole: Vec<Duration>,
    until_last: Vec<Duration>,
    failed: Vec<f64>,
    failed_twice: Vec<f64>,
}

impl Costs {
    fn add(&mut self, lost: Instant, whole: Instant, asked: &[Asked]) {
        let bad: Vec<&Asked> = asked.iter().filter(|asked| !asked.is_good()).collect();
        let last = bad.iter().map(|asked| asked.due.saturating_duration_since(lost)).max();
        self.until_whole.push(whole - lost);
        self.until_last.push(last.unwrap_or_default());
        self.failed.push(bad.len() as f64);
        let twice = bad.iter().filter(|asked| asked.outcome == Outcome::Failed).count();
        self.failed_twice.push(twice as f64);
        println!("{:?} until whole, {} failed, {twice} twice", whole - lost, bad.len());
    }
}

pub fn measure(binary: &Path, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut peer = Image::pack();
    for victim in [Victim::Other, Victim::Leader] {
        let (mut ours, mut theirs) = (Costs::default(), Costs::default());
        for round in 1..=rounds {
            println!("{}, {round} of {rounds}", victim.named());
            rung(binary, victim, &mut ours)?;
            if let Ok(image) = &peer
                && let Err(error) = swarm(binary, image, victim, &mut theirs)
            {
                println!("Docker Swarm: {error:#}");
                peer = Err(error);
            }
        }
        show(victim, &ours, &theirs, table);
    }
    if let Err(error) = peer {
        let why = format!("Docker Swarm was not measured, or not in every round: {error:#}.");
        println!("{why}");
        table.note(why);
    }
    Ok(())
}

fn show(victim: Victim, ours: &Costs, theirs: &Costs, table: &mut Table) {
    let what = format!("{}: until all six run again, on the others, and answer", victim.named());
    let in_seconds = |seconds: f64| format!("{seconds:.1} s");
    let (mine, peers) = (seconds(&ours.until_whole), seconds(&theirs.until_whole));
    table.push(Row::of(&what, "15 s", &mine, &peers, in_seconds));
    let count = |count: f64| format!("{count:.0}");
    let what = "the same: requests that failed, of a hundred a second";
    table.push(Row::of(what, "", &ours.failed, &theirs.failed, count));
    let what = "the same: until the last of these was sent";
    table.push(milliseconds(what, "", &ours.until_last, &theirs.until_last));
    let what = "the same: requests that failed, by a client that then asks another machine, once";
    table.push(Row::of(what, "", &ours.failed_twice, &theirs.failed_twice, count));
}

/// Asked by a client at its own machine's ingress, then at the other one's.
fn rung(binary: &Path, victim: Victim, costs: &mut Costs) -> anyhow::Result<()> {
    let mut hosts = Hosts::with_binary(3, binary);
    hosts.host_mut(1).serve();
    hosts.host(1).cli(&["cluster", "init"]).succeeds();
    for number in [2, 3] {
        hosts.join(number, "server");
        until("the server is a full member", || Ok((members(&hosts) == number).then_some(())))?;
    }
    let app = Payload::new("shop", INSTANCES)?;
    hosts.host(1).deploy(app.directory()).succeeds();
    let [asker, other] = victim.left();
    until("each machine has two instances", || {
        Ok((1..=3).all(|number| routed(&hosts, asker, |on| on == number) == 2).then_some(()))
    })?;
    let report: serde_json::Value = hosts.host(1).cli(&["cluster", "--json"]).succeeds().json();
    anyhow::ensure!(report["leader"] == "host-1", "another machine leads: {report}");

    let (first, second) = (hosts.host(asker).http(), hosts.host(other).http());
    let stream = hosts
        .host(asker)
        .inside(|| Stream::by_turns("shop.localhost", move |_| Some(Asking { first, second: Some(second) })));
    stream.wait_for(100, Instant::now());
    let lost = Instant::now();
    hosts.power_off(victim.machine());
    let whole = until("all instances run on the others", || {
        let there = routed(&hosts, asker, |on| on != victim.machine());
        Ok((there == INSTANCES).then(Instant::now))
    })?;
    stream.wait_for(100, Instant::now());
    costs.add(lost, whole, &stream.stop());
    Ok(())
}

/// How many servers are full members.
fn members(hosts: &Hosts) -> usize {
    let said = hosts.host(1).cli(&["cluster", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
    let members = report["members"].as_array().into_iter().flatten();
    members.filter(|member| member["state"] == "follows" || member["state"] == "leads").count()
}

/// How many instances get requests on these machines; none while nobody can say it.
fn routed(hosts: &Hosts, asker: usize, on: impl Fn(usize) -> bool) -> usize {
    let said = hosts.host(asker).cli(&["status", "--app", "shop", "--json"]);
    let Ok(status) = serde_json::from_str::<AppStatus>(&said.out) else { return 0 };
    let instances = status.services.iter().flat_map(|service| &service.instances);
    let number = |node: &str| node.strip_prefix("host-").and_then(|number| number.parse().ok());
    instances
        .filter(|instance| instance.state == InstanceState::Healthy && instance.routed)
        .filter(|instance| number(instance.node.as_str()).is_some_and(&on))
        .count()
}

/// Asked by a client at the tasks themselves, in turn; then at one of another machine.
fn swarm(binary: &Path, image: &Image, victim: Victim, costs: &mut Costs) -> anyhow::Result<()> {
    let mut swarm = Swarm::start(Hosts::with_binary(3, binary), image)?;
    swarm.begin(INSTANCES)?;
    let [asker, _] = victim.left();
    for number in 1..=3 {
        swarm.wait_until_answered(asker, 2, |task| task.machine == number)?;
    }
    anyhow::ensure!(swarm.leader()? == 1, "another machine leads");
    let (stream, follower) = swarm.stream(asker)?;
    stream.wait_for(100, Instant::now());
    let lost = Instant::now();
    swarm.power_off(victim.machine());
    swarm.wait_until_answered(asker, INSTANCES, |task| task.machine != victim.machine())?;
    let whole = Instant::now();
    stream.wait_for(100, whole);
    let asked = stream.stop();
    drop(follower);
    costs.add(lost, whole, &asked);
    Ok(())
}
