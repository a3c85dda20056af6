//! `rung join`: this machine as a node of a cluster, as what its token says.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use rung_agent::{AgentConfig, AgentError, Outside, Shutdown};

use rung_cli::args::IngressSetting;
use rung_cli::edge::Hinted;
use rung_cli::{Exit, Global, JoinArgs, UpArgs, data_directory};
use rung_cli::{note, say};
use rung_ingress::{ClusterSetting, Listen, ServicesSetting, Supervisor, SupervisorConfig};
use rung_model::address::SERVICE_PORT;
use rung_model::{Label, Labels, NodeId, NodeRole};
use rung_trust::{Clients, Identity, Listener, Members, TrustDirectory};
use tokio::sync::{mpsc, watch};

use crate::data::Data;
use crate::floating::{self, Part};
use crate::membership::{Membership, refuse_servers};
use crate::porter::Porter;
use crate::signals::Signals;
use crate::up::{PORTS_TRIED, STOP_MARGIN, WORKERS, check_ingress, parse_address, told_when_slow};
use crate::{node_name, server, successor, up};

/// Beside the API's 7864: where the agent is asked by servers, and where instances are asked by other machines.
pub const AGENT_PORT: u16 = 7865;
pub const PEER_PORT: u16 = 7866;

pub fn run(global: &Global, args: &JoinArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let ended = runtime.block_on(start(global, args));
    runtime.shutdown_background();
    ended
}

async fn start(global: &Global, args: &JoinArgs) -> anyhow::Result<Exit> {
    let data = Data::open(&data_directory(global.data.as_deref())?)?;
    let trust = TrustDirectory::new(data.trust());
    let membership = member(&data, &trust, args).await?;
    if membership.role == NodeRole::Server {
        server::ensure_entered(&data, &trust, &membership, args).await?;
        return up::serve(&data, global, &server::as_up(args)).await;
    }
    let (mut signals, mut successors) = (Signals::listen()?, successor::Requests::listen()?);
    let mut node = Node::start(&data, trust, membership, args).await?;
    successor::say_running(&data)?;
    say!("Ctrl-C stops this node{}", if args.keep { "; its instances go on" } else { " and its instances" });
    loop {
        tokio::select! {
            () = signals.end() => break,
            ended = node.agent_ended() => return Err(ended),
            () = successors.next() => {
                // Returns only when it did not work.
                let error = successor::take_over(&data, args);
                note!("error: upgrade: {error:#}");
            }
        }
    }
    tokio::select! {
        ended = node.stop(args.keep) => ended?,
        () = signals.interrupt() => note!("stopped at once; instances that are left are found again at the next start"),
    }
    Ok(Exit::Done)
}

/// As what this machine joined, now or earlier.
async fn member(data: &Data, trust: &TrustDirectory, args: &JoinArgs) -> anyhow::Result<Membership> {
    match (Membership::read(trust)?, &args.server, &args.token) {
        (Some(kept), None, _) => Ok(kept),
        (Some(kept), Some(_), _) => {
            let message = format!("this data directory belongs to {} ({}) already", kept.node, kept.role);
            let hint = format!(
                "start it again with `rung join` alone, or join with another --data DIR; when it was taken out of its cluster, \
                 remove {} and join",
                trust.path().display()
            );
            Err(Hinted::failed(message, hint).into())
        }
        (None, Some(server), Some(token)) => {
            refuse_servers(data.root())?;
            let name = match &args.name {
                Some(name) => name.clone(),
                None => node_name::ensure(&data.node_name())?,
            };
            let membership = Membership::join(trust, server, token, name).await?;
            say!("joined as {} ({})", membership.node, membership.role);
            Ok(membership)
        }
        (None, _, _) => {
            refuse_servers(data.root())?;
            let message = "this machine has not joined a cluster";
            Err(Hinted::usage(message, "on a server `rung node token` prints the command that lets it")
                .into())
        }
    }
}

