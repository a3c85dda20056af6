//! What stands before a route: who may come, how often, with how much; and what is changed on the way in.
//!
//! Nothing here waits. A request comes by once, before an instance is chosen for it; retries are the same request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rung_model::route::{ApiKeyAuth, Auth, Compression, Cors, JwtAuth, Origins, WithCredentials};

use crate::body::Framing;
use crate::coding::Offer;
use crate::config::TrustedProxies;
use crate::dress::Dress;
use crate::edit::{Edit, rewritten, target};
use crate::error_page::Failure;
use crate::fields::{header, headers};
use crate::head::{Request, push, push_number};
use crate::jwt::{self, Doubt};
use crate::limiter::{Limiter, Taken};
use crate::policy::Policy;

/// By this name an application learns who showed a key or a password.
const CALLER: &str = "X-Rung-Caller";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The head is as the instance shall get it.
    Pass,
    /// The gate answers itself: a browser asks whether its page may send something.
    Preflight,
    Refuse(Failure),
}

/// `head` is the request's, as it would go to an instance, perhaps with a body behind it.
pub(crate) fn pass(
    policy: &Arc<Policy>,
    request: &Request,
    head: &mut Vec<u8>,
    trusted: &TrustedProxies,
) -> Verdict {
    let mut dress = Dress::new(policy.clone(), request.scheme);
    // Before the head is edited: what the client takes is its own word, whatever the application is told.
    dress.offer = (policy.rule.compression == Compression::On).then(|| Offer::of(request, head));
    let verdict = Visit { policy, request, trusted, lines: &mut dress.lines }.run(head);
    *request.dress.borrow_mut() = Some(Box::new(dress));
    verdict
}

struct Visit<'v> {
    policy: &'v Policy,
    request: &'v Request,
    trusted: &'v TrustedProxies,
    /// For the answer, whatever it is.
    lines: &'v mut Vec<u8>,
}

