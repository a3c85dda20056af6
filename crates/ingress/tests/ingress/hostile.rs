//! Requests that two readers could understand differently, and what becomes of each.

use crate::application::{Application, Seen};
use crate::client::Client;
use crate::stage::{Stage, backend, shop};

/// What shall happen.
enum Fate {
    /// Refused with this status, the connection closed.
    Refused(u16),
    /// The instance sees exactly these requests, as `METHOD target` and body; every one is answered.
    Seen(&'static [(&'static str, &'static str)]),
    /// The head may go on before the body turns out to be malformed; then both connections are closed.
    BodyRefused,
}
use Fate::{BodyRefused, Refused, Seen as Sees};

const H: &str = "Host: shop.localhost\r\n";

/// `{H}` stands for a good Host header, `{E}` for a request that must never be seen by itself.
#[rustfmt::skip]
const CORPUS: &[(&str, &str, Fate)] = &[
    // Content-Length.
    ("two different lengths", "POST /a HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Refused(400)),
    ("the same length twice", "POST /a HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", Sees(&[("POST /a", "hello")])),
    ("a list of lengths", "POST /a HTTP/1.1\r\n{H}Content-Length: 5, 5\r\n\r\nhello", Refused(400)),
    ("a length with a plus", "POST /a HTTP/1.1\r\n{H}Content-Length: +5\r\n\r\nhello", Refused(400)),
    ("a negative length", "POST /a HTTP/1.1\r\n{H}Content-Length: -5\r\n\r\nhello", Refused(400)),
    ("a hexadecimal length", "POST /a HTTP/1.1\r\n{H}Content-Length: 0x5\r\n\r\nhello", Refused(400)),
    ("a length with a fraction", "POST /a HTTP/1.1\r\n{H}Content-Length: 5.0\r\n\r\nhello", Refused(400)),
    ("an empty length", "POST /a HTTP/1.1\r\n{H}Content-Length:\r\n\r\n", Refused(400)),
    ("a length beyond 64 bits", "POST /a HTTP/1.1\r\n{H}Content-Length: 18446744073709551621\r\n\r\nhello", Refused(400)),
    ("a length beyond 63 bits", "POST /a HTTP/1.1\r\n{H}Content-Length: 9223372036854775808\r\n\r\nhello", Refused(400)),
    ("a length with a space inside", "POST /a HTTP/1.1\r\n{H}Content-Length: 5 6\r\n\r\nhello", Refused(400)),
    ("a length of an underscore's kind", "POST /a HTTP/1.1\r\n{H}Content_Length: 50\r\nContent-Length: 2\r\n\r\nok", Sees(&[("POST /a", "ok")])),
    ("a length with leading zeros", "POST /a HTTP/1.1\r\n{H}Content-Length: 0005\r\n\r\nhello", Sees(&[("POST /a", "hello")])),
    // Transfer-Encoding.
    ("length and chunks", "POST /a HTTP/1.1\r\n{H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{E}", Refused(400)),
    ("chunks and length", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{E}", Refused(400)),
    ("an unknown coding", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", Refused(501)),
    ("a list of codings", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("chunked twice in a list", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("chunked twice", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("chunked and identity", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", Refused(400)),
    ("identity", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: identity\r\n\r\n", Refused(501)),
    ("xchunked", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("chunked with a vertical tab", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("quoted chunked", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", Refused(501)),
    ("an empty coding", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding:\r\n\r\n", Refused(501)),
    ("chunks in HTTP/1.0", "POST /a HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("chunked in capitals", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: CHUNKED\r\n\r\n2\r\nok\r\n0\r\n\r\n", Sees(&[("POST /a", "ok")])),
    ("a coding of an underscore's kind", "POST /a HTTP/1.1\r\n{H}Transfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\nok", Sees(&[("POST /a", "ok")])),
    // Line ends and names.
    ("LF only", "GET /a HTTP/1.1\nHost: shop.localhost\n\n", Refused(400)),
    ("one LF", "GET /a HTTP/1.1\r\n{H}X-A: b\nX-C: d\r\n\r\n", Refused(400)),
    ("LF before the end", "GET /a HTTP/1.1\r\n{H}X-A: b\r\n\n", Refused(400)),
    ("a CR in a value", "GET /a HTTP/1.1\r\n{H}X-A: b\rX-C: d\r\n\r\n", Refused(400)),
    ("a CR before the end", "GET /a HTTP/1.1\r\n{H}\r\r\n\r\n", Refused(400)),
    ("a space before the colon", "GET /a HTTP/1.1\r\n{H}Content-Length : 5\r\n\r\nhello", Refused(400)),
    ("a tab before the colon", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("a folded line", "GET /a HTTP/1.1\r\n{H}X-A: b\r\n c\r\n\r\n", Refused(400)),
    ("a folded line with a tab", "GET /a HTTP/1.1\r\n{H}X-A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n", Refused(400)),
    ("white space before the first header", "GET /a HTTP/1.1\r\n X-A: b\r\n{H}\r\n", Refused(400)),
    ("a NUL in a value", "GET /a HTTP/1.1\r\n{H}X-A: b\0c\r\n\r\n", Refused(400)),
    ("a NUL in a name", "GET /a HTTP/1.1\r\n{H}X\0A: b\r\n\r\n", Refused(400)),
    ("an empty name", "GET /a HTTP/1.1\r\n{H}: b\r\n\r\n", Refused(400)),
    ("a line without a colon", "GET /a HTTP/1.1\r\n{H}nonsense\r\n\r\n", Refused(400)),
    ("a control character in a value", "GET /a HTTP/1.1\r\n{H}X-A: \x01\r\n\r\n", Refused(400)),
    // Host.
    ("no Host", "GET /a HTTP/1.1\r\nX-A: b\r\n\r\n", Refused(400)),
    ("two Hosts", "GET /a HTTP/1.1\r\n{H}Host: other.example.com\r\n\r\n", Refused(400)),
    ("the same Host twice", "GET /a HTTP/1.1\r\n{H}{H}\r\n", Refused(400)),
    ("an empty Host", "GET /a HTTP/1.1\r\nHost:\r\n\r\n", Refused(400)),
    ("a Host with a path", "GET /a HTTP/1.1\r\nHost: shop.localhost/x\r\n\r\n", Refused(400)),
    ("a Host with a user", "GET /a HTTP/1.1\r\nHost: a@shop.localhost\r\n\r\n", Refused(400)),
    ("a Host with a space", "GET /a HTTP/1.1\r\nHost: shop.localhost x\r\n\r\n", Refused(400)),
    ("a Host with a comma", "GET /a HTTP/1.1\r\nHost: shop.localhost,x\r\n\r\n", Refused(400)),
    ("a Host with a strange port", "GET /a HTTP/1.1\r\nHost: shop.localhost:80a\r\n\r\n", Refused(400)),
    ("a Host with an open bracket", "GET /a HTTP/1.1\r\nHost: [::1\r\n\r\n", Refused(400)),
    ("a Host in capitals with a port", "GET /a HTTP/1.1\r\nHost: SHOP.localhost:8080\r\n\r\n", Sees(&[("GET /a", "")])),
    // Request lines.
    ("almost the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", Refused(505)),
    ("the preface of HTTP/2 with a Host", "PRI * HTTP/2.0\r\n{H}\r\nSM\r\n\r\n", Refused(505)),
    ("HTTP/1.2", "GET /a HTTP/1.2\r\n{H}\r\n", Refused(505)),
    ("HTTP/0.9", "GET /a\r\n\r\n", Refused(400)),
    ("two spaces", "GET  /a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("a tab for a space", "GET\t/a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("a space in the target", "GET /a b HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("a fragment", "GET /a#b HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("raw UTF-8 in the target", "GET /ä HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("a target without a slash", "GET a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("a star for GET", "GET * HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("CONNECT", "CONNECT shop.localhost:443 HTTP/1.1\r\n{H}\r\n", Refused(405)),
    ("a foreign scheme", "GET ftp://shop.localhost/a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("a user in the target", "GET http://x@shop.localhost/a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("an absolute target wins over Host", "GET http://shop.localhost/a HTTP/1.1\r\nHost: other.example.com\r\n\r\n", Sees(&[("GET /a", "")])),
    ("a malformed method", "GE(T /a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("two empty lines before", "\r\n\r\nGET /a HTTP/1.1\r\n{H}\r\n", Refused(400)),
    ("one empty line before", "\r\nGET /a HTTP/1.1\r\n{H}\r\n", Sees(&[("GET /a", "")])),
    ("a TLS greeting", "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03", Refused(400)),
    ("an unknown expectation", "POST /a HTTP/1.1\r\n{H}Expect: wonders\r\nContent-Length: 0\r\n\r\n", Refused(417)),
    // Chunks.
    ("a chunk's size with a sign", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("a chunk's size with 0x", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("a chunk's size that overflows", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("no chunk's size", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("a chunk longer than its size", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("LF after a chunk's size", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", BodyRefused),
    ("LF after a chunk", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", BodyRefused),
    ("a NUL in a chunk's extension", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5;\0\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("a LF in a chunk's extension", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5;x\nyy\r\nhello\r\n0\r\n\r\n", BodyRefused),
    ("a chunk's extension", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", Sees(&[("POST /a", "hello")])),
    ("a trailer that wants to be a length", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nContent-Length: 50\r\n\r\n", Sees(&[("POST /a", "ok")])),
    // What follows.
    ("a body and the next request", "POST /a HTTP/1.1\r\n{H}Content-Length: 2\r\n\r\nokGET /b HTTP/1.1\r\n{H}\r\n", Sees(&[("POST /a", "ok"), ("GET /b", "")])),
    ("chunks and the next request", "POST /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nGET /b HTTP/1.1\r\n{H}\r\n", Sees(&[("POST /a", "ok"), ("GET /b", "")])),
    ("GET with a body that looks like a request", "GET /a HTTP/1.1\r\n{H}Content-Length: 33\r\n\r\nGET /evil HTTP/1.1\r\nHost: a.b\r\n\r\n", Sees(&[("GET /a", "GET /evil HTTP/1.1\r\nHost: a.b\r\n\r\n")])),
    ("bytes after a request to upgrade", "GET /a HTTP/1.1\r\n{H}Connection: upgrade\r\nUpgrade: websocket\r\n\r\n{E}", Refused(400)),
    ("cleartext HTTP/2", "GET /a HTTP/1.1\r\n{H}Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", Sees(&[("GET /a", "")])),
    ("a Connection that lists the length", "POST /a HTTP/1.1\r\n{H}Connection: content-length\r\nContent-Length: 2\r\n\r\nok", Sees(&[("POST /a", "ok")])),
    ("a Connection that lists Host", "GET /a HTTP/1.1\r\n{H}Connection: host\r\n\r\n", Sees(&[("GET /a", "")])),
];

#[test]
fn every_hostile_request_is_refused_or_has_one_reading() {
    assert!(CORPUS.len() >= 60, "the corpus has shrunk");
    let app = Application::answering("a-1", |seen| seen.body.clone());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    for (name, raw, fate) in CORPUS {
        let evil = "GET /evil HTTP/1.1\r\nHost: shop.localhost\r\n\r\n";
        let raw = raw.replace("{H}", H).replace("{E}", evil);
        let before = app.seen().len();
        let mut client = Client::connect(stage.http);
        client.send(&raw);
        match fate {
            Refused(status) => {
                let answer = client.answer().unwrap_or_else(|| panic!("{name}: closed without an answer"));
                assert_eq!(answer.status, *status, "{name}: {answer:?}");
                assert_eq!(answer.header("Rung-Error"), Some("bad_request"), "{name}: {answer:?}");
                assert_eq!(answer.header("Connection"), Some("close"), "{name}: {answer:?}");
                assert!(client.is_closed(), "{name}: the connection stays open");
                let seen = app.seen().split_off(before);
                assert!(seen.is_empty(), "{name}: the instance saw {seen:?}");
            }
            Sees(expected) => {
                for _ in *expected {
                    let answer = client.answer().unwrap_or_else(|| panic!("{name}: no answer"));
                    assert_eq!(answer.status, 200, "{name}: {answer:?}");
                }
                let seen = app.seen().split_off(before);
                let read: Vec<_> = seen.iter().map(|seen| (first_words(seen), body(seen))).collect();
                let expected: Vec<_> =
                    expected.iter().map(|(line, body)| ((*line).to_owned(), (*body).to_owned())).collect();
                assert_eq!(read, expected, "{name}: the instance read something else");
                seen.iter().for_each(|seen| is_canonical(name, seen));
            }
            BodyRefused => {
                if let Some(answer) = client.answer() {
                    assert_eq!(answer.status, 400, "{name}: {answer:?}");
                }
                assert!(client.is_closed(), "{name}: the connection stays open");
                let seen = app.seen().split_off(before);
                assert!(seen.is_empty(), "{name}: the instance took it for whole: {seen:?}");
            }
        }
        assert_eq!(crate::client::get(stage.http, "/next").status, 200, "{name} harmed the next client");
    }
}

fn first_words(seen: &Seen) -> String {
    seen.head.rsplitn(2, " HTTP/1.1\r\n").last().unwrap().split(" HTTP/1.1").next().unwrap().to_owned()
}

fn body(seen: &Seen) -> String {
    String::from_utf8(seen.body.clone()).unwrap()
}

/// One framing, one Host, no header that ends here.
fn is_canonical(name: &str, seen: &Seen) {
    let count = |wanted: &str| {
        let lines = seen.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(found, _)| found.replace('_', "-").eq_ignore_ascii_case(wanted)).count()
    };
    assert_eq!(count("host"), 1, "{name}: {}", seen.head);
    assert!(count("content-length") + count("transfer-encoding") <= 1, "{name}: {}", seen.head);
    for gone in ["connection", "upgrade", "http2-settings", "keep-alive", "te", "trailer"] {
        assert_eq!(count(gone), 0, "{name}: {gone} went on: {}", seen.head);
    }
}

#[test]
fn endless_heads_and_too_many_headers_are_refused() {
    let app = Application::answering("a-1", |_| Vec::new());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\n{H}X-A: {}", "a".repeat(33 * 1024)));
    assert_eq!(client.answer().unwrap().status, 431);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\n{H}{}\r\n", "X-A: b\r\n".repeat(200)));
    assert_eq!(client.answer().unwrap().status, 431);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\n{H}X-A: {}\r\n\r\n", "a".repeat(31 * 1024)));
    assert_eq!(client.answer().unwrap().status, 200, "a head within the limit was refused");
    assert_eq!(app.seen().len(), 1);
}

#[test]
fn a_slow_head_is_given_up_and_an_idle_connection_closed() {
    let app = Application::answering("a-1", |_| Vec::new());
    let arguments = ["--head-timeout-ms", "150", "--idle-timeout-ms", "300"];
    let stage = Stage::with_arguments(vec![shop(backend(vec![app.endpoint()]))], &arguments);
    let mut slow = Client::connect(stage.http);
    slow.send("GET / HTTP/1.1\r\nHost: shop");
    assert_eq!(slow.answer().unwrap().status, 408);
    let mut idle = Client::connect(stage.http);
    assert_eq!(idle.get("/").status, 200);
    assert!(idle.is_closed(), "an idle connection got bytes");
}
