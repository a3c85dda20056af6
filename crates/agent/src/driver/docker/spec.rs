//! What a container is made from, and what is remembered of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::doors::Calls;
use crate::engine::ImageConfig;
use crate::shim::protocol::{Io, Limits, Mount};

pub const RECORD_FILE: &str = "container.json";

/// Which node a container belongs to; the sweep looks for it.
pub const NODE_LABEL: &str = "rung.node";
/// Whose it is, and of which release, when it is no build; by these the kernel is told who may reach it.
pub const APP_LABEL: &str = "rung.app";
pub const RELEASE_LABEL: &str = "rung.release";

/// The engine keeps output until the agent has read it: as much as an agent may miss while it is being replaced.
const ENGINE_LOG_SIZE: &str = "10m";
const ENGINE_LOG_FILES: &str = "2";

/// What people see of a container beside its name.
pub type Labels = BTreeMap<&'static str, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// Published there, on 127.0.0.1 only.
    pub host: u16,
    /// Where the application listens, in the container.
    pub inside: u16,
}

/// Everything about one life. The environment goes to the engine in a request's body, never in an argument list.
#[derive(Clone)]
pub struct ContainerSpec {
    /// The instance's or run's id, and the step of a run that has several.
    pub name: String,
    pub attempt: u32,
    pub directory: PathBuf,
    pub logs: PathBuf,
    /// By its id: what the name means may have changed since.
    pub image: String,
    /// As people know it.
    pub image_name: String,
    pub config: ImageConfig,
    /// Goes through `/bin/sh -c`, in the place of the image's own.
    pub command: Option<String>,
    pub env: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    /// Those of the mounts' sources that were just made: they are given to the image's user.
    pub fresh: Vec<PathBuf>,
    pub limits: Limits,
    pub port: Option<ContainerPort>,
    /// How it calls services, where it can.
    pub calls: Option<Calls>,
    /// By which names it finds them.
    pub names: BTreeMap<String, Ipv4Addr>,
    pub io: Io,
    pub time_limit_ms: Option<u64>,
    pub labels: Labels,
}

/// A line of shell that goes on with the command behind it once somebody listens at this port of the container's.
///
/// The engine has no moment between a container's network and its first process: without this a command that calls at once
/// would be milliseconds too early. It looks where the kernel lists listening sockets, by what the shell has in itself, and
/// goes on in any case after so many looks, which is about half a second.
fn once_heard(port: u16) -> String {
    format!(
        "__rung=0; while [ $__rung -lt 5000 ]; do \
         while read -r __rung_n __rung_at __rung_from __rung_state __rung_rest; do \
         case $__rung_at$__rung_state in *:{port:04X}0A) __rung=5000;; esac; done </proc/net/tcp; \
         __rung=$((__rung+1)); done; exec /bin/sh -c \"$0\""
    )
}

impl std::fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerSpec")
            .field("name", &self.name)
            .field("attempt", &self.attempt)
            .field("image", &self.image_name)
            .finish_non_exhaustive()
    }
}

/// `container.json`: what an agent must know to find a life again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The container's.
    pub name: String,
    pub attempt: u32,
    pub logs: PathBuf,
    /// Its output is bare, not in frames.
    pub terminal: bool,
    #[serde(default)]
    pub port: Option<ContainerPort>,
    #[serde(default)]
    pub calls: Option<Calls>,
    #[serde(default)]
    pub pid: Option<u32>,
    pub started_ms: i64,
    #[serde(default)]
    pub time_limit_ms: Option<u64>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// It was ended because its time was over.
    #[serde(default)]
    pub timed_out: bool,
}

impl Record {
    /// Until it must have ended, when there is a limit.
    pub fn time_left(&self) -> Option<Duration> {
        let limit = Duration::from_millis(self.time_limit_ms?);
        let passed = jiff::Timestamp::now().as_millisecond() - self.started_ms;
        Some(limit.saturating_sub(Duration::from_millis(u64::try_from(passed).unwrap_or(0))))
    }
}

