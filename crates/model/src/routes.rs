//! Route documents: what the ingress needs to know of one app.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::address::Inside;
use crate::appfile::rollout::Share;
use crate::duration;
use crate::generation::Generation;
use crate::ids::{AppName, DeploymentNumber, InstanceId, NodeId, ReleaseNumber, SecretName, ServiceName};
use crate::route::{Maintenance, Pages, Route, Verifier};

/// At `routes/<app>`: whole, with a generation; a proxy refuses an older one.
///
/// As with assignments, the generation is the store's epoch and the revision of the write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RouteDocument {
    pub app: AppName,
    #[serde(default)]
    pub generation: Generation,
    /// Lower-case host names without port, `*.example.com` for any one label in front.
    pub hosts: Vec<String>,
    /// In the order of the app file; the most specific wins.
    pub rules: Vec<Route>,
    pub backends: BTreeMap<ServiceName, Backend>,
    /// How the services are reached from inside the cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inside: BTreeMap<ServiceName, Inside>,
    /// Requests are counted by cohort, and the counts are reported.
    #[serde(default)]
    pub measured: bool,
    #[serde(default, skip_serializing_if = "Pages::is_empty")]
    pub pages: Pages,
    #[serde(default, skip_serializing_if = "Maintenance::is_off")]
    pub maintenance: Maintenance,
    /// The secrets that routes name, by their versions: with a new version the document is a new one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, u64>,
    /// What these secrets hold, so that it can be recognized but not read. Never in the store: the server adds it for
    /// ingresses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verifiers: BTreeMap<SecretName, Vec<Verifier>>,
}

impl RouteDocument {
    /// Routes, and nothing beside them.
    pub fn new(
        app: AppName,
        hosts: Vec<String>,
        rules: Vec<Route>,
        backends: BTreeMap<ServiceName, Backend>,
    ) -> Self {
        Self {
            app,
            generation: Generation::ZERO,
            hosts,
            rules,
            backends,
            inside: BTreeMap::new(),
            measured: false,
            pages: Pages::default(),
            maintenance: Maintenance::Off,
            secrets: BTreeMap::new(),
            verifiers: BTreeMap::new(),
        }
    }
}

/// What a service's instances speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS, from the first byte on: gRPC.
    H2c,
}

impl Protocol {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A service as the ingress sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Backend {
    /// New requests go to these only.
    pub endpoints: Vec<Endpoint>,
    /// Un-routed but not yet stopped: the proxy reports how many requests each still has in flight.
    #[serde(default)]
    pub draining: Vec<Endpoint>,
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// While there is no endpoint: hold requests instead of failing them.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// How long an instance may take until the first byte of its answer.
    #[serde(rename = "response_timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub response_timeout: Duration,
    /// Why there is no endpoint, for the error page; empty when there is one.
    #[serde(default)]
    pub explanation: String,
    /// Whose doing it is that there is no endpoint.
    #[serde(default)]
    pub absence: Absence,
    /// While two releases serve side by side: who gets which.
    #[serde(default)]
    pub split: Option<Split>,
}

/// What it means that a service has no endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Absence {
    /// The application fails: it exits, or passes no check.
    #[default]
    Failing,
    /// As people or Rung want it: scaled to 0, starting, changing hands.
    Intended,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Endpoint {
    pub instance: InstanceId,
    #[schema(value_type = String)]
    pub address: SocketAddr,
    pub release: ReleaseNumber,
    /// The node that it runs on. For a proxy elsewhere `address` means nothing, and `proxy` is the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Where that node's proxy takes requests of other machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub proxy: Option<SocketAddr>,
    /// The deployment that asked for the instance.
    #[serde(default)]
    pub cohort: DeploymentNumber,
    /// Share of new requests relative to the weights of its cohort's other endpoints.
    pub weight: u32,
}

/// Which visitors get the candidate; all others get the other endpoints. Whoever is in a share is in every larger one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Split {
    pub candidate: DeploymentNumber,
    pub share: Share,
    pub by: SplitBy,
    /// Get the candidate whatever the share is.
    #[serde(default)]
    pub testers: Option<Testers>,
}

/// What a visitor is told by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// A cookie that the ingress sets.
    Visitor,
    /// The client's address.
    Address,
    /// Nothing: each request on its own.
    Request,
    /// What the application or a gateway in front of it says. Requests without it are told by [`SplitBy::Visitor`].
    Mark(Mark),
}

/// Where something about a visitor stands in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    Header(String),
    Cookie(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Testers {
    pub mark: Mark,
    /// The value that it must have; `None`: any.
    #[serde(default)]
    pub is: Option<String>,
}

/// Bounds of holding requests while an exclusive service changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Hold {
    pub max_requests: u32,
    #[serde(rename = "max_time_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub max_time: Duration,
}
