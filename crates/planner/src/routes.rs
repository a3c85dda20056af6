//! Which instances get requests.
//!
//! Wanted instances are routed as soon as they are healthy. Others go on being routed only as far as the wanted ones
//! that every proxy follows do not make up the count yet; then they are named as draining until they are told to stop.
//!
//! While a canary's step gives a part of the visitors to the new release, both are routed, and a [`Split`] says who gets
//! which. Blue and green change places in one document.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use rung_model::appfile::{AppFile, Service};
use rung_model::{
    Absence, AppName, Backend, Endpoint, InstanceId, InstanceState, Intent, MakingWay, Phase, Release,
    ReleaseNumber, Route, RouteDocument, SecretName, ServiceName, Split,
};

use crate::addresses;
use crate::course::{self, Changeover, Target};
use crate::draft::Draft;
use crate::fleet::{Member, Routing};
use crate::reconcile::{Kinds, aimed_count, kinds, service_aim, services};

/// Every endpoint's share of the requests to its cohort.
const WEIGHT: u32 = 100;

/// Writes the app's route document when it is not as it shall be.
pub fn publish_routes(draft: &mut Draft<'_>, app: &AppName) {
    let held = draft.route_document(app);
    let wished = document(draft, app, held);
    if wished.as_ref() != held {
        draft.publish(app, wished);
    }
}

fn document(draft: &Draft<'_>, app: &AppName, held: Option<&RouteDocument>) -> Option<RouteDocument> {
    let file = routing_file(draft, app);
    let mut backends = BTreeMap::new();
    for service in services(draft, app).into_iter().filter(|service| may_be_routed(draft, app, service)) {
        let kinds = kinds(draft, app, &service);
        if let Some(backend) = backend(draft, app, &service, &kinds) {
            backends.insert(service, backend);
        }
    }
    if file.is_none() && backends.is_empty() {
        return None;
    }
    let measured = is_measured(draft, app);
    let (hosts, rules) =
        file.map_or_else(Default::default, |file| (hosts(app, file), file.effective_routes()));
    Some(RouteDocument {
        app: app.clone(),
        generation: held.map(|held| held.generation).unwrap_or_default(),
        hosts,
        secrets: routing_secrets(draft, app, &rules),
        rules,
        inside: addresses::inside(draft, app),
        backends,
        measured,
        pages: file.map(|file| file.pages.clone()).unwrap_or_default(),
        maintenance: draft.app(app).maintenance,
        verifiers: BTreeMap::new(),
    })
}

/// Whether any release of it that is there or shall be has a port.
fn may_be_routed(draft: &Draft<'_>, app: &AppName, service: &ServiceName) -> bool {
    let has_port = |release: ReleaseNumber| {
        let file = draft.release(app, release).map(|release| &release.file);
        file.and_then(|file| file.services.get(service)).is_some_and(|declared| declared.port)
    };
    let mut last = None;
    let aimed = service_aim(draft, app, service).map(|aim| aim.release);
    let releases = draft.instances_of(app, service).map(|(_, placement)| placement.release);
    // Thousands may be of the same one.
    aimed
        .into_iter()
        .chain(releases)
        .any(|release| last.replace(release) != Some(release) && has_port(release))
}

/// Hosts and rules are the live release's; a first deployment's are its own. They change when it has succeeded.
fn routing_file<'a>(draft: &'a Draft<'_>, app: &AppName) -> Option<&'a AppFile> {
    routing_release(draft, app).map(|release| &release.file)
}

pub(crate) fn routing_release<'a>(draft: &'a Draft<'_>, app: &AppName) -> Option<&'a Release> {
    let record = draft.app(app);
    if record.destroying.is_some() {
        return None;
    }
    let rolling = draft.deployment(app).filter(|deployment| deployment.phase == Phase::Rolling);
    let number = record.current.or_else(|| rolling.and_then(|deployment| deployment.release))?;
    draft.release(app, number)
}

/// Whether anybody judges the app's releases: those that serve, or come, say by what.
fn is_measured(draft: &Draft<'_>, app: &AppName) -> bool {
    let record = draft.app(app);
    let rolling = draft.deployment(app).filter(|deployment| deployment.phase == Phase::Rolling);
    let releases = [record.current, rolling.and_then(|deployment| deployment.release)];
    let files = releases.into_iter().flatten().filter_map(|number| draft.release(app, number));
    record.destroying.is_none()
        && files.into_iter().any(|release| release.file.deploy.rollout.abort_if.is_some())
}

