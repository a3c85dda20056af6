//! The routing table: from host and path to a service's instances. Immutable; a new one replaces it whole, and shares with it
//! what has not changed.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rung_model::address;
use rung_model::{Absence, AppName, Hold, InstanceId, Protocol, RouteDocument, Split};

use crate::balance::{Registry, ServiceLoad, Target, Tried, pick};
use crate::callers::Callee;
use crate::cluster::Cluster;
use crate::head::Request;
use crate::names::Known;
use crate::overload::Room;
use crate::routing::{AppRoutes, Found};
use crate::slots::SlotSet;
use crate::split::{self, Lot};

mod part;

use part::Part;

/// A service as requests see it.
#[derive(Debug)]
pub(crate) struct Service {
    /// Those of a candidate come last; of both, those on this machine come first.
    pub(crate) targets: Vec<Target>,
    split: Option<Divided>,
    pub(crate) hold: Option<Hold>,
    pub(crate) response_timeout: Duration,
    pub(crate) protocol: Protocol,
    pub(crate) explanation: String,
    pub(crate) absence: Absence,
    pub(crate) load: Arc<ServiceLoad>,
}

/// Why no instance takes one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crowd {
    Full,
    /// All of them fail, and are left alone for a while.
    Broken,
}

/// Two releases side by side.
#[derive(Debug)]
struct Divided {
    rule: Split,
    /// How many targets come before the candidate's.
    others: usize,
}

impl Service {
    /// The target of a request whose visitor has this place; see [`pick`].
    pub(crate) fn pick(&self, lot: Option<&Lot>, tried: &Tried) -> Option<&Target> {
        pick(self.eligible(lot, tried), tried)
    }

    /// The same for visitors who come back to their instance: the one that they name, as long as it takes requests.
    pub(crate) fn pick_again(&self, named: &[u8], lot: Option<&Lot>, tried: &Tried) -> Option<&Target> {
        let eligible = self.eligible(lot, tried);
        let is_it = |target: &&Target| {
            target.weight > 0
                && !tried.contains(target.load.slot)
                && !target.load.is_ejected()
                && split::spelled(split::number_of(target.load.id.as_str())) == *named
        };
        let named = (named.len() == 16).then(|| eligible.iter().find(is_it)).flatten();
        named.or_else(|| pick(eligible, tried))
    }

    /// What may be picked where an instance gets so many at most: everything but those that this adds to the tried ones.
    /// An error: no instance has room.
    pub(crate) fn with_room(&self, lot: Option<&Lot>, tried: &Tried, max: u32) -> Result<Tried, Crowd> {
        let eligible = self.eligible(lot, tried);
        let (mut full, mut crowd) = (Tried::default(), Crowd::Broken);
        for target in eligible {
            match target.load.gauge.room(max) {
                Room::Free => continue,
                Room::Full => crowd = Crowd::Full,
                Room::Broken => {}
            }
            full.add(target.load.slot);
        }
        if full.count() == eligible.len() && !eligible.is_empty() {
            return Err(crowd);
        }
        // Once more to one that was tried rather than to one that is full.
        let is_fresh =
            |target: &Target| !full.contains(target.load.slot) && !tried.contains(target.load.slot);
        if eligible.iter().any(is_fresh) {
            eligible
                .iter()
                .map(|target| target.load.slot)
                .filter(|slot| tried.contains(*slot))
                .for_each(|slot| full.add(slot));
        }
        Ok(full)
    }

    /// The same for callers on this machine: an instance beside them as long as one is well, else any.
    pub(crate) fn pick_near(&self, lot: Option<&Lot>, tried: &Tried) -> Option<&Target> {
        let eligible = self.eligible(lot, tried);
        let near = &eligible[..eligible.partition_point(|target| target.relay.is_none())];
        let is_well = |target: &Target| !tried.contains(target.load.slot) && !target.load.is_ejected();
        let picked = if near.iter().any(is_well) { pick(near, tried) } else { None };
        picked.or_else(|| pick(eligible, tried))
    }

