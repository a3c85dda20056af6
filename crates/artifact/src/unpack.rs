//! From an archive to a tree on disk, or just to its digest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rung_model::Digest;

use crate::archive::{Member, MemberKind, Members, path_of};
use crate::manifest::{ContentHasher, Manifest, Node};
use crate::tree::{remove_tree, unfinished_sibling};
use crate::{CHUNK_BYTES, Links, Packed, UnpackError, link};

/// What an archive may be at most, counted as it would be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and links together.
    pub entries: u64,
    /// The content of all files.
    pub bytes: u64,
    pub links: Links,
}

/// A large front end's `node_modules` has 100,000 files; a machine-learning environment has 60,000.
const DEFAULT_ENTRIES: u64 = 500_000;
/// The largest environments people deploy (a GPU framework with its libraries) are about 6 GB.
const DEFAULT_BYTES: u64 = 8 << 30;
/// All paths and link targets together: they are kept in memory until the digest is known. It is 128 bytes for each
/// of [`DEFAULT_ENTRIES`].
const NAMES_MAX_BYTES: u64 = 64 << 20;

impl Limits {
    /// For what users upload.
    pub const fn source() -> Self {
        Self { entries: DEFAULT_ENTRIES, bytes: DEFAULT_BYTES, links: Links::Inside }
    }

    /// For what builds leave.
    pub const fn tree() -> Self {
        Self { links: Links::Anywhere, ..Self::source() }
    }
}

/// Unpacks into `into`, which must not exist (an empty directory may), by way of a directory beside it that is
/// renamed when everything is there. The caller compares the digest, or uses [`unpack_verified`].
pub fn unpack(reader: impl Read, into: &Path, limits: Limits) -> Result<Packed, UnpackError> {
    let staging = Staging::beside(into)?;
    let packed = staging.fill(reader, limits)?;
    staging.rename(into)?;
    Ok(packed)
}

/// As [`unpack`], and `into` appears only when the digest is the expected one.
pub fn unpack_verified(
    reader: impl Read,
    into: &Path,
    expected: &Digest,
    limits: Limits,
) -> Result<Packed, UnpackError> {
    let staging = Staging::beside(into)?;
    let packed = staging.fill(reader, limits)?;
    if packed.digest != *expected {
        return Err(UnpackError::Mismatch { expected: expected.clone(), found: packed.digest });
    }
    staging.rename(into)?;
    Ok(packed)
}

/// What [`unpack`] would return, without touching the disk: for those who store archives that others send.
pub fn check(reader: impl Read, limits: Limits) -> Result<Packed, UnpackError> {
    read(reader, limits, None)
}

fn read(
    reader: impl Read,
    limits: Limits,
    staging: Option<(&Staging, &mut Vec<DirectoryTime>)>,
) -> Result<Packed, UnpackError> {
    let mut members = Members::new(BufReader::with_capacity(CHUNK_BYTES, reader));
    let mut admission = Admission { manifest: Manifest::default(), limits, bytes: 0, names: 0 };
    let mut buffer = vec![0; CHUNK_BYTES];
    let (staging, mut times) = staging.unzip();
    while let Some(member) = members.next()? {
        for parent in admission.admit(&member)? {
            staging.map_or(Ok(()), |s| s.directory(&parent))?;
        }
        let Member { path, kind, mtime } = member;
        match kind {
            MemberKind::Directory => {
                if admission.manifest.get(&path).is_none() {
                    staging.map_or(Ok(()), |s| s.directory(&path))?;
                }
                if let Some(times) = &mut times {
                    times.push(DirectoryTime { path: path.clone(), mtime });
                }
                admission.manifest.insert(path, Node::Directory { named: true });
            }
            MemberKind::Link { target } => {
                staging.map_or(Ok(()), |s| s.link(&path, &target))?;
                admission.manifest.insert(path, Node::Link { target });
            }
            MemberKind::File { executable, size } => {
                let mut file = staging.map(|s| s.file(&path, executable)).transpose()?;
                let mut hasher = ContentHasher::new();
                members.content(size, &mut buffer, |chunk| {
                    hasher.update(chunk);
                    file.as_mut().map_or(Ok(()), |f| f.write_all(chunk)).map_err(write_error("write", &path))
                })?;
                if let Some(file) = file {
                    file.set_modified(time(mtime)).map_err(write_error("set the time of", &path))?;
                }
                admission.manifest.insert_file(path, executable, hasher.finish(), size);
            }
        }
    }
    Ok(admission.manifest.packed())
}

fn write_error(act: &'static str, path: &[u8]) -> impl Fn(io::Error) -> UnpackError {
    move |source| UnpackError::Write { act, path: path_of(path), source }
}