/// Where an app is reached.
pub(crate) fn hosts(app: &AppName, file: &AppFile) -> Vec<String> {
    let mut hosts = vec![app.host()];
    hosts.extend(file.domains.iter().cloned());
    hosts
}

/// The versions, of the release whose routes these are, of the secrets that they name.
fn routing_secrets(draft: &Draft<'_>, app: &AppName, rules: &[Route]) -> BTreeMap<SecretName, u64> {
    let named = rules.iter().filter_map(|route| route.policy.secret());
    let Some(release) = routing_release(draft, app) else { return BTreeMap::new() };
    named.filter_map(|name| Some((name.clone(), *release.secrets.get(name)?))).collect()
}

fn backend(draft: &Draft<'_>, app: &AppName, service: &ServiceName, kinds: &Kinds) -> Option<Backend> {
    let aimed = crate::reconcile::declared(draft, app, service_aim(draft, app, service), service);
    let declared = declaration(draft, app, aimed.as_ref(), service, kinds)?;
    let desired = match aimed.as_ref().filter(|aimed| aimed.port) {
        Some(aimed) => aimed_count(draft, app, service, aimed, course::target(draft, app)),
        // It goes with the success of the deployment that has it no more.
        None => kinds.standby.len() as u32,
    };
    let endpoints = endpoints(draft, app, kinds, desired as usize);
    let named: LazyCell<BTreeSet<&InstanceId>, _> =
        LazyCell::new(|| endpoints.iter().map(|endpoint| &endpoint.instance).collect());
    let others = kinds.standby.iter().chain(&kinds.warm).chain(&kinds.leaving);
    let draining = others
        .filter(|member| member.intent == Intent::Run && member.routing != Routing::Absent)
        .filter(|member| !named.contains(&member.id))
        .filter_map(|member| endpoint(draft, member))
        .collect();
    let (absence, explanation) =
        if endpoints.is_empty() { explain(service, kinds, desired) } else { Default::default() };
    let hopeless = kinds
        .wanted
        .iter()
        .any(|member| matches!(member.state(), InstanceState::CrashLooping | InstanceState::Failed));
    let split = split(draft, app, &endpoints);
    Some(Backend {
        endpoints,
        draining,
        protocol: declared.protocol,
        hold: (kinds.exclusive && !hopeless && desired > 0).then_some(declared.hold),
        response_timeout: declared.response_timeout,
        explanation,
        absence,
        split,
    })
}

/// Who gets requests now.
fn endpoints(draft: &Draft<'_>, app: &AppName, kinds: &Kinds, desired: usize) -> Vec<Endpoint> {
    let mut new: Vec<Endpoint> = kinds.wanted.iter().filter_map(|member| routable(draft, member)).collect();
    if kinds.exclusive {
        return new;
    }
    let old = || {
        kinds
            .standby
            .iter()
            .filter(|member| member.intent == Intent::Run)
            .filter_map(|member| routable(draft, member))
    };
    match course::target(draft, app) {
        // Should the old ones have died, the new ones are better than nothing.
        Some(Target::Ready) if old().next().is_some() => old().collect(),
        Some(Target::Part(_)) => new.into_iter().chain(old()).collect(),
        Some(Target::Everybody(Changeover::AtOnce)) if new.len() >= desired => new,
        _ => {
            new.extend(still_needed(draft, app, kinds, desired));
            new
        }
    }
}

/// The share of a canary's step, as long as instances of both releases are routed; while it is reverted, too.
fn split(draft: &Draft<'_>, app: &AppName, endpoints: &[Endpoint]) -> Option<Split> {
    let deployment = draft.deployment(app)?;
    let candidate = deployment.number;
    let is_under_way = matches!(deployment.phase, Phase::Rolling | Phase::Reverting);
    let is_both = endpoints.iter().any(|endpoint| endpoint.cohort == candidate)
        && endpoints.iter().any(|endpoint| endpoint.cohort != candidate);
    let Target::Part(share) = course::step(draft, app, deployment).0.target else { return None };
    let policy = course::policy(draft, app, deployment).filter(|_| is_under_way && is_both)?;
    Some(Split { candidate, share, by: policy.split.clone(), testers: policy.testers.clone() })
}

