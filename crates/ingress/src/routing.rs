//! The routes of one app: from a request to the entry that is for it.

use std::collections::HashMap;
use std::sync::Arc;

use rung_model::route::{Conditions, Maintenance, Pages, Redirect};

use crate::fields;
use crate::head::Request;
use crate::policy::Policy;
use crate::table::Service;
use crate::tally::Tallied;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct AppRoutes {
    exact: HashMap<String, Vec<Entry>>,
    /// Without the `*`: `/assets/`. Longest first.
    prefixes: Vec<(String, Vec<Entry>)>,
    pub(crate) maintenance: Maintenance,
    pub(crate) pages: Option<Arc<Pages>>,
    /// Some route is not for everybody.
    is_guarded: bool,
}

/// Of one path, entries with more conditions come first.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Of the route: `/api/*`.
    pub(crate) path: String,
    /// `None`: every request.
    pub(crate) when: Option<Box<Conditions>>,
    pub(crate) to: To,
    /// `None`: nothing is done on the way, and nothing is paid.
    pub(crate) policy: Option<Arc<Policy>>,
    pub(crate) tallied: Arc<Tallied>,
}

#[derive(Debug)]
pub(crate) enum To {
    Service(Arc<Service>),
    Redirect(Arc<Redirect>),
    /// A service that is not there: nothing else answers in its place, for its route may be the guarded one.
    Nothing,
}

/// What is for a request.
#[derive(Debug)]
pub(crate) enum Found<'t> {
    Entry(&'t Entry),
    Nothing,
    Maintenance,
    /// An application could take the path for one that is guarded.
    Ambiguous,
}

impl AppRoutes {
    pub(crate) fn new(maintenance: Maintenance, pages: Pages) -> Self {
        let pages = (!pages.is_empty()).then(|| Arc::new(pages));
        Self { exact: HashMap::new(), prefixes: Vec::new(), maintenance, pages, is_guarded: false }
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        self.is_guarded |= entry.policy.as_ref().is_some_and(|policy| policy.rule.guards());
        let entries = match entry.path.strip_suffix('*') {
            None => self.exact.entry(entry.path.clone()).or_default(),
            Some(prefix) => match self.prefixes.iter().position(|(known, _)| known == prefix) {
                Some(at) => &mut self.prefixes[at].1,
                None => {
                    self.prefixes.push((prefix.to_owned(), Vec::new()));
                    &mut self.prefixes.last_mut().expect("one was just added").1
                }
            },
        };
        entries.push(entry);
    }

    /// Brings what was added into the order in which it is tried.
    pub(crate) fn sort(&mut self) {
        self.prefixes.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let all = self.exact.values_mut().chain(self.prefixes.iter_mut().map(|(_, entries)| entries));
        for entries in all {
            // Stable: of equals the first in the file comes first.
            entries
                .sort_by_key(|entry| std::cmp::Reverse(entry.when.as_ref().map(|when| when.specificity())));
        }
    }

    /// `head` is the request's, as it would go to an instance.
    pub(crate) fn find(&self, request: &Request, head: &[u8]) -> Found<'_> {
        if self.maintenance == Maintenance::On {
            return Found::Maintenance;
        }
        let path = request.path.as_str();
        let found = if needs_normalizing(path) {
            self.entry(&normalize(path), request, head)
        } else {
            self.entry(path, request, head)
        };
        if self.is_guarded && self.is_ambiguous(found, request, head) {
            return Found::Ambiguous;
        }
        found.map_or(Found::Nothing, Found::Entry)
    }

    fn entry(&self, path: &str, request: &Request, head: &[u8]) -> Option<&Entry> {
        let fitting = |entries: &'_ [Entry]| entries.iter().position(|entry| entry.fits(request, head));
        if let Some(entries) = self.exact.get(path)
            && let Some(at) = fitting(entries)
        {
            return Some(&entries[at]);
        }
        let fits = |prefix: &str| {
            prefix == "/" || path.starts_with(prefix) || prefix.strip_suffix('/') == Some(path)
        };
        self.prefixes
            .iter()
            .filter(|(prefix, _)| fits(prefix))
            .find_map(|(_, entries)| fitting(entries).map(|at| &entries[at]))
    }

    /// Whether a server that takes `%2F` and `\` for `/` would come to a route that is not for everybody.
    fn is_ambiguous(&self, found: Option<&Entry>, request: &Request, head: &[u8]) -> bool {
        let path = &request.path;
        if memchr::memchr2(b'%', b'\\', path.as_bytes()).is_none() {
            return false;
        }
        let loose = normalize(
            &path
                .replace("%2f", "/")
                .replace("%2F", "/")
                .replace("%5c", "/")
                .replace("%5C", "/")
                .replace('\\', "/"),
        );
        let Some(other) = self.entry(&loose, request, head) else { return false };
        let is_guarded = other.policy.as_ref().is_some_and(|policy| policy.rule.guards());
        is_guarded && !found.is_some_and(|found| std::ptr::eq(found, other))
    }
}

/// A route's name: its path, after what else it asks for. A header's value is left out, for it may be a secret.
pub(crate) fn name(path: &str, when: &Conditions) -> String {
    let mut name = when.methods.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    if !name.is_empty() {
        name.push(' ');
    }
    name.push_str(when.host.as_deref().unwrap_or_default());
    name.push_str(path);
    for header in when.headers.keys() {
        name.push_str(" +");
        name.push_str(header);
    }
    name
}

impl Entry {
    fn fits(&self, request: &Request, head: &[u8]) -> bool {
        match &self.when {
            None => true,
            Some(when) => holds(when, request, head),
        }
    }
}

fn holds(when: &Conditions, request: &Request, head: &[u8]) -> bool {
    // A dot at its end changes nothing about whose name it is.
    let asked = request.host.strip_suffix('.').unwrap_or(&request.host);
    let is_host = |host: &String| match host.strip_prefix('*') {
        Some(suffix) => asked.find('.').is_some_and(|label| label > 0 && asked[label..] == *suffix),
        None => asked == host,
    };
    if !when.host.as_ref().is_none_or(is_host) {
        return false;
    }
    // A page's browser asks first whether it may send the request that the route is for.
    let is_asked_for = || {
        let asked = fields::header(head, "access-control-request-method");
        request.method == "OPTIONS"
            && asked.is_some_and(|asked| when.methods.iter().any(|method| method.as_bytes() == asked))
    };
    if !(when.methods.is_empty() || when.methods.contains(&request.method) || is_asked_for()) {
        return false;
    }
    when.headers.iter().all(|(name, wanted)| {
        let mut values =
            fields::headers(head).filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()));
        values.any(|(_, value)| wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == value))
    })
}

pub(crate) fn needs_normalizing(path: &str) -> bool {
    let bytes = path.as_bytes();
    memchr::memchr(b'%', bytes).is_some()
        || bytes.windows(2).any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'))
}

/// The path as the application will most likely understand it, for the choice of the route: escapes of plain characters
/// undone, dot segments resolved, doubled slashes one. What is sent on is what came, unless the route rewrites it.
pub(crate) fn normalize(path: &str) -> String {
    let decoded = decode_plain(path);
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_with_slash = false;
    for segment in decoded.split('/').skip(1) {
        ends_with_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let mut out = String::with_capacity(decoded.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() || ends_with_slash {
        out.push('/');
    }
    out
}

fn decode_plain(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte));
        match escaped {
            Some(byte) => {
                out.push(char::from(byte));
                at += 3;
            }
            None => {
                out.push(char::from(bytes[at]));
                at += 1;
            }
        }
    }
    out
}
