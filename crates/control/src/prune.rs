//! Keeps artifacts and sealed secrets bounded.

use std::collections::BTreeSet;
use std::time::Duration;

use rung_api::wire::ReleaseListing;
use rung_model::{AppName, Digest, Goal, Release, ReleaseNumber, Run, RunKind, SecretName, keys};
use rung_planner::World;
use rung_store::{Guard, Op};

use crate::reconcile::Reconcile;
use crate::shared::Control;

/// How many distinct artifacts of successful releases an app keeps.
const ARTIFACTS_KEPT: usize = 10;

/// A tree that was uploaded belongs to nothing until its deployment is recorded.
const SPARE_UPLOADS_FOR: Duration = Duration::from_secs(3600);

const EVERY: Duration = Duration::from_secs(600);

pub(crate) async fn prune_now_and_then(control: Control) {
    let mut unnamed = BTreeSet::new();
    loop {
        tokio::time::sleep(EVERY).await;
        control.prune(SPARE_UPLOADS_FOR, &mut unnamed).await;
    }
}

impl Control {
    /// One round; what fails is tried again in the next. `unnamed` are the sealed values that the round before found no
    /// name for: one is written a moment before the record that names it.
    async fn prune(&self, spare_uploads_for: Duration, unnamed: &mut BTreeSet<String>) {
        // One of several servers is enough for what they share; the one that plans knows best what is needed.
        let plans = self.read_loop(Reconcile::leads);
        match self.inner.trees.prune(|| self.read(artifacts_in_use), spare_uploads_for, plans).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "artifacts pruned"),
            Err(error) => tracing::warn!(%error, "pruning artifacts"),
        }
        let apps = self.read(|world| world.apps.keys().cloned().collect::<BTreeSet<_>>());
        if let Err(error) = self.inner.repositories.prune(|app| apps.contains(app)).await {
            tracing::warn!(%error, "pruning repositories");
        }
        self.prune_run_logs();
        match self.prune_secrets(unnamed).await {
            Ok(found) => *unnamed = found,
            Err(error) => tracing::warn!(%error, "pruning secrets"),
        }
    }

    /// Removes sealed versions that no release and no app names, now and in the round before; answers those that are
    /// unnamed since now.
    async fn prune_secrets(
        &self,
        unnamed_before: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, rung_store::StoreError> {
        let mut unnamed = BTreeSet::new();
        let named = self.read(secrets_in_use);
        let mut from: Option<String> = None;
        loop {
            let page = self.inner.store.list(keys::SECRETS, from.as_deref(), 100).await?.value;
            for entry in page.entries.into_iter().filter(|entry| !named.contains(&entry.key)) {
                if !unnamed_before.contains(&entry.key) {
                    unnamed.insert(entry.key);
                    continue;
                }
                let guard = Guard::Modified { key: entry.key.clone(), revision: entry.modified };
                self.inner.store.txn(vec![guard], vec![Op::Delete { key: entry.key }]).await?;
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(unnamed),
            }
        }
    }
}

/// What runs or is being deployed, and the newest distinct artifacts of successful releases.
pub fn artifacts_in_use(world: &World) -> BTreeSet<Digest> {
    let mut keep = BTreeSet::new();
    for (app, held) in &world.apps {
        let mut distinct = BTreeSet::new();
        for number in held.value.succeeded.iter().rev() {
            let Some(release) = world.release(app, *number) else { continue };
            if distinct.len() < ARTIFACTS_KEPT {
                distinct.insert(release.artifact.clone());
            }
        }
        keep.append(&mut distinct);
        keep.extend(waiting(world, app).take(ARTIFACTS_KEPT).map(|release| release.artifact.clone()));
        let current = held.value.current.and_then(|number| world.release(app, number));
        keep.extend(current.map(|release| release.artifact.clone()));
        if let Some(deployment) = world.active_deployment(app) {
            let release = deployment.release.and_then(|number| world.release(app, number));
            keep.extend(release.map(|release| release.artifact.clone()));
            let draft = deployment.draft.as_ref();
            keep.extend(draft.and_then(|draft| draft.source.clone()));
            keep.extend(draft.and_then(|draft| draft.artifact.clone()));
        }
    }
    for held in world.assignments.values() {
        for assigned in held.value.instances.values() {
            let release = world.release(&assigned.app, assigned.release);
            keep.extend(release.map(|release| release.artifact.clone()));
        }
    }
    let going = world.runs.values().map(|held| &held.value).filter(|run| !run.has_ended());
    keep.extend(going.filter_map(|run| artifact_of(world, run)));
    for (app, jobs) in &world.jobs {
        let pinned = jobs.values().filter_map(|held| world.release(app, held.value.pinned?));
        keep.extend(pinned.map(|release| release.artifact.clone()));
    }
    keep
}

