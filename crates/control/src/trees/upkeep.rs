//! Brings artifacts to where they shall be, in the background: from this server's disk into the bucket when one was named,
//! and back when it is to be left.
//!
//! Level-triggered: each round looks at what is in use, so it does not matter where an earlier one was cut off. A bucket
//! that is away is told of once, and asked again with the next round.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use rung_api::{Code, ErrorBody};
use rung_model::Digest;

use super::bucket::{Bucket, Trouble};
use super::{PLACE_FILE, Part, TREES, Trees, digest_of};
use crate::prune::artifacts_in_use;
use crate::shared::Control;

/// After a change of the index; a deploy changes it some dozen times.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);
/// Without any change: what failed is tried again.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);
/// Somebody else may have removed what was there.
const LIST_EVERY: Duration = Duration::from_secs(600);
/// What a server keeps on its disk of a bucket: some dozen large applications, so that a rollback and a node that was
/// started anew need not wait for the bucket.
const CACHE_MAX_BYTES: u64 = 4 << 30;

const EVENT_KIND: &str = "artifacts";

impl From<ErrorBody> for Trouble {
    fn from(error: ErrorBody) -> Self {
        Self { what: error.message, way_out: error.hint.unwrap_or_default() }
    }
}

/// How it stands with the bucket.
#[derive(Debug)]
pub(crate) struct Held {
    pub place: String,
    pub state: Result<Holds, Wrong>,
}

#[derive(Debug)]
pub(crate) struct Holds {
    pub count: usize,
    /// In use, and neither there nor on this disk.
    pub missing: BTreeSet<Digest>,
    /// Left there: whoever reads another one is in another place.
    pub word: String,
}

#[derive(Debug)]
pub(crate) struct Wrong {
    pub what: String,
    pub way_out: String,
}

/// Runs as long as the server, where there is a bucket.
pub(crate) async fn keep_in_their_place(control: Control) {
    let trees = control.inner.trees.clone();
    let Some((bucket, part)) = &trees.inner.bucket else { return };
    let place = bucket.address().short();
    let tell = |message: String| control.record(None, EVENT_KIND, message);
    let mut changes = control.inner.changes.subscribe();
    let mut listed = None;
    let mut told: Option<Trouble> = None;
    loop {
        // Before the index is read nothing seems to be in use.
        let in_use = control.read(|world| (world.revision > 0).then(|| artifacts_in_use(world)));
        let moved = match (in_use, part) {
            (None, _) => Ok(0),
            (Some(in_use), Part::Home) => trees.settle(bucket, &in_use, &mut listed).await,
            (Some(in_use), Part::Left) => match trees.bring_back(bucket, &in_use).await {
                Ok(()) => {
                    let left = trees.forget_place();
                    tell(left.unwrap_or_else(|why| why));
                    return;
                }
                Err(trouble) => Err(trouble),
            },
        };
        match moved {
            Ok(moved) => {
                if told.take().is_some() {
                    tell(format!("{place} answers again"));
                }
                match moved {
                    0 => {}
                    1 => tell(format!("an artifact was copied from this disk to {place}")),
                    _ => tell(format!("{moved} artifacts were copied from this disk to {place}")),
                }
            }
            Err(trouble) => {
                if told.is_none() {
                    tell(format!("{place} can't be used: {}; {}", trouble.what, trouble.way_out));
                }
                told = Some(trouble);
            }
        }
        let _ = tokio::time::timeout(LOOK_ANYWAY, changes.changed()).await;
        tokio::time::sleep(SETTLES_WITHIN).await;
    }
}

impl Trees {
    /// Whatever is in use and on this disk only is sent to the bucket. Answers how many were.
    async fn settle(
        &self,
        bucket: &Bucket,
        in_use: &BTreeSet<Digest>,
        listed: &mut Option<Instant>,
    ) -> Result<usize, Trouble> {
        if listed.is_none_or(|at| at.elapsed() > LIST_EVERY) {
            bucket.list().await?;
            *listed = Some(Instant::now());
            self.keep_place();
        }
        let mut sent = 0;
        for digest in in_use {
            let is_here_only = !bucket.is_known_to_have(digest) && self.is_on_disk(digest).await?;
            if is_here_only && self.ensure_in_bucket(digest).await? {
                sent += 1;
            }
        }
        self.trim(bucket, CACHE_MAX_BYTES).await?;
        Ok(sent)
    }

    /// Drops what was brought longest ago, until the disk holds no more than that; nothing that is here only.
    pub(super) async fn trim(&self, bucket: &Bucket, max_bytes: u64) -> Result<(), Trouble> {
        let failed = |error: object_store::Error| Trouble {
            what: format!("tidying the cache of artifacts: {error}"),
            way_out: "is the disk full? `rung doctor` tells".to_owned(),
        };
        let listed = self.inner.disk.list(Some(&TREES.into()));
        let mut listed: Vec<_> = listed.try_collect().await.map_err(failed)?;
        listed.sort_by_key(|object| std::cmp::Reverse(object.last_modified));
        let mut bytes = 0;
        for object in listed {
            bytes += object.size;
            let is_there = digest_of(&object.location).is_some_and(|digest| bucket.is_known_to_have(&digest));
            if bytes > max_bytes && is_there {
                self.inner.disk.delete(&object.location).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Whatever is in use comes to this disk; what the bucket does not have can't.
    async fn bring_back(&self, bucket: &Bucket, in_use: &BTreeSet<Digest>) -> Result<(), Trouble> {
        for digest in in_use {
            if self.is_on_disk(digest).await? {
                continue;
            }
            match self.bring(bucket, digest).await {
                Err(error) if matches!(error.code, Code::NotFound | Code::InvalidArchive) => {
                    tracing::warn!(%digest, %error, "an artifact can't be brought back");
                }
                brought => brought?,
            }
        }
        Ok(())
    }

    /// All that is in use is on this disk: the next start needs no bucket.
    fn forget_place(&self) -> Result<String, String> {
        let place = self.any_bucket().map(|bucket| bucket.address().short()).unwrap_or_default();
        match std::fs::remove_file(self.inner.directory.join(PLACE_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("artifacts are on this disk again, but it can't be written down: {error}"))
            }
            _ => Ok(format!("artifacts in use are on this disk again; nothing needs {place} any more")),
        }
    }

    /// How it stands with the bucket now; `None` where there is none.
    pub(crate) async fn check(&self, in_use: &BTreeSet<Digest>) -> Option<Held> {
        let bucket = self.any_bucket()?;
        let word = format!("written by rung doctor, {}\n", crate::keyring::random_word());
        let state = match bucket.check(&word).await {
            Ok(found) => {
                self.keep_place();
                let mut missing = BTreeSet::new();
                for digest in in_use {
                    let is_there = found.contains_key(digest) && !bucket.is_damaged(digest);
                    if !is_there && !self.is_on_disk(digest).await.unwrap_or(false) {
                        missing.insert(digest.clone());
                    }
                }
                Ok(Holds { count: found.len(), missing, word })
            }
            Err(Trouble { what, way_out }) => Err(Wrong { what, way_out }),
        };
        Some(Held { place: bucket.address().short(), state })
    }
}
