//! Artifacts: directory trees packed, unpacked and addressed by digest.
//!
//! [`pack_source`] packs what a user deploys (without what `.gitignore` and `.rungignore` name), [`pack_commit`] what
//! git has checked out (without what `.rungignore` names), [`pack_tree`] what a build left behind. All write a tar
//! archive and return the tree's [`Digest`]; [`digest_source`] and its like compute the same digest without an archive,
//! so that what has not changed need not be sent.
//! [`unpack`] and [`check`] read an archive by the same rules and compute the same digest from what they read, so
//! nobody's claim about an archive is believed.
//!
//! How it works: a tree is a sorted list of paths ([`manifest`]), each a directory, a file (executable or not, with
//! the SHA-256 of its content) or a symbolic link; the digest is the SHA-256 of that list. The times of files and
//! directories are kept in the archive, in whole seconds, and are not covered. Modes are what git keeps of them: 0755
//! for directories and executables, 0644 for other files. So a digest does not depend on anybody's umask, and a tree
//! can be read by whichever user its instances get.
//!
//! The archive is plain tar, not compressed: for 5 MB, gzip at its fastest level costs 60 ms of one core to pack and
//! 25 ms to unpack (zlib; measured), while a Unix socket carries plain tar in 2 ms. Only the part of tar that
//! [`pack_tree`] writes is read (regular files, directories, symbolic links, GNU long names): what no reader
//! understands can't be used against one.
//!
//! What this crate deliberately does not do: it keeps no owners, extended attributes, hard links (they are packed as
//! files of their own) or sparse files; it never follows a link; it does not sync to disk. After a power loss compare
//! an unpacked tree with [`digest_tree`] before using it.

mod archive;
mod error;
mod link;
mod listing;
pub mod manifest;
mod pack;
mod size;
mod tree;
mod unpack;
mod walk;

use rung_model::Digest;

pub use error::{PackError, UnpackError};
pub use listing::{Listed, list};
pub use pack::{digest_commit, digest_source, digest_tree, pack_commit, pack_source, pack_tree};
pub use tree::{remove_tree, remove_unfinished};
pub use unpack::{Limits, check, unpack, unpack_verified};

/// What was packed, unpacked or looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub digest: Digest,
    /// Regular files.
    pub files: u64,
    /// Their content.
    pub bytes: u64,
}

/// Where symbolic links may point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Into the tree only: right for sources, which come from anywhere and are built elsewhere.
    Inside,
    /// Anywhere: a Python virtual environment links to `/usr/bin/python3`. Such a link gives an instance nothing that
    /// it could not open by itself, and nothing in Rung follows it or writes through it.
    Anywhere,
}

/// Read and write this much at once: few system calls, and still in the processor's cache when it is hashed.
const CHUNK_BYTES: usize = 64 * 1024;
