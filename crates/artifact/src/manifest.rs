//! The canonical list of what is in a tree, and its digest.
//!
//! The digest is SHA-256 over a fixed first line and then, in byte order of their paths, every entry but the root:
//! one byte for its kind (`d`, `f`, `x` for an executable file, `l`), the path with its length before it (four bytes,
//! big endian), then the 32 bytes of the content's SHA-256 for a file, or the target with its length for a link.

use std::collections::BTreeMap;

use ring::digest::{Context, SHA256};
use rung_model::Digest;

/// Changing anything about the format means changing this line.
const FORMAT: &[u8] = b"rung-tree-1\n";

/// A file's content.
pub type ContentHash = [u8; 32];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory {
        /// Named by an entry of its own, rather than only by what is in it.
        named: bool,
    },
    File {
        executable: bool,
        content: ContentHash,
    },
    Link {
        target: Vec<u8>,
    },
}

/// Paths relative to the root, without `.`, `..` or empty parts.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    entries: BTreeMap<Vec<u8>, Node>,
    files: u64,
    bytes: u64,
}

impl Manifest {
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.entries.get(path)
    }

    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn insert(&mut self, path: Vec<u8>, node: Node) {
        self.entries.insert(path, node);
    }

    pub fn insert_file(&mut self, path: Vec<u8>, executable: bool, content: ContentHash, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
        self.insert(path, Node::File { executable, content });
    }

    pub fn packed(&self) -> crate::Packed {
        crate::Packed { digest: self.digest(), files: self.files, bytes: self.bytes }
    }

    fn digest(&self) -> Digest {
        let mut hash = Context::new(&SHA256);
        hash.update(FORMAT);
        for (path, node) in &self.entries {
            let kind = match node {
                Node::Directory { .. } => b"d",
                Node::File { executable: false, .. } => b"f",
                Node::File { executable: true, .. } => b"x",
                Node::Link { .. } => b"l",
            };
            hash.update(kind);
            update_sized(&mut hash, path);
            match node {
                Node::Directory { .. } => {}
                Node::File { content, .. } => hash.update(content),
                Node::Link { target } => update_sized(&mut hash, target),
            }
        }
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in hash.finish().as_ref() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Digest::new(text).expect("32 bytes in lower-case hexadecimal are a digest")
    }
}

fn update_sized(hash: &mut Context, bytes: &[u8]) {
    let len = u32::try_from(bytes.len())
        .expect("paths and targets are shorter than 4 GiB: the kernel's limit is 4 KiB");
    hash.update(&len.to_be_bytes());
    hash.update(bytes);
}

/// Hashes content as it passes.
pub(crate) struct ContentHasher(Context);

impl ContentHasher {
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub fn update(&mut self, chunk: &[u8]) {
        self.0.update(chunk);
    }

    pub fn finish(self) -> ContentHash {
        let mut hash = ContentHash::default();
        hash.copy_from_slice(self.0.finish().as_ref());
        hash
    }
}