impl Visit<'_> {
    fn run(mut self, head: &mut Vec<u8>) -> Verdict {
        let verdict = self.look(head);
        match verdict {
            Ok(caller) => {
                self.edit(head, caller.as_deref());
                Verdict::Pass
            }
            Err(verdict) => verdict,
        }
    }

    /// The caller's name, where one is asked for.
    fn look(&mut self, head: &[u8]) -> Result<Option<String>, Verdict> {
        let rule = &self.policy.rule;
        let needs_address = !rule.addresses.is_empty() || self.policy.limits.per_address.is_some();
        let address = needs_address.then(|| client(head, self.trusted)).flatten();
        if !rule.addresses.is_empty() && !address.is_some_and(|address| rule.addresses.admits(address)) {
            return Err(Verdict::Refuse(Failure::Forbidden));
        }
        if let Some(cors) = &rule.cors
            && self.cross_origin(cors, head)
        {
            return Err(Verdict::Preflight);
        }
        let limits = &self.policy.limits;
        self.count("total", limits.total.as_deref(), 0)?;
        if let Some(address) = address {
            self.count("address", limits.per_address.as_deref(), whose(address))?;
        }
        let caller = match &rule.auth {
            Some(auth) => Some(self.caller(auth, head)?),
            None => None,
        };
        if let Some(name) = &caller {
            self.count("key", limits.per_key.as_deref(), whose_name(name))?;
        }
        self.measure(head)?;
        Ok(caller)
    }

    fn count(&mut self, what: &str, limiter: Option<&Limiter>, whose: u128) -> Result<(), Verdict> {
        let Some(limiter) = limiter else { return Ok(()) };
        let taken = limiter.take(whose);
        say_limit(self.lines, what, limiter, &taken);
        match taken.wait {
            None => Ok(()),
            Some(wait) => {
                self.lines.extend_from_slice(b"Retry-After: ");
                push_number(self.lines, seconds(wait).max(1));
                self.lines.extend_from_slice(b"\r\n");
                Err(Verdict::Refuse(Failure::RateLimited))
            }
        }
    }

    fn caller(&mut self, auth: &Auth, head: &[u8]) -> Result<String, Verdict> {
        let keys = self.policy.keys.as_ref();
        let name = match auth {
            Auth::ApiKey(asked) => api_key(asked, head).and_then(|key| keys?.name(key)).map(str::to_owned),
            Auth::Basic(_) => basic(head).and_then(|shown| keys?.name(&shown)).map(str::to_owned),
            Auth::Jwt(asked) => self.subject(asked, head)?,
        };
        if let Some(name) = name {
            return Ok(name);
        }
        match auth {
            Auth::Jwt(_) if header(head, "authorization").is_some() => {
                self.lines.extend_from_slice(b"WWW-Authenticate: Bearer error=\"invalid_token\"\r\n");
            }
            Auth::Jwt(_) => self.lines.extend_from_slice(b"WWW-Authenticate: Bearer\r\n"),
            Auth::ApiKey(_) => self.lines.extend_from_slice(b"WWW-Authenticate: Bearer\r\n"),
            Auth::Basic(people) => push(
                self.lines,
                &[b"WWW-Authenticate: Basic realm=\"", people.realm.as_bytes(), b"\", charset=\"UTF-8\"\r\n"],
            ),
        }
        Err(Verdict::Refuse(Failure::Unauthorized))
    }

    /// Whom a token is about, when it is to be believed.
    fn subject(&self, asked: &JwtAuth, head: &[u8]) -> Result<Option<String>, Verdict> {
        let mut shown = headers(head).filter(|(name, _)| name.eq_ignore_ascii_case(b"authorization"));
        let token = shown.next().and_then(|(_, value)| bearer(value));
        // The application gets what is shown, and of two it may read the other one.
        let Some(token) = token.filter(|_| shown.next().is_none()) else { return Ok(None) };
        let jwks = self.policy.jwks.as_ref();
        let Some((jwks, keys)) = jwks.and_then(|jwks| Some((jwks, jwks.keys()?))) else {
            return Err(Verdict::Refuse(Failure::IssuerUnknown));
        };
        match jwt::subject(token, &keys, asked, SystemTime::now()) {
            Ok(name) => Ok(Some(harmless(&name))),
            Err(Doubt::UnknownKey) => {
                jwks.ask_anew();
                Ok(None)
            }
            Err(Doubt::Invalid) => Ok(None),
        }
    }

    fn measure(&self, head: &[u8]) -> Result<(), Verdict> {
        let rule = &self.policy.rule;
        if let Some(max) = rule.max_head_bytes {
            let length = memchr::memmem::find(head, b"\r\n\r\n").map_or(head.len(), |end| end + 4);
            if length as u64 > max {
                return Err(Verdict::Refuse(Failure::HeadTooLarge));
            }
        }
        match (rule.max_body_bytes, self.request.body()) {
            (Some(max), Framing::Length(length)) if length > max => {
                Err(Verdict::Refuse(Failure::BodyTooLarge))
            }
            _ => Ok(()),
        }
    }

    /// Says what a page of another origin may do; true for a browser's question before the request itself.
    fn cross_origin(&mut self, cors: &Cors, head: &[u8]) -> bool {
        // Caches must not show one origin's answer to another.
        if cors.origins != Origins::Any || cors.credentials == WithCredentials::Allowed {
            self.lines.extend_from_slice(b"Vary: Origin\r\n");
        }
        let Some(origin) = header(head, "origin") else { return false };
        let asked_method = header(head, "access-control-request-method");
        let is_preflight = self.request.method == "OPTIONS" && asked_method.is_some();
        let is_allowed = match &cors.origins {
            Origins::Any => true,
            Origins::These(origins) => {
                origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin))
            }
        };
        if !is_allowed {
            return is_preflight;
        }
        let said = if cors.origins == Origins::Any { b"*".as_slice() } else { origin };
        push(self.lines, &[b"Access-Control-Allow-Origin: ", said, b"\r\n"]);
        if cors.credentials == WithCredentials::Allowed {
            self.lines.extend_from_slice(b"Access-Control-Allow-Credentials: true\r\n");
        }
        if is_preflight {
            self.preflight(cors, head);
        } else if !cors.expose.is_empty() {
            say_list(self.lines, "Access-Control-Expose-Headers", &cors.expose);
        }
        is_preflight
    }

    fn preflight(&mut self, cors: &Cors, head: &[u8]) {
        say_list(self.lines, "Access-Control-Allow-Methods", &cors.methods);
        let asked = header(head, "access-control-request-headers");
        if !cors.headers.is_empty() {
            say_list(self.lines, "Access-Control-Allow-Headers", &cors.headers);
        } else if let Some(asked) = asked.filter(|_| cors.credentials == WithCredentials::Refused) {
            push(self.lines, &[b"Access-Control-Allow-Headers: ", asked, b"\r\n"]);
        }
        self.lines.extend_from_slice(b"Access-Control-Max-Age: ");
        push_number(self.lines, cors.max_age.as_secs());
        self.lines.extend_from_slice(b"\r\n");
    }

    fn edit(&self, head: &mut Vec<u8>, caller: Option<&str>) {
        let policy = self.policy;
        let mut edit = Edit::default();
        if let Some(to) = &policy.rule.rewrite
            && self.request.path.starts_with('/')
        {
            edit.target = Some(rewritten(&policy.path, to, target(head)));
        }
        edit.remove.extend(policy.request_removed.iter().map(String::as_str));
        edit.add.extend_from_slice(&policy.request_lines);
        if let Some(auth) = &policy.rule.auth {
            // What was shown has served its purpose; who it was is the ingress's word, not the client's.
            edit.remove.push(CALLER);
            match auth {
                Auth::ApiKey(asked) => match &asked.header {
                    Some(header) => edit.remove.push(header),
                    None => edit.remove.extend(["authorization", "x-api-key"]),
                },
                Auth::Basic(_) => edit.remove.push("authorization"),
                // Applications read more of it than whom it is about.
                Auth::Jwt(_) => {}
            }
        }
        if let Some(name) = caller {
            push(&mut edit.add, &[CALLER.as_bytes(), b": ", name.as_bytes(), b"\r\n"]);
        }
        if !edit.is_empty() {
            edit.apply(head);
        }
    }
}

