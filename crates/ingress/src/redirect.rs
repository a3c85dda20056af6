//! Plain requests to hosts that have a certificate of their own are sent to HTTPS.

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
    push(out, &[target(head), b"\r\nCache-Control: max-age="]);
    push_number(out, REMEMBERED_S);
    push(out, &[b"\r\nX-Request-Id: ", request.id.as_bytes(), b"\r\nContent-Length: 0\r\n"]);
    if connection == ClientConnection::Close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The second word.
fn target(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b' ').nth(1).unwrap_or(b"/")
}
