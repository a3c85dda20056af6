//! A container engine of a test's own: dockerd with its own data, socket and bridge, and a registry beside it.
//!
//! Also included by the tests of the agent, which may not use this crate: it needs nothing of it.
#![allow(dead_code, reason = "each user of it uses a part")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// An engine starts within a second; a busy machine takes longer.
const START_WAIT: Duration = Duration::from_secs(60);
const STOP_WAIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Debian's, whatever else calls itself docker on the machine.
const DOCKER: &str = "/usr/bin/docker";
/// What `busybox` is called by in the test images.
const TOOLS: [&str; 18] = [
    "sh", "httpd", "sleep", "cat", "echo", "id", "ls", "wget", "env", "kill", "printf", "date", "test",
    "stat", "grep", "nc", "touch", "timeout",
];

/// A running dockerd. Dropping it removes its containers, ends it, and takes its bridge down.
#[derive(Debug)]
pub struct Dockerd {
    directory: TempDir,
    bridge: Bridge,
    daemon: Option<Child>,
    /// It was killed, and its containers may run on.
    was_killed: bool,
}

/// A network of its own: two engines with one bridge would give one address twice.
#[derive(Debug)]
struct Bridge {
    name: String,
}

impl Bridge {
    fn new() -> Self {
        // Test processes run side by side: the number of the process tells them apart.
        let pid = std::process::id();
        let bridge = Self { name: format!("rgt{pid}") };
        let (high, low) = (pid / 250 % 200, pid % 250);
        run("ip", &["link", "add", &bridge.name, "type", "bridge"]);
        run("ip", &["addr", "add", &format!("10.{}.{low}.1/24", high + 20), "dev", &bridge.name]);
        run("ip", &["link", "set", &bridge.name, "up"]);
        bridge
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("starting {program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
}

fn wait_until(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < until, "waited {} s in vain until {what}", patience.as_secs());
        std::thread::sleep(LOOK_EVERY); // tidy: it polls for the end of what is no child's
    }
}

impl Dockerd {
    pub fn start() -> Self {
        let directory =
            tempfile::Builder::new().prefix("rung-engine-").tempdir().expect("a temporary directory");
        let mut dockerd = Self { directory, bridge: Bridge::new(), daemon: None, was_killed: false };
        dockerd.up();
        dockerd.import("base:1", &[]);
        dockerd
    }

