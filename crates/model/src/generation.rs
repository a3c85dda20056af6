//! Generations: what makes a document newer than another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The age of a document: the store's epoch, then the revision at which the document was written.
///
/// A receiver refuses a document whose generation is lower than the one it holds. Restoring, climbing and descending
/// write a new epoch, so revisions of an abandoned history never win against those of the one that goes on.
/// On the wire it is `epoch.revision`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Generation {
    pub epoch: u64,
    pub revision: u64,
}

impl Generation {
    /// Older than every document that was ever written.
    pub const ZERO: Self = Self { epoch: 0, revision: 0 };

    pub const fn new(epoch: u64, revision: u64) -> Self {
        Self { epoch, revision }
    }
}

impl utoipa::PartialSchema for Generation {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl utoipa::ToSchema for Generation {}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a generation: write it like 1.42")]
pub struct InvalidGeneration(String);

impl FromStr for Generation {
    type Err = InvalidGeneration;
    fn from_str(text: &str) -> Result<Self, InvalidGeneration> {
        let parsed = text.split_once('.').and_then(|(epoch, revision)| {
            Some(Self { epoch: epoch.parse().ok()?, revision: revision.parse().ok()? })
        });
        parsed.ok_or_else(|| InvalidGeneration(text.to_owned()))
    }
}

impl TryFrom<String> for Generation {
    type Error = InvalidGeneration;
    fn try_from(text: String) -> Result<Self, InvalidGeneration> {
        text.parse()
    }
}

impl From<Generation> for String {
    fn from(generation: Generation) -> String {
        generation.to_string()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}.{}", self.epoch, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_epoch_wins_over_any_revision_of_the_old_one() {
        assert!(Generation::new(2, 1) > Generation::new(1, 1_000_000));
        assert_eq!("2.17".parse(), Ok(Generation::new(2, 17)));
        assert!("17".parse::<Generation>().is_err());
    }
}
