//! Docker Swarm on machines as Rung has them: a manager on each, with its own defaults.
//!
//! The engine of each is the first process of a namespace of processes, with mounts of its own: when it is killed, its
//! containers and what publishes their ports end with it at once, as when a machine's power fails.
//!
//! Its routing mesh is left out, for it needs IPVS. Tasks publish a port of their machine (`mode=host`), and the client asks
//! them in turn, by the list that Swarm itself keeps of those that run.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use rung_e2e::{Hosts, http, process};
use tempfile::TempDir;

use super::stage;
use crate::docker::{self, Engine};
use crate::payload::Payload;
use crate::stream::{Asking, Stream};
use crate::until;

const IMAGE: &str = "shop:1";
const CHANGES: [&str; 3] = ["CMD [\"/app/server\", \"serve\"]", "ENV BIND=0.0.0.0 PORT=8000", "WORKDIR /app"];
/// `service=shop`, and meant to run.
const TASKS: &str = "/v1.41/tasks?filters=%7B%22service%22%3A%7B%22shop%22%3Atrue%7D%2C%22desired-state%22%3A%7B%22running%22%3Atrue%7D%7D";
/// What follows the list in practice does so every few seconds, or by events.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// No `/run` of another machine's is seen, and nothing stays in it.
const START: &str = "mount -t tmpfs tmpfs /run && exec \"$@\"";

/// The application, packed for `docker import`.
#[derive(Debug)]
pub struct Image {
    directory: TempDir,
}

impl Image {
    /// An error says what is missing on this machine.
    pub fn pack() -> anyhow::Result<Self> {
        docker::daemon()?;
        let app = Payload::new("shop", 1)?;
        let image = Self { directory: tempfile::Builder::new().prefix("rung-bench-").tempdir()? };
        let tree = image.directory.path().join("tree");
        docker::put_libraries(&tree)?;
        std::fs::create_dir_all(tree.join("app"))?;
        for name in ["server", "padding", "version"] {
            std::fs::copy(app.directory().join(name), tree.join("app").join(name))?;
        }
        docker::pack(&tree, &image.archive())?;
        Ok(image)
    }

    fn archive(&self) -> PathBuf {
        self.directory.path().join("image.tar")
    }
}

/// A machine's engine.
#[derive(Debug)]
struct Machine {
    daemon: Child,
    engine: Engine,
}

