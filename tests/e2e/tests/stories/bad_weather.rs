//! Full disks and broken clients.

use rung_e2e::http::{Connection, get};
use rung_e2e::{Load, Rung, SmallDisk, Start, TestApp, eventually};

#[test]
fn a_full_disk_keeps_what_was_acknowledged_and_serves_on() {
    let disk = SmallDisk::new("48m");
    let data = disk.path().join("data");
    let mut rung = Rung::start_with(Start { data: Some(data), ..Start::default() });
    let mut app = TestApp::new("cramped", 2);
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["config", "set", "COLOUR=green", "--app", "cramped"]).succeeds();
    rung.wait_until_settled("cramped", "web", 2);
    let load = Load::start(rung.http(), "cramped.localhost", "/");
    load.wait_for(50);
    disk.fill();

    app.version = "2".into();
    std::fs::write(app.directory().join("ballast"), vec![7u8; 2_000_000]).expect("a file of the app");
    let said = rung.deploy(app.directory());
    assert_ne!(said.code, Some(0), "there was no room for it; {}", said.everything());
    let said = said.mentions("space");
    assert!(rung.page("cramped", "/").contains("version 1 "), "{}", said.everything());
    load.wait_for(200);
    load.stop().assert_none_lost("a full disk");

    disk.free();
    eventually("there is room again, and the deploy goes through", || {
        let said = rung.deploy(app.directory());
        if said.code == Some(0) { Ok(()) } else { Err(said.everything()) }
    });
    assert!(rung.page("cramped", "/").contains("version 2 "));
    assert_eq!(rung.page("cramped", "/env?name=COLOUR"), "green", "what was acknowledged is kept");
    rung.kill_9();
    rung.up(None, &[]);
    assert_eq!(rung.page("cramped", "/env?name=COLOUR"), "green", "also over a crash");
}