    fn eligible(&self, lot: Option<&Lot>, tried: &Tried) -> &[Target] {
        let Some((split, lot)) = self.split.as_ref().zip(lot) else { return &self.targets };
        let (others, candidates) = self.targets.split_at(split.others);
        let is_tried = |target: &Target| tried.contains(target.load.slot);
        match lot.gets_candidate(&split.rule) {
            // Where the candidate fails the old release stands in; never the other way round.
            true if !candidates.iter().all(is_tried) || others.is_empty() => candidates,
            false if others.is_empty() => candidates,
            _ => others,
        }
    }

    /// The visitor's place, when there are two releases to choose from: the known one, if it is for this split.
    pub(crate) fn draw(&self, known: Option<Lot>, head: &[u8]) -> Option<Lot> {
        let rule = &self.split.as_ref()?.rule;
        let known = known.filter(|lot| lot.is_of(rule));
        Some(known.unwrap_or_else(|| split::draw(rule, &self.load.drawn, head)))
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) version: u64,
    hosts: HashMap<String, Arc<AppRoutes>>,
    /// By what follows the `*`: `.example.com`.
    wildcards: HashMap<String, Arc<AppRoutes>>,
    /// Set when there is exactly one app, other environments aside: it answers to addresses and `localhost` too.
    only: Option<Arc<AppRoutes>>,
    routed: SlotSet,
    /// What each app's document was made into.
    parts: HashMap<AppName, Arc<Part>>,
    /// By the addresses that services have inside the cluster.
    callees: HashMap<Ipv4Addr, Arc<Callee>>,
    /// By the names that they have there; `None` for those that are only the end of others.
    names: HashMap<String, Option<Ipv4Addr>>,
    /// Where instances of this machine listen that get requests, for those of other machines.
    local: HashMap<InstanceId, SocketAddr>,
}

