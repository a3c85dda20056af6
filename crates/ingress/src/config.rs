//! What an ingress process is told, and the limits it keeps.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use rung_api::Address;

/// The parsed arguments of `rung ingress`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Inherited listening sockets.
    pub listen: Vec<RawFd>,
    /// Inherited listening sockets whose connections begin with a TLS handshake.
    pub https: Vec<RawFd>,
    /// Inherited listening sockets for other machines of the cluster.
    pub peers: Vec<RawFd>,
    /// Inherited listening sockets for instances of this machine that call services.
    pub services: Vec<RawFd>,
    /// An inherited socket for questions about names of services.
    pub names: Option<RawFd>,
    /// Says whose the users of this machine are, where apps are told apart by them.
    pub users: Option<PathBuf>,
    /// Where this machine keeps who it is, when it is one of several.
    pub trust: Option<PathBuf>,
    pub redirect: RedirectSetting,
    /// How long browsers shall remember that a host with a certificate of its own is for HTTPS only.
    pub hsts: Option<Duration>,
    /// Where documents, the control socket and the access log are.
    pub directory: PathBuf,
    /// Any of them.
    pub api: Vec<Address>,
    pub token: Option<String>,
    /// The name under which it polls.
    pub proxy: String,
    pub threads: usize,
    pub access_log: AccessLogSetting,
    /// The part of the requests that is logged, 1 for all.
    pub access_log_sample: f64,
    pub trusted: TrustedProxies,
    /// Whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: TrustedProxies,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogSetting {
    On(LogFormat),
    Off,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Combined,
}

/// What becomes of a plain request to a host that has a certificate of its own, when HTTPS is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectSetting {
    Off,
    /// To the port that is listened on.
    On,
    /// To the port by which clients reach it, where something forwards.
    Port(NonZeroU16),
}

/// How long and how much.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From a request's first byte to the end of its head.
    pub head: Duration,
    /// From a connection's first byte to the end of its TLS handshake.
    pub handshake: Duration,
    /// Between two requests of a connection, and before its first.
    pub idle: Duration,
    pub connect: Duration,
    /// Without a byte of a body, in either direction.
    pub stall: Duration,
    /// Without a byte of the answer, for a client that sends no more: it may have left.
    pub half_closed: Duration,
    /// Until requests in flight must have ended when draining.
    pub drain: Duration,
    /// Until upgraded connections are closed when draining.
    pub upgrade_grace: Duration,
    /// How long idle connections may still send a request when draining; it is answered and the connection closed.
    pub idle_linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A head is a packet or two; a slower client is an attack or lost.
            head: Duration::from_secs(15),
            // Two round trips, on a bad mobile network too.
            handshake: Duration::from_secs(10),
            // Above the 60 s that load balancers in front keep connections, so that they close first.
            idle: Duration::from_secs(75),
            // Instances are on this machine or beside it.
            connect: Duration::from_secs(1),
            stall: Duration::from_secs(60),
            // Longer than most answers take, and short for an instance that works for nobody.
            half_closed: Duration::from_secs(1),
            drain: Duration::from_secs(30),
            upgrade_grace: Duration::from_secs(30),
            // Longer than the pauses of a busy client, shorter than a person's patience at Ctrl-C.
            idle_linger: Duration::from_millis(500),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("argument {0} of the ingress is unknown")]
    Unknown(String),
    #[error("{0:?} is no setting of the ingress; there are {settings}", settings = SETTINGS.join(", "))]
    NoSetting(String),
    #[error("argument {0} of the ingress has no value")]
    NoValue(String),
    #[error("the ingress's {name} can't be {value:?}: {why}")]
    Invalid { name: String, value: String, why: String },
    #[error("the ingress needs {0}")]
    Missing(&'static str),
}

