//! Response heads: what an instance answered, understood and composed anew for the client.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use crate::body::Framing;
use crate::coding::{self, Coding, Fate};
use crate::head::{ConnectionTokens, HEAD_MAX, Name, Request, Version, parse_length, push, push_number};
use crate::split;
use crate::squeeze::Encoders;
use crate::stream::Scheme;

const HEADERS_MAX: usize = 128;

/// An answer that can't be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadResponse(pub(crate) &'static str);

/// What is kept of a response's head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The instance's connection can carry another request afterwards.
    pub(crate) keep_alive: bool,
    /// How the client gets it.
    pub(crate) coding: Option<Coding>,
}

impl Response {
    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// How the answer goes on to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientConnection {
    KeepAlive,
    Close,
}

/// Reads a response's head and appends the client's to `out`. `None`: more bytes are needed.
///
/// `keep_client` is asked once the framing is known: with it, whether the connection can stay open.
pub(crate) fn read(
    input: &[u8],
    request: &Request,
    client: ClientConnection,
    encoders: &Encoders,
    out: &mut Vec<u8>,
) -> Result<Option<(usize, Response)>, BadResponse> {
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut headers) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if input.len() < HEAD_MAX => return Ok(None),
        Ok(Status::Partial) => return Err(BadResponse("its head is larger than 32 KiB")),
        Err(httparse::Error::TooManyHeaders) => return Err(BadResponse("it has more than 128 headers")),
        Err(_) => return Err(BadResponse("its head is malformed")),
    };
    let (mut response, connection) = examine(&parsed, request)?;
    let fate = coding::weigh(parsed.headers, request, &response, encoders);
    let mut shown = response;
    if let Fate::Coded(coding) = fate
        && response.framing != Framing::None
    {
        response.coding = Some(coding);
        // How long it will be, nobody knows yet.
        shown.framing = Framing::Chunked;
    }
    let start = out.len();
    compose(&parsed, request, &shown, &connection, client, out);
    if fate != Fate::AsItIs {
        coding::amend(out, start, fate);
    }
    Ok(Some((length, response)))
}

fn examine<'h>(
    parsed: &httparse::Response<'_, 'h>,
    request: &Request,
) -> Result<(Response, ConnectionTokens<'h>), BadResponse> {
    let status = parsed.code.unwrap_or(0);
    if !(100..=999).contains(&status) {
        return Err(BadResponse("its status is not a status"));
    }
    let mut connection = ConnectionTokens::default();
    let mut length = None;
    let mut codings = 0;
    let mut is_chunked = false;
    for header in parsed.headers.iter() {
        match Name::of(header.name) {
            Name::Connection => {
                connection.take(header.value).map_err(|_| BadResponse("its Connection is too long"))?;
            }
            Name::ContentLength => {
                let value =
                    parse_length(header.value).ok_or(BadResponse("its Content-Length is not a number"))?;
                if length.is_some_and(|before| before != value) {
                    return Err(BadResponse("it has two different Content-Lengths"));
                }
                length = Some(value);
            }
            Name::TransferEncoding => {
                codings += 1;
                is_chunked = header.value.eq_ignore_ascii_case(b"chunked");
            }
            _ => {}
        }
    }
    let is_http_10 = parsed.version == Some(0);
    let mut keep_alive = !connection.close && (!is_http_10 || connection.keep_alive);
    let has_body = !(request.is_head() || status < 200 || status == 204 || status == 304);
    let framing = if codings > 0 {
        if codings > 1 || !is_chunked || is_http_10 {
            return Err(BadResponse("its Transfer-Encoding is not just chunked"));
        }
        // Chunks win over a length beside them, but nothing after them is believed.
        keep_alive &= length.is_none();
        if has_body { Framing::Chunked } else { Framing::None }
    } else {
        match length {
            _ if !has_body => Framing::None,
            Some(length) => Framing::Length(length),
            None => {
                keep_alive = false;
                Framing::UntilClose
            }
        }
    };
    Ok((Response { status, framing, keep_alive, coding: None }, connection))
}

/// Whether the client learns the body's end from chunks.
pub(crate) fn chunks_for_client(framing: Framing, request: &Request) -> bool {
    matches!(framing, Framing::Chunked | Framing::UntilClose) && request.version == Version::Http11
}

fn compose(
    parsed: &httparse::Response<'_, '_>,
    request: &Request,
    response: &Response,
    connection: &ConnectionTokens<'_>,
    client: ClientConnection,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, u64::from(response.status));
    push(out, &[b" ", parsed.reason.unwrap_or_default().as_bytes(), b"\r\n"]);
    let is_upgrade = response.status == 101;
    // The answer to HEAD, or a 304, describes a body that is not sent.
    let describes = request.is_head() || response.status == 304;
    let mut said_length = false;
    // What the application calls the request itself, mostly by the id that it got, stays.
    let mut said_id = response.is_interim();
    let mut said_hsts = request.hsts_s.is_none() || response.is_interim();
    let dress = request.dress.borrow();
    let dress = dress.as_ref().filter(|_| !response.is_interim());
    for header in parsed.headers.iter() {
        let keep = match Name::of(header.name) {
            Name::Connection | Name::TransferEncoding => false,
            Name::HopByHop => header.name.eq_ignore_ascii_case("proxy-authenticate"),
            Name::Upgrade => is_upgrade || response.status == 426,
            Name::ContentLength => {
                let keep = (matches!(response.framing, Framing::Length(_)) || describes) && !said_length;
                said_length = true;
                keep
            }
            Name::RequestId if said_id => false,
            Name::RequestId => {
                said_id = true;
                true
            }
            _ => {
                said_hsts = said_hsts || header.name.eq_ignore_ascii_case("strict-transport-security");
                !connection.lists(header.name) && !dress.is_some_and(|dress| dress.removes(header.name))
            }
        };
        if keep {
            push(out, &[header.name.as_bytes(), b": ", header.value, b"\r\n"]);
        }
    }
    if !said_id {
        push(out, &[b"X-Request-Id: ", request.id.as_bytes(), b"\r\n"]);
    }
    if let Some(seconds) = request.hsts_s.filter(|_| !said_hsts) {
        out.extend_from_slice(b"Strict-Transport-Security: max-age=");
        push_number(out, seconds);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(dress) = dress {
        dress.write(out);
    }
    if let Some(visitor) = request.visitor.get().filter(|_| !response.is_interim()) {
        // A month: longer than two releases are tried side by side.
        let secure: &[u8] = if request.scheme == Scheme::Https { b"; Secure" } else { b"" };
        push(out, &[b"Set-Cookie: ", split::COOKIE.as_bytes(), b"=", &split::spelled(visitor)]);
        push(out, &[b"; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax", secure, b"\r\n"]);
    }
    if is_upgrade {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    } else if !response.is_interim() {
        if chunks_for_client(response.framing, request) {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        let until_close = response.framing == Framing::UntilClose || response.framing == Framing::Chunked;
        if client == ClientConnection::Close || (until_close && request.is_http_10()) {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if request.is_http_10() {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        } else if response.status == 426 {
            out.extend_from_slice(b"Connection: upgrade\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}
