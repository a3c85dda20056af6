//! TLS: certificates by file and of the development authority, and everything else as without it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rung_model::RouteDocument;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::application::Application;
use crate::client::{Answer, Client};
use crate::stage::{Stage, backend, shop};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Connects and shakes hands, trusting one certificate only.
fn try_connect(
    to: SocketAddr,
    name: &str,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<Client<Tls>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate that can be trusted");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut socket = TcpStream::connect(to).expect("the ingress refused a connection");
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(Client::over(StreamOwned::new(session, socket)))
}

fn connect(to: SocketAddr, name: &str, trusted: &CertificateDer<'static>) -> Client<Tls> {
    try_connect(to, name, trusted).expect("the handshake failed")
}

fn authority(stage: &Stage) -> PathBuf {
    stage.directory.path().join("development-ca/ca.crt")
}

fn trusted(stage: &Stage) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(authority(stage)).unwrap()
}

/// A certificate for `host` that vouches for itself, put where the ingress looks. Replaces what is there.
fn install(stage: &Stage, host: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let put = |extension: &str, text: String| {
        let path = stage.directory.path().join(format!("certificates/{host}.{extension}"));
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, path).unwrap();
    };
    put("key", made.signing_key.serialize_pem());
    put("crt", made.cert.pem());
    made.cert.der().clone()
}

