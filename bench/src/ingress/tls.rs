//! TLS handshakes: new sessions and resumed ones, each with one request, over TLS 1.3 and a P-256 certificate.
//!
//! A client pays for a new session more than a server does, and clients have one core here: what can be compared is what a
//! handshake costs the proxy, not how many are made.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::peers::{Kind, Peer, Setting};
use super::report::{Report, Series};
use super::world::World;

/// Enough to keep any proxy busy as far as their core goes.
const CLIENTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET /128 HTTP/1.1\r\nHost: bench.localhost\r\nConnection: close\r\n\r\n";

/// A certificate and its key, as files.
#[derive(Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// One behind the other.
    pub both: PathBuf,
    der: CertificateDer<'static>,
    _directory: TempDir,
}

impl Pair {
    pub fn make() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["bench.localhost".to_owned()])?;
        let directory = tempfile::Builder::new().prefix("rung-bench-tls-").tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let (certificate, key, both) = (at("bench.crt"), at("bench.key"), at("bench.pem"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        std::fs::write(&both, made.cert.pem() + &made.signing_key.serialize_pem())?;
        Ok(Self { certificate, key, both, der: made.cert.der().clone(), _directory: directory })
    }

    fn client(&self, sessions: Sessions) -> anyhow::Result<Arc<ClientConfig>> {
        client(self.der.clone(), sessions)
    }
}

fn client(trusted: CertificateDer<'static>, sessions: Sessions) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if sessions == Sessions::New {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// Sessions of a client that holds them.
#[derive(Debug)]
pub struct Session(Arc<ClientConfig>);

impl Session {
    pub fn trusting(certificate: &Path) -> anyhow::Result<Self> {
        let trusted = CertificateDer::from_pem_file(certificate).context("reading the certificate")?;
        Ok(Self(client(trusted, Sessions::New)?))
    }

    pub fn over(&self, socket: TcpStream) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
        let session = ClientConnection::new(self.0.clone(), ServerName::try_from("bench.localhost")?)?;
        Ok(StreamOwned::new(session, socket))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sessions {
    New,
    Resumed,
}

/// What the clients of a turn share.
#[derive(Debug, Default)]
struct Counts {
    is_over: AtomicBool,
    clients: AtomicUsize,
    /// Handshakes of the wanted kind whose request was answered.
    done: AtomicU64,
    /// Those of the other kind, and those that failed.
    other: AtomicU64,
}

pub fn measure(
    world: &mut World,
    rung: &Path,
    (rounds, time): (usize, Duration),
    report: &mut Report,
) -> anyhow::Result<()> {
    let pair = Pair::make()?;
    let instances = world.instances()?;
    let mut peers = Vec::new();
    for kind in Kind::YARDSTICKS {
        let started = Peer::start(kind, rung, &instances, Setting::Tls(&pair));
        match started.and_then(|peer| await_service(world, &peer, &pair).map(|()| peer)) {
            Ok(peer) => peers.push(peer),
            Err(error) if kind == Kind::Rung => return Err(error),
            Err(error) => report.note(format!("{}: TLS: {error:#}", kind.name())),
        }
    }
    for (sessions, name) in [(Sessions::New, "new"), (Sessions::Resumed, "resumed")] {
        let mut cpu = Series::new(format!("CPU per {name} TLS session with one request"), "us");
        let mut rate = Series::new(format!("{name} TLS sessions in a second of a core"), "/s");
        for _ in 0..rounds {
            for peer in &peers {
                let cost = turn(world, peer, &pair, sessions, time)
                    .with_context(|| format!("{}: {name} TLS sessions", peer.kind.name()))?;
                cpu.add(peer.kind, cost.as_secs_f64() * 1e6);
                rate.add(peer.kind, 1.0 / cost.as_secs_f64());
            }
        }
        report.push(cpu);
        report.push(rate);
    }
    Ok(())
}

/// Until the first handshake: some learn their routes a moment after they listen.
pub fn await_service(world: &mut World, peer: &Peer, pair: &Pair) -> anyhow::Result<()> {
    let config = pair.client(Sessions::New)?;
    let until = Instant::now() + PATIENCE;
    let asking = std::thread::spawn({
        let address = peer.address;
        move || loop {
            match ask(&config, address) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                result => return result.map(drop),
            }
        }
    });
    world.serve_while(|| !asking.is_finished())?;
    asking.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
}

/// What one handshake cost the proxy.
fn turn(
    world: &mut World,
    peer: &Peer,
    pair: &Pair,
    sessions: Sessions,
    time: Duration,
) -> anyhow::Result<Duration> {
    let counts = Arc::new(Counts::default());
    counts.clients.store(CLIENTS, Ordering::SeqCst);
    for _ in 0..CLIENTS {
        let (counts, config, address) = (counts.clone(), pair.client(sessions)?, peer.address);
        std::thread::spawn(move || {
            while !counts.is_over.load(Ordering::SeqCst) {
                let is_it = matches!(
                    (ask(&config, address), sessions),
                    (Ok(HandshakeKind::Full), Sessions::New)
                        | (Ok(HandshakeKind::Resumed), Sessions::Resumed)
                );
                (if is_it { &counts.done } else { &counts.other }).fetch_add(1, Ordering::SeqCst);
            }
            counts.clients.fetch_sub(1, Ordering::SeqCst);
        });
    }
    let measured = measured(world, peer, &counts, time);
    counts.is_over.store(true, Ordering::SeqCst);
    world.serve_while(|| counts.clients.load(Ordering::SeqCst) > 0)?;
    measured
}

fn measured(world: &mut World, peer: &Peer, counts: &Counts, time: Duration) -> anyhow::Result<Duration> {
    let mut serve_for = |time: Duration| {
        let began = Instant::now();
        world.serve_while(|| began.elapsed() < time)
    };
    let read = || (counts.done.load(Ordering::SeqCst), counts.other.load(Ordering::SeqCst));
    // Sessions to be resumed are made here.
    serve_for(time / 5)?;
    let (cpu, before) = (peer.cpu()?, read());
    serve_for(time)?;
    let (cpu, after) = (peer.cpu()? - cpu, read());
    let (done, other) = (after.0 - before.0, after.1 - before.1);
    anyhow::ensure!(
        done > 0 && other * 100 <= done,
        "{other} were of another kind or failed, {done} did not"
    );
    Ok(cpu.div_f64(done as f64))
}

fn ask(config: &Arc<ClientConfig>, address: SocketAddr) -> anyhow::Result<HandshakeKind> {
    let session = ClientConnection::new(config.clone(), ServerName::try_from("bench.localhost")?)?;
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Closed without TLS's goodbye.
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.into()),
        _ => {}
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    stream.conn.handshake_kind().context("an answer without a handshake")
}
