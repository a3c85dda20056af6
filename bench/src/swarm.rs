//! Docker Swarm, on a data directory and a socket of its own.
//!
//! Where the kernel has no IPVS, Swarm's routing mesh does not work; its tasks are published on ports of the host
//! then, and asked there one by one. So what is measured of Swarm has no balancer in it, which is to its advantage.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rung_e2e::process::{self, Life};
use rung_e2e::{eventually, http};
use tempfile::TempDir;

use crate::docker::{self, Engine};
use crate::payload::Payload;

const PLATFORM: [&str; 5] = ["dockerd", "containerd", "containerd-shim", "docker-proxy", "runc"];

#[derive(Debug)]
pub struct Swarm {
    engine: Engine,
    directory: TempDir,
    daemon: Child,
}

/// A running task, as the Engine's API tells it.
#[derive(Debug)]
struct Task {
    container: String,
    address: SocketAddr,
}

impl Swarm {
    pub fn start() -> anyhow::Result<Self> {
        let program = docker::daemon()?;
        let directory = tempfile::Builder::new().prefix("rung-bench-docker-").tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let log = std::fs::File::create(at("log"))?;
        let mut command = Command::new(program);
        command
            .arg("--data-root")
            .arg(at("root"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"));
        command.arg("-H").arg(format!("unix://{}", at("sock").display()));
        let daemon = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let swarm = Self { engine: Engine::at(at("sock")), directory, daemon };
        eventually("dockerd answers", || {
            swarm.engine.get("/v1.41/info").map(|_| ()).map_err(|error| format!("{error:#}"))
        });
        let init = |listen: &str| {
            let arguments = ["swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", listen];
            swarm.engine.docker(&arguments)
        };
        init("127.0.0.1:0").or_else(|_| init("127.0.0.1:2377"))?;
        swarm.import_base()?;
        Ok(swarm)
    }

    /// An image of what the application needs to run.
    fn import_base(&self) -> anyhow::Result<()> {
        let (tree, archive) = (self.directory.path().join("base"), self.directory.path().join("base.tar"));
        docker::put_libraries(&tree)?;
        docker::pack(&tree, &archive)?;
        self.engine.docker(&["import", archive.to_str().context("a name in UTF-8")?, "base:1"])?;
        Ok(())
    }

    fn build(&self, app: &Payload) -> anyhow::Result<String> {
        let image = format!("bench:{}", app.spelled());
        let dockerfile = self.directory.path().join("Dockerfile");
        std::fs::write(
            &dockerfile,
            "FROM base:1\nCOPY . /app\nWORKDIR /app\nENV BIND=0.0.0.0 PORT=8000\nCMD [\"/app/server\", \"serve\"]\n",
        )?;
        let file = dockerfile.to_str().context("a name in UTF-8")?;
        let context = app.directory().to_str().context("a name in UTF-8")?;
        self.engine.docker(&["build", "-q", "-f", file, "-t", &image, context])?;
        Ok(image)
    }

    /// The first deploy of a service with the application.
    pub fn begin(&mut self, app: &Payload, service: &str, replicas: usize) -> anyhow::Result<()> {
        let image = self.build(app)?;
        let count = replicas.to_string();
        let mut arguments = vec!["service", "create", "-q", "--name", service, "--replicas", &count];
        arguments.extend(["--publish", "mode=host,target=8000", "--update-order", "start-first"]);
        arguments.extend([
            "--update-parallelism",
            "0",
            "--update-monitor",
            "1ns",
            "--restart-delay",
            "0s",
            &image,
        ]);
        self.engine.docker(&arguments)?;
        self.wait_for(service, replicas, &app.spelled());
        Ok(())
    }

    fn tasks(&self, service: &str) -> anyhow::Result<Vec<Task>> {
        let listed = self.engine.get("/v1.41/containers/json")?;
        let mut tasks = Vec::new();
        for container in listed.as_array().into_iter().flatten() {
            if container["Labels"]["com.docker.swarm.service.name"].as_str() != Some(service) {
                continue;
            }
            let ports = container["Ports"].as_array().into_iter().flatten();
            let port = ports
                .filter_map(|port| port["PublicPort"].as_u64())
                .next()
                .and_then(|port| u16::try_from(port).ok());
            if let (Some(id), Some(port)) = (container["Id"].as_str(), port) {
                tasks.push(Task { container: id.to_owned(), address: ([127, 0, 0, 1], port).into() });
            }
        }
        Ok(tasks)
    }

    /// Waits until whatever answers of a service is of this version, and is as many as it shall be.
    fn wait_for(&self, service: &str, replicas: usize, version: &str) -> Instant {
        eventually(&format!("{service} serves version {version} alone"), || {
            let tasks = self.tasks(service).map_err(|error| format!("{error:#}"))?;
            let versions: Vec<Option<String>> = tasks
                .iter()
                .map(|task| {
                    http::get(task.address, "bench", "/")
                        .ok()
                        .and_then(|a| a.header("x-version").map(str::to_owned))
                })
                .collect();
            let new = versions.iter().flatten().filter(|v| *v == version).count();
            let old = versions.iter().flatten().filter(|v| *v != version).count();
            if new >= replicas && old == 0 { Ok(Instant::now()) } else { Err(format!("{versions:?}")) }
        })
    }

    /// How long the image's build and the service's update took.
    pub fn deploy(&mut self, app: &Payload) -> anyhow::Result<(Duration, Duration)> {
        let began = Instant::now();
        let image = self.build(app)?;
        let built = Instant::now();
        let mut update = self.engine.command(&["service", "update", "-q", "--image", &image, "pair"]);
        let mut update = update.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let served = self.wait_for("pair", 2, &app.spelled());
        anyhow::ensure!(update.wait()?.success(), "docker service update failed");
        Ok((built - began, served - built))
    }

    /// Kills the only task of `solo`: until another one answers.
    pub fn kill(&mut self) -> anyhow::Result<Duration> {
        let victim = eventually("one task of solo answers", || {
            let mut tasks = self.tasks("solo").map_err(|error| format!("{error:#}"))?;
            match tasks.len() {
                1 if http::get(tasks[0].address, "bench", "/").is_ok() => Ok(tasks.remove(0)),
                n => Err(format!("{n} tasks")),
            }
        });
        let inspected = self.engine.get(&format!("/v1.41/containers/{}/json", victim.container))?;
        let pid =
            inspected["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no pid")?;
        let began = Instant::now();
        process::kill_9(pid);
        let back = eventually("another task of solo answers", || {
            let tasks = self.tasks("solo").map_err(|error| format!("{error:#}"))?;
            let fresh = tasks.iter().filter(|task| task.container != victim.container);
            let answers = fresh.filter(|task| http::get(task.address, "bench", "/").is_ok()).count();
            if answers > 0 { Ok(Instant::now()) } else { Err(format!("{tasks:?}")) }
        });
        Ok(back - began)
    }

    /// The daemon, containerd, their shims and proxies.
    pub fn processes(&self) -> Vec<Life> {
        let mut lives = process::concerned_with(self.directory.path());
        lives.extend(process::children(self.daemon.id()));
        lives.retain(|life| {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", life.pid)).unwrap_or_default();
            PLATFORM.iter().any(|platform| name.trim().starts_with(platform))
        });
        lives.sort();
        lives.dedup();
        lives
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for name in ["pair", "solo"] {
            // What was never made can't be removed.
            let _ = self.engine.docker(&["service", "rm", name]);
        }
        let _ = self.engine.docker(&["swarm", "leave", "--force"]);
        process::signal(self.daemon.id(), libc::SIGTERM);
        let _ = self.daemon.wait();
        for life in self.processes() {
            process::kill_9(life.pid);
        }
        // Mounts of layers that a container left would keep the directory.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|at| Path::new(at).starts_with(self.directory.path()));
        for at in ours {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}
