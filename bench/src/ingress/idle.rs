//! Idle connections: what each keeps in the proxy's memory.
//!
//! A process has a bounded number of descriptors, so more connections than one may have are spread over several processes
//! of the same proxy. They are held by programs of their own, each with an address of its own to connect from: from one
//! address to another there are but 28,000 ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use super::peers::{Kind, Peer, Setting};
use super::report::{Report, Series};
use super::tls::{self, Pair};
use super::world::{REQUEST, World};

/// Of a process that is idle: ports of one address allow no more.
const HELD_MAX: usize = 25_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// How many descriptors a process may have here.
pub fn descriptors() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}

/// As many clients as a proxy takes whose every client may need two descriptors.
fn clients_of_one() -> usize {
    usize::try_from(descriptors() * 9 / 20).unwrap_or(usize::MAX).min(1_000_000)
}

/// Of proxies that have done nothing yet: what earlier turns left in their heaps would hide what is taken.
pub fn measure(
    world: &mut World,
    kinds: impl Iterator<Item = Kind>,
    rung: &Path,
    count: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    measure_links(world, kinds, rung, count, None, report)
}

/// The same with sessions of TLS 1.3.
pub fn measure_tls(world: &mut World, rung: &Path, count: usize, report: &mut Report) -> anyhow::Result<()> {
    let pair = Pair::make()?;
    measure_links(world, Kind::YARDSTICKS.into_iter(), rung, count, Some(&pair), report)
}

fn measure_links(
    world: &mut World,
    kinds: impl Iterator<Item = Kind>,
    rung: &Path,
    count: usize,
    pair: Option<&Pair>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let processes = count.div_ceil(clients_of_one());
    if processes > 1 {
        report.note(format!(
            "A process may have {} descriptors here, so {count} idle connections are spread over {processes} processes of \
             each proxy.",
            descriptors()
        ));
    }
    let what = if pair.is_some() { "TLS connection" } else { "connection" };
    let mut series = Series::new(format!("memory per idle {what}, of {count}"), "B");
    for kind in kinds {
        match of(world, kind, rung, (count, processes), pair) {
            Ok(bytes) => series.add(kind, bytes),
            Err(error) => report.note(format!("{}: idle connections: {error:#}", kind.name())),
        }
    }
    report.push(series);
    Ok(())
}

fn of(
    world: &mut World,
    kind: Kind,
    rung: &Path,
    (count, processes): (usize, usize),
    pair: Option<&Pair>,
) -> anyhow::Result<f64> {
    let instances = world.instances()?;
    let mut peers = Vec::new();
    for _ in 0..processes {
        let peer = match pair {
            None => super::start(world, kind, rung, &instances, Setting::Plain)?,
            Some(pair) => {
                let peer = Peer::start(kind, rung, &instances, Setting::Tls(pair))?;
                tls::await_service(world, &peer, pair)?;
                peer
            }
        };
        if pair.is_none() {
            world.with_idle(peer.address, 1, || Ok(()))?;
        }
        peers.push(peer);
    }
    let memory = || peers.iter().map(Peer::memory).sum::<anyhow::Result<u64>>();
    let before = memory()?;
    let mut holders = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        let mut share = count / processes + usize::from(index < count % processes);
        while share > 0 {
            let held = share.min(HELD_MAX);
            holders.push(Holder::start(world, peer.address, holders.len(), held, pair)?);
            share -= held;
        }
    }
    let after = memory()?;
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

/// A process that holds connections open, each of which has made one request. It ends with this value.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn start(
        world: &mut World,
        address: SocketAddr,
        number: usize,
        count: usize,
        pair: Option<&Pair>,
    ) -> anyhow::Result<Self> {
        let from = Ipv4Addr::new(127, 0, 1, u8::try_from(number + 1)?);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["hold", &address.to_string(), &from.to_string(), &count.to_string()]);
        if let Some(pair) = pair {
            command.arg("--certificate").arg(&pair.certificate);
        }
        let mut holder = Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let said = holder.0.stdout.take().expect("it is piped");
        let reading = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line).map(|_| line)
        });
        world.serve_while(|| !reading.is_finished())?;
        let line = reading.join().map_err(|_| anyhow::anyhow!("reading what a holder says panicked"))??;
        anyhow::ensure!(line.trim() == "held", "{count} connections could not be held: {}", line.trim());
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, clap::Args)]
pub struct HoldArguments {
    to: SocketAddr,
    from: IpAddr,
    count: usize,
    /// Over TLS, with whoever shows this one
    #[arg(long)]
    certificate: Option<PathBuf>,
}

/// A connection that is held, plain or not.
trait Held: Read + Write {}

impl<T: Read + Write> Held for T {}

/// The holder's part: connects, asks once, and holds everything until its input ends.
pub fn hold(arguments: &HoldArguments) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(arguments.count);
    let session = arguments.certificate.as_deref().map(tls::Session::trusting).transpose()?;
    for number in 0..arguments.count {
        match connect(arguments, session.as_ref()) {
            Ok(stream) => held.push(stream),
            Err(error) => {
                println!("number {number}: {error:#}");
                return Err(error);
            }
        }
    }
    println!("held");
    let _ = std::io::stdin().read(&mut [0])?;
    Ok(())
}

fn connect(arguments: &HoldArguments, session: Option<&tls::Session>) -> anyhow::Result<Box<dyn Held>> {
    let socket = Socket::new(Domain::for_address(arguments.to), Type::STREAM, None)?;
    // Connections of the proxy before may still keep its ports from being used otherwise.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(arguments.from, 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&arguments.to.into())?;
    let stream = TcpStream::from(socket);
    let mut stream: Box<dyn Held> = match session {
        None => Box::new(stream),
        Some(session) => Box::new(session.over(stream)?),
    };
    stream.write_all(REQUEST)?;
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    // A head of less than a kilobyte, and 128 bytes.
    while !is_whole(&answer) {
        let count = stream.read(&mut piece)?;
        anyhow::ensure!(count > 0, "it was closed after {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

fn is_whole(answer: &[u8]) -> bool {
    memchr::memmem::find(answer, b"\r\n\r\n").is_some_and(|end| answer.len() >= end + 4 + super::SMALL)
}
