//! One health check, and what can be said when it fails.
//!
//! When to probe and what failures mean is the converge machine's business.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rung_model::AppName;
use rung_model::appfile::{Check, Health};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::driver::process;
use crate::procfs;

/// So much of an answer is read, and for so long, whatever its status was.
const ANSWER_MAX: u64 = 1 << 20;
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Who is probed.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    pub app: &'a AppName,
    pub directory: &'a Path,
    /// The tree is everything below it.
    pub shim: u32,
    pub port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    Check(String),
    /// Nothing listens on the port.
    Unheard(String),
    /// The port answers, and it is not this instance that does.
    PortTaken(String),
}

/// Checks once.
pub async fn probe(target: &Target<'_>, health: &Health) -> Result<(), Failure> {
    let within = tokio::time::timeout(health.timeout, check(target, health)).await;
    match within {
        Ok(outcome) => outcome,
        Err(_) => Err(late(health)),
    }
}

/// Asks over HTTP only, within the check's time: a container that was looked at.
pub async fn probe_http(app: &AppName, port: u16, health: &Health) -> Result<(), Failure> {
    let Check::Http { path } = &health.check else { return Ok(()) };
    let asked = tokio::time::timeout(health.timeout, http(app, port, path)).await;
    asked.unwrap_or_else(|_| Err(late(health)))
}

fn late(health: &Health) -> Failure {
    Failure::Check(format!("no answer within {} to the health check", words(health.timeout)))
}

async fn check(target: &Target<'_>, health: &Health) -> Result<(), Failure> {
    match (&health.check, target.port) {
        (Check::Http { path }, Some(port)) => http(target.app, port, path).await,
        (Check::Tcp, Some(port)) => connect(port).await.map(drop),
        (Check::Command { command }, _) => process::check(target.directory, command, health.timeout)
            .await
            .map_err(|failure| Failure::Check(format!("health command {failure}"))),
        // A process has no image: its port is what there is to look at.
        (Check::Image, Some(port)) => connect(port).await.map(drop),
        (Check::Up, _) | (Check::Http { .. } | Check::Tcp | Check::Image, None) => Ok(()),
    }
}

async fn connect(port: u16) -> Result<TcpStream, Failure> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            Failure::Unheard(format!("nothing listens on 127.0.0.1:{port} ($PORT)"))
        } else {
            Failure::Check(format!("connecting to 127.0.0.1:{port} ($PORT): {error}"))
        }
    })
}

/// The smallest request that every server understands; only the status of the answer counts.
async fn http(app: &AppName, port: u16, path: &str) -> Result<(), Failure> {
    let mut stream = connect(port).await?;
    let broken = |error: io::Error| Failure::Check(format!("GET {path} was cut off: {error}"));
    // The default host name of the app, which frameworks that check the host are told to allow anyway.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: rung-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        app.host()
    );
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    // `HTTP/1.1 200`
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let status = std::str::from_utf8(&head)
        .ok()
        .filter(|head| head.starts_with("HTTP/1."))
        .and_then(|head| head[9..].parse::<u16>().ok())
        .ok_or_else(|| Failure::Check(format!("GET {path} was answered with something that is not HTTP")))?;
    tokio::spawn(hear_out(stream));
    match status {
        200..=399 => Ok(()),
        _ => Err(Failure::Check(format!("GET {path} was answered with status {status}"))),
    }
}

/// A server that is left in the middle of its answer complains, and its log is what people look at when it fails.
async fn hear_out(stream: TcpStream) {
    let (mut rest, mut nowhere) = (stream.take(ANSWER_MAX), tokio::io::sink());
    let rest = tokio::io::copy(&mut rest, &mut nowhere);
    // However it ends: the status is known.
    let _ = tokio::time::timeout(ANSWER_WAIT, rest).await;
}

/// Whether the listener on the port belongs to the instance's own tree. Somebody else's server would pass every check.
pub fn owns_port(shim: u32, port: u16) -> Result<(), Failure> {
    let tree = procfs::sockets(&procfs::descendants(shim));
    let on_port: Vec<_> = procfs::listeners().into_iter().filter(|l| l.address.port() == port).collect();
    if on_port.is_empty() || on_port.iter().any(|listener| tree.contains(&listener.inode)) {
        // Gone again is the next probe's business.
        return Ok(());
    }
    Err(Failure::PortTaken(format!("port {port} was taken by another process; it gets another port")))
}

/// Where the tree listens, when it is not where it should.
pub fn listens_elsewhere(shim: u32, port: u16) -> Option<String> {
    let tree = procfs::sockets(&procfs::descendants(shim));
    let own: BTreeSet<SocketAddr> = procfs::listeners()
        .into_iter()
        .filter(|listener| tree.contains(&listener.inode))
        .map(|listener| listener.address)
        .collect();
    if own.is_empty() || own.iter().any(|address| address.port() == port && reaches_loopback(address)) {
        return None;
    }
    let places = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    Some(format!("listens on {places} instead of 127.0.0.1:{port} ($PORT); make it listen on $PORT"))
}

fn reaches_loopback(address: &SocketAddr) -> bool {
    let ip = address.ip();
    ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST
}

/// A duration for people: `2 s`, `500 ms`, `10 minutes`.
pub fn words(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..120_000 => format!("{} s", duration.as_secs_f64()),
        _ => format!("{} minutes", (duration.as_secs_f64() / 60.0 * 10.0).round() / 10.0),
    }
}
