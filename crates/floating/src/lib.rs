//! A floating address: one of several machines has it, whose ingress answers.
//!
//! ```text
//!   ingress answers ─► keepalived runs ─► VRRP: the holder is silent for 0.7 s ─► another machine takes the address
//!        │ no                   ▲                                                        │
//!        └─► keepalived ends: the address is given up at once        who has it now ─► events
//! ```
//!
//! keepalived (Debian's) does the elections; here it is configured, started, found again after a `kill -9` of rung,
//! which must not move the address, and watched. It ends before the ingress drains. While rung itself is gone,
//! keepalived looks by itself whether somebody listens.
//!
//! The machines need not know each other: they find each other by multicast, by an identifier that follows from the
//! address. Deliberately left out: weights and preferences. The address stays where it is until it can't.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use nix::sys::stat::Mode;
use rung_api::seal::write_private;
use rung_ingress::Control;
use rung_process::Process;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

/// Between two words of the holder; the others wait for three of them and up to one more.
const WORD_EVERY: &str = "0.2";
/// Not above each other: whoever has the address keeps it.
const PRIORITY: u8 = 100;
/// How often the ingress is asked how it is, and how many answers in a row may be missing.
const LOOK_EVERY: Duration = Duration::from_millis(300);
const SILENCES: u32 = 2;
/// keepalived says goodbye, takes the address from the interface, and ends.
const STOPS_WITHIN: Duration = Duration::from_secs(3);
/// One that ends again and again is started less and less often.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Its log is begun anew at this size.
const LOG_MAX: u64 = 1_000_000;

