//! Machines with certificates ask a door of a few endpoints, by the client that they all use.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use axum::extract::Path;
use axum::middleware;
use axum::routing::{get, post};
use axum::{Extension, Json};
use futures_util::future::join_all;
use futures_util::stream;
use hyper::client::conn::http2 as asking;
use rung_api::{Address, Client, ClientError, Code, Tls, paths};
use rung_model::{Digest, NodeId, NodeRole};
use rung_trust::{
    Authority, Belief, CERTIFICATE_LIFE, Certificate, Clients, Credentials, Identity, Member, MemberList,
    Members, NodeKey, client_config, one_by_one,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio_rustls::rustls::ClientConfig;

use super::super::callers::{self, CameFrom};
use super::*;

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many questions of one machine wait at the same time.
const ASKED: usize = 10;

/// A server, and a machine that belongs to its cluster.
struct Cluster {
    machine: Arc<Identity>,
    members: Members,
    address: SocketAddr,
    /// Questions that wait at `/forever`.
    waiting: Arc<AtomicUsize>,
}

fn machine(authority: &Authority, name: &str, role: NodeRole) -> Arc<Identity> {
    let key = NodeKey::generate();
    let wanted = Certificate {
        node: &NodeId::new(name).unwrap(),
        role,
        key: &key.public(),
        addresses: &[],
        host: None,
        now: SystemTime::now(),
        life: CERTIFICATE_LIFE,
    };
    let certificate = authority.certify(&wanted).unwrap();
    let authority = authority.file().certificate.clone();
    Identity::new(&Credentials { key, certificate, authority }).unwrap()
}

async fn serving() -> Cluster {
    let authority = Authority::generate(SystemTime::now()).unwrap();
    let (server, machine) =
        (machine(&authority, "one", NodeRole::Server), machine(&authority, "two", NodeRole::Worker));
    let peer = machine.peer().clone();
    let members = Members::default();
    members.set(MemberList([(peer.node, Member { role: peer.role, key: peer.key })].into()));
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = Listener::new(socket, server, Clients::Anybody, members.clone()).unwrap();
    let (address, waiting) = (listener.local_addr(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(serve(listener, endpoints(waiting.clone())));
    Cluster { machine, members, address, waiting }
}

/// Counts while it waits.
struct Waits(Arc<AtomicUsize>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn endpoints(waiting: Arc<AtomicUsize>) -> Router {
    let all_are_here = Arc::new(Barrier::new(ASKED));
    let together = async move |ConnectInfo(CameFrom(from)): ConnectInfo<CameFrom>| {
        all_are_here.wait().await;
        Json(from)
    };
    let forever = async move || -> Json<()> {
        waiting.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(waiting);
        std::future::pending().await
    };
    let endless = async |Path(_): Path<String>| {
        Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(vec![7_u8; 16 * 1024])))
    };
    Router::new()
        .route("/together", get(together))
        .route("/unread", post(async || Json(())))
        .route("/forever", get(forever))
        .route("/from", get(async |ConnectInfo(CameFrom(from)): ConnectInfo<CameFrom>| Json(from)))
        .route("/via", get(async |Extension(via): Extension<callers::Via>| Json(format!("{via:?}"))))
        .route(paths::ARTIFACT, get(endless).put(async |body: axum::body::Bytes| Json(body.len())))
        .layer(middleware::from_fn(callers::note_caller))
}

impl Cluster {
    fn client(&self, change: impl FnOnce(&Arc<ClientConfig>) -> Arc<ClientConfig>) -> Client {
        let belief = Belief::Authority(self.machine.authority().clone());
        let config = change(&client_config(belief, Some(self.machine.clone())));
        Client::over_tls(Address::Tls(self.address.to_string()), None, Tls::to_servers(config))
    }

    /// By a relay whose first connection stands still once it is told to; the kernel goes on answering for it.
    async fn client_by_a_relay(&self) -> (Client, Arc<Notify>) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, server) = (socket.local_addr().unwrap(), self.address);
        let stops = Arc::new(Notify::new());
        let mut first = Some(stops.clone());
        tokio::spawn(async move {
            loop {
                let (mut theirs, _) = socket.accept().await.unwrap();
                let stops = first.take();
                tokio::spawn(async move {
                    let mut ours = TcpStream::connect(server).await.unwrap();
                    let passed = tokio::io::copy_bidirectional(&mut theirs, &mut ours);
                    match stops {
                        None => drop(passed.await),
                        Some(stops) => tokio::select! {
                            _ = passed => {}
                            () = stops.notified() => {
                                let _both = (theirs, ours);
                                std::future::pending::<()>().await;
                            }
                        },
                    }
                });
            }
        });
        let belief = Belief::Authority(self.machine.authority().clone());
        let tls = Tls::to_servers(client_config(belief, Some(self.machine.clone())));
        (Client::over_tls(Address::Tls(address.to_string()), None, tls), stops)
    }

    async fn until_waiting(&self, count: usize) {
        let began = Instant::now();
        while self.waiting.load(Ordering::SeqCst) != count {
            assert!(began.elapsed() < PATIENCE, "{:?} wait, not {count}", self.waiting);
            tokio::task::yield_now().await;
        }
    }
}

