//! One `[services.<name>]`, with its health check, its holding of requests and its mounts.

use std::collections::BTreeMap;
use std::ops::Range;

use super::defaults;
use super::error::Findings;
use super::read::{Field, Table, clip};
use super::schema;
use super::{Check, Health, Service, place, values};
use crate::ids::{AppName, VolumeName};
use crate::routes::{Hold, Protocol};

/// Where the keys of a service stand, for errors that need the whole file.
#[derive(Debug, Default)]
pub(super) struct ServicePlaces {
    pub table: Range<usize>,
    pub mounts: BTreeMap<VolumeName, Range<usize>>,
}

pub(super) fn read(
    table: &Table<'_, '_>,
    runs: Runs,
    findings: &mut Findings<'_>,
) -> (Service, ServicePlaces) {
    let (port, image_port) = port(table, runs, findings);
    let exclusive = table.field("exclusive").and_then(|field| field.boolean(findings)).unwrap_or(false);
    let (mounts, places) = mounts(table, findings);
    let service = Service {
        command: command(table, runs, findings),
        port,
        image_port,
        instances: instances(table, exclusive, findings),
        exclusive,
        memory_bytes: table.field("memory").and_then(|field| field.size(findings, defaults::MEMORY_BOUNDS)),
        cpu_millis: table.field("cpu").and_then(|field| field.cores(findings, defaults::CPU_BOUNDS)),
        health: health(table, port, runs, findings),
        drain: wait(table, "drain", findings).unwrap_or(defaults::DRAIN),
        stop_grace: wait(table, "stop_grace", findings).unwrap_or(defaults::STOP_GRACE),
        response_timeout: response_timeout(table, findings),
        protocol: protocol(table, findings),
        hold: hold(table, findings),
        mounts,
        place: place::read(table, exclusive, findings),
        allow: allow(table, findings),
    };
    refuse_contradictions(table, port, exclusive, findings);
    refuse_page_check(table, &service, findings);
    (service, places)
}

/// What the services of the file are copies of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runs {
    Tree,
    Image,
}

fn command(table: &Table<'_, '_>, runs: Runs, findings: &mut Findings<'_>) -> Option<String> {
    match table.field("command") {
        Some(field) => field.text(findings, "\"bin/server\"").map(str::to_owned),
        None if runs == Runs::Image => None,
        None => {
            let message = format!("`{}` has no command", clip(&table.name));
            findings.missing(table.span.clone(), message, "write command = \"bin/server\"");
            None
        }
    }
}

/// Whether it has one, and the number where an image listens on a port of its own choice.
fn port(table: &Table<'_, '_>, runs: Runs, findings: &mut Findings<'_>) -> (bool, Option<u16>) {
    let Some(field) = table.field("port") else { return (true, None) };
    if !matches!(field.value(), toml::de::DeValue::Integer(_)) {
        return (field.boolean(findings).unwrap_or(true), None);
    }
    if runs == Runs::Tree {
        field.report(
            findings,
            "`port` is true or false: which port it is, a service finds in $PORT",
            "take it out, and make the service listen on $PORT",
        );
        return (true, None);
    }
    let number = field.integer(findings, 1..=i64::from(u16::MAX));
    (true, number.and_then(|number| u16::try_from(number).ok()))
}

fn instances(table: &Table<'_, '_>, exclusive: bool, findings: &mut Findings<'_>) -> u32 {
    let Some(field) = table.field("instances") else { return defaults::INSTANCES };
    if place::is_per_node(&field) {
        return defaults::INSTANCES;
    }
    if matches!(field.value(), toml::de::DeValue::Table(_)) {
        let message = "`instances` with `min` and `max` does not work yet";
        field.report(findings, message, "write a number, and change it with `rung scale`");
        return defaults::INSTANCES;
    }
    if matches!(field.value(), toml::de::DeValue::String(_)) {
        let message = format!("`{}.instances` must be a whole number, not a text", clip(&table.name));
        field.report(
            findings,
            message,
            "write instances = 2, or instances = \"per-node\" for one on each node",
        );
        return defaults::INSTANCES;
    }
    let Some(count) = field.integer(findings, 0..=i64::from(defaults::INSTANCES_MAX)) else {
        return defaults::INSTANCES;
    };
    if exclusive && count > 1 {
        field.report(
            findings,
            format!("`{}` is exclusive and has {count} instances", clip(&table.name)),
            "an exclusive service has one instance: take `exclusive` or `instances` out",
        );
    }
    u32::try_from(count).expect("it is within 0 and INSTANCES_MAX")
}

fn wait(table: &Table<'_, '_>, key: &str, findings: &mut Findings<'_>) -> Option<std::time::Duration> {
    table.field(key)?.duration(findings, defaults::WAIT_BOUNDS)
}

