//! Keeps exactly one ingress serving: used inside `rung up`, where it owns the listening sockets.
//!
//! ```text
//!            bind: take the sockets over from a living ingress, or bind them
//!              │
//!              ▼           ready
//!   start ─► Starting ─────────────► Serving ── exited, or drains unasked ─► start (at once, then with backoff)
//!              │ the earlier ingress is told to drain      │
//!              └─────────────── shutdown ──────────────────┴─► SIGTERM, bounded wait, SIGKILL
//! ```
//!
//! The sockets are the same descriptors all the way, so connections that arrive while no ingress runs wait in the
//! kernel's queue. An ingress is in a process group of its own and is not killed with its supervisor: after a `kill -9`
//! of `rung up` it goes on, and the next `rung up` takes its sockets over.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rung_api::Address;
use rung_model::NodeId;
use rung_model::address::RESOLVER;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::config::limits_of;
use crate::control::{Control, Status};
use crate::development::{AUTHORITY, AuthorityError, DevelopmentAuthority};
use crate::listeners::{PORTS_TRIED, bind, bind_loopback_next_free, bind_next_free};

/// After the first restart, which is at once.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// An ingress that lived for so long did not crash because of how it starts.
const GOOD_LIFE: Duration = Duration::from_secs(10);
/// On top of its own bounds, before an ingress that does not end is killed.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// How often it is asked how it is while it drains, and how many answers in a row may be missing. Each is waited for
/// for seconds, so a busy machine is not taken for a hanging ingress.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
const SILENCES: u32 = 2;
/// Its own messages; the access log is another file. Cut at a start when it has grown beyond.
const MESSAGES_MAX: u64 = 1_000_000;
/// Remembers at which port services were called last.
const SERVICES_PORT: &str = "services-port";
/// Each start of rung polls by the next of these names, so that an ingress and those before it, which may still drain
/// after several starts in a row, are several to the server.
const PROXY_NAMES: [&str; 8] =
    ["ingress", "ingress-2", "ingress-3", "ingress-4", "ingress-5", "ingress-6", "ingress-7", "ingress-8"];

/// The machine is one of several.
#[derive(Debug, Clone)]
pub struct ClusterSetting {
    pub node: NodeId,
    /// Where it keeps who it is.
    pub trust: PathBuf,
    /// Where requests of other machines come in for instances of this one.
    pub peers: Option<Listen>,
}

/// Instances of this machine call services by its proxy.
#[derive(Debug, Clone)]
pub struct ServicesSetting {
    /// The port where it is free, else the next one that is.
    pub port: u16,
    /// Where the agent says whose this machine's users are, when apps are told apart by them.
    pub users: Option<PathBuf>,
}

/// Where connections are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    pub address: SocketAddr,
    /// When the port is taken: use the next free one and say so, instead of failing.
    pub next_free: bool,
}

impl Listen {
    /// Takes one of the sockets over that an earlier ingress had, or binds.
    fn open(self, living: Vec<TcpListener>, option: &'static str) -> Result<TcpListener, SupervisorError> {
        let bind_error = |source| SupervisorError::Bind { address: self.address, option, source };
        match living.into_iter().find(|listener| self.fits(listener)) {
            Some(listener) => Ok(listener),
            None if self.next_free => bind_next_free(self.address).map_err(bind_error),
            None => bind(self.address).map_err(bind_error),
        }
    }

    /// Whether an inherited socket listens where it shall.
    fn fits(self, listener: &TcpListener) -> bool {
        let Ok(address) = listener.local_addr() else { return false };
        let wanted = self.address;
        let above = address.port().wrapping_sub(wanted.port());
        address.ip() == wanted.ip()
            && (wanted.port() == 0 || above == 0 || (self.next_free && above < PORTS_TRIED))
    }

    fn remark(self, served: SocketAddr) -> Option<String> {
        let wanted = self.address.port();
        let is_other = wanted != 0 && served.port() != wanted;
        is_other.then(|| format!("port {wanted} is taken; serving on {served}"))
    }
}

