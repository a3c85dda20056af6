//! Between a stream of HTTP/2 and the HTTP/1.1 message it stands for.
//!
//! The request becomes text again, so that one strict reader ([`crate::head`]) judges whatever comes, however it came.

use std::mem::MaybeUninit;

use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use httparse::{Header, Status};

use crate::head::{Name, Rejection, push};

pub(super) const MALFORMED: Rejection = Rejection { status: 400, why: "the request is malformed" };

/// What [`crate::response`] lets through, and what it adds.
const HEADERS_MAX: usize = 136;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How the body's bytes look to an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    None,
    /// Its length was announced.
    Plain,
    /// Each piece in a chunk, for its length is not known before its end.
    Chunked,
    /// No body, but bytes both ways once the instance has agreed.
    Tunnel,
}

/// The request as an HTTP/1.1 client would have sent it.
pub(super) fn head(parts: &Parts, has_ended: bool) -> Result<(Vec<u8>, BodyKind), Rejection> {
    let websocket = is_websocket(parts)?;
    let authority = authority(parts)?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let method = if websocket { "GET" } else { parts.method.as_str() };
    let mut text = Vec::with_capacity(512);
    push(&mut text, &[method.as_bytes(), b" ", path.as_bytes(), b" HTTP/1.1\r\nHost: ", authority]);
    let mut cookies = Vec::new();
    for (name, value) in &parts.headers {
        if *name == HOST {
            continue;
        }
        if *name == COOKIE {
            // Sent in pieces to compress better; HTTP/1.1 has one line of them (RFC 9113, 8.2.3).
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes());
            continue;
        }
        push(&mut text, &[b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()]);
    }
    if !cookies.is_empty() {
        push(&mut text, &[b"\r\ncookie: ", &cookies]);
    }
    let kind = body_kind(parts, websocket, has_ended);
    match kind {
        BodyKind::Chunked => text.extend_from_slice(b"\r\nTransfer-Encoding: chunked"),
        BodyKind::Tunnel => {
            text.extend_from_slice(b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ");
            text.extend_from_slice(websocket_key().as_bytes());
        }
        BodyKind::None | BodyKind::Plain => {}
    }
    text.extend_from_slice(b"\r\n\r\n");
    Ok((text, kind))
}

fn body_kind(parts: &Parts, websocket: bool, has_ended: bool) -> BodyKind {
    if websocket {
        BodyKind::Tunnel
    } else if has_ended {
        BodyKind::None
    } else if parts.headers.contains_key(CONTENT_LENGTH) {
        BodyKind::Plain
    } else {
        BodyKind::Chunked
    }
}

/// A WebSocket begins with an extended CONNECT (RFC 8441); no other CONNECT is served.
fn is_websocket(parts: &Parts) -> Result<bool, Rejection> {
    if parts.method != Method::CONNECT {
        return Ok(false);
    }
    match parts.extensions.get::<Protocol>().map(Protocol::as_str) {
        Some("websocket") => Ok(true),
        Some(_) => Err(Rejection { status: 501, why: "the only protocol to connect by is websocket" }),
        None => Err(Rejection { status: 405, why: "CONNECT is not served here" }),
    }
}

fn authority(parts: &Parts) -> Result<&[u8], Rejection> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(Rejection { status: 400, why: "there is more than one Host" });
    }
    match (parts.uri.authority().map(|authority| authority.as_str().as_bytes()), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            Err(Rejection { status: 400, why: "the Host is not the request's authority" })
        }
        (Some(authority), _) => Ok(authority),
        (None, Some(host)) => Ok(host),
        (None, None) => Err(Rejection { status: 400, why: "there is no Host" }),
    }
}

/// Sixteen random bytes in base64, as HTTP/1.1 wants them; HTTP/2 has no need of it.
fn websocket_key() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |set: &[u8]| char::from(set[fastrand::usize(..set.len())]);
    let mut key: String = (0..21).map(|_| digit(DIGITS)).collect();
    // The last digit carries two bits only.
    key.push(digit(b"AQgw"));
    key.push_str("==");
    key
}

/// Reads a head that was composed for an instance of HTTP/1.1 as the head of a stream to one of HTTP/2.
pub(super) fn for_instance(text: &[u8]) -> Option<Request<()>> {
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let Ok(Status::Complete(_)) = parsed.parse_with_uninit_headers(text, &mut headers) else { return None };
    let host = parsed.headers.iter().find(|header| Name::of(header.name) == Name::Host)?;
    let uri = Uri::builder()
        .scheme("http")
        .authority(host.value)
        .path_and_query(parsed.path.unwrap_or("/"))
        .build()
        .ok()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = uri;
    for header in parsed.headers.iter() {
        match Name::of(header.name) {
            Name::Host | Name::Connection | Name::TransferEncoding | Name::Upgrade | Name::HopByHop => {
                continue;
            }
            _ => {}
        }
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    // Trailers pass, which servers of gRPC ask to be told.
    request.headers_mut().insert(http::header::TE, HeaderValue::from_static("trailers"));
    Some(request)
}

/// An answer's head for a stream.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Response<()>,
    /// Nothing follows it.
    pub(super) is_last: bool,
    /// How long the body is that follows, where it was said.
    pub(super) length: Option<u64>,
}

