//! The audit trail: who did what, in records that are chained by their hashes.
//!
//! A record is a line of JSON that names the hash of the line before it. So a line that was changed, removed, added or
//! moved shows, as long as somebody knows the hash of the last one: [`Head`]. Hashes are taken of the text as it is
//! written, so that any version can check what any other wrote.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use rung_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::Code;

/// What the first record of all names as the one before it.
pub const NOTHING_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One line of the trail as it is kept, with its hash. `GET /v1/audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditRecord {
    /// SHA-256 of `text`, in hexadecimal digits.
    pub hash: String,
    /// An `AuditEntry` as JSON.
    pub text: String,
}

impl AuditRecord {
    pub fn of(text: String) -> Self {
        Self { hash: hash_of(&text), text }
    }

    /// # Errors
    /// The text is not what any version of rung writes.
    pub fn entry(&self) -> Result<AuditEntry, serde_json::Error> {
        serde_json::from_str(&self.text)
    }
}

fn hash_of(text: &str) -> String {
    let hash = digest(&SHA256, text.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Counts from 1, without a gap.
    pub sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The hash of the record before.
    pub previous: String,
    #[serde(flatten)]
    pub act: Act,
}

/// Each change is told twice: before it is begun, and with what came of it. One without an end was going on when the
/// server was killed, and may or may not have been made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "act")]
pub enum Act {
    Asked {
        /// The token's name, `owner` or `local`.
        who: String,
        /// The address that it came from; `socket` for the server's own.
        from: String,
        /// The endpoint in words: `Deploy an uploaded source`.
        what: String,
        method: String,
        path: String,
        #[serde(default)]
        app: Option<String>,
    },
    Ended {
        /// The sequence of what was asked.
        of: u64,
        /// `None`: done.
        #[serde(default)]
        refused: Option<Code>,
        status: u16,
        /// What it was about: names, never values.
        #[serde(default)]
        note: Option<String>,
        /// Who asked, by its own word.
        #[serde(default)]
        by: Option<String>,
    },
    /// Older records were dropped: the trail begins with this one.
    Shortened { first: u64 },
}

/// What is known of the trail of one server. `GET /v1/audit/servers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServerTrail {
    pub server: NodeId,
    #[schema(value_type = String, format = DateTime)]
    pub joined: Timestamp,
    pub standing: Standing,
    /// The newest ones, oldest first: of the server itself where it has answered, else of the longest copy.
    pub records: Vec<AuditRecord>,
    /// Up to where the server that was asked has a copy; of its own it has none.
    pub copied: Option<Head>,
    /// Why that goes on no more.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Standing {
    Answered,
    /// It could not be asked.
    Silent {
        why: String,
    },
    /// It is no server of this cluster any more.
    Gone,
}

/// A trail that a server has: its own, or a copy of another one's. Between servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeptTrail {
    pub server: NodeId,
    /// Tells a server from an earlier one of its name.
    #[schema(value_type = String, format = DateTime)]
    pub joined: Timestamp,
    pub records: Vec<AuditRecord>,
    pub head: Option<Head>,
    #[serde(default)]
    pub trouble: Option<String>,
}

/// The last record that somebody has seen: with it, whoever cuts the end off shows, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Head {
    pub sequence: u64,
    pub hash: String,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = text.split_once(':').and_then(|(sequence, hash)| {
            let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            Some(Self { sequence: sequence.parse().ok()?, hash: is_hash.then(|| hash.to_owned())? })
        });
        read.ok_or_else(|| format!("{text:?} is not what `rung audit verify` has printed: SEQUENCE:HASH"))
    }
}

/// What is wrong with the trail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("record {sequence} was changed: its text has another hash than it is kept with")]
    Hash { sequence: u64 },
    #[error("record after {after} can't be read: {why}")]
    Unreadable { after: u64, why: String },
    #[error("records are missing or were added between {after} and {found}")]
    Gap { after: u64, found: u64 },
    #[error("record {sequence} does not follow the one before it: one of the two was replaced")]
    Link { sequence: u64 },
    #[error("the trail begins with record {found}, and should begin with {wanted} or before")]
    Start { wanted: u64, found: u64 },
    #[error("the trail ends with record {found}, and record {} was seen before", .wanted.sequence)]
    End { wanted: Head, found: u64 },
    #[error("record {} is another one than was seen before", .0.sequence)]
    Replaced(Head),
}

/// Checks records in order, however many there are.
#[derive(Debug, Default)]
pub struct Verifier {
    seen: Vec<Head>,
    first: Option<u64>,
    last: Option<Head>,
    /// Where the newest word about it says that the trail begins.
    begins: u64,
}

