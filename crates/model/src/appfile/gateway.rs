//! What a route does with requests and answers on their way: the keys of `[[routes]]` that are no conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::DeValue;

use super::error::Findings;
use super::read::{Field, Table, clip};
use super::{defaults, schema, values};
use crate::ids::SecretName;
use crate::network::Network;
use crate::route::{
    AddressRule, Affinity, ApiKeyAuth, Auth, BasicAuth, Compression, Cors, HeaderChange, JwtAuth, Origins,
    Overload, Rate, RateLimits, RoutePolicy, WithCredentials,
};

pub(super) fn read(table: &Table<'_, '_>, path: Option<&str>, findings: &mut Findings<'_>) -> RoutePolicy {
    let changes = |key: &str, findings: &mut Findings<'_>| {
        table.field(key).map(|field| header_changes(&field, findings)).unwrap_or_default()
    };
    let size = |key: &str, findings: &mut Findings<'_>, bounds| {
        table.field(key).and_then(|field| field.size(findings, bounds))
    };
    let networks = |key: &str, findings: &mut Findings<'_>| {
        table.field(key).map(|field| networks(&field, findings)).unwrap_or_default()
    };
    let sticky = table.field("sticky").and_then(|field| field.boolean(findings)).unwrap_or(false);
    let compress = table.field("compress").and_then(|field| field.boolean(findings)).unwrap_or(false);
    let policy = RoutePolicy {
        rewrite: rewrite(table, path, findings),
        request_headers: changes("request_headers", findings),
        response_headers: changes("response_headers", findings),
        response_timeout: table
            .field("response_timeout")
            .and_then(|field| field.duration(findings, defaults::WORK_BOUNDS)),
        max_body_bytes: size("max_body", findings, defaults::MAX_BODY_BOUNDS),
        max_head_bytes: size("max_head", findings, defaults::MAX_HEAD_BOUNDS),
        affinity: if sticky { Affinity::Cookie } else { Affinity::None },
        compression: if compress { Compression::On } else { Compression::Off },
        addresses: AddressRule { allow: networks("allow", findings), deny: networks("deny", findings) },
        auth: table.field("auth").and_then(|field| auth(&field, findings)),
        cors: table.field("cors").and_then(|field| cors(&field, findings)),
        limit: table.field("limit").and_then(|field| limit(&field, findings)),
        overload: table.field("overload").and_then(|field| overload(&field, findings)),
    };
    refuse_keyless_limit(table, &policy, findings);
    policy
}

/// What is about an application does nothing for a redirect.
pub(super) fn refuse_with_redirect(
    table: &Table<'_, '_>,
    policy: &RoutePolicy,
    at: Range<usize>,
    findings: &mut Findings<'_>,
) {
    let rewrites = if table.field("rewrite").is_some() { "rewrite" } else { "strip" };
    let without_meaning = [
        (rewrites, policy.rewrite.is_some()),
        ("request_headers", !policy.request_headers.is_empty()),
        ("response_timeout", policy.response_timeout.is_some()),
        ("sticky", policy.affinity == Affinity::Cookie),
        ("compress", policy.compression == Compression::On),
        ("overload", policy.overload.is_some()),
    ];
    for (key, is_there) in without_meaning {
        if is_there {
            let message = format!("`{key}` is about an application, and the route is a redirect");
            findings.report(at.clone(), message, format!("take `{key}` or `redirect` out"));
        }
    }
}

/// `strip = true` is the most usual rewriting, by a name of its own.
fn rewrite(table: &Table<'_, '_>, path: Option<&str>, findings: &mut Findings<'_>) -> Option<String> {
    let strip = table.field("strip").filter(|field| field.boolean(findings).unwrap_or(false));
    let rewrite = table.field("rewrite");
    let is_prefix = path.is_none_or(|path| path.ends_with('*'));
    if let (Some(strip), Some(_)) = (&strip, &rewrite) {
        let way_out = "take `strip` out: `rewrite` says what comes instead";
        findings.report(strip.key_span.clone(), "`strip` and `rewrite` are two ways to rewrite", way_out);
    }
    if let Some(field) = rewrite {
        let to = field.parsed(findings, "\"/v2/*\"", values::route_path)?;
        if to.ends_with('*') != is_prefix {
            let message = "`rewrite` and `path` must both end with /*, or neither";
            field.report(findings, message, "write path = \"/api/*\" and rewrite = \"/v2/*\"");
        }
        return Some(to);
    }
    let strip = strip?;
    if !is_prefix {
        let message = "`strip` takes away what stands before a *, and the path has none";
        findings.report(
            strip.key_span,
            message,
            "write rewrite = \"/\" to give the application another path",
        );
    }
    Some("/*".to_owned())
}

