//! Request heads: parsed strictly, understood once, written anew.
//!
//! Whatever two readers could understand differently is refused, so that Rung and the application always agree where
//! a request ends and whom it is for. What is accepted is not passed on as bytes: the head that goes to the instance
//! is composed from the parsed parts.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::rc::Rc;

use httparse::{Header, Status};

use crate::body::Framing;
use crate::callers::Call;
use crate::config::TrustedProxies;
use crate::dress::Dress;
use crate::stream::Scheme;
use crate::trace;

/// Larger heads are refused with 431. Browsers and load balancers stay below.
pub(crate) const HEAD_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 100;

/// Why a request is refused before it is routed. Its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) status: u16,
    pub(crate) why: &'static str,
}

const fn bad(why: &'static str) -> Rejection {
    Rejection { status: 400, why }
}

/// How the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Version {
    Http10,
    #[default]
    Http11,
    /// The request was translated from a stream; its answer is translated back.
    Http2,
}

/// What is kept of a request's head. Used again for each request of a connection.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    /// In lower case, without port.
    pub(crate) host: String,
    pub(crate) id: String,
    /// The id of the trace that it belongs to.
    pub(crate) trace: String,
    pub(crate) framing: Option<Framing>,
    pub(crate) version: Version,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
    /// The connection shall become something else, and the request may ask for that.
    pub(crate) upgrade: bool,
    pub(crate) wants_json: bool,
    /// How the client sent it, by the word of a trusted proxy where one is in front.
    pub(crate) scheme: Scheme,
    /// A call of a service from inside the cluster, as every request of its connection is.
    pub(crate) call: Option<Rc<Call>>,
    /// For the answer: how many seconds browsers shall remember to come by HTTPS only.
    pub(crate) hsts_s: Option<u64>,
    /// For the answer: the number by which a visitor who was not known is told again.
    pub(crate) visitor: Cell<Option<u64>>,
    /// For the answer: what the route asks for. Set by the gate.
    pub(crate) dress: RefCell<Option<Box<Dress>>>,
}

impl Request {
    pub(crate) fn reset(&mut self) {
        self.method.clear();
        self.path.clear();
        self.host.clear();
        self.id.clear();
        self.trace.clear();
        self.framing = None;
        self.version = Version::Http11;
        self.keep_alive = false;
        self.expects_continue = false;
        self.upgrade = false;
        self.wants_json = false;
        self.scheme = Scheme::Http;
        self.hsts_s = None;
        self.visitor.set(None);
        *self.dress.get_mut() = None;
    }

    pub(crate) fn body(&self) -> Framing {
        self.framing.unwrap_or(Framing::None)
    }

    pub(crate) fn is_http_10(&self) -> bool {
        self.version == Version::Http10
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Sending it twice does what sending it once does (RFC 9110, 9.2.2).
    pub(crate) fn is_idempotent(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
            && !self.upgrade
    }
}

/// Who sends, and whose word about it counts.
#[derive(Debug)]
pub(crate) struct Sender<'a> {
    pub(crate) ip: IpAddr,
    /// The same, spelled: once per connection rather than per request.
    pub(crate) address: &'a str,
    pub(crate) scheme: Scheme,
    pub(crate) trusted: &'a TrustedProxies,
}

