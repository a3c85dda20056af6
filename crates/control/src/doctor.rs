//! `rung doctor`: what is not as it should be, and the way out.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rung_api::wire::{DoctorCheck, DoctorReport, DoctorState};
use rung_model::{Digest, Generation, NodeId};
use rung_store::{Op, Txn};

use crate::quorum::Backing;
use crate::shared::Control;
use crate::trees::{Held, TOGETHER};

/// An agent beats every 2 s and is lost at 8 s.
const AGENT_LOST_AFTER: Duration = Duration::from_secs(8);

/// Below this much free space a deploy is likely to fail.
const DISK_LOW_BYTES: u64 = 1 << 30;

/// What was found, with the way out.
pub fn check(name: &str, state: DoctorState, detail: impl Into<String>, hint: Option<&str>) -> DoctorCheck {
    DoctorCheck { name: name.to_owned(), state, detail: detail.into(), hint: hint.map(str::to_owned) }
}

/// How much room there is on the disk of `path`.
pub fn check_disk(path: &Path, way_out: &str) -> DoctorCheck {
    let shown = path.display();
    match nix::sys::statvfs::statvfs(path) {
        Ok(found) => {
            let free_bytes = found.blocks_available() * found.fragment_size();
            let detail = format!("{} MB free at {shown}", free_bytes / 1_000_000);
            if free_bytes < DISK_LOW_BYTES {
                check("disk", DoctorState::Warning, detail, Some(way_out))
            } else {
                check("disk", DoctorState::Fine, detail, None)
            }
        }
        Err(error) => check("disk", DoctorState::Broken, format!("looking at {shown}: {error}"), None),
    }
}

impl Control {
    pub(crate) async fn doctor(&self) -> DoctorReport {
        let mut checks = vec![self.check_store().await];
        checks.push(check_disk(&self.inner.data, "free some space, or move the data directory"));
        checks.extend(self.check_artifacts().await);
        checks.extend(self.check_agents());
        checks.extend(self.check_disks());
        checks.push(self.check_ingress());
        checks.extend(self.check_apps());
        checks.extend(self.check_secrets().await);
        checks.extend(self.check_certificates());
        let isolation = self.read(|world| {
            world
                .nodes
                .values()
                .map(|held| (held.value.id.clone(), held.value.facts.isolation.clone()))
                .collect()
        });
        DoctorReport { version: self.inner.version.clone(), checks, isolation }
    }

    async fn check_store(&self) -> DoctorCheck {
        let op = Op::Put { key: "doctor".to_owned(), value: Vec::new(), lease: None };
        match self.txn(Vec::new(), vec![op]).await {
            Ok(Txn::Committed(revision)) => {
                let epoch = self.inner.store.epoch();
                check("store", DoctorState::Fine, format!("writable, at generation {epoch}.{revision}"), None)
            }
            Ok(outcome) => check(
                "store",
                DoctorState::Broken,
                format!("a write ended as {outcome:?}"),
                Some("start rung again"),
            ),
            Err(error) => check(
                "store",
                DoctorState::Broken,
                error.to_string(),
                Some(
                    "free some space on the disk of the data directory; what runs goes on meanwhile, what crashes is not started again",
                ),
            ),
        }
    }

    /// Of a bucket, and of servers that have another one: what is on the disk is seen with the disk.
    async fn check_artifacts(&self) -> Vec<DoctorCheck> {
        let in_use = self.read(crate::prune::artifacts_in_use);
        let held = self.inner.trees.check(&in_use).await;
        let apart = self.artifacts_apart(held.as_ref()).await.into_iter();
        let apart = apart.map(|what| check("artifacts", DoctorState::Warning, what, Some(TOGETHER)));
        held.map(|held| self.check_bucket(held)).into_iter().chain(apart).collect()
    }

    fn check_bucket(&self, held: Held) -> DoctorCheck {
        let place = held.place;
        match held.state {
            Err(wrong) => check(
                "artifacts",
                DoctorState::Broken,
                format!("{place}: {}", wrong.what),
                Some(&wrong.way_out),
            ),
            Ok(holds) if holds.missing.is_empty() => {
                let detail = format!("{place} can be read and written; {} there", holds.count);
                check("artifacts", DoctorState::Fine, detail, None)
            }
            Ok(holds) => {
                let of = self.releases_of(&holds.missing).join(", ");
                let detail = format!("neither in {place} nor on this disk: {of}");
                let way_out = "what runs goes on, and can't be started on other nodes; deploy these again";
                check("artifacts", DoctorState::Broken, detail, Some(way_out))
            }
        }
    }

    /// Whose artifacts these are, as `shop v7`.
    fn releases_of(&self, artifacts: &BTreeSet<Digest>) -> Vec<String> {
        self.read(|world| {
            let newest_of = |digest: &Digest| {
                let all = world.releases.iter().flat_map(|(app, releases)| {
                    releases.iter().rev().map(move |(number, held)| (app, number, &held.value.artifact))
                });
                let mut of_it = all.filter(|(_, _, artifact)| *artifact == digest);
                of_it.next().map_or_else(|| digest.to_string(), |(app, number, _)| format!("{app} {number}"))
            };
            artifacts.iter().map(newest_of).collect()
        })
    }

