//! Walls between containers: by the addresses that an engine gives them nobody gets to another app's.
//!
//! An engine puts containers on a bridge, where each reaches all ports of each other one, and so does every process of the
//! machine: past the proxy, and past `allow`. So the kernel is told, by two tables of nftables, whose each container is:
//!
//! ```text
//!   from another container ──► bridge ──┐
//!   from a process         ──► output ──┼─► to an app's container? ─► from the same app, or root? else refused
//!   from elsewhere         ──► forward ─┘
//! ```
//!
//! Which containers there are is asked of the engine: before one is started and when it was, when one has ended, and again every
//! few seconds, for others start theirs, and whoever loads the machine's firewall anew flushes everybody's. Between the start of a
//! container and the moment when its address is known lie milliseconds; so what comes from an app does not get to what is
//! on an engine's network and was not heard of. An engine that does not answer changes nothing: what it said last stays so,
//! and so does what the kernel was told, also by the Rung before this one. With the last instance the tables go.
//!
//! The image's own processes can't put another's address on: containers have no `NET_RAW`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rung_model::Users;

use super::neighbours::Neighbours;
use super::nft::{self, NftError, Owner, nft, nothing};
use super::rules::{UsersOfApps, names, rules};
use crate::engine::{Engine, EngineError};

/// How long a container that somebody else has started may be out of reach for apps, and the tables away when they were
/// flushed.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// A network that is not this machine's own stays so; Podman takes its bridge away a moment before it says that the last
/// container on it has ended.
const ELSEWHERE_FOR: Duration = Duration::from_secs(3);
/// Lists are answered in milliseconds; nothing starts at an engine that is as busy as this.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Nothing at all by default: where apps are not told apart, nobody is kept from anything.
#[derive(Debug, Clone, Default)]
pub struct Walls(Option<Arc<Site>>);

#[derive(Debug)]
struct Site {
    owner: Owner,
    engine: Engine,
    /// Of this node's containers.
    tag: String,
    /// Where the users of apps are written down.
    users: PathBuf,
    /// How often it was asked for, so that a thousand who ask together are told together.
    asked: AtomicU64,
    told: tokio::sync::Mutex<Told>,
    shortfall: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Told {
    /// Who has asked up to here has been served.
    upto: u64,
    /// What the engine said last.
    seen: Option<Neighbours>,
    /// What the kernel knows.
    rules: Option<String>,
    /// Since when a container's way out is on no machine that is seen from here.
    elsewhere: Option<Instant>,
}

impl Walls {
    /// `users` is the file in which the node keeps them.
    pub fn new(engine: Engine, tag: &str, home: &Path, users: PathBuf) -> Self {
        Self(Some(Arc::new(Site {
            owner: Owner::new(tag, home),
            engine,
            tag: tag.to_owned(),
            users,
            asked: AtomicU64::new(0),
            told: tokio::sync::Mutex::default(),
            shortfall: Mutex::default(),
        })))
    }

    /// Why containers' addresses are open to others; `None`: they are not.
    pub fn shortfall(&self) -> Option<String> {
        match &self.0 {
            Some(site) => site.shortfall().clone(),
            None => Some("all apps run as one user; run rung as root".to_owned()),
        }
    }

    /// The kernel knows of every container that there is now when this returns. What fails is said by `rung doctor`, and
    /// keeps nothing from starting.
    pub async fn ensure(&self) {
        let Some(site) = &self.0 else { return };
        let turn = site.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut told = site.told.lock().await;
        if told.upto >= turn {
            return;
        }
        // Whoever asked until now is served by this look.
        let upto = site.asked.load(Ordering::SeqCst);
        site.tell(&mut told).await;
        told.upto = upto;
    }

    /// A container has ended; its address is somebody else's soon. Nobody needs to wait for it.
    pub fn left(&self) {
        if self.0.is_some() {
            let this = self.clone();
            tokio::spawn(async move { this.ensure().await });
        }
    }

    /// Looks after them as long as the agent lives.
    pub async fn keep(self) {
        let Some(site) = &self.0 else { return };
        loop {
            self.ensure().await;
            tokio::time::sleep(RENEW_EVERY).await;
            // What was told may have been flushed since.
            site.told.lock().await.rules = None;
        }
    }

    /// Every instance has ended.
    pub async fn remove(&self) {
        let Some(site) = &self.0 else { return };
        let mut told = site.told.lock().await;
        *told = Told { upto: told.upto, ..Told::default() };
        if let Err(error) = site.take_down().await {
            tracing::debug!(%error, "taking the tables of containers away");
        }
    }

    /// Whether it could be done here, by tables of no containers that go again: why not, when not.
    pub async fn trial(&self) -> Option<String> {
        let Some(site) = &self.0 else { return self.shortfall() };
        let tried = nft(&rules(&site.owner, &Neighbours::default(), &UsersOfApps::new())).await;
        let _ = site.take_down().await;
        tried.err().map(|error| error.to_string())
    }
}

impl Site {
    fn shortfall(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.shortfall.lock().expect("nothing panics while it is held")
    }

    async fn tell(&self, told: &mut Told) {
        match self.look().await {
            Ok(seen) => told.seen = Some(seen),
            Err(reason) => tracing::debug!(reason, "asking the engine who is on its networks"),
        }
        let Some(seen) = &told.seen else { return };
        let rules = rules(&self.owner, seen, &self.users());
        let since = seen.elsewhere.map(|_| told.elsewhere.unwrap_or_else(Instant::now));
        told.elsewhere = since;
        let is_lasting = since.is_some_and(|since| since.elapsed() > ELSEWHERE_FOR);
        let mut shortfall = seen.elsewhere.filter(|_| is_lasting).map(|gateway| {
            format!("the engine's networks are not this machine's own: nobody here has {gateway}, a container's way out")
        });
        if told.rules.as_ref() != Some(&rules) {
            told.rules = None;
            match nft(&rules).await {
                Ok(_) => told.rules = Some(rules),
                Err(error) => shortfall = Some(error.to_string()),
            }
        }
        let mut known = self.shortfall();
        if let Some(reason) = shortfall.as_ref().filter(|_| known.is_none()) {
            tracing::warn!(reason, "containers are open to other apps, by their own addresses");
        }
        *known = shortfall;
    }

    async fn look(&self) -> Result<Neighbours, String> {
        let asked = Neighbours::of(&self.engine, &self.tag);
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(seen) => seen.map_err(|error: EngineError| error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    fn users(&self) -> UsersOfApps {
        let read = std::fs::read(&self.users).ok();
        let users = read.and_then(|bytes| serde_json::from_slice::<Users>(&bytes).ok());
        users.into_iter().flat_map(|users| users.0).map(|(uid, app)| (app, uid)).collect()
    }

    /// Those that are there, also of the Rung before this one.
    async fn take_down(&self) -> Result<(), NftError> {
        let there = nft::tables().await?;
        for table in names(&self.owner).iter().filter(|table| there.contains(table)) {
            nft(&nothing(table)).await?;
        }
        Ok(())
    }
}
