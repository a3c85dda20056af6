//! Whether an answer goes to its client compressed, where its route asks for that, and what its head then says.
//!
//! Compressed is what gains by it: text of some length that nobody has coded already, for a client that takes one of the codings. What
//! has to arrive as it was sent stays so: parts of a body, event streams, gRPC, what is signed by a digest, and what says
//! `no-transform`. Every answer that some client would get compressed says so in `Vary`, so that caches keep them apart.

use httparse::Header;

use crate::fields::headers;
use crate::head::{Request, parse_length, push};
use crate::response::Response;
use crate::squeeze::Encoders;

/// Below it an answer fits a packet or two either way.
const MIN: u64 = 1024;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Zstd,
    Gzip,
    Brotli,
}

impl Coding {
    /// The first is the first choice of a client that takes all alike: who asks for a page pays for it with the CPU of a
    /// thread that serves everybody. zstd takes less than half of gzip's time; brotli more than twice of it, for 6 % fewer bytes.
    pub(crate) const ALL: [Self; 3] = [Self::Zstd, Self::Gzip, Self::Brotli];

    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Brotli => "br",
        }
    }
}

/// What a request says about the coding of its answer.
#[derive(Debug)]
pub(crate) struct Offer {
    /// What its client takes, the best first.
    takes: [Option<Coding>; 3],
    /// Its `If-None-Match`: the tags of what it holds.
    holds: Vec<u8>,
}

impl Offer {
    /// `head` is the request's, as its client sent it.
    pub(crate) fn of(request: &Request, head: &[u8]) -> Self {
        let mut asked = Preference::default();
        let (mut transform, mut holds) = (true, Vec::new());
        for (name, value) in headers(head) {
            if name.eq_ignore_ascii_case(b"accept-encoding") {
                asked.take(value);
            } else if name.eq_ignore_ascii_case(b"if-none-match") {
                push(&mut holds, &[value, b","]);
            } else if name.eq_ignore_ascii_case(b"cache-control") {
                transform &= !lists(value, b"no-transform");
            }
        }
        // A client of HTTP/1.0 would learn the body's end from the connection's only.
        let may = transform && !request.is_http_10();
        Self { takes: if may { asked.ranked() } else { [None; 3] }, holds }
    }
}

/// `Accept-Encoding`, as far as it is about what there is here. Qualities are in thousandths (RFC 9110, 12.5.3).
#[derive(Debug, Default)]
struct Preference {
    /// As in [`Coding::ALL`].
    codings: [Option<u16>; 3],
    identity: Option<u16>,
    any: Option<u16>,
}

impl Preference {
    fn take(&mut self, value: &[u8]) {
        for item in value.split(|byte| *byte == b',') {
            let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let coding = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| {
                let (name, value) = part.split_at_checked(2)?;
                name.eq_ignore_ascii_case(b"q=").then(|| thousandths(value))
            });
            let quality = Some(quality.unwrap_or(1000));
            // As it was called once.
            let coding = if coding.eq_ignore_ascii_case(b"x-gzip") { b"gzip" } else { coding };
            let known = |known: &Coding| coding.eq_ignore_ascii_case(known.name().as_bytes());
            if let Some(at) = Coding::ALL.iter().position(known) {
                self.codings[at] = quality;
            } else if coding.eq_ignore_ascii_case(b"identity") {
                self.identity = quality;
            } else if coding == b"*" {
                self.any = quality;
            }
        }
    }

    /// What is preferred to the plain body, the best first.
    fn ranked(&self) -> [Option<Coding>; 3] {
        let mut ranked = [None; 3];
        for (place, coding) in Coding::ALL.into_iter().enumerate() {
            // Whoever takes anything may have meant what everybody knows.
            let any = self.any.filter(|_| coding == Coding::Gzip);
            let quality = self.codings[place].or(any).unwrap_or(0);
            let is_wanted = quality > 0 && self.identity.is_none_or(|identity| identity <= quality);
            ranked[place] = is_wanted.then_some((quality, coding));
        }
        // Stable: of two that are taken alike, the first choice comes first.
        ranked.sort_by_key(|wanted| std::cmp::Reverse(wanted.map_or(0, |(quality, _)| quality)));
        ranked.map(|wanted| wanted.map(|(_, coding)| coding))
    }
}

