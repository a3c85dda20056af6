//! `rung status`: what a person wants to know first.

use rung_api::wire::{AppStatus, DeploymentSummary, EnvironmentStatus, InstanceStatus, ServiceStatus};
use rung_model::deployment::Trouble;
use rung_model::{Goal, InstanceState, Phase};

use super::instances::state;
use super::paint::{Mood, Paint};
use super::table::{Cell, cell, colored, table};
use super::time::{Clock, span};
use super::{count, harmless};

/// How many lines of an instance's log are shown; they are its last ones.
const LOG_LINES: usize = 8;
/// A deployment that failed is explained at more length: a traceback fits.
const EXPLAINING_LINES: usize = 25;

/// One app.
pub fn render(status: &AppStatus, paint: Paint, clock: &Clock) -> String {
    let mut out = vec![headline(status, paint)];
    out.extend(status.urls.iter().map(|url| format!("  {url}")));
    out.extend(services(status, paint));
    if let Some(deployment) = &status.deployment {
        out.extend(deployment_lines(deployment, paint, clock));
    }
    out.extend(environments(&status.environments, paint));
    out.extend(problems(status, paint, clock));
    out.join("\n")
}

/// The same app elsewhere, a line each.
fn environments(others: &[EnvironmentStatus], paint: Paint) -> Vec<String> {
    if others.is_empty() {
        return Vec::new();
    }
    let rows: Vec<_> = others.iter().map(environment).collect();
    let rows = table(&["  OTHER ENVIRONMENT", "RELEASE", "HEALTHY", "ADDRESS"], &rows, paint);
    vec![String::new(), rows]
}

fn environment(other: &EnvironmentStatus) -> Vec<Cell> {
    let EnvironmentStatus { app, current, urls, desired, healthy, phase } = other;
    let mood = if healthy >= desired { Mood::Good } else { Mood::Warning };
    let going = phase.and_then(doing).map(|doing| format!(" ({doing})")).unwrap_or_default();
    vec![
        cell(format!("  {}", app.environment())),
        cell(current.map_or_else(|| "none".to_owned(), |release| release.to_string()) + &going),
        colored(format!("{healthy} of {desired}"), mood),
        cell(urls.first().map(String::as_str).unwrap_or_default()),
    ]
}

/// Every app of the server, an empty line between two.
pub fn render_all(apps: &[AppStatus], paint: Paint, clock: &Clock) -> String {
    if apps.is_empty() {
        return "no app yet; deploy one with `rung deploy DIR`".to_owned();
    }
    let alone = |app: &AppStatus| AppStatus { environments: Vec::new(), ..app.clone() };
    apps.iter().map(|app| render(&alone(app), paint, clock)).collect::<Vec<_>>().join("\n\n")
}

fn headline(status: &AppStatus, paint: Paint) -> String {
    let name = paint.bold(status.app.as_str());
    match (status.destroying, status.current) {
        (true, _) => format!("{name}  {}", paint.warning("is being destroyed")),
        (false, Some(release)) => format!("{name}  {release}"),
        (false, None) => format!("{name}  nothing is deployed yet"),
    }
}

fn services(status: &AppStatus, paint: Paint) -> Vec<String> {
    let width = status.services.iter().map(|service| service.name.as_str().len()).max().unwrap_or(0);
    let shown = if status.services.len() > 1 { Inside::Shown } else { Inside::NoMatter };
    status.services.iter().map(|service| service_line(service, width, shown, paint)).collect()
}

/// Where services reach each other: of interest where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Shown,
    NoMatter,
}

fn service_line(service: &ServiceStatus, width: usize, shown: Inside, paint: Paint) -> String {
    let ServiceStatus { name, desired, healthy, .. } = service;
    let mood = match (*healthy, *desired) {
        (_, 0) => Mood::Neutral,
        (healthy, desired) if healthy >= desired => Mood::Good,
        (0, _) => Mood::Bad,
        _ => Mood::Warning,
    };
    let counts = match desired {
        0 => "scaled to 0".to_owned(),
        desired => format!("{healthy} of {desired} healthy"),
    };
    let mut remarks = Vec::new();
    if service.exclusive {
        remarks.push("exclusive".to_owned());
    }
    if !service.port {
        remarks.push("no port".to_owned());
    }
    if let Some(address) = service.inside.as_ref().filter(|_| shown == Inside::Shown) {
        remarks.push(format!("inside at {address}"));
    }
    let line = format!("  {name:width$}  {}", paint.mood(mood, &counts));
    if remarks.is_empty() { line } else { format!("{line}  {}", paint.dim(&remarks.join(", "))) }
}

