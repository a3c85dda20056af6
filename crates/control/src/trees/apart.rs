//! Whether the servers of a cluster keep artifacts in one place: each is told where by itself, and may be told something else.
//!
//! Places are compared by their names, and buckets of one name by a word that is left in one and read by the others: an
//! endpoint on loopback is another store on each machine.

use std::time::Duration;

use futures_util::future::join_all;
use rung_api::wire::OwnPlace;

use super::{Held, Trees};
use crate::shared::Control;

/// A person waits, and a server that stands still is told of elsewhere.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Two may look in the same moment, and the word of the first one is gone.
const LOOKS: usize = 2;

/// The way out.
pub(crate) const TOGETHER: &str =
    "tell the servers of a cluster the same place: start each with the same --artifacts (docs/artifacts.md)";

impl Trees {
    pub(crate) async fn own_place(&self) -> OwnPlace {
        match self.home() {
            Some(bucket) => OwnPlace { bucket: Some(bucket.address().short()), word: bucket.word().await },
            None => OwnPlace { bucket: None, word: None },
        }
    }
}

impl Control {
    /// The servers that keep artifacts elsewhere than this one. Who does not answer is not told of here.
    pub(crate) async fn artifacts_apart(&self, held: Option<&Held>) -> Vec<String> {
        let asking = self.other_servers().into_iter().map(async |(server, client)| {
            let mut apart = String::new();
            for _ in 0..LOOKS {
                let answer = tokio::time::timeout(ANSWERED_WITHIN, client.own_artifacts()).await.ok()?;
                apart = difference(&answer.ok()?, self.own_bucket(), held)?;
            }
            Some(format!("server {server} keeps artifacts {apart}"))
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    fn own_bucket(&self) -> Option<String> {
        Some(self.inner.trees.home()?.address().short())
    }
}

/// In words.
fn difference(there: &OwnPlace, here: Option<String>, held: Option<&Held>) -> Option<String> {
    let own = here.clone().unwrap_or_else(|| "on the disks of the servers".to_owned());
    match (&there.bucket, here) {
        (None, None) => None,
        (None, Some(_)) => Some(format!("on its disk, and this one in {own}")),
        (Some(bucket), here) if here.as_ref() != Some(bucket) => {
            Some(format!("in {bucket}, and this one {}{own}", if here.is_some() { "in " } else { "" }))
        }
        (Some(bucket), _) => {
            let left = &held?.state.as_ref().ok()?.word;
            let read = there.word.as_ref()?;
            (left != read).then(|| format!("in {bucket} of another object store than this one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::upkeep::Holds;
    use super::*;

    #[test]
    fn places_are_compared_by_name_and_buckets_of_one_name_by_what_is_in_them() {
        let there = |bucket: Option<&str>, word: Option<&str>| OwnPlace {
            bucket: bucket.map(str::to_owned),
            word: word.map(str::to_owned),
        };
        let holds = Holds { count: 0, missing: Default::default(), word: "ours".to_owned() };
        let held = Held { place: "s3://team".to_owned(), state: Ok(holds) };
        let ours = || Some("s3://team".to_owned());
        assert_eq!(difference(&there(None, None), None, None), None);
        assert_eq!(difference(&there(Some("s3://team"), Some("ours")), ours(), Some(&held)), None);
        assert_eq!(
            difference(&there(Some("s3://team"), None), ours(), Some(&held)),
            None,
            "it could not read"
        );
        let said = difference(&there(None, None), ours(), Some(&held)).unwrap();
        assert_eq!(said, "on its disk, and this one in s3://team");
        let said = difference(&there(Some("s3://team"), None), None, None).unwrap();
        assert_eq!(said, "in s3://team, and this one on the disks of the servers");
        let said = difference(&there(Some("s3://other"), None), ours(), Some(&held)).unwrap();
        assert_eq!(said, "in s3://other, and this one in s3://team");
        let said = difference(&there(Some("s3://team"), Some("theirs")), ours(), Some(&held)).unwrap();
        assert_eq!(said, "in s3://team of another object store than this one");
    }
}
