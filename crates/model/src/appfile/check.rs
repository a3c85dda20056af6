//! What only the whole file shows: keys that contradict each other, names that lead nowhere.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::Findings;
use super::read::nearest;
use super::routes::{self, RoutePlaces};
use super::service::ServicePlaces;
use super::{AppFile, Route, Service};
use crate::ids::{JobName, SecretName, ServiceName};
use crate::routes::Protocol;

/// Where things stand in the text.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub env: BTreeMap<String, Range<usize>>,
    pub secrets: BTreeMap<SecretName, Range<usize>>,
    pub services: BTreeMap<ServiceName, ServicePlaces>,
    pub jobs: BTreeMap<JobName, ServicePlaces>,
    pub routes: Vec<RoutePlaces>,
    pub build_timeout: Option<Range<usize>>,
    pub before_release: Option<Range<usize>>,
    pub release_timeout: Option<Range<usize>>,
}

/// Whether Rung itself sets this variable in every instance.
pub fn is_reserved(name: &str) -> bool {
    name == "PORT" || name.starts_with("RUNG_")
}

pub(super) fn whole(file: &AppFile, places: &Places, findings: &mut Findings<'_>) {
    secrets(file, places, findings);
    timeouts(file, places, findings);
    mounts(file, places, findings);
    routes(file, places, findings);
    main_service(file, places, findings);
}

fn secrets(file: &AppFile, places: &Places, findings: &mut Findings<'_>) {
    for name in &file.required_secrets {
        if let Some(at) = places.env.get(name.as_str()) {
            findings.report(
                at.clone(),
                format!("`{name}` is a required secret, too"),
                "take it out of `[env]`",
            );
        }
    }
}

fn timeouts(file: &AppFile, places: &Places, findings: &mut Findings<'_>) {
    if let Some(at) = &places.build_timeout
        && file.build.is_empty()
    {
        findings.report(
            at.clone(),
            "`timeout` without anything to build",
            "add `command` or `test`, or take it out",
        );
    }
    let about_release =
        [("release_timeout", &places.release_timeout), ("before_release", &places.before_release)];
    for (key, place) in about_release {
        if let Some(at) = place
            && file.deploy.release.is_none()
        {
            let message = format!("`{key}` without a release command");
            findings.report(at.clone(), message, "add `release`, or take it out");
        }
    }
}

fn mounts(file: &AppFile, places: &Places, findings: &mut Findings<'_>) {
    for place in places.services.values().chain(places.jobs.values()) {
        for (volume, at) in &place.mounts {
            if file.volumes.contains_key(volume) {
                continue;
            }
            let way_out = match nearest(volume.as_str(), file.volumes.keys().map(|known| known.as_str())) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("add [volumes.{volume}]"),
            };
            findings.report(at.clone(), format!("volume `{volume}` is not known"), way_out);
        }
    }
}

fn routes(file: &AppFile, places: &Places, findings: &mut Findings<'_>) {
    let routes: Vec<(&Route, &RoutePlaces)> = file.routes.iter().zip(&places.routes).collect();
    routes::refuse_doubles(&routes, findings);
    routes::refuse_foreign_hosts(file, &routes, findings);
    for (route, places) in routes {
        if let Some(secret) = route.policy.secret()
            && !file.required_secrets.contains(secret)
            && let Some(at) = &places.auth
        {
            let message = format!("secret `{secret}` is not required, and without it nobody could come in");
            let way_out = if file.required_secrets.is_empty() {
                format!("add [secrets] with required = [\"{secret}\"]")
            } else {
                format!("add \"{secret}\" to `required` of [secrets]")
            };
            findings.report(at.clone(), message, way_out);
        }
        let Some(name) = route.service() else { continue };
        match file.services.get(name) {
            Some(service) if service.port => refuse_for_http2(service, places, findings),
            Some(_) => findings.report(
                places.to.clone(),
                format!("service `{name}` has no port, so it gets no requests"),
                format!("take `port = false` out of [services.{name}], or route to another service"),
            ),
            None => {
                let known = file.services.keys().map(|known| known.as_str());
                let way_out = match nearest(name.as_str(), known) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => format!("add [services.{name}]"),
                };
                findings.report(places.to.clone(), format!("service `{name}` is not known"), way_out);
            }
        }
    }
}

/// Frames of a service that speaks HTTP/2 are passed on as they are.
fn refuse_for_http2(service: &Service, places: &RoutePlaces, findings: &mut Findings<'_>) {
    if service.protocol == Protocol::H2c
        && let Some(at) = &places.compress
    {
        let message = "answers of h2c services pass as they come: `compress` does nothing for them";
        findings.report(at.clone(), message, "take it out, and compress in the application");
    }
    if service.protocol == Protocol::H2c
        && let Some(at) = &places.overload
    {
        let message = "calls of h2c services may last for hours: `overload` can't judge by them";
        findings.report(at.clone(), message, "take it out, and bound the calls in the application");
    }
}

fn main_service(file: &AppFile, places: &Places, findings: &mut Findings<'_>) {
    let with_port: Vec<&ServiceName> = file.services_with_port().collect();
    let ambiguous = places.routes.is_empty() && file.effective_routes().is_empty() && with_port.len() > 1;
    let Some(second) = with_port.get(1).filter(|_| ambiguous) else { return };
    let names = with_port.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    findings.report(
        places.services.get(*second).map_or(0..0, |places| places.table.clone()),
        format!("{names} have a port, and nothing says which of them gets the requests"),
        "name one of them `web`, write port = false where no requests go, or write [[routes]]",
    );
}