/// What was started, and how to end it.
struct Node {
    floating: Option<Part>,
    stop_ingress: watch::Sender<bool>,
    stop_agent: watch::Sender<Shutdown>,
    ingress: tokio::task::JoinHandle<()>,
    agent: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Node {
    async fn start(
        data: &Data,
        trust: TrustDirectory,
        membership: Membership,
        args: &JoinArgs,
    ) -> anyhow::Result<Self> {
        let identity = membership.identity(&trust)?;
        let client = membership.client(&identity)?;
        let program = std::env::current_exe().context("finding rung's own program file")?;
        check_ingress(&args.ingress)?;
        let supervisor = Supervisor::bind(supervisor_config(data, &membership, args)?)?;
        let supervisor = supervisor.arguments(IngressSetting::arguments(&args.ingress));
        for remark in supervisor.remarks() {
            note!("{remark}");
        }
        if let Some(http) = supervisor.http() {
            say!("apps are served at http://{http}");
        }
        let floating = match args.floating {
            Some(address) if membership.role == NodeRole::Worker => {
                let message = format!("--floating {address}: a worker serves no visitors");
                let hint = "give the address to servers and ingresses";
                return Err(Hinted::usage(message, hint).into());
            }
            said => floating::take_part(said, &supervisor, data, |event| note!("{event}")).await?,
        };
        let members = Members::default();
        let file = trust.path().join("members.json");
        tokio::spawn(rung_api::members::follow(client.clone(), members.clone(), file));
        let (stop_agent, stopping) = watch::channel(Shutdown::No);
        let agent = match (membership.role, supervisor.peers()) {
            (NodeRole::Worker, Some(peers)) => {
                let ip = advertised(args, &membership).await?;
                let outside = outside(args.listen(), ip, peers.port(), identity.clone(), members).await?;
                say!("servers reach this node at {}, other nodes at {}", outside.agent, outside.proxy);
                let config = AgentConfig {
                    node: membership.node.clone(),
                    data: data.node(),
                    socket: data.agent_socket(),
                    api: client.clone(),
                    program,
                    labels: labels(&args.labels),
                    services: supervisor.services(),
                    porter: Some(Porter::of(data)),
                };
                Some(tokio::spawn(async move {
                    rung_agent::run(config, Some(outside), stopping).await.map_err(agent_ended)
                }))
            }
            _ => None,
        };
        let (stop_ingress, stopping) = watch::channel(false);
        let (told, events) = mpsc::unbounded_channel();
        tokio::spawn(write_events(events));
        let ingress = tokio::spawn(supervisor.run(stopping, told));
        tokio::spawn(membership.keep_renewed(trust, identity, client));
        Ok(Self { floating, stop_ingress, stop_agent, ingress, agent })
    }

    /// Ends only when the agent does, which it does not by itself.
    async fn agent_ended(&mut self) -> anyhow::Error {
        let Some(agent) = &mut self.agent else { return std::future::pending().await };
        match agent.await {
            Ok(Ok(())) => anyhow::anyhow!("the agent ended by itself"),
            Ok(Err(error)) => error,
            Err(error) => anyhow::Error::from(error).context("the agent panicked"),
        }
    }

    /// Instances first: as long as the node's proxy is there, requests of other machines are finished.
    async fn stop(self, keep: bool) -> anyhow::Result<()> {
        self.stop_agent.send_replace(if keep { Shutdown::KeepInstances } else { Shutdown::StopInstances });
        if let Some(agent) = self.agent {
            match told_when_slow("instances to end", tokio::time::timeout(STOP_MARGIN, agent)).await {
                Ok(ended) => ended.context("the agent panicked")??,
                Err(_) => note!("some instances do not end; they are found again at the next start"),
            }
        }
        if let Some(floating) = self.floating {
            floating.stop().await;
        }
        self.stop_ingress.send_replace(true);
        let _ = told_when_slow("requests in flight, half a minute at most", self.ingress).await;
        Ok(())
    }
}

/// An agent that can't go on, with the way out.
pub fn agent_ended(error: AgentError) -> anyhow::Error {
    let way_out = error.way_out();
    let error = anyhow::Error::from(error);
    match way_out {
        Some(way_out) => Hinted::failed(format!("the agent can't begin: {error:#}"), way_out).into(),
        None => error,
    }
}

/// The last word on each.
pub fn labels(said: &[Label]) -> Labels {
    said.iter().cloned().map(|label| (label.name, label.value)).collect()
}

fn supervisor_config(
    data: &Data,
    membership: &Membership,
    args: &JoinArgs,
) -> anyhow::Result<SupervisorConfig> {
    let is_ingress = membership.role == NodeRole::Ingress;
    let peers = Listen { address: SocketAddr::new(args.listen(), PEER_PORT), next_free: true };
    let listen = |option: &str, said: Option<&str>, usual: &str| -> anyhow::Result<Listen> {
        Ok(Listen { address: parse_address(option, said.unwrap_or(usual))?, next_free: said.is_none() })
    };
    let http = is_ingress.then(|| listen("--http", args.http.as_deref(), JoinArgs::HTTP)).transpose()?;
    let https = match &args.https {
        Some(said) if is_ingress => Some(listen("--https", said.as_deref(), UpArgs::HTTPS)?),
        _ => None,
    };
    Ok(SupervisorConfig {
        program: std::env::current_exe().context("finding rung's own program file")?,
        http,
        https,
        cluster: Some(ClusterSetting {
            node: membership.node.clone(),
            trust: data.trust(),
            peers: (!is_ingress).then_some(peers),
        }),
        services: (!is_ingress).then(|| services_setting(data)),
        api: membership.addresses()?,
        data: data.ingress(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// The address by which others reach this machine: what was said, else the one from which it reaches the servers.
pub(crate) async fn advertised(args: &JoinArgs, membership: &Membership) -> anyhow::Result<IpAddr> {
    if let Some(said) = args.address {
        return Ok(said);
    }
    let server = membership.servers.first().context("no server of the cluster is known")?;
    let server = server.trim_start_matches("https://");
    // Nothing is sent: the kernel only looks up the way.
    let probe = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
    probe.connect(server).await.with_context(|| format!("looking for the way to {server}"))?;
    Ok(probe.local_addr()?.ip())
}

/// Listens for servers' questions to the agent.
pub async fn outside(
    listen: IpAddr,
    advertised: IpAddr,
    proxy: u16,
    identity: Arc<Identity>,
    members: Members,
) -> anyhow::Result<Outside> {
    let mut last = None;
    for port in (0..PORTS_TRIED).map(|n| AGENT_PORT + 100 * n) {
        match tokio::net::TcpListener::bind(SocketAddr::new(listen, port)).await {
            Ok(socket) => {
                let agent = SocketAddr::new(advertised, socket.local_addr()?.port());
                let listener = Listener::new(socket, identity, Clients::Nodes, members)?;
                return Ok(Outside { listener, agent, proxy: SocketAddr::new(advertised, proxy) });
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.expect("at least one port was tried");
    Err(error).context("listening for the servers' questions to this node")
}

async fn write_events(mut events: mpsc::UnboundedReceiver<String>) {
    while let Some(message) = events.recv().await {
        tracing::info!("{message}");
    }
}

/// For a machine that runs instances.
pub fn services_setting(data: &Data) -> ServicesSetting {
    // Without root every app has the same user, and nobody can be told from anybody.
    let users = nix::unistd::geteuid().is_root().then(|| data.users());
    ServicesSetting { port: SERVICE_PORT, users }
}

/// For the server's own machine.
pub fn own_setting(data: &Data, node: &NodeId, listen: IpAddr) -> ClusterSetting {
    let peers = Listen { address: SocketAddr::new(listen, PEER_PORT), next_free: true };
    ClusterSetting { node: node.clone(), trust: data.trust(), peers: Some(peers) }
}
