//! What one app's document is made into, for as long as it stays the same.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rung_model::route::Destination;
use rung_model::{Backend, Endpoint, Inside, InstanceId, RouteDocument, ServiceName};

use super::{Divided, Service};
use crate::balance::{Registry, Target};
use crate::callers::Callee;
use crate::cluster::Cluster;
use crate::policy::Policy;
use crate::routing::{self, AppRoutes, Entry, To};

/// See the module's text. It holds by itself what the registry has for it: a table that takes it over need not ask.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) document: Arc<RouteDocument>,
    pub(super) routes: Arc<AppRoutes>,
    /// The slots of instances that get requests.
    pub(super) routed: Vec<u64>,
    /// By the addresses that services have inside the cluster.
    pub(super) callees: Vec<(Ipv4Addr, Arc<Callee>)>,
    /// Where instances of this machine listen that get requests, for those of other machines.
    pub(super) local: Vec<(InstanceId, SocketAddr)>,
}

impl Part {
    pub(super) fn new(
        document: &Arc<RouteDocument>,
        registry: &mut Registry,
        cluster: Option<&Cluster>,
    ) -> Self {
        let mut services = HashMap::new();
        let mut routed = Vec::new();
        let mut local = Vec::new();
        for (name, backend) in &document.backends {
            let service = service(document, name, backend, registry, cluster);
            routed.extend(service.targets.iter().map(|target| target.load.slot));
            if let Some(cluster) = cluster {
                let here = backend.endpoints.iter().filter(|endpoint| cluster.is_here(endpoint));
                local.extend(here.map(|endpoint| (endpoint.instance.clone(), endpoint.address)));
            }
            services.insert(name.clone(), Arc::new(service));
        }
        Self {
            callees: callees(document, &services, registry),
            routes: Arc::new(rules(document, &services, registry)),
            document: document.clone(),
            routed,
            local,
        }
    }
}

fn service(
    document: &RouteDocument,
    name: &ServiceName,
    backend: &Backend,
    registry: &mut Registry,
    cluster: Option<&Cluster>,
) -> Service {
    let load = registry.service(document.app.as_str(), name.as_str());
    let mut target = |endpoint: &Endpoint| Target {
        address: endpoint.address,
        relay: cluster.and_then(|cluster| cluster.relay(endpoint)).map(Arc::new),
        weight: endpoint.weight,
        load: registry.routed(&endpoint.instance, &load),
        counts: document.measured.then(|| registry.cohort(&document.app, endpoint.cohort)),
    };
    let candidate = backend.split.as_ref().map(|split| split.candidate);
    let is_other = |endpoint: &&Endpoint| Some(endpoint.cohort) != candidate;
    let (others, candidates): (Vec<_>, Vec<_>) = backend.endpoints.iter().partition(is_other);
    let split = backend.split.clone().map(|rule| Divided { rule, others: others.len() });
    let mut targets: Vec<Target> = others.into_iter().chain(candidates).map(&mut target).collect();
    let (first, last) = targets.split_at_mut(split.as_ref().map_or(0, |split| split.others));
    for part in [first, last] {
        part.sort_by_key(|target| target.relay.is_some());
    }
    Service {
        targets,
        split,
        hold: backend.hold,
        response_timeout: backend.response_timeout,
        protocol: backend.protocol,
        explanation: backend.explanation.clone(),
        absence: backend.absence,
        load,
    }
}

fn callees(
    document: &RouteDocument,
    services: &HashMap<ServiceName, Arc<Service>>,
    registry: &mut Registry,
) -> Vec<(Ipv4Addr, Arc<Callee>)> {
    let callee = |(name, inside): (&ServiceName, &Inside)| {
        let callee = Callee {
            app: document.app.clone(),
            name: name.clone(),
            callers: inside.callers.clone(),
            service: services.get(name).cloned(),
            tallied: registry.route(&document.app, format!("{name} (from inside)")),
        };
        (inside.address, Arc::new(callee))
    };
    document.inside.iter().map(callee).collect()
}

fn rules(
    document: &RouteDocument,
    services: &HashMap<ServiceName, Arc<Service>>,
    registry: &mut Registry,
) -> AppRoutes {
    let mut routes = AppRoutes::new(document.maintenance, document.pages.clone());
    for rule in &document.rules {
        let to = match &rule.to {
            Destination::Service(name) => services.get(name).cloned().map_or(To::Nothing, To::Service),
            Destination::Redirect(redirect) => To::Redirect(Arc::new(redirect.clone())),
        };
        let when = (!rule.when.is_empty()).then(|| Box::new(rule.when.clone()));
        let policy = Policy::new(rule, document, registry);
        let tallied = registry.route(&document.app, routing::name(&rule.path, &rule.when));
        routes.add(Entry { path: rule.path.clone(), when, to, policy, tallied });
    }
    routes.sort();
    routes
}
