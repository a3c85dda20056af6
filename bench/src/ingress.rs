//! `ingress`: what a request costs on its way through Rung's ingress, beside other proxies.
//!
//! Every proxy runs on one core; the applications behind it and the clients before it are one event loop on another
//! ([`world`]). Within a round each proxy has its turn, so that whatever else the machine does meets all of them.

mod http2;
mod idle;
mod peers;
mod report;
mod routes;
mod server;
mod tls;
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

pub use idle::{HoldArguments, hold};
use peers::{Kind, PROXY_CORE, Peer, Setting};
use report::{Report, Series};
use world::{Pace, Plan, Turn, World};

/// Enough to keep any of the proxies busy, few enough that all of them are kept by default.
const CONNECTIONS: usize = 64;
/// A proxy that serves nothing by then is not measured.
const SERVE_PATIENCE: Duration = Duration::from_secs(10);
const SMALL: usize = 128;
const LARGE: usize = 1_000_000_000;
/// Downloads at once.
const LARGE_CONNECTIONS: usize = 4;
const BODIES: [(usize, &str); 3] = [(SMALL, "128 B"), (16 * 1024, "16 KB"), (1024 * 1024, "1 MB")];

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Kept connections, by the body's size
    Bodies,
    /// A connection per request
    New,
    /// At half of nginx's capacity; rests on `bodies`
    Latency,
    /// Bodies of a gigabyte
    Large,
    /// TLS sessions, new and resumed
    Tls,
    /// HTTP/2 over TLS
    H2,
    /// What many routes add to a request
    Routes,
    /// How soon a change of a route is visible
    Change,
    /// Memory of idle connections
    Idle,
    /// The same over TLS
    IdleTls,
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often each proxy has its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a turn is measured, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections that are held open
    #[arg(long, default_value_t = 50_000)]
    idle: usize,
    /// The same over TLS
    #[arg(long, default_value_t = 5_000)]
    idle_tls: usize,
    /// Routes that are many
    #[arg(long, default_value_t = 20_000)]
    routes: usize,
    /// Which proxies are measured; all that are installed, otherwise
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What is measured
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "bodies,new,latency,large,tls,h2,routes,change,idle,idle-tls"
    )]
    parts: Vec<Part>,
    /// Another program than the `rung` beside this one
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where the section `Ingress` is written; nowhere, otherwise
    #[arg(long, default_value = "bench/RESULTS.md")]
    out: PathBuf,
    /// Print the table only
    #[arg(long)]
    dry: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rung = match &arguments.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("rung"),
    };
    anyhow::ensure!(rung.exists(), "{} is missing: run `cargo xtask bench ingress`", rung.display());
    // As long as every core is seen.
    let machine = crate::machine::describe();
    let every_core = sched_getaffinity(Pid::from_raw(0))?;
    leave_the_proxies_core()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut world = World::new()?;
    let instances = world.instances()?;
    let mut peers = Vec::new();
    let mut report = Report::default();
    for kind in Kind::ALL {
        let is_wanted = arguments.only.is_empty()
            || arguments.only.iter().any(|name| name.eq_ignore_ascii_case(kind.name()));
        if !is_wanted {
            continue;
        }
        match start(&mut world, kind, &rung, &instances, Setting::Plain) {
            Ok(peer) => peers.push(peer),
            Err(error) if kind == Kind::Rung => return Err(error),
            Err(error) => report.note(format!("{} is not measured: {error:#}", kind.name())),
        }
    }
    report.proxies(peers.iter().map(|peer| (peer.kind, peer.version.clone())));
    let time = Duration::from_secs_f64(arguments.seconds);
    let turns = (arguments.rounds, time);
    for part in &arguments.parts {
        match part {
            Part::Bodies => measure_bodies(&mut world, &peers, arguments.rounds, time, &mut report)?,
            Part::New => measure_new_connections(&mut world, &peers, arguments.rounds, time, &mut report)?,
            Part::Latency => measure_latency(&mut world, &peers, arguments.rounds, time, &mut report)?,
            Part::Large => measure_large(&mut world, &peers, arguments.rounds, time, &mut report)?,
            Part::Tls => tls::measure(&mut world, &rung, turns, &mut report)?,
            Part::H2 => {
                let kinds = peers.iter().map(|peer| peer.kind);
                http2::measure(&mut world, kinds, &rung, turns, &mut report)?;
            }
            Part::Routes => {
                routes::measure_cost(&mut world, &rung, arguments.routes, turns, &mut report)?;
            }
            Part::Change => {
                routes::measure_change(&rung, arguments.routes, &mut report)?;
                // A platform is not a proxy: it has the whole machine.
                sched_setaffinity(Pid::from_raw(0), &every_core)?;
                routes::measure_acknowledged(&rung, &mut report)?;
                leave_the_proxies_core()?;
            }
            Part::Idle => {
                let kinds = peers.iter().map(|peer| peer.kind);
                idle::measure(&mut world, kinds, &rung, arguments.idle, &mut report)?;
            }
            Part::IdleTls => idle::measure_tls(&mut world, &rung, arguments.idle_tls, &mut report)?,
        }
    }
    let text = report.markdown(&machine);
    println!("\n{text}");
    if !arguments.dry {
        crate::page::replace_section(&arguments.out, "Ingress", &text)?;
        println!("written to {}", arguments.out.display());
    }
    Ok(())
}

