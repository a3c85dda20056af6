//! `rung scale`: asks for counts, and waits until they are reached.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rung_api::wire::{AppStatus, ScaleRequest, ServiceStatus};
use rung_model::{InstanceState, ServiceName};

use super::Session;
use crate::args::ScaleArgs;
use crate::edge::Exit;
use crate::follow::may_pass;
use crate::person;
use crate::render::status::instance_lines;
use crate::render::time::span;

/// The status has no long poll; a read costs the server well below a millisecond.
const LOOK: Duration = Duration::from_millis(100);

pub async fn scale(session: &mut Session<'_>, args: ScaleArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let services: BTreeMap<ServiceName, u32> = args.counts.into_iter().collect();
    let request = ScaleRequest { services: services.clone(), by: person::name() };
    let mut status = session.client.scale(&app, &request).await.with_context(|| format!("scaling {app}"))?;
    let done = loop {
        match progress(&status, &services) {
            _ if args.wait.no_wait => break Exit::Done,
            Progress::Reached => break Exit::Done,
            Progress::Stuck => break Exit::Failed,
            Progress::Missing(text) => session.screen.moving(&format!("{text} ({})", span(since.elapsed()))),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                session.screen.still();
                session.screen.say("\nno longer waiting: the scaling goes on; `rung status` shows it")?;
                return Ok(Exit::Done);
            }
        }
        match session.client.app(&app).await {
            Ok(now) => status = now,
            Err(error) if may_pass(&error) => {}
            Err(error) => {
                return Err(anyhow::Error::from(error).context(format!("asking for the status of {app}")));
            }
        }
    };
    session.screen.still();
    let shown: Vec<ServiceName> = services.into_keys().collect();
    session.screen.show(&status, |status, paint, clock| {
        let mut lines = Vec::new();
        for service in status.services.iter().filter(|service| shown.contains(&service.name)) {
            let ServiceStatus { name, healthy, desired, .. } = service;
            let took = span(since.elapsed());
            lines.push(match done {
                Exit::Done if args.wait.no_wait => {
                    format!("{app} {name}: {desired} asked for, {healthy} healthy")
                }
                Exit::Done => paint.good(&format!("{app} {name}: {healthy} of {desired} healthy ({took})")),
                _ => paint
                    .bad(&format!("{app} {name}: {healthy} of {desired} healthy; the others do not come up")),
            });
            if done != Exit::Done {
                let stuck = service.instances.iter().filter(|instance| is_stuck(instance.state));
                lines.extend(stuck.flat_map(|instance| instance_lines(instance, paint, clock)));
            }
        }
        lines.join("\n")
    })?;
    Ok(done)
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Reached,
    /// What is still missing, in words.
    Missing(String),
    /// An instance does not come up by waiting.
    Stuck,
}

fn is_stuck(state: InstanceState) -> bool {
    matches!(state, InstanceState::CrashLooping | InstanceState::Failed)
}

fn progress(status: &AppStatus, wanted: &BTreeMap<ServiceName, u32>) -> Progress {
    let mut missing = Vec::new();
    for service in &status.services {
        let Some(&count) = wanted.get(&service.name) else { continue };
        if service.instances.iter().any(|instance| is_stuck(instance.state)) {
            return Progress::Stuck;
        }
        let ended = |state| matches!(state, InstanceState::Stopped);
        let there = service.instances.iter().filter(|instance| !ended(instance.state)).count();
        if service.desired != count || service.healthy != count || there != count as usize {
            missing.push(format!("{}: {} of {count} healthy", service.name, service.healthy));
        }
    }
    if missing.is_empty() { Progress::Reached } else { Progress::Missing(missing.join(", ")) }
}
