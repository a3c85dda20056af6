//! A route: which requests it is for, where they go, and what is done on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration;
use crate::ids::{AppName, SecretName, ServiceName};
use crate::network::Network;

/// One of an app's routes. The most specific path wins, exact before prefix, long before short; of several with one path
/// the one with more conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Route {
    /// `/assets/*` is a prefix, `/health` is exact, `/*` is everything.
    pub path: String,
    #[serde(default, skip_serializing_if = "Conditions::is_empty")]
    pub when: Conditions,
    #[serde(flatten)]
    pub to: Destination,
    #[serde(default, skip_serializing_if = "RoutePolicy::is_empty")]
    pub policy: Box<RoutePolicy>,
}

impl Route {
    /// A route that asks for nothing but a path.
    pub fn to_service(path: impl Into<String>, service: ServiceName) -> Self {
        Self {
            path: path.into(),
            when: Conditions::default(),
            to: Destination::Service(service),
            policy: Box::default(),
        }
    }

    /// `None`: it is a redirect.
    pub fn service(&self) -> Option<&ServiceName> {
        match &self.to {
            Destination::Service(service) => Some(service),
            Destination::Redirect(_) => None,
        }
    }
}

/// What a request must be beside its path. Empty: anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Conditions {
    /// One of the app's hosts, in lower case; `*.example.com` for any one label in front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// One of these; none: any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub methods: BTreeSet<String>,
    /// All of these. Names are in lower case; without a value: any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Option<String>>,
}

impl Conditions {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Routes with one path are tried from the highest to the lowest.
    pub fn specificity(&self) -> (u8, usize, bool) {
        let host = match &self.host {
            Some(host) if host.starts_with('*') => 1,
            Some(_) => 2,
            None => 0,
        };
        (host, self.headers.len(), !self.methods.is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    Service(ServiceName),
    Redirect(Redirect),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Redirect {
    /// A path or an address. With a `*` at its end what stood for the route's `*` is put there.
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What is done with a request on its way, and with its answer. Nothing, by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoutePolicy {
    /// What the application sees instead of the path, with a `*` at its end for what stood for the route's `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub request_headers: BTreeMap<String, HeaderChange>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub response_headers: BTreeMap<String, HeaderChange>,
    /// Instead of the service's.
    #[serde(
        rename = "response_timeout_ms",
        with = "duration::optional_ms",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub response_timeout: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    /// Of the request's head, as the application gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_head_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Affinity::is_default")]
    pub affinity: Affinity,
    #[serde(default, skip_serializing_if = "Compression::is_default")]
    pub compression: Compression,
    #[serde(default, skip_serializing_if = "AddressRule::is_empty")]
    pub addresses: AddressRule,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<RateLimits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overload: Option<Overload>,
}

impl RoutePolicy {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether not everybody may come this way.
    pub fn guards(&self) -> bool {
        self.auth.is_some() || !self.addresses.is_empty()
    }

    /// The secret that says who may come this way.
    pub fn secret(&self) -> Option<&SecretName> {
        match self.auth.as_ref()? {
            Auth::ApiKey(keys) => Some(&keys.secret),
            Auth::Basic(people) => Some(&people.secret),
            Auth::Jwt(_) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeaderChange {
    Remove,
    Set(String),
}

/// Whether a visitor comes back to the same instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    #[default]
    None,
    /// By a cookie that the ingress sets, as long as the instance gets requests.
    Cookie,
}

impl Affinity {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the ingress compresses answers that gain by it, for clients that take them so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    Off,
    On,
}

impl Compression {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Who may come, by address. Denied is who is in `deny`, or is not in an `allow` that is not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AddressRule {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<Network>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<Network>,
}

impl AddressRule {
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    pub fn admits(&self, address: std::net::IpAddr) -> bool {
        let within = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        !within(&self.deny) && (self.allow.is_empty() || within(&self.allow))
    }
}

/// Who may come, by what they show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    ApiKey(ApiKeyAuth),
    Basic(BasicAuth),
    Jwt(JwtAuth),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApiKeyAuth {
    /// A line for each key: `name: key`, or the key alone.
    pub secret: SecretName,
    /// Where the key stands, in lower case; `None`: `Authorization: Bearer …` or `X-API-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BasicAuth {
    /// A line for each person: `name:password`.
    pub secret: SecretName,
    /// What browsers say when they ask for the password.
    pub realm: String,
}

/// `Authorization: Bearer` with a token that an issuer has signed; who comes is its `sub`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JwtAuth {
    /// Where the issuer publishes its keys.
    pub jwks: String,
    /// As the token's `iss` says it.
    pub issuer: String,
    /// Whom the token must be for; `None`: anybody whom the issuer serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// Which other origins' pages may read answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Cors {
    pub origins: Origins,
    pub methods: BTreeSet<String>,
    /// Request headers that pages may set, in lower case; empty: whatever they ask for, where no cookies come along.
    #[serde(default)]
    pub headers: BTreeSet<String>,
    /// Answer headers that pages may read.
    #[serde(default)]
    pub expose: BTreeSet<String>,
    pub credentials: WithCredentials,
    #[serde(rename = "max_age_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub max_age: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origins {
    Any,
    /// `https://app.example.com`, each in lower case.
    These(BTreeSet<String>),
}

/// Whether pages of other origins may send cookies along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WithCredentials {
    Refused,
    Allowed,
}

/// How many requests may come. Each is a bucket that fills evenly and holds `burst`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RateLimits {
    /// Of one client: an IPv4 address, or the /64 that an IPv6 address is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_address: Option<Rate>,
    /// Of one API key or person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_key: Option<Rate>,
    /// Of all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Rate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rate {
    pub requests: u32,
    #[serde(rename = "per_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub per: Duration,
    /// So many may come at once after a pause.
    pub burst: u32,
}

/// What becomes of requests that an instance can't do well at once: how many it can, the ingress learns from how long its
/// answers take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Overload {
    /// So many an instance gets at most, however fast it is.
    pub max: u32,
    /// So many wait for room; more are refused.
    pub queue: u32,
    /// So long each waits.
    #[serde(rename = "wait_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub wait: Duration,
}

/// Pages that an app shows instead of Rung's own: HTML by the status that they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pages {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<String>,
    /// For every status without a page of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_status: BTreeMap<u16, String>,
}

impl Pages {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether an app answers with its maintenance page. `rung maintenance` says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Maintenance {
    #[default]
    Off,
    On,
}

impl Maintenance {
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// What tells a key or a password without saying it: made of a secret's lines by the server, for the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verifier {
    /// Of the key or the person; the application is told it.
    pub name: String,
    /// SHA-256 of [`Verifier::salt`] and what is shown (the key, or `name:password`), in hexadecimal.
    pub digest: String,
}

impl Verifier {
    /// One for each version of a secret: nobody can prepare for all of them.
    pub fn salt(app: &AppName, secret: &SecretName, version: u64) -> String {
        format!("rung {app} {secret} {version}\n")
    }

    /// `None`: the digest is none.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        if self.digest.len() != 64 || !self.digest.is_ascii() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&self.digest[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(bytes)
    }
}