async fn in_time<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wanted).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// The connections by which as many questions come that wait at the same time.
async fn connections_of(client: &Client) -> Vec<SocketAddr> {
    let asked = (0..ASKED).map(|_| client.get::<SocketAddr>("/together"));
    let mut from: Vec<SocketAddr> =
        in_time("asking together", join_all(asked)).await.into_iter().collect::<Result<_, _>>().unwrap();
    from.sort_unstable();
    from.dedup();
    from
}

#[tokio::test]
async fn what_a_machine_asks_at_a_time_comes_by_one_connection() {
    let cluster = serving().await;
    let client = cluster.client(Arc::clone);
    let first = connections_of(&client).await;
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(connections_of(&client).await, first, "it is kept");
    let via: String = client.get("/via").await.unwrap();
    assert!(via.contains("node: two,"), "it is known who asks: {via}");
}

#[tokio::test]
async fn a_machine_of_the_version_before_is_served_as_before() {
    let cluster = serving().await;
    let client = cluster.client(|config| one_by_one(config));
    assert_eq!(connections_of(&client).await.len(), ASKED);
}

#[tokio::test]
async fn what_flows_has_a_connection_of_its_own_and_keeps_no_question_waiting() {
    let cluster = serving().await;
    let client = cluster.client(Arc::clone);
    let asked: SocketAddr = client.get("/from").await.unwrap();
    let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(in_time("an answer's head", client.artifact(&digest)).await.unwrap());
    }
    let again: SocketAddr = in_time("a question beside", client.get("/from")).await.unwrap();
    assert_eq!(again, asked, "nothing that flows took the connection");
    // What is read comes, too.
    let mut read = 0;
    while read < 1024 * 1024 {
        use http_body_util::BodyExt;
        let frame = in_time("what flows", unread[0].frame()).await.unwrap().unwrap();
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
    }
}

#[tokio::test]
async fn a_question_that_is_given_up_ends_at_the_server_and_the_others_go_on() {
    let cluster = serving().await;
    let client = cluster.client(Arc::clone);
    let from: SocketAddr = client.get("/from").await.unwrap();
    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.get::<()>("/forever").await })
    };
    let (given_up, other) = (ask(), ask());
    cluster.until_waiting(2).await;
    given_up.abort();
    cluster.until_waiting(1).await;
    assert_eq!(client.get::<SocketAddr>("/from").await.unwrap(), from, "the connection is as it was");
    assert!(!other.is_finished());
}

#[tokio::test]
async fn what_is_sent_and_not_read_uses_nothing_up() {
    let cluster = serving().await;
    let client = cluster.client(Arc::clone);
    // A beat has a body, and nobody reads it.
    let body = "a".repeat(WINDOW as usize / 2);
    for _ in 0..4 * WINDOW_OF_ALL / WINDOW {
        let answer = in_time("an answer", client.call::<_, ()>(hyper::Method::POST, "/unread", &body)).await;
        answer.unwrap();
    }
}

/// Longer than a machine may say nothing.
const GIVEN_UP: Duration = Duration::from_millis(2200);

#[tokio::test]
async fn a_question_that_is_given_up_on_a_silent_connection_takes_it_along() {
    let cluster = serving().await;
    let (client, stops) = cluster.client_by_a_relay().await;
    let from: SocketAddr = client.get("/from").await.unwrap();
    stops.notify_one();
    let silent = tokio::time::timeout(GIVEN_UP, client.get::<()>("/forever")).await;
    assert!(silent.is_err(), "{silent:?}");
    let again: SocketAddr = in_time("asking anew", client.get("/from")).await.unwrap();
    assert_ne!(again, from);
}

#[tokio::test]
async fn a_long_question_that_is_given_up_where_others_are_answered_takes_nothing_along() {
    let cluster = serving().await;
    let client = cluster.client(Arc::clone);
    let from: SocketAddr = client.get("/from").await.unwrap();
    let mut given_up = pin!(tokio::time::timeout(GIVEN_UP, client.get::<()>("/forever")));
    loop {
        tokio::select! {
            ended = &mut given_up => break assert!(ended.is_err(), "{ended:?}"),
            other = client.get::<SocketAddr>("/from") => assert_eq!(other.unwrap(), from),
        }
    }
    assert_eq!(client.get::<SocketAddr>("/from").await.unwrap(), from);
}

#[tokio::test]
async fn a_machine_that_is_removed_is_cut_off_amid_its_questions_and_told_why() {
    let cluster = serving().await;
    let client = cluster.client(Arc::clone);
    let asked: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get::<()>("/forever").await })
        })
        .collect();
    cluster.until_waiting(3).await;
    cluster.members.set(MemberList::default());
    for question in asked {
        let error = in_time("being cut off", question).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    }
    cluster.until_waiting(0).await;
    for _ in 0..2 {
        let error = in_time("a word", client.get::<()>("/from")).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Removed), "{error:?}");
    }
}

#[tokio::test]
async fn whoever_was_removed_is_answered_once_and_has_to_go() {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let cluster = serving().await;
    let info =
        CallerInfo { caller: Caller::Removed(cluster.machine.peer().clone()), address: cluster.address };
    let refusing = tokio::spawn(refuse(theirs, endpoints(Arc::default()), info));
    let (mut sender, connection) = asking::handshake::<_, _, http_body_util::Empty<bytes::Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(ours),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("https://rung/from").body(http_body_util::Empty::new()).unwrap();
    let answer = in_time("a word", sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status().as_u16(), Code::Removed.status());
    in_time("the end", connection).await.unwrap().unwrap();
    in_time("its end here", refusing).await.unwrap();
}