pub(super) fn methods(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> BTreeSet<String> {
    let example = "[\"GET\", \"POST\"]";
    refuse_empty(field, example, findings);
    let mut methods = BTreeSet::new();
    for element in field.elements(findings, &format!("{} = {example}", field.key)) {
        let Some(text) = element.text(findings, example) else { continue };
        let method = text.to_ascii_uppercase();
        if method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
            methods.insert(method);
        } else {
            element.report(findings, format!("{:?} is not a method", clip(text)), "write it like \"GET\"");
        }
    }
    methods
}

/// Nobody can tell whether an empty list was to mean everything or nothing.
fn refuse_empty(field: &Field<'_, '_>, example: &str, findings: &mut Findings<'_>) {
    if matches!(field.value(), DeValue::Array(elements) if elements.is_empty()) {
        let message = format!("`{}` is an empty list", clip(&field.name));
        field.report(findings, message, format!("write {} = {example}, or take it out", field.key));
    }
}

/// A name that may stand in front of a `:`.
pub(super) fn header_name(field: &Field<'_, '_>, text: &str, findings: &mut Findings<'_>) -> Option<String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if (1..=defaults::HEADER_NAME_MAX).contains(&text.len()) && text.bytes().all(is_token) {
        return Some(text.to_owned());
    }
    let message = format!("`{}` is not the name of a header", clip(text));
    findings.report(field.key_span.clone(), message, "write it like X-Frame-Options");
    None
}

/// Where a message ends, who it is for and whom it comes from are not for the file to say.
const FRAMING: [&str; 15] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "keep-alive",
    "te",
    "trailer",
    "expect",
    "proxy-connection",
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-rung-caller",
];

/// Applications behind WSGI take `_` for `-`.
fn is_rungs_own(name: &str) -> bool {
    FRAMING.contains(&name.to_ascii_lowercase().replace('_', "-").as_str())
}

