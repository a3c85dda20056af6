//! Heads made of the words of HTTP in any order, with any bytes between: whatever is accepted has one reading.
//!
//! Bounded in the usual run; `cargo xtask test --long` goes on for minutes.

use proptest::prelude::*;

use crate::body::Framing;
use crate::config::TrustedProxies;
use crate::head::{self, Request, Sender};
use crate::response::{self, ClientConnection};
use crate::squeeze::Encoders;
use crate::stream::Scheme;

const WORDS: &[&str] = &[
    "GET ",
    "POST ",
    "HEAD ",
    "OPTIONS ",
    "/a",
    "*",
    "?x=y",
    "http://",
    "a.example",
    ":80",
    " HTTP/1.1",
    " HTTP/1.0",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 101 ",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 ",
    "100",
    "\r\n",
    "\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    ":",
    ": ",
    ",",
    ";",
    "\0",
    "Host: a.example\r\n",
    "Host: ",
    "Content-Length: ",
    "5",
    "05",
    "+5",
    "Transfer-Encoding: ",
    "chunked",
    "identity",
    "Connection: ",
    "close",
    "keep-alive",
    "upgrade",
    "Upgrade: ",
    "websocket",
    "h2c",
    "Expect: 100-continue",
    "X-Forwarded-For: 1.2.3.4\r\n",
    "X_Forwarded_For: 1.2.3.4\r\n",
    "X-A: b",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    "\u{e4}",
];

fn cases() -> u32 {
    if std::env::var_os("RUNG_TEST_LONG").is_some() { 3_000_000 } else { 3_000 }
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => proptest::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ]
}

/// Mostly a good beginning, so that what comes behind is reached.
fn text(beginning: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::collection::vec(word(), 0..24).prop_map(|words| words.concat());
    let begun = words.prop_map(move |rest| [beginning.as_bytes(), &rest, b"\r\n\r\n"].concat());
    let free = proptest::collection::vec(word(), 0..24).prop_map(|words| words.concat());
    prop_oneof![4 => begun, 1 => free]
}

/// What the next reader must agree on.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    length: usize,
    method: String,
    path: String,
    host: String,
    framing: Framing,
    upgrade: bool,
}

fn read(input: &[u8], out: &mut Vec<u8>) -> Option<Reading> {
    let mut request = Request::default();
    let trusted = TrustedProxies::default();
    let address = "192.0.2.1";
    let ip = address.parse().expect("an address");
    let sender = Sender { ip, address, scheme: Scheme::Http, trusted: &trusted };
    let length = head::read(input, &mut request, out, &sender).ok()??;
    Some(Reading {
        length,
        framing: request.body(),
        upgrade: request.upgrade,
        method: request.method,
        path: request.path,
        host: request.host,
    })
}

/// Names of the headers, in small letters and with `-` for `_`.
fn names(head: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(head).into_owned();
    let lines = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.map(|(name, _)| name.to_ascii_lowercase().replace('_', "-")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn what_an_instance_gets_is_read_there_as_it_was_read_here(
        input in text("POST /a HTTP/1.1\r\nHost: a.example\r\n"),
    ) {
        let mut out = Vec::new();
        if let Some(here) = read(&input, &mut out) {
            let mut again = Vec::new();
            let there = read(&out, &mut again);
            prop_assert_eq!(there, Some(Reading { length: out.len(), ..here }), "{}", String::from_utf8_lossy(&out));
            let names = names(&out);
            let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
            prop_assert_eq!((count("host"), count("x-forwarded-for"), count("traceparent")), (1, 1, 1));
            prop_assert!(count("content-length") + count("transfer-encoding") <= 1);
        }
    }

    #[test]
    fn a_head_is_not_taken_before_it_has_come_whole(
        input in text("GET /a HTTP/1.1\r\nHost: a.example\r\n"),
    ) {
        let mut out = Vec::new();
        if let Some(Reading { length, .. }) = read(&input, &mut out) {
            prop_assert!(read(&input[..length - 1], &mut out).is_none());
        }
    }

    #[test]
    fn what_a_client_gets_has_one_framing(input in text("HTTP/1.1 200 OK\r\n")) {
        let mut request = Request::default();
        let good = b"GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let trusted = TrustedProxies::default();
        let ip = "192.0.2.1".parse().expect("an address");
        let sender = Sender { ip, address: "192.0.2.1", scheme: Scheme::Http, trusted: &trusted };
        head::read(good, &mut request, &mut Vec::new(), &sender).expect("a good head");
        let mut out = Vec::new();
        let encoders = Encoders::default();
        if let Ok(Some(_)) =
            response::read(&input, &request, ClientConnection::KeepAlive, &encoders, &mut out)
        {
            let names = names(&out);
            let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
            prop_assert!(count("content-length") + count("transfer-encoding") <= 1, "{}", String::from_utf8_lossy(&out));
            prop_assert!(!out.contains(&0));
        }
    }
}
