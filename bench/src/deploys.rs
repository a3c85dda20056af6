//! Deploys and kills, in turns.

use std::time::{Duration, Instant};

use rung_e2e::{Rung, process};

use crate::milliseconds;
use crate::payload::Payload;
use crate::sampler::Sampler;
use crate::swarm::Swarm;
use crate::table::Table;

/// The first deploy of an app.
pub fn begin(rung: &Rung, app: &Payload) -> anyhow::Result<()> {
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(&app.name, "web", app.instances);
    Ok(())
}

pub fn measure(
    rung: &Rung,
    mut swarm: Option<&mut Swarm>,
    pair: &mut Payload,
    rounds: usize,
    start: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut ours = (Vec::new(), Vec::new());
    let mut theirs = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        pair.next()?;
        ours.0.push(deploy(rung, pair).saturating_sub(start));
        if let Some(swarm) = swarm.as_deref_mut() {
            let (build, update) = swarm.deploy(pair)?;
            theirs.0.push((build + update).saturating_sub(start));
            theirs.1.push(update.saturating_sub(start));
        }
        ours.1.push(kill(rung, "solo").saturating_sub(start));
        if let Some(swarm) = swarm.as_deref_mut() {
            theirs.2.push(swarm.kill()?.saturating_sub(start));
        }
    }
    table.push(milliseconds(
        "deploy of a 5 MB app, two instances: from the command to all traffic on the new release",
        "300 ms, a third of the peer",
        &ours.0,
        &theirs.0,
    ));
    table.push(milliseconds("the same, the peer's image being built already", "", &ours.0, &theirs.1));
    table.push(milliseconds(
        "an instance killed with -9: until a healthy one answers",
        "100 ms",
        &ours.1,
        &theirs.2,
    ));
    Ok(())
}

fn deploy(rung: &Rung, app: &Payload) -> Duration {
    let sampler = Sampler::start(rung.http(), format!("{}.localhost", app.name));
    sampler.current_pid();
    let began = Instant::now();
    rung.deploy(app.directory()).succeeds();
    sampler.all_on(&app.spelled()).saturating_duration_since(began)
}

fn kill(rung: &Rung, app: &str) -> Duration {
    // An instance without a past: one that dies again and again is started later each time.
    rung.cli(&["restart", "--app", app]).succeeds();
    let instance = rung.wait_until_settled(app, "web", 1).remove(0);
    let sampler = Sampler::start(rung.http(), format!("{app}.localhost"));
    let pid = sampler.current_pid();
    let began = Instant::now();
    process::kill_9(instance.pid.expect("a healthy instance has a process"));
    // In a PID namespace of its own, the application may see the same number again.
    let back = sampler.back_after(began, if pid.len() > 2 { &pid } else { "" });
    back.saturating_duration_since(began)
}
