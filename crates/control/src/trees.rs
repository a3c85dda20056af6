//! Uploaded sources and built artifacts, addressed by digest: on this server's disk, or in a bucket of an S3-compatible
//! object store.
//!
//! What arrives is checked on its way to the disk ([`checked`]), so nothing is ever kept under a digest that is not its
//! own. Where there is a [`bucket`], it goes there from the disk before the upload is answered, and the disk is a bounded
//! cache: what is not on it comes from the bucket, by the same check. Nodes ask servers and know nothing of buckets.
//!
//! What it deliberately does not do: it does not know which artifacts are needed (see [`crate::prune`]), and asks no other
//! server (see [`crate::replicas`]).

mod apart;
mod bucket;
mod carrier;
mod checked;
mod credentials;
mod place;
mod upkeep;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use rung_api::{Code, ErrorBody};
use rung_artifact::Limits;
use rung_model::Digest;

use self::bucket::{Bucket, Trouble};
use self::checked::Refusal;
use crate::turns::Turns;

pub(crate) use self::apart::TOGETHER;
pub use self::bucket::BucketError;
pub use self::credentials::CredentialsError;
pub use self::place::{BucketAddress, InvalidPlace, Place};
pub(crate) use self::upkeep::{Held, keep_in_their_place};

/// Where trees are, on disk and in a bucket.
const TREES: &str = "trees";

/// Which bucket it is, once it has been reached.
const PLACE_FILE: &str = "place";

#[derive(Debug, thiserror::Error)]
pub enum TreesError {
    #[error("making the directory {path}")]
    Directory { path: String, source: io::Error },
    #[error("opening the object store at {path}")]
    Open { path: String, source: object_store::Error },
    #[error("reading {path}, which says where artifacts are")]
    Place { path: String, source: io::Error },
    #[error("understanding {path}, which says where artifacts are")]
    Invalid { path: String, source: InvalidPlace },
    #[error(
        "artifacts are in {now}, and not in {wanted}: bring them back with --artifacts disk first, then name the other"
    )]
    Elsewhere { now: String, wanted: String },
    #[error("keeping artifacts in {bucket}")]
    Bucket { bucket: String, source: BucketError },
}

/// Where artifacts shall be.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// What was said at the start; otherwise it is where it was.
    pub place: Option<Place>,
    /// Where systemd puts credentials.
    pub systemd: Option<PathBuf>,
}

/// What a bucket is to this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Artifacts live there.
    Home,
    /// They are brought back from there.
    Left,
}

#[derive(Debug, Clone)]
pub struct Trees {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    disk: Arc<dyn ObjectStore>,
    bucket: Option<(Bucket, Part)>,
    /// What is being brought from the bucket.
    bringing: Turns<Digest>,
    /// Held alone while a tree is looked at a last time and removed, and shared while one is found and spared.
    removing: tokio::sync::RwLock<()>,
    is_place_kept: AtomicBool,
}

fn object_path(digest: &Digest) -> ObjectPath {
    ObjectPath::from(format!("{TREES}/{}.tar", digest.as_str().trim_start_matches("sha256:")))
}

fn digest_of(path: &ObjectPath) -> Option<Digest> {
    let hex = path.filename()?.strip_suffix(".tar")?;
    Digest::new(format!("sha256:{hex}")).ok()
}

impl Trees {
    /// Asks no bucket yet: what runs must be looked after while one is away.
    pub fn open(directory: &Path, setting: &Setting) -> Result<Self, TreesError> {
        let path = directory.display().to_string();
        std::fs::create_dir_all(directory)
            .map_err(|source| TreesError::Directory { path: path.clone(), source })?;
        let disk = LocalFileSystem::new_with_prefix(directory)
            .map_err(|source| TreesError::Open { path, source })?
            .with_fsync(true);
        let kept = kept_place(directory)?;
        let bucket = match decide(setting.place.clone(), kept.clone())? {
            None => None,
            Some((address, part)) => {
                let name = address.short();
                let data = directory.parent().unwrap_or(directory);
                let bucket = Bucket::new(address, data, setting.systemd.as_deref())
                    .map_err(|source| TreesError::Bucket { bucket: name, source })?;
                Some((bucket, part))
            }
        };
        let is_place_kept = match (&bucket, kept) {
            (Some((bucket, Part::Home)), kept) => kept.as_ref() == Some(bucket.address()),
            _ => true,
        };
        Ok(Self::made(directory, Arc::new(disk), bucket, is_place_kept))
    }