fn deployment_lines(deployment: &DeploymentSummary, paint: Paint, clock: &Clock) -> Vec<String> {
    let DeploymentSummary { number, release, by, at, phase, goal, trouble } = deployment;
    let by = harmless(by);
    let target = release.map(|release| format!(" of {release}")).unwrap_or_default();
    let line = match doing(*phase) {
        Some(doing) => {
            let since = span(clock.elapsed(*at));
            paint.warning(&format!("deployment {number}{target} by {by}: {doing}, {since} so far"))
        }
        None => match phase {
            Phase::RolledBack => {
                paint.bad(&format!("deployment {number}{target} by {by} was rolled back {}", clock.ago(*at)))
            }
            Phase::Failed => paint.bad(&format!("deployment {number} by {by} failed {}", clock.ago(*at))),
            _ if *goal == Goal::Release => {
                let release = release.map(|release| release.to_string()).unwrap_or_default();
                paint.dim(&format!(
                    "{release} was built {} by {by}; `rung deploy {release}` rolls it out",
                    clock.ago(*at)
                ))
            }
            _ => paint.dim(&format!("deployed {} by {by}", clock.ago(*at))),
        },
    };
    let mut lines = vec![format!("  {line}")];
    if let Some(trouble) = trouble {
        lines.extend(trouble_lines(trouble, "    ", paint));
    }
    lines
}

/// What a deployment does, while it does it.
pub fn doing(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Building => Some("building"),
        Phase::Releasing => Some("running the release command"),
        Phase::Rolling => Some("rolling out"),
        Phase::Reverting => Some("reverting"),
        Phase::Succeeded | Phase::RolledBack | Phase::Failed => None,
    }
}

fn problems(status: &AppStatus, paint: Paint, clock: &Clock) -> Vec<String> {
    let instances = status.services.iter().flat_map(|service| &service.instances);
    let troubled: Vec<&InstanceStatus> = instances.filter(|instance| is_trouble(instance)).collect();
    if status.problems.is_empty() && troubled.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), paint.bold("problems")];
    lines.extend(status.problems.iter().map(|problem| format!("  {}", harmless(problem))));
    for instance in troubled {
        lines.extend(instance_lines(instance, paint, clock));
    }
    lines
}

fn is_trouble(instance: &InstanceStatus) -> bool {
    match instance.state {
        // That its node is lost is said once for all that are there.
        _ if instance.lost => false,
        InstanceState::Unhealthy
        | InstanceState::BackingOff
        | InstanceState::CrashLooping
        | InstanceState::Failed => true,
        // A start that takes its time is explained, when there is an explanation.
        InstanceState::Preparing | InstanceState::Starting => instance.reason.is_some(),
        InstanceState::Healthy | InstanceState::Stopping | InstanceState::Stopped => false,
    }
}

/// An instance that needs attention, why, and its last lines.
pub fn instance_lines(instance: &InstanceStatus, paint: Paint, clock: &Clock) -> Vec<String> {
    let (word, mood) = state(instance.state);
    let restarts = match instance.restarts {
        0 => String::new(),
        n => format!(", {}", count(n.into(), "restart")),
    };
    let reason = instance.reason.as_ref().map(|reason| format!(": {}", harmless(reason))).unwrap_or_default();
    let since = clock.since(instance.since);
    let mut lines = vec![format!("  {} {}{reason} ({since}{restarts})", instance.id, paint.mood(mood, word))];
    lines.extend(tail(&instance.log_tail, LOG_LINES, paint));
    lines
}

/// Why a deployment is being reverted, or failed, with the lines that explain it.
pub fn trouble_lines(trouble: &Trouble, indent: &str, paint: Paint) -> Vec<String> {
    let mut lines = vec![format!("{indent}{}", harmless(&trouble.reason))];
    lines.extend(tail(&trouble.log_tail, EXPLAINING_LINES, paint));
    lines
}

/// The last lines of a log, set off from what Rung itself says.
fn tail(lines: &[String], at_most: usize, paint: Paint) -> Vec<String> {
    let from = lines.len().saturating_sub(at_most);
    lines[from..].iter().map(|line| paint.dim(&format!("    | {}", harmless(line)))).collect()
}
