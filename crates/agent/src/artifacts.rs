//! Unpacked artifacts: fetched once, verified, shared by all instances, removed when nobody needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rung_api::{Client, ClientError, Code};
use rung_artifact::{Limits, UnpackError};
use rung_model::Digest;
use tokio::sync::mpsc;

use crate::converge::Cause;
use crate::layout::Layout;
use crate::procfs;

/// Kept beside those in use: a rollback then needs no transfer.
const SPARE: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("fetching {digest}")]
    Client { digest: Digest, source: ClientError },
    #[error("unpacking {digest}")]
    Unpack { digest: Digest, source: UnpackError },
    #[error("keeping {digest}")]
    Io { digest: Digest, source: io::Error },
}

impl FetchError {
    pub fn cause(&self) -> Cause {
        match self {
            // Gone, or damaged where it is kept.
            Self::Client { source, .. }
                if matches!(source.code(), Some(Code::NotFound | Code::InvalidArchive)) =>
            {
                Cause::Lasting
            }
            Self::Unpack { source: UnpackError::Mismatch { .. }, .. } => Cause::Lasting,
            _ => Cause::Passing,
        }
    }
}

/// The message with its sources: what a person reads as the reason.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[derive(Debug, Clone)]
pub struct Artifacts {
    layout: Layout,
    client: Client,
    /// One fetch at a time for each.
    fetching: Arc<Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>>,
    /// Of an earlier boot, and not compared with their digest since: a power loss may have torn them.
    doubtful: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Artifacts {
    pub fn open(layout: Layout, client: Client) -> io::Result<Self> {
        let trees = layout.trees();
        fs::create_dir_all(&trees)?;
        rung_artifact::remove_unfinished(&trees)?;
        let boot_file = trees.join(".boot");
        let boot = procfs::boot_id();
        let same_boot = fs::read_to_string(&boot_file).is_ok_and(|known| known == boot);
        let artifacts = Self { layout, client, fetching: Arc::default(), doubtful: Arc::default() };
        if !same_boot {
            let all = artifacts.present()?.iter().map(|digest| artifacts.layout.tree(digest)).collect();
            *artifacts.doubtful.lock().expect("no panic while held") = all;
            fs::write(boot_file, boot)?;
        }
        Ok(artifacts)
    }

    /// Everything that is unpacked here.
    pub fn present(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(self.layout.trees())? {
            let name = entry?.file_name();
            digests.extend(name.to_str().and_then(|hex| Digest::new(format!("sha256:{hex}")).ok()));
        }
        Ok(digests)
    }

    /// The tree of an artifact, fetched when it is not here.
    pub async fn ensure(&self, digest: &Digest) -> Result<PathBuf, FetchError> {
        let turn = {
            let mut fetching = self.fetching.lock().expect("no panic while held");
            // Nobody waits for those any more.
            fetching.retain(|_, turn| Arc::strong_count(turn) > 1);
            fetching.entry(digest.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let tree = self.layout.tree(digest);
        self.settle_doubt(&tree, digest)
            .await
            .map_err(|source| FetchError::Io { digest: digest.clone(), source })?;
        if !tree.exists() {
            let into = tree.clone();
            let expected = digest.clone();
            self.unpack(digest, move |reader| {
                rung_artifact::unpack_verified(reader, &into, &expected, Limits::tree()).map(drop)
            })
            .await?;
        }
        Ok(tree)
    }

    /// After a reboot a tree is compared with its digest before it is used; a torn one is fetched again.
    async fn settle_doubt(&self, tree: &Path, digest: &Digest) -> io::Result<()> {
        if !self.doubtful.lock().expect("no panic while held").contains(tree) {
            return Ok(());
        }
        let (path, expected) = (tree.to_owned(), digest.clone());
        blocking(move || match rung_artifact::digest_tree(&path) {
            Ok(found) if found.digest == expected => Ok(()),
            _ => remove(&path),
        })
        .await?;
        self.doubtful.lock().expect("no panic while held").remove(tree);
        Ok(())
    }

    /// An uploaded source, unpacked into a directory of its own.
    pub async fn fetch_source(&self, digest: &Digest, into: &Path) -> Result<(), FetchError> {
        let (into, expected) = (into.to_owned(), digest.clone());
        self.unpack(digest, move |reader| {
            rung_artifact::unpack_verified(reader, &into, &expected, Limits::source()).map(drop)
        })
        .await
    }

    async fn unpack<F>(&self, digest: &Digest, unpack: F) -> Result<(), FetchError>
    where
        F: FnOnce(BodyReader) -> Result<(), UnpackError> + Send + 'static,
    {
        let body = self
            .client
            .artifact(digest)
            .await
            .map_err(|source| FetchError::Client { digest: digest.clone(), source })?;
        let (sender, receiver) = mpsc::channel(4);
        let reader = BodyReader { receiver, current: Bytes::new() };
        let unpacking = tokio::task::spawn_blocking(move || unpack(reader));
        pump(body, sender).await;
        unpacking
            .await
            .expect("unpacking does not panic")
            .map_err(|source| FetchError::Unpack { digest: digest.clone(), source })
    }

    /// A tree that was built here becomes the artifact, without a copy.
    pub async fn adopt(&self, built: &Path, digest: &Digest) -> io::Result<()> {
        let (built, tree) = (built.to_owned(), self.layout.tree(digest));
        blocking(move || {
            if tree.exists() {
                return rung_artifact::remove_tree(&built);
            }
            normalize_modes(&built)?;
            fs::rename(&built, &tree)
        })
        .await
    }

    /// Without a mount namespace the tree must stay where it was built: virtual environments embed their path. What a
    /// test changed in it is undone from the archive.
    pub async fn adopt_in_place(
        &self,
        built: &Path,
        digest: &Digest,
        archive: Option<PathBuf>,
    ) -> io::Result<()> {
        let (built, digest, tree) = (built.to_owned(), digest.clone(), self.layout.tree(digest));
        blocking(move || {
            if let Some(archive) = archive {
                rung_artifact::remove_tree(&built)?;
                let archive = io::BufReader::new(fs::File::open(archive)?);
                rung_artifact::unpack_verified(archive, &built, &digest, Limits::tree())
                    .map_err(io::Error::other)?;
            }
            if tree.exists() {
                return rung_artifact::remove_tree(&built);
            }
            normalize_modes(&built)?;
            std::os::unix::fs::symlink(&built, &tree)
        })
        .await
    }

    /// Whether this build's directory is an artifact's tree.
    pub fn is_tree(&self, built: &Path) -> bool {
        let links = fs::read_dir(self.layout.trees()).into_iter().flatten().flatten();
        links.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target == built)
    }

    /// Removes what is not in use, but for the newest few.
    pub fn keep(&self, in_use: &BTreeSet<Digest>) -> io::Result<()> {
        let mut others = Vec::new();
        for digest in self.present()?.into_iter().filter(|digest| !in_use.contains(digest)) {
            let tree = self.layout.tree(&digest);
            // The inode's change time: the rename that brought it here. Times inside the tree are the author's.
            let changed =
                fs::symlink_metadata(&tree).map(|meta| std::os::unix::fs::MetadataExt::ctime(&meta))?;
            others.push((changed, tree));
        }
        others.sort();
        for (_, tree) in others.iter().rev().skip(SPARE) {
            remove(tree)?;
        }
        Ok(())
    }
}

/// A tree that stayed where it was built is removed there, with the link to it.
fn remove(tree: &Path) -> io::Result<()> {
    if let Ok(built) = fs::read_link(tree) {
        rung_artifact::remove_tree(&built)?;
        return fs::remove_file(tree);
    }
    rung_artifact::remove_tree(tree)
}

/// What the digest promises: 0755 for directories and executables, 0644 for other files. A build under a strict umask
/// leaves files that the instances' user could not read.
fn normalize_modes(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o7777;
    let wanted = if meta.is_dir() || mode & 0o100 != 0 { 0o755 } else { 0o644 };
    if mode != wanted {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            normalize_modes(&entry?.path())?;
        }
    }
    Ok(())
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file work does not panic")
}

async fn pump(mut body: Incoming, sender: mpsc::Sender<io::Result<Bytes>>) {
    while let Some(frame) = body.frame().await {
        let chunk = match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(io::Error::other(error))),
        };
        if let Some(chunk) = chunk
            && sender.send(chunk).await.is_err()
        {
            // The reader has seen enough, or has refused it.
            return;
        }
    }
}

/// A body as a blocking reader.
#[derive(Debug)]
struct BodyReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.current = chunk?,
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current[..count]);
        self.current.advance(count);
        Ok(count)
    }
}
