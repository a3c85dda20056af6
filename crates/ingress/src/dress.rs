//! What the answer of a request gets from its route: headers set and taken away.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::coding::Offer;
use crate::head::push;
use crate::policy::Policy;
use crate::stream::Scheme;

/// Kept with the request from the gate on; a request whose route asks for nothing has none.
#[derive(Debug)]
pub(crate) struct Dress {
    pub(crate) policy: Arc<Policy>,
    /// Lines of this answer only.
    pub(crate) lines: Vec<u8>,
    /// The visitor is told its instance.
    pub(crate) cookie: Option<[u8; 16]>,
    /// How the visitor came: a cookie that was given by TLS is not to be shown without it.
    scheme: Scheme,
    /// What the client takes, where answers are compressed.
    pub(crate) offer: Option<Offer>,
}

impl Dress {
    pub(crate) fn new(policy: Arc<Policy>, scheme: Scheme) -> Self {
        Self { policy, lines: Vec::new(), cookie: None, scheme, offer: None }
    }

    /// Whether the application's word is not passed on.
    pub(crate) fn removes(&self, name: &str) -> bool {
        self.policy.answer_removed.iter().any(|removed| removed.eq_ignore_ascii_case(name))
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        push(out, &[&self.policy.answer_lines, &self.lines]);
        if let (Some(name), Some(instance)) = (&self.policy.cookie, &self.cookie) {
            // As long as the browser is open; the instance seldom lives longer.
            push(out, &[b"Set-Cookie: ", name.as_bytes(), b"=", instance]);
            let secure: &[u8] = if self.scheme == Scheme::Https { b"; Secure" } else { b"" };
            push(out, &[b"; Path=/; HttpOnly; SameSite=Lax", secure, b"\r\n"]);
        }
    }

    /// The same for an answer of HTTP/2 that is passed on as it came.
    pub(crate) fn put_on(&self, headers: &mut HeaderMap) {
        for removed in &self.policy.answer_removed {
            headers.remove(removed.as_str());
        }
        let mut lines = Vec::new();
        self.write(&mut lines);
        for line in lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end) {
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
    }
}
