//! When an exclusive instance on a lost node has ended for sure, although nobody says so.
//!
//! Its shim holds a lease. The node's agent extends it whenever a server has read, from the store itself, that the instance
//! shall run there, counted from the sending of that question. At its end the shim stops the instance: SIGTERM, the grace
//! period, SIGKILL. So once it is written that the instance shall stop, nobody extends its lease any more, and it is gone
//! after the lease, the grace and a margin. Nothing hangs on when the node was last heard, or by whom.

use std::time::Duration;

use rung_model::{AppName, InstanceId, NodeId, ReleaseNumber, ServiceName};

use crate::draft::Draft;
use crate::schedule::Refusal;

/// For the kernel to end a tree of processes, and for clocks of machines that do not run at quite the same pace.
pub const MARGIN: Duration = Duration::from_secs(3);

/// What is known of an exclusive instance of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lease {
    /// Its node is heard, and says itself what becomes of it.
    Heard,
    /// Its node is lost; the lease may run for so long.
    Runs(Duration),
    /// The node is lost, and nothing ends the instance.
    Endless,
    Over,
}

pub(crate) fn lease(
    draft: &Draft<'_>,
    node: &NodeId,
    id: &InstanceId,
    app: &AppName,
    service: &ServiceName,
    release: ReleaseNumber,
) -> Lease {
    if !draft.input.liveness.is_lost(node) {
        return Lease::Heard;
    }
    let facts = draft.input.world.nodes.get(node).map(|held| &held.value.facts);
    let file = draft.release(app, release).map(|release| &release.file);
    let declared = file.and_then(|file| file.services.get(service)).filter(|declared| declared.exclusive);
    // No shim stands above a container.
    let is_container = file.is_some_and(|file| file.build.image.is_some());
    let lease = facts.and_then(|facts| facts.lease_ms).filter(|_| !is_container).map(Duration::from_millis);
    let (Some(lease), Some(declared)) = (lease, declared) else { return Lease::Endless };
    let elapsed = draft.input.clock.elapsed;
    let stopped = draft.progress.stopped.get(id).copied().unwrap_or(elapsed);
    match (stopped + lease + declared.stop_grace + MARGIN).saturating_sub(elapsed) {
        Duration::ZERO => Lease::Over,
        left => Lease::Runs(left),
    }
}

impl Lease {
    /// Why the next one has to wait.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Heard | Self::Over => Refusal::ExclusiveStillAlive,
            Self::Runs(left) => Refusal::LeaseRuns { seconds: left.as_secs_f64().ceil() as u64 },
            Self::Endless => Refusal::NoLease,
        }
    }
}
