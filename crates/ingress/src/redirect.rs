//! Answers of Rung's own: plain requests to hosts that have a certificate of their own are sent to HTTPS, those of routes
//! that say so elsewhere, and an authority that is about to make a certificate is shown what it asks for.

use rung_model::route::Redirect;

use crate::edit::{rewritten, target};
use crate::head::{Request, push, push_number};
use crate::response::ClientConnection;

/// Browsers ask again after this time: who turns HTTPS off again is not locked out of their own site for ever.
const REMEMBERED_S: u64 = 3600;

/// Appends the answer. `head` is the request's, as it would go to an instance: it has the target.
pub(crate) fn write(
    out: &mut Vec<u8>,
    request: &Request,
    head: &[u8],
    port: u16,
    connection: ClientConnection,
) {
    // 308 keeps the method, so that a form that was sent plainly arrives as what it is.
    push(out, &[b"HTTP/1.1 308 Permanent Redirect\r\nLocation: https://", request.host.as_bytes()]);
    if port != 443 {
        out.push(b':');
        push_number(out, u64::from(port));
    }
    push(out, &[target(head).as_bytes(), b"\r\nCache-Control: max-age="]);
    push_number(out, REMEMBERED_S);
    push(out, &[b"\r\nX-Request-Id: ", request.id.as_bytes(), b"\r\nContent-Length: 0\r\n"]);
    if connection == ClientConnection::Close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the answer of a route that leads elsewhere. `path` is the route's.
pub(crate) fn write_route(
    out: &mut Vec<u8>,
    request: &Request,
    head: &[u8],
    redirect: &Redirect,
    path: &str,
    connection: ClientConnection,
) {
    let to = rewritten(path, &redirect.to, target(head));
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, u64::from(redirect.status));
    let reason: &[u8] = match redirect.status {
        301 => b"Moved Permanently",
        302 => b"Found",
        303 => b"See Other",
        307 => b"Temporary Redirect",
        _ => b"Permanent Redirect",
    };
    push(out, &[b" ", reason, b"\r\nLocation: ", to.as_bytes(), b"\r\nContent-Length: 0\r\n"]);
    end(out, request, connection);
}

/// Appends the answer to a browser that asks what its page may send: all of it is in the route's own lines.
pub(crate) fn write_preflight(out: &mut Vec<u8>, request: &Request, connection: ClientConnection) {
    out.extend_from_slice(b"HTTP/1.1 204 No Content\r\n");
    end(out, request, connection);
}

fn end(out: &mut Vec<u8>, request: &Request, connection: ClientConnection) {
    if let Some(dress) = request.dress.borrow().as_ref() {
        dress.write(out);
    }
    push(out, &[b"X-Request-Id: ", request.id.as_bytes(), b"\r\n"]);
    if connection == ClientConnection::Close {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if request.is_http_10() {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends what an authority wants to read at this path.
pub(crate) fn write_proof(out: &mut Vec<u8>, request: &Request, proof: &str, connection: ClientConnection) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\n");
    push(out, &[b"X-Request-Id: ", request.id.as_bytes(), b"\r\nContent-Length: "]);
    push_number(out, proof.len() as u64);
    if connection == ClientConnection::Close {
        out.extend_from_slice(b"\r\nConnection: close");
    }
    out.extend_from_slice(b"\r\n\r\n");
    if request.method != "HEAD" {
        out.extend_from_slice(proof.as_bytes());
    }
}