/// Listening is not yet serving: some learn their routes and the health of instances a moment later, for which the
/// world must turn.
fn start(
    world: &mut World,
    kind: Kind,
    rung: &Path,
    instances: &[SocketAddr],
    setting: Setting<'_>,
) -> anyhow::Result<Peer> {
    let peer = Peer::start(kind, rung, instances, setting)?;
    let until = Instant::now() + SERVE_PATIENCE;
    loop {
        match world.with_idle(peer.address, 1, || Ok(())) {
            Ok(()) => return Ok(peer),
            Err(error) if Instant::now() > until => return Err(error.context("it does not serve")),
            Err(_) => {}
        }
    }
}

fn leave_the_proxies_core() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    anyhow::ensure!(cores > 1, "the proxies need a core of their own, and there is but one");
    let mut others = CpuSet::new();
    for core in (0..cores).filter(|core| *core != PROXY_CORE) {
        others.set(core)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &others)?)
}

/// One turn for each proxy, as often as there are rounds.
fn rounds(
    world: &mut World,
    peers: &[Peer],
    count: usize,
    plan: Plan,
    mut record: impl FnMut(&Peer, Turn),
) -> anyhow::Result<()> {
    for _ in 0..count {
        for peer in peers {
            let turn = world.turn(peer.address, plan, &|| peer.cpu())?;
            anyhow::ensure!(
                turn.failures * 1000 <= turn.requests,
                "{}: {} of {} requests failed",
                peer.kind.name(),
                turn.failures,
                turn.requests
            );
            record(peer, turn);
        }
    }
    Ok(())
}

fn per_second(turn: &Turn) -> f64 {
    turn.requests as f64 / turn.time.as_secs_f64()
}

fn cpu_per_request(turn: &Turn) -> f64 {
    turn.cpu.as_secs_f64() * 1e6 / turn.requests.max(1) as f64
}

fn plan(pace: Pace, body: usize, time: Duration) -> Plan {
    Plan { pace, connections: CONNECTIONS, body, warm_up: time / 5, time }
}

fn measure_bodies(
    world: &mut World,
    peers: &[Peer],
    count: usize,
    time: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (body, name) in BODIES {
        let mut cpu = Series::new(format!("CPU per request, {name}"), "us");
        let mut throughput = Series::new(format!("requests a second on one core, {name}"), "/s");
        rounds(world, peers, count, plan(Pace::Closed, body, time), |peer, turn| {
            cpu.add(peer.kind, cpu_per_request(&turn));
            throughput.add(peer.kind, per_second(&turn));
        })?;
        report.push(cpu);
        report.push(throughput);
    }
    Ok(())
}

fn measure_new_connections(
    world: &mut World,
    peers: &[Peer],
    count: usize,
    time: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut cpu = Series::new("CPU per request on a new connection, 128 B".into(), "us");
    let mut throughput = Series::new("new connections a second on one core".into(), "/s");
    rounds(world, peers, count, plan(Pace::New, SMALL, time), |peer, turn| {
        cpu.add(peer.kind, cpu_per_request(&turn));
        throughput.add(peer.kind, per_second(&turn));
    })?;
    report.push(cpu);
    report.push(throughput);
    Ok(())
}

/// At half of what nginx can do, or Rung where there is no nginx.
fn measure_latency(
    world: &mut World,
    peers: &[Peer],
    count: usize,
    time: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (body, name) in &BODIES[..2] {
        let capacity = report.capacity(name, Kind::Nginx).or_else(|| report.capacity(name, Kind::Rung));
        let capacity = capacity.context("latency is measured at half of a capacity: measure bodies too")?;
        let rate = capacity / 2.0;
        let mut middle = Series::new(format!("p50 at {rate:.0} requests a second, {name}"), "us");
        let mut tail = Series::new(format!("p99 at {rate:.0} requests a second, {name}"), "us");
        let mut cpu = Series::new(format!("CPU per request at {rate:.0} a second, {name}"), "us");
        rounds(world, peers, count, plan(Pace::Open(rate), *body, time), |peer, mut turn| {
            turn.latencies.sort_unstable();
            let at = |share: f64| {
                let index = (turn.latencies.len() as f64 * share) as usize;
                turn.latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
            };
            middle.add(peer.kind, at(0.5));
            tail.add(peer.kind, at(0.99));
            cpu.add(peer.kind, cpu_per_request(&turn));
        })?;
        report.push(middle);
        report.push(tail);
        report.push(cpu);
    }
    Ok(())
}

/// Bodies that no turn sees the end of: what counts is what passed.
fn measure_large(
    world: &mut World,
    peers: &[Peer],
    count: usize,
    time: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut cpu = Series::new("CPU per GB, in bodies of 1 GB".into(), "ms");
    let mut throughput = Series::new("passed on one core, in bodies of 1 GB".into(), "MB/s");
    let plan = Plan { connections: LARGE_CONNECTIONS, ..plan(Pace::Closed, LARGE, time) };
    rounds(world, peers, count, plan, |peer, turn| {
        cpu.add(peer.kind, turn.cpu.as_secs_f64() * 1e3 / (turn.bytes as f64 / 1e9));
        throughput.add(peer.kind, turn.bytes as f64 / 1e6 / turn.time.as_secs_f64());
    })?;
    report.push(cpu);
    report.push(throughput);
    Ok(())
}
