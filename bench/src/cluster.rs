//! What several machines promise: a lost one costs seconds, a drained or restarted one nothing, and an address moves.
//!
//! The machines are network namespaces on a bridge, made and removed here; it needs root. What a lost machine costs is
//! measured beside Docker Swarm ([`lost`]), where its engine is installed.

mod lost;
mod stage;
mod swarm;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rung_e2e::{Hosts, Load, eventually};

use crate::payload::Payload;
use crate::stream::{Asked, Stream};
use crate::table::{Row, Table};
use crate::{machine, milliseconds, page, seconds};

const FLOATING: &str = "10.0.0.200";
const CLIENTS: usize = 2;
const BETWEEN: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often a machine is lost
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the section `Several machines` is written
    #[arg(long, default_value = "bench/RESULTS.md")]
    out: PathBuf,
    /// A directory for everything that is made: given by the process that sweeps it afterwards
    #[arg(long, hide = true)]
    stage: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binary = std::env::current_exe()?.with_file_name("rung");
    anyhow::ensure!(binary.exists(), "{} is missing: run `cargo xtask bench cluster`", binary.display());
    if arguments.stage.is_none() {
        return stage::run();
    }
    stage::enter()?;
    let mut table = Table::beside_swarm(vec![
        "The machines are network namespaces of one machine, on a bridge; one that is lost has its cable pulled and its \
         processes killed at the same time. The stream is 100 requests a second, each on a connection of its own, from \
         another machine."
            .to_owned(),
        "Docker Swarm: three managers with an engine each, all settings as they are by default (a heartbeat every 5 s, lost \
         after three of them; a restart waits 5 s), the image on every machine. Its routing mesh is not there, for it needs \
         IPVS, which this kernel does not have: each task publishes a port of its machine, and the client asks all of them in \
         turn, by the list of running tasks that the manager on its own machine has, looked at every 0.1 s."
            .to_owned(),
        "Rung: three servers over etcd, each with an ingress, all settings as they are by default. The client asks the \
         ingress of its own machine, which balances over all instances and asks another one where that is safe; so what fails \
         in Rung is what fails in spite of that, and the last row of each loss is the one to compare. Nobody answers at the \
         address of the machine that is lost; no client was told to ask there."
            .to_owned(),
    ]);
    floating(&binary, arguments.rounds, &mut table)?;
    lost_workers(&binary, arguments.rounds, &mut table)?;
    lost::measure(&binary, arguments.rounds, &mut table)?;
    planned(&binary, &mut table)?;
    let text = table.markdown("cluster", &machine::describe());
    println!("\n{text}");
    page::replace_section(&arguments.out, "Several machines", &text)?;
    println!("written to {}", arguments.out.display());
    Ok(())
}

fn app(hosts: &Hosts, instances: usize) -> anyhow::Result<Payload> {
    let app = Payload::new("shop", instances)?;
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", instances, |_| true);
    Ok(app)
}

/// Asked by the first machine, as by a visitor.
fn stream(hosts: &Hosts, address: IpAddr) -> Stream {
    let address = SocketAddr::new(address, 8080);
    hosts.host(1).inside(|| Stream::start(address, "shop.localhost"))
}

/// Two ingresses share an address; who has it loses its power.
fn floating(binary: &Path, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut hosts = Hosts::with_binary(3, binary);
    hosts.host_mut(1).serve();
    for number in [2, 3] {
        hosts.join_with(number, "ingress", &["--floating", FLOATING]);
    }
    let _app = app(&hosts, 2)?;
    let mut gaps = Vec::new();
    for round in 1..=rounds {
        println!("the floating address moves, {round} of {rounds}");
        // One that was off has it still for a moment, as no machine would that was started anew.
        let holder = eventually("one machine has the address", || {
            match [2, 3].map(|number| hosts.host(number).has_address(FLOATING)) {
                [true, false] => Ok(2),
                [false, true] => Ok(3),
                both => Err(format!("{both:?}\n{}", hosts.host(2).output())),
            }
        });
        let stream = stream(&hosts, FLOATING.parse()?);
        stream.wait_for(50, Instant::now());
        let lost = Instant::now();
        hosts.power_off(holder);
        stream.wait_for(100, Instant::now());
        let asked = stream.stop();
        let again = first_good(&asked, lost).ok_or_else(|| anyhow::anyhow!("nobody answered again"))?;
        gaps.push(again.saturating_duration_since(lost));
        hosts.mend(holder);
        let known = hosts.host(holder).output().matches("stands by for the floating").count();
        hosts.host_mut(holder).run(&["join", "--floating", FLOATING]);
        eventually("the machine is back, without the address", || {
            let said = hosts.host(holder).output();
            if said.matches("stands by for the floating").count() > known { Ok(()) } else { Err(said) }
        });
    }
    table.push(milliseconds(
        "the machine with the floating address is lost: until a request is answered there again",
        "1 s",
        &gaps,
        &[],
    ));
    Ok(())
}

