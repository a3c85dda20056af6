//! How long nobody is waited for: a machine that is gone says nothing, not even that it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::Client;
use super::lines::Line;
use super::witness::Witness;

/// A machine that is gone answers nothing at all, and another one may be there.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// A connection on which nothing came for so long is asked whether somebody is there, and ended when nobody is: so a long
/// poll of a machine that lost its power ends after four seconds, and not with its time.
const SILENT: Duration = Duration::from_secs(2);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBES: u32 = 2;

/// Machines turn to another server soon; a person's network may be away for longer than that, and has no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Role,
    Person,
}

/// A request that nobody has answered yet. Given up after a while on a connection on which nothing else came either, it
/// takes the kept connections with it: they lead to the same silent machine, and each would have to be waited for.
pub struct Asked<'a> {
    client: &'a Client,
    on: Arc<Witness>,
    at: Instant,
    is_answered: bool,
}

impl<'a> Asked<'a> {
    pub fn by(client: &'a Client, line: &Line) -> Self {
        Self { client, on: line.witness().clone(), at: Instant::now(), is_answered: false }
    }

    /// It was in time, whenever that was.
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_answered && self.at.elapsed() > SILENT && self.on.silent_for() > SILENT {
            self.client.inner.lines.forget(&self.on);
        }
    }
}

pub async fn connect_tcp(authority: &str, who: Who) -> std::io::Result<TcpStream> {
    let stream = in_time(TcpStream::connect(authority)).await?;
    stream.set_nodelay(true)?;
    if who == Who::Role {
        let keepalive = TcpKeepalive::new().with_time(SILENT).with_interval(PROBE_EVERY).with_retries(PROBES);
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(SILENT + PROBE_EVERY * PROBES))?;
    }
    Ok(stream)
}

pub async fn in_time<T>(connecting: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
        Ok(done) => done,
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 3 s")),
    }
}