/// The first connection that gets through with this certificate: it is in use from then on.
fn await_certificate(stage: &Stage, host: &str, certificate: &CertificateDer<'static>) -> Client<Tls> {
    let began = std::time::Instant::now();
    loop {
        match try_connect(stage.https(), host, certificate) {
            Ok(client) => return client,
            Err(error) if began.elapsed() > Duration::from_secs(20) => panic!("not in use yet: {error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn ask(client: &mut Client<Tls>, host: &str) -> Answer {
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.answer().expect("the connection closed without an answer")
}

/// The app also answers to a name of the world.
fn shop_of_the_world(app: &Application) -> Vec<RouteDocument> {
    let mut document = shop(backend(vec![app.endpoint()]));
    document.hosts.push("shop.example.com".into());
    vec![document]
}

fn hello() -> Application {
    Application::answering("a-1", |_| b"hello".to_vec())
}

#[test]
fn who_trusts_the_development_authority_reaches_every_name_under_localhost() {
    let app = hello();
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let port = stage.https().port();
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20"]);
        command.args(["--resolve", &format!("shop.localhost:{port}:127.0.0.1")]).args(arguments);
        command.arg(format!("https://shop.localhost:{port}/x?y"));
        command.output().expect("curl is installed")
    };
    let answered = curl(&["--cacert", authority(&stage).to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&answered.stdout), "hello", "{answered:?}");
    let seen = app.seen();
    assert_eq!(seen[0].header("X-Forwarded-Proto"), Some("https"), "{}", seen[0].head);
    let refused = curl(&[]);
    assert_eq!(refused.status.code(), Some(60), "a stranger trusts it: {refused:?}");

    let mode = std::fs::metadata(authority(&stage).with_extension("key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    let by_address = try_connect(stage.https(), "127.0.0.1", &trusted(&stage));
    assert!(by_address.is_ok(), "by address: {:?}", by_address.err());
    let other = try_connect(stage.https(), "shop.example.com", &trusted(&stage));
    assert!(other.is_err(), "a name that nobody vouches for is served");
}

#[test]
fn a_browser_gets_http2_where_it_can_and_http1_where_it_asks() {
    let app = Application::answering("a-1", |seen| seen.body.clone());
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let port = stage.https().port();
    let large = stage.directory.path().join("large");
    std::fs::write(&large, vec![b'x'; 3 << 20]).unwrap();
    for (asked, spoken) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", asked, "--cacert"])
            .arg(authority(&stage))
            .args(["--resolve", &format!("shop.localhost:{port}:127.0.0.1")])
            .args(["--write-out", " %{http_version} %{http_code}", "--data-binary"])
            .arg(format!("@{}", large.display()))
            .arg(format!("https://shop.localhost:{port}/echo"))
            .output()
            .expect("curl is installed");
        let said = String::from_utf8_lossy(&output.stdout);
        let (body, facts) = said.split_at(said.find(' ').expect("curl says how it went"));
        assert_eq!((body.len(), facts), (3 << 20, format!(" {spoken} 200").as_str()), "{:?}", output.stderr);
    }
    assert_eq!(app.seen()[0].header("X-Forwarded-Proto"), Some("https"), "{}", app.seen()[0].head);
}

#[test]
fn a_certificate_by_file_is_used_and_replaced_while_connections_go_on() {
    let app = hello();
    let stage = Stage::with_https(shop_of_the_world(&app), &[]);
    let first = install(&stage, "shop.example.com");
    let mut early = await_certificate(&stage, "shop.example.com", &first);
    assert_eq!(ask(&mut early, "shop.example.com").text(), "hello");
    let second = install(&stage, "shop.example.com");
    let mut late = await_certificate(&stage, "shop.example.com", &second);
    assert_eq!(ask(&mut late, "shop.example.com").text(), "hello");
    assert_eq!(ask(&mut early, "shop.example.com").text(), "hello", "the replacing broke a connection");
    assert!(try_connect(stage.https(), "shop.example.com", &first).is_err(), "the old one is still shown");
}

#[test]
fn a_plain_request_to_a_host_with_its_own_certificate_is_sent_to_https() {
    let app = hello();
    let arguments = ["--hsts-s", "600", "--trust", "127.0.0.0/8"];
    let stage = Stage::with_https(shop_of_the_world(&app), &arguments);
    let certificate = install(&stage, "shop.example.com");
    let mut secure = await_certificate(&stage, "shop.example.com", &certificate);
    let answer = ask(&mut secure, "shop.example.com");
    assert_eq!(answer.header("Strict-Transport-Security"), Some("max-age=600"), "{}", answer.head);

    let mut plain = Client::connect(stage.http);
    plain.send("GET /cart?item=1 HTTP/1.1\r\nHost: shop.example.com\r\n\r\n");
    let answer = plain.answer().unwrap();
    let target = format!("https://shop.example.com:{}/cart?item=1", stage.https().port());
    assert_eq!((answer.status, answer.header("Location")), (308, Some(target.as_str())));
    plain.send("GET / HTTP/1.1\r\nHost: shop.example.com\r\nX-Forwarded-Proto: https\r\n\r\n");
    assert_eq!(plain.answer().unwrap().status, 200, "what came to a trusted proxy by https is sent round");
    let answer = plain.get("/");
    assert_eq!(answer.status, 200, "a development name is redirected");
    assert_eq!(answer.header("Strict-Transport-Security"), None, "{}", answer.head);
    let mut development = connect(stage.https(), "shop.localhost", &trusted(&stage));
    let answer = ask(&mut development, "shop.localhost");
    assert_eq!(answer.header("Strict-Transport-Security"), None, "a browser would remember it for localhost");
}

#[test]
fn the_redirect_can_be_turned_off() {
    let app = hello();
    let stage = Stage::with_https(shop_of_the_world(&app), &["--redirect", "off"]);
    let certificate = install(&stage, "shop.example.com");
    await_certificate(&stage, "shop.example.com", &certificate);
    let mut plain = Client::connect(stage.http);
    plain.send("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n");
    assert_eq!(plain.answer().unwrap().status, 200);
}

#[test]
fn a_session_is_resumed_by_both_versions() {
    let app = hello();
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    for version in ["-tls1_3", "-tls1_2"] {
        let kept = stage.directory.path().join(format!("session{version}"));
        let first = openssl(&stage, &[version, "-sess_out", kept.to_str().unwrap()]);
        assert!(first.contains("\nNew, TLSv1."), "{first}");
        assert!(first.contains("hello"), "{first}");
        let second = openssl(&stage, &[version, "-sess_in", kept.to_str().unwrap()]);
        assert!(second.contains("\nReused, TLSv1."), "the session was not resumed: {second}");
        assert!(second.contains("hello"), "{second}");
    }
}

/// What `openssl s_client` says while it asks once.
fn openssl(stage: &Stage, arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", "shop.localhost", "-verify_return_error"]);
    command.args(["-connect", &stage.https().to_string(), "-CAfile"]).arg(authority(stage)).args(arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("openssl is installed");
    let request = b"GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n";
    child.stdin.take().unwrap().write_all(request).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn stalled_handshakes_leave_others_unharmed_and_end() {
    let app = hello();
    let stage =
        Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &["--handshake-timeout-ms", "1500"]);
    // The start of a handshake that never goes on, and clients that say nothing at all, or no TLS.
    let starts: [&[u8]; 3] =
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"", b"GET / HTTP/1.1\r\n\r\n"];
    let stalled: Vec<TcpStream> = (0..300)
        .map(|n| {
            let mut socket = TcpStream::connect(stage.https()).unwrap();
            socket.write_all(starts[n % starts.len()]).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
        })
        .collect();
    let mut client = connect(stage.https(), "shop.localhost", &trusted(&stage));
    assert_eq!(ask(&mut client, "shop.localhost").text(), "hello");
    for mut socket in stalled {
        let mut said = Vec::new();
        // An alert may come before the end; an end or a reset must.
        if let Err(error) = socket.read_to_end(&mut said) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it is still open");
        }
    }
    assert_eq!(ask(&mut client, "shop.localhost").text(), "hello", "the end of others ended this one");
}

#[test]
fn bodies_pass_whole_in_both_directions() {
    let app = Application::answering("a-1", |seen| seen.body.iter().rev().copied().collect());
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let mut client = connect(stage.https(), "shop.localhost", &trusted(&stage));
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let backwards: Vec<u8> = body.iter().rev().copied().collect();
    for _ in 0..2 {
        let head =
            format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(head);
        client.send(&body);
        let answer = client.answer().expect("the connection broke");
        assert!(answer.body == backwards, "{} bytes came back, or others", answer.body.len());
    }
}

#[test]
fn requests_that_came_in_one_piece_are_all_answered() {
    let app = Application::answering("a-1", |seen| seen.path().as_bytes().to_vec());
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let mut client = connect(stage.https(), "shop.localhost", &trusted(&stage));
    let requests: String =
        (0..400).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")).collect();
    // More than any buffer takes at once: what is decrypted and not yet read makes no event in the kernel.
    client.send(requests);
    for n in 0..400 {
        let answer = client.answer().unwrap_or_else(|| panic!("request {n} has no answer"));
        assert_eq!(answer.text(), format!("/{n}"));
    }
}

#[test]
fn a_tunnel_goes_through_tls() {
    let app = Application::start("a-1", |connection| {
        connection.head().unwrap();
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n";
        connection.write(head).unwrap();
        while let Some(bytes) = connection.take_exact(4) {
            let _ = connection.write(bytes);
        }
    });
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let mut client = connect(stage.https(), "shop.localhost", &trusted(&stage));
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 101);
    for word in ["ping", "pong"] {
        client.send(word);
        assert_eq!(client.take(4).unwrap(), word.as_bytes());
    }
}

#[test]
fn neither_a_kill_nor_a_takeover_refuses_a_connection_over_tls() {
    let app = hello();
    let mut stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let authority = trusted(&stage);
    let mut kept = connect(stage.https(), "shop.localhost", &authority);
    let before = stage.pid();
    stage.lose_rung();
    assert_eq!(ask(&mut kept, "shop.localhost").text(), "hello", "the ingress died with its supervisor");
    stage.start_rung();
    stage.await_event("ends its last requests");
    assert_ne!(stage.pid(), before);
    assert_eq!(trusted(&stage), authority, "another authority was made");
    let answer = ask(&mut connect(stage.https(), "shop.localhost", &authority), "shop.localhost");
    assert_eq!(answer.text(), "hello");

    let pid = stage.pid();
    kill(pid, Signal::SIGKILL).unwrap();
    // It waits in the socket's queue until the next ingress is there.
    let mut waiting = connect(stage.https(), "shop.localhost", &authority);
    assert_eq!(ask(&mut waiting, "shop.localhost").text(), "hello");
    stage.await_event("serves on");
    assert_ne!(stage.pid(), pid);
}

#[test]
fn an_ingress_that_drains_closes_connections_over_tls_in_order() {
    let app = hello();
    let mut stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &["--idle-linger-ms", "50"]);
    let mut client = connect(stage.https(), "shop.localhost", &trusted(&stage));
    assert_eq!(ask(&mut client, "shop.localhost").text(), "hello");
    let silent = TcpStream::connect(stage.https()).unwrap();
    let before = stage.status();
    kill(stage.pid(), Signal::SIGTERM).unwrap();
    // With the protocol's own end, not just the socket's: nobody cut it off.
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).expect("the end was not announced");
    stage.await_event("starting another");
    stage.server.await_leaving(&before.proxy);
    drop(silent);
}