/// When a request that was sent after the loss was first answered.
fn first_good(asked: &[Asked], lost: Instant) -> Option<Instant> {
    asked.iter().filter(|asked| asked.is_good() && asked.due > lost).map(|asked| asked.ended).min()
}

/// Two workers besides the server; one of them loses its power under load.
fn lost_workers(binary: &Path, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let (mut until_answered, mut until_whole, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        println!("a worker is lost, {round} of {rounds}");
        let mut hosts = Hosts::with_binary(3, binary);
        hosts.host_mut(1).serve();
        for number in [2, 3] {
            hosts.join(number, "worker");
        }
        let _app = app(&hosts, 3)?;
        hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-3");
        let stream = stream(&hosts, hosts.host(1).address.into());
        stream.wait_for(100, Instant::now());
        let lost = Instant::now();
        hosts.power_off(3);
        hosts.host(1).wait_until_routed("shop", 3, |on| on != "host-3");
        until_whole.push(lost.elapsed());
        stream.wait_for(100, Instant::now());
        let asked = stream.stop();
        let bad: Vec<&Asked> = asked.iter().filter(|asked| !asked.is_good()).collect();
        let last = bad.iter().map(|asked| asked.due.saturating_duration_since(lost)).max();
        until_answered.push(last.unwrap_or_default());
        failed.push(bad.len() as f64);
    }
    table.push(milliseconds(
        "a worker with a third of the instances is lost: until the last request was sent that failed",
        "",
        &until_answered,
        &[],
    ));
    table.push(Row::of("the same: requests that failed", "", &failed, &[], |count| format!("{count:.0}")));
    table.push(Row::of(
        "the same: until all instances are there again, elsewhere",
        "15 s",
        &seconds(&until_whole),
        &[],
        |seconds| format!("{seconds:.1} s"),
    ));
    Ok(())
}

/// A drain, and every rung of every machine replaced.
fn planned(binary: &Path, table: &mut Table) -> anyhow::Result<()> {
    println!("a machine is drained, and each rung is replaced");
    let mut hosts = Hosts::with_binary(3, binary);
    hosts.host_mut(1).serve();
    hosts.join(2, "worker");
    hosts.join(3, "ingress");
    let _app = app(&hosts, 4)?;
    let loads = [1, 3].map(|number| {
        let address = hosts.host(number).http();
        hosts.host(number).inside(|| Load::start_clients(address, "shop.localhost", "/", CLIENTS, BETWEEN))
    });
    let go_on = || loads.iter().for_each(|load| load.wait_for(500));
    go_on();
    hosts.host(1).cli(&["node", "drain", "host-2"]).succeeds();
    hosts.host(1).cli(&["node", "drain", "host-2", "--undo"]).succeeds();
    hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    hosts.host(1).wait_until_routed("shop", 2, |on| on == "host-2");
    go_on();
    hosts.host(1).cli(&["upgrade"]).succeeds();
    for number in [2, 3] {
        hosts.host_mut(number).kill_9();
        hosts.host_mut(number).run(&["join"]);
        go_on();
    }
    hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    hosts.host(1).wait_until_routed("shop", 4, |_| true);
    go_on();
    let tallies = loads.map(Load::stop);
    let made: u64 = tallies.iter().flat_map(|tally| tally.outcomes.values()).sum();
    for tally in &tallies {
        println!("{:?}\n{}", tally.outcomes, tally.troubles.join("\n"));
    }
    table.push(Row {
        what: format!(
            "requests lost of {made}, over two ingresses, during a drain, an upgrade of the server, and the replacement \
             of the agent and of the ingress"
        ),
        aim: "none".into(),
        rung: tallies.iter().map(rung_e2e::Tally::lost).sum::<u64>().to_string(),
        peer: String::new(),
        ratio: String::new(),
    });
    Ok(())
}