/// Reads a head from the start of `input`; `out` becomes the head for the instance. `None`: more bytes are needed.
///
/// Only the first `Some` says how many bytes of `input` the head took.
pub(crate) fn read(
    input: &[u8],
    request: &mut Request,
    out: &mut Vec<u8>,
    sender: &Sender<'_>,
) -> Result<Option<usize>, Rejection> {
    // One empty line before a request is tolerated, as RFC 9112 asks.
    let leading = if input.starts_with(b"\r\n") { 2 } else { 0 };
    let head = &input[leading..];
    if matches!(head.first(), Some(b'\r' | b'\n')) {
        return Err(bad("the request starts with empty lines"));
    }
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(head, &mut headers) {
        Ok(Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(Status::Partial) if head.len() < HEAD_MAX => return Ok(None),
        Ok(_) => return Err(Rejection { status: 431, why: "the request's head is larger than 32 KiB" }),
        Err(error) => return Err(explain(error, head)),
    };
    check_line_ends(&head[..length])?;
    request.reset();
    let facts = examine(&parsed, request, sender)?;
    compose(&parsed, request, &facts, sender, out);
    Ok(Some(leading + length))
}

fn explain(error: httparse::Error, head: &[u8]) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => {
            Rejection { status: 431, why: "the request has more than 100 headers" }
        }
        httparse::Error::Version if names_version(head) => {
            Rejection { status: 505, why: "the request is not HTTP/1.0 or HTTP/1.1" }
        }
        httparse::Error::HeaderName => bad("a header's name is malformed"),
        httparse::Error::HeaderValue => bad("a header's value is malformed"),
        httparse::Error::NewLine => bad("a line does not end with CR LF"),
        _ => bad("the request line is malformed"),
    }
}

/// Whether the third word of the first line is a version; else the target held a space.
fn names_version(head: &[u8]) -> bool {
    head.split(|byte| *byte == b' ').nth(2).is_some_and(|word| word.starts_with(b"HTTP/"))
}

/// The parser takes a lone LF for a line's end; others do not.
fn check_line_ends(head: &[u8]) -> Result<(), Rejection> {
    let mut ends = 0;
    for at in memchr::memchr_iter(b'\n', head) {
        if at == 0 || head[at - 1] != b'\r' {
            return Err(bad("a line ends with LF without CR"));
        }
        ends += 1;
    }
    if memchr::memchr_iter(b'\r', head).count() != ends {
        return Err(bad("a CR stands alone"));
    }
    Ok(())
}

/// What composing needs beside the request itself; borrowed from the parsed head.
struct Facts<'h> {
    /// In origin form.
    target: &'h str,
    /// As the instance shall see it.
    authority: &'h str,
    connection: ConnectionTokens<'h>,
    upgrade: Option<&'h [u8]>,
    trace: trace::Said<'h>,
    is_trusted: bool,
}

fn examine<'h>(
    parsed: &httparse::Request<'_, 'h>,
    request: &mut Request,
    sender: &Sender<'_>,
) -> Result<Facts<'h>, Rejection> {
    let method = parsed.method.unwrap_or_default();
    if method == "CONNECT" {
        return Err(Rejection { status: 405, why: "CONNECT is not served here" });
    }
    if parsed.version == Some(0) {
        request.version = Version::Http10;
    }
    let is_http_10 = request.is_http_10();
    let is_trusted = sender.trusted.contains(sender.ip);
    let mut seen = Seen::default();
    for header in parsed.headers.iter() {
        seen.take(header)?;
    }
    let (target, authority) = locate(method, parsed.path.unwrap_or_default(), seen.host)?;
    let framing = seen.framing(is_http_10)?;
    let close = seen.connection.close;
    request.keep_alive = !close && (!is_http_10 || seen.connection.keep_alive);
    request.expects_continue = seen.expects_continue && !is_http_10 && framing != Framing::None;
    let asks_upgrade = seen.connection.upgrade && !is_http_10 && framing == Framing::None;
    // Cleartext HTTP/2 would let one request carry others past the routing.
    let upgrade = seen.upgrade.filter(|protocol| asks_upgrade && !names_http2(protocol));
    request.upgrade = upgrade.is_some();
    request.framing = Some(framing);
    request.wants_json = seen.wants_json;
    request.scheme = if is_trusted && seen.forwarded_https { Scheme::Https } else { sender.scheme };
    request.method.push_str(method);
    request.path.push_str(target.split('?').next().unwrap_or_default());
    lower_host(authority, &mut request.host)?;
    match seen.id.filter(|id| is_well_formed_id(id)) {
        Some(id) => request.id.push_str(id),
        None => make_id(&mut request.id),
    }
    seen.trace.id(&mut request.trace);
    let (connection, trace) = (seen.connection, seen.trace);
    Ok(Facts { target, authority, connection, upgrade, trace, is_trusted })
}

