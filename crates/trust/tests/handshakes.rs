//! Two sides and what each finds out about the other before a byte of anything else is sent.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rung_model::{NodeId, NodeRole};
use rung_trust::{
    Authority, Belief, CERTIFICATE_LIFE, Caller, Certificate, Clients, Credentials, Explained, Fingerprint,
    Identity, Listener, Member, MemberList, Members, NodeKey, Protocol, TrustDirectory, client_config,
    explain, node_name, one_by_one, role_name, server_name,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A machine of a cluster, with a certificate that was made `ago`.
fn made(authority: &Authority, name: &str, role: NodeRole, ago: Duration) -> Arc<Identity> {
    let key = NodeKey::generate();
    let certificate = authority
        .certify(&Certificate {
            node: &node(name),
            role,
            key: &key.public(),
            addresses: &["127.0.0.1".parse().unwrap()],
            host: None,
            now: SystemTime::now() - ago,
            life: CERTIFICATE_LIFE,
        })
        .unwrap();
    let authority = authority.file().certificate.clone();
    Identity::new(&Credentials { key, certificate, authority }).unwrap()
}

fn machine(authority: &Authority, name: &str, role: NodeRole) -> Arc<Identity> {
    made(authority, name, role, Duration::ZERO)
}

fn cluster() -> Authority {
    Authority::generate(SystemTime::now()).unwrap()
}

fn members(of: &[&Identity]) -> Members {
    let members = Members::default();
    let list = of.iter().map(|identity| {
        let peer = identity.peer().clone();
        (peer.node, Member { role: peer.role, key: peer.key })
    });
    members.set(MemberList(list.collect()));
    members
}

async fn listen(identity: Arc<Identity>, clients: Clients, members: Members) -> (Listener, String) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = Listener::new(socket, identity, clients, members).unwrap();
    let address = listener.local_addr().to_string();
    (listener, address)
}

async fn connect(
    address: &str,
    belief: Belief,
    own: Option<Arc<Identity>>,
    name: String,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(client_config(belief, own)).connect(server_name(name), stream).await
}

fn a_server() -> String {
    role_name(NodeRole::Server)
}

#[tokio::test]
async fn a_person_with_the_hash_reaches_the_server_and_with_another_hash_nothing_is_sent() {
    let authority = cluster();
    let server = machine(&authority, "one", NodeRole::Server);
    let (mut listener, address) = listen(server, Clients::Anybody, Members::default()).await;
    let good = Belief::Hash(authority.fingerprint());
    let (client, accepted) = tokio::join!(connect(&address, good, None, a_server()), listener.accept());
    client.unwrap();
    assert_eq!(accepted.caller, Caller::Anybody);
    let other = cluster().fingerprint();
    let error = connect(&address, Belief::Hash(other), None, a_server()).await.unwrap_err();
    assert_eq!(explain(&error), Some(Explained::OtherCluster { expected: other }));
}

#[tokio::test]
async fn a_worker_is_not_taken_for_a_server_nor_one_node_for_another() {
    let authority = cluster();
    let worker = machine(&authority, "two", NodeRole::Worker);
    let (_listener, address) = listen(worker.clone(), Clients::Anybody, Members::default()).await;
    let belief = Belief::Authority(worker.authority().clone());
    let error = connect(&address, belief.clone(), None, a_server()).await.unwrap_err();
    assert_eq!(explain(&error), Some(Explained::OtherNode), "a worker passed for a server: {error}");
    let error = connect(&address, belief.clone(), None, node_name(&node("three"))).await.unwrap_err();
    assert_eq!(explain(&error), Some(Explained::OtherNode));
    connect(&address, belief, None, node_name(&node("two"))).await.expect("it is that node");
}

#[tokio::test]
async fn members_are_known_by_name_role_and_key() {
    let authority = cluster();
    let server = machine(&authority, "one", NodeRole::Server);
    let worker = machine(&authority, "two", NodeRole::Worker);
    // The name was given to another machine meanwhile.
    let impostor = machine(&authority, "two", NodeRole::Worker);
    let (mut listener, address) = listen(server, Clients::Anybody, members(&[&worker])).await;
    let belief = Belief::Authority(worker.authority().clone());
    for (own, expected) in [
        (&worker, Caller::Member(worker.peer().clone())),
        (&impostor, Caller::Removed(impostor.peer().clone())),
    ] {
        let connecting = connect(&address, belief.clone(), Some(own.clone()), a_server());
        let (_client, accepted) = tokio::join!(connecting, listener.accept());
        assert_eq!(accepted.caller, expected);
    }
}

#[tokio::test]
async fn machines_ask_servers_side_by_side_and_whoever_does_not_know_that_is_understood_too() {
    let authority = cluster();
    let server = machine(&authority, "one", NodeRole::Server);
    let worker = machine(&authority, "two", NodeRole::Worker);
    let belief = Belief::Authority(worker.authority().clone());
    let of_a_machine = client_config(belief.clone(), Some(worker.clone()));
    // The version before this one, and whoever makes no offer at all.
    let of_before = one_by_one(&of_a_machine);
    let mut without_offer = (*of_before).clone();
    without_offer.alpn_protocols.clear();
    // As `curl` and `git` offer.
    let mut of_a_tool = (*client_config(belief.clone(), None)).clone();
    of_a_tool.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    for (who, config, clients, expected) in [
        ("a machine", of_a_machine.clone(), Clients::Anybody, Protocol::SideBySide),
        ("a machine of before", of_before, Clients::Anybody, Protocol::OneByOne),
        ("without an offer", Arc::new(without_offer), Clients::Anybody, Protocol::OneByOne),
        ("a person", client_config(belief, None), Clients::Anybody, Protocol::OneByOne),
        ("a person's tool", Arc::new(of_a_tool), Clients::Anybody, Protocol::OneByOne),
        // A server of before takes the same.
        ("who asks an agent", of_a_machine, Clients::Nodes, Protocol::OneByOne),
    ] {
        let (mut listener, address) = listen(server.clone(), clients, members(&[&worker])).await;
        let connecting = async {
            let stream = TcpStream::connect(&address).await?;
            TlsConnector::from(config).connect(server_name(a_server()), stream).await
        };
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        assert_eq!(accepted.protocol, expected, "{who}");
        assert_eq!(Protocol::agreed(client.unwrap().get_ref().1), expected, "{who}, on its own side");
    }
}

