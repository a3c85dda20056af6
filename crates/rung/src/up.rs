//! `rung up`: server and agent in this process, the ingress as its child.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use rung_agent::{AgentConfig, Shutdown};
use rung_api::{Address, Client};
use rung_cli::args::IngressSetting;
use rung_cli::edge::Hinted;
use rung_cli::screen::Format;
use rung_cli::{
    DeployOptions, Exit, Global, OnInterrupt, Screen, ServerFile, UpArgs, check_directory, data_directory,
    deploy_directory,
};
use rung_cli::{note, say};
use rung_control::quorum::Backing;
use rung_control::trees::{Place, Setting};
use rung_control::{Control, ControlConfig, Door, Ending, Keyring, Listeners, StartError};
use rung_ingress::{Listen, Supervisor, SupervisorConfig};
use rung_store::StoreError;
use rung_trust::{Clients, Fingerprint, Listener, TrustDirectory};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::data::Data;
use crate::floating::{self, Part};
use crate::porter::Porter;
use crate::signals::Signals;
use crate::{addresses, join, upgrade};

/// How many ports after the usual one are tried when nobody asked for a certain one.
pub(crate) const PORTS_TRIED: u16 = 50;

/// Server and agent wait most of the time; the second worker keeps one slow request from stopping the rest.
pub(crate) const WORKERS: usize = 2;

/// What a graceful stop may take beyond the instances' own grace, before the process ends anyway.
pub(crate) const STOP_MARGIN: Duration = Duration::from_secs(120);

/// An answer that is on its way out is out by then.
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);

/// A stop that takes longer says what it waits for.
const SLOW: Duration = Duration::from_secs(1);

pub fn run(global: &Global, up: &UpArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let ended = runtime.block_on(start(global, up));
    // What still runs in the background (a listing of a directory, say) has nothing to finish.
    runtime.shutdown_background();
    ended
}