fn names_http2(protocol: &[u8]) -> bool {
    // In any letters: that is how servers compare them.
    let is_known = |name: &[u8]| {
        ["h2c", "h2", "HTTP/2", "HTTP/2.0"].iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    };
    protocol.split(|byte| *byte == b',').any(|name| is_known(name.trim_ascii()))
}

/// Headers that decide something, while they are collected.
#[derive(Default)]
struct Seen<'h> {
    host: Option<&'h [u8]>,
    length: Option<u64>,
    chunked: bool,
    connection: ConnectionTokens<'h>,
    upgrade: Option<&'h [u8]>,
    expects_continue: bool,
    wants_json: bool,
    forwarded_https: bool,
    id: Option<&'h str>,
    trace: trace::Said<'h>,
}

impl<'h> Seen<'h> {
    fn take(&mut self, header: &Header<'h>) -> Result<(), Rejection> {
        match Name::of(header.name) {
            Name::Host if self.host.is_some() => return Err(bad("there is more than one Host")),
            Name::Host => self.host = Some(header.value),
            Name::ContentLength => self.content_length(header.value)?,
            Name::TransferEncoding if self.chunked => {
                return Err(bad("there is more than one Transfer-Encoding"));
            }
            Name::TransferEncoding if header.value.eq_ignore_ascii_case(b"chunked") => self.chunked = true,
            Name::TransferEncoding => {
                return Err(Rejection { status: 501, why: "the only Transfer-Encoding served is chunked" });
            }
            Name::Connection => self.connection.take(header.value)?,
            Name::Upgrade if self.upgrade.is_some() => return Err(bad("there is more than one Upgrade")),
            Name::Upgrade => self.upgrade = Some(header.value),
            Name::Expect if header.value.eq_ignore_ascii_case(b"100-continue") => {
                self.expects_continue = true
            }
            Name::Expect => {
                return Err(Rejection { status: 417, why: "the only expectation served is 100-continue" });
            }
            Name::Accept => self.wants_json |= contains(header.value, b"application/json"),
            Name::Forwarding if header.name.eq_ignore_ascii_case("x-forwarded-proto") => {
                self.forwarded_https = header.value.eq_ignore_ascii_case(b"https");
            }
            Name::TraceParent => self.trace.take(header.value),
            Name::RequestId => self.id = std::str::from_utf8(header.value).ok(),
            _ => {}
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Rejection> {
        let length = parse_length(value).ok_or(bad("the Content-Length is not a number"))?;
        if self.length.is_some_and(|before| before != length) {
            return Err(bad("there are two different Content-Lengths"));
        }
        self.length = Some(length);
        Ok(())
    }

    fn framing(&self, is_http_10: bool) -> Result<Framing, Rejection> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(bad("there are both Content-Length and Transfer-Encoding")),
            (true, None) if is_http_10 => Err(bad("HTTP/1.0 has no Transfer-Encoding")),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::None),
        }
    }
}

/// Digits only, below 2^63: what is larger overflows somewhere.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length =
        value.iter().try_fold(0u64, |n, digit| n.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
    i64::try_from(length).is_ok().then_some(length)
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

/// What a Connection header lists: its own words, and names of headers that end here.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ConnectionTokens<'h> {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// At most two values are looked at for names; more is nobody's honest request.
    listed: [&'h [u8]; 2],
    values: usize,
}

impl<'h> ConnectionTokens<'h> {
    pub(crate) fn take(&mut self, value: &'h [u8]) -> Result<(), Rejection> {
        let mut lists_names = false;
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                lists_names = true;
            }
        }
        if lists_names {
            *self.listed.get_mut(self.values).ok_or(bad("there are too many Connection headers"))? = value;
            self.values += 1;
        }
        Ok(())
    }

    pub(crate) fn lists(&self, name: &str) -> bool {
        self.listed[..self.values].iter().any(|value| {
            value
                .split(|byte| *byte == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
        })
    }
}