/// It becomes the value of a header.
fn harmless(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).take(200).collect()
}

fn api_key<'h>(asked: &ApiKeyAuth, head: &'h [u8]) -> Option<&'h [u8]> {
    match &asked.header {
        Some(name) => header(head, name).map(|value| bearer(value).unwrap_or(value)),
        None => header(head, "authorization").and_then(bearer).or_else(|| header(head, "x-api-key")),
    }
    .filter(|key| !key.is_empty())
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// `name:password`, as it was typed.
fn basic(head: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = header(head, "authorization")?.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    STANDARD.decode(rest.trim_ascii()).ok()
}

/// Whom the outermost proxy that is trusted was talking to.
fn client(head: &[u8], trusted: &TrustedProxies) -> Option<IpAddr> {
    let forwarded = headers(head).filter(|(name, _)| name.eq_ignore_ascii_case(b"x-forwarded-for")).last()?.1;
    let mut last = None;
    for part in forwarded.rsplit(|byte| *byte == b',') {
        let Some(address) = std::str::from_utf8(part.trim_ascii()).ok().and_then(|text| text.parse().ok())
        else {
            break;
        };
        last = Some(address);
        if !trusted.contains(address) {
            break;
        }
    }
    last
}

/// An IPv4 address is one client; of IPv6 everybody gets a /64 at least.
fn whose(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits() & (u128::MAX << 64),
    }
}

fn whose_name(name: &str) -> u128 {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let first = digest.as_ref().first_chunk::<16>().expect("SHA-256 has 32 bytes");
    u128::from_be_bytes(*first)
}

/// As draft-ietf-httpapi-ratelimit-headers writes it: what holds, and what is left.
fn say_limit(lines: &mut Vec<u8>, what: &str, limiter: &Limiter, taken: &Taken) {
    let rate = limiter.rate();
    push(lines, &[b"RateLimit-Policy: \"", what.as_bytes(), b"\";q="]);
    push_number(lines, u64::from(rate.requests));
    lines.extend_from_slice(b";w=");
    push_number(lines, seconds(rate.per));
    push(lines, &[b"\r\nRateLimit: \"", what.as_bytes(), b"\";r="]);
    push_number(lines, taken.remaining);
    lines.extend_from_slice(b";t=");
    push_number(lines, seconds(taken.full));
    lines.extend_from_slice(b"\r\n");
}

/// Rounded up: who comes back then does not come too early.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn say_list(lines: &mut Vec<u8>, name: &str, list: &std::collections::BTreeSet<String>) {
    push(lines, &[name.as_bytes(), b": "]);
    for (nth, item) in list.iter().enumerate() {
        push(lines, &[if nth == 0 { b"".as_slice() } else { b", " }, item.as_bytes()]);
    }
    lines.extend_from_slice(b"\r\n");
}