fn artifact_of(world: &World, run: &Run) -> Option<Digest> {
    match &run.kind {
        RunKind::Build { source, .. } => Some(source.clone()),
        RunKind::Release { release, .. } | RunKind::Job { release, .. } | RunKind::OneOff { release, .. } => {
            world.release(&run.app, *release).map(|release| release.artifact.clone())
        }
    }
}

fn secrets_in_use(world: &World) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let mut name = |app: &AppName, secrets: &std::collections::BTreeMap<SecretName, u64>| {
        named.extend(secrets.iter().map(|(secret, version)| keys::secret(app, secret, *version)));
    };
    for (app, held) in &world.apps {
        name(app, &held.value.secrets);
        let drafts = world.active_deployment(app).and_then(|deployment| deployment.draft.as_ref());
        drafts.into_iter().for_each(|draft| name(app, &draft.secrets));
    }
    for (app, releases) in &world.releases {
        releases.values().for_each(|held| name(app, &held.value.secrets));
    }
    named
}

/// Releases that were made to be rolled out later, and were not yet; newest first.
fn waiting<'w>(world: &'w World, app: &AppName) -> impl Iterator<Item = &'w Release> + use<'w> {
    let app = app.clone();
    let releases = world.releases.get(&app).into_iter().flat_map(|of_app| of_app.values().rev());
    releases.map(|held| &held.value).filter(move |release| waits(world, &app, release.number))
}

/// Whether the only deployment of a release was the one that made it, and was to do no more.
pub fn waits(world: &World, app: &AppName, number: ReleaseNumber) -> bool {
    let deployments = world.deployments.get(app).into_iter().flat_map(|of_app| of_app.values());
    let mut of_release = deployments
        .map(|held| &held.value)
        .filter(|deployment| deployment.release == Some(number))
        .peekable();
    of_release.peek().is_some() && of_release.all(|deployment| deployment.asked.goal == Goal::Release)
}

/// Whether a release may be asked for, to go back to or to roll out: as long as its artifact is there.
fn may_be_asked_for(world: &World, app: &AppName, number: ReleaseNumber) -> bool {
    let succeeded = world.apps.get(app).is_some_and(|held| held.value.succeeded.contains(&number));
    succeeded || waits(world, app, number)
}

/// Whether a release can still be rolled back to, or out, and its artifact stays.
pub fn is_available(in_use: &BTreeSet<Digest>, world: &World, app: &AppName, number: ReleaseNumber) -> bool {
    may_be_asked_for(world, app, number)
        && world.release(app, number).is_some_and(|release| in_use.contains(&release.artifact))
}