impl Table {
    pub(crate) fn empty() -> Self {
        Self {
            version: 0,
            hosts: HashMap::new(),
            wildcards: HashMap::new(),
            only: None,
            routed: SlotSet::default(),
            parts: HashMap::new(),
            local: HashMap::new(),
            callees: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Builds a table, of what the one `before` has for each document that is still the same: a change of one app costs
    /// what that app costs. Where two apps claim one host the first by name keeps it, so that every proxy agrees.
    pub(crate) fn build(
        version: u64,
        documents: &[Arc<RouteDocument>],
        before: &Self,
        registry: &mut Registry,
        cluster: Option<&Cluster>,
    ) -> Self {
        let mut table = Self { version, ..Self::empty() };
        let mut sorted: Vec<&Arc<RouteDocument>> = documents.iter().collect();
        sorted.sort_by(|a, b| a.app.cmp(&b.app));
        let in_production = sorted.iter().filter(|document| document.app.is_in_production()).count();
        for document in &sorted {
            let known = before.parts.get(&document.app);
            let known = known.filter(|part| Arc::ptr_eq(&part.document, document)).cloned();
            let part = known.unwrap_or_else(|| Arc::new(Part::new(document, registry, cluster)));
            if sorted.len() == 1 || (in_production == 1 && document.app.is_in_production()) {
                table.only = Some(part.routes.clone());
            }
            table.add(part);
        }
        let named: HashSet<&InstanceId> = sorted
            .iter()
            .flat_map(|document| document.backends.values())
            .flat_map(|backend| &backend.draining)
            .map(|endpoint| &endpoint.instance)
            .collect();
        let is_measured = |app: &AppName, cohort| {
            let backends = sorted.iter().filter(|document| document.measured && document.app == *app);
            let endpoints = backends.flat_map(|document| document.backends.values());
            let mut named = endpoints.flat_map(|backend| backend.endpoints.iter().chain(&backend.draining));
            named.any(|endpoint| endpoint.cohort == cohort)
        };
        registry.retain_cohorts(is_measured);
        registry.retain_policies();
        registry.retain_routes();
        registry.retire(|slot| table.routed.contains(&slot), |id| named.contains(id));
        table
    }

    /// Where two apps claim one host the first one added keeps it.
    fn add(&mut self, part: Arc<Part>) {
        let document = &part.document;
        for host in &document.hosts {
            let host = host.to_ascii_lowercase();
            match host.strip_prefix('*') {
                Some(suffix) => self.wildcards.entry(suffix.to_owned()).or_insert(part.routes.clone()),
                None => self.hosts.entry(host).or_insert(part.routes.clone()),
            };
        }
        self.routed.extend(&part.routed);
        self.local.extend(part.local.iter().cloned());
        for (address, callee) in &part.callees {
            // An address is one service's; should a document be older than another, both proxies shall agree all the same.
            self.callees.entry(*address).or_insert(callee.clone());
            self.name(&address::name(&document.app, &callee.name), *address);
        }
        self.parts.insert(document.app.clone(), part);
    }

    fn name(&mut self, name: &str, address: Ipv4Addr) {
        self.names.insert(name.to_owned(), Some(address));
        for (at, _) in name.match_indices('.') {
            self.names.entry(name[at + 1..].to_owned()).or_default();
        }
    }

    pub(crate) fn is_routed(&self, slot: u64) -> bool {
        self.routed.contains(&slot)
    }

    pub(crate) fn local_address(&self, instance: &InstanceId) -> Option<SocketAddr> {
        self.local.get(instance).copied()
    }

    pub(crate) fn callee(&self, address: Ipv4Addr) -> Option<&Callee> {
        self.callees.get(&address).map(|callee| &**callee)
    }

    /// In lower case.
    pub(crate) fn known(&self, name: &str) -> Known {
        match self.names.get(name) {
            Some(Some(address)) => Known::Service(*address),
            Some(None) => Known::Above,
            None => Known::Nothing,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.wildcards.is_empty() && self.only.is_none()
    }

    /// `head` is the request's, as it would go to an instance.
    pub(crate) fn find(&self, request: &Request, head: &[u8]) -> Found<'_> {
        self.app(&request.host).map_or(Found::Nothing, |app| app.find(request, head))
    }

    /// `host` is in lower case, without port.
    pub(crate) fn app(&self, host: &str) -> Option<&AppRoutes> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let app = self.hosts.get(host).or_else(|| self.wildcard(host)).or_else(|| self.only_for(host));
        app.map(|app| &**app)
    }

    fn wildcard(&self, host: &str) -> Option<&Arc<AppRoutes>> {
        let label = host.find('.')?;
        if label == 0 { None } else { self.wildcards.get(&host[label..]) }
    }

    fn only_for(&self, host: &str) -> Option<&Arc<AppRoutes>> {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let fits = host == "localhost" || address.parse::<std::net::IpAddr>().is_ok();
        self.only.as_ref().filter(|_| fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Entry, To};
    use rung_model::{Backend, DeploymentNumber, Endpoint, ReleaseNumber, Route, ServiceName};

    fn document(app: &str, hosts: &[&str], rules: &[(&str, &str)]) -> Arc<RouteDocument> {
        let backend = || Backend {
            endpoints: Vec::new(),
            draining: Vec::new(),
            protocol: Protocol::Http1,
            hold: None,
            response_timeout: Duration::from_secs(30),
            explanation: String::new(),
            absence: Default::default(),
            split: None,
        };
        let service = |name: &str| ServiceName::new(name).unwrap();
        Arc::new(RouteDocument::new(
            AppName::new(app).unwrap(),
            hosts.iter().map(|host| (*host).to_owned()).collect(),
            rules.iter().map(|(path, name)| Route::to_service(*path, service(name))).collect(),
            rules.iter().map(|(_, name)| (service(name), backend())).collect(),
        ))
    }

    fn with_instance(document: &Arc<RouteDocument>, id: &str) -> Arc<RouteDocument> {
        let mut document = RouteDocument::clone(document);
        for backend in document.backends.values_mut() {
            backend.endpoints = vec![Endpoint {
                node: None,
                proxy: None,
                instance: InstanceId::new(id).unwrap(),
                release: ReleaseNumber(1),
                cohort: DeploymentNumber(1),
                address: SocketAddr::from(([127, 0, 0, 1], 9)),
                weight: 1,
            }];
        }
        Arc::new(document)
    }

    fn found(table: &Table, host: &str, path: &str) -> String {
        let request = Request { host: host.to_owned(), path: path.to_owned(), ..Request::default() };
        match table.find(&request, b"") {
            Found::Entry(Entry { to: To::Service(service), .. }) => {
                format!("{}/{}", service.load.app, service.load.name)
            }
            _ => "nothing".into(),
        }
    }

    #[test]
    fn the_most_specific_host_and_path_win() {
        let shop = document(
            "shop",
            &["shop.example.com", "shop.localhost"],
            &[("/*", "web"), ("/api/*", "api"), ("/api/admin/*", "admin"), ("/api/up", "up")],
        );
        let wild = document("wild", &["*.example.com"], &[("/*", "web")]);
        let table = Table::build(1, &[wild, shop], &Table::empty(), &mut Registry::new(), None);
        for (host, path, service) in [
            ("shop.example.com", "/", "shop/web"),
            ("shop.example.com.", "/x", "shop/web"),
            ("shop.localhost", "/api/x", "shop/api"),
            ("shop.localhost", "/api", "shop/api"),
            ("shop.localhost", "/apix", "shop/web"),
            ("shop.localhost", "/api/up", "shop/up"),
            ("shop.localhost", "/api/up/", "shop/api"),
            ("shop.localhost", "/api/admin/x", "shop/admin"),
            ("shop.localhost", "/api/x/../admin/x", "shop/admin"),
            ("shop.localhost", "/%61pi/%61dmin/", "shop/admin"),
            ("shop.localhost", "/api/..", "shop/web"),
            ("shop.localhost", "//api//admin/x", "shop/admin"),
            ("other.example.com", "/", "wild/web"),
            ("a.b.example.com", "/", "nothing"),
            (".example.com", "/", "nothing"),
            ("localhost", "/", "nothing"),
            ("127.0.0.1", "/", "nothing"),
        ] {
            assert_eq!(found(&table, host, path), service, "{host}{path} went elsewhere");
        }
    }

    #[test]
    fn a_lone_app_answers_to_addresses_too_but_not_to_strange_names() {
        let table = Table::build(
            1,
            &[document("shop", &["shop.localhost"], &[("/*", "web")])],
            &Table::empty(),
            &mut Registry::new(),
            None,
        );
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            assert_eq!(found(&table, host, "/"), "shop/web", "{host} did not reach the only app");
        }
        assert_eq!(found(&table, "evil.example.com", "/"), "nothing");
    }

    #[test]
    fn a_change_of_one_app_takes_the_others_over_as_they_are_and_forgets_what_has_gone() {
        let plain = |app: &str| document(app, &[&format!("{app}.localhost")], &[("/*", "web")]);
        let [blog, shop, wiki] =
            ["blog", "shop", "wiki"].map(|app| with_instance(&plain(app), &format!("{app}-1")));
        let mut registry = Registry::new();
        let first =
            Table::build(1, &[blog.clone(), shop.clone(), wiki], &Table::empty(), &mut registry, None);
        let slot = |table: &Table, host: &str| match table.app(host)?.find(&Request::default(), b"") {
            Found::Entry(Entry { to: To::Service(service), .. }) => Some(service.targets.first()?.load.slot),
            _ => None,
        };
        let slots = ["blog", "shop", "wiki"].map(|app| slot(&first, &format!("{app}.localhost")).unwrap());
        let moved = with_instance(&shop, "shop-2");
        let second = Table::build(2, &[blog, moved], &first, &mut registry, None);
        let same = |app: &str| Arc::ptr_eq(&first.hosts[app], &second.hosts[app]);
        assert!(same("blog.localhost"), "what has not changed was made again");
        assert!(!same("shop.localhost"), "what has changed was taken over");
        assert!(second.app("wiki.localhost").is_none(), "an app that has gone is still there");
        let routed = slots.map(|slot| second.is_routed(slot));
        assert_eq!(routed, [true, false, false], "an instance that is not routed any more gets requests");
        assert!(second.is_routed(slot(&second, "shop.localhost").unwrap()));
    }
}
