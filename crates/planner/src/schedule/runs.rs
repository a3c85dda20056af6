//! Where a run goes: a build, a release command, a job.

use std::collections::BTreeMap;

use rung_model::{NodeId, Run, RunKind};

use super::{Refusal, pinned_to};
use crate::draft::Draft;
use crate::world::World;

/// Of the nodes that can take a run the one with the fewest; where its volumes are, when it may use some.
///
/// When no engine answers anywhere a run of an image goes to a node all the same, and when all disks are full, any run:
/// it fails there at once, and says what is missing.
pub(crate) fn choose_node_for_run(draft: &Draft<'_>, run: &Run) -> Result<NodeId, BTreeMap<NodeId, Refusal>> {
    let file =
        run.release().and_then(|release| draft.release(&run.app, release)).map(|release| &release.file);
    let pinned = file.and_then(|file| match run.of_job() {
        Some(of) => pinned_to(draft, &run.app, file.jobs.get(&of.job)?.mounts.keys()),
        None => pinned_to(draft, &run.app, file.services.values().flat_map(|service| service.mounts.keys())),
    });
    let of_image = match &run.kind {
        RunKind::Build { image, .. } => image.is_some(),
        _ => file.is_some_and(|file| file.build.image.is_some()),
    };
    let asked_bytes = memory_of_run(draft.input.world, run);
    let mut refusals = BTreeMap::new();
    let mut best: Option<((bool, usize), &NodeId)> = None;
    for standing in draft.ground().nodes() {
        let elsewhere = pinned
            .as_ref()
            .filter(|(_, at)| *at != standing.id)
            .map(|(volume, at)| Refusal::VolumeElsewhere { volume: volume.clone(), node: at.clone() });
        let free_bytes = standing.free_memory();
        let no_room = (asked_bytes > free_bytes).then_some(Refusal::Memory { asked_bytes, free_bytes });
        if let Some(refusal) = standing.unusable.clone().or(elsewhere).or(no_room) {
            refusals.insert(standing.id.clone(), refusal);
            continue;
        }
        let will_fail = standing.short_of_disk.is_some() || of_image && standing.no_engine.is_some();
        let runs = draft.assignment(&standing.id).map_or(0, |assignment| assignment.runs.len());
        if best.is_none_or(|(least, _)| (will_fail, runs) < least) {
            best = Some(((will_fail, runs), &standing.id));
        }
    }
    best.map(|(_, id)| id.clone()).ok_or(refusals)
}

/// Why a run can't ever be placed on the machines that there are, whatever ends before it.
pub(crate) fn is_too_large(draft: &Draft<'_>, run: &Run) -> Option<String> {
    const MB: u64 = 1_000_000;
    let asked_bytes = Some(memory_of_run(draft.input.world, run)).filter(|bytes| *bytes > 0)?;
    let nodes = draft.input.world.nodes.values();
    let largest = nodes.map(|held| held.value.facts.memory_bytes).max()?;
    (asked_bytes > largest).then(|| {
        format!("it asks for {} MB of memory, and the largest node has {} MB", asked_bytes / MB, largest / MB)
    })
}

/// What a job may use by its release's limit; builds and commands have none of their own.
pub(crate) fn memory_of_run(world: &World, run: &Run) -> u64 {
    let of_job = || {
        let release = world.release(&run.app, run.release()?)?;
        release.file.jobs.get(&run.of_job()?.job)?.memory_bytes
    };
    of_job().unwrap_or(0)
}