impl Control {
    /// What is not needed any more goes with the next pruning: until then it can be gone back to, and is shown so.
    pub(crate) async fn find_unpruned(&self, app: &AppName, listed: &mut [ReleaseListing]) {
        for release in listed.iter_mut().filter(|release| !release.available) {
            if self.read(|world| may_be_asked_for(world, app, release.number)) {
                release.available = self.inner.trees.is_known_to_have(&release.artifact).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rung_model::appfile;
    use rung_model::{App, keys};

    use super::*;

    fn digest(n: u64) -> Digest {
        Digest::new(format!("sha256:{n:064x}")).unwrap()
    }

    /// An app whose releases 1 to `count` all succeeded, each with an artifact of its own.
    fn world_of(count: u64) -> World {
        let app = AppName::new("shop").unwrap();
        let file =
            appfile::parse("rung.toml", "app = \"shop\"\n[services.web]\ncommand = \"serve\"\n").unwrap();
        let mut world = World::new(1);
        let mut record = App::new(app.clone());
        for n in 1..=count {
            let number = ReleaseNumber(n);
            let release = Release {
                app: app.clone(),
                number,
                artifact: digest(n),
                source: None,
                file: file.clone(),
                config: Default::default(),
                secrets: [(SecretName::new("TOKEN").unwrap(), n)].into(),
                at: jiff::Timestamp::UNIX_EPOCH,
                by: "ada".into(),
                reason: "deploy".into(),
                note: None,
                provenance: Default::default(),
            };
            record.succeeded.push(number);
            record.current = Some(number);
            world.put(&keys::release(&app, number), &serde_json::to_vec(&release).unwrap(), n).unwrap();
        }
        world.put(&keys::app(&app), &serde_json::to_vec(&record).unwrap(), count + 1).unwrap();
        world
    }

    #[test]
    fn the_artifacts_of_the_last_ten_successful_releases_are_kept_and_older_ones_go() {
        let kept = artifacts_in_use(&world_of(13));
        let expected: BTreeSet<Digest> = (4..=13).map(digest).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn a_release_that_serves_keeps_its_artifact_however_old_it_is() {
        let app = AppName::new("shop").unwrap();
        let mut world = world_of(13);
        let mut record = world.apps[&app].value.clone();
        record.current = Some(ReleaseNumber(1));
        world.put(&keys::app(&app), &serde_json::to_vec(&record).unwrap(), 99).unwrap();
        assert!(artifacts_in_use(&world).contains(&digest(1)), "what serves was about to be pruned");
        let in_use = artifacts_in_use(&world);
        assert!(is_available(&in_use, &world, &app, ReleaseNumber(1)));
        assert!(!is_available(&in_use, &world, &app, ReleaseNumber(2)), "v2 has no artifact to go back to");
    }

    #[test]
    fn sealed_values_that_a_release_names_are_in_use() {
        let named = secrets_in_use(&world_of(2));
        assert!(named.contains("secrets/shop/TOKEN/0000000001"), "{named:?}");
        assert!(!named.contains("secrets/shop/TOKEN/0000000003"), "{named:?}");
    }

    #[tokio::test]
    async fn pruning_removes_what_nobody_names_and_spares_what_was_just_uploaded() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("app");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("a"), "a").unwrap();
        let mut archive = Vec::new();
        let packed = rung_artifact::pack_source(&source, &mut archive).unwrap();
        let trees = crate::trees::Trees::open(&dir.path().join("artifacts"), &Default::default()).unwrap();
        let stream = || {
            let chunk: Result<bytes::Bytes, std::io::Error> = Ok(archive.clone().into());
            Box::pin(futures_util::stream::once(async move { chunk }))
        };
        let limits = rung_artifact::Limits::source();
        let wrong = trees.put(&digest(7), limits, stream()).await.unwrap_err();
        assert!(wrong.message.contains(packed.digest.as_str()), "{wrong}");
        assert!(
            !trees.has(&digest(7)).await.unwrap(),
            "an archive is kept under a digest that is not its own"
        );
        trees.put(&packed.digest, limits, stream()).await.unwrap();
        assert_eq!(
            trees.prune(BTreeSet::new, Duration::from_secs(60), true).await.unwrap(),
            0,
            "an upload was not spared"
        );
        assert!(trees.has(&packed.digest).await.unwrap());
        let hour = Duration::from_secs(3600);
        let age = || {
            let hex = packed.digest.as_str().trim_start_matches("sha256:");
            let path = dir.path().join("artifacts/trees").join(format!("{hex}.tar"));
            let file = std::fs::File::open(path).unwrap();
            file.set_modified(std::time::SystemTime::now() - 2 * hour).unwrap();
        };
        age();
        // A deploy has found it, and has not written yet that it needs it.
        assert!(trees.has(&packed.digest).await.unwrap());
        assert_eq!(trees.prune(BTreeSet::new, hour, true).await.unwrap(), 0, "it was removed under a deploy");
        age();
        assert_eq!(trees.prune(BTreeSet::new, hour, true).await.unwrap(), 1, "what is old stays for ever");
    }
}