/// What the supervisor needs to know.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// The binary that is started as `program ingress …`.
    pub program: PathBuf,
    /// A machine that only runs instances serves no clients.
    pub http: Option<Listen>,
    /// Not served unless asked for.
    pub https: Option<Listen>,
    pub cluster: Option<ClusterSetting>,
    /// A machine that runs no instances calls no services.
    pub services: Option<ServicesSetting>,
    /// Any of them.
    pub api: Vec<Address>,
    /// The ingress's own directory: documents, control socket, logs.
    pub data: PathBuf,
    pub threads: usize,
}

/// Why no ingress can be supervised.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("making the ingress's directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("listening on {address}; choose another address with {option} ADDR")]
    Bind { address: SocketAddr, option: &'static str, source: io::Error },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// See the module's text.
#[derive(Debug)]
pub struct Supervisor {
    config: SupervisorConfig,
    directory: PathBuf,
    http: Option<(TcpListener, SocketAddr)>,
    https: Option<(TcpListener, SocketAddr)>,
    peers: Option<(TcpListener, SocketAddr)>,
    services: Option<(TcpListener, SocketAddr)>,
    /// Where it can be had: answering names is for root, and for one Rung on a machine.
    names: Option<UdpSocket>,
    remarks: Vec<String>,
    /// The ingress of an earlier process, which serves until ours does.
    earlier: Option<Earlier>,
    /// Those that drain although nobody here told them to.
    leaving: Vec<Child>,
    proxy: usize,
    arguments: Vec<OsString>,
}

/// Why another ingress is needed.
#[derive(Debug)]
enum Over {
    Ended(String),
    /// A signal that was not ours, or a thread that broke: it accepts nothing more, and ends what it has.
    Leaving,
}

impl Supervisor {
    /// Takes the listening socket of a still-living ingress over, or binds it.
    ///
    /// # Errors
    /// When the directory can't be made or the address can't be listened on.
    pub fn bind(config: SupervisorConfig) -> Result<Self, SupervisorError> {
        let directory = config.data.clone();
        std::fs::create_dir_all(&directory)
            .map_err(|source| SupervisorError::Directory { path: directory.clone(), source })?;
        let mut earlier = None;
        let mut sockets = Sockets::default();
        let mut proxy = 0;
        if let Ok(living) = meet(&directory) {
            sockets = living.sockets;
            let mut names = (0..PROXY_NAMES.len()).map(|which| proxy_name(&config, which));
            let known = names.position(|name| name == living.status.proxy);
            proxy = known.map_or(0, |known| (known + 1) % PROXY_NAMES.len());
            earlier = Some(Earlier { control: living.control, pid: living.status.pid });
        }
        let mut remarks = Vec::new();
        let mut http = None;
        if let Some(listen) = config.http {
            let listener = listen.open(sockets.http, "--http")?;
            let address = address_of(&listener, listen, "--http")?;
            remarks.extend(listen.remark(address));
            http = Some((listener, address));
        }
        let mut peers = None;
        if let Some(listen) = config.cluster.as_ref().and_then(|cluster| cluster.peers) {
            let listener = listen.open(sockets.peers, "--peers")?;
            let address = address_of(&listener, listen, "--peers")?;
            peers = Some((listener, address));
        }
        let mut https = None;
        if let Some(listen) = config.https {
            let listener = listen.open(sockets.https, "--https")?;
            let address = address_of(&listener, listen, "--https")?;
            remarks.extend(listen.remark(address));
            // Here rather than in the ingress, so that a person is told when it can't be kept.
            DevelopmentAuthority::ensure(&directory.join(AUTHORITY))?;
            https = Some((listener, address));
        }
        let (mut services, mut names) = (None, None);
        if let Some(setting) = &config.services {
            match open_services(setting, sockets.services, &directory) {
                Ok(opened) => services = Some(opened),
                // Visitors are served all the same.
                Err(error) => remarks.push(format!(
                    "services can't call each other on this machine: listening on its loopback device failed: {error}"
                )),
            }
        }
        if services.is_some() {
            match open_names(&directory) {
                Ok(socket) => names = Some(socket),
                Err(error) => tracing::info!(%error, "names of services are not answered at {RESOLVER}"),
            }
        }
        let arguments = Vec::new();
        Ok(Self {
            config,
            directory,
            http,
            https,
            peers,
            services,
            names,
            remarks,
            earlier,
            leaving: Vec::new(),
            proxy,
            arguments,
        })
    }

    /// Further arguments for the ingress, as `rung ingress` takes them.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Where requests are served.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// Where requests of other machines come in.
    pub fn peers(&self) -> Option<SocketAddr> {
        self.peers.as_ref().map(|(_, address)| *address)
    }

    /// At which port services are called, on every address of theirs.
    pub fn services(&self) -> Option<u16> {
        self.services.as_ref().map(|(_, address)| address.port())
    }

    /// Where requests over TLS are served, if they are.
    pub fn https(&self) -> Option<SocketAddr> {
        self.https.as_ref().map(|(_, address)| *address)
    }

    /// The certificate that a browser must trust to take those of `localhost` and its subdomains.
    pub fn development_certificate(&self) -> Option<PathBuf> {
        let authority = self.directory.join(AUTHORITY);
        self.https.as_ref().map(|_| DevelopmentAuthority::certificate(&authority))
    }

    /// What the person should know: that another port was taken.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Keeps an ingress running until `shutdown` says true; then lets it drain and returns.
    ///
    /// What happens is said to `events`, a line each.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>, events: mpsc::UnboundedSender<String>) {
        // Nobody may be listening, which is fine.
        let say = |text: String| drop(events.send(text));
        let mut crashes: u32 = 0;
        let stopped = async move {
            // The sender's end is an end too.
            let _ = shutdown.wait_for(|is_down| *is_down).await;
        };
        let mut stopped = std::pin::pin!(stopped);
        loop {
            let began = Instant::now();
            match self.start() {
                Err(error) => say(format!("starting the ingress failed: {error}")),
                Ok((mut child, ready)) => {
                    let over = tokio::select! {
                        over = self.attend(&mut child, ready, &say) => over,
                        () = &mut stopped => {
                            self.stop(child, &say).await;
                            return;
                        }
                    };
                    match over {
                        Over::Ended(how) => say(format!("the ingress ended: {how}; starting another")),
                        Over::Leaving => {
                            say("the ingress drains, which nobody here told it to; starting another".into());
                            self.let_go(child);
                        }
                    }
                }
            }
            crashes = if began.elapsed() >= GOOD_LIFE { 0 } else { crashes.saturating_add(1) };
            if crashes > 1 {
                let wait = BACKOFF_FIRST.saturating_mul(1 << (crashes - 2).min(10)).min(BACKOFF_MAX);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = &mut stopped => {
                        self.stop_earlier().await;
                        return;
                    }
                }
            }
        }
    }

    fn start(&self) -> io::Result<(Child, tokio::net::unix::pipe::Receiver)> {
        let (sender, receiver) = tokio::net::unix::pipe::pipe()?;
        let sender = sender.into_blocking_fd()?;
        let ready = sender.as_raw_fd();
        let mut command = Command::new(&self.config.program);
        command
            .arg("ingress")
            .args(["--ready-fd", &ready.to_string()])
            .arg("--data")
            .arg(&self.directory)
            .args(["--proxy", &proxy_name(&self.config, self.proxy)])
            .args(self.config.api.iter().flat_map(|api| ["--api".to_owned(), api.to_string()]))
            .args(["--threads", &self.config.threads.max(1).to_string()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.messages().map_or_else(|_| Stdio::null(), Stdio::from))
            // Ctrl-C is for the supervisor, which drains it in order.
            .process_group(0)
            .kill_on_drop(false);
        if let Some(cluster) = &self.config.cluster {
            command.arg("--trust-dir").arg(&cluster.trust);
        }
        if let Some(users) = self.config.services.as_ref().and_then(|setting| setting.users.as_ref()) {
            command.arg("--users").arg(users);
        }
        let mut descriptors = vec![ready];
        for (option, socket) in [
            ("--listen-fd", &self.http),
            ("--https-fd", &self.https),
            ("--peer-fd", &self.peers),
            ("--services-fd", &self.services),
        ] {
            if let Some((listener, _)) = socket {
                command.args([option, &listener.as_raw_fd().to_string()]);
                descriptors.push(listener.as_raw_fd());
            }
        }
        if let Some(names) = &self.names {
            command.args(["--names-fd", &names.as_raw_fd().to_string()]);
            descriptors.push(names.as_raw_fd());
        }
        pass_on(&mut command, descriptors);
        let child = command.spawn()?;
        Ok((child, receiver))
    }

    fn messages(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).open(self.directory.join("ingress.log"))?;
        if file.metadata()?.len() > MESSAGES_MAX {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Waits for its readiness, then lets the earlier ingress go; returns when another one is needed.
    async fn attend(
        &mut self,
        child: &mut Child,
        mut words: tokio::net::unix::pipe::Receiver,
        say: &impl Fn(String),
    ) -> Over {
        let mut word = [0; 16];
        let ended = tokio::select! {
            read = words.read(&mut word) => {
                if matches!(read, Ok(1..)) {
                    match (&self.http, &self.https) {
                        (Some((_, http)), Some((_, https))) => {
                            say(format!("the ingress serves on {http}, with TLS on {https}"));
                        }
                        (Some((_, http)), None) => say(format!("the ingress serves on {http}")),
                        (None, _) => say("the node's proxy serves other machines".into()),
                    }
                    self.relieve_earlier(say);
                    // Its second word is that it drains; its end comes without one.
                    tokio::select! {
                        Ok(1..) = words.read(&mut word) => return Over::Leaving,
                        ended = child.wait() => ended,
                    }
                } else {
                    child.wait().await
                }
            }
            ended = child.wait() => ended,
        };
        Over::Ended(match ended {
            Ok(status) => status.to_string(),
            Err(error) => format!("waiting for it failed: {error}"),
        })
    }

    /// The next one accepts what this one does not any more, under another name: to the server they are two.
    fn let_go(&mut self, child: Child) {
        self.leaving.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.leaving.push(child);
        self.proxy = (self.proxy + 1) % PROXY_NAMES.len();
    }

    fn relieve_earlier(&mut self, say: &impl Fn(String)) {
        let Some(earlier) = self.earlier.take() else { return };
        match earlier.control.drain() {
            Ok(()) => {
                say("the earlier ingress ends its last requests".into());
                tokio::spawn(earlier.ended());
            }
            Err(error) => say(format!("the earlier ingress is gone: {error}")),
        }
    }

    /// On shutdown the earlier ingress goes too, when it was not relieved yet.
    async fn stop_earlier(&mut self) {
        if let Some(earlier) = self.earlier.take()
            && earlier.control.drain().is_ok()
        {
            let _ = tokio::time::timeout(self.longest_drain(), earlier.ended()).await;
        }
    }

    /// By the settings that it is started with.
    fn longest_drain(&self) -> Duration {
        let said: Vec<String> =
            self.arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let limits = limits_of(&said);
        limits.drain.max(limits.upgrade_grace) + DRAIN_MARGIN
    }

    /// Returns when the ingress is seen to hang: one that drains still says how it is.
    async fn hangs(&self) {
        let mut silences = 0;
        while silences < SILENCES {
            tokio::time::sleep(LOOK_PAUSE).await;
            let directory = self.directory.clone();
            let asked = move || Control::connect(&directory).and_then(|control| control.status());
            let silent = match tokio::task::spawn_blocking(asked).await {
                Ok(Err(error)) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                Ok(Ok(_)) | Err(_) => false,
            };
            silences = if silent { silences + 1 } else { 0 };
        }
    }

    async fn stop(&mut self, mut child: Child, say: &impl Fn(String)) {
        if let Some(pid) = child.id() {
            // It has not been waited for, so the number is still its own. Its end may come first.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
        let longest = self.longest_drain();
        let hangs = self.hangs();
        let why = tokio::select! {
            _ = child.wait() => None,
            () = hangs => Some("does not answer"),
            () = tokio::time::sleep(longest) => Some("did not end in time"),
        };
        if let Some(why) = why {
            say(format!("the ingress {why} and is killed"));
            let _ = child.kill().await;
        }
        for mut child in std::mem::take(&mut self.leaving) {
            if tokio::time::timeout(longest, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
        self.stop_earlier().await;
    }
}

/// The ingress of an earlier process of Rung.
#[derive(Debug)]
struct Earlier {
    control: Control,
    pid: u32,
}

impl Earlier {
    async fn ended(self) {
        self.control.ended().await;
        // After an upgrade in place it is a child of this process and would stay a zombie; otherwise this does nothing.
        let _ =
            tokio::task::spawn_blocking(move || waitpid(Pid::from_raw(self.pid.cast_signed()), None)).await;
    }
}

struct Living {
    control: Control,
    sockets: Sockets,
    status: Status,
}

#[derive(Debug, Default)]
struct Sockets {
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
    peers: Vec<TcpListener>,
    services: Vec<TcpListener>,
}

/// Takes the socket over, or listens at the port that was used last, which instances that went on were told.
fn open_services(
    setting: &ServicesSetting,
    living: Vec<TcpListener>,
    directory: &Path,
) -> io::Result<(TcpListener, SocketAddr)> {
    let kept = directory.join(SERVICES_PORT);
    let last = std::fs::read_to_string(&kept).ok().and_then(|text| text.trim().parse::<u16>().ok());
    let listener = match living.into_iter().next() {
        Some(listener) => listener,
        None => bind_loopback_next_free(last, setting.port)?,
    };
    let address = listener.local_addr()?;
    if last != Some(address.port()) {
        std::fs::write(&kept, address.port().to_string())?;
    }
    Ok((listener, address))
}

/// Takes the socket over from a living ingress, or binds it.
fn open_names(directory: &Path) -> io::Result<UdpSocket> {
    let living = Control::connect(directory).and_then(|living| living.names());
    living.or_else(|_| UdpSocket::bind(RESOLVER))
}

fn meet(directory: &Path) -> io::Result<Living> {
    let control = Control::connect(directory)?;
    let status = control.status()?;
    let mut services = control.listeners()?;
    let mut http = services.split_off(status.services.min(services.len()));
    let peers = http.split_off(http.len().saturating_sub(status.peers));
    let https = http.split_off(http.len().saturating_sub(status.https));
    Ok(Living { control, sockets: Sockets { http, https, peers, services }, status })
}

/// Names tell proxies apart in the whole cluster.
fn proxy_name(config: &SupervisorConfig, which: usize) -> String {
    match &config.cluster {
        Some(cluster) => format!("{}.{}", cluster.node, PROXY_NAMES[which]),
        None => PROXY_NAMES[which].to_owned(),
    }
}

fn address_of(
    listener: &TcpListener,
    listen: Listen,
    option: &'static str,
) -> Result<SocketAddr, SupervisorError> {
    listener.local_addr().map_err(|source| SupervisorError::Bind { address: listen.address, option, source })
}

/// Lets the child inherit these descriptors, and no other child of this process.
fn pass_on(command: &mut Command, descriptors: Vec<RawFd>) {
    let keep = move || {
        for &number in &descriptors {
            #[allow(unsafe_code)]
            // SAFETY: the descriptor is open in the parent until the spawn has returned, and so in its fork.
            let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        }
        Ok(())
    };
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec the closure calls fcntl only, which is async-signal-safe; it allocates nothing and
    // takes no lock.
    unsafe {
        command.pre_exec(keep);
    }
}
