//! What the machine allows. Each kind of isolation is tried, not guessed: kernels, containers and hardening differ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rung_model::NodeFacts;
use rung_model::node::{ContainerEngine, IsolationFact};

use crate::cgroups::Cgroups;
use crate::driver::process::{self, Processes};
use crate::engine::Engine;
use crate::firewall::Firewall;
use crate::firewall::walls::Walls;
use crate::node::Node;
use crate::shim::protocol::{Access, How, Io, Isolation, Limits, Spec};

/// How instances are run here.
#[derive(Debug, Clone)]
pub struct Capabilities {
    pub kind: Kind,
    /// Why not better, when it is not the best.
    pub shortfall: Option<String>,
    pub cgroups: Cgroups,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    OwnUsers,
    UserNamespace,
    Plain,
}

/// A user that exists nowhere, for trying.
const TRIAL_UID: u32 = 69_999;

impl Capabilities {
    /// Starts a life of each kind, the best first, until one works.
    pub async fn detect(driver: &Processes, scratch: &Path, cgroups: Cgroups) -> Self {
        let is_root = nix::unistd::geteuid().is_root();
        let best = if is_root {
            (Kind::OwnUsers, Isolation::OwnUser { uid: TRIAL_UID, gid: TRIAL_UID })
        } else {
            (Kind::UserNamespace, Isolation::UserNamespace)
        };
        match try_life(driver, scratch, best.1).await {
            Ok(()) => Self { kind: best.0, shortfall: None, cgroups },
            Err(reason) => {
                tracing::warn!(reason, "instances can't be isolated");
                Self { kind: Kind::Plain, shortfall: Some(reason), cgroups }
            }
        }
    }

    /// `open_ports`: why the firewall does not keep ports of instances, when it does not; `open_addresses`: the same of
    /// containers' addresses.
    pub fn isolation_facts(
        &self,
        engine: &ContainerEngine,
        open_ports: Option<&str>,
        open_addresses: Option<&str>,
    ) -> Vec<IsolationFact> {
        let fact = |name: &str, available: bool, consequence: &str| IsolationFact {
            name: name.to_owned(),
            available,
            consequence: if available { String::new() } else { consequence.to_owned() },
        };
        let isolated = self.kind != Kind::Plain;
        let why = self.shortfall.as_deref().unwrap_or("not root");
        let mut facts = vec![
            fact(
                "own user",
                self.kind == Kind::OwnUsers,
                &format!(
                    "instances run as the user who runs rung and could read that user's files; run rung as root ({why})"
                ),
            ),
            fact(
                "pid namespace",
                isolated,
                &format!(
                    "when an instance's shim and its init are killed in the same moment, processes may be left over; \
                     run rung as root or allow user namespaces ({why})"
                ),
            ),
            fact(
                "mount namespace",
                isolated,
                &format!(
                    "the artifact is not at /app and can be written to, /tmp is shared (use TMPDIR), and volumes are \
                     found by RUNG_VOLUME_<NAME> only, services by RUNG_SERVICE_<NAME>_URL only; run rung as root or allow user namespaces ({why})"
                ),
            ),
            fact(
                "memory limit",
                self.cgroups.memory,
                "an instance may take all of the machine's memory; give rung a cgroup (`rung service install` does)",
            ),
            fact(
                "cpu limit",
                self.cgroups.cpu,
                "an instance may take all of the machine's cores; give rung a cgroup (`rung service install` does)",
            ),
            fact(
                "process limit",
                self.cgroups.processes,
                "a fork bomb in an instance is not stopped; give rung a cgroup (`rung service install` does)",
            ),
            engine_fact(engine),
            fact(
                "calls from containers",
                self.kind == Kind::OwnUsers,
                "apps from images find no addresses of services: only root may enter a container's network; run rung as \
                 root",
            ),
            fact("no new privileges", true, ""),
            fact("no capabilities", true, ""),
            fact(
                "system call filter",
                crate::shim::filter::is_possible(),
                "instances may use every system call that their user may; keep the machine's kernel up to date",
            ),
            fact(
                "callers of services",
                self.kind == Kind::OwnUsers,
                "`allow` in app files is not enforced: apps that run as one user can't be told apart, and each may call \
                 every service; run rung as root",
            ),
            fact(
                "ports of instances",
                open_ports.is_none(),
                &format!(
                    "whoever is on this machine reaches instances by their ports on 127.0.0.1, past `allow`; let only apps \
                     that trust each other share a machine ({})",
                    open_ports.unwrap_or_default()
                ),
            ),
        ];
        if matches!(engine, ContainerEngine::Answers { .. }) {
            facts.push(fact(
                "addresses of containers",
                open_addresses.is_none(),
                &format!(
                    "containers reach each other, and whoever is on this machine reaches them, by the addresses that the \
                     engine gives them, past `allow`; let only apps that trust each other share an engine ({})",
                    open_addresses.unwrap_or_default()
                ),
            ));
        }
        facts
    }
}

fn engine_fact(engine: &ContainerEngine) -> IsolationFact {
    let (name, why) = match engine {
        ContainerEngine::Answers { name } => (format!("container engine ({name})"), None),
        ContainerEngine::Silent { why } => ("container engine".to_owned(), Some(why.as_str())),
        ContainerEngine::Unknown => ("container engine".to_owned(), Some("it was not looked for")),
    };
    let consequence = |why| format!("apps with `[build] image` or `dockerfile` can't run here: {why}");
    IsolationFact { name, available: why.is_none(), consequence: why.map(consequence).unwrap_or_default() }
}