fn header_changes(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> BTreeMap<String, HeaderChange> {
    let example = format!("{} = {{ X-Frame-Options = \"DENY\", Server = false }}", field.key);
    let mut changes = BTreeMap::new();
    for entry in field.entries(findings, &example) {
        let Some(name) = header_name(&entry, &entry.key, findings) else { continue };
        if is_rungs_own(&name) {
            let message = format!("`{name}` is set by Rung itself");
            findings.report(entry.key_span.clone(), message, "take it out");
            continue;
        }
        let change = match entry.value() {
            DeValue::Boolean(false) => HeaderChange::Remove,
            DeValue::String(text) if is_header_value(text) => HeaderChange::Set(text.to_string()),
            DeValue::String(_) => {
                let message = format!("`{}` has line breaks or control characters in it", clip(&entry.name));
                entry.report(findings, message, "write it in one line");
                continue;
            }
            _ => {
                let message = format!("`{}` must be a text, or false to take it away", clip(&entry.name));
                entry.report(findings, message, format!("write {example}"));
                continue;
            }
        };
        changes.insert(name, change);
    }
    changes
}

fn is_header_value(text: &str) -> bool {
    text.len() <= defaults::HEADER_VALUE_MAX && !text.chars().any(char::is_control)
}

fn networks(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Vec<Network> {
    let example = "[\"10.0.0.0/8\", \"2001:db8::1\"]";
    refuse_empty(field, example, findings);
    let elements = field.elements(findings, &format!("{} = {example}", field.key));
    if elements.len() > defaults::NETWORKS_MAX {
        let message = format!("more than {} networks", defaults::NETWORKS_MAX);
        field.report(findings, message, "write larger networks, or keep such a list in a firewall");
    }
    let mut networks = Vec::new();
    for element in elements {
        let Some(text) = element.text(findings, example) else { continue };
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(error) => {
                let message = format!("`{}`: {error}", field.key);
                element.report(findings, message, format!("write it like {example}"));
            }
        }
    }
    networks
}

const AUTH_EXAMPLE: &str = "auth = { api_key = \"API_KEYS\" }";

fn auth(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<Auth> {
    let table = field.table(&schema::AUTH, findings, AUTH_EXAMPLE)?;
    let ways: Vec<Field<'_, '_>> =
        ["api_key", "basic", "jwt"].into_iter().filter_map(|key| table.field(key)).collect();
    let [way, others @ ..] = ways.as_slice() else {
        let message = "`auth` does not say how to ask";
        findings.missing(table.span.clone(), message, format!("write {AUTH_EXAMPLE}"));
        return None;
    };
    if let [other, ..] = others {
        let message = format!("`{}` and `{}` are two ways to ask", way.key, other.key);
        findings.report(other.key_span.clone(), message, "a route has one: take the others out");
        return None;
    }
    for (key, owner) in [("header", "api_key"), ("realm", "basic"), ("issuer", "jwt"), ("audience", "jwt")] {
        if let Some(field) = table.field(key).filter(|_| way.key != owner) {
            findings.report(field.key_span, format!("`{key}` belongs to `{owner}`"), "take it out");
        }
    }
    let text = |key: &str, findings: &mut Findings<'_>| {
        table.field(key)?.text(findings, "\"https://id.example.com\"").map(str::to_owned)
    };
    Some(match way.key.as_str() {
        "api_key" => {
            let header = table.field("header").and_then(|field| {
                let text = field.text(findings, "\"X-Api-Key\"")?;
                let name = header_name(&field, text, findings)?;
                if is_rungs_own(&name) || name.eq_ignore_ascii_case("cookie") {
                    // The application does not get the key, and would not get these.
                    let message = format!("`{name}` says other things than a key");
                    field.report(findings, message, "write a name of its own: header = \"X-Api-Key\"");
                }
                Some(name)
            });
            let header = header.map(|name| name.to_ascii_lowercase());
            Auth::ApiKey(ApiKeyAuth { secret: secret(way, "API_KEYS", findings)?, header })
        }
        "basic" => {
            let realm = table.field("realm").and_then(|field| realm(&field, findings));
            let realm = realm.unwrap_or_else(|| defaults::REALM.to_owned());
            Auth::Basic(BasicAuth { secret: secret(way, "STAFF", findings)?, realm })
        }
        _ => {
            let (issuer, audience) = (text("issuer", findings), text("audience", findings));
            if table.field("issuer").is_none() {
                let message = "`jwt` without `issuer`";
                findings.missing(table.span.clone(), message, "write issuer as the tokens' `iss` has it");
            }
            let example = "\"https://id.example.com/keys.json\"";
            let jwks = way.parsed(findings, example, |text| {
                values::web_address(text).map_err(|error| error.with_example(example))
            });
            Auth::Jwt(JwtAuth { jwks: jwks?, issuer: issuer?, audience })
        }
    })
}

fn realm(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<String> {
    let text = field.text(findings, "\"staff only\"")?;
    if is_header_value(text) && text.is_ascii() && !text.contains(['"', '\\']) {
        return Some(text.to_owned());
    }
    let message = "`realm` has characters in it that a browser is not sent";
    field.report(findings, message, "write plain letters: \"staff only\"");
    None
}

fn secret(field: &Field<'_, '_>, example: &str, findings: &mut Findings<'_>) -> Option<SecretName> {
    let text = field.text(findings, &format!("{example:?}"))?;
    match SecretName::new(text) {
        Ok(name) => Some(name),
        Err(error) => {
            // The text may be the key itself: it is not repeated.
            let message = format!("`{}` is not {}: {}", field.key, error.what, error.why);
            let way_out = format!("name a secret, like {example:?}, whose value `rung secret set` sets");
            field.report(findings, message, way_out);
            None
        }
    }
}

fn cors(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<Cors> {
    let example = "cors = { origins = [\"https://app.example.com\"] }";
    let table = field.table(&schema::CORS, findings, example)?;
    let Some(origins) = table.field("origins") else {
        findings.missing(table.span.clone(), "`cors` has no `origins`", format!("write {example}"));
        return None;
    };
    let origins = origins_of(&origins, findings);
    let names = |key: &str, findings: &mut Findings<'_>| {
        table.field(key).map(|field| header_names(&field, findings)).unwrap_or_default()
    };
    let credentials = table.field("credentials");
    let with = credentials.as_ref().and_then(|field| field.boolean(findings)).unwrap_or(false);
    if let (true, Origins::Any, Some(field)) = (with, &origins, &credentials) {
        let message = "any page could act in a visitor's name: `credentials` with origins = [\"*\"]";
        findings.report(field.key_span.clone(), message, "list the origins that may");
    }
    let methods = table.field("methods").map(|field| methods(&field, findings));
    let max_age =
        table.field("max_age").and_then(|field| field.duration(findings, defaults::CORS_AGE_BOUNDS));
    Some(Cors {
        origins,
        methods: methods
            .unwrap_or_else(|| defaults::CORS_METHODS.iter().map(|method| (*method).to_owned()).collect()),
        headers: names("headers", findings),
        expose: names("expose", findings),
        credentials: if with { WithCredentials::Allowed } else { WithCredentials::Refused },
        max_age: max_age.unwrap_or(defaults::CORS_AGE),
    })
}

fn origins_of(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Origins {
    let example = "[\"https://app.example.com\"]";
    refuse_empty(field, example, findings);
    let mut origins = BTreeSet::new();
    let mut is_any = false;
    for element in field.elements(findings, &format!("origins = {example}")) {
        if matches!(element.value(), DeValue::String(text) if text == "*") {
            is_any = true;
        } else if let Some(origin) = element.parsed(findings, example, values::origin) {
            origins.insert(origin);
        }
    }
    if is_any { Origins::Any } else { Origins::These(origins) }
}

fn header_names(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> BTreeSet<String> {
    let example = "[\"Content-Type\"]";
    let mut names = BTreeSet::new();
    for element in field.elements(findings, &format!("{} = {example}", field.key)) {
        let Some(text) = element.text(findings, example) else { continue };
        names.extend(header_name(&element, text, findings).map(|name| name.to_ascii_lowercase()));
    }
    names
}

fn limit(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<RateLimits> {
    let example = "limit = { per_address = \"10/s\" }";
    let table = field.table(&schema::LIMIT, findings, example)?;
    let burst = table.field("burst").and_then(|field| {
        let burst = field.integer(findings, defaults::BURST_BOUNDS)?;
        Some(u32::try_from(burst).expect("it is within BURST_BOUNDS"))
    });
    let rate = |key: &str, findings: &mut Findings<'_>| {
        let (requests, per) = table.field(key)?.parsed(findings, "\"10/s\"", values::rate)?;
        // As many as come in a second, but never none: pages load in bursts.
        let second = u64::from(requests) * 1000 / u64::try_from(per.as_millis()).unwrap_or(u64::MAX).max(1);
        let usual = u32::try_from(second).unwrap_or(u32::MAX).max(defaults::BURST_MIN.min(requests));
        Some(Rate { requests, per, burst: burst.unwrap_or(usual) })
    };
    let limits = RateLimits {
        per_address: rate("per_address", findings),
        per_key: rate("per_key", findings),
        total: rate("total", findings),
    };
    if ["per_address", "per_key", "total"].iter().all(|key| table.field(key).is_none()) {
        findings.missing(table.span.clone(), "`limit` limits nothing", format!("write {example}"));
        return None;
    }
    Some(limits)
}

fn overload(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<Overload> {
    let table = field.table(&schema::OVERLOAD, findings, "overload = { queue = 100, wait = \"1s\" }")?;
    let number = |key: &str, bounds, findings: &mut Findings<'_>| {
        let number = table.field(key)?.integer(findings, bounds)?;
        Some(u32::try_from(number).expect("the bounds are within u32"))
    };
    let max = number("max", defaults::OVERLOAD_MAX_BOUNDS, findings);
    let queue = number("queue", defaults::OVERLOAD_QUEUE_BOUNDS, findings);
    let wait = table.field("wait").and_then(|field| field.duration(findings, defaults::WAIT_BOUNDS));
    Some(Overload {
        max: max.unwrap_or(defaults::OVERLOAD_MAX),
        queue: queue.unwrap_or(defaults::OVERLOAD_QUEUE),
        wait: wait.unwrap_or(defaults::OVERLOAD_WAIT),
    })
}

fn refuse_keyless_limit(table: &Table<'_, '_>, policy: &RoutePolicy, findings: &mut Findings<'_>) {
    let per_key = policy.limit.as_ref().is_some_and(|limit| limit.per_key.is_some());
    if let (true, None, Some(field)) = (per_key, &policy.auth, table.field("limit"))
        && table.field("auth").is_none()
    {
        let message = "`per_key` counts who shows a key, and nobody is asked for one";
        field.report(findings, message, format!("add {AUTH_EXAMPLE}, or count by per_address"));
    }
}