/// Finds path and authority. The authority of an absolute target wins over Host, as RFC 9112 says.
fn locate<'h>(
    method: &str,
    target: &'h str,
    host: Option<&'h [u8]>,
) -> Result<(&'h str, &'h str), Rejection> {
    let host = host.ok_or(bad("there is no Host"))?;
    let host = std::str::from_utf8(host).map_err(|_| bad("the Host is malformed"))?;
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(bad("the request's target holds characters that must be escaped"));
    }
    if target.starts_with('/') {
        return Ok((target, host));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((target, host));
    }
    let scheme_end = target.find("://").ok_or(bad("the request's target is malformed"))?;
    if !matches!(target[..scheme_end].to_ascii_lowercase().as_str(), "http" | "https") {
        return Err(bad("the request's target has an unknown scheme"));
    }
    let rest = &target[scheme_end + 3..];
    let path_start = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_start);
    if authority.is_empty() || authority.contains('@') {
        return Err(bad("the request's target is malformed"));
    }
    // The Host must be well-formed although it is not used.
    lower_host(host, &mut String::new())?;
    match path.as_bytes().first() {
        None => Ok(("/", authority)),
        Some(b'/') => Ok((path, authority)),
        Some(_) => Err(bad("the request's target has a query without a path")),
    }
}

/// Checks an authority and appends its host in lower case.
fn lower_host(authority: &str, out: &mut String) -> Result<(), Rejection> {
    const MALFORMED: Rejection = bad("the Host is malformed");
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or(MALFORMED)?;
            rest[..end].parse::<std::net::Ipv6Addr>().map_err(|_| MALFORMED)?;
            authority.split_at(end + 2)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
        return Err(MALFORMED);
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_fine = host.starts_with('[') || host.bytes().all(is_name);
    if host.is_empty() || host.len() > 255 || !is_fine {
        return Err(MALFORMED);
    }
    out.extend(host.chars().map(|character| character.to_ascii_lowercase()));
    Ok(())
}

fn is_well_formed_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:=+/@".contains(&byte))
}

/// 128 random bits in hexadecimal.
pub(crate) fn make_id(out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bits = fastrand::u128(..);
    for _ in 0..32 {
        out.push(char::from(DIGITS[(bits & 15) as usize]));
        bits >>= 4;
    }
}

