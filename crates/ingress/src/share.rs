//! Limits that hold over several ingresses: each tells the server what it let pass and hears what the others did.
//!
//! What others let pass is taken out of the same buckets here, a fifth of a second late, or later where machines are busy;
//! each word says since when. A bucket that was overdrawn meanwhile owes it, so over time all ingresses together let pass
//! what one would. An ingress that is alone asks once a second whether it still is, and tells what passed meanwhile: another
//! may have come since, and what only one of two had heard of would be the debt of that one alone. While the other used all
//! of the limit it would never come out of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rung_api::Client;
use rung_api::wire::{LimitTaken, LimitsTaken};
use tokio::task::JoinHandle;

use crate::limiter::Limiter;

/// At 100 requests a second two ingresses let 20 too many pass when a load begins, once.
pub(crate) const EVERY: Duration = Duration::from_millis(200);
/// Ticks between two questions of an ingress that is alone.
const ALONE_TICKS: u32 = 5;
/// Longer than a server takes on a machine that is too busy; what is not told by then is forgotten.
const PATIENCE: Duration = Duration::from_secs(4);
/// Clients a limit and report: the rest is told with the next one.
const TOLD_MAX: usize = 2000;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    ticks: u32,
    others: Arc<AtomicUsize>,
    /// When the last question was asked, and how many milliseconds its answer took.
    asked: Option<Instant>,
    took_ms: Arc<AtomicU64>,
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
        let (client, proxy) = (client.clone(), proxy.to_owned());
        let (others, took_ms) = (self.others.clone(), self.took_ms.clone());
        let before = self.asked.replace(Instant::now());
        self.asking = Some(tokio::spawn(async move {
            let asked = Instant::now();
            // What is told has passed since the last question, and is as long on its way as that one was.
            let since = before.map_or(Duration::ZERO, |before| asked.duration_since(before));
            let age_ms = millis(since) + took_ms.load(Ordering::Relaxed);
            let told = LimitsTaken { others: 0, age_ms, limits: limits.iter().map(tell).collect() };
            match tokio::time::timeout(PATIENCE, client.share_limits(&proxy, &told)).await {
                Ok(Ok(heard)) => {
                    others.store(heard.others, Ordering::Relaxed);
                    took_ms.store(millis(asked.elapsed()), Ordering::Relaxed);
                    hear(&limits, &heard, Duration::from_millis(heard.age_ms) + asked.elapsed());
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

/// A part of one counts as whole: what is told is not older than it is said to be.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4) + 1
}

fn hear(limits: &[(String, Arc<Limiter>)], heard: &LimitsTaken, age: Duration) {
    let known: BTreeMap<&str, &Arc<Limiter>> =
        limits.iter().map(|(name, limiter)| (name.as_str(), limiter)).collect();
    for limiter in known.values() {
        limiter.account(heard.others > 0);
    }
    for LimitTaken { limit, taken } in &heard.limits {
        let Some(limiter) = known.get(limit.as_str()) else { continue };
        for (whose, count) in taken {
            if let Ok(whose) = u128::from_str_radix(whose, 16) {
                limiter.others_took(whose, *count, age);
            }
        }
    }
}