    /// Of several servers each agent beats at one, which tells the others.
    fn heard_of_elsewhere(&self) -> BTreeSet<NodeId> {
        if !matches!(self.inner.backing, Backing::Several(_)) {
            return BTreeSet::new();
        }
        self.read_loop(|reconcile| {
            let (nodes, liveness) = (reconcile.world().nodes.keys(), reconcile.liveness());
            nodes
                .filter(|node| !liveness.is_lost(node) && !liveness.silent().contains(*node))
                .cloned()
                .collect()
        })
    }

    fn check_agents(&self) -> Vec<DoctorCheck> {
        let beats = self.inner.beats.lock().expect("no panic while held").clone();
        let nodes: Vec<_> = self.read(|world| world.nodes.keys().cloned().collect());
        let elsewhere = self.heard_of_elsewhere();
        let describe = |node: &NodeId| match beats.get(node).map(std::time::Instant::elapsed) {
            Some(ago) if ago < AGENT_LOST_AFTER => {
                check(&format!("agent {node}"), DoctorState::Fine, "beats", None)
            }
            _ if elsewhere.contains(node) => {
                check(&format!("agent {node}"), DoctorState::Fine, "beats, at another server", None)
            }
            Some(ago) => check(
                &format!("agent {node}"),
                DoctorState::Broken,
                format!("was last heard of {} s ago", ago.as_secs()),
                Some("its instances go on; start rung again on that machine"),
            ),
            None => {
                check(&format!("agent {node}"), DoctorState::Broken, "was not heard of since the start", None)
            }
        };
        nodes.iter().map(describe).collect()
    }

    /// Of the machines whose disks are full; this one's is looked at beside.
    fn check_disks(&self) -> Vec<DoctorCheck> {
        let short: Vec<_> = self.read(|world| {
            let nodes = world.nodes.values().map(|held| &held.value);
            nodes.filter_map(|node| Some((node.id.clone(), node.facts.short_of_disk?))).collect()
        });
        let describe = |(node, free_bytes): (NodeId, u64)| {
            check(
                &format!("disk of {node}"),
                DoctorState::Broken,
                format!("is full: {} MB were free when it became so", free_bytes / 1_000_000),
                Some(
                    "free some space on that machine; what runs there goes on, nothing new is put there meanwhile",
                ),
            )
        };
        short.into_iter().map(describe).collect()
    }

    fn check_ingress(&self) -> DoctorCheck {
        let proxies = self.read_loop(|reconcile| reconcile.proxies().clone());
        let following: Vec<&String> = proxies
            .0
            .iter()
            .filter(|(_, proxy)| proxy.silent_since.is_none())
            .map(|(name, _)| name)
            .collect();
        let ever = Generation::new(u64::MAX, u64::MAX);
        let silent = proxies.given_up(ever, self.clock().elapsed);
        let silent: Vec<&str> =
            self.read(|world| silent.into_iter().filter(|name| world.knows_machine_of(name)).collect());
        if !silent.is_empty() && !following.is_empty() {
            let said = format!("not heard of: {}; what is served there may be old", silent.join(", "));
            let hint = "start rung there; when the machine is gone for good, `rung node remove` it";
            return check("ingress", DoctorState::Broken, said, Some(hint));
        }
        match following.as_slice() {
            [] => check(
                "ingress",
                DoctorState::Broken,
                "no ingress follows the routes",
                Some("look for `ingress` in `rung events`"),
            ),
            [one] => check(
                "ingress",
                DoctorState::Fine,
                format!("{one} follows the routes at {}", self.inner.http),
                None,
            ),
            several => {
                check("ingress", DoctorState::Fine, format!("{} follow the routes", several.len()), None)
            }
        }
    }

    /// A lost or replaced key is found here, not at the next start of an instance.
    async fn check_secrets(&self) -> Vec<DoctorCheck> {
        let apps: Vec<_> = self.read(|world| {
            let of_app = |app: &rung_model::App| {
                let current = app.current.and_then(|number| world.release(&app.name, number));
                (
                    app.name.clone(),
                    current.map_or_else(|| app.secrets.clone(), |release| release.secrets.clone()),
                )
            };
            world.apps.values().map(|held| of_app(&held.value)).collect()
        });
        let mut checks = Vec::new();
        for (app, secrets) in apps {
            if let Err(error) = self.refuse_lost_secrets(&app, &secrets).await {
                checks.push(DoctorCheck {
                    name: format!("secrets of {app}"),
                    state: DoctorState::Broken,
                    detail: error.message,
                    hint: error.hint,
                });
            }
        }
        checks
    }

    fn check_apps(&self) -> Vec<DoctorCheck> {
        let apps: Vec<_> = self.read(|world| world.apps.keys().cloned().collect());
        let mut checks = Vec::new();
        for app in apps {
            let status =
                self.read_loop(|reconcile| crate::status::app_status(reconcile, &app, &self.inner.http));
            for problem in status.map(|status| status.problems).unwrap_or_default() {
                checks.push(check(
                    &format!("app {app}"),
                    DoctorState::Warning,
                    problem,
                    Some("`rung logs` tells more"),
                ));
            }
        }
        checks
    }
}