impl Verifier {
    /// `seen`: records that must be there.
    pub fn new(seen: impl IntoIterator<Item = Head>) -> Self {
        Self { seen: seen.into_iter().collect(), first: None, last: None, begins: 1 }
    }

    /// Goes on behind a record that was checked before.
    pub fn behind(last: Option<Head>) -> Self {
        Self { first: last.as_ref().map(|last| last.sequence), last, ..Self::new([]) }
    }

    /// The last record that was checked.
    pub fn last(&self) -> Option<&Head> {
        self.last.as_ref()
    }

    /// # Errors
    /// The record does not belong behind the one before.
    pub fn push(&mut self, record: &AuditRecord) -> Result<(), Broken> {
        let after = self.last.as_ref().map_or(0, |last| last.sequence);
        let entry = record.entry().map_err(|error| Broken::Unreadable { after, why: error.to_string() })?;
        let sequence = entry.sequence;
        if hash_of(&record.text) != record.hash {
            return Err(Broken::Hash { sequence });
        }
        match &self.last {
            Some(last) if last.sequence + 1 != sequence => {
                return Err(Broken::Gap { after, found: sequence });
            }
            Some(last) if last.hash != entry.previous => return Err(Broken::Link { sequence }),
            None if sequence == 1 && entry.previous != NOTHING_BEFORE => {
                return Err(Broken::Link { sequence });
            }
            _ => {}
        }
        self.first.get_or_insert(sequence);
        if let Act::Shortened { first } = entry.act {
            self.begins = first;
        }
        let head = Head { sequence, hash: record.hash.clone() };
        if self.seen.iter().any(|seen| seen.sequence == sequence && seen.hash != head.hash) {
            return Err(Broken::Replaced(head));
        }
        self.last = Some(head);
        Ok(())
    }

    /// The first record, and the last one, to be kept elsewhere. `None`: there is none.
    ///
    /// # Errors
    /// Something is missing at the beginning or at the end.
    pub fn end(self) -> Result<Option<(u64, Head)>, Broken> {
        let found = self.last.as_ref().map_or(0, |last| last.sequence);
        if let Some(wanted) = self.seen.into_iter().find(|seen| seen.sequence > found) {
            return Err(Broken::End { wanted, found });
        }
        match self.first {
            Some(first) if first > self.begins => Err(Broken::Start { wanted: self.begins, found: first }),
            first => Ok(first.zip(self.last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: u64) -> Vec<AuditRecord> {
        let mut previous = NOTHING_BEFORE.to_owned();
        let entry = |sequence, previous| AuditEntry {
            sequence,
            at: Timestamp::UNIX_EPOCH,
            previous,
            act: Act::Ended { of: sequence, refused: None, status: 200, note: None, by: None },
        };
        let record = |sequence| {
            let text = serde_json::to_string(&entry(sequence, previous.clone())).unwrap();
            let record = AuditRecord::of(text);
            previous.clone_from(&record.hash);
            record
        };
        (1..=count).map(record).collect()
    }

    fn verify(records: &[AuditRecord], seen: Option<Head>) -> Result<Option<(u64, Head)>, Broken> {
        let mut verifier = Verifier::new(seen);
        records.iter().try_for_each(|record| verifier.push(record))?;
        verifier.end()
    }

    #[test]
    fn whatever_is_done_to_the_trail_shows() {
        let whole = chain(5);
        let head = Head { sequence: 5, hash: whole[4].hash.clone() };
        assert_eq!(verify(&whole, None), Ok(Some((1, head.clone()))));
        let mut changed = whole.clone();
        changed[2].text = changed[2].text.replace("200", "403");
        assert_eq!(verify(&changed, None), Err(Broken::Hash { sequence: 3 }));
        changed[2] = AuditRecord::of(changed[2].text.clone());
        assert_eq!(verify(&changed, None), Err(Broken::Link { sequence: 4 }), "its hash was made anew");
        let without = [&whole[..2], &whole[3..]].concat();
        assert_eq!(verify(&without, None), Err(Broken::Gap { after: 2, found: 4 }));
        assert_eq!(verify(&whole[1..], None), Err(Broken::Start { wanted: 1, found: 2 }));
        assert_eq!(verify(&whole[..4], Some(head.clone())), Err(Broken::End { wanted: head, found: 4 }));
    }

    #[test]
    fn a_trail_that_was_written_anew_is_told_by_whoever_has_seen_the_old_one() {
        let seen = Head { sequence: 2, hash: "ab".repeat(32) };
        assert!(matches!(verify(&chain(3), Some(seen.clone())), Err(Broken::Replaced(_))));
        assert_eq!(seen.to_string().parse(), Ok(seen));
        assert!("5".parse::<Head>().is_err());
    }
}