fn time(mtime: u64) -> SystemTime {
    // Times too large for the system are as good as any other nonsense: 1970.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(mtime)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Decides whether a member may be there, before anything of it is written.
struct Admission {
    manifest: Manifest,
    limits: Limits,
    bytes: u64,
    names: u64,
}

impl Admission {
    /// Returns the directories above it that no entry has named.
    fn admit(&mut self, member: &Member) -> Result<Vec<Vec<u8>>, UnpackError> {
        let path = || path_of(&member.path);
        match (self.manifest.get(&member.path), &member.kind) {
            (None, _) | (Some(Node::Directory { named: false }), MemberKind::Directory) => {}
            (Some(_), _) => return Err(UnpackError::Duplicate { path: path() }),
        }
        match &member.kind {
            MemberKind::Directory => {}
            MemberKind::File { size, .. } => self.count_bytes(*size)?,
            MemberKind::Link { target } => {
                self.names += target.len() as u64;
                if target.is_empty() || target.contains(&0) {
                    return Err(UnpackError::Path { path: path(), why: "links to nothing" });
                }
                if self.limits.links == Links::Inside && !link::stays_inside(&member.path, target) {
                    return Err(UnpackError::LinkEscapes { path: path(), target: path_of(target) });
                }
            }
        }
        let parents = self.missing_parents(member)?;
        self.count_names(member)?;
        Ok(parents)
    }

    /// Every directory above must be one that we made: a link there would lead the write elsewhere.
    fn missing_parents(&mut self, member: &Member) -> Result<Vec<Vec<u8>>, UnpackError> {
        let mut missing = Vec::new();
        let mut end = member.path.len();
        while let Some(slash) = member.path[..end].iter().rposition(|&b| b == b'/') {
            let parent = &member.path[..slash];
            match self.manifest.get(parent) {
                Some(Node::Directory { .. }) => break,
                Some(_) => {
                    let why = "goes through something that is not a directory";
                    return Err(UnpackError::Path { path: path_of(&member.path), why });
                }
                None => missing.push(parent.to_vec()),
            }
            end = slash;
        }
        missing.reverse();
        for parent in &missing {
            self.names += parent.len() as u64;
            self.manifest.insert(parent.clone(), Node::Directory { named: false });
        }
        Ok(missing)
    }

    fn count_bytes(&mut self, size: u64) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge { limit: self.limits.bytes });
        }
        Ok(())
    }

    fn count_names(&mut self, member: &Member) -> Result<(), UnpackError> {
        self.names += member.path.len() as u64;
        if self.names > NAMES_MAX_BYTES {
            return Err(UnpackError::Malformed { why: "its names are longer than 64 MiB together" });
        }
        if self.manifest.len() >= self.limits.entries {
            return Err(UnpackError::TooManyEntries { limit: self.limits.entries });
        }
        Ok(())
    }
}

struct DirectoryTime {
    path: Vec<u8>,
    mtime: u64,
}

/// The directory beside the destination. Removed when it is dropped before it was renamed.
struct Staging {
    root: PathBuf,
}

impl Staging {
    fn beside(into: &Path) -> Result<Self, UnpackError> {
        // `rename` takes the place of an empty directory only; to say so before the work is kinder.
        if fs::read_dir(into)
            .map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |mut entries| entries.next().is_some())
        {
            return Err(UnpackError::Exists { path: into.to_owned() });
        }
        let root = unfinished_sibling(into);
        // Nobody else looks in while it is half done.
        fs::DirBuilder::new().mode(0o700).create(&root).map_err(|source| UnpackError::Write {
            act: "create directory",
            path: root.clone(),
            source,
        })?;
        Ok(Self { root })
    }

    fn fill(&self, reader: impl Read, limits: Limits) -> Result<Packed, UnpackError> {
        let mut times = Vec::new();
        let packed = read(reader, limits, Some((self, &mut times)))?;
        // Last, because writing into a directory changes its time.
        for DirectoryTime { path, mtime } in times {
            let result = File::open(self.path(&path)).and_then(|dir| dir.set_modified(time(mtime)));
            result.map_err(write_error("set the time of", &path))?;
        }
        Ok(packed)
    }

    fn path(&self, relative: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(relative))
    }

    fn directory(&self, relative: &[u8]) -> Result<(), UnpackError> {
        let path = self.path(relative);
        fs::create_dir(&path)
            // Whatever the umask says.
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(write_error("create directory", relative))
    }

    fn link(&self, relative: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        symlink(path_of(target), self.path(relative)).map_err(write_error("create link", relative))
    }

    fn file(&self, relative: &[u8], executable: bool) -> Result<File, UnpackError> {
        let mode = if executable { 0o755 } else { 0o644 };
        let open = || {
            // `create_new` follows no link, if ever one got here.
            let file =
                OpenOptions::new().write(true).create_new(true).mode(mode).open(self.path(relative))?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            Ok(file)
        };
        open().map_err(write_error("create", relative))
    }

    fn rename(self, into: &Path) -> Result<(), UnpackError> {
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o755))
            .and_then(|()| fs::rename(&self.root, into))
            .map_err(|source| match source.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                    UnpackError::Exists { path: into.to_owned() }
                }
                _ => UnpackError::Write { act: "create", path: into.to_owned(), source },
            })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.root) {
            tracing::warn!(path = %self.root.display(), %error, "can't remove an unfinished tree");
        }
    }
}
