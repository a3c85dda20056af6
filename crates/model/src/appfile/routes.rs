//! Which service gets which requests, and `[[routes]]` as the file writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::DeValue;

use super::error::Findings;
use super::read::{Field, Table, clip};
use super::{AppFile, defaults, gateway, schema, values};
use crate::ids::ServiceName;
use crate::route::{Conditions, Destination, Redirect, Route};

impl AppFile {
    /// Services that listen, in the order of their names.
    pub fn services_with_port(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.iter().filter(|(_, service)| service.port).map(|(name, _)| name)
    }

    /// The service that gets requests when no route is written: `web` when it has a port, else the only one that has.
    pub fn main_service(&self) -> Option<&ServiceName> {
        let mut with_port = self.services_with_port();
        let web = self.services_with_port().find(|name| name.as_str() == "web");
        web.or_else(|| with_port.next().filter(|_| with_port.next().is_none()))
    }

    /// The routes as they hold: those that the file writes, else everything to the main service. None in an app of
    /// workers only.
    pub fn effective_routes(&self) -> Vec<Route> {
        if !self.routes.is_empty() {
            return self.routes.clone();
        }
        let everything = |service: &ServiceName| Route::to_service("/*", service.clone());
        self.main_service().map(everything).into_iter().collect()
    }
}

/// Where the parts of a route stand, for errors that need the whole file.
#[derive(Debug)]
pub(super) struct RoutePlaces {
    pub path: Range<usize>,
    /// Of the service, or the redirect.
    pub to: Range<usize>,
    pub host: Option<Range<usize>>,
    pub auth: Option<Range<usize>>,
    pub compress: Option<Range<usize>>,
    pub overload: Option<Range<usize>>,
}

const EXAMPLE: &str = "[[routes]] with path = \"/*\" and service = \"web\" below it";

pub(super) fn read(top: &Table<'_, '_>, findings: &mut Findings<'_>) -> Vec<(Route, RoutePlaces)> {
    let Some(field) = top.field("routes") else { return Vec::new() };
    let elements = field.elements(findings, EXAMPLE);
    if elements.len() > defaults::ROUTES_MAX {
        let message = format!("more than {} routes", defaults::ROUTES_MAX);
        field.report(findings, message, "let the application do the finer routing");
    }
    let route = |element: &Field<'_, '_>| {
        let table = element.table(&schema::ROUTE, findings, EXAMPLE)?;
        one(&table, findings)
    };
    elements.iter().filter_map(route).collect()
}

