//! What the engine's facts mean: how a container ended, whether it is well, where it listens.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use rung_model::appfile::{Check, Health};
use tokio::net::TcpStream;

use super::image_check::Word;
use super::spec::Record;
use super::{Containers, read_record};
use crate::artifacts::chain;
use crate::engine::{ContainerState, EngineError, Frames, Query};
use crate::procfs;
use crate::shim::complaint::{Complained, SAID_MAX};
use crate::shim::logger::Logger;
use crate::shim::protocol::{Exit, How};

/// Without a check, staying up for so long is health.
const UP_FOR: Duration = Duration::from_millis(500);
/// Signals have numbers up to this; a shell shows them as 128 and the number.
const SIGNAL_MAX: i32 = 64;

/// Why a container does not count as well.
#[derive(Debug, PartialEq, Eq)]
pub enum Failing {
    Check(String),
    /// Nothing listens where it should.
    Unheard(String),
}

/// How a check that asks over the network reaches a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// By a request to this port of 127.0.0.1, which the caller makes.
    At(u16),
    /// The driver has looked itself, and it is well.
    Well,
}

/// The shell's code for a command that could not be executed; `None` when that is not what the engine complains of.
pub fn shell_code_of(error: &EngineError) -> Option<i32> {
    let EngineError::Refused { message, .. } = error else { return None };
    let is_exec = message.contains("exec:") || message.contains("starting container process");
    if is_exec && (message.contains("no such file") || message.contains("not found")) {
        return Some(127);
    }
    (is_exec && message.contains("permission denied")).then_some(126)
}

pub fn exit_of(record: &Record, state: &ContainerState) -> Exit {
    let code = state.exit_code;
    let how = match code - 128 {
        signal @ 1..=SIGNAL_MAX => How::Signaled { signal },
        _ => How::Exited { code },
    };
    Exit {
        attempt: record.attempt,
        how,
        out_of_memory: record.memory_bytes.filter(|_| state.out_of_memory),
        asked: false,
        timed_out: record.timed_out,
        lease_over: false,
        at_ms: state.finished_ms().unwrap_or_else(|| jiff::Timestamp::now().as_millisecond()),
    }
}

impl Containers {
    /// Looks whether a container is well, as far as that can be done without a request to it.
    ///
    /// # Errors
    /// It is not, and why.
    pub async fn look(&self, directory: &Path, health: &Health) -> Result<Reached, Failing> {
        let Some(record) = read_record(directory) else {
            return Err(Failing::Check("its container is not known any more".to_owned()));
        };
        let looked = match &health.check {
            Check::Http { .. } => match record.port {
                Some(port) => self.listening(&record).await.map(|()| Reached::At(port.host)),
                None => Ok(Reached::Well),
            },
            Check::Tcp => self.listening(&record).await.map(|()| Reached::Well),
            Check::Command { command } => self
                .check(directory, command, health.timeout)
                .await
                .map(|()| Reached::Well)
                .map_err(|failure| Failing::Check(format!("health command {failure}"))),
            Check::Image => self.as_the_image_says(&record).await.map(|()| Reached::Well),
            Check::Up => Ok(Reached::Well),
        };
        match looked {
            Err(failing) => match self.engine.ping().await {
                Ok(()) => Err(failing),
                Err(error) => Err(Failing::Check(chain(&error))),
            },
            well => well,
        }
    }

    async fn as_the_image_says(&self, record: &Record) -> Result<(), Failing> {
        let failed = |error: EngineError| Failing::Check(chain(&error));
        match self.image_check(record).await.map_err(failed)? {
            Word::Healthy => Ok(()),
            Word::Failing(why) => Err(Failing::Check(why)),
            Word::Nothing if record.port.is_some() => self.listening(record).await,
            Word::Nothing => {
                let state = self.engine.container(&record.name).await.map_err(failed)?.state;
                let age = jiff::Timestamp::now().as_millisecond() - record.started_ms;
                let is_up = state.is_running() && u128::try_from(age).unwrap_or(0) >= UP_FOR.as_millis();
                if is_up { Ok(()) } else { Err(Failing::Check("was started just now".to_owned())) }
            }
        }
    }