/// Why this machine can't take part.
#[derive(Debug, thiserror::Error)]
pub enum FloatingError {
    #[error("moving an address between machines needs root; start rung as root, or leave --floating out")]
    NotRoot,
    #[error("keepalived, which moves floating addresses, is not installed: apt-get install keepalived")]
    NotInstalled,
    #[error("no network of this machine holds {address}; it has {networks}")]
    NoNetwork { address: IpAddr, networks: String },
    #[error("apps are served on {http} alone, so nobody would answer on {address}; listen everywhere, as with --http 0.0.0.0:{}", http.port())]
    NotServed { address: IpAddr, http: SocketAddr },
    #[error("{doing} {path}")]
    File { doing: &'static str, path: PathBuf, source: io::Error },
}

/// See the module's text.
#[derive(Debug)]
pub struct Floating {
    address: IpAddr,
    directory: PathBuf,
    /// The ingress's own directory, by which it is asked how it is.
    ingress: PathBuf,
    config: String,
}

impl Floating {
    /// Looks whether this machine can have the address, and writes down what keepalived needs to know.
    ///
    /// # Errors
    /// When it can't; each says the way out.
    pub fn prepare(address: IpAddr, http: SocketAddr, ingress: &Path) -> Result<Self, FloatingError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(FloatingError::NotRoot);
        }
        if Command::new("keepalived").arg("--version").stderr(Stdio::null()).status().is_err() {
            return Err(FloatingError::NotInstalled);
        }
        if !http.ip().is_unspecified() && http.ip() != address {
            return Err(FloatingError::NotServed { address, http });
        }
        let interface = interface_of(address, &networks())?;
        let directory = directory(ingress);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(failed("making", &directory))?;
        let events = directory.join(EVENTS);
        if !events.exists() {
            let made = nix::unistd::mkfifo(&events, Mode::S_IRUSR | Mode::S_IWUSR);
            made.map_err(io::Error::from).map_err(failed("making", &events))?;
        }
        let check = directory.join(CHECK);
        write_private(&check, check_script(http.port()).as_bytes()).map_err(failed("writing", &check))?;
        let config = config(address, &interface, &directory);
        Ok(Self { address, directory, ingress: ingress.to_owned(), config })
    }

    /// Takes part until `shutdown` says true; then gives the address up, if it is here, and returns.
    ///
    /// What happens is said to `events`, a line each.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>, events: mpsc::UnboundedSender<String>) {
        // Nobody may be listening, which is fine.
        let say = |text: String| drop(events.send(text));
        let stopped = async move {
            let _ = shutdown.wait_for(|is_down| *is_down).await;
        };
        tokio::select! {
            ended = self.take_part(&say) => {
                if let Err(error) = ended {
                    say(format!("the floating address {} is not served here: {error}", self.address));
                }
            }
            () = stopped => {}
        }
        give_up(&self.ingress).await;
    }

    /// Ends only when the words of keepalived can't be read.
    async fn take_part(&self, say: &impl Fn(String)) -> io::Result<()> {
        let pipe = pipe::OpenOptions::new().read_write(true).open_receiver(self.directory.join(EVENTS))?;
        let mut words = BufReader::new(pipe).lines();
        let mut backoff = BACKOFF_MIN;
        let mut earlier = self.adopt().await;
        if earlier.is_some() {
            say(format!("keepalived goes on from an earlier start, for {}", self.address));
        }
        loop {
            self.until_the_ingress(true).await;
            let process = match earlier.take().map_or_else(|| self.start(), Ok) {
                Ok(process) => process,
                Err(error) => {
                    say(format!("starting keepalived failed: {error}"));
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            let began = Instant::now();
            tokio::select! {
                () = process.ended() => {
                    if began.elapsed() > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                    say(format!("keepalived ended; it is started again. {}", self.last_words()));
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                () = self.until_the_ingress(false) => {
                    say(format!("the ingress does not answer: {} is left to other machines", self.address));
                    process.stop(STOPS_WITHIN).await;
                    backoff = BACKOFF_MIN;
                }
                broken = self.tell(&mut words, say) => return broken,
            }
        }
    }

    /// Says who has the address, whenever that changes.
    async fn tell(
        &self,
        words: &mut Lines<BufReader<pipe::Receiver>>,
        say: &impl Fn(String),
    ) -> io::Result<()> {
        while let Some(line) = words.next_line().await? {
            match state_in(&line) {
                Some("MASTER") => say(format!("this machine has the floating address {} now", self.address)),
                Some("BACKUP") => {
                    say(format!("this machine stands by for the floating address {}", self.address))
                }
                Some("FAULT") => {
                    say(format!("this machine can't have the floating address {}", self.address))
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns once the ingress answers, or has not answered a few times in a row.
    async fn until_the_ingress(&self, answers: bool) {
        let mut others = 0;
        loop {
            let directory = self.ingress.clone();
            let asked = move || Control::connect(&directory).and_then(|control| control.status());
            let is_answer = matches!(tokio::task::spawn_blocking(asked).await, Ok(Ok(_)));
            others = if is_answer == answers { others + 1 } else { 0 };
            if others >= if answers { 1 } else { SILENCES } {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What an earlier rung left running, if it is as it would be started now.
    async fn adopt(&self) -> Option<Process> {
        let process = Process::adopt(&self.directory.join(RECORD))?;
        let written = std::fs::read_to_string(self.directory.join(CONFIG)).unwrap_or_default();
        if process.has_arguments(&self.arguments()) && written == self.config {
            return Some(process);
        }
        process.stop(STOPS_WITHIN).await;
        None
    }

    fn start(&self) -> io::Result<Process> {
        write_private(&self.directory.join(CONFIG), self.config.as_bytes())?;
        let log = self.directory.join(LOG);
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
        if output.metadata()?.len() > LOG_MAX {
            output.set_len(0)?;
        }
        let mut command = Command::new("keepalived");
        command.args(self.arguments()).current_dir(&self.directory).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        Process::spawn(command, &self.directory.join(RECORD))
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--vrrp", "--dont-fork", "--log-console", "--no-syslog"].map(OsString::from).into();
        for (option, file) in
            [("--use-file", CONFIG), ("--pid", "keepalived.pid"), ("--vrrp_pid", "vrrp.pid")]
        {
            arguments.extend([option.into(), self.directory.join(file).into()]);
        }
        arguments
    }

    /// Why it may have ended.
    fn last_words(&self) -> String {
        let text = std::fs::read(self.directory.join(LOG)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().last().map(|line| format!("It said: {line}")).unwrap_or_default()
    }
}

/// Ends what an earlier rung of this ingress's directory left running: the address is given up.
pub async fn give_up(ingress: &Path) {
    if let Some(process) = Process::adopt(&directory(ingress).join(RECORD)) {
        process.stop(STOPS_WITHIN).await;
    }
}

const CONFIG: &str = "keepalived.conf";
const CHECK: &str = "listens";
const EVENTS: &str = "events";
const RECORD: &str = "pid.json";
const LOG: &str = "keepalived.log";
const INSTANCE: &str = "floating";

fn directory(ingress: &Path) -> PathBuf {
    ingress.join("floating")
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FloatingError {
    let path = path.to_owned();
    move |source| FloatingError::File { doing, path, source }
}

/// The state in a line like `INSTANCE "floating" MASTER 100`.
fn state_in(line: &str) -> Option<&str> {
    line.strip_prefix("INSTANCE \"")?.strip_prefix(INSTANCE)?.strip_prefix("\" ")?.split(' ').next()
}

/// A refused connection is all that it must see: an ingress that hangs is rung's to find, and to end.
fn check_script(port: u16) -> String {
    format!(
        "# Whether somebody serves apps on this machine; written by rung.\nexec 3<>/dev/tcp/127.0.0.1/{port}\n"
    )
}

fn config(address: IpAddr, interface: &str, directory: &Path) -> String {
    let (identifier, bits) = match address {
        IpAddr::V4(ip) => (ip.octets()[3], 32),
        IpAddr::V6(ip) => (ip.octets()[15], 128),
    };
    let directory = directory.display();
    let mut text = String::from("# Written by rung; changes are overwritten.\n");
    let written = write!(
        text,
        "global_defs {{\n    vrrp_version 3\n    enable_script_security\n    script_user root\n    \
         vrrp_notify_fifo {directory}/{EVENTS}\n}}\n\n\
         vrrp_script listens {{\n    script \"/bin/bash {directory}/{CHECK}\"\n    interval 1\n    timeout 1\n    \
         init_fail\n}}\n\n\
         vrrp_instance {INSTANCE} {{\n    state BACKUP\n    nopreempt\n    interface {interface}\n    \
         virtual_router_id {}\n    priority {PRIORITY}\n    advert_int {WORD_EVERY}\n    \
         virtual_ipaddress {{\n        {address}/{bits}\n    }}\n    track_script {{\n        listens\n    }}\n}}\n",
        identifier.max(1),
    );
    written.expect("a string takes everything");
    text
}

/// An address of this machine, and how far its network reaches.
#[derive(Debug, Clone)]
struct Network {
    interface: String,
    address: IpAddr,
    mask: IpAddr,
}

fn networks() -> Vec<Network> {
    let ip = |storage: Option<SockaddrStorage>| {
        let storage = storage?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let all = getifaddrs().into_iter().flatten();
    let networks = all.filter_map(|one| {
        Some(Network { address: ip(one.address)?, mask: ip(one.netmask)?, interface: one.interface_name })
    });
    networks.filter(|network| !network.address.is_loopback()).collect()
}

impl Network {
    fn holds(&self, address: IpAddr) -> bool {
        match (self.address, self.mask, address) {
            (IpAddr::V4(own), IpAddr::V4(mask), IpAddr::V4(other)) => own & mask == other & mask,
            (IpAddr::V6(own), IpAddr::V6(mask), IpAddr::V6(other)) => own & mask == other & mask,
            _ => false,
        }
    }

    fn prefix(&self) -> u32 {
        match self.mask {
            IpAddr::V4(mask) => mask.to_bits().count_ones(),
            IpAddr::V6(mask) => mask.to_bits().count_ones(),
        }
    }
}

/// The interface that is in the address's network. One that has the address itself, from an earlier time, says nothing.
fn interface_of(address: IpAddr, networks: &[Network]) -> Result<String, FloatingError> {
    let found = networks.iter().find(|network| network.address != address && network.holds(address));
    found.map(|network| network.interface.clone()).ok_or_else(|| {
        let known = networks.iter().filter(|network| network.address.is_ipv4() == address.is_ipv4());
        let known: Vec<String> = known
            .map(|network| format!("{}/{} on {}", network.address, network.prefix(), network.interface))
            .collect();
        let networks = if known.is_empty() { "none of its kind".to_owned() } else { known.join(", ") };
        FloatingError::NoNetwork { address, networks }
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn network(interface: &str, address: [u8; 4], mask: [u8; 4]) -> Network {
        let ip = |octets| IpAddr::V4(Ipv4Addr::from(octets));
        Network { interface: interface.to_owned(), address: ip(address), mask: ip(mask) }
    }

    #[test]
    fn the_interface_is_the_one_whose_network_holds_the_address() {
        let networks = [
            network("eth0", [192, 0, 2, 7], [255, 255, 255, 0]),
            network("eth1", [10, 0, 0, 9], [255, 255, 255, 255]),
            network("eth1", [10, 0, 0, 3], [255, 255, 255, 0]),
        ];
        let of = |address: &str| interface_of(address.parse().unwrap(), &networks);
        assert_eq!(of("192.0.2.200").unwrap(), "eth0");
        assert_eq!(of("10.0.0.9").unwrap(), "eth1", "it is here from an earlier time");
        let refused = of("172.16.0.1").unwrap_err().to_string();
        assert!(refused.contains("172.16.0.1") && refused.contains("192.0.2.7/24 on eth0"), "{refused}");
    }

    #[test]
    fn words_of_keepalived_are_read() {
        assert_eq!(state_in("INSTANCE \"floating\" MASTER 100"), Some("MASTER"));
        assert_eq!(state_in("INSTANCE \"another\" MASTER 100"), None);
        assert_eq!(state_in("GROUP"), None);
    }

    #[test]
    fn an_address_that_ends_with_zero_has_an_identifier_too() {
        let text = config("10.0.0.0".parse().unwrap(), "eth0", Path::new("/d"));
        assert!(text.contains("virtual_router_id 1\n"), "{text}");
        assert!(text.contains("10.0.0.0/32"), "{text}");
    }
}