/// What the aimed-at release says of a service with a port; for one that it has no more, or whose port it took away,
/// what the release of the instances that are left says.
fn declaration(
    draft: &Draft<'_>,
    app: &AppName,
    aimed: Option<&Service>,
    service: &ServiceName,
    kinds: &Kinds,
) -> Option<Service> {
    let with_port = |declared: &&Service| declared.port;
    aimed.filter(with_port).cloned().or_else(|| {
        let mut left = kinds.standby.iter().chain(&kinds.leaving);
        left.find_map(|member| {
            let declared = draft.release(app, member.release)?.file.services.get(service)?;
            Some(declared).filter(with_port).cloned()
        })
    })
}

/// Instances of the old cohort that the new one does not stand in for yet.
///
/// A routed one stays until a wanted one that every proxy follows takes its place, all of them when the new release
/// wants fewer; a standby comes back when too few of the wanted are healthy.
fn still_needed(draft: &Draft<'_>, app: &AppName, kinds: &Kinds, desired: usize) -> Vec<Endpoint> {
    let acknowledged = draft.routes_acknowledged(app);
    let healthy = kinds.wanted.iter().filter(|member| member.is_healthy());
    let standing_in =
        healthy.clone().filter(|member| acknowledged && member.routing == Routing::Routed).count();
    let standby = kinds.standby.iter().map(|member| (member, true));
    let (routed, warm): (Vec<_>, Vec<_>) = standby
        .chain(kinds.leaving.iter().map(|member| (member, false)))
        .filter(|(member, _)| {
            let makes_way = matches!(member.making_way.as_deref(), Some(MakingWay::Displaced { .. }));
            member.intent == Intent::Run && !makes_way && !draft.known(member.at).is_forced_out
        })
        .partition(|(member, _)| member.routing == Routing::Routed);
    let kept =
        if standing_in < desired { desired.max(kinds.standby.len()).saturating_sub(standing_in) } else { 0 };
    let mut needed: Vec<Endpoint> =
        routed.into_iter().filter_map(|(member, _)| routable(draft, member)).take(kept).collect();
    let short_by = desired.saturating_sub(healthy.count() + needed.len());
    let standby = warm.into_iter().filter(|(_, is_standby)| *is_standby);
    needed.extend(standby.filter_map(|(member, _)| routable(draft, member)).take(short_by));
    needed
}

fn routable(draft: &Draft<'_>, member: &Member) -> Option<Endpoint> {
    if member.is_healthy() { endpoint(draft, member) } else { None }
}

fn endpoint(draft: &Draft<'_>, member: &Member) -> Option<Endpoint> {
    let address = member.endpoint?;
    Some(Endpoint {
        instance: member.id.clone(),
        address,
        release: member.release,
        cohort: member.cohort,
        node: Some(member.node.clone()),
        proxy: draft.known(member.at).proxy,
        weight: WEIGHT,
    })
}

/// For the error page: why nobody can answer.
fn explain(service: &ServiceName, kinds: &Kinds, desired: u32) -> (Absence, String) {
    if desired == 0 {
        return (Absence::Intended, format!("{service} is scaled to 0 instances"));
    }
    let count = |wanted: &[InstanceState]| {
        kinds.wanted.iter().filter(|member| wanted.contains(&member.state())).count()
    };
    let looping = count(&[InstanceState::CrashLooping, InstanceState::Failed]);
    if looping > 0 {
        let text = format!("{looping} of {desired} instances of {service} exit again and again");
        return (Absence::Failing, text);
    }
    let starting = count(&[InstanceState::Preparing, InstanceState::Starting, InstanceState::BackingOff]);
    if starting > 0 || kinds.wanted.is_empty() {
        let handoff = if kinds.exclusive { "is changing hands" } else { "is starting" };
        // One that exits and is about to be started again has failed; one that is starting has not.
        let backs_off = count(&[InstanceState::BackingOff]) == starting && starting > 0;
        let absence = if backs_off { Absence::Failing } else { Absence::Intended };
        return (absence, format!("{service} {handoff}"));
    }
    (Absence::Failing, format!("no instance of {service} passes its health checks"))
}