impl ContainerSpec {
    pub fn record(&self, tag: &str) -> Record {
        Record {
            name: self.container_name(tag),
            attempt: self.attempt,
            logs: self.logs.clone(),
            terminal: matches!(self.io, Io::Terminal { .. }),
            port: self.port,
            calls: self.calls.clone(),
            pid: None,
            started_ms: jiff::Timestamp::now().as_millisecond(),
            time_limit_ms: self.time_limit_ms,
            memory_bytes: self.limits.memory_bytes,
            timed_out: false,
        }
    }

    /// `rung-1a2b3c4d-shop-web-1-2`: the same for the same life, whoever asks.
    fn container_name(&self, tag: &str) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let name: String = self.name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        format!("{tag}-{name}-{}", self.attempt)
    }

    /// What the engine is asked to make.
    pub fn body(&self, tag: &str) -> Value {
        let env: Vec<String> = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let labels: BTreeMap<&str, &str> = (self.labels.iter().map(|(name, value)| (*name, value.as_str())))
            .chain([(NODE_LABEL, tag), ("rung.name", self.name.as_str())])
            .collect();
        let attached = self.io != Io::Logs;
        let mut body = json!({
            "Image": self.image,
            "Env": env,
            "Labels": labels,
            "Tty": matches!(self.io, Io::Terminal { .. }),
            "OpenStdin": attached,
            "StdinOnce": attached,
            "AttachStdin": attached,
            "AttachStdout": true,
            "AttachStderr": true,
            "HostConfig": self.host_config(),
        });
        if let Some(command) = &self.command {
            body["Entrypoint"] = json!(["/bin/sh", "-c"]);
            body["Cmd"] = match &self.calls {
                Some(calls) => json!([once_heard(calls.port), command]),
                None => json!([command]),
            };
        }
        if let Some(port) = self.port {
            body["ExposedPorts"] = json!({ format!("{}/tcp", port.inside): {} });
        }
        body
    }

    fn host_config(&self) -> Value {
        let mounts: Vec<Value> = self
            .mounts
            .iter()
            .map(|mount| json!({ "Type": "bind", "Source": mount.source, "Target": mount.target }))
            .collect();
        let mut host = json!({
            // The agent decides restarts.
            "RestartPolicy": { "Name": "no" },
            "Mounts": mounts,
            "LogConfig": {
                "Type": "json-file",
                "Config": { "max-size": ENGINE_LOG_SIZE, "max-file": ENGINE_LOG_FILES },
            },
            "SecurityOpt": ["no-new-privileges"],
            // With it a neighbour's address is put on; `ping` needs it no more.
            "CapDrop": ["NET_RAW"],
        });
        if let Some(processes) = self.limits.processes {
            host["PidsLimit"] = json!(processes);
        }
        if let Some(bytes) = self.limits.memory_bytes {
            // No swap beside it: what is over the limit is ended, not slowed down.
            host["Memory"] = json!(bytes);
            host["MemorySwap"] = json!(bytes);
        }
        if let Some(millis) = self.limits.cpu_millis {
            host["NanoCpus"] = json!(u64::from(millis) * 1_000_000);
        }
        if !self.names.is_empty() {
            let lines = self.names.iter().map(|(name, address)| format!("{name}:{address}"));
            host["ExtraHosts"] = lines.collect();
        }
        if let Some(port) = self.port {
            host["PortBindings"] = json!({
                format!("{}/tcp", port.inside): [{ "HostIp": "127.0.0.1", "HostPort": port.host.to_string() }],
            });
        }
        host
    }

    /// What is done with the image, in the words of the log.
    pub fn announcement(&self) -> String {
        let mut words = vec![format!("image {}", self.image_name)];
        match &self.command {
            Some(_) if self.config.entrypoint.as_ref().is_some_and(|entry| !entry.is_empty()) => {
                words.push("the app file's command replaces its entrypoint and command".to_owned());
            }
            Some(_) => words.push("the app file's command".to_owned()),
            None => words.push(format!("its own command `{}`", self.config.own_command().join(" "))),
        }
        words.push(match self.config.user.as_str() {
            "" => "user root in the container (the image names no other)".to_owned(),
            user => format!("user {user}"),
        });
        if let Some(port) = self.port {
            words.push(format!("port {} published at 127.0.0.1:{}", port.inside, port.host));
        }
        format!("started (attempt {}): {}", self.attempt, words.join(", "))
    }

    /// Behind the engine's words of why it did not start.
    pub fn way_out_of(&self, code: i32) -> &'static str {
        match (&self.command, code) {
            (Some(_), 127) => {
                ": a command goes through /bin/sh, which the image must have; without `command` it runs the image's own"
            }
            _ => "",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "shop@staging-web-1".into(),
            attempt: 2,
            directory: "/d".into(),
            logs: "/l".into(),
            image: "sha256:1".into(),
            image_name: "shop:1".into(),
            config: ImageConfig { entrypoint: Some(vec!["/entry".into()]), ..ImageConfig::default() },
            command: None,
            env: [("TOKEN".to_owned(), "two\nlines".to_owned())].into(),
            mounts: vec![Mount { source: "/v".into(), target: "/data".into() }],
            fresh: Vec::new(),
            limits: Limits {
                memory_bytes: Some(1000),
                cpu_millis: Some(500),
                processes: Some(64),
                ..Limits::default()
            },
            port: Some(ContainerPort { host: 20001, inside: 80 }),
            calls: None,
            names: [("api.shop.internal".to_owned(), Ipv4Addr::new(127, 64, 3, 7))].into(),
            io: Io::Logs,
            time_limit_ms: None,
            labels: Labels::new(),
        }
    }

    #[test]
    fn a_container_is_published_on_loopback_only_and_limited() {
        let body = spec().body("rung-1");
        let host = &body["HostConfig"];
        assert_eq!(host["PortBindings"]["80/tcp"][0], json!({ "HostIp": "127.0.0.1", "HostPort": "20001" }));
        assert_eq!((host["Memory"].as_u64(), host["MemorySwap"].as_u64()), (Some(1000), Some(1000)));
        assert_eq!(host["NanoCpus"], 500_000_000);
        assert_eq!(host["CapDrop"], json!(["NET_RAW"]), "it may put a neighbour's address on");
        assert_eq!(host["ExtraHosts"], json!(["api.shop.internal:127.64.3.7"]));
        assert_eq!(body["Env"], json!(["TOKEN=two\nlines"]));
        assert!(body.get("Cmd").is_none(), "the image's own command is left alone: {body}");
        assert_eq!(spec().record("rung-1").name, "rung-1-shop_staging-web-1-2");
    }

    #[test]
    fn a_command_begins_when_its_calls_are_heard() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let arguments = ["-c", &once_heard(port), "echo $0 ${__rung-unset}"];
        let shell = std::process::Command::new("/bin/sh").args(arguments).output().unwrap();
        let said = String::from_utf8(shell.stdout).unwrap();
        assert_eq!(said, "/bin/sh unset\n", "the command sees that something was before it");
        assert!(once_heard(port).contains("-lt 5000"), "it waits for ever where nobody listens");
        let calls = Calls { app: rung_model::AppName::new("shop").unwrap(), port: 7700 };
        let spec = ContainerSpec { command: Some("bin/web".into()), calls: Some(calls), ..spec() };
        assert_eq!(spec.body("t")["Cmd"][1], "bin/web");
    }

    #[test]
    fn what_is_done_with_an_image_is_said() {
        let own = spec().announcement();
        assert!(own.contains("its own command `/entry`") && own.contains("user root"), "{own}");
        let replaced = ContainerSpec { command: Some("bin/web".into()), ..spec() };
        assert!(replaced.announcement().contains("replaces its entrypoint"), "{}", replaced.announcement());
        assert_eq!(replaced.body("t")["Entrypoint"], json!(["/bin/sh", "-c"]));
    }
}