/// Each is no request of HTTP/1.1, or one that two readers may read in two ways.
const MALFORMED: &[(&str, &[u8])] = &[
    (
        "two lengths that differ",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    (
        "a length and chunks",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a space before the colon", b"GET / HTTP/1.1\r\nHost: HOST\r\nX-A : b\r\n\r\n"),
    ("a length that is no number", b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +3\r\n\r\nabc"),
    ("a folded header", b"GET / HTTP/1.1\r\nHost: HOST\r\nX-A: b\r\n c\r\n\r\n"),
    ("a nul in a header", b"GET / HTTP/1.1\r\nHost: HOST\r\nX-A: b\0c\r\n\r\n"),
    (
        "chunks with a broken size",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    ),
    ("an encoding that nobody knows", b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: cow\r\n\r\n"),
    ("no host", b"GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: other\r\n\r\n"),
    ("no words of HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    ("a version of the future", b"GET / HTTP/7.3\r\nHost: HOST\r\n\r\n"),
];

fn with_host(request: &[u8], host: &str) -> Vec<u8> {
    String::from_utf8_lossy(request).replace("HOST", host).into_bytes()
}

fn assert_refused(address: std::net::SocketAddr, name: &str, request: &[u8]) {
    let mut connection = Connection::open(address).expect("connecting");
    // It may be refused before all of it was sent.
    let _ = connection.send(request);
    match connection.read_answer() {
        Ok(answer) => {
            assert!((400..=505).contains(&answer.status), "{name}: {answer:?}");
            assert!(connection.is_closed(), "{name}: the connection must be closed after {}", answer.status);
        }
        Err(failure) => assert_ne!(
            failure.source.kind(),
            std::io::ErrorKind::WouldBlock,
            "{name}: left without an answer"
        ),
    }
}

#[test]
fn malformed_requests_are_refused_and_the_next_client_is_unharmed() {
    let rung = Rung::start();
    let app = TestApp::new("strict", 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("strict", "web", 1);
    for (name, request) in MALFORMED {
        assert_refused(rung.http(), &format!("the ingress, {name}"), &with_host(request, "strict.localhost"));
        let next = get(rung.http(), "strict.localhost", "/").expect("the next client gets an answer");
        assert_eq!(next.status, 200, "after {name}");
    }
    for (name, request) in MALFORMED {
        if matches!(*name, "no host" | "two hosts") {
            continue; // the API does not look at it: it has one host
        }
        assert_refused(rung.api_address(), &format!("the API, {name}"), &with_host(request, "rung"));
        rung.api_get("/v1/health").unwrap_or_else(|instead| panic!("after {name}: {instead}"));
    }
}

#[test]
fn endless_headers_are_cut_off() {
    let rung = Rung::start();
    for address in [rung.http(), rung.api_address()] {
        let mut connection = Connection::open(address).expect("connecting");
        let mut sent = connection.send(b"GET / HTTP/1.1\r\nHost: x.localhost\r\n");
        let line = [b"X-A: ".as_slice(), &[b'a'; 8000], b"\r\n"].concat();
        for _ in 0..1000 {
            if sent.is_err() {
                break;
            }
            sent = connection.send(&line);
        }
        match connection.read_answer() {
            Ok(answer) => assert!((400..500).contains(&answer.status), "{address}: {answer:?}"),
            Err(_) => assert!(sent.is_err(), "{address} took eight megabytes of headers without a word"),
        }
    }
    rung.api_get("/v1/health").expect("the API serves on");
}

/// Below the files that a process may have open, above what any server has threads for.
const LORISES: usize = 300;

#[test]
fn heads_that_come_byte_by_byte_hold_the_api_from_nobody() {
    let rung = Rung::start();
    let app = TestApp::new("brisk", 1);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("brisk", "web", 1);
    let open = |_| Connection::open(rung.api_address()).expect("the API takes connections");
    let mut lorises: Vec<Connection> = (0..LORISES).map(open).collect();
    let began = std::time::Instant::now();
    let head = b"GET /v1/apps HTTP/1.1\r\nHost: rung\r\nX-Patience: ";
    let mut bytes = head.iter().chain(std::iter::repeat(&b'z'));
    // All of them a byte at a time, until the last of them is given up.
    eventually("every slow head is cut off", || {
        let byte = [*bytes.next().expect("it goes on for ever")];
        lorises.retain_mut(|loris| loris.send(&byte).is_ok());
        let asked = std::time::Instant::now();
        rung.cli(&["status", "--app", "brisk"]).succeeds();
        assert!(asked.elapsed() < std::time::Duration::from_secs(5), "others waited {:?}", asked.elapsed());
        if lorises.is_empty() { Ok(()) } else { Err(format!("{} are open", lorises.len())) }
    });
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(30), "the last one was given up after {took:?}");
    assert_eq!(get(rung.http(), "brisk.localhost", "/").expect("an answer").status, 200);
}

#[test]
fn a_body_that_never_comes_holds_the_api_from_nobody() {
    let rung = Rung::start();
    let token = rung.access().token;
    let head = |path: &str, token: &str| {
        format!(
            "PUT {path} HTTP/1.1\r\nHost: rung\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n"
        )
    };
    let stranger = head("/v1/sources/sha256:00", "wrong");
    let mut connection = Connection::open(rung.api_address()).expect("connecting");
    connection.send(stranger.as_bytes()).expect("the API takes a head");
    let answer = connection.read_answer().expect("whoever has no token is answered before the body");
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert!(connection.is_closed(), "and its connection is closed");
    let digest = format!("/v1/sources/sha256:{}", "0".repeat(64));
    let mut waiting = Connection::open(rung.api_address()).expect("connecting");
    waiting.send(head(&digest, &token).as_bytes()).expect("the API takes a head");
    rung.cli(&["doctor"]);
    rung.api_get("/v1/health").expect("the API serves on");
}

#[test]
fn a_host_that_nobody_knows_gets_a_helpful_page() {
    let rung = Rung::start();
    let answer = get(rung.http(), "nobody.localhost", "/").expect("an answer");
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("Rung"), "{}", answer.text());
    let mut connection = Connection::open(rung.http()).expect("connecting");
    let json = connection
        .ask("GET", "nobody.localhost", "/", &[("Accept", "application/json")], b"")
        .expect("an answer");
    let _: serde_json::Value = serde_json::from_slice(&json.body).expect("JSON when asked for");
}