/// `0.5` is 500. What is no quality is none.
fn thousandths(value: &[u8]) -> u16 {
    let (whole, rest) = match value {
        [whole @ (b'0' | b'1')] => (*whole, [].as_slice()),
        [whole @ (b'0' | b'1'), b'.', rest @ ..] if rest.len() <= 3 => (*whole, rest),
        _ => return 0,
    };
    let mut sum = u16::from(whole - b'0') * 1000;
    for (place, digit) in [100, 10, 1].into_iter().zip(rest) {
        if !digit.is_ascii_digit() {
            return 0;
        }
        sum += place * u16::from(digit - b'0');
    }
    sum.min(1000)
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    AsItIs,
    /// Another client would get it compressed.
    Varies,
    /// "What you hold is still right", to a client who holds it compressed.
    StillCoded,
    Coded(Coding),
}

pub(crate) fn weigh(
    headers: &[Header<'_>],
    request: &Request,
    response: &Response,
    encoders: &Encoders,
) -> Fate {
    let dress = request.dress.borrow();
    let Some(offer) = dress.as_ref().and_then(|dress| dress.offer.as_ref()) else { return Fate::AsItIs };
    if response.status == 304 {
        return if holds_weakly(headers, &offer.holds) { Fate::StillCoded } else { Fate::Varies };
    }
    if response.status < 200 || matches!(response.status, 204..=206) || !gains(headers) {
        return Fate::AsItIs;
    }
    let mut takes = offer.takes.iter().copied().flatten();
    takes.find(|coding| encoders.has_room(*coding)).map_or(Fate::Varies, Fate::Coded)
}

/// Whether the client's copy has the weak form of the answer's tag: the compressed one was told by that.
fn holds_weakly(headers: &[Header<'_>], holds: &[u8]) -> bool {
    let mut tags = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("etag"));
    tags.any(|tag| {
        let held = holds.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let mut weak = held.filter_map(|held| held.strip_prefix(b"W/"));
        weak.any(|held| held == tag.value)
    })
}

/// Whether compressing the answer makes it smaller, and is nobody's harm.
fn gains(headers: &[Header<'_>]) -> bool {
    let mut is_text = false;
    for header in headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        // The first letter tells most of them apart.
        match header.name.as_bytes().first().map(u8::to_ascii_lowercase) {
            Some(b'c') if is("content-type") => is_text = is_compressible(header.value),
            Some(b'c')
                if is("content-length") && parse_length(header.value).is_some_and(|length| length < MIN) =>
            {
                return false;
            }
            Some(b'c') if is("cache-control") && lists(header.value, b"no-transform") => return false,
            Some(b'c' | b'd' | b'r')
                if is("content-encoding")
                    || is("content-range")
                    || is("content-md5")
                    || is("content-digest")
                    || is("digest")
                    || is("repr-digest") =>
            {
                return false;
            }
            _ => {}
        }
    }
    is_text
}

/// Media types that are text inside, or fonts and images of the few kinds that nobody packed. An event stream is sent on as
/// it comes, and gRPC has a compression of its own.
fn is_compressible(value: &[u8]) -> bool {
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let essence = essence.to_ascii_lowercase();
    let Some(slash) = memchr::memchr(b'/', &essence) else { return false };
    let (kind, subtype) = (&essence[..slash], &essence[slash + 1..]);
    match kind {
        b"text" => subtype != b"event-stream",
        b"font" => matches!(subtype, b"ttf" | b"otf" | b"collection"),
        b"image" => matches!(subtype, b"svg+xml" | b"bmp" | b"x-icon" | b"vnd.microsoft.icon"),
        b"application" if subtype.starts_with(b"grpc") => false,
        b"application" => {
            subtype.ends_with(b"+json")
                || subtype.ends_with(b"+xml")
                || matches!(
                    subtype,
                    b"json"
                        | b"javascript"
                        | b"x-javascript"
                        | b"ecmascript"
                        | b"xml"
                        | b"xml-dtd"
                        | b"x-ndjson"
                        | b"jsonl"
                        | b"json-seq"
                        | b"graphql"
                        | b"yaml"
                        | b"toml"
                        | b"sql"
                        | b"rtf"
                        | b"wasm"
                        | b"x-sh"
                        | b"vnd.ms-fontobject"
                        | b"x-font-ttf"
                )
        }
        _ => false,
    }
}

fn lists(value: &[u8], wanted: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(wanted))
}

