//! From a directory to a digest, with or without an archive.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use tar::{EntryType, Header};

use crate::archive::{BLOCK_BYTES, padding};
use crate::manifest::{ContentHasher, Manifest, Node};
use crate::size::Size;
use crate::walk::{Found, Kind, Selection, walk};
use crate::{CHUNK_BYTES, Limits, PackError, Packed};

/// Packs what a user deploys: `dir` without `.git` and what `.gitignore` and `.rungignore` name (the latter wins, so
/// `!dist/` there deploys what git does not keep). Links must stay inside.
pub fn pack_source(dir: &Path, out: impl Write) -> Result<Packed, PackError> {
    pack(dir, Selection::Source, out)
}

/// Packs what git has checked out into `dir`, without what `.rungignore` names. Links must stay inside.
pub fn pack_commit(dir: &Path, out: impl Write) -> Result<Packed, PackError> {
    pack(dir, Selection::Commit, out)
}

/// Packs all of `dir`: what a build left.
pub fn pack_tree(dir: &Path, out: impl Write) -> Result<Packed, PackError> {
    pack(dir, Selection::Tree, out)
}

/// What [`pack_source`] would return, without an archive.
pub fn digest_source(dir: &Path) -> Result<Packed, PackError> {
    visit(dir, Selection::Source, &mut Destination::<io::Sink>::Nowhere)
}

/// What [`pack_commit`] would return, without an archive.
pub fn digest_commit(dir: &Path) -> Result<Packed, PackError> {
    visit(dir, Selection::Commit, &mut Destination::<io::Sink>::Nowhere)
}

/// What [`pack_tree`] would return, without an archive.
pub fn digest_tree(dir: &Path) -> Result<Packed, PackError> {
    visit(dir, Selection::Tree, &mut Destination::<io::Sink>::Nowhere)
}

fn pack(dir: &Path, selection: Selection, out: impl Write) -> Result<Packed, PackError> {
    // Headers, padding and small files leave together.
    let mut destination = Destination::Archive(BufWriter::with_capacity(CHUNK_BYTES, out));
    let packed = visit(dir, selection, &mut destination)?;
    destination.finish()?;
    Ok(packed)
}

fn visit<W: Write>(
    dir: &Path,
    selection: Selection,
    destination: &mut Destination<W>,
) -> Result<Packed, PackError> {
    let mut manifest = Manifest::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut problems = Vec::new();
    let (mut size, limits) = (Size::default(), Limits::source());
    for found in walk(dir, selection)? {
        found.iter().for_each(|found| size.count(found));
        // What is too large is counted to its end, to say by how much, and not read.
        if size.is_beyond(limits) {
            continue;
        }
        let taken = found.and_then(|found| take(&found, destination, &mut manifest, &mut buffer));
        match (taken, &destination) {
            (Ok(()), _) => {}
            // Nothing is written: whoever mends one thing wants to hear of the others, too.
            (Err(problem), Destination::Nowhere) => problems.push(problem),
            (Err(problem), Destination::Archive(_)) => return Err(problem),
        }
    }
    if size.is_beyond(limits) {
        return Err(size.refuse(dir, limits));
    }
    match problems.len() {
        0 => Ok(manifest.packed()),
        1 => Err(problems.remove(0)),
        _ => Err(PackError::Several { problems }),
    }
}

fn take<W: Write>(
    found: &Found,
    destination: &mut Destination<W>,
    manifest: &mut Manifest,
    buffer: &mut [u8],
) -> Result<(), PackError> {
    let path = found.relative_bytes().to_vec();
    match &found.kind {
        Kind::Directory => {
            destination.header(found, EntryType::Directory, 0, b"")?;
            manifest.insert(path, Node::Directory { named: true });
        }
        Kind::Link { target } => {
            let target = target.as_os_str().as_bytes().to_vec();
            destination.header(found, EntryType::Symlink, 0, &target)?;
            manifest.insert(path, Node::Link { target });
        }
        Kind::File => {
            let content = read_file(found, destination, buffer)?;
            manifest.insert_file(path, executable(found.metadata.mode()), content, found.metadata.len());
        }
    }
    Ok(())
}

/// The owner's bit decides, as for git.
pub(crate) fn executable(mode: u32) -> bool {
    mode & 0o100 != 0
}

fn read_file<W: Write>(
    found: &Found,
    destination: &mut Destination<W>,
    buffer: &mut [u8],
) -> Result<[u8; 32], PackError> {
    let read = |source| PackError::Read { act: "read", path: found.path.clone(), source };
    let changed = || PackError::Changed { path: found.path.clone() };
    let mut file = open(&found.path).map_err(read)?;
    let size = found.metadata.len();
    let now = file.metadata().map_err(read)?;
    if !now.is_file() || now.len() != size {
        return Err(changed());
    }
    destination.header(found, EntryType::Regular, size, b"")?;
    let mut hasher = ContentHasher::new();
    let mut left = size;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match file.read(&mut buffer[..want]) {
            Ok(0) => return Err(changed()),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                destination.content(&buffer[..n])?;
                left -= n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(read(e)),
        }
    }
    destination.content(padding(size))?;
    Ok(hasher.finish())
}

/// Neither follows a link nor waits for a pipe that took the file's place since it was looked at.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

enum Destination<W: Write> {
    Archive(BufWriter<W>),
    Nowhere,
}

impl<W: Write> Destination<W> {
    fn content(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        match self {
            Self::Archive(out) => out.write_all(bytes).map_err(|source| PackError::Write { source }),
            Self::Nowhere => Ok(()),
        }
    }

    fn header(&mut self, found: &Found, kind: EntryType, size: u64, target: &[u8]) -> Result<(), PackError> {
        if matches!(self, Self::Nowhere) {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        let name_room = header.as_gnu_mut().expect("new_gnu makes a GNU header");
        if !place(&mut name_room.name, found.relative_bytes()) {
            self.long_name(EntryType::GNULongName, found.relative_bytes())?;
        }
        if !place(&mut name_room.linkname, target) {
            self.long_name(EntryType::GNULongLink, target)?;
        }
        let plain_file = kind == EntryType::Regular && !executable(found.metadata.mode());
        header.set_entry_type(kind);
        header.set_mode(if plain_file { 0o644 } else { 0o755 });
        header.set_size(size);
        // A link's own time is nobody's business, and is not restored: kept out, the same tree makes the same bytes.
        let mtime = if kind == EntryType::Symlink { 0 } else { found.metadata.mtime() };
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.content(header.as_bytes())
    }

    fn long_name(&mut self, kind: EntryType, name: &[u8]) -> Result<(), PackError> {
        let size = name.len() as u64 + 1;
        let mut header = Header::new_gnu();
        place(&mut header.as_gnu_mut().expect("new_gnu makes a GNU header").name, b"././@LongLink");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.content(header.as_bytes())?;
        self.content(name)?;
        self.content(b"\0")?;
        self.content(padding(size))
    }

    fn finish(mut self) -> Result<(), PackError> {
        // Two empty blocks end an archive.
        self.content(&[0; 2 * BLOCK_BYTES])?;
        match self {
            Self::Archive(mut out) => out.flush().map_err(|source| PackError::Write { source }),
            Self::Nowhere => Ok(()),
        }
    }
}

/// Writes a name into its field. What is too long is cut, for readers that know no long names; says whether it fits.
fn place(field: &mut [u8; 100], name: &[u8]) -> bool {
    let fits = name.len() <= field.len();
    let name = &name[..name.len().min(field.len())];
    field[..name.len()].copy_from_slice(name);
    fits
}
