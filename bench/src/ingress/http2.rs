//! HTTP/2 over TLS: many small requests on few connections, and large bodies side by side.
//!
//! The clients are `h2load`, which costs less than any of the proxies. It shares a core with the applications, so a proxy may
//! have to wait for both of them: what is compared is what a request costs, and how busy its core was is said.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::peers::{Kind, Peer, Setting};
use super::report::{Report, Series};
use super::tls::{self, Pair};
use super::world::World;

/// How Debian has it.
const CLIENT: &str = "h2load";
const CLIENT_PACKAGE: &str = "nghttp2-client";
/// Less than any proxy takes at once on a connection.
const SMALL_LOAD: Load = Load { name: "128 B", body: 128, connections: 4, streams: 32, until: Until::Time };
/// Counted, for what is on its way at the end would be a good part of it.
const LARGE_LOAD: Load =
    Load { name: "1 MB", body: 1024 * 1024, connections: 4, streams: 10, until: Until::Requests(800) };
/// Longer than the slowest proxy takes for a turn.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    body: usize,
    connections: usize,
    /// At once, on each connection.
    streams: usize,
    until: Until,
}

#[derive(Debug, Clone, Copy)]
enum Until {
    /// As long as a turn is.
    Time,
    Requests(u64),
}

/// What a turn showed.
#[derive(Debug)]
struct Turn {
    requests: u64,
    time: Duration,
    cpu: Duration,
}

pub fn measure(
    world: &mut World,
    kinds: impl Iterator<Item = Kind>,
    rung: &Path,
    (rounds, time): (usize, Duration),
    report: &mut Report,
) -> anyhow::Result<()> {
    if Command::new(CLIENT).arg("--version").output().is_err() {
        report.note(format!(
            "HTTP/2 is not measured: there is no {CLIENT}: `apt-get install {CLIENT_PACKAGE}` brings it"
        ));
        return Ok(());
    }
    let pair = Pair::make()?;
    let instances = world.instances()?;
    let mut peers = Vec::new();
    for kind in kinds {
        let started = Peer::start(kind, rung, &instances, Setting::Tls(&pair));
        match started.and_then(|peer| tls::await_service(world, &peer, &pair).map(|()| peer)) {
            Ok(peer) => peers.push(peer),
            Err(error) if kind == Kind::Rung => return Err(error),
            Err(error) => report.note(format!("{}: HTTP/2: {error:#}", kind.name())),
        }
    }
    for load in [SMALL_LOAD, LARGE_LOAD] {
        let Load { name, connections, streams, .. } = load;
        let mut cpu = Series::new(format!("CPU per request of HTTP/2 over TLS, {name}"), "us");
        let mut rate = Series::new(format!("requests of HTTP/2 a second on one core, {name}"), "/s");
        let mut idlest = 1.0_f64;
        for _ in 0..rounds {
            for peer in &peers {
                let turn = turn(world, peer, load, time)
                    .with_context(|| format!("{}: HTTP/2, {name}", peer.kind.name()))?;
                cpu.add(peer.kind, turn.cpu.as_secs_f64() * 1e6 / turn.requests as f64);
                rate.add(peer.kind, turn.requests as f64 / turn.time.as_secs_f64());
                idlest = idlest.min(turn.cpu.as_secs_f64() / turn.time.as_secs_f64());
            }
        }
        report.push(cpu);
        report.push(rate);
        report.note(format!(
            "HTTP/2, {name}: {connections} connections with {streams} streams at once, by h2load; the proxy's core was busy for \
             {:.0} % of a turn or more.",
            idlest * 100.0
        ));
    }
    Ok(())
}

fn turn(world: &mut World, peer: &Peer, load: Load, time: Duration) -> anyhow::Result<Turn> {
    let mut command = Command::new(CLIENT);
    command.args(["-t", "1", "-c", &load.connections.to_string(), "-m", &load.streams.to_string()]);
    match load.until {
        Until::Time => command.args(["-D", &time.as_secs_f64().to_string()]),
        Until::Requests(count) => command.args(["-n", &count.to_string()]),
    };
    command.arg(format!("--connect-to={}", peer.address));
    command.arg(format!("https://bench.localhost/{}", load.body));
    let cpu = peer.cpu()?;
    let began = Instant::now();
    let mut client = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {CLIENT}"))?;
    let mut said = client.stdout.take().expect("it is piped");
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        said.read_to_string(&mut text).map(|_| text)
    });
    world.serve_while(|| !reading.is_finished() && began.elapsed() < PATIENCE)?;
    if !reading.is_finished() {
        client.kill()?;
    }
    client.wait()?;
    let cpu = peer.cpu()? - cpu;
    let text = reading.join().map_err(|_| anyhow::anyhow!("reading what {CLIENT} says panicked"))??;
    let (requests, time) = understand(&text).with_context(|| format!("{CLIENT} says: {text}"))?;
    Ok(Turn { requests, time, cpu })
}

/// How many requests were answered, and in which time; nothing when one of them failed.
fn understand(text: &str) -> Option<(u64, Duration)> {
    let after = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let time = after("finished in ")?.split(',').next()?;
    let time = match time.strip_suffix("ms") {
        Some(milliseconds) => milliseconds.parse::<f64>().ok()? / 1e3,
        None => time.strip_suffix('s')?.parse().ok()?,
    };
    let counts = after("requests: ")?;
    let count = |name: &str| -> Option<u64> {
        counts.split(", ").find_map(|part| part.strip_suffix(name))?.trim().parse().ok()
    };
    let answered = after("status codes: ")?.split(' ').next()?.parse().ok()?;
    let is_well = count("failed")? == 0 && count("succeeded")? <= answered && answered > 0;
    is_well.then_some((count("succeeded")?, Duration::from_secs_f64(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_h2load_says_is_understood() {
        let text = "\
finished in 2.50s, 29170.00 req/s, 6.41MB/s
requests: 72925 total, 73053 started, 72925 done, 72925 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 72925 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 16.03MB (16810253) total, 4.52MB (4740125) headers (space savings 60.12%), 8.90MB (9334400) data
";
        assert_eq!(understand(text), Some((72925, Duration::from_millis(2500))));
        let failed = text.replace(" 0 failed", " 3 failed");
        assert_eq!(understand(&failed), None, "requests that failed count as answered");
        let refused = text.replace("codes: 72925 2xx, 0", "codes: 0 2xx, 72925");
        assert_eq!(understand(&refused), None, "error pages count as answers");
    }
}