/// Changes the head that begins at `start` of `out`: it was composed as if the body went on as it is.
pub(crate) fn amend(out: &mut Vec<u8>, start: usize, fate: Fate) {
    let composed = out.split_off(start);
    let end = memchr::memmem::find(&composed, b"\r\n\r\n").map_or(composed.len(), |end| end + 2);
    let coding = if let Fate::Coded(coding) = fate { Some(coding) } else { None };
    let mut says_vary = false;
    for line in composed[..end].split_inclusive(|byte| *byte == b'\n') {
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default().trim_ascii());
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        if is(b"vary") {
            says_vary |= lists(value, b"accept-encoding") || lists(value, b"*");
        } else if coding.is_some() && (is(b"content-length") || is(b"accept-ranges")) {
            continue;
        } else if (coding.is_some() || fate == Fate::StillCoded) && is(b"etag") && value.starts_with(b"\"") {
            // The same content, in other bytes.
            push(out, &[b"ETag: W/", value, b"\r\n"]);
            continue;
        }
        out.extend_from_slice(line);
    }
    if let Some(coding) = coding {
        push(out, &[b"Content-Encoding: ", coding.name().as_bytes(), b"\r\n"]);
    }
    if !says_vary {
        out.extend_from_slice(b"Vary: Accept-Encoding\r\n");
    }
    out.extend_from_slice(&composed[end..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_take() {
        for (said, first) in [
            ("gzip", "gzip"),
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, deflate, br", "gzip"),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", "br"),
            ("zstd;q=0.5, gzip;q=0.4, br;q=0.4", "zstd"),
            ("GZIP;Q=0.001", "gzip"),
            ("Br", "br"),
            ("x-gzip", "gzip"),
            ("*", "gzip"),
            ("gzip;q=0.000, *", ""),
            ("zstd;q=0, *", "gzip"),
            ("identity;q=0.5, *;q=0.9", "gzip"),
            ("identity;q=0.5, br;q=0.4, gzip;q=0.9", "gzip"),
            ("", ""),
            ("deflate", ""),
            ("gzip;q=0", ""),
            ("*;q=0", ""),
            ("identity, gzip;q=0.5", ""),
            ("gzip;q=2", ""),
            ("gzip;q=x", ""),
            ("gzipped", ""),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: {said}\r\n\r\n");
            let offer = Offer::of(&Request::default(), head.as_bytes());
            assert_eq!(offer.takes[0].map_or("", Coding::name), first, "Accept-Encoding: {said}");
        }
        let all =
            Offer::of(&Request::default(), b"GET / HTTP/1.1\r\nAccept-Encoding: br, gzip, zstd\r\n\r\n");
        assert_eq!(all.takes, Coding::ALL.map(Some), "where the first has no room, the next one is taken");
        let without = Offer::of(&Request::default(), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(without.takes, [None; 3], "who says nothing gets what everybody understands");
        let exact =
            b"GET / HTTP/1.1\r\nAccept-Encoding: gzip\r\nCache-Control: no-cache, No-Transform\r\n\r\n";
        assert_eq!(Offer::of(&Request::default(), exact).takes, [None; 3], "it asked for no change");
    }

    #[test]
    fn text_gains_and_what_is_packed_or_streamed_does_not() {
        for (kind, does) in [
            ("text/html; charset=utf-8", true),
            ("Application/JSON", true),
            ("application/problem+json", true),
            ("image/svg+xml", true),
            ("application/wasm", true),
            ("text/event-stream", false),
            ("text/event-stream; charset=utf-8", false),
            ("application/grpc", false),
            ("application/grpc+json", false),
            ("image/png", false),
            ("video/mp4", false),
            ("application/zip", false),
            ("application/octet-stream", false),
            ("font/woff2", false),
            ("text", false),
        ] {
            assert_eq!(is_compressible(kind.as_bytes()), does, "{kind}");
        }
    }

    fn amended(head: &str, fate: Fate) -> String {
        let mut out = head.as_bytes().to_vec();
        amend(&mut out, 0, fate);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_head_says_what_was_done() {
        let head = "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\ncontent-length: 5000\r\nAccept-Ranges: bytes\r\nVary: Cookie\r\n\r\n";
        assert_eq!(
            amended(head, Fate::Coded(Coding::Gzip)),
            "HTTP/1.1 200 OK\r\nETag: W/\"v1\"\r\nVary: Cookie\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\n\r\n"
        );
        let varies = amended(head, Fate::Varies);
        assert_eq!(varies, head.replace("\r\n\r\n", "\r\nVary: Accept-Encoding\r\n\r\n"));
        let knowing = "HTTP/1.1 200 OK\r\nETag: W/\"v1\"\r\nVary: Cookie, accept-encoding\r\n\r\n";
        assert_eq!(amended(knowing, Fate::Varies), knowing, "it says so itself");
        let weak = amended(knowing, Fate::Coded(Coding::Zstd));
        assert!(weak.contains("\r\nETag: W/\"v1\"\r\n") && !weak.contains("W/W/"), "{weak}");
        assert!(weak.contains("\r\nContent-Encoding: zstd\r\n"), "{weak}");
    }
}