/// What was started, and how to end it.
struct Platform {
    control: Control,
    client: Client,
    http: SocketAddr,
    /// Where TLS is served, and the certificate that vouches for names under `localhost`.
    https: Option<(SocketAddr, PathBuf)>,
    api: SocketAddr,
    /// By which other machines recognize the cluster, where they reach the API.
    ca: Option<Fingerprint>,
    backing: Backing,
    upgrades: mpsc::Receiver<PathBuf>,
    endings: mpsc::Receiver<Ending>,
    floating: Option<Part>,
    stop_ingress: watch::Sender<bool>,
    stop_agent: watch::Sender<Shutdown>,
    ingress: tokio::task::JoinHandle<()>,
    agent: tokio::task::JoinHandle<anyhow::Result<()>>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start(global: &Global, up: &UpArgs) -> anyhow::Result<Exit> {
    // Nothing is started for a directory that can't be deployed.
    let environment = global.environment.as_ref();
    up.directory.as_deref().map_or(Ok(()), |directory| check_directory(directory, environment))?;
    let data = Data::open(&data_directory(global.data.as_deref())?)?;
    serve(&data, global, up).await
}

/// A server on this machine, until somebody ends it.
pub(crate) async fn serve(data: &Data, global: &Global, up: &UpArgs) -> anyhow::Result<Exit> {
    let environment = global.environment.as_ref();
    let mut signals = Signals::listen()?;
    // Where the state is in etcd this waits for as long as too few servers are there.
    let backing = tokio::select! {
        opened = Backing::open(data.root(), &|message| note!("{message}")) => opened?,
        () = signals.end() => anyhow::bail!("stopped before the state could be read; instances go on"),
    };
    let mut platform = Platform::start(data, up, backing).await?;
    announce(data, &platform);
    let options = DeployOptions {
        environment: environment.cloned(),
        on_interrupt: OnInterrupt::LeaveToCaller,
        ..DeployOptions::default()
    };
    let mut deploying = pin!(deploy_first(platform.client.clone(), up.directory.clone(), options, up.keep));
    let mut is_deploying = true;
    let kept = upgrade::Kept {
        instances: up.keep,
        ingress: &up.ingress,
        floating: up.floating,
        artifacts: up.artifacts.as_deref(),
    };
    loop {
        tokio::select! {
            () = &mut deploying, if is_deploying => is_deploying = false,
            () = signals.end() => break,
            program = platform.upgrades.recv() => {
                let Some(program) = program else { break };
                // Returns only when it did not work.
                let addresses = platform.addresses(up);
                let error = upgrade::take_over(data, &platform.backing, &program, addresses, kept).await;
                platform.control.record(None, "upgrade_failed", format!("{error:#}"));
                note!("error: upgrade to {}: {error:#}", program.display());
            }
            Some(ending) = platform.endings.recv() => match ending {
                Ending::StateMoved => {
                    // Whoever asked for it hears the answer first.
                    tokio::time::sleep(ANSWERED_WITHIN).await;
                    let error = upgrade::start_again(data, platform.addresses(up), kept);
                    return Err(error.context("starting again, because the state has moved"));
                }
                Ending::Removed => {
                    platform.stop(up.keep).await?;
                    let _ = ServerFile::remove(data.root());
                    return Err(removed(data));
                }
            },
            ended = &mut platform.agent => {
                ended.context("the agent panicked")??;
                anyhow::bail!("the agent ended by itself");
            }
            ended = &mut platform.server => {
                ended.context("the server panicked")?.context("serving the API")?;
            }
        }
    }
    note!("stopping{}", if up.keep { "; the instances go on" } else { ": requests first, then instances" });
    tokio::select! {
        ended = platform.stop(up.keep) => ended?,
        () = signals.interrupt() => note!("stopped at once; instances that are left are found again at the next start"),
    }
    let _ = ServerFile::remove(data.root());
    Ok(Exit::Done)
}

impl Platform {
    async fn start(data: &Data, up: &UpArgs, backing: Backing) -> anyhow::Result<Self> {
        check_ingress(&up.ingress)?;
        let program = std::env::current_exe().context("finding rung's own program file")?;
        let node = crate::node_name::ensure(&data.node_name())?;
        let backing = crate::known::ensure_newest(data, backing).await?;
        let socket = Address::Unix(data.api_socket());
        let tcp = listen_for_api(up.api.as_deref()).await?;
        let api = tcp.local_addr()?;
        // One machine alone pays for none of it.
        let is_cluster = !api.ip().is_loopback();
        let supervisor = Supervisor::bind(SupervisorConfig {
            program: program.clone(),
            http: Some(listen_on("--http", up.http.as_deref(), UpArgs::HTTP)?),
            https: up
                .https
                .as_ref()
                .map(|said| listen_on("--https", said.as_deref(), UpArgs::HTTPS))
                .transpose()?,
            cluster: is_cluster.then(|| join::own_setting(data, &node, api.ip())),
            services: Some(join::services_setting(data)),
            api: vec![socket.clone()],
            data: data.ingress(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        })?;
        let supervisor = supervisor.arguments(IngressSetting::arguments(&up.ingress));
        for remark in supervisor.remarks() {
            note!("{remark}");
        }
        let https = supervisor.https().zip(supervisor.development_certificate());
        let http = supervisor.http().context("the ingress listens nowhere")?;
        let services = supervisor.services();
        let token = data.ensure_token()?;
        let (upgrade_sender, upgrades) = mpsc::channel(1);
        let (ending_sender, endings) = mpsc::channel(1);
        let config = ControlConfig {
            backing: backing.clone(),
            data: data.root().to_owned(),
            artifacts: artifacts_setting(up)?,
            keys: master_keys(data)?,
            token: token.clone(),
            node: node.clone(),
            http: http.to_string(),
            services,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            upgrades: upgrade_sender,
            endings: ending_sender,
        };
        let (control, _) = Control::start(config).await.map_err(with_way_out)?;
        let ca = if is_cluster { Some(control.ensure_authority().await?) } else { None };
        let (door, outside) = match ca {
            None => (Door::Plain(tcp), None),
            Some(_) => {
                let trust = TrustDirectory::new(data.trust());
                let advertised = addresses::advertised(up.address, api.ip());
                let mut reached = addresses::of_this_machine(api.ip());
                reached.push(advertised);
                let shown = format!("https://{}", SocketAddr::new(advertised, api.port()));
                let identity = control.own_identity(trust, reached, shown).await?;
                let members = control.members();
                let peers = supervisor.peers().context("the node's proxy listens nowhere")?.port();
                let outside =
                    join::outside(api.ip(), advertised, peers, identity.clone(), members.clone()).await?;
                (Door::Tls(Listener::new(tcp, identity, Clients::Anybody, members)?), Some(outside))
            }
        };
        let listeners =
            Listeners::new(door, &data.api_socket()).context("listening for this machine's roles")?;
        let server = tokio::spawn(control.clone().serve(listeners));
        let client = Client::new(socket, None);
        let (stop_ingress, stopping) = watch::channel(false);
        let (told, events) = mpsc::unbounded_channel();
        tokio::spawn(write_ingress_events(control.clone(), events));
        let recorder = control.clone();
        let tell = move |event| recorder.record(None, "floating", event);
        let floating = floating::take_part(up.floating, &supervisor, data, tell).await?;
        let ingress = tokio::spawn(supervisor.run(stopping, told));
        let (stop_agent, stopping) = watch::channel(Shutdown::No);
        let config = AgentConfig {
            node,
            data: data.node(),
            socket: data.agent_socket(),
            api: client.clone(),
            program,
            labels: join::labels(&up.labels),
            services,
            porter: Some(Porter::of(data)),
        };
        let agent = tokio::spawn(async move {
            rung_agent::run(config, outside, stopping).await.map_err(join::agent_ended)
        });
        let file = ServerFile {
            api: shown_api(api, ca),
            token,
            http: http.to_string(),
            ca: ca.map(|ca| ca.to_string()),
            pid: std::process::id(),
        };
        file.write(data.root()).context("writing rung.json, by which the commands find the server")?;
        Ok(Self {
            control,
            client,
            http,
            https,
            api,
            ca,
            backing,
            upgrades,
            endings,
            floating,
            stop_ingress,
            stop_agent,
            ingress,
            agent,
            server,
        })
    }

    fn addresses(&self, up: &UpArgs) -> upgrade::Addresses {
        let https = self.https.as_ref().map(|(address, _)| *address);
        upgrade::Addresses { http: self.http, https, api: self.api, advertised: up.address }
    }

    /// Requests are finished first; then instances are stopped, unless they are to be left.
    async fn stop(self, keep: bool) -> anyhow::Result<()> {
        if let Some(floating) = self.floating {
            floating.stop().await;
        }
        self.stop_ingress.send_replace(true);
        let _ = told_when_slow("requests in flight, half a minute at most", self.ingress).await;
        self.stop_agent.send_replace(if keep { Shutdown::KeepInstances } else { Shutdown::StopInstances });
        let what = if keep { "the agent" } else { "instances to end, as long as their grace lasts" };
        match told_when_slow(what, tokio::time::timeout(STOP_MARGIN, self.agent)).await {
            Ok(ended) => ended.context("the agent panicked")??,
            Err(_) => note!("some instances do not end; they are found again at the next start"),
        }
        self.server.abort();
        // One that is to be left goes on as a member, so that the others keep their majority.
        if let Some(quorum) = self.backing.quorum().filter(|_| !keep) {
            quorum.member.stop().await;
        }
        Ok(())
    }
}

fn removed(data: &Data) -> anyhow::Error {
    let message = "this server was taken out of its cluster";
    let hint = format!("to let it join again, remove {} and use a new join token", data.root().display());
    Hinted::failed(message, hint).into()
}

/// Whoever pressed Ctrl-C and sees nothing happen is told what it is.
pub(crate) async fn told_when_slow<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(SLOW, &mut work).await {
        return done;
    }
    note!("waiting for {what}; Ctrl-C again stops at once");
    work.await
}

fn artifacts_setting(up: &UpArgs) -> anyhow::Result<Setting> {
    let place = up.artifacts.as_deref().map(str::parse::<Place>).transpose();
    let place = place.map_err(|error| Hinted::usage(error.to_string(), "docs/artifacts.md has examples"))?;
    Ok(Setting { place, systemd: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) })
}