fn response_timeout(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> std::time::Duration {
    let field = table.field("response_timeout");
    field
        .and_then(|field| field.duration(findings, defaults::WORK_BOUNDS))
        .unwrap_or(defaults::RESPONSE_TIMEOUT)
}

fn protocol(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Protocol {
    let Some(field) = table.field("protocol") else { return Protocol::Http1 };
    match field.text(findings, "\"h2c\"") {
        Some("h2c") => Protocol::H2c,
        Some("http1") | None => Protocol::Http1,
        Some(other) => {
            let message = format!("`{}` is not a protocol", clip(other));
            let way_out = "write \"http1\" (WebSocket included) or \"h2c\" (HTTP/2 without TLS: gRPC)";
            field.report(findings, message, way_out);
            Protocol::Http1
        }
    }
}

/// Apps are recognized by the users that they run as, which the services of one share.
fn allow(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Vec<AppName> {
    let mut allowed = Vec::new();
    let Some(field) = table.field("allow") else { return allowed };
    for element in field.elements(findings, "allow = [\"reports\"]") {
        let Some(text) = element.text(findings, "\"reports\"") else { continue };
        let way_out = match text.split_once(['/', '@']) {
            Some((app, _)) => {
                format!("write \"{}\": an app is allowed whole, in the same environment", clip(app))
            }
            None => "write the name of an app: allow = [\"reports\"]".to_owned(),
        };
        match AppName::new(text) {
            Ok(app) if app.is_in_production() => allowed.push(app),
            Ok(_) => element.report(findings, format!("`{}` names an environment", clip(text)), way_out),
            Err(error) => {
                let message = format!("`{}` is not {}: {}", clip(text), error.what, error.why);
                element.report(findings, message, way_out);
            }
        }
    }
    allowed.sort();
    allowed.dedup();
    allowed
}

fn refuse_contradictions(table: &Table<'_, '_>, port: bool, exclusive: bool, findings: &mut Findings<'_>) {
    if !port {
        for key in ["drain", "response_timeout", "protocol", "hold", "allow"] {
            if let Some(field) = table.field(key) {
                let message = format!("`{key}` is about requests, and `{}` has no port", clip(&table.name));
                let way_out = if key == "drain" {
                    "use `stop_grace`, or take `port = false` out"
                } else {
                    "take it or `port = false` out"
                };
                findings.report(field.key_span, message, way_out);
            }
        }
    } else if !exclusive && let Some(field) = table.field("hold") {
        let message =
            format!("requests are held for exclusive services only, and `{}` is not one", clip(&table.name));
        findings.report(field.key_span, message, "take `hold` out, or write exclusive = true");
    }
}

/// A page is asked for by HTTP/1.1, which an instance that speaks `h2c` need not understand.
fn refuse_page_check(table: &Table<'_, '_>, service: &Service, findings: &mut Findings<'_>) {
    if let (Protocol::H2c, Check::Http { .. }) = (service.protocol, &service.health.check)
        && let Some(field) = table.field("health")
    {
        let message = "its page is asked for by HTTP/1.1, and the service speaks h2c";
        let way_out =
            "leave `health` out (it must accept connections), or write health = { command = \"...\" }";
        findings.report(field.key_span, message, way_out);
    }
}

fn hold(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Hold {
    let mut hold = Hold { max_requests: defaults::HOLD_REQUESTS, max_time: defaults::HOLD_TIME };
    let Some(field) = table.field("hold") else { return hold };
    let example = "hold = { max_requests = 1000, max_time = \"30s\" }";
    let Some(table) = field.table(&schema::HOLD, findings, example) else { return hold };
    if let Some(field) = table.field("max_requests")
        && let Some(max) = field.integer(findings, defaults::HOLD_BOUNDS)
    {
        hold.max_requests = u32::try_from(max).expect("it is within HOLD_BOUNDS");
    }
    if let Some(max) = wait(&table, "max_time", findings) {
        hold.max_time = max;
    }
    hold
}

pub(super) fn mounts(
    table: &Table<'_, '_>,
    findings: &mut Findings<'_>,
) -> (BTreeMap<VolumeName, String>, ServicePlaces) {
    let mut places = ServicePlaces { table: table.span.clone(), ..ServicePlaces::default() };
    let mut mounts: BTreeMap<VolumeName, String> = BTreeMap::new();
    let Some(field) = table.field("mounts") else { return (mounts, places) };
    for entry in field.entries(findings, "mounts = { data = \"/data\" }") {
        let path = entry.parsed(findings, "\"/data\"", values::mount_path);
        let name = match VolumeName::new(entry.key.as_str()) {
            Ok(name) => name,
            Err(error) => {
                let message = format!("`{}` is not {}: {}", clip(&entry.key), error.what, error.why);
                findings.report(entry.key_span, message, "write mounts = { <volume> = \"/data\" }");
                continue;
            }
        };
        let Some(path) = path else { continue };
        let hidden = |other: &String| below(other, &path) || below(&path, other);
        if let Some((other, at)) = mounts.iter().find(|(_, at)| hidden(at)) {
            let message = format!("volumes `{other}` at {at:?} and `{name}` at {path:?} hide each other");
            entry.report(findings, message, "give each volume a directory of its own");
        }
        places.mounts.insert(name.clone(), entry.key_span);
        mounts.insert(name, path);
    }
    (mounts, places)
}

/// Whether `path` is `dir` or lies in it.
fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What an app file that says nothing gets.
pub(super) fn default_health(port: bool, runs: Runs) -> Health {
    let check = match (runs, port) {
        (Runs::Image, _) => Check::Image,
        (Runs::Tree, true) => Check::Tcp,
        (Runs::Tree, false) => Check::Up,
    };
    Health {
        check,
        grace: defaults::HEALTH_GRACE,
        interval: defaults::HEALTH_INTERVAL,
        timeout: defaults::HEALTH_TIMEOUT,
        unhealthy_after: defaults::UNHEALTHY_AFTER,
        restart_after: defaults::RESTART_AFTER,
    }
}

fn health(service: &Table<'_, '_>, port: bool, runs: Runs, findings: &mut Findings<'_>) -> Health {
    let mut health = default_health(port, runs);
    let Some(field) = service.field("health") else { return health };
    let example = "health = { path = \"/up\" }";
    let Some(table) = field.table(&schema::HEALTH, findings, example) else { return health };
    if let Some(check) = check(&table, port, findings) {
        health.check = check;
    }
    if let Some(interval) =
        table.field("interval").and_then(|f| f.duration(findings, defaults::INTERVAL_BOUNDS))
    {
        health.interval = interval;
    }
    if let Some(timeout) =
        table.field("timeout").and_then(|f| f.duration(findings, defaults::CHECK_TIMEOUT_BOUNDS))
    {
        health.timeout = timeout;
    }
    if let Some(grace) = wait(&table, "grace", findings) {
        health.grace = grace;
    }
    thresholds(&table, &mut health, findings);
    health
}

fn thresholds(table: &Table<'_, '_>, health: &mut Health, findings: &mut Findings<'_>) {
    let count = |findings: &mut Findings<'_>, field: &Field<'_, '_>| {
        let count = field.integer(findings, defaults::THRESHOLD_BOUNDS)?;
        Some(u32::try_from(count).expect("it is within THRESHOLD_BOUNDS"))
    };
    if let Some(after) = table.field("unhealthy_after").and_then(|field| count(findings, &field)) {
        health.unhealthy_after = after;
        // The default follows: an instance is un-routed before it is restarted.
        health.restart_after = health.restart_after.max(after);
    }
    let Some(field) = table.field("restart_after") else { return };
    let Some(after) = count(findings, &field) else { return };
    if after < health.unhealthy_after {
        let message =
            format!("restarted after {after} failures, but unhealthy only after {}", health.unhealthy_after);
        field.report(findings, message, format!("write at least restart_after = {}", health.unhealthy_after));
    }
    health.restart_after = after;
}

fn check(table: &Table<'_, '_>, port: bool, findings: &mut Findings<'_>) -> Option<Check> {
    let given: Vec<Field<'_, '_>> =
        ["path", "command", "tcp"].into_iter().filter_map(|key| table.field(key)).collect();
    if let [first, second, ..] = given.as_slice() {
        findings.report(
            second.key_span.clone(),
            format!("`{}` and `{}` are two health checks", first.key, second.key),
            "a service has one: take the others out",
        );
    }
    let field = given.first()?;
    if !port && field.key != "command" {
        let service = table.name.strip_suffix(".health").unwrap_or(&table.name);
        findings.report(
            field.key_span.clone(),
            format!("`{}` needs a port, and `{}` has none", field.key, clip(service)),
            "write health = { command = \"...\" }, or take `port = false` out",
        );
    }
    match field.key.as_str() {
        "path" => field.parsed(findings, "\"/up\"", values::health_path).map(|path| Check::Http { path }),
        "command" => field
            .text(findings, "\"bin/check\"")
            .map(|command| Check::Command { command: command.to_owned() }),
        _ => {
            if field.boolean(findings)? {
                return Some(Check::Tcp);
            }
            field.report(
                findings,
                "`tcp` can only be true",
                "leave it out, or write health = { command = \"...\" }",
            );
            None
        }
    }
}
