//! Requests on their way: streaming, keep-alive, upgrades, and trying again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::application::Application;
use crate::client::{Client, get};
use crate::stage::{Stage, backend, shop};

#[test]
fn headers_tell_the_truth_about_the_client() {
    let app = Application::answering("a-1", |_| Vec::new());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send(
        "GET /a?b=c HTTP/1.1\r\nHost: Shop.localhost:80\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n\
         X-Forwarded-Proto: https\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Request-Id: mine-1\r\n\
         Connection: x-drop\r\nX-Drop: 1\r\nTE: trailers\r\nProxy: evil\r\nX-Custom: kept\r\n\r\n",
    );
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("X-Request-Id")), (200, Some("mine-1")));
    let seen = &app.seen()[0];
    assert!(seen.head.starts_with("GET /a?b=c HTTP/1.1\r\nHost: Shop.localhost:80\r\n"), "{}", seen.head);
    assert_eq!(seen.header("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(seen.header("X-Forwarded-Proto"), Some("http"));
    assert_eq!(seen.header("X-Forwarded-Host"), Some("Shop.localhost:80"));
    assert_eq!(seen.header("X-Request-Id"), Some("mine-1"));
    assert_eq!(seen.header("X-Custom"), Some("kept"));
    assert!(!seen.head.contains("6.6.6.6"), "what the client claimed went on: {}", seen.head);
    for name in ["Forwarded", "X-Drop", "TE", "Proxy", "Connection", "Via"] {
        assert_eq!(seen.header(name), None, "{name} went on");
    }
    let answer = client.get("/");
    let made = app.seen()[1].header("X-Request-Id").map(str::to_owned);
    assert_eq!(made.as_deref().map(str::len), Some(32), "no request id was made");
    assert_eq!(answer.header("X-Request-Id"), made.as_deref(), "the client can't tell which request it was");
}

#[test]
fn an_application_may_call_a_request_by_another_id() {
    let app = Application::start("a-1", |connection| {
        while connection.request().is_some() {
            let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
            let answer = b"HTTP/1.1 200 OK\r\nx-request-id: own-7\r\nContent-Length: 0\r\n\r\n";
            if connection.write(hints).is_err() || connection.write(answer).is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    let hints = client.answer().unwrap();
    assert_eq!((hints.status, hints.header("X-Request-Id")), (103, None));
    let answer = client.answer().unwrap();
    assert_eq!(answer.head.to_lowercase().matches("x-request-id").count(), 1, "{answer:?}");
    assert_eq!(answer.header("X-Request-Id"), Some("own-7"));
}

#[test]
fn a_trusted_proxy_in_front_is_believed() {
    let app = Application::answering("a-1", |_| Vec::new());
    let documents = vec![shop(backend(vec![app.endpoint()]))];
    let stage = Stage::with_arguments(documents, &["--trust", "127.0.0.0/8"]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\r\n");
    client.answer().unwrap();
    let seen = &app.seen()[0];
    assert_eq!(seen.header("X-Forwarded-For"), Some("9.9.9.9, 127.0.0.1"));
    assert_eq!(seen.header("X-Forwarded-Proto"), Some("https"));
}

#[test]
fn pipelined_requests_are_answered_in_order_over_kept_connections() {
    let app = Application::answering("a-1", |seen| seen.path().as_bytes().to_vec());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    let all: String = (0..50).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")).collect();
    client.send(all);
    for n in 0..50 {
        assert_eq!(client.answer().unwrap().text(), format!("/{n}"));
    }
    assert_eq!(app.connections.load(Ordering::SeqCst), 1, "the instance's connection was not kept");
}

#[test]
fn bodies_stream_both_ways_at_once() {
    let app = Application::start("a-1", |connection| {
        connection.head().unwrap();
        connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        while let Some(chunk) = connection.chunk() {
            let mut out = format!("{:x}\r\n", chunk.len()).into_bytes();
            out.extend_from_slice(&chunk);
            out.extend_from_slice(b"\r\n");
            connection.write(out).unwrap();
            if chunk.is_empty() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200, "the answer waits for the request's end");
    for n in 0..20 {
        client.send(format!("6\r\nhello{}\r\n", n % 10));
        let echoed = client.chunk().expect("a piece is missing");
        assert_eq!(echoed, format!("hello{}", n % 10).as_bytes(), "a piece waits for the next one");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk().unwrap(), b"");
}

#[test]
fn large_bodies_go_through_in_constant_memory() {
    const SIZE: usize = 48 << 20;
    let app = Application::start("a-1", |connection| {
        connection.head().unwrap();
        let mut piece = connection.take_exact(1 << 16);
        connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).unwrap();
        let mut left = SIZE;
        while let Some(bytes) = piece {
            connection.write(&bytes).unwrap();
            left -= bytes.len();
            piece = if left > 0 { connection.take_exact(left.min(1 << 16)) } else { None };
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let pid = stage.pid();
    let before = resident(pid);
    let mut client = Client::connect(stage.http);
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        use std::io::Write;
        let head = format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {SIZE}\r\n\r\n");
        writer.write_all(head.as_bytes()).unwrap();
        for n in 0..SIZE / 4096 {
            writer.write_all(&[n as u8; 4096]).unwrap();
        }
    });
    assert_eq!(client.head().unwrap().status, 200);
    for n in 0..SIZE / 4096 {
        assert_eq!(client.take(4096).expect("the body broke off"), [n as u8; 4096], "block {n} differs");
    }
    sender.join().unwrap();
    let grown = resident(pid).saturating_sub(before);
    assert!(grown < 8 << 20, "the ingress grew by {grown} bytes while 48 MiB went through");
}

pub fn resident(pid: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS is told");
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_client_that_waits_to_be_asked_for_its_body_is_asked() {
    let app = Application::start("a-1", |connection| {
        let head = connection.head().unwrap();
        assert!(head.contains("Expect: 100-continue"), "{head}");
        connection.write("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let body = connection.take_exact(5).unwrap();
        connection.answer(&body).unwrap();
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client
        .send("PUT / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 100);
    client.send("hello");
    assert_eq!(client.answer().unwrap().text(), "hello");
}

#[test]
fn an_early_refusal_of_a_large_body_reaches_the_client() {
    let app = Application::start("a-1", |connection| {
        connection.head().unwrap();
        connection
            .write("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .unwrap();
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 10000000\r\n\r\n");
    let answer = client.answer().expect("the refusal was lost");
    assert_eq!((answer.status, answer.text()), (413, "big"));
    assert_eq!(answer.header("Connection"), Some("close"));
}

#[test]
fn an_upgraded_connection_is_a_tunnel() {
    let app = Application::start("a-1", |connection| {
        let head = connection.head().unwrap();
        assert!(head.contains("Connection: upgrade\r\nUpgrade: websocket\r\n"), "{head}");
        connection
            .write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nwelcome")
            .unwrap();
        while let Some(bytes) = connection.take_exact(4) {
            connection.write(bytes).unwrap();
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send(
        "GET /ws HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let head = client.head().unwrap();
    assert_eq!((head.status, head.header("Upgrade")), (101, Some("websocket")));
    assert_eq!(client.take(7).unwrap(), b"welcome");
    for word in [b"ping", b"pong"] {
        client.send(word);
        assert_eq!(client.take(4).unwrap(), word);
    }
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed(), "the tunnel stays open although both sides are done");
}

#[test]
fn an_instance_that_refuses_connections_costs_no_request() {
    let dead = Application::answering("a-1", |_| Vec::new());
    let alive = Application::answering("a-2", |seen| seen.body.clone());
    dead.close();
    let stage = Stage::start(vec![shop(backend(vec![dead.endpoint(), alive.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    for _ in 0..200 {
        client.send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 2\r\n\r\nok");
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.text()), (200, "ok"));
    }
    assert_eq!(alive.seen().len(), 200);
}

#[test]
fn a_kept_connection_that_was_closed_is_never_the_clients_problem() {
    // Promises to keep the connection and closes it after each answer.
    let app = Application::start("a-1", |connection| {
        if let Some(seen) = connection.request() {
            let _ = connection.answer(&seen.body);
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    for _ in 0..300 {
        assert_eq!(client.get("/").status, 200, "a closed connection surfaced");
    }
    assert_eq!(app.seen().len(), 300, "a request was answered more than once");
}

#[test]
fn what_may_have_been_done_is_not_done_again() {
    let app = Application::start("a-1", |connection| {
        let _ = connection.request();
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("POST /pay HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 2\r\n\r\nok");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("Rung-Error")), (502, Some("connection_lost")));
    assert_eq!(app.seen().len(), 1, "a payment was sent twice");
    let answer = client.get("/idempotent");
    assert_eq!(answer.header("Rung-Error"), Some("connection_lost"));
    assert!(app.seen().len() > 2, "a request that may be repeated was not");
}

#[test]
fn a_client_that_leaves_frees_the_instance() {
    let (tell, ended) = channel();
    let tell = Mutex::new(tell);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let app = Application::start("a-1", move |connection| {
        connection.request();
        count.fetch_add(1, Ordering::SeqCst);
        // Never answers; sees the connection's end.
        tell.lock().unwrap().send(connection.head().is_none()).unwrap();
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET /long HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    while asked.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    drop(client);
    assert_eq!(
        ended.recv_timeout(std::time::Duration::from_secs(5)),
        Ok(true),
        "the instance works for nobody"
    );
}

#[test]
fn each_request_leaves_a_line_in_the_access_log() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    get(stage.http, "/page?secret=1");
    let path = stage.directory.path().join("access.log");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let text = loop {
        match std::fs::read_to_string(&path) {
            Ok(text) if text.ends_with('\n') => break text,
            _ => assert!(std::time::Instant::now() < until, "nothing was written"),
        }
        std::thread::yield_now();
    };
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(line["path"], "/page", "the query may hold secrets");
    assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &5.into()));
    assert_eq!((&line["app"], &line["instance"]), (&"shop".into(), &"a-1".into()));
}

#[test]
fn the_combined_format_is_there_for_who_asks_and_a_sample_leaves_no_error_out() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let settings = ["--access-log", "combined", "--access-log-sample", "0.000001"];
    let stage = Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &settings);
    for _ in 0..20 {
        get(stage.http, "/fine");
    }
    let mut client = Client::connect(stage.http);
    client.send("GET /page?key=1 HTTP/1.1\r\nHost: other.localhost\r\nUser-Agent: curl\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").status, 404);
    let path = stage.directory.path().join("access.log");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let text = loop {
        match std::fs::read_to_string(&path) {
            Ok(text) if text.ends_with('\n') => break text,
            _ => assert!(std::time::Instant::now() < until, "nothing was written"),
        }
        std::thread::yield_now();
    };
    assert_eq!(text.lines().count(), 1, "twenty in a million are written: {text}");
    assert!(text.starts_with("127.0.0.1 - - [") && text.contains("] \"GET /page HTTP/1.1\" 404 "), "{text}");
    assert!(text.ends_with(" \"-\" \"curl\"\n"), "{text}");
}
