//! Walks a tree in the one order that archives have.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

use crate::{Links, PackError, link};

/// Which entries of a directory belong to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// Without `.git` and what `.gitignore` and `.rungignore` name; links stay inside.
    Source,
    /// Of what git has checked out, without what `.rungignore` names: a file that was committed although `.gitignore`
    /// names it was meant to be. Links stay inside.
    Commit,
    /// All of it; links go where they like.
    Tree,
}

#[derive(Debug)]
pub enum Kind {
    Directory,
    File,
    Link { target: PathBuf },
}

#[derive(Debug)]
pub struct Found {
    /// Where it is on disk.
    pub path: PathBuf,
    /// Where it is in the tree.
    pub relative: PathBuf,
    pub kind: Kind,
    pub metadata: Metadata,
}

impl Found {
    pub fn relative_bytes(&self) -> &[u8] {
        self.relative.as_os_str().as_bytes()
    }
}

/// Everything in the tree but its root, parents before children, siblings by the bytes of their names.
pub fn walk(
    dir: &Path,
    selection: Selection,
) -> Result<impl Iterator<Item = Result<Found, PackError>>, PackError> {
    // The directory itself may be reached through a link; the walk would yield just that link.
    let read = |source| PackError::Read { act: "open directory", path: dir.to_owned(), source };
    let root = dir.canonicalize().map_err(read)?;
    if !root.metadata().map_err(read)?.is_dir() {
        return Err(PackError::NotADirectory { path: dir.to_owned() });
    }
    let mut builder = WalkBuilder::new(&root);
    builder.standard_filters(false).follow_links(false).sort_by_file_name(Ord::cmp);
    if selection != Selection::Tree {
        builder
            .add_custom_ignore_filename(".rungignore")
            .filter_entry(|entry| entry.file_name() != OsStr::new(".git"));
    }
    if selection == Selection::Source {
        builder
            .git_ignore(true)
            .require_git(false)
            // As git does: an app in a corner of a repository obeys the whole repository's ignore files.
            .parents(root.ancestors().any(|above| above.join(".git").exists()));
    }
    let links = match selection {
        Selection::Source | Selection::Commit => Links::Inside,
        Selection::Tree => Links::Anywhere,
    };
    Ok(builder.build().filter(|entry| !matches!(entry, Ok(e) if e.depth() == 0)).map(move |entry| {
        let entry = entry.map_err(|source| PackError::Walk { path: root.clone(), source })?;
        if let Some(problem) = entry.error() {
            // A glob that nobody understands hides nothing; git does not mind it either.
            tracing::warn!(%problem, "a line of an ignore file is not understood");
        }
        let relative =
            entry.path().strip_prefix(&root).expect("the walk yields what is below its root").to_owned();
        look(entry.into_path(), relative, links)
    }))
}

fn look(path: PathBuf, relative: PathBuf, links: Links) -> Result<Found, PackError> {
    let read = |act| {
        let path = path.clone();
        move |source| PackError::Read { act, path, source }
    };
    let metadata = path.symlink_metadata().map_err(read("look at"))?;
    let file_type = metadata.file_type();
    let kind = if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_file() {
        if metadata.mode() & 0o6000 != 0 {
            return Err(PackError::Privileged { path });
        }
        Kind::File
    } else if file_type.is_symlink() {
        let target = path.read_link().map_err(read("read link"))?;
        let inside = link::stays_inside(relative.as_os_str().as_bytes(), target.as_os_str().as_bytes());
        if links == Links::Inside && !inside {
            return Err(PackError::LinkEscapes { path, target });
        }
        Kind::Link { target }
    } else {
        let kind = if file_type.is_socket() {
            "socket"
        } else if file_type.is_fifo() {
            "named pipe"
        } else {
            "device"
        };
        return Err(PackError::Special { path, kind });
    };
    Ok(Found { path, relative, kind, metadata })
}