/// Names that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    Accept,
    RequestId,
    TraceParent,
    TraceState,
    ForwardedFor,
    /// Said by whoever sends, and believed by applications: `X-Forwarded-…`, `Forwarded`, `X-Real-IP`.
    Forwarding,
    /// Ends here in any case: `Keep-Alive`, `TE`, `Trailer`, `Proxy-…`, `HTTP2-Settings`.
    HopByHop,
    Other,
}

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let first = name.as_bytes().first().map_or(0, u8::to_ascii_lowercase);
        // Most headers are decided by their first letter.
        match first {
            b'h' if is("host") => Self::Host,
            b'h' if is("http2-settings") => Self::HopByHop,
            b'c' if is("content-length") => Self::ContentLength,
            b'c' if is("connection") => Self::Connection,
            b'c' if is("content_length") => Self::HopByHop,
            b't' if is("transfer-encoding") => Self::TransferEncoding,
            b't' if is("traceparent") => Self::TraceParent,
            b't' if is("tracestate") => Self::TraceState,
            b't' if is("te") || is("trailer") || is("transfer_encoding") => Self::HopByHop,
            b'u' if is("upgrade") => Self::Upgrade,
            b'e' if is("expect") => Self::Expect,
            b'a' if is("accept") => Self::Accept,
            b'k' if is("keep-alive") => Self::HopByHop,
            b'p' if is("proxy-connection")
                || is("proxy-authorization")
                || is("proxy-authenticate")
                || is("proxy") =>
            {
                Self::HopByHop
            }
            b'f' if is("forwarded") => Self::Forwarding,
            b'x' => Self::extension(name),
            _ => Self::Other,
        }
    }

    /// Names with `_` for `-` look the same to applications behind CGI and WSGI, so they count as the same here.
    fn extension(name: &str) -> Self {
        let bytes = name.as_bytes();
        let same = |known: &[u8], bytes: &[u8]| {
            known.iter().zip(bytes).all(|(k, b)| *k == b.to_ascii_lowercase() || (*k == b'-' && *b == b'_'))
        };
        if bytes.len() == 15 && name.eq_ignore_ascii_case("x-forwarded-for") {
            Self::ForwardedFor
        } else if (bytes.len() >= 12 && same(b"x-forwarded-", &bytes[..12]))
            || (bytes.len() == 9 && same(b"x-real-ip", bytes))
        {
            Self::Forwarding
        } else if bytes.len() == 12 && same(b"x-request-id", bytes) {
            Self::RequestId
        } else {
            Self::Other
        }
    }
}

fn compose(
    parsed: &httparse::Request<'_, '_>,
    request: &Request,
    facts: &Facts<'_>,
    sender: &Sender<'_>,
    out: &mut Vec<u8>,
) {
    out.clear();
    push(out, &[request.method.as_bytes(), b" ", facts.target.as_bytes(), b" HTTP/1.1\r\nHost: "]);
    push(out, &[facts.authority.as_bytes(), b"\r\n"]);
    let mut said_host = false;
    let mut said_proto = false;
    for header in parsed.headers.iter() {
        let keep = match Name::of(header.name) {
            Name::Accept | Name::Other => !facts.connection.lists(header.name),
            Name::Expect => request.expects_continue,
            Name::TraceParent | Name::TraceState => facts.trace.is_passed_on(),
            Name::Forwarding if facts.is_trusted => {
                said_host |= header.name.eq_ignore_ascii_case("x-forwarded-host");
                said_proto |= header.name.eq_ignore_ascii_case("x-forwarded-proto");
                true
            }
            _ => false,
        };
        if keep {
            push(out, &[header.name.as_bytes(), b": ", header.value, b"\r\n"]);
        }
    }
    match request.body() {
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            push_number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
    if let Some(protocol) = facts.upgrade {
        push(out, &[b"Connection: upgrade\r\nUpgrade: ", protocol, b"\r\n"]);
    }
    if !facts.trace.is_passed_on() {
        trace::start(out, &request.trace);
    }
    out.extend_from_slice(b"X-Forwarded-For: ");
    if facts.is_trusted {
        for header in parsed.headers.iter().filter(|header| Name::of(header.name) == Name::ForwardedFor) {
            push(out, &[header.value, b", "]);
        }
    }
    out.extend_from_slice(sender.address.as_bytes());
    if !said_proto {
        push(out, &[b"\r\nX-Forwarded-Proto: ", sender.scheme.name().as_bytes()]);
    }
    if !said_host {
        push(out, &[b"\r\nX-Forwarded-Host: ", facts.authority.as_bytes()]);
    }
    push(out, &[b"\r\nX-Request-Id: ", request.id.as_bytes(), b"\r\n\r\n"]);
}

pub(crate) fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

pub(crate) fn push_display(out: &mut Vec<u8>, value: &dyn std::fmt::Display) {
    use std::io::Write;
    write!(out, "{value}").expect("writing to memory succeeds");
}

/// Decimal digits without the formatting machinery: this is on every request's way.
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
