//! How large a tree is, while it is packed: what nobody takes is not read to its end first.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::walk::{Found, Kind};
use crate::{Limits, PackError};

/// Entries and bytes, of all and below each name at the top.
#[derive(Debug, Default)]
pub(crate) struct Size {
    all: Sum,
    below: BTreeMap<Vec<u8>, Sum>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    entries: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Size {
    pub fn count(&mut self, found: &Found) {
        let bytes = if matches!(found.kind, Kind::File) { found.metadata.len() } else { 0 };
        self.all.add(bytes);
        let top = found.relative_bytes().split(|byte| *byte == b'/').next().unwrap_or_default();
        match self.below.get_mut(top) {
            Some(sum) => sum.add(bytes),
            None => self.below.entry(top.to_owned()).or_default().add(bytes),
        }
    }

    pub fn is_beyond(&self, limits: Limits) -> bool {
        self.all.bytes > limits.bytes || self.all.entries > limits.entries
    }

    /// Why it is not packed, with what weighs most in it.
    pub fn refuse(&self, dir: &Path, limits: Limits) -> PackError {
        let path = dir.to_owned();
        let most = |of: fn(&Sum) -> u64| {
            let heaviest = self.below.iter().max_by_key(|(_, sum)| of(sum));
            heaviest
                .map_or((PathBuf::new(), 0), |(name, sum)| (PathBuf::from(OsStr::from_bytes(name)), of(sum)))
        };
        if self.all.bytes > limits.bytes {
            let (largest, of_largest) = most(|sum| sum.bytes);
            return PackError::TooLarge {
                path,
                bytes: self.all.bytes,
                limit: limits.bytes,
                largest,
                of_largest,
            };
        }
        let (largest, of_largest) = most(|sum| sum.entries);
        PackError::TooManyEntries {
            path,
            entries: self.all.entries,
            limit: limits.entries,
            largest,
            of_largest,
        }
    }
}
