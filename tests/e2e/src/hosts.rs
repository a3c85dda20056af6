//! Several machines: network namespaces with an address each, on a bridge of their own. Needs root.
//!
//! Nothing of it is seen by other tests: the bridge is in a namespace, too, so every stage has the same addresses.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rung_api::join::{NodeListing, NodeState};
use rung_api::wire::{AppStatus, InstanceStatus};
use rung_model::observed::InstanceState;
use tempfile::TempDir;

use crate::binary::rung_binary;
use crate::cgroups::Cgroups;
use crate::ending;
use crate::http;
use crate::process;
use crate::rung::{LOOK_EVERY, TEARDOWN, ask_to_end_with_the_test, keep_lines};
use crate::said::Said;
use crate::wait::eventually;

static STAGES: AtomicU32 = AtomicU32::new(0);

/// A bridge with machines on it. Dropping it ends everything that runs there.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    switch: Namespace,
}

/// Removed when it is dropped.
#[derive(Debug)]
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may be gone already; a namespace that is left behind harms nobody.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "`ip {arguments}` failed (the stories of several machines need root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Hosts {
    /// So many machines, `10.0.0.1` and on.
    pub fn new(count: u8) -> Self {
        Self::with_binary(count, rung_binary())
    }

    /// The same, with another `rung` than the one under test.
    pub fn with_binary(count: u8, binary: &Path) -> Self {
        Self::made(count, "host", binary)
    }

    /// The same, called by this name and a number, as in the documentation.
    pub fn called(name: &str, count: u8) -> Self {
        Self::made(count, name, rung_binary())
    }

    fn made(count: u8, name: &str, binary: &Path) -> Self {
        let stage = format!("rung{}-{}", std::process::id(), STAGES.fetch_add(1, Ordering::Relaxed));
        let switch = Namespace(format!("{stage}-sw"));
        ip(&format!("netns add {}", switch.0));
        ip(&format!("-n {} link add bridge0 type bridge", switch.0));
        ip(&format!("-n {} link set bridge0 up", switch.0));
        let hosts = (1..=count).map(|number| Host::new(binary, &stage, &switch.0, name, number)).collect();
        Self { hosts, switch }
    }

    /// By its name.
    pub fn named_mut(&mut self, name: &str) -> &mut Host {
        let found = self.hosts.iter_mut().find(|host| host.name == name);
        found.unwrap_or_else(|| panic!("there is no machine {name}"))
    }

    /// Counted from one.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    /// Makes a machine a node of the first one's cluster.
    pub fn join(&mut self, number: usize, role: &str) {
        self.join_with(number, role, &[]);
    }

    /// The same with more words on its command line.
    pub fn join_with(&mut self, number: usize, role: &str, more: &[&str]) {
        let said = self.host(1).cli(&["node", "token", "--role", role, "--json"]).succeeds();
        let token = said.json::<serde_json::Value>()["token"].as_str().expect("a token is a text").to_owned();
        let server = self.host(1).address;
        self.host_mut(number).join_with(&token, server, more);
        self.wait_until_joined(number);
    }

    /// Waits until the first machine sees that one, ready for what it is.
    pub fn wait_until_joined(&self, number: usize) {
        let host = self.host(number);
        eventually(&format!("{} has joined", host.name), || {
            let node = self.host(1).nodes().into_iter().find(|node| node.node.as_str() == host.name);
            match node {
                Some(node) if matches!(node.state, NodeState::Ready | NodeState::Serving) => Ok(()),
                other => Err(format!("{other:?}\n{}", host.output())),
            }
        });
    }

    /// Pulls a machine's cable: nothing is answered any more, and nobody is told.
    pub fn cut(&self, number: usize) {
        ip(&format!("-n {} link set port{number} down", self.switch.0));
    }

    pub fn mend(&self, number: usize) {
        ip(&format!("-n {} link set port{number} up", self.switch.0));
    }

    /// Half of a machine's cable breaks: what goes this way is lost, the other way carries.
    pub fn break_one_way(&self, number: usize, way: Way) {
        let (hook, device) = match way {
            Way::In => ("input", "iifname"),
            Way::Out => ("output", "oifname"),
        };
        let table = format!(
            "table inet cable {{ chain half {{ type filter hook {hook} priority -400; {device} \"eth0\" drop; }}; }}"
        );
        self.host(number).nft(&[&table]);
    }

    pub fn mend_one_way(&self, number: usize) {
        self.host(number).nft(&["delete table inet cable"]);
    }

    /// The machine's power fails: its processes are gone at once, and nothing of it says goodbye.
    pub fn power_off(&mut self, number: usize) {
        self.cut(number);
        self.host_mut(number).end_everything();
    }
}