#[tokio::test]
async fn another_clusters_node_is_refused_and_told() {
    let authority = cluster();
    let server = machine(&authority, "one", NodeRole::Server);
    let (_listener, address) = listen(server.clone(), Clients::Nodes, Members::default()).await;
    let stranger = machine(&cluster(), "two", NodeRole::Worker);
    let belief = Belief::Authority(server.authority().clone());
    // In TLS 1.3 the client is done before its certificate was looked at: the refusal comes with the first read.
    let refused = async {
        let mut stream = connect(&address, belief, Some(stranger), a_server()).await?;
        stream.read_u8().await
    };
    let error = refused.await.unwrap_err();
    assert_eq!(explain(&error), Some(Explained::Refused), "{error}");
}

#[tokio::test]
async fn a_clock_that_is_wrong_by_hours_is_told() {
    let authority = cluster();
    for ago in [CERTIFICATE_LIFE + Duration::from_secs(3600), Duration::ZERO] {
        // Made in the future, as a clock sees it that is behind.
        let server = if ago.is_zero() {
            let key = NodeKey::generate();
            let wanted = Certificate {
                node: &node("one"),
                role: NodeRole::Server,
                key: &key.public(),
                addresses: &[],
                host: None,
                now: SystemTime::now() + Duration::from_secs(16 * 3600),
                life: CERTIFICATE_LIFE,
            };
            let certificate = authority.certify(&wanted).unwrap();
            let authority = authority.file().certificate.clone();
            Identity::new(&Credentials { key, certificate, authority }).unwrap()
        } else {
            made(&authority, "one", NodeRole::Server, ago)
        };
        let belief = Belief::Hash(authority.fingerprint());
        let (_listener, address) = listen(server, Clients::Anybody, Members::default()).await;
        let error = connect(&address, belief, None, a_server()).await.unwrap_err();
        assert_eq!(explain(&error), Some(Explained::Clock), "{error}");
    }
}

#[tokio::test]
async fn a_member_that_is_removed_is_cut_off_at_once_and_refused_from_then_on() {
    let authority = cluster();
    let server = machine(&authority, "one", NodeRole::Server);
    let worker = machine(&authority, "two", NodeRole::Worker);
    let members = members(&[&worker]);
    let (mut listener, address) = listen(server, Clients::Nodes, members.clone()).await;
    let belief = Belief::Authority(worker.authority().clone());
    let connecting = connect(&address, belief.clone(), Some(worker.clone()), a_server());
    let (client, mut accepted) = tokio::join!(connecting, listener.accept());
    let mut client = client.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(accepted.stream.read_u8().await.unwrap(), b'x');
    let waiting = tokio::spawn(async move { accepted.stream.read_u8().await });
    members.set(MemberList::default());
    let error = waiting.await.unwrap().expect_err("the connection went on after the removal");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    let again = async {
        let mut stream = connect(&address, belief, Some(worker), a_server()).await?;
        stream.read_u8().await
    };
    again.await.expect_err("it was let in again");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_the_next_handshake_on() {
    let authority = cluster();
    let directory = tempfile::tempdir().unwrap();
    let directory = TrustDirectory::new(directory.path().join("trust"));
    let key = directory.ensure_key().unwrap();
    assert_eq!(directory.ensure_key().unwrap().public(), key.public(), "the key changed");
    assert!(directory.read().unwrap().is_none(), "there is no certificate yet");
    let certify = |ago: Duration| {
        let wanted = Certificate {
            node: &node("one"),
            role: NodeRole::Server,
            key: &key.public(),
            addresses: &[],
            host: None,
            now: SystemTime::now() - ago,
            life: CERTIFICATE_LIFE,
        };
        authority.certify(&wanted).unwrap()
    };
    directory.keep(&certify(CERTIFICATE_LIFE * 2), &authority.file().certificate).unwrap();
    let identity = Identity::new(&directory.read().unwrap().unwrap()).unwrap();
    assert_eq!(identity.peer().key, key.public().fingerprint(), "the key is not the certificate's");
    let (_listener, address) = listen(identity.clone(), Clients::Anybody, Members::default()).await;
    let belief = Belief::Hash(authority.fingerprint());
    connect(&address, belief.clone(), None, a_server()).await.expect_err("the old one has ended");
    directory.keep(&certify(Duration::ZERO), &authority.file().certificate).unwrap();
    identity.renew(&directory.read().unwrap().unwrap()).unwrap();
    connect(&address, belief, None, a_server()).await.expect("it was renewed");
}

#[test]
fn an_authority_is_the_same_after_it_was_kept() {
    let authority = cluster();
    let again = Authority::from_file(authority.file().clone()).unwrap();
    assert_eq!(again.fingerprint(), authority.fingerprint());
    let text = authority.fingerprint().to_string();
    assert_eq!(text.parse::<Fingerprint>(), Ok(authority.fingerprint()));
    assert!("sha256:abc".parse::<Fingerprint>().is_err());
    assert!(!format!("{:?}", authority.file()).contains("PRIVATE"), "the key is in debug output");
}
