//! Changing a head that was composed for an instance, where a route asks for it.

use memchr::memmem;

use crate::head::push;
use crate::routing::{needs_normalizing, normalize};

/// What is different in the changed head.
#[derive(Debug, Default)]
pub(crate) struct Edit<'p> {
    pub(crate) target: Option<String>,
    /// Names in any case.
    pub(crate) remove: Vec<&'p str>,
    /// Whole lines.
    pub(crate) add: Vec<u8>,
}

impl Edit<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.target.is_none() && self.remove.is_empty() && self.add.is_empty()
    }

    /// `head` may have a body behind it, which stays.
    pub(crate) fn apply(self, head: &mut Vec<u8>) {
        let Some(end) = memmem::find(head, b"\r\n\r\n") else { return };
        let mut out = Vec::with_capacity(head.len() + self.add.len());
        let first = memmem::find(head, b"\r\n").unwrap_or(end);
        match (&self.target, request_line(&head[..first])) {
            (Some(target), Some((method, version))) => {
                push(&mut out, &[method, b" ", target.as_bytes(), b" ", version]);
            }
            _ => out.extend_from_slice(&head[..first]),
        }
        let mut at = first;
        while at < end {
            let line = &head[at..end];
            let next = memmem::find(&line[2..], b"\r\n").map_or(line.len(), |length| length + 2);
            let name = line[2..next].split(|byte| *byte == b':').next().unwrap_or_default();
            if !self.remove.iter().any(|removed| reads_as(removed.as_bytes(), name)) {
                out.extend_from_slice(&line[..next]);
            }
            at += next;
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.add);
        out.extend_from_slice(&head[end + 2..]);
        *head = out;
    }
}

/// Whether an application may take two names for one: behind CGI and WSGI `_` is `-`, and letters have one case.
pub(crate) fn reads_as(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

fn request_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next()?;
    Some((method, words.nth(1)?))
}

/// The second word of a request's head.
pub(crate) fn target(head: &[u8]) -> &str {
    let word = head.split(|byte| *byte == b' ').nth(1).unwrap_or(b"/");
    std::str::from_utf8(word).unwrap_or("/")
}

/// What a target becomes: `to`, with what stood for the `*` of the route's path, and the query.
pub(crate) fn rewritten(route: &str, to: &str, target: &str) -> String {
    let (raw, query) = match target.find('?') {
        Some(at) => target.split_at(at),
        None => (target, ""),
    };
    let query = if to.contains('?') { "" } else { query };
    let Some((base, prefix)) = to.strip_suffix('*').zip(route.strip_suffix('*')) else {
        return format!("{to}{query}");
    };
    // Where the path was not written plainly, the route was chosen by how it reads.
    let path = if needs_normalizing(raw) { normalize(raw) } else { raw.to_owned() };
    let path = match path.strip_prefix(prefix) {
        Some(rest) => format!("{base}{rest}"),
        // Without the slash: `/api` of `/api/*`.
        None if base == "/" => base.to_owned(),
        None => base.trim_end_matches('/').to_owned(),
    };
    if path.starts_with("//") {
        // It would be read as another host's name.
        return format!("/{}{query}", path.trim_start_matches('/'));
    }
    format!("{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_for_the_star_comes_behind_what_is_written() {
        for (route, to, target, becomes) in [
            ("/api/*", "/*", "/api/users?page=2", "/users?page=2"),
            ("/api/*", "/*", "/api", "/"),
            ("/api/*", "/*", "/api/", "/"),
            ("/api/*", "/v2/*", "/api/users", "/v2/users"),
            ("/api/*", "/v2/*", "/api", "/v2"),
            ("/*", "/app/*", "/a/b", "/app/a/b"),
            ("/old", "/new", "/old?x=1", "/new?x=1"),
            ("/old/*", "/new?from=old", "/old/a?x=1", "/new?from=old"),
            ("/old/*", "https://example.com/*", "/old/a/b?x", "https://example.com/a/b?x"),
            ("/old/*", "/*", "/old//evil.example", "/evil.example"),
            ("/old/*", "/*", "/old/x/..//evil.example", "/evil.example"),
            ("/api/*", "/*", "/%61pi/%2Fx", "/%2Fx"),
        ] {
            assert_eq!(rewritten(route, to, target), becomes, "{target} by {route} to {to}");
        }
    }

    #[test]
    fn a_head_is_changed_and_what_follows_it_stays() {
        let mut head =
            b"POST /a HTTP/1.1\r\nHost: h\r\nX-Key: 1\r\nx_key: 2\r\nB: 3\r\n\r\nX-Key: body".to_vec();
        let edit = Edit { target: Some("/b".into()), remove: vec!["X-KEY"], add: b"X-New: 4\r\n".to_vec() };
        edit.apply(&mut head);
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "POST /b HTTP/1.1\r\nHost: h\r\nB: 3\r\nX-New: 4\r\n\r\nX-Key: body"
        );
    }
}