/// The master keys of secrets: systemd's credential when the unit gives one, else the file.
fn master_keys(data: &Data) -> anyhow::Result<Keyring> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let keys = Keyring::load(&data.seal_key(), credentials.as_deref())?;
    if let Some(left) = keys.left_behind() {
        note!(
            "note: {} lies beside the credential that stands for it; `rung secret rotate-key` puts every secret under \
             the credential and removes it",
            left.display()
        );
    }
    Ok(keys)
}

/// A full disk is the one thing that people meet here and can mend.
fn with_way_out(error: StartError) -> anyhow::Error {
    if let StartError::Lead(StoreError::Unavailable(why)) = &error {
        let message = format!("the store can't be written: {why}");
        let hint = "free some space on the disk of the data directory, then start again; instances and ingress that \
                    an earlier rung left go on meanwhile";
        return Hinted::failed(message, hint).into();
    }
    error.into()
}

/// A setting that the ingress does not know would keep it from starting, again and again.
pub(crate) fn check_ingress(settings: &[IngressSetting]) -> anyhow::Result<()> {
    rung_ingress::check_settings(&IngressSetting::arguments(settings)).map_err(|error| {
        Hinted::usage(error.to_string(), "docs/ingress.md lists the settings: --ingress hsts-s=31536000")
            .into()
    })
}

