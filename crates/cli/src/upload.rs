//! Sending a directory: digested first, packed and streamed only when the server does not hold it.

use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use rung_api::Client;
use rung_artifact::{PackError, Packed, digest_commit, digest_source, pack_commit, pack_source};
use tokio::sync::mpsc;

use crate::edge::Hinted;
use crate::render::paint::Mood;
use crate::render::progress::done_line;
use crate::render::{bytes, count};
use crate::screen::Screen;

/// A directory in which something writes all the time is not packed for ever.
const ATTEMPTS: usize = 3;
/// Chunks on their way: enough to keep both sides busy, little enough to stay small.
const CHUNKS: usize = 16;

type Chunk = Result<Frame<Bytes>, io::Error>;

/// What of a directory is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// What lies there, without what `.gitignore` and `.rungignore` name.
    Directory,
    /// What git has checked out there, without what `.rungignore` names.
    Commit,
}

/// Makes sure that the server holds what is in `dir`, and answers with what that is.
///
/// # Errors
/// The directory can't be packed, or the server did not take it.
pub async fn ensure_source(
    client: &Client,
    dir: &Path,
    tree: Tree,
    screen: &mut Screen,
) -> anyhow::Result<Packed> {
    for _ in 0..ATTEMPTS {
        screen.moving("packing");
        let began = Instant::now();
        let packed = digest(dir, tree).await?;
        let size = format!("{}, {}", count(packed.files, "file"), bytes(packed.bytes));
        screen.say(&done_line(Mood::Good, "packed", began.elapsed(), &size, screen.paint))?;
        if client.has_source(&packed.digest).await? {
            return Ok(packed);
        }
        screen.moving(&format!("sending {}", bytes(packed.bytes)));
        let began = Instant::now();
        let sent = send(client, dir, tree, &packed).await?;
        if sent.digest == packed.digest {
            screen.say(&done_line(Mood::Good, "sent", began.elapsed(), "", screen.paint))?;
            return Ok(packed);
        }
    }
    let message = format!("files in {} change while they are packed", dir.display());
    Err(Hinted::failed(message, "name what is written there in .rungignore, and deploy again").into())
}

/// The same of an empty directory: an app that runs from an image by its name needs no file of this one.
///
/// # Errors
/// There is no place for an empty directory, or the server did not take it.
pub async fn ensure_nothing(client: &Client, screen: &mut Screen) -> anyhow::Result<Packed> {
    let empty = std::env::temp_dir().join(format!("rung-nothing-{}", std::process::id()));
    std::fs::create_dir_all(&empty).with_context(|| format!("making {}", empty.display()))?;
    let packed = ensure_source(client, &empty, Tree::Directory, screen).await;
    let _ = std::fs::remove_dir(&empty);
    packed
}

async fn digest(dir: &Path, tree: Tree) -> anyhow::Result<Packed> {
    let owned = dir.to_owned();
    let digested = tokio::task::spawn_blocking(move || match tree {
        Tree::Directory => digest_source(&owned),
        Tree::Commit => digest_commit(&owned),
    });
    let digested = digested.await;
    digested.context("packing")?.with_context(|| format!("packing {}", dir.display()))
}

async fn send(client: &Client, dir: &Path, tree: Tree, packed: &Packed) -> anyhow::Result<Packed> {
    let (chunks, mut receiver) = mpsc::channel::<Chunk>(CHUNKS);
    let owned = dir.to_owned();
    let packing = tokio::task::spawn_blocking(move || {
        let done = match tree {
            Tree::Directory => pack_source(&owned, ChunkWriter(&chunks)),
            Tree::Commit => pack_commit(&owned, ChunkWriter(&chunks)),
        };
        if done.is_err() {
            // Without it the server would take the part that was sent for the whole.
            let _ = chunks.blocking_send(Err(io::Error::other("packing failed")));
        }
        done
    });
    let body = StreamBody::new(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)));
    let sent = client.put_source(&packed.digest, body.boxed()).await;
    let now = packing.await.context("packing")?;
    match (sent, now) {
        (Ok(()), Ok(now)) => Ok(now),
        // It had all it wanted before we were through: somebody else sent the same.
        (Ok(()), Err(PackError::Write { .. })) => Ok(packed.clone()),
        // Refused for what changed meanwhile, which the caller sees.
        (Err(_), Ok(now)) if now.digest != packed.digest => Ok(now),
        (Err(error), Ok(_) | Err(PackError::Write { .. })) => {
            Err(error).with_context(|| format!("sending {}", dir.display()))
        }
        (_, Err(error)) => Err(error).with_context(|| format!("packing {}", dir.display())),
    }
}

struct ChunkWriter<'c>(&'c mpsc::Sender<Chunk>);

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Frame::data(Bytes::copy_from_slice(bytes));
        self.0.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
