//! Archives are stored only if the tree in them has the digest that they were sent under: they are checked while they
//! stream in, and what does not match is dropped.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use rung_artifact::{Limits, UnpackError};
use rung_model::Digest;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::{chain, object_path};

/// Why nothing was stored.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It did not come to its end.
    BrokenOff(String),
    /// It holds another tree.
    Another(Digest),
    /// It holds no tree at all.
    NoArchive(String),
    /// Here is no room for it.
    Disk(String),
    Panicked,
}

/// Stores an archive under its digest, or nothing.
pub(super) async fn put<S, E>(
    objects: &Arc<dyn ObjectStore>,
    digest: &Digest,
    limits: Limits,
    mut archive: S,
) -> Result<(), Refusal>
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
    let mut writer = BufWriter::new(Arc::clone(objects), object_path(digest));
    let copied = copy(&mut archive, &to_check, &mut writer).await;
    drop(to_check);
    let checked = checking.await.map_err(|_| Refusal::Panicked)?;
    let refused = match (copied, checked) {
        (Ok(()), Ok(packed)) if packed.digest == *digest => {
            return writer.shutdown().await.map_err(|error| Refusal::Disk(error.to_string()));
        }
        (Ok(()), Ok(packed)) => Refusal::Another(packed.digest),
        (Ok(()) | Err(CopyError::CheckEnded), Err(error)) => Refusal::NoArchive(chain(&error)),
        (Err(CopyError::CheckEnded), Ok(_)) => Refusal::NoArchive("archive goes on after its end".to_owned()),
        (Err(CopyError::Refused(refusal)), _) => refusal,
    };
    // Whatever was written so far was not named yet; a failure to drop it leaves a file for the next pruning.
    let _ = writer.abort().await;
    Err(refused)
}

/// The files of an archive by their paths.
pub(super) async fn list<S, E>(digest: &Digest, mut archive: S) -> Result<crate::diff::Tree, String>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let (to_list, chunks) = mpsc::channel::<Bytes>(8);
    let listing =
        tokio::task::spawn_blocking(move || rung_artifact::list(ChunkReader { chunks, rest: Bytes::new() }));
    while let Some(chunk) = archive.next().await {
        let chunk = chunk.map_err(|error| format!("reading artifact {digest}: {error}"))?;
        if to_list.send(chunk).await.is_err() {
            break;
        }
    }
    drop(to_list);
    let listed = listing.await.map_err(|_| "listing the archive panicked".to_owned())?;
    listed.map_err(|error| format!("artifact {digest} can't be listed: {}", chain(&error)))
}

enum CopyError {
    /// The check saw enough; it says why.
    CheckEnded,
    Refused(Refusal),
}

async fn copy<S, E>(
    archive: &mut S,
    to_check: &mpsc::Sender<Bytes>,
    writer: &mut BufWriter,
) -> Result<(), CopyError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    while let Some(chunk) = archive.next().await {
        let chunk = chunk.map_err(|error| CopyError::Refused(Refusal::BrokenOff(error.to_string())))?;
        to_check.send(chunk.clone()).await.map_err(|_| CopyError::CheckEnded)?;
        let written = writer.put(chunk).await;
        written.map_err(|error| CopyError::Refused(Refusal::Disk(chain(&error))))?;
    }
    Ok(())
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
