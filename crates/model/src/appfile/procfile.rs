//! A `Procfile` as an [`AppFile`]: `web`, `worker`, `release`, each with its command.

use std::collections::BTreeMap;

use super::defaults;
use super::error::{AppFileErrors, Findings};
use super::parse::text_of;
use super::read::clip;
use super::service::{Runs, default_health};
use super::{AppFile, Build, DeployPolicy, GitPolicy, RolloutPolicy, Service};
use crate::ids::{AppName, ServiceName};
use crate::routes::{Hold, Protocol};

/// Reads a `Procfile`. `web` gets a port, `release` is the release command, everything else is a worker.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn parse_procfile(app: AppName, text: impl AsRef<[u8]>) -> Result<AppFile, AppFileErrors> {
    let text = text_of("Procfile", text.as_ref())?;
    let mut findings = Findings::new("Procfile", text);
    let mut file = empty(app);
    let mut offset = 0;
    for raw in text.split_inclusive('\n') {
        let line = raw.trim();
        if !line.is_empty() && !line.starts_with('#') {
            let start = offset + (raw.len() - raw.trim_start().len());
            read_line(line, start, &mut file, &mut findings);
        }
        offset += raw.len();
    }
    if file.services.is_empty() && !findings.has_syntax_errors() {
        findings.missing(0..0, "the app has no services", "write a line like web: bin/server");
    }
    findings.finish()?;
    Ok(file)
}

fn empty(app: AppName) -> AppFile {
    AppFile {
        app,
        domains: Vec::new(),
        build: Build { timeout: defaults::BUILD_TIMEOUT, ..Build::default() },
        env: BTreeMap::new(),
        required_secrets: Vec::new(),
        volumes: BTreeMap::new(),
        deploy: DeployPolicy {
            release: None,
            before_release: None,
            release_timeout: defaults::RELEASE_TIMEOUT,
            deadline: defaults::DEADLINE,
            rollout: RolloutPolicy::default(),
        },
        git: GitPolicy::default(),
        services: BTreeMap::new(),
        jobs: BTreeMap::new(),
        routes: Vec::new(),
        pages: Default::default(),
        notify: None,
    }
}

fn read_line(line: &str, start: usize, file: &mut AppFile, findings: &mut Findings<'_>) {
    let Some((name, command)) = line.split_once(':') else {
        findings.syntax(
            start..start + line.len(),
            "the line has no `:`",
            Some("write it like web: bin/server".into()),
        );
        return;
    };
    let (name, command) = (name.trim_end(), command.trim());
    let span = start..start + name.len();
    if command.is_empty() || command.contains('\0') {
        findings.report(span, format!("`{}` has no command", clip(name)), "write it like web: bin/server");
        return;
    }
    if name == "release" {
        if file.deploy.release.replace(command.to_owned()).is_some() {
            findings.report(span, "`release` is there twice", "take one of them out");
        }
        return;
    }
    match ServiceName::new(name) {
        Ok(service) => {
            let port = name == "web";
            if file.services.insert(service, service_of(command, port)).is_some() {
                findings.report(span, format!("`{name}` is there twice"), "take one of them out");
            }
        }
        Err(error) => {
            let way_out = match super::parse::slug(name).as_str() {
                "" => "write it like web: bin/server".to_owned(),
                slug => format!("write it like `{slug}`"),
            };
            findings.report(span, format!("`{}` is not {}: {}", clip(name), error.what, error.why), way_out);
        }
    }
}

fn service_of(command: &str, port: bool) -> Service {
    Service {
        command: Some(command.to_owned()),
        port,
        image_port: None,
        instances: defaults::INSTANCES,
        exclusive: false,
        memory_bytes: None,
        cpu_millis: None,
        health: default_health(port, Runs::Tree),
        drain: defaults::DRAIN,
        stop_grace: defaults::STOP_GRACE,
        response_timeout: defaults::RESPONSE_TIMEOUT,
        protocol: Protocol::Http1,
        hold: Hold { max_requests: defaults::HOLD_REQUESTS, max_time: defaults::HOLD_TIME },
        mounts: BTreeMap::new(),
        place: super::Place::default(),
        allow: Vec::new(),
    }
}