/// `testssl.sh` takes minutes, so it belongs to the long run.
#[test]
fn testssl_finds_nothing_above_low() {
    if std::env::var_os("RUNG_TEST_LONG").is_none() {
        return;
    }
    let app = hello();
    let stage = Stage::with_https(vec![shop(backend(vec![app.endpoint()]))], &[]);
    let found = stage.directory.path().join("testssl.json");
    let target = format!("shop.localhost:{}", stage.https().port());
    let status = Command::new("testssl")
        .args(["--quiet", "--color", "0", "--warnings", "off", "--ip", "127.0.0.1", "--severity", "LOW"])
        .arg("--add-ca")
        .arg(authority(&stage))
        .arg("--jsonfile")
        .arg(&found)
        .arg(&target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("testssl.sh is installed");
    let report = read_report(&found);
    assert!(!report.is_empty(), "testssl said nothing and ended with {status}");
    let grave = report.iter().filter(|line| {
        let is = |field: &str, words: &[&str]| words.contains(&line[field].as_str().unwrap_or_default());
        // What is not the ingress's: a development certificate can't be revoked, and headers are the application's.
        is("severity", &["MEDIUM", "HIGH", "CRITICAL", "FATAL"])
            && !is("id", &["cert_revocation", "security_headers"])
    });
    let grave: Vec<String> = grave.map(ToString::to_string).collect();
    assert!(grave.is_empty(), "testssl found:\n{}", grave.join("\n"));
}

fn read_report(path: &Path) -> Vec<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_default()).unwrap_or_default()
}