    fn made(
        directory: &Path,
        disk: Arc<dyn ObjectStore>,
        bucket: Option<(Bucket, Part)>,
        is_place_kept: bool,
    ) -> Self {
        let (directory, bringing) = (directory.to_owned(), Turns::default());
        let is_place_kept = AtomicBool::new(is_place_kept);
        let removing = tokio::sync::RwLock::default();
        Self { inner: Arc::new(Inner { directory, disk, bucket, bringing, removing, is_place_kept }) }
    }

    /// The bucket where artifacts live.
    fn home(&self) -> Option<&Bucket> {
        self.inner.bucket.as_ref().filter(|(_, part)| *part == Part::Home).map(|(bucket, _)| bucket)
    }

    /// The bucket that is read, at least.
    fn any_bucket(&self) -> Option<&Bucket> {
        self.inner.bucket.as_ref().map(|(bucket, _)| bucket)
    }

    /// Whether all servers have the same artifacts without giving them to each other.
    pub fn are_shared(&self) -> bool {
        self.home().is_some()
    }

    async fn is_on_disk(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        match self.inner.disk.head(&object_path(digest)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(disk_error("looking for", digest, &chain(&error))),
        }
    }

    /// Whoever looks for one is about to need it, and it may belong to nothing yet: from now on it is spared as an upload is.
    async fn find_and_spare(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        let _kept = self.inner.removing.read().await;
        let on_disk = self.is_on_disk(digest).await?;
        if on_disk {
            let path = self.inner.directory.join(object_path(digest).as_ref());
            let touched = std::fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
            touched.map_err(|error| disk_error("sparing", digest, &error.to_string()))?;
        }
        Ok(on_disk)
    }

    pub async fn has(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        let on_disk = self.find_and_spare(digest).await?;
        match (on_disk, self.any_bucket()) {
            (false, Some(bucket)) => bucket.has(digest).await,
            (false, None) => Ok(false),
            (true, _) => {
                // A release that is made of it must not hang on this disk alone; upkeep tries again.
                if let Err(error) = self.ensure_in_bucket(digest).await {
                    tracing::warn!(%digest, %error, "an artifact is on this disk only");
                }
                Ok(true)
            }
        }
    }