    /// Starts it, again after [`Dockerd::down`] and [`Dockerd::kill_9`].
    pub fn up(&mut self) {
        self.was_killed = false;
        let at = |name: &str| self.directory.path().join(name);
        let log = fs::File::options().create(true).append(true).open(at("log")).expect("the engine's log");
        let mut command = Command::new("/usr/sbin/dockerd");
        command.arg("--data-root").arg(at("root")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("pid")).arg("-H").arg(self.host());
        command.args([
            "--bridge",
            &self.bridge.name,
            "--iptables=false",
            "--ip-masq=false",
            "--log-level=warn",
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        // A Ctrl-C that a person gives to the tests is not for it.
        command.process_group(0);
        let daemon = command
            .spawn()
            .unwrap_or_else(|error| panic!("starting dockerd (of Debian's docker.io): {error}"));
        self.daemon = Some(daemon);
        wait_until("dockerd answers", START_WAIT, || {
            let ended = self.daemon.as_mut().expect("it was started").try_wait().expect("its status");
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "dockerd ended at once:\n{}", log());
            let mut asked = self.docker_command(&["version"]);
            asked.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
    }

    /// Ends it as a machine's service manager would; its containers end with it.
    pub fn down(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = i32::try_from(daemon.id()).expect("pids are small");
        #[allow(unsafe_code)]
        // SAFETY: it is a child that was not collected yet, so the number is its own.
        unsafe {
            libc::kill(pid, libc::SIGTERM);
        }
        wait_until("dockerd ends", STOP_WAIT, || daemon.try_wait().is_ok_and(|status| status.is_some()));
    }

    /// Kills it as the kernel does when memory is short: its containers run on, what published their ports does not.
    pub fn kill_9(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        self.was_killed = true;
        let file = self.containerd_pid_file();
        let pid = fs::read_to_string(&file).unwrap_or_default();
        daemon.kill().and_then(|()| daemon.wait()).expect("killing dockerd");
        // The kernel ends it with the one that started it. Where nobody collects orphans the next one would take the number
        // for that of a containerd that runs.
        wait_until("containerd has ended, too", STOP_WAIT, || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
        });
        let _ = fs::remove_file(file);
    }

    fn containerd_pid_file(&self) -> PathBuf {
        self.directory.path().join("exec/containerd/containerd.pid")
    }

    /// Kills the part of it that runs containers, which it starts again.
    pub fn kill_containerd(&self) {
        let file = self.containerd_pid_file();
        let pid = || fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
        let before = pid();
        run("kill", &["-9", &before]);
        wait_until("containerd is started again", START_WAIT, || {
            !matches!(pid(), now if now.is_empty() || now == before) && self.runs_containers()
        });
    }

    fn runs_containers(&self) -> bool {
        let mut tried = self.docker_command(&["run", "--rm", "base:1", "test", "-d", "/bin"]);
        tried.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// As `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DOCKER);
        command.arg("-H").arg(self.host()).args(arguments).stdin(Stdio::null());
        // No credentials of the one who runs the tests.
        command.env("DOCKER_CONFIG", self.directory.path().join("no-config"));
        command
    }

    /// # Panics
    /// When the command fails, with what it said.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.docker_command(arguments).output().expect("docker starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {}: {said}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The names of all containers, running or not.
    pub fn containers(&self) -> Vec<String> {
        self.docker(&["ps", "-a", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
    }

    /// A network beside the one that containers are on when nobody says another; between the two the machine routes.
    pub fn make_network(&self, name: &str) {
        let pid = std::process::id();
        let subnet = format!("100.{}.{}.0/24", 64 + pid / 250 % 64, pid % 250);
        self.docker(&["network", "create", "--subnet", &subnet, name]);
    }

    /// Where a running container is on the network of that name.
    pub fn address(&self, container: &str, network: &str) -> std::net::Ipv4Addr {
        let place = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
        let said = self.docker(&["inspect", "-f", &place, container]);
        said.parse().unwrap_or_else(|error| panic!("{container} is at {said:?} of {network}: {error}"))
    }

    /// An image of busybox, with these instructions of a Dockerfile on top.
    pub fn import(&self, name: &str, instructions: &[&str]) {
        self.import_with(name, instructions, &[]);
    }

    /// The same with files beside.
    pub fn import_with(&self, name: &str, instructions: &[&str], files: &[(&str, &str)]) {
        let tree = self.directory.path().join("tree");
        let _ = fs::remove_dir_all(&tree);
        for directory in ["bin", "etc", "tmp", "www/cgi-bin"] {
            fs::create_dir_all(tree.join(directory)).expect("a directory of the image");
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
        for tool in TOOLS {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(tool)).expect("a link");
        }
        let passwd = "root:x:0:0::/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n";
        fs::write(tree.join("etc/passwd"), passwd).expect("a file of the image");
        for (path, text) in files {
            let path = tree.join(path);
            fs::write(&path, text).expect("a file of the image");
            run("chmod", &["755", path.to_str().expect("a name in UTF-8")]);
        }
        let archive = self.directory.path().join("tree.tar");
        let names = (tree.to_str().expect("UTF-8"), archive.to_str().expect("UTF-8"));
        run("tar", &["--owner=0", "--group=0", "-C", names.0, "-cf", names.1, "."]);
        let changes: Vec<&str> = instructions.iter().flat_map(|change| ["-c", *change]).collect();
        let arguments = [&["import"], changes.as_slice(), &[names.1, name]].concat();
        self.docker(&arguments);
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if self.was_killed {
            // Only an engine ends what another one left running. A second failure must not hide the first.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.up()));
        }
        if self.daemon.is_some() {
            let listed = self.docker_command(&["ps", "-aq"]).output();
            let ids = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let ids = ids.unwrap_or_default();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                let arguments = [&["rm", "-f", "-v"], ids.as_slice()].concat();
                let _ = self.docker_command(&arguments).output();
            }
            let _ = self.docker_command(&["network", "prune", "-f"]).output();
            if std::thread::panicking() {
                let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!(
                    "--- what dockerd said last\n{}",
                    last.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
            self.down();
        }
        // Mounts that a container left would keep the directory.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for at in own.filter(|at| Path::new(at).starts_with(self.directory.path())) {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

/// A registry on loopback. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    directory: TempDir,
    port: u16,
    access: Access,
    server: Option<Child>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Anybody,
    /// `ada` with [`PASSWORD`] only.
    Ada,
}

pub const PASSWORD: &str = "correct horse";
const PASSWORD_HASH: &str = "$2b$04$D7edKlsgf3XMWqeiRaXAguuJT0oj/E2tlCEQN8j.ke.Qoj7oZojBe";

impl Registry {
    pub fn start(access: Access) -> Self {
        let directory =
            tempfile::Builder::new().prefix("rung-registry-").tempdir().expect("a temporary directory");
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = free.local_addr().expect("it has an address").port();
        drop(free);
        let mut registry = Self { directory, port, access, server: None };
        registry.up();
        registry
    }

    /// Starts it, again after [`Registry::down`], with the images that it had.
    pub fn up(&mut self) {
        let path = |name: &str| self.directory.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: '127.0.0.1:{}'}}\n",
            path("images").display(),
            self.port
        );
        if self.access == Access::Ada {
            fs::write(path("users"), format!("ada:{PASSWORD_HASH}\n")).expect("the users' file");
            config += &format!("auth: {{htpasswd: {{realm: test, path: '{}'}}}}\n", path("users").display());
        }
        fs::write(path("config.yml"), config).expect("the registry's file");
        let log = fs::File::options().create(true).append(true).open(path("log")).expect("its log");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path("config.yml")).stdin(Stdio::null()).process_group(0);
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.server = Some(command.spawn().expect("docker-registry is installed"));
        wait_until("the registry listens", START_WAIT, || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    pub fn down(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// `127.0.0.1:41234`.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The name of an image in it.
    pub fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.name())
    }

    /// Pushes an image of the engine, under the same name or another one, and forgets it there.
    pub fn push(&self, engine: &Dockerd, local: &str, rest: &str) -> String {
        let name = self.image(rest);
        engine.docker(&["tag", local, &name]);
        let config = self.directory.path().join("client");
        fs::create_dir_all(&config).expect("a directory");
        fs::write(config.join("config.json"), self.client_config(PASSWORD)).expect("a file");
        let mut push = Command::new(DOCKER);
        push.arg("-H").arg(engine.host()).arg("--config").arg(&config).args(["push", "-q", &name]);
        let output = push.output().expect("docker starts");
        assert!(output.status.success(), "pushing: {}", String::from_utf8_lossy(&output.stderr));
        engine.docker(&["rmi", &name, local]);
        name
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.directory.path().join("images/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// What a tag means.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        let repository =
            self.directory.path().join("images/docker/registry/v2/repositories").join(repository);
        let link = repository.join("_manifests/tags").join(tag).join("current/link");
        fs::read_to_string(link).expect("the tag is in the registry").trim().to_owned()
    }

    /// Gives another manifest for a digest, as a registry does that somebody has broken into.
    pub fn put_in_place(&self, of: &str, other: &str) {
        fs::copy(self.blob(other), self.blob(of)).expect("both are in the registry");
    }

    /// Changes a byte of every layer.
    pub fn damage_layers(&self) {
        let blobs = self.directory.path().join("images/docker/registry/v2/blobs/sha256");
        let of = |directory: &Path| {
            fs::read_dir(directory).expect("a directory of blobs").flatten().map(|at| at.path())
        };
        for path in
            of(&blobs).flat_map(|directory| of(&directory).collect::<Vec<_>>()).map(|blob| blob.join("data"))
        {
            let mut bytes = fs::read(&path).expect("a blob");
            // Manifests and configurations are JSON.
            if bytes.first() != Some(&b'{') {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&path, bytes).expect("a blob");
            }
        }
    }

    /// What `docker login` would have left for this password.
    pub fn client_config(&self, password: &str) -> String {
        let user = format!("ada:{password}");
        let mut encoder = Command::new("base64");
        let mut child = encoder
            .arg("-w0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("base64 is part of the coreutils");
        std::io::Write::write_all(&mut child.stdin.take().expect("it is piped"), user.as_bytes())
            .expect("base64 reads");
        let output = child.wait_with_output().expect("base64 ends");
        let auth = String::from_utf8_lossy(&output.stdout).into_owned();
        format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}", self.name())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.down();
    }
}