impl Config {
    /// Reads `--name value` pairs. The token comes from `RUNG_TOKEN`, where other users can't see it.
    pub fn parse(args: &[String]) -> Result<Self, ConfigError> {
        let (mut listen, mut https, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        let (mut services, mut names, mut users) = (Vec::new(), None, None);
        let mut trust = None;
        let (mut redirect, mut hsts) = (RedirectSetting::On, None);
        let (mut directory, mut api) = (None, Vec::new());
        let mut proxy = "ingress".to_owned();
        let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut access_log = AccessLogSetting::On(LogFormat::Json);
        let mut access_log_sample = 1.0;
        let (mut trusted, mut proxy_protocol) = (TrustedProxies::default(), TrustedProxies::default());
        let mut limits = Limits::default();
        let mut args = args.iter();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| ConfigError::NoValue(name.clone()))?;
            let invalid = |why: &dyn std::fmt::Display| ConfigError::Invalid {
                name: name.trim_start_matches("--").to_owned(),
                value: value.clone(),
                why: why.to_string(),
            };
            let millis = |range: RangeInclusive<u64>| {
                let number = value.parse().ok().filter(|number| range.contains(number));
                let way_out = || format!("write milliseconds, {} to {}", range.start(), range.end());
                number.map(Duration::from_millis).ok_or_else(|| invalid(&way_out()))
            };
            match name.as_str() {
                "--listen-fd" => {
                    listen.push(value.parse().map_err(|e: std::num::ParseIntError| invalid(&e))?)
                }
                "--https-fd" => https.push(value.parse().map_err(|e: std::num::ParseIntError| invalid(&e))?),
                "--peer-fd" => peers.push(value.parse().map_err(|e: std::num::ParseIntError| invalid(&e))?),
                "--services-fd" => {
                    services.push(value.parse().map_err(|e: std::num::ParseIntError| invalid(&e))?);
                }
                "--names-fd" => {
                    names = Some(value.parse().map_err(|e: std::num::ParseIntError| invalid(&e))?);
                }
                "--users" => users = Some(PathBuf::from(value)),
                "--trust-dir" => trust = Some(PathBuf::from(value)),
                "--redirect" => {
                    redirect = match value.as_str() {
                        "on" => RedirectSetting::On,
                        "off" => RedirectSetting::Off,
                        port => RedirectSetting::Port(
                            port.parse().map_err(|_| invalid(&"write on, off or a port, like 443"))?,
                        ),
                    }
                }
                "--hsts-s" => {
                    let seconds =
                        value.parse().map_err(|_| invalid(&"write seconds, like 31536000 for a year"))?;
                    hsts = Some(Duration::from_secs(seconds));
                }
                "--data" => directory = Some(PathBuf::from(value)),
                "--api" => {
                    api.push(value.parse().map_err(|e: rung_api::client::InvalidAddress| invalid(&e))?)
                }
                "--proxy" => proxy = value.clone(),
                "--threads" => {
                    let number = value.parse().ok().filter(|number| (1..=256).contains(number));
                    threads = number.ok_or_else(|| invalid(&"write 1 to 256"))?;
                }
                "--access-log" => {
                    access_log = match value.as_str() {
                        "on" | "json" => AccessLogSetting::On(LogFormat::Json),
                        "combined" => AccessLogSetting::On(LogFormat::Combined),
                        "off" => AccessLogSetting::Off,
                        _ => return Err(invalid(&"write json, combined or off")),
                    }
                }
                "--access-log-sample" => {
                    let part = value.parse().ok().filter(|part| *part > 0.0 && *part <= 1.0);
                    access_log_sample =
                        part.ok_or_else(|| invalid(&"write a part of the requests, like 0.01; 1 is all"))?;
                }
                // Said twice, both hold.
                "--trust" => trusted.extend(TrustedProxies::parse(value).map_err(|e| invalid(&e))?),
                "--proxy-protocol-from" => {
                    proxy_protocol.extend(TrustedProxies::parse(value).map_err(|e| invalid(&e))?);
                }
                "--handshake-timeout-ms" => limits.handshake = millis(PATIENCE_MS)?,
                "--head-timeout-ms" => limits.head = millis(PATIENCE_MS)?,
                "--idle-timeout-ms" => limits.idle = millis(PATIENCE_MS)?,
                "--connect-timeout-ms" => limits.connect = millis(PATIENCE_MS)?,
                "--stall-timeout-ms" => limits.stall = millis(PATIENCE_MS)?,
                "--drain-ms" => limits.drain = millis(GRACE_MS)?,
                "--upgrade-grace-ms" => limits.upgrade_grace = millis(GRACE_MS)?,
                "--half-closed-ms" => limits.half_closed = millis(GRACE_MS)?,
                "--idle-linger-ms" => limits.idle_linger = millis(GRACE_MS)?,
                _ => return Err(ConfigError::Unknown(name.clone())),
            }
        }
        if listen.is_empty() && peers.is_empty() {
            return Err(ConfigError::Missing("--listen-fd, the number of an inherited listening socket"));
        }
        if api.is_empty() {
            return Err(ConfigError::Missing("--api, the address of the server"));
        }
        Ok(Self {
            listen,
            https,
            peers,
            services,
            names,
            users,
            trust,
            redirect,
            hsts,
            directory: directory.ok_or(ConfigError::Missing("--data, the directory of the ingress"))?,
            api,
            token: std::env::var("RUNG_TOKEN").ok().filter(|token| !token.is_empty()),
            proxy,
            threads,
            access_log,
            access_log_sample,
            trusted,
            proxy_protocol,
            limits,
        })
    }
}

/// What a person may say; the rest is the supervisor's.
const SETTINGS: [&str; 16] = [
    "access-log",
    "access-log-sample",
    "connect-timeout-ms",
    "drain-ms",
    "half-closed-ms",
    "handshake-timeout-ms",
    "head-timeout-ms",
    "hsts-s",
    "idle-linger-ms",
    "idle-timeout-ms",
    "proxy-protocol-from",
    "redirect",
    "stall-timeout-ms",
    "threads",
    "trust",
    "upgrade-grace-ms",
];
/// How long something is awaited: without any patience nobody would be served. More than a day is a slip of the pen.
const PATIENCE_MS: RangeInclusive<u64> = 1..=86_400_000;
/// The same where none at all has a meaning.
const GRACE_MS: RangeInclusive<u64> = 0..=86_400_000;