/// Reads a head that was composed for an HTTP/1.1 client. `None`: it is not whole yet.
pub(super) fn answer(text: &[u8], to_head: bool) -> Option<Result<Answer, httparse::Error>> {
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, text, &mut headers) {
        Ok(Status::Complete(_)) => Some(Ok(compose(&parsed, to_head))),
        Ok(Status::Partial) => None,
        Err(error) => Some(Err(error)),
    }
}

/// An id comes once: in the table of headers that are said again it would only drive others out.
fn never_again(value: &mut HeaderValue) {
    value.set_sensitive(true);
}

/// Says by which id the request is known, where the instance does not.
pub(super) fn ensure_id(headers: &mut HeaderMap, id: &str) {
    if let http::header::Entry::Vacant(place) = headers.entry(REQUEST_ID)
        && let Ok(mut value) = HeaderValue::from_str(id)
    {
        never_again(&mut value);
        place.insert(value);
    }
}

fn compose(parsed: &httparse::Response<'_, '_>, to_head: bool) -> Answer {
    let mut head = Response::new(());
    // A switch of protocols is an answer like others: the stream stays open both ways.
    let code = parsed.code.filter(|code| *code != 101).unwrap_or(200);
    *head.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
    let is_last = to_head || matches!(code, 204 | 304);
    let mut length = None;
    for header in parsed.headers.iter() {
        let hop = matches!(
            Name::of(header.name),
            Name::Connection | Name::TransferEncoding | Name::Upgrade | Name::HopByHop
        );
        if hop || header.name.eq_ignore_ascii_case("sec-websocket-accept") {
            continue;
        }
        let name = HeaderName::from_bytes(header.name.as_bytes());
        if let (Ok(name), Ok(mut value)) = (name, HeaderValue::from_bytes(header.value)) {
            if name == REQUEST_ID {
                never_again(&mut value);
            }
            if name == CONTENT_LENGTH {
                length = value.to_str().ok().and_then(|digits| digits.parse().ok());
            }
            head.headers_mut().append(name, value);
        }
    }
    Answer { head, is_last: is_last || length == Some(0), length }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).expect("a request").into_parts().0
    }

    fn text(request: http::request::Builder, has_ended: bool) -> (String, BodyKind) {
        let (text, kind) = head(&parts(request), has_ended).expect("it can be translated");
        (String::from_utf8(text).expect("it is text"), kind)
    }

    #[test]
    fn a_request_becomes_the_text_it_stands_for() {
        let request = Request::get("https://shop.example/list?page=2")
            .header("cookie", "a=1")
            .header("accept", "text/html")
            .header("cookie", "b=2");
        let (text, kind) = text(request, true);
        assert_eq!(
            text,
            "GET /list?page=2 HTTP/1.1\r\nHost: shop.example\r\naccept: text/html\r\ncookie: a=1; b=2\r\n\r\n"
        );
        assert_eq!(kind, BodyKind::None);
    }

    #[test]
    fn a_body_of_unknown_length_is_chunked() {
        let (known, kind) = text(Request::post("http://a/").header("content-length", "5"), false);
        assert_eq!(kind, BodyKind::Plain, "{known}");
        let (unknown, kind) = text(Request::post("http://a/"), false);
        assert_eq!(kind, BodyKind::Chunked);
        assert!(unknown.ends_with("\r\nTransfer-Encoding: chunked\r\n\r\n"), "{unknown}");
    }

    #[test]
    fn two_words_about_the_host_are_refused() {
        let request = Request::get("http://shop.example/").header("host", "other.example");
        assert_eq!(head(&parts(request), true).expect_err("it is refused").status, 400);
        let request = Request::get("http://shop.example/").header("host", "SHOP.example");
        assert!(head(&parts(request), true).is_ok(), "the same host twice is no contradiction");
    }

    #[test]
    fn what_belongs_to_a_connection_does_not_reach_a_stream() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\nX-A: 1\r\nx-a: 2\r\n\r\n";
        let answer = answer(text, false).expect("it is whole").expect("it is well formed");
        assert!(answer.is_last, "an empty body is no body");
        assert_eq!(answer.head.headers().get("connection"), None);
        assert_eq!(answer.head.headers().get_all("x-a").iter().count(), 2);
    }
}