fn one(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<(Route, RoutePlaces)> {
    let path_field = table.field("path");
    if path_field.is_none() {
        findings.missing(table.span.clone(), "route has no `path`", "write path = \"/*\"");
    }
    let path =
        path_field.as_ref().and_then(|field| field.parsed(findings, "\"/assets/*\"", values::route_path));
    let is_prefix = path.as_deref().is_none_or(|path| path.ends_with('*'));
    let to = destination(table, is_prefix, findings);
    let when = conditions(table, findings);
    let policy = gateway::read(table, path.as_deref(), findings);
    if let Some((Destination::Redirect(_), at)) = &to {
        gateway::refuse_with_redirect(table, &policy, at.clone(), findings);
    }
    let (to, to_span) = to?;
    let places = RoutePlaces {
        path: path_field.as_ref()?.span.clone(),
        to: to_span,
        host: table.field("host").map(|field| field.span.clone()),
        auth: table.field("auth").map(|field| field.key_span.clone()),
        compress: table.field("compress").map(|field| field.key_span.clone()),
        overload: table.field("overload").map(|field| field.key_span.clone()),
    };
    // With a placeholder the rest is checked, too; the file is refused anyway.
    let path = path.unwrap_or_else(|| format!("/{}", places.path.start));
    Some((Route { path, when, to, policy: Box::new(policy) }, places))
}

fn destination(
    table: &Table<'_, '_>,
    is_prefix: bool,
    findings: &mut Findings<'_>,
) -> Option<(Destination, Range<usize>)> {
    let (service, redirect) = (table.field("service"), table.field("redirect"));
    if let (Some(status), None) = (table.field("status"), &redirect) {
        findings.report(
            status.key_span,
            "`status` is a redirect's, and the route has none",
            "add redirect = \"/new/*\", or take it out",
        );
    }
    match (service, redirect) {
        (None, None) => {
            let way_out = "write service = \"web\", or redirect = \"/new/*\"";
            findings.missing(table.span.clone(), "route has no `service`", way_out);
            None
        }
        (Some(_), Some(redirect)) => {
            let message = "`service` and `redirect` are two places to go";
            findings.report(redirect.key_span, message, "take one of them out");
            None
        }
        (Some(field), None) => {
            let name = service_name(&field, findings)?;
            Some((Destination::Service(name), field.span.clone()))
        }
        (None, Some(field)) => {
            let to = field.parsed(findings, "\"/new/*\"", values::redirect_target)?;
            if to.ends_with('*') && !is_prefix {
                field.report(
                    findings,
                    "the redirect ends with * and the path does not",
                    "take the * out, or write path with one: \"/old/*\"",
                );
            }
            let status = table
                .field("status")
                .map_or(Some(defaults::REDIRECT_STATUS), |field| redirect_status(&field, findings));
            Some((Destination::Redirect(Redirect { to, status: status? }), field.span.clone()))
        }
    }
}

fn service_name(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<ServiceName> {
    let text = field.text(findings, "\"web\"")?;
    match ServiceName::new(text) {
        Ok(name) => Some(name),
        Err(error) => {
            let message = format!("`service = {:?}` is not {}: {}", clip(text), error.what, error.why);
            let slug = super::slug(text);
            let way_out = if slug.is_empty() { "web".to_owned() } else { slug };
            field.report(findings, message, format!("write it like `{way_out}`"));
            None
        }
    }
}

fn redirect_status(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<u16> {
    let status = field.integer(findings, 301..=308)?;
    let status = u16::try_from(status).expect("it is between 301 and 308");
    if matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Some(status);
    }
    let way_out = "write 308 (for ever) or 307 (for now); 301, 302 and 303 turn a POST into a GET";
    field.report(findings, format!("{status} is not a redirect"), way_out);
    None
}

fn conditions(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Conditions {
    let host = table.field("host");
    let methods = table.field("methods");
    let headers = table.field("headers");
    Conditions {
        host: host.and_then(|field| field.parsed(findings, "\"api.example.com\"", values::domain)),
        methods: methods.map(|field| gateway::methods(&field, findings)).unwrap_or_default(),
        headers: headers.map(|field| wanted_headers(&field, findings)).unwrap_or_default(),
    }
}

fn wanted_headers(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> BTreeMap<String, Option<String>> {
    let example = "headers = { X-Api-Version = \"2\" }";
    let mut wanted = BTreeMap::new();
    for entry in field.entries(findings, example) {
        let Some(name) = gateway::header_name(&entry, &entry.key, findings) else { continue };
        let value = match entry.value() {
            DeValue::Boolean(true) => None,
            DeValue::String(_) => match entry.text(findings, "\"2\"") {
                Some(text) => Some(text.to_owned()),
                None => continue,
            },
            _ => {
                let message = format!("`{}` must be a text, or true for any value", clip(&entry.name));
                entry.report(findings, message, format!("write {example}"));
                continue;
            }
        };
        wanted.insert(name.to_ascii_lowercase(), value);
    }
    wanted
}

/// Reports what no request can be told apart by.
pub(super) fn refuse_doubles(routes: &[(&Route, &RoutePlaces)], findings: &mut Findings<'_>) {
    let mut seen: Vec<(&str, &Conditions)> = Vec::new();
    for (route, places) in routes {
        if seen.contains(&(route.path.as_str(), &route.when)) {
            let message = format!("{:?} has a route already", route.path);
            let way_out = if route.when.is_empty() {
                "take one of them out"
            } else {
                "take one of them out, or give it other conditions"
            };
            findings.report(places.path.clone(), message, way_out);
        }
        seen.push((&route.path, &route.when));
    }
}

/// Reports hosts that the app does not answer to.
pub(super) fn refuse_foreign_hosts(
    file: &AppFile,
    routes: &[(&Route, &RoutePlaces)],
    findings: &mut Findings<'_>,
) {
    let known: BTreeSet<&str> = file.domains.iter().map(String::as_str).collect();
    let is_covered = |host: &str| {
        let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        known.contains(host)
            || wildcard.is_some_and(|wildcard| known.contains(wildcard.as_str()))
            // The app's own name, in any environment; what is no host of it never matches.
            || host.ends_with(".localhost")
    };
    for (route, places) in routes {
        if let (Some(host), Some(at)) = (&route.when.host, &places.host)
            && !is_covered(host)
        {
            let message = format!("{host:?} is not one of the app's domains");
            findings.report(at.clone(), message, format!("add it: domains = [{host:?}]"));
        }
    }
}
