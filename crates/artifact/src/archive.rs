//! Reads the members of an archive, believing nothing.
//!
//! The `tar` crate's own iterator reads long names of any size into memory, takes sparse files and pax headers that
//! other readers may see differently, and calls an archive whole that ends between two members. Here only its header
//! is used.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use tar::{EntryType, Header};

use crate::UnpackError;
use crate::pack::executable;

pub const BLOCK_BYTES: usize = 512;

/// The kernel takes no longer path.
const NAME_MAX_BYTES: u64 = 4096;

/// Other writers fill an archive up to a record of 20 blocks; more after the end is somebody's secret cargo.
const TRAILER_MAX_BYTES: usize = 20 * BLOCK_BYTES;

#[derive(Debug)]
pub struct Member {
    /// Relative, no `.`, `..` or empty part, not empty.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// Seconds since 1970.
    pub mtime: u64,
}

#[derive(Debug)]
pub enum MemberKind {
    Directory,
    File { executable: bool, size: u64 },
    Link { target: Vec<u8> },
}

/// The zeros after a content of this size.
pub fn padding(size: u64) -> &'static [u8] {
    static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let over = (size % BLOCK_BYTES as u64) as usize;
    if over == 0 { &[] } else { &ZEROS[over..] }
}

pub fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

pub struct Members<R> {
    reader: R,
}

impl<R: Read> Members<R> {
    pub fn new(reader: R) -> Self {
        Self { reader }
    }

    /// The next member; a file's [`content`](Self::content) must be read before the one after it. `None` at the end,
    /// once it is known that nothing follows.
    pub fn next(&mut self) -> Result<Option<Member>, UnpackError> {
        let mut long_name = None;
        let mut long_target = None;
        loop {
            let mut header = Header::new_old();
            self.fill(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|&b| b == 0) {
                if long_name.is_some() || long_target.is_some() {
                    return Err(malformed("a long name belongs to no entry"));
                }
                return self.end().map(|()| None);
            }
            let size = checked_size(&header)?;
            let slot = match header.entry_type() {
                EntryType::GNULongName => &mut long_name,
                EntryType::GNULongLink => &mut long_target,
                _ => {
                    if let Some(member) = member(&header, size, long_name.take(), long_target.take())? {
                        return Ok(Some(member));
                    }
                    continue;
                }
            };
            if slot.is_some() {
                return Err(malformed("two long names for one entry"));
            }
            *slot = Some(self.long_name(size)?);
        }
    }

    /// Passes a file's content on, chunk by chunk.
    pub fn content(
        &mut self,
        size: u64,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let mut left = size;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = self.some(&mut buffer[..want])?;
            if n == 0 {
                return Err(UnpackError::Truncated);
            }
            each(&buffer[..n])?;
            left -= n as u64;
        }
        self.skip_padding(size)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size == 0 || size > NAME_MAX_BYTES {
            return Err(malformed("a name is longer than 4096 bytes"));
        }
        let mut name = vec![0; size as usize];
        self.fill(&mut name)?;
        self.skip_padding(size)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn skip_padding(&mut self, size: u64) -> Result<(), UnpackError> {
        let mut rest = [0; BLOCK_BYTES];
        self.fill(&mut rest[..padding(size).len()])
    }

    fn end(&mut self) -> Result<(), UnpackError> {
        let mut rest = [0; BLOCK_BYTES];
        let mut seen = 0;
        loop {
            let n = self.some(&mut rest)?;
            seen += n;
            if n == 0 {
                return if seen < BLOCK_BYTES { Err(UnpackError::Truncated) } else { Ok(()) };
            }
            if seen > TRAILER_MAX_BYTES || rest[..n].iter().any(|&b| b != 0) {
                return Err(malformed("something follows its end"));
            }
        }
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), UnpackError> {
        self.reader.read_exact(into).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => UnpackError::Truncated,
            _ => UnpackError::Read { source },
        })
    }

    fn some(&mut self, into: &mut [u8]) -> Result<usize, UnpackError> {
        loop {
            match self.reader.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(|source| UnpackError::Read { source }),
            }
        }
    }
}

fn malformed(why: &'static str) -> UnpackError {
    UnpackError::Malformed { why }
}

fn checked_size(header: &Header) -> Result<u64, UnpackError> {
    let mut copy = header.clone();
    copy.set_cksum();
    if header.cksum().ok() != copy.cksum().ok() {
        return Err(malformed("a header's checksum is wrong"));
    }
    header.entry_size().map_err(|_| malformed("a size is not a number"))
}

/// `None` for the root directory itself, which other writers name and which says nothing.
fn member(
    header: &Header,
    size: u64,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
) -> Result<Option<Member>, UnpackError> {
    let raw = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
    let path = clean_path(&raw)?;
    let mode = header.mode().map_err(|_| malformed("a mode is not a number"))?;
    if mode & 0o6000 != 0 {
        return Err(UnpackError::Privileged { path: path_of(&path) });
    }
    let refuse = |kind| Err(UnpackError::Kind { path: path_of(&path), kind });
    let kind = match header.entry_type() {
        EntryType::Regular => MemberKind::File { executable: executable(mode), size },
        EntryType::Directory => MemberKind::Directory,
        EntryType::Symlink => MemberKind::Link {
            target: long_target
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default(),
        },
        EntryType::Link => return refuse("a hard link"),
        EntryType::Char | EntryType::Block => return refuse("a device"),
        EntryType::Fifo => return refuse("a named pipe"),
        EntryType::GNUSparse => return refuse("a sparse file"),
        EntryType::XHeader | EntryType::XGlobalHeader => return refuse("a pax header"),
        _ => return refuse("of an unknown kind"),
    };
    if !matches!(kind, MemberKind::File { .. }) && size != 0 {
        return Err(malformed("a directory or link has content"));
    }
    if path.is_empty() {
        return match kind {
            MemberKind::Directory => Ok(None),
            _ => Err(UnpackError::Path { path: path_of(&raw), why: "is empty" }),
        };
    }
    let mtime = header.mtime().map_err(|_| malformed("a time is not a number"))?;
    Ok(Some(Member { path, kind, mtime }))
}

fn clean_path(raw: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let refuse = |why| Err(UnpackError::Path { path: path_of(raw), why });
    if raw.starts_with(b"/") {
        return refuse("is absolute");
    }
    if raw.contains(&0) {
        return refuse("contains a zero byte");
    }
    let mut clean = Vec::with_capacity(raw.len());
    for part in raw.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse("contains .."),
            _ => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(clean)
}
