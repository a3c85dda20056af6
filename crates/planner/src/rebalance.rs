//! A better place for what runs, when nodes come back or labels change.
//!
//! Gentle on purpose. Nothing is moved until the nodes have been the same for a while, a few instances at a time, one of an
//! app, and only for a gain that is worth it: two fewer on the fullest node or in the fullest zone, or a label that the
//! service prefers. A move is a handoff: the new one serves before the old one is un-routed. Packed services, exclusive
//! ones and those with volumes stay where they are.

use std::time::Duration;

use rung_model::appfile::{Count, Spread};
use rung_model::{AppName, InstanceId, MakingWay, NodeId, ServiceName};

use crate::draft::Draft;
use crate::fleet::Member;
use crate::reconcile::{Kinds, declared, desired_count, kinds, service_aim, services};
use crate::roster::Known;
use crate::schedule::{Placer, unusable};

/// A machine that comes and goes moves nothing.
pub const STEADY_FOR: Duration = Duration::from_secs(60);
/// Looking at every service costs a large cluster some time.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// So few move at a time, in the whole cluster.
const MOVES_MAX: usize = 2;

/// What is remembered between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Calm {
    /// The nodes that take instances, and since when they have been just these.
    nodes: Vec<NodeId>,
    since: Duration,
    looked: Option<Duration>,
}

pub(crate) fn rebalance(draft: &mut Draft<'_>) {
    let now = draft.input.clock.elapsed;
    let numbers = draft.input.world.placed.numbers().by_name();
    let takes_any = |known: &&Known<'_>| known.node.is_some() && unusable(known).is_none();
    let nodes: Vec<&NodeId> =
        numbers.map(|(_, number)| draft.known(number)).filter(takes_any).map(|known| known.id).collect();
    if nodes.len() < 2 {
        draft.progress.calm = Calm::default();
        return;
    }
    if !nodes.iter().copied().eq(&draft.progress.calm.nodes) {
        let nodes = nodes.into_iter().cloned().collect();
        draft.progress.calm = Calm { nodes, since: now, looked: None };
    }
    let calm = &draft.progress.calm;
    let due = calm.looked.map_or(calm.since + STEADY_FOR, |looked| looked + LOOK_EVERY);
    if now < due {
        draft.wake_at(due);
        return;
    }
    draft.progress.calm.looked = Some(now);
    draft.wake_at(now + LOOK_EVERY);
    let mut moving = draft.input.world.placed.making_way().count();
    for app in draft.input.world.apps.keys() {
        if moving >= MOVES_MAX {
            return;
        }
        let is_at_rest = draft.deployment(app).is_none_or(|deployment| deployment.has_ended());
        if is_at_rest && let Some((node, id)) = poor_place(draft, app) {
            draft.make_way(&node, &id, Some(MakingWay::Rebalanced));
            moving += 1;
        }
    }
}

/// One instance of an app that would be better off elsewhere.
fn poor_place(draft: &Draft<'_>, app: &AppName) -> Option<(NodeId, InstanceId)> {
    services(draft, app).into_iter().find_map(|service| {
        let declared = declared(draft, app, service_aim(draft, app, &service), &service)?;
        let stays = declared.exclusive
            || declared.place.spread == Spread::Pack
            || declared.place.count == Count::PerNode
            || !declared.mounts.is_empty();
        let kinds = kinds(draft, app, &service);
        let desired = desired_count(draft, app, &service, &declared);
        if stays || !is_quiet(&kinds, desired) {
            return None;
        }
        worst(draft, app, &service, &declared, &kinds.wanted)
    })
}

/// Everything is there and healthy, and nothing is on its way.
fn is_quiet(kinds: &Kinds, desired: u32) -> bool {
    kinds.wanted.len() == desired as usize
        && kinds.wanted.iter().all(Member::is_healthy)
        && kinds.standby.is_empty()
        && kinds.leaving.is_empty()
}

fn worst(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    declared: &rung_model::appfile::Service,
    members: &[Member],
) -> Option<(NodeId, InstanceId)> {
    let mut placer = Placer::new(draft, app, service, declared);
    let best = placer.next(draft)?;
    let worst = members.iter().max_by_key(|member| (placer.strain(draft, member.at), &member.id))?;
    let gains = placer.gains(draft, worst.at, best);
    gains.then(|| (worst.node.clone(), worst.id.clone()))
}
