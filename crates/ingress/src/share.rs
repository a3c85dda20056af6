//! Limits that hold over several ingresses: each tells the server what it let pass and hears what the others did.
//!
//! What others let pass is taken out of the same buckets here, a fifth of a second late. A bucket that was overdrawn
//! meanwhile owes it, so over time all ingresses together let pass what one would. An ingress that is alone asks
//! once a second whether it still is, and keeps no account.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rung_api::Client;
use rung_api::wire::{LimitTaken, LimitsTaken};
use tokio::task::JoinHandle;

use crate::limiter::Limiter;

/// At 100 requests a second two ingresses let 20 too many pass when a load begins, once.
pub(crate) const EVERY: Duration = Duration::from_millis(200);
/// Ticks between two questions of an ingress that is alone.
const ALONE_TICKS: u32 = 5;
/// Longer than a healthy server takes; what is not told by then is forgotten.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients a limit and report: the rest is told with the next one.
const TOLD_MAX: usize = 2000;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    ticks: u32,
    others: Arc<AtomicUsize>,
    /// The question on its way.
    asking: Option<JoinHandle<()>>,
}

impl Sharing {
    /// To be called each [`EVERY`], with all limits by name.
    pub(crate) fn tick(&mut self, client: &Client, proxy: &str, limits: Vec<(String, Arc<Limiter>)>) {
        self.ticks = self.ticks.wrapping_add(1);
        let is_alone = self.others.load(Ordering::Relaxed) == 0;
        let is_busy = self.asking.as_ref().is_some_and(|task| !task.is_finished());
        if is_busy || (is_alone && !self.ticks.is_multiple_of(ALONE_TICKS)) {
            return;
        }
        let (client, proxy, others) = (client.clone(), proxy.to_owned(), self.others.clone());
        self.asking = Some(tokio::spawn(async move {
            let told = LimitsTaken { others: 0, limits: limits.iter().map(tell).collect() };
            match tokio::time::timeout(PATIENCE, client.share_limits(&proxy, &told)).await {
                Ok(Ok(heard)) => {
                    others.store(heard.others, Ordering::Relaxed);
                    hear(&limits, &heard);
                }
                Ok(Err(error)) => tracing::debug!(%error, "the server was not told what was let pass"),
                Err(_) => tracing::debug!("the server was not told in time what was let pass"),
            }
        }));
    }
}

fn tell((name, limiter): &(String, Arc<Limiter>)) -> LimitTaken {
    let taken = limiter.tell(TOLD_MAX).into_iter();
    LimitTaken {
        limit: name.clone(),
        taken: taken.map(|(whose, count)| (format!("{whose:x}"), count)).collect(),
    }
}

fn hear(limits: &[(String, Arc<Limiter>)], heard: &LimitsTaken) {
    let known: BTreeMap<&str, &Arc<Limiter>> =
        limits.iter().map(|(name, limiter)| (name.as_str(), limiter)).collect();
    for limiter in known.values() {
        limiter.account(heard.others > 0);
    }
    for LimitTaken { limit, taken } in &heard.limits {
        let Some(limiter) = known.get(limit.as_str()) else { continue };
        for (whose, count) in taken {
            if let Ok(whose) = u128::from_str_radix(whose, 16) {
                limiter.others_took(whose, *count);
            }
        }
    }
}