impl Machine {
    fn start(hosts: &Hosts, number: usize) -> anyhow::Result<Self> {
        let host = hosts.host(number);
        let data = host.data();
        std::fs::create_dir_all(&data)?;
        let at = |name: &str| data.join(name).display().to_string();
        let log = std::fs::File::create(data.join("log"))?;
        let socket = format!("unix://{}", at("sock"));
        let (root, exec, pid, cgroup) = (at("root"), at("exec"), at("pid"), format!("/{}", stage::name()));
        // Whatever becomes of the bench, the engine ends with it, and its containers with the engine.
        let words = [
            &["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
                [..],
            &["sh", "-c", START, "sh", docker::daemon()?, "--data-root", &root, "--exec-root", &exec],
            &["--pidfile", &pid, "--cgroup-parent", &cgroup, "-H", &socket],
        ];
        let mut command = host.program("setpriv", &words.concat());
        // The image is on each machine: nothing is gained by looking for it elsewhere.
        command.env("DOCKER_SERVICE_PREFER_OFFLINE_IMAGE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let daemon = command.spawn().context("starting setpriv (of Debian's util-linux)")?;
        Ok(Self { daemon, engine: Engine::at(data.join("sock")) })
    }

    fn wait_until_up(&mut self, log: &Path) -> anyhow::Result<()> {
        let Self { daemon, engine } = self;
        until("dockerd answers", || {
            if let Ok(Some(status)) = daemon.try_wait() {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                anyhow::bail!("dockerd ended with {status}: {}", last.join(" / "));
            }
            engine.get("/v1.41/info").map(Some).or(Ok(None))
        })?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        process::kill_9(self.daemon.id());
        let _ = self.daemon.wait();
    }
}

/// Three managers.
#[derive(Debug)]
pub struct Swarm {
    machines: Vec<Machine>,
    hosts: Hosts,
    /// The machines by the names that Swarm gives them.
    nodes: BTreeMap<String, usize>,
}

/// A task that Swarm says is running.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    pub machine: usize,
    address: SocketAddr,
}

impl Task {
    pub fn answers(&self) -> bool {
        http::get(self.address, "shop", "/").is_ok_and(|answer| answer.status == 200)
    }
}

impl Swarm {
    pub fn start(hosts: Hosts, image: &Image) -> anyhow::Result<Self> {
        let mut swarm = Self { machines: Vec::new(), hosts, nodes: BTreeMap::new() };
        for number in 1..=3 {
            swarm.machines.push(Machine::start(&swarm.hosts, number)?);
        }
        let archive = image.archive();
        let archive = archive.to_str().context("a name in UTF-8")?;
        let import: Vec<&str> = CHANGES.iter().flat_map(|change| ["-c", change]).collect();
        for number in 1..=3 {
            let log = swarm.hosts.host(number).data().join("log");
            swarm.machines[number - 1].wait_until_up(&log)?;
            swarm.engine(number).docker(&[&["import"], import.as_slice(), &[archive, IMAGE]].concat())?;
        }
        let at = |number: usize| swarm.hosts.host(number).address.to_string();
        // The usual pool of its networks is where the machines are.
        let pool = ["--default-addr-pool", "10.200.0.0/16"];
        swarm.engine(1).docker(&[&["swarm", "init", "--advertise-addr", &at(1)], &pool[..]].concat())?;
        let token = swarm.engine(1).docker(&["swarm", "join-token", "-q", "manager"])?;
        let first = format!("{}:2377", at(1));
        for number in 2..=3 {
            let own = at(number);
            let arguments = ["swarm", "join", "--token", token.trim(), "--advertise-addr", &own, &first];
            swarm.engine(number).docker(&arguments)?;
        }
        swarm.nodes =
            until("three managers are ready", || Ok(swarm.ready_managers().ok().filter(|n| n.len() == 3)))?;
        Ok(swarm)
    }

    fn engine(&self, number: usize) -> &Engine {
        &self.machines[number - 1].engine
    }

    fn ready_managers(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let listed = self.engine(1).get("/v1.41/nodes")?;
        let mut nodes = BTreeMap::new();
        for node in listed.as_array().into_iter().flatten() {
            let is_ready =
                node["Status"]["State"] == "ready" && node["ManagerStatus"]["Reachability"] == "reachable";
            let address: Ipv4Addr = node["Status"]["Addr"].as_str().unwrap_or_default().parse()?;
            if is_ready && let Some(id) = node["ID"].as_str() {
                nodes.insert(id.to_owned(), usize::from(address.octets()[3]));
            }
        }
        Ok(nodes)
    }

    /// The machine of the manager that leads.
    pub fn leader(&self) -> anyhow::Result<usize> {
        let listed = self.engine(1).get("/v1.41/nodes")?;
        let leads = |node: &&serde_json::Value| node["ManagerStatus"]["Leader"] == true;
        let id = listed.as_array().into_iter().flatten().find(leads).and_then(|node| node["ID"].as_str());
        id.and_then(|id| self.nodes.get(id)).copied().context("nobody leads")
    }

    pub fn begin(&self, replicas: usize) -> anyhow::Result<()> {
        let count = replicas.to_string();
        let words = ["service", "create", "--detach", "-q", "--no-resolve-image", "--name", "shop"];
        let more = ["--replicas", &count, "--publish", "mode=host,target=8000", IMAGE];
        self.engine(1).docker(&[&words[..], &more].concat())?;
        Ok(())
    }

    /// As a machine's manager lists them.
    fn lister(&self, number: usize) -> impl Fn() -> anyhow::Result<Vec<Task>> + Send + 'static {
        let (engine, nodes) = (self.engine(number).clone(), self.nodes.clone());
        move || {
            let listed = engine.get(TASKS)?;
            let running =
                listed.as_array().into_iter().flatten().filter(|task| task["Status"]["State"] == "running");
            let tasks = running.filter_map(|task| {
                let machine = *nodes.get(task["NodeID"].as_str()?)?;
                let port = task["Status"]["PortStatus"]["Ports"][0]["PublishedPort"].as_u64()?;
                let address = Ipv4Addr::new(10, 0, 0, u8::try_from(machine).ok()?);
                Some(Task { machine, address: (address, u16::try_from(port).ok()?).into() })
            });
            Ok(tasks.collect())
        }
    }

    /// Waits until so many tasks that `of` accepts run and answer, as seen from a machine.
    pub fn wait_until_answered(
        &self,
        asker: usize,
        count: usize,
        of: impl Fn(&Task) -> bool,
    ) -> anyhow::Result<()> {
        let list = self.lister(asker);
        until(&format!("{count} tasks answer"), || {
            let tasks: Vec<Task> = list().unwrap_or_default().into_iter().filter(&of).collect();
            let is_whole =
                tasks.len() == count && self.hosts.host(asker).inside(|| tasks.iter().all(Task::answers));
            Ok(is_whole.then_some(()))
        })
    }

    /// A stream of a client on this machine, to all tasks in turn.
    pub fn stream(&self, asker: usize) -> anyhow::Result<(Stream, Follower)> {
        let follower = Follower::start(self.lister(asker))?;
        let tasks = follower.tasks.clone();
        let choose = move |number: usize| {
            let tasks = tasks.lock().expect("nobody panics while holding it");
            let first = tasks.get(number % tasks.len().max(1))?;
            let second = tasks.iter().cycle().skip(number % tasks.len()).take(tasks.len());
            let second = second.into_iter().find(|task| task.machine != first.machine);
            Some(Asking { first: first.address, second: second.map(|task| task.address) })
        };
        Ok((self.hosts.host(asker).inside(|| Stream::by_turns("shop", choose)), follower))
    }

    pub fn power_off(&mut self, number: usize) {
        self.hosts.power_off(number);
    }
}

/// Keeps a client's list of tasks as Swarm has it. While nobody leads it has none, and the last one is kept.
#[derive(Debug)]
pub struct Follower {
    tasks: Arc<Mutex<Vec<Task>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    fn start(list: impl Fn() -> anyhow::Result<Vec<Task>> + Send + 'static) -> anyhow::Result<Self> {
        let tasks = Arc::new(Mutex::new(list()?));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (tasks.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(listed) = list() {
                    *kept.lock().expect("nobody panics while holding it") = listed;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Ok(Self { tasks, stop, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