/// Whether a person may give these to an ingress, as pairs of name and value.
///
/// # Errors
/// What is wrong with them.
pub fn check_settings(settings: &[String]) -> Result<(), ConfigError> {
    let mut names = settings.iter().step_by(2).map(|name| name.trim_start_matches("--"));
    if let Some(name) = names.find(|name| !SETTINGS.contains(name)) {
        return Err(ConfigError::NoSetting(name.to_owned()));
    }
    with_what_is_needed(settings).map(drop)
}

/// The bounds of an ingress that is started with these.
pub(crate) fn limits_of(settings: &[String]) -> Limits {
    with_what_is_needed(settings).map_or_else(|_| Limits::default(), |config| config.limits)
}

fn with_what_is_needed(settings: &[String]) -> Result<Config, ConfigError> {
    let needed = ["--listen-fd", "0", "--data", "/", "--api", "unix:/api.sock"].map(str::to_owned);
    Config::parse(&[&needed, settings].concat())
}

/// Networks of proxies in front of Rung whose `X-Forwarded-*` are believed. None by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<(u128, u32)>);

impl TrustedProxies {
    /// Whoever calls from this machine.
    pub(crate) fn loopback() -> Self {
        Self::parse("127.0.0.0/8").expect("it is a network")
    }

    /// `10.0.0.0/8,::1`: addresses or networks, with commas between.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut networks = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (address, bits) = part.split_once('/').unwrap_or((part, ""));
            let ip: IpAddr = address
                .parse()
                .map_err(|_| format!("{address:?} is not an address; write networks like 10.0.0.0/8,::1"))?;
            let width = if ip.is_ipv4() { 32 } else { 128 };
            let bits: u32 = match bits {
                "" => width,
                bits => bits.parse().map_err(|_| format!("{bits:?} is not a number of bits"))?,
            };
            if bits > width {
                return Err(format!("{part:?} has more than {width} bits"));
            }
            networks.push((mapped(ip), bits + 128 - width));
        }
        Ok(Self(networks))
    }

    fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|(network, bits)| {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            mapped(ip) & mask == network & mask
        })
    }
}

fn mapped(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persons_settings_are_checked_before_anything_starts() {
        let check = |settings: &[&str]| {
            check_settings(&settings.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        check(&["--hsts-s", "600", "--trust", "10.0.0.0/8", "--redirect", "443"]).unwrap();
        check(&["--access-log", "combined", "--access-log-sample", "0.01"]).unwrap();
        for sample in ["0", "1.1", "-1", "NaN", "some"] {
            assert!(check(&["--access-log-sample", sample]).is_err(), "a sample of {sample}");
        }
        assert!(check(&["--access-log", "xml"]).is_err());
        assert!(check(&["--hsts-s", "a year"]).is_err());
        for name in ["--data", "--peer-fd", "--listen-fd", "--hsts"] {
            let refused = check(&[name, "600"]).expect_err("it is not a person's to say").to_string();
            assert!(
                refused.contains(name.trim_start_matches("--")) && refused.contains("hsts-s"),
                "{refused}"
            );
        }
        for name in ["--head-timeout-ms", "--idle-timeout-ms", "--connect-timeout-ms", "--stall-timeout-ms"] {
            assert!(check(&[name, "0"]).is_err(), "{name} of nothing, by which nobody is served");
            let refused = check(&[name, "99999999999"]).expect_err("it is years").to_string();
            assert!(refused.contains("write milliseconds, 1 to 86400000"), "{refused}");
        }
        check(&["--drain-ms", "0"]).unwrap();
        let longer = limits_of(&["--drain-ms".to_owned(), "120000".to_owned()]);
        assert_eq!(longer.drain, Duration::from_secs(120), "who drains for so long would be killed before");
        for port in ["0", "70000", "https"] {
            assert!(check(&["--redirect", port]).is_err(), "a redirect to port {port}");
        }
    }

    #[test]
    fn every_setting_is_documented() {
        let page = include_str!("../../../docs/ingress.md");
        for name in SETTINGS {
            assert!(page.contains(&format!("| `{name}` ")), "docs/ingress.md has no row for {name}");
        }
    }

    #[test]
    fn only_the_named_networks_are_trusted() {
        let trusted = TrustedProxies::parse("10.0.0.0/8, ::1").unwrap();
        for (ip, expected) in [("10.1.2.3", true), ("11.1.2.3", false), ("::1", true), ("::2", false)] {
            assert_eq!(trusted.contains(ip.parse().unwrap()), expected, "{ip}");
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
        assert!(TrustedProxies::parse("10.0.0.0/33").is_err());
        let twice = ["--trust", "10.0.0.0/8", "--trust", "::1", "--listen-fd", "3", "--data", "/", "--api"];
        let args: Vec<String> = twice.iter().chain(&["unix:/a"]).map(|arg| (*arg).to_owned()).collect();
        let both = Config::parse(&args).unwrap().trusted;
        assert!(["10.0.0.1", "::1"].iter().all(|ip| both.contains(ip.parse().unwrap())), "{both:?}");
    }
}
