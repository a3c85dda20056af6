//! Uploaded sources and built artifacts, addressed by digest, in an object store (a local directory by default).
//!
//! An archive is stored only if the tree in it has the digest it was sent under: it is checked while it streams in,
//! and what does not match is dropped.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use rung_api::{Code, ErrorBody};
use rung_artifact::{Limits, UnpackError};
use rung_model::Digest;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

#[derive(Debug, thiserror::Error)]
pub enum TreesError {
    #[error("making the directory {path}")]
    Directory { path: String, source: io::Error },
    #[error("opening the object store at {path}")]
    Open { path: String, source: object_store::Error },
}

#[derive(Debug, Clone)]
pub struct Trees {
    objects: Arc<dyn ObjectStore>,
}

fn object_path(digest: &Digest) -> ObjectPath {
    ObjectPath::from(format!("trees/{}.tar", digest.as_str().trim_start_matches("sha256:")))
}

impl Trees {
    pub fn open(directory: &Path) -> Result<Self, TreesError> {
        let path = directory.display().to_string();
        std::fs::create_dir_all(directory)
            .map_err(|source| TreesError::Directory { path: path.clone(), source })?;
        let objects = LocalFileSystem::new_with_prefix(directory)
            .map_err(|source| TreesError::Open { path, source })?
            .with_fsync(true);
        Ok(Self { objects: Arc::new(objects) })
    }

    pub async fn has(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        match self.objects.head(&object_path(digest)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(object_error("looking for", digest, &error)),
        }
    }

    /// Stores an archive under its digest, or nothing.
    pub async fn put<S, E>(&self, digest: &Digest, limits: Limits, mut archive: S) -> Result<(), ErrorBody>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        // Eight chunks let the disk and the digest work at the same time without holding much.
        let (to_check, chunks) = mpsc::channel::<Bytes>(8);
        let checking = tokio::task::spawn_blocking(move || {
            let mut reader = ChunkReader { chunks, rest: Bytes::new() };
            let checked = rung_artifact::check(&mut reader, limits);
            // What follows the archive's end is taken, too, so that the sender is not left hanging.
            let drained = io::copy(&mut reader, &mut io::sink());
            match drained {
                Ok(_) => checked,
                Err(source) => checked.and(Err(UnpackError::Read { source })),
            }
        });
        let mut writer = BufWriter::new(Arc::clone(&self.objects), object_path(digest));
        let copied = copy(&mut archive, &to_check, &mut writer, digest).await;
        drop(to_check);
        let checked =
            checking.await.map_err(|_| ErrorBody::new(Code::Internal, "checking the archive panicked"))?;
        let refused = match (copied, checked) {
            (Ok(()), Ok(packed)) if packed.digest == *digest => {
                return writer.shutdown().await.map_err(|error| disk_error(digest, &error));
            }
            (Ok(()), Ok(packed)) => ErrorBody::new(
                Code::InvalidArchive,
                format!("archive holds a tree with digest {}, not {digest}", packed.digest),
            )
            .hint("the directory changed while it was packed, or the transfer was damaged; deploy again"),
            (Ok(()) | Err(CopyError::CheckEnded), Err(error)) => {
                ErrorBody::new(Code::InvalidArchive, chain(&error))
            }
            (Err(CopyError::CheckEnded), Ok(_)) => {
                ErrorBody::new(Code::InvalidArchive, "archive goes on after its end")
            }
            (Err(CopyError::Refused(error)), _) => error,
        };
        // Whatever was written so far was not named yet; a failure to drop it leaves a file for the next pruning.
        let _ = writer.abort().await;
        Err(refused)
    }

    /// The archive as a stream of chunks.
    pub async fn get(
        &self,
        digest: &Digest,
    ) -> Result<impl Stream<Item = Result<Bytes, object_store::Error>> + Send + use<>, ErrorBody> {
        match self.objects.get(&object_path(digest)).await {
            Ok(found) => Ok(found.into_stream()),
            Err(object_store::Error::NotFound { .. }) => {
                Err(ErrorBody::new(Code::NotFound, format!("artifact {digest} is not kept here"))
                    .hint("old artifacts are pruned; deploy the source again"))
            }
            Err(error) => Err(object_error("reading", digest, &error)),
        }
    }

    /// The files of an artifact by their paths.
    pub async fn listing(&self, digest: &Digest) -> Result<crate::diff::Tree, ErrorBody> {
        let mut archive = self.get(digest).await?;
        let (to_list, chunks) = mpsc::channel::<Bytes>(8);
        let listing = tokio::task::spawn_blocking(move || {
            rung_artifact::list(ChunkReader { chunks, rest: Bytes::new() })
        });
        while let Some(chunk) = archive.next().await {
            let chunk = chunk.map_err(|error| object_error("reading", digest, &error))?;
            if to_list.send(chunk).await.is_err() {
                break;
            }
        }
        drop(to_list);
        let listed =
            listing.await.map_err(|_| ErrorBody::new(Code::Internal, "listing the archive panicked"))?;
        listed.map_err(|error| {
            ErrorBody::new(Code::Internal, format!("artifact {digest} can't be listed: {}", chain(&error)))
        })
    }

    /// Removes every tree that is not to be kept and is older than `spare`, which spares what was just uploaded.
    pub async fn prune(
        &self,
        keep: impl Fn(&Digest) -> bool,
        spare: Duration,
    ) -> Result<u64, object_store::Error> {
        let listed: Vec<_> = self.objects.list(Some(&ObjectPath::from("trees"))).try_collect().await?;
        let mut removed = 0;
        for object in listed {
            let name = object.location.filename().unwrap_or_default();
            let digest = Digest::new(format!("sha256:{}", name.trim_end_matches(".tar")));
            let age = jiff::Timestamp::now().as_second() - object.last_modified.timestamp();
            let is_kept = digest.as_ref().is_ok_and(&keep);
            if !is_kept && age > spare.as_secs() as i64 {
                self.objects.delete(&object.location).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

enum CopyError {
    /// The check saw enough; it says why.
    CheckEnded,
    Refused(ErrorBody),
}

async fn copy<S, E>(
    archive: &mut S,
    to_check: &mpsc::Sender<Bytes>,
    writer: &mut BufWriter,
    digest: &Digest,
) -> Result<(), CopyError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    while let Some(chunk) = archive.next().await {
        let chunk = chunk.map_err(|error| {
            let message = format!("archive did not arrive whole: {error}");
            CopyError::Refused(ErrorBody::new(Code::InvalidArchive, message).hint("deploy again"))
        })?;
        to_check.send(chunk.clone()).await.map_err(|_| CopyError::CheckEnded)?;
        writer
            .put(chunk)
            .await
            .map_err(|error| CopyError::Refused(object_error("storing", digest, &error)))?;
    }
    Ok(())
}

fn object_error(act: &str, digest: &Digest, error: &object_store::Error) -> ErrorBody {
    ErrorBody::new(Code::Unavailable, format!("{act} artifact {digest}: {}", chain(error)))
        .hint("is the disk full? `rung doctor` tells")
}

fn disk_error(digest: &Digest, error: &io::Error) -> ErrorBody {
    ErrorBody::new(Code::Unavailable, format!("storing artifact {digest}: {error}"))
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

/// Chunks from the async side as a blocking reader.
struct ChunkReader {
    chunks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}
