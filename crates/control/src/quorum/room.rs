//! Room in etcd's file.
//!
//! At its quota etcd raises an alarm and takes no more changes, and it never makes room by itself: what compaction frees
//! stays in the file until the file is packed, and the alarm stays until somebody takes it back. All of that is done here,
//! early when it can be.

use std::time::Duration;

use rung_model::keys;
use rung_store::{Store, StoreError};

use super::{Quorum, Tell};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Of the quota, in percent: from here on the file is packed when half of it is free.
const PACK_FROM: u64 = 80;
/// Below this it is worth taking the alarm back: above, it would come again with the next change.
const ROOM_BELOW: u64 = 95;

/// What `errors` of a member's status say then.
const ALARM: &str = "NOSPACE";

pub(crate) fn is_full(errors: &[String]) -> bool {
    errors.iter().any(|error| error.contains(ALARM))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Full,
    /// Dropping history was not enough.
    Hopeless,
}

impl Quorum {
    /// Looks after this server's file, as long as it runs.
    pub async fn keep_room(&self, tell: Tell<'_>) {
        let mut told = Told::Nothing;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.make_room(&mut told, tell).await {
                tracing::debug!(%error, "looking for room in etcd");
            }
        }
    }

    async fn make_room(&self, told: &mut Told, tell: Tell<'_>) -> Result<(), StoreError> {
        let own = self.admin_of(&self.record.client.to_string());
        let quota = self.record.quota_bytes;
        let status = own.status().await?;
        let is_full = is_full(&status.errors);
        let is_worth_it =
            status.db_bytes >= quota / 100 * PACK_FROM && status.db_bytes_in_use < status.db_bytes / 2;
        if !is_full {
            *told = Told::Nothing;
        }
        if !is_full && !is_worth_it {
            return Ok(());
        }
        if is_full && *told == Told::Nothing {
            *told = Told::Full;
            tell("etcd is out of space and takes no changes; its history is dropped and its file packed");
        }
        // Watches that were away for longer than what is left read everything anew.
        let now = self.store.get(keys::LEADER).await?.revision;
        self.store.compact(now).await?;
        own.defragment().await?;
        if !is_full {
            return Ok(());
        }
        let packed = own.status().await?.db_bytes;
        if packed < quota / 100 * ROOM_BELOW {
            self.admin().disarm_no_space().await?;
            tell(&format!("etcd takes changes again: its file has {packed} bytes of {quota}"));
        } else if *told != Told::Hopeless {
            *told = Told::Hopeless;
            tell(&format!(
                "the state needs {packed} bytes of the {quota} that etcd may use; raise quota_bytes in cluster.json on each \
                 server, and start them again one after the other"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Mutex;

    use rung_store::{Op, SqliteStore, Txn};

    use super::super::{Backing, Climb, Record, climb};
    use super::*;

    fn put(value: u8) -> Vec<Op> {
        vec![Op::Put { key: "apps/shop".to_owned(), value: vec![value; 256 * 1024], lease: None }]
    }

    #[tokio::test]
    async fn an_etcd_that_ran_out_of_space_says_so_and_takes_changes_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let sqlite = SqliteStore::open(data.join("store.db")).unwrap();
        let asked = Climb { name: "only".to_owned(), address: IpAddr::from(Ipv4Addr::LOCALHOST) };
        climb(data, &sqlite, &asked).await.unwrap();
        drop(sqlite);
        let mut record = Record::read(data).unwrap().expect("the state is in etcd");
        record.quota_bytes = 8 << 20;
        record.write(data).unwrap();
        let said = Mutex::new(Vec::new());
        let tell = |message: &str| said.lock().unwrap().push(message.to_owned());
        let backing = Backing::open(data, &tell).await.unwrap();
        let quorum = backing.quorum().expect("it is of etcd");
        let mut refused = None;
        for value in 0..100 {
            if let Err(error) = quorum.store.txn(Vec::new(), put(value)).await {
                refused = Some(error);
                break;
            }
        }
        assert!(matches!(refused, Some(StoreError::Full)), "25 MB went into 8: {refused:?}");
        let made = quorum.make_room(&mut Told::Nothing, &tell).await;
        let again = quorum.store.txn(Vec::new(), put(0)).await;
        quorum.member.stop().await;
        made.unwrap();
        assert!(matches!(again, Ok(Txn::Committed(_))), "{again:?}");
        let said = said.into_inner().unwrap();
        assert!(said[0].contains("out of space") && said[1].contains("takes changes again"), "{said:?}");
    }
}
