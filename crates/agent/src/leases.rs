//! Leases: how long exclusive instances live without a word of a server.
//!
//! In a cluster an exclusive instance that nobody hears of is started elsewhere after a while, so it must have ended by
//! then, whatever became of this agent and of the network. Its shim holds a lease and ends it when the lease does. Here it is
//! extended, whenever a server has read from the store that the instance shall run here; what counts is the moment at which
//! that was asked. An instance is launched only with a lease that was asked for just now: what this node was told before it
//! was cut off says nothing any more.
//!
//! A machine that is alone has nowhere else to start anything, and gives no leases.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rung_model::InstanceId;

use crate::artifacts::chain;
use crate::driver::TalkError;
use crate::node::{Node, PrepareError, Shared};
use crate::shim::lease::boot_now;
use crate::shim::protocol::Lease;

/// Long enough for a server to be restarted or upgraded, and for another one to take over; what waits for the end of a lease
/// waits as long.
pub const LEASE: Duration = Duration::from_secs(10);
/// Several tries in the time of a lease.
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Whoever waits to be launched asks more often.
const LAUNCH_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Alone,
    InCluster,
}

#[derive(Debug)]
pub struct Leases {
    mode: Mode,
    /// Every exclusive life here is known to hold a lease.
    all_held: AtomicBool,
}

/// An exclusive instance under a shim.
struct Holder {
    id: InstanceId,
    directory: PathBuf,
    grace: Duration,
}

impl Leases {
    pub fn new(mode: Mode) -> Self {
        Self { mode, all_held: AtomicBool::new(false) }
    }

    /// How long exclusive instances live here without a word of a server, once that holds for all of them.
    pub fn promise(&self) -> Option<u64> {
        let holds = self.mode == Mode::InCluster && self.all_held.load(Ordering::Relaxed);
        holds.then_some(LEASE.as_millis() as u64)
    }

    /// The lease of an instance that is about to be launched. Waits until a server can be asked.
    ///
    /// # Errors
    /// The instance shall not run here any more.
    pub async fn for_launch(
        &self,
        node: &Node,
        id: &InstanceId,
        grace: Duration,
    ) -> Result<Option<Lease>, PrepareError> {
        if self.mode == Mode::Alone {
            return Ok(None);
        }
        loop {
            match ask(node).await {
                Ok((instances, lease)) if instances.contains(id) => {
                    return Ok(Some(Lease { grace_ms: grace.as_millis() as u64, ..lease }));
                }
                Ok(_) => return Err(PrepareError::NotHere),
                Err(error) => tracing::debug!(instance = %id, error, "waiting for a lease"),
            }
            tokio::time::sleep(LAUNCH_RETRY).await;
        }
    }
}

/// Which instances shall run here, and the lease that this gives them.
async fn ask(node: &Node) -> Result<(BTreeSet<InstanceId>, Lease), String> {
    let asked = boot_now();
    match tokio::time::timeout(ANSWER_WITHIN, node.client.leases(&node.id)).await {
        Ok(Ok(leased)) => {
            let until = Some((asked + LEASE).as_millis() as u64);
            Ok((leased.instances.into_iter().collect(), Lease { until_boot_ms: until, grace_ms: 0 }))
        }
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Extends the leases of all that live here, for ever.
pub async fn keep(node: Shared) {
    loop {
        let holders = holders(&node);
        let all_held = match node.leases.mode {
            _ if holders.is_empty() => true,
            Mode::Alone => release(&node, &holders).await,
            Mode::InCluster => extend(&node, &holders).await,
        };
        // What is known once stays so: whatever is launched later has its lease from birth.
        if all_held {
            node.leases.all_held.store(true, Ordering::Relaxed);
            if node.leases.mode == Mode::Alone {
                return;
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn holders(node: &Node) -> Vec<Holder> {
    let ledger = node.ledger();
    let holders = ledger.instances().iter().filter_map(|(id, entry)| {
        let launch = ledger.launch(&entry.assigned.app, entry.assigned.release)?;
        let service = launch.release.file.services.get(&entry.assigned.service)?;
        let is_process = launch.release.file.build.image.is_none();
        (service.exclusive && is_process).then(|| Holder {
            id: id.clone(),
            directory: node.layout.life(id, entry.attempt),
            grace: service.stop_grace,
        })
    });
    holders.collect()
}

async fn extend(node: &Node, holders: &[Holder]) -> bool {
    let (instances, lease) = match ask(node).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(error, "asking for leases");
            return false;
        }
    };
    let mut all_held = true;
    for holder in holders {
        if instances.contains(&holder.id) {
            let lease = Lease { grace_ms: holder.grace.as_millis() as u64, ..lease };
            all_held &= give(node, holder, lease).await;
        } else {
            // It is about to be told to stop; without a lease nobody could rely on its end.
            all_held &= node.leases.all_held.load(Ordering::Relaxed);
        }
    }
    all_held
}

/// Takes the leases off what a machine has left over from a time in a cluster.
async fn release(node: &Node, holders: &[Holder]) -> bool {
    let mut all = true;
    for holder in holders {
        all &= give(node, holder, Lease { until_boot_ms: None, grace_ms: 0 }).await;
    }
    all
}

/// False when the life goes on without the lease: its shim is of an older version, or is not heard just now.
async fn give(node: &Node, holder: &Holder, lease: Lease) -> bool {
    match node.driver.lease(&holder.directory, lease).await {
        Ok(()) => true,
        Err(TalkError::Refused(reason)) => {
            tracing::warn!(instance = %holder.id, reason, "its shim takes no lease; restart it to move it when this node is lost");
            false
        }
        Err(error) => {
            tracing::debug!(instance = %holder.id, error = chain(&error), "giving a lease");
            !node.driver.is_alive(&holder.directory).await
        }
    }
}
