//! What a route does with its requests, made ready once for each table.

use std::collections::HashMap;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rung_model::route::{Auth, HeaderChange, RateLimits, Route, RoutePolicy};
use rung_model::{AppName, RouteDocument, SecretName};

use crate::balance::Registry;
use crate::head::push;
use crate::jwks::Jwks;
use crate::limiter::Limiter;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Policy {
    /// Of the route: `/api/*`.
    pub(crate) path: String,
    pub(crate) rule: RoutePolicy,
    /// Lines that every request gets, and names of lines that go.
    pub(crate) request_lines: Vec<u8>,
    pub(crate) request_removed: Vec<String>,
    /// The same of answers. What is set takes the place of what the application says.
    pub(crate) answer_lines: Vec<u8>,
    pub(crate) answer_removed: Vec<String>,
    pub(crate) keys: Option<Keys>,
    /// Of the issuer whose tokens are taken.
    pub(crate) jwks: Option<Arc<Jwks>>,
    pub(crate) limits: Limits,
    /// Set where visitors come back to their instance.
    pub(crate) cookie: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) per_address: Option<Arc<Limiter>>,
    pub(crate) per_key: Option<Arc<Limiter>>,
    pub(crate) total: Option<Arc<Limiter>>,
}

impl Policy {
    /// `None`: the route asks for nothing.
    pub(crate) fn new(route: &Route, document: &RouteDocument, registry: &mut Registry) -> Option<Arc<Self>> {
        let rule = (*route.policy).clone();
        if rule.is_empty() {
            return None;
        }
        let (request_lines, request_removed) = changes(&rule.request_headers);
        let (answer_lines, mut answer_removed) = changes(&rule.response_headers);
        if rule.cors.is_some() {
            answer_removed.extend(ACCESS_CONTROL.map(str::to_owned));
        }
        let service = route.service().map_or("", |service| service.as_str());
        let sticky = rule.affinity == rung_model::route::Affinity::Cookie;
        Some(Arc::new(Self {
            keys: rule.secret().map(|secret| Keys::new(secret, document)),
            jwks: match &rule.auth {
                Some(Auth::Jwt(asked)) => Some(registry.jwks(&asked.jwks)),
                _ => None,
            },
            limits: limits(route, rule.limit.as_ref(), &document.app, registry),
            cookie: sticky.then(|| format!("rung-instance-{service}")),
            path: route.path.clone(),
            request_lines,
            request_removed,
            answer_lines,
            answer_removed,
            rule,
        }))
    }
}

/// What the ingress says itself where a route has `cors`.
const ACCESS_CONTROL: [&str; 6] = [
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-expose-headers",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-max-age",
];

fn changes(changes: &std::collections::BTreeMap<String, HeaderChange>) -> (Vec<u8>, Vec<String>) {
    let mut lines = Vec::new();
    for (name, change) in changes {
        if let HeaderChange::Set(value) = change {
            push(&mut lines, &[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    (lines, changes.keys().map(|name| name.to_ascii_lowercase()).collect())
}

fn limits(route: &Route, rule: Option<&RateLimits>, app: &AppName, registry: &mut Registry) -> Limits {
    let Some(rule) = rule else { return Limits::default() };
    // With other conditions it is another route; with another rate, another bucket.
    let name = format!("{app} {} {:?}", route.path, route.when);
    let mut limiter = |kind: &str, rate: Option<rung_model::route::Rate>| {
        rate.map(|rate| registry.limiter(format!("{name} {kind} {rate:?}"), rate))
    };
    Limits {
        per_address: limiter("address", rule.per_address),
        per_key: limiter("key", rule.per_key),
        total: limiter("total", rule.total),
    }
}

/// Who may come in, told by what they show without knowing it.
#[derive(Debug)]
pub(crate) struct Keys {
    salt: String,
    names: HashMap<[u8; 32], String>,
}

impl Keys {
    fn new(secret: &SecretName, document: &RouteDocument) -> Self {
        let version = document.secrets.get(secret).copied().unwrap_or_default();
        let known = document.verifiers.get(secret).into_iter().flatten();
        let entry = |verifier: &rung_model::route::Verifier| Some((verifier.bytes()?, verifier.name.clone()));
        Self {
            salt: rung_model::route::Verifier::salt(&document.app, secret, version),
            names: known.filter_map(entry).collect(),
        }
    }

    /// The name of whoever shows this.
    pub(crate) fn name(&self, shown: &[u8]) -> Option<&str> {
        let mut text = Vec::with_capacity(self.salt.len() + shown.len());
        push(&mut text, &[self.salt.as_bytes(), shown]);
        let digest = digest(&SHA256, &text);
        let digest: [u8; 32] = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
        // How long the look-up takes tells of the digest, which nobody can choose.
        self.names.get(&digest).map(String::as_str)
    }
}
