//! What must be true of heads and chunked bodies whatever bytes come: what is accepted has one reading, here and at the
//! next reader.
//!
//! The functions panic when it is not. The tests below give them words of HTTP in any order, with any bytes between; the targets
//! in `fuzz/`, for which they are built with `--cfg fuzzing`, give them what finds new ways through the code.

use crate::body::{Decoder, Framing, Malformed};
use crate::config::TrustedProxies;
use crate::head::{self, Rejection, Request, Sender};
use crate::response::{self, ClientConnection};
use crate::squeeze::Encoders;
use crate::stream::Scheme;

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

/// Of a client that speaks HTTP/1.1.
fn read_into(input: &[u8], request: &mut Request, out: &mut Vec<u8>) -> Result<Option<usize>, Rejection> {
    let trusted = TrustedProxies::default();
    let address = "192.0.2.1";
    let ip = address.parse().expect("an address");
    let sender = Sender { ip, address, scheme: Scheme::Http, trusted: &trusted };
    head::read(input, request, out, &sender)
}

fn read(input: &[u8], out: &mut Vec<u8>) -> Option<Reading> {
    let mut request = Request::default();
    let length = read_into(input, &mut request, out).ok()??;
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

fn count(names: &[String], wanted: &str) -> usize {
    names.iter().filter(|name| *name == wanted).count()
}

/// What an instance gets is read there as it was read here, and is not taken before it has come whole.
pub fn request_head(input: &[u8]) {
    let mut out = Vec::new();
    let Some(here) = read(input, &mut out) else { return };
    let length = here.length;
    let (mut again, text) = (Vec::new(), String::from_utf8_lossy(&out));
    if let Err(Rejection { status: 431, .. }) = read_into(&out, &mut Request::default(), &mut again) {
        // With the lines that were added here there are more than are taken here.
        return;
    }
    let there = read(&out, &mut again);
    assert_eq!(there, Some(Reading { length: out.len(), ..here }), "{text}");
    let names = names(&out);
    for once in ["host", "x-forwarded-for", "traceparent"] {
        assert_eq!(count(&names, once), 1, "{once} in {text}");
    }
    assert!(count(&names, "content-length") + count(&names, "transfer-encoding") <= 1, "{text}");
    assert!(read(&input[..length - 1], &mut again).is_none(), "it was taken without its last byte");
}

/// What a client gets has one framing, and nothing that would end a line early.
pub fn answer_head(input: &[u8]) {
    let mut request = Request::default();
    let asked = b"GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
    read_into(asked, &mut request, &mut Vec::new()).expect("a good head").expect("a whole head");
    let mut out = Vec::new();
    let encoders = Encoders::default();
    let read = response::read(input, &request, ClientConnection::KeepAlive, &encoders, &mut out);
    if let Ok(Some(_)) = read {
        let (names, text) = (names(&out), String::from_utf8_lossy(&out));
        assert!(count(&names, "content-length") + count(&names, "transfer-encoding") <= 1, "{text}");
        assert!(!out.contains(&0), "{text}");
    }
}

/// Decodes with the input cut at every `step` bytes. `Ok(None)`: not at the end yet.
pub(crate) fn decode(input: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut out = Vec::new();
    let (mut taken, mut shown) = (0, 0);
    loop {
        let piece = decoder.next(&input[taken..shown])?;
        let data = taken + piece.skip;
        out.extend_from_slice(&input[data..data + piece.data]);
        taken = data + piece.data;
        if piece.end {
            return Ok(Some((out, taken)));
        }
        if taken == shown {
            if shown == input.len() {
                return Ok(None);
            }
            shown = (shown + step).min(input.len());
        }
    }
}

/// The plainest reader of chunked bodies: whole lines, no state.
pub(crate) fn reference(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut out = Vec::new();
    let mut at = 0;
    let line = |at: usize| {
        let end = input.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
        Some((&input[at..at + end], at + end + 2))
    };
    loop {
        let (size, next) = line(at)?;
        let digits = size.split(|b| *b == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        let end = at.checked_add(size)?;
        out.extend_from_slice(input.get(at..end)?);
        (input.get(end..end.checked_add(2)?)? == b"\r\n").then_some(())?;
        at = end + 2;
    }
    loop {
        let (trailer, next) = line(at)?;
        at = next;
        if trailer.is_empty() {
            return Some((out, at));
        }
    }
}

/// What is accepted is what the plainest reader makes of it, however it is cut. The first byte says how.
pub fn chunked_body(input: &[u8]) {
    let Some((step, body)) = input.split_first() else { return };
    let step = usize::from(*step).max(1);
    let cut = decode(body, step);
    assert_eq!(cut, decode(body, body.len().max(1)), "cut into pieces of {step} it is another body");
    if let Ok(Some(read)) = cut {
        assert_eq!(Some(read), reference(body));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

        #[test]
        fn what_an_instance_gets_is_read_there_as_it_was_read_here(
            input in text("POST /a HTTP/1.1\r\nHost: a.example\r\n"),
        ) {
            request_head(&input);
        }

        #[test]
        fn what_a_client_gets_has_one_framing(input in text("HTTP/1.1 200 OK\r\n")) {
            answer_head(&input);
        }

        #[test]
        fn what_is_accepted_of_a_chunked_body_is_what_the_reference_reads(
            input in proptest::collection::vec(
                prop_oneof![Just(b'0'), Just(b'2'), Just(b'\r'), Just(b'\n'), Just(b';'), Just(b'a'), any::<u8>()],
                0..40,
            ),
            step in 1u8..8,
        ) {
            chunked_body(&[&[step], &input[..]].concat());
        }
    }
}