    /// Behind the name of an artifact that is not to be had.
    pub fn why_not(&self, digest: &Digest) -> &'static str {
        match self.any_bucket() {
            Some(bucket) if bucket.is_damaged(digest) => "is damaged where it is kept",
            _ => "is not kept any more",
        }
    }

    /// By what is known without asking anybody far away.
    pub async fn is_known_to_have(&self, digest: &Digest) -> bool {
        self.any_bucket().is_some_and(|bucket| bucket.is_known_to_have(digest))
            || self.is_on_disk(digest).await.unwrap_or(false)
    }

    /// Stores an archive under its digest, or nothing.
    pub async fn put<S, E>(&self, digest: &Digest, limits: Limits, archive: S) -> Result<(), ErrorBody>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let was_here = self.is_on_disk(digest).await?;
        let stored = checked::put(&self.inner.disk, digest, limits, archive).await;
        stored.map_err(|refusal| refused_upload(digest, refusal))?;
        if self.home().is_none() {
            return Ok(());
        }
        // On its own: whoever uploads may go away, and half an upload would stay in the bucket for nobody.
        let (trees, digest) = (self.clone(), digest.clone());
        let sending = tokio::spawn(async move {
            let sent = trees.send(&digest).await;
            if sent.is_err() && !was_here {
                // Otherwise the next one would be told that it is kept.
                let _ = trees.inner.disk.delete(&object_path(&digest)).await;
            }
            sent
        });
        sending.await.map_err(|_| ErrorBody::new(Code::Internal, "sending an artifact panicked"))?
    }

    /// To the bucket, from the disk.
    async fn send(&self, digest: &Digest) -> Result<(), ErrorBody> {
        let Some(bucket) = self.home() else { return Ok(()) };
        let found = self.inner.disk.get(&object_path(digest)).await;
        let found = found.map_err(|error| disk_error("reading", digest, &chain(&error)))?;
        bucket.put(digest, found.into_stream()).await?;
        self.keep_place();
        Ok(())
    }

    /// `true` when it was sent there now.
    async fn ensure_in_bucket(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        let Some(bucket) = self.home() else { return Ok(false) };
        if bucket.is_known_to_have(digest) || bucket.has(digest).await? {
            return Ok(false);
        }
        self.send(digest).await?;
        Ok(true)
    }

    /// The archive as a stream of chunks.
    pub async fn get(
        &self,
        digest: &Digest,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>, ErrorBody> {
        // The cache may drop it in between, once.
        for _ in 0..2 {
            match self.inner.disk.get(&object_path(digest)).await {
                Ok(found) => return Ok(found.into_stream()),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(disk_error("reading", digest, &chain(&error))),
            }
            match self.any_bucket() {
                Some(bucket) => self.bring(bucket, digest).await?,
                None => break,
            }
        }
        Err(ErrorBody::new(Code::NotFound, format!("artifact {digest} is not kept here"))
            .hint("old artifacts are pruned; deploy the source again"))
    }

    /// From the bucket to the disk. Whole and checked, before anybody gets a byte of it.
    async fn bring(&self, bucket: &Bucket, digest: &Digest) -> Result<(), ErrorBody> {
        let _turn = self.inner.bringing.take(digest).await;
        if self.is_on_disk(digest).await? {
            return Ok(());
        }
        let archive = bucket.get(digest).await?;
        let stored = checked::put(&self.inner.disk, digest, Limits::tree(), archive).await;
        let place = bucket.address().short();
        let damaged = |what: String| {
            bucket.found_damaged(digest);
            ErrorBody::new(Code::InvalidArchive, format!("artifact {digest} in {place} is damaged: {what}"))
                .hint("deploy its source again: that stores it anew")
        };
        stored.map_err(|refusal| match refusal {
            Refusal::Another(found) => damaged(format!("it holds a tree with digest {found}")),
            Refusal::NoArchive(why) => damaged(why),
            Refusal::BrokenOff(why) => {
                let message = format!("reading artifact {digest} in {place}: {why}");
                ErrorBody::new(Code::Unavailable, message).hint("`rung doctor` says whether it answers")
            }
            other => refused_upload(digest, other),
        })
    }

    /// The files of an artifact by their paths.
    pub async fn listing(&self, digest: &Digest) -> Result<crate::diff::Tree, ErrorBody> {
        let listed = checked::list(digest, self.get(digest).await?).await;
        listed.map_err(|why| ErrorBody::new(Code::Internal, why))
    }

    /// Removes every tree that is not needed and is older than `spare`, which spares what was just uploaded; from a bucket
    /// only when `also_in_bucket`: one server is enough for that.
    pub async fn prune(
        &self,
        needed: impl Fn() -> BTreeSet<Digest>,
        spare: Duration,
        also_in_bucket: bool,
    ) -> Result<u64, PruneError> {
        let listed = self.inner.disk.list(Some(&TREES.into()));
        let listed: Vec<_> = listed.try_collect().await?;
        let keep = needed();
        let is_old =
            |since: i64| jiff::Timestamp::now().as_second().saturating_sub(since) > spare.as_secs() as i64;
        let mut removed = 0;
        for object in listed {
            let is_kept = digest_of(&object.location).is_some_and(|digest| keep.contains(&digest));
            if is_kept || !is_old(object.last_modified.timestamp()) {
                continue;
            }
            let _alone = self.inner.removing.write().await;
            // It may have been found since it was listed.
            let now = self.inner.disk.head(&object.location).await?;
            if is_old(now.last_modified.timestamp()) {
                self.inner.disk.delete(&object.location).await?;
                removed += 1;
            }
        }
        if let Some(bucket) = self.home().filter(|_| also_in_bucket) {
            let listed = bucket.list().await?;
            // What became needed while that took its time.
            let keep = needed();
            for (digest, since) in listed {
                if !keep.contains(&digest) && is_old(since.as_second()) {
                    bucket.remove(&digest).await?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// The bucket was reached: later starts know it without being told.
    fn keep_place(&self) {
        let Some(bucket) = self.home() else { return };
        if self.inner.is_place_kept.swap(true, Ordering::AcqRel) {
            return;
        }
        let file = self.inner.directory.join(PLACE_FILE);
        let text = format!("{}\n", Place::Bucket(bucket.address().clone()));
        if let Err(error) = rung_api::seal::write_private(&file, text.as_bytes()) {
            tracing::warn!(%error, "writing where artifacts are");
            self.inner.is_place_kept.store(false, Ordering::Release);
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Disk(#[from] object_store::Error),
    #[error("{0}")]
    Bucket(String),
}

impl From<Trouble> for PruneError {
    fn from(trouble: Trouble) -> Self {
        Self::Bucket(trouble.what)
    }
}

fn kept_place(directory: &Path) -> Result<Option<BucketAddress>, TreesError> {
    let file = directory.join(PLACE_FILE);
    let path = || file.display().to_string();
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(Place::Bucket(address)) => Ok(Some(address)),
            Ok(Place::Disk) => Ok(None),
            Err(source) => Err(TreesError::Invalid { path: path(), source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TreesError::Place { path: path(), source }),
    }
}

/// What is said now, over what was.
fn decide(
    said: Option<Place>,
    kept: Option<BucketAddress>,
) -> Result<Option<(BucketAddress, Part)>, TreesError> {
    match (said, kept) {
        (None | Some(Place::Disk), None) => Ok(None),
        (None, Some(kept)) => Ok(Some((kept, Part::Home))),
        (Some(Place::Disk), Some(kept)) => Ok(Some((kept, Part::Left))),
        (Some(Place::Bucket(said)), Some(kept)) if !said.is_same_place(&kept) => {
            Err(TreesError::Elsewhere { now: kept.short(), wanted: said.short() })
        }
        (Some(Place::Bucket(said)), _) => Ok(Some((said, Part::Home))),
    }
}

fn refused_upload(digest: &Digest, refusal: Refusal) -> ErrorBody {
    match refusal {
        Refusal::BrokenOff(why) => {
            let message = format!("archive did not arrive whole: {why}");
            ErrorBody::new(Code::InvalidArchive, message).hint("deploy again")
        }
        Refusal::Another(found) => {
            let message = format!("archive holds a tree with digest {found}, not {digest}");
            ErrorBody::new(Code::InvalidArchive, message)
                .hint("the directory changed while it was packed, or the transfer was damaged; deploy again")
        }
        Refusal::NoArchive(why) => ErrorBody::new(Code::InvalidArchive, why),
        Refusal::Disk(why) => disk_error("storing", digest, &why),
        Refusal::Panicked => ErrorBody::new(Code::Internal, "checking the archive panicked"),
    }
}

fn disk_error(act: &str, digest: &Digest, why: &str) -> ErrorBody {
    ErrorBody::new(Code::Unavailable, format!("{act} artifact {digest}: {why}"))
        .hint("is the disk full? `rung doctor` tells")
}

/// The whole chain of an error in one line; for errors that go over the wire, where sources can't follow.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
