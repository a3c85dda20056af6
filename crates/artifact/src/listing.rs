//! What is in an archive, path by path, without its contents.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use crate::archive::{MemberKind, Members};
use crate::manifest::{ContentHash, ContentHasher};
use crate::{CHUNK_BYTES, UnpackError};

/// One file or link of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    File { executable: bool, bytes: u64, content: ContentHash },
    Link { target: Vec<u8> },
}

impl Listed {
    /// Of its content.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Link { .. } => 0,
        }
    }
}

/// The files and links of an archive that was [checked](crate::check) when it came, by their paths.
///
/// # Errors
/// It is not an archive that [`crate::pack_tree`] wrote.
pub fn list(reader: impl Read) -> Result<BTreeMap<Vec<u8>, Listed>, UnpackError> {
    let mut members = Members::new(BufReader::with_capacity(CHUNK_BYTES, reader));
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut found = BTreeMap::new();
    while let Some(member) = members.next()? {
        let listed = match member.kind {
            MemberKind::Directory => continue,
            MemberKind::Link { target } => Listed::Link { target },
            MemberKind::File { executable, size } => {
                let mut hasher = ContentHasher::new();
                members.content(size, &mut buffer, |chunk| {
                    hasher.update(chunk);
                    Ok(())
                })?;
                Listed::File { executable, bytes: size, content: hasher.finish() }
            }
        };
        found.insert(member.path, listed);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_names_every_file_with_what_tells_it_from_another() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::write(dir.path().join("bin/server"), "one").unwrap();
        std::os::unix::fs::symlink("bin/server", dir.path().join("run")).unwrap();
        let mut archive = Vec::new();
        crate::pack_source(dir.path(), &mut archive).unwrap();
        let before = list(archive.as_slice()).unwrap();
        let paths: Vec<&[u8]> = before.keys().map(Vec::as_slice).collect();
        assert_eq!(paths, [&b"bin/server"[..], b"run"]);
        assert_eq!(before[&b"bin/server"[..]].bytes(), 3);
        std::fs::write(dir.path().join("bin/server"), "two").unwrap();
        let mut archive = Vec::new();
        crate::pack_source(dir.path(), &mut archive).unwrap();
        let after = list(archive.as_slice()).unwrap();
        assert_ne!(
            before[&b"bin/server"[..]],
            after[&b"bin/server"[..]],
            "a change of the content is not seen"
        );
        assert_eq!(before[&b"run"[..]], after[&b"run"[..]]);
    }
}