/// Its name and version; otherwise why there is none, in words.
pub async fn look_for_engine(engine: &Engine) -> ContainerEngine {
    match engine.version().await {
        Ok(version) => ContainerEngine::Answers { name: version.name() },
        Err(error) => ContainerEngine::Silent { why: error.to_string() },
    }
}

async fn try_life(driver: &Processes, scratch: &Path, isolation: Isolation) -> Result<(), String> {
    let directory = scratch.join("trial");
    let tmp = directory.join("tmp");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&tmp).map_err(|e| format!("making {}: {e}", tmp.display()))?;
    let spec = Spec {
        name: "trial".to_owned(),
        attempt: 1,
        logs: directory.join("logs"),
        command: "exit 0".to_owned(),
        env: BTreeMap::new(),
        tree: tmp.clone(),
        tree_access: Access::ReadOnly,
        tmp,
        directory: directory.clone(),
        mounts: Vec::new(),
        names: BTreeMap::new(),
        masked: Vec::new(),
        isolation,
        limits: Limits::default(),
        io: Io::Logs,
        time_limit_ms: Some(10_000),
        once: None,
        lease: None,
    };
    let tried = match driver.spawn(&spec).await {
        Ok(_) => match process::ended(&directory, 1).await.how {
            How::Exited { code: 0 } => Ok(()),
            how => Err(format!("a trial ended with {how:?}")),
        },
        Err(error) => Err(error.to_string()),
    };
    let _ = std::fs::remove_dir_all(&directory);
    tried
}

/// The same of a machine that is no node: nothing is left of the trial. `scratch` must be there, and be ours.
pub async fn isolation_here(program: PathBuf, scratch: &Path) -> Vec<IsolationFact> {
    let name = format!("rung-trial-{}", std::process::id());
    let firewall = Firewall::new(&name, scratch);
    let walls = Walls::new(Engine::of_this_machine(), &name, scratch, scratch.join("users"));
    let cgroups = tokio::task::spawn_blocking(move || Cgroups::detect(&name)).await.unwrap_or_default();
    let capabilities = Capabilities::detect(&Processes::new(program), scratch, cgroups).await;
    capabilities.cgroups.release();
    let engine = look_for_engine(&Engine::of_this_machine()).await;
    let (open_ports, open_addresses) = match capabilities.kind {
        Kind::OwnUsers => (firewall.trial().await, walls.trial().await),
        Kind::UserNamespace | Kind::Plain => {
            (Firewall::without_users().shortfall(), Walls::default().shortfall())
        }
    };
    capabilities.isolation_facts(&engine, open_ports.as_deref(), open_addresses.as_deref())
}

/// Where others find what runs on this node.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The agent's own API.
    pub agent: String,
    /// The proxy for requests of other machines.
    pub proxy: Option<std::net::SocketAddr>,
}

/// What the node says of itself when it registers.
pub fn node_facts(
    reached: &Reached,
    node: &Node,
    engine: ContainerEngine,
    short_of_disk: Option<u64>,
) -> NodeFacts {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeFacts {
        agent: reached.agent.clone(),
        proxy: reached.proxy,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_millis: cores as u64 * 1000,
        memory_bytes: memory_bytes(),
        isolation: node.capabilities.isolation_facts(
            &engine,
            node.firewall.shortfall().as_deref(),
            node.walls.shortfall().as_deref(),
        ),
        engine,
        disk_bytes: disk_bytes(node.layout.root()),
        short_of_disk,
        labels: node.labels.clone(),
        lease_ms: node.leases.promise(),
    }
}

/// The size of the file system that volumes are on.
fn disk_bytes(directory: &Path) -> Option<u64> {
    let known = nix::sys::statvfs::statvfs(directory).ok()?;
    Some(known.blocks().saturating_mul(known.fragment_size()))
}

/// With less than this free nothing new is put on a node; on a small disk with less than a twentieth of it.
const ROOM_MIN: u64 = 64 << 20;

/// What is free where the node keeps its data, when that is too little. Once it was, half as much more must be free again,
/// so that it does not change all the time near the bound; and it is said as it was.
pub fn short_of_disk(directory: &Path, was: Option<u64>) -> Option<u64> {
    let known = nix::sys::statvfs::statvfs(directory).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(known.fragment_size());
    shortage(bytes(known.blocks_available()), bytes(known.blocks()), was)
}

fn shortage(free: u64, size: u64, was: Option<u64>) -> Option<u64> {
    let least = ROOM_MIN.min(size / 20);
    let enough = if was.is_some() { least + least / 2 } else { least };
    (free < enough).then(|| was.unwrap_or(free))
}

pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn a_disk_is_short_of_room_below_a_bound_and_no_more_well_above_it() {
        assert_eq!(shortage(65 * MB, 100_000 * MB, None), None);
        assert_eq!(shortage(63 * MB, 100_000 * MB, None), Some(63 * MB));
        assert_eq!(
            shortage(70 * MB, 100_000 * MB, Some(63 * MB)),
            Some(63 * MB),
            "near the bound it stays so"
        );
        assert_eq!(shortage(96 * MB, 100_000 * MB, Some(63 * MB)), None);
    }

    #[test]
    fn a_small_disk_may_be_filled_further() {
        assert_eq!(shortage(3 * MB, 48 * MB, None), None);
        assert_eq!(shortage(MB, 48 * MB, None), Some(MB));
    }
}
