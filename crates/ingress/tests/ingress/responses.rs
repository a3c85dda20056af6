//! What instances answer, well and badly.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use rung_model::Backend;
use socket2::SockRef;

use crate::application::Application;
use crate::client::{Client, get};
use crate::stage::{Stage, backend, shop};

/// An instance that answers each request with these bytes and closes the connection.
fn saying(bytes: &'static [u8]) -> Application {
    Application::start("a-1", move |connection| {
        if connection.request().is_some() {
            let _ = connection.write(bytes);
        }
    })
}

#[test]
fn malformed_answers_become_an_honest_page() {
    for (name, raw) in [
        ("nonsense", &b"hello\r\n\r\n"[..]),
        ("no status", b"HTTP/1.1 OK\r\n\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("a strange length", b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab"),
        ("an unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("chunks in 1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            "two codings",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "switching unasked",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ),
        ("a NUL", b"HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 0\r\n\r\n"),
        ("a space before the colon", b"HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 0\r\n\r\n"),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-Le"),
    ] {
        let app = saying(raw);
        let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
        let mut client = Client::connect(stage.http);
        client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 0\r\n\r\n");
        let answer = client.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((answer.status, answer.header("Rung-Error")), (502, Some("bad_response")), "{name}");
        assert!(answer.text().contains("The application failed"), "{name}: {}", answer.text());
    }
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    for raw in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    ] {
        let app = saying(raw);
        let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
        let mut client = Client::connect(stage.http);
        client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
        assert_eq!(client.answer(), None, "{:?} was taken for whole", String::from_utf8_lossy(raw));
    }
}

#[test]
fn a_body_that_ends_with_its_connection_is_passed_on_in_chunks() {
    let app = saying(b"HTTP/1.0 200 OK\r\n\r\nhello");
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!((answer.text(), answer.header("Transfer-Encoding")), ("hello", Some("chunked")));
    }
    client.send("GET / HTTP/1.0\r\nHost: shop.localhost\r\nConnection: keep-alive\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!((answer.text(), answer.header("Connection")), ("hello", Some("close")));
}

#[test]
fn answers_without_a_body_leave_the_connection_in_step() {
    let app = Application::start("a-1", |connection| {
        while let Some(seen) = connection.request() {
            let answer = match seen.path() {
                "/204" => "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n",
                "/hints" => {
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                _ if seen.head.starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n",
                _ => {
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nConnection: x-secret\r\nX-Secret: 1\r\n\r\nok"
                }
            };
            if connection.write(answer).is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    assert_eq!(client.get("/204").header("Content-Length"), None);
    client.send("HEAD /head HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("50")));
    client.send("GET /304 HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 304);
    client.send("GET /hints HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 103);
    assert_eq!(client.answer().unwrap().text(), "ok");
    let last = client.get("/");
    assert_eq!(last.text(), "ok");
    for name in ["Keep-Alive", "Connection", "X-Secret"] {
        assert_eq!(last.header(name), None, "{name} went on to the client");
    }
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "connections were not kept");
}

#[test]
fn an_instance_that_does_not_answer_is_given_up() {
    let app = Application::start("a-1", |connection| {
        let _ = connection.request();
        // Until the ingress gives up.
        let _ = connection.head();
    });
    let slow = Backend { response_timeout: Duration::from_millis(150), ..backend(vec![app.endpoint()]) };
    let stage = Stage::start(vec![shop(slow)]);
    let answer = get(stage.http, "/");
    assert_eq!((answer.status, answer.header("Rung-Error")), (504, Some("response_timeout")));
}

#[test]
fn an_instance_that_resets_or_stalls_in_the_midst_of_an_answer_is_seen_as_broken() {
    let (go_on, passed) = channel();
    let passed = Mutex::new(passed);
    let app = Application::start("a-1", move |connection| {
        let Some(seen) = connection.request() else { return };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let counted = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
        let _ = connection.write(if seen.path().ends_with("chunked") { chunked } else { counted });
        if seen.path().starts_with("/reset") {
            // Once the client has what there is: a reset would take it along.
            let _ = passed.lock().unwrap().recv();
            let _ = SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
        } else {
            // Until the ingress has enough.
            let _ = connection.head();
        }
    });
    let stage =
        Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &["--stall-timeout-ms", "400"]);
    for path in ["/reset/counted", "/reset/chunked", "/stall/counted", "/stall/chunked"] {
        let mut client = Client::connect(stage.http);
        client.send(format!("POST {path} HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 0\r\n\r\n"));
        let head = client.head().expect("the answer has begun");
        assert_eq!(head.status, 200, "{path}");
        if path.ends_with("chunked") {
            assert_eq!(client.chunk().as_deref(), Some(&b"hello"[..]), "{path}");
            let _ = go_on.send(());
            assert_eq!(client.chunk(), None, "{path}: it looks whole");
        } else {
            assert_eq!(client.take(5).as_deref(), Some(&b"hello"[..]), "{path}");
            let _ = go_on.send(());
            assert_eq!(client.take(1), None, "{path}: bytes that the application never said");
        }
    }
}

#[test]
fn what_an_instance_says_beyond_its_length_reaches_nobody() {
    let app = Application::start("a-1", |connection| {
        while connection.request().is_some() {
            let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
            let said = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood{evil}");
            if connection.write(said).is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    for nth in 0..50 {
        assert_eq!(client.get("/").text(), "good", "request {nth} got what belongs to no answer");
    }
}

#[test]
fn a_part_of_a_page_is_asked_for_and_answered_as_the_application_says() {
    let app = Application::start("a-1", |connection| {
        while let Some(seen) = connection.request() {
            let answer = match seen.header("Range") {
                Some("bytes=2-4") => {
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/10\r\nContent-Length: 3\r\n\r\n234"
                }
                Some("bytes=20-") => {
                    "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */10\r\nContent-Length: 0\r\n\r\n"
                }
                other => panic!("the instance was asked for {other:?}"),
            };
            connection.write(answer).unwrap();
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    let mut ask = |range: &str| {
        client.send(format!("GET /page HTTP/1.1\r\nHost: shop.localhost\r\nRange: {range}\r\n\r\n"));
        client.answer().expect("an answer")
    };
    let part = ask("bytes=2-4");
    assert_eq!((part.status, part.header("Content-Range"), part.text()), (206, Some("bytes 2-4/10"), "234"));
    let beyond = ask("bytes=20-");
    assert_eq!((beyond.status, beyond.header("Content-Range")), (416, Some("bytes */10")));
}
