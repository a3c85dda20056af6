//! Behind a load balancer that says who the client is, by the PROXY protocol; and traces that pass through.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::application::Application;
use crate::client::Client;
use crate::stage::{Stage, backend, shop};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";

fn hello() -> Application {
    Application::answering("a-1", |_| b"hello".to_vec())
}

/// Lines are written within a second.
fn await_logged(log: &Path, words: &[&str]) {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if words.iter().all(|word| text.contains(word)) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{words:?} is not in {text}");
        std::thread::yield_now();
    }
}

fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20 | command, family], &length, rest].concat()
}

#[test]
fn a_balancer_that_is_named_for_it_says_who_the_client_is() {
    let app = hello();
    let arguments = ["--proxy-protocol-from", "127.0.0.0/8"];
    let stage = Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &arguments);
    let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 1, 187];
    let v6 = [&[0x20, 1, 0xd, 0xb8], [0; 11].as_slice(), &[1], &[0; 16], &[1, 2, 1, 187]].concat();
    // What a balancer tells besides: a TLV.
    let told = [v4.as_slice(), &[0x04, 0, 3, 1, 2, 3]].concat();
    let cases = [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 4000 443\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::1 ::1 4000 443\r\n".to_vec(), "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (version_2(1, 0x11, &v4), "192.0.2.7"),
        (version_2(1, 0x11, &told), "192.0.2.7"),
        (version_2(1, 0x21, &v6), "2001:db8::1"),
        (version_2(0, 0x00, &[]), "127.0.0.1"),
    ];
    for (header, client) in cases {
        let mut connection = Client::connect(stage.http);
        // Byte by byte: a header may come in pieces.
        header.iter().for_each(|byte| connection.send([*byte]));
        connection.send(REQUEST);
        assert_eq!(connection.answer().expect("no answer").text(), "hello");
        assert_eq!(connection.get("/again").status, 200, "the header is asked for again");
        let seen = app.seen();
        assert_eq!(seen.last().unwrap().header("X-Forwarded-For"), Some(client), "{header:?}");
    }
    let log = stage.directory.path().join("access.log");
    await_logged(&log, &["\"client\":\"2001:db8::1\""]);
}

#[test]
fn without_its_header_or_with_a_broken_one_a_balancers_connection_is_closed() {
    let app = hello();
    let arguments = ["--proxy-protocol-from", "127.0.0.1"];
    let stage = Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &arguments);
    let too_long = format!("PROXY TCP4 {}", "1".repeat(120));
    let broken: [Vec<u8>; 6] = [
        REQUEST.into(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4000\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4000 443\n".to_vec(),
        too_long.into_bytes(),
        version_2(1, 0x11, &[192, 0, 2]),
        version_2(7, 0x11, &[0; 12]),
    ];
    for bytes in broken {
        let mut connection = Client::connect(stage.http);
        // By a reset, when more was sent than was read; then sending fails, too.
        let _ = connection.stream.write_all(&[bytes.as_slice(), REQUEST.as_bytes()].concat());
        let got = connection.stream.read(&mut [0; 1]).unwrap_or(0);
        assert_eq!(got, 0, "{:?} was served", String::from_utf8_lossy(&bytes));
    }
    assert!(app.seen().is_empty());
}

#[test]
fn from_anybody_else_the_header_is_no_request() {
    let app = hello();
    let arguments = ["--proxy-protocol-from", "10.0.0.0/8"];
    let stage = Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &arguments);
    let mut forger = Client::connect(stage.http);
    forger.send(format!("PROXY TCP4 192.0.2.7 10.0.0.1 4000 443\r\n{REQUEST}"));
    assert_eq!(forger.answer().expect("it is told").status, 400);
    assert_eq!(crate::client::get(stage.http, "/").status, 200);
}

#[test]
fn a_trace_is_passed_on_or_started_and_named_in_the_log() {
    let app = hello();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let came = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut client = Client::connect(stage.http);
    let mut ask = |lines: &str| {
        client.send(format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\n{lines}\r\n"));
        assert_eq!(client.answer().expect("no answer").status, 200);
        app.seen().pop().unwrap()
    };
    let seen = ask(&format!("traceparent: {came}\r\ntracestate: a=b\r\n"));
    assert_eq!((seen.header("traceparent"), seen.header("tracestate")), (Some(came), Some("a=b")));
    let seen = ask("");
    let started = seen.header("traceparent").expect("none was started").to_owned();
    assert!(started.starts_with("00-") && started.len() == 55 && started.ends_with("-01"), "{started}");
    let seen = ask("traceparent: nonsense\r\ntracestate: a=b\r\n");
    assert_ne!(seen.header("traceparent"), Some("nonsense"));
    assert_eq!(seen.header("tracestate"), None, "the state of a trace that nobody knows");
    let log = stage.directory.path().join("access.log");
    await_logged(&log, &[&came[3..35], &started[3..35]]);
}