/// What was asked for, exactly; the usual address, or the next free port, when nothing was.
fn listen_on(option: &str, said: Option<&str>, usual: &str) -> anyhow::Result<Listen> {
    let address = parse_address(option, said.unwrap_or(usual))?;
    Ok(Listen { address, next_free: said.is_none() })
}

pub(crate) fn parse_address(option: &str, said: &str) -> anyhow::Result<SocketAddr> {
    let said = said.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
    if let Ok(address) = said.parse() {
        return Ok(address);
    }
    // A port alone, or `localhost:8080`.
    let (host, port) = said.rsplit_once(':').unwrap_or(("127.0.0.1", said));
    let ip = if host == "localhost" { Ok(IpAddr::from([127, 0, 0, 1])) } else { host.parse() };
    match (ip, port.parse()) {
        (Ok(ip), Ok(port)) => Ok(SocketAddr::new(ip, port)),
        _ => {
            let message = format!("{said:?} is not an address to listen on");
            Err(Hinted::usage(
                message,
                format!("write it like {option} 127.0.0.1:8080 or {option} 0.0.0.0:80"),
            )
            .into())
        }
    }
}

async fn listen_for_api(said: Option<&str>) -> anyhow::Result<TcpListener> {
    let asked = parse_address("--api", said.unwrap_or(UpArgs::API))?;
    let tries = if said.is_some() { 1 } else { PORTS_TRIED };
    let mut last = None;
    for port in (0..tries).map(|n| asked.port().saturating_add(n)) {
        match TcpListener::bind(SocketAddr::new(asked.ip(), port)).await {
            Ok(listener) => {
                if port != asked.port() {
                    note!("port {} is taken; the API is at port {port}", asked.port());
                }
                return Ok(listener);
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.expect("at least one port was tried");
    Err(error)
        .with_context(|| format!("listening for the API on {asked}; choose another address with --api ADDR"))
}

async fn write_ingress_events(control: Control, mut events: mpsc::UnboundedReceiver<String>) {
    while let Some(message) = events.recv().await {
        control.record(None, "ingress", message);
    }
}

/// How the commands of this machine reach the API.
fn shown_api(api: SocketAddr, ca: Option<Fingerprint>) -> String {
    let scheme = if ca.is_some() { "https" } else { "http" };
    let ip = match api.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("{scheme}://{}", SocketAddr::new(ip, api.port()))
}

fn announce(data: &Data, platform: &Platform) {
    say!("rung {} keeps its data in {}", env!("CARGO_PKG_VERSION"), data.root().display());
    let scheme = if platform.ca.is_some() { "https" } else { "http" };
    say!("apps are served at http://{}, the API is at {scheme}://{}", platform.http, platform.api);
    if let Some(ca) = platform.ca {
        say!("what vouches for it is the cluster's authority {ca}");
    }
    if let Some((https, certificate)) = &platform.https {
        say!("and at https://{https}; what vouches for names under localhost is {}", certificate.display());
    }
}

/// A failed deploy is explained and leaves the platform running: there may be other apps, and the next try is near.
async fn deploy_first(client: Client, directory: Option<PathBuf>, options: DeployOptions, keep: bool) {
    if let Some(directory) = directory {
        let mut screen = Screen::stdout(Format::People);
        screen.outlives_reader();
        if let Err(error) = deploy_directory(&client, &directory, &options, &mut screen).await {
            let (text, _) = rung_cli::explain(&error);
            note!("{text}");
        }
    }
    say!("Ctrl-C stops rung{}", if keep { "; its instances go on" } else { " and its instances" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let read = |said: &str| parse_address("--http", said).map(|address| address.to_string());
        assert_eq!(read("127.0.0.1:8080").unwrap(), "127.0.0.1:8080");
        assert_eq!(read("http://0.0.0.0:80/").unwrap(), "0.0.0.0:80");
        assert_eq!(read("localhost:81").unwrap(), "127.0.0.1:81");
        assert_eq!(read("9000").unwrap(), "127.0.0.1:9000");
        assert_eq!(read("[::1]:80").unwrap(), "[::1]:80");
        let refused = rung_cli::explain(&read("eighty").unwrap_err()).0;
        assert!(refused.contains("--http 127.0.0.1:8080"), "no way out is named: {refused}");
    }
}