/// A direction, as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// A machine, and the one `rung` that is started on it.
#[derive(Debug)]
pub struct Host {
    binary: PathBuf,
    namespace: Namespace,
    pub address: Ipv4Addr,
    name: String,
    own: TempDir,
    child: Option<Child>,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    env: Vec<(String, String)>,
}

impl Host {
    fn new(binary: &Path, stage: &str, switch: &str, called: &str, number: u8) -> Self {
        let namespace = Namespace(format!("{stage}-{number}"));
        let name = &namespace.0;
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {switch} link add port{number} type veth peer name eth0 netns {name}"));
        ip(&format!("-n {switch} link set port{number} master bridge0"));
        ip(&format!("-n {switch} link set port{number} up"));
        ip(&format!("-n {name} addr add 10.0.0.{number}/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        Self {
            binary: binary.to_owned(),
            namespace,
            address: Ipv4Addr::new(10, 0, 0, number),
            name: format!("{called}-{number}"),
            own: tempfile::Builder::new().prefix("rung-e2e-").tempdir().expect("a temporary directory"),
            child: None,
            said: Arc::default(),
            readers: Vec::new(),
            env: Vec::new(),
        }
    }

    /// What is started here from now on finds this in its environment.
    pub fn set_env(&mut self, env: Vec<(String, String)>) {
        self.env = env;
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn data(&self) -> PathBuf {
        self.own.path().join("data")
    }

    fn namespace_file(&self) -> std::fs::File {
        let path = Path::new("/run/netns").join(&self.namespace.0);
        std::fs::File::open(&path).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()))
    }