    /// The engine's own listener at 127.0.0.1 takes every connection, whether anybody is behind it or not: what counts
    /// is who listens in the container. But it must be there: an engine that was killed takes it along and leaves the
    /// container running.
    async fn listening(&self, record: &Record) -> Result<(), Failing> {
        let Some(port) = record.port else { return Ok(()) };
        let Some(listeners) = record.pid.and_then(procfs::listeners_seen_by) else {
            return connect(port.host).await;
        };
        let reaches = |ip: IpAddr| !ip.is_loopback();
        let on_port: Vec<_> = listeners.iter().filter(|l| l.address.port() == port.inside).collect();
        if on_port.iter().any(|listener| reaches(listener.address.ip())) {
            return connect(port.host).await;
        }
        let inside = port.inside;
        if let Some(listener) = on_port.first() {
            return Err(Failing::Unheard(format!(
                "listens on {} in its container, where nobody else can reach it; make it listen on 0.0.0.0:{inside}",
                listener.address
            )));
        }
        let elsewhere: Vec<String> =
            listeners.iter().filter(|l| reaches(l.address.ip())).map(|l| l.address.to_string()).collect();
        if elsewhere.is_empty() {
            return Err(Failing::Unheard(format!(
                "nothing listens on port {inside} of its container ($PORT)"
            )));
        }
        Err(Failing::Unheard(format!(
            "listens on {} in its container instead of port {inside} ($PORT); make it listen on $PORT, or write `port = …` below the service",
            elsewhere.join(" and ")
        )))
    }

    pub async fn check(&self, directory: &Path, command: &str, timeout: Duration) -> Result<(), String> {
        let record = read_record(directory).ok_or("has no container any more")?;
        let mut said = Vec::new();
        let argv = ["/bin/sh", "-c", command].map(str::to_owned);
        let outcome = match tokio::time::timeout(timeout, self.exec(&record, &argv, &mut said)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(code)) => format!("exited with code {code}"),
            Ok(Err(error)) => chain(&error),
            Err(_) => "took too long".to_owned(),
        };
        let said = said.split_off(said.len().saturating_sub(SAID_MAX));
        Complained::default().tell(&mut Logger::new(&record.logs), &said);
        Err(outcome)
    }

    pub(super) async fn exec(
        &self,
        record: &Record,
        argv: &[String],
        said: &mut Vec<u8>,
    ) -> Result<i32, EngineError> {
        use http_body_util::BodyExt;
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Made {
            id: String,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Ended {
            exit_code: Option<i32>,
        }
        let body = serde_json::json!({ "Cmd": argv, "AttachStdout": true, "AttachStderr": true });
        let made: Made =
            self.engine.post_for(&format!("/containers/{}/exec", record.name), Some(&body)).await?;
        let path = Query::default().on(&format!("/exec/{}/start", made.id));
        let start = rung_api::client::full(r#"{"Detach":false,"Tty":false}"#);
        let headers = [("content-type", "application/json")];
        let mut output = self.engine.send(hyper::Method::POST, &path, &headers, start).await?.into_body();
        let mut frames = Frames::default();
        while let Some(Ok(frame)) = output.frame().await {
            let Ok(bytes) = frame.into_data() else { continue };
            frames.push(&bytes).into_iter().for_each(|piece| said.extend(piece.bytes));
            let excess = said.len().saturating_sub(2 * SAID_MAX);
            said.drain(..excess);
        }
        let ended: Ended = self.engine.get(&format!("/exec/{}/json", made.id)).await?;
        Ok(ended.exit_code.unwrap_or(-1))
    }
}

async fn connect(port: u16) -> Result<(), Failing> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(Failing::Unheard(format!("nothing listens on 127.0.0.1:{port}")))
        }
        Err(error) => Err(Failing::Check(format!("connecting to 127.0.0.1:{port}: {error}"))),
    }
}