    /// Does something with this machine's network: connections, and threads that are started within.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        in_network(&self.namespace_file(), act)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.program(&self.binary, arguments)
    }

    /// A program of the test's own, to be started on this machine.
    pub fn program(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("RUNG_DATA", self.data()).current_dir(self.own.path());
        command.env_remove("RUNG_API").env_remove("RUNG_TOKEN").env_remove("RUNG_CA").stdin(Stdio::null());
        command.envs(self.env.iter().cloned());
        let (file, name) = (self.namespace_file(), self.name.clone());
        #[allow(unsafe_code)]
        // SAFETY: between fork and exec there are system calls only, which take integers and a text that is there.
        unsafe {
            command.pre_exec(move || enter(&file).and_then(|()| be_called(&name)));
        }
        command
    }

    /// Runs a line of shell on this machine, with these variables; `rung` is the one of this stage.
    #[track_caller]
    pub fn shell(&self, line: &str, env: &BTreeMap<String, String>) -> Said {
        let mut command = self.program("bash", &["-c", line]);
        let beside = self.binary.parent().expect("a file is in a directory").display();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{beside}:{path}")).envs(env);
        ending::run(format!("{}: {line}", self.name), command)
    }

    /// Starts the platform here as a server that other machines reach.
    pub fn serve(&mut self) {
        self.serve_with(&[]);
    }

    /// The same with more words on its command line.
    pub fn serve_with(&mut self, more: &[&str]) {
        self.run(&[&["up", "--api", "0.0.0.0:7864", "--http", "0.0.0.0:8080"], more].concat());
        eventually("the server answers its commands", || {
            let said = self.cli(&["node", "list", "--json"]);
            if said.code == Some(0) {
                Ok(())
            } else {
                Err(format!("{}\n{}", said.everything(), self.output()))
            }
        });
    }

    /// Makes this machine a node, by a token of the server's.
    pub fn join_with(&mut self, token: &str, server: Ipv4Addr, more: &[&str]) {
        self.run(&[&["join", &format!("{server}:7864"), token], more].concat());
    }

    /// Starts `rung` with these arguments.
    pub fn run(&mut self, arguments: &[&str]) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        ask_to_end_with_the_test(&mut command);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("starting rung on {}: {error}", self.name));
        self.readers.push(keep_lines(child.stdout.take().expect("it is piped"), self.said.clone()));
        self.readers.push(keep_lines(child.stderr.take().expect("it is piped"), self.said.clone()));
        self.child = Some(child);
    }

    /// Runs a command of the CLI on this machine.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Said {
        ending::run(format!("{}: rung {}", self.name, arguments.join(" ")), self.command(arguments))
    }

    #[track_caller]
    pub fn deploy(&self, directory: &Path) -> Said {
        self.cli(&["deploy", directory.to_str().expect("temporary directories have names in UTF-8")])
    }

    #[track_caller]
    pub fn nodes(&self) -> Vec<NodeListing> {
        self.cli(&["node", "list", "--json"]).succeeds().json()
    }

    #[track_caller]
    pub fn instances(&self, app: &str) -> Vec<InstanceStatus> {
        let status: AppStatus = self.cli(&["status", "--app", app, "--json"]).succeeds().json();
        status.services.into_iter().flat_map(|service| service.instances).collect()
    }

    /// Waits until so many instances are healthy and routed on the nodes that `of` accepts.
    pub fn wait_until_routed(&self, app: &str, count: usize, of: impl Fn(&str) -> bool) {
        eventually(&format!("{count} instances of {app} are routed"), || {
            let instances = self.instances(app);
            let good = instances.iter().filter(|instance| {
                instance.state == InstanceState::Healthy && instance.routed && of(instance.node.as_str())
            });
            if good.count() == count { Ok(()) } else { Err(format!("{instances:?}")) }
        });
    }

    /// The text of an app's page, asked of this machine's ingress once it answers with 200.
    pub fn page(&self, app: &str) -> String {
        let (address, host) = (self.http(), format!("{app}.localhost"));
        eventually(&format!("{} serves {app}", self.name), || {
            match self.inside(|| http::get(address, &host, "/")) {
                Ok(answer) if answer.status == 200 => Ok(answer.text()),
                Ok(answer) => Err(format!("{}: {}", answer.status, answer.text())),
                Err(failure) => Err(format!("{failure:?}\n{}", self.output())),
            }
        })
    }

    fn nft(&self, arguments: &[&str]) {
        let output = self.program("nft", arguments).output().expect("nftables is installed");
        assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The pid of the one process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("rung runs here").id()
    }

    /// Whether one of its interfaces has an address.
    pub fn has_address(&self, address: &str) -> bool {
        let shown = self.inside(|| Command::new("ip").args(["addr", "show"]).output());
        let shown = shown.expect("iproute2 is installed").stdout;
        String::from_utf8_lossy(&shown).contains(&format!(" {address}/"))
    }

    /// Everything that runs on this machine.
    pub fn processes(&self) -> Vec<process::Life> {
        process::concerned_with(self.own.path())
    }

    /// Where this machine serves apps.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::from((self.address, 8080))
    }

    /// Everything that it said since its first start.
    pub fn output(&self) -> String {
        self.said.lock().expect("no reader panics while it holds this").join("\n")
    }

    /// `kill -9` of the one process.
    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::kill_9(child.id());
            let _ = child.wait();
        }
    }

    /// Ctrl-C, and its end.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("rung runs here");
        process::signal(child.id(), libc::SIGINT);
        let status = child.wait().expect("it is a child of this process");
        assert!(status.success(), "rung on {} ended with {status}:\n{}", self.name, self.output());
    }

    /// Ends whatever has to do with this machine, without a word.
    fn end_everything(&mut self) {
        let deadline = Instant::now() + TEARDOWN;
        let mut cgroups = Cgroups::default();
        loop {
            let left = process::concerned_with(self.own.path());
            left.iter().for_each(|life| cgroups.note(life.pid));
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            left.iter().for_each(|life| process::kill_9(life.pid));
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            std::thread::sleep(LOOK_EVERY); // tidy: teardown must not panic, so it can't use eventually
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        cgroups.remove();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end_everything();
        if std::thread::panicking() {
            eprintln!("--- what rung said on {}\n{}\n---", self.name, self.output());
            let log = std::fs::read_to_string(self.data().join("ingress/ingress.log")).unwrap_or_default();
            eprintln!("--- the ingress's log on {}\n{log}\n---", self.name);
        }
    }
}

/// The network of a running process, also after its end.
#[derive(Debug)]
pub struct Network(std::fs::File);

impl Network {
    pub fn of(pid: u32) -> Self {
        let path = format!("/proc/{pid}/ns/net");
        Self(std::fs::File::open(&path).unwrap_or_else(|error| panic!("opening {path}: {error}")))
    }

    /// Does something there: connections, and threads that are started within.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        in_network(&self.0, act)
    }
}

fn in_network<T: Send>(file: &std::fs::File, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(file).expect("root may enter a namespace");
            act()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter(namespace: &std::fs::File) -> std::io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: setns takes two integers and changes the calling thread's network only.
    let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if entered == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn be_called(name: &str) -> std::io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: unshare takes an integer; sethostname reads as many bytes as the text has.
    let called = unsafe {
        libc::unshare(libc::CLONE_NEWUTS) == 0 && libc::sethostname(name.as_ptr().cast(), name.len()) == 0
    };
    if called { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
