//! The newest generation that this machine's agent and ingress have obeyed.
//!
//! They keep their last documents and refuse older ones. When the store was replaced by a backup, or lost and begun
//! anew, its documents would look older than those, and nobody would follow: so the store that goes on gets a new epoch.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rung_cli::note;
use rung_control::quorum::Backing;
use rung_model::{Assignment, Document, Generation, RouteDocument};

use crate::data::Data;

/// Makes sure that what this store writes is newer than anything that was obeyed before.
pub async fn ensure_newest(data: &Data, backing: Backing) -> anyhow::Result<Backing> {
    let known = newest_known(data);
    let own = Generation::new(backing.store().epoch(), backing.revision().await?);
    if known <= own {
        return Ok(backing);
    }
    let backing = backing.begin_epoch(known.epoch).await.context("beginning a new epoch of the store")?;
    let epoch = backing.store().epoch();
    note!(
        "note: the store is older than what runs here (at {own}, known is {known}); it goes on as epoch {epoch}"
    );
    Ok(backing)
}

/// The newest generation that anybody on this machine has obeyed.
pub fn newest_known(data: &Data) -> Generation {
    let assignment = read::<Assignment>(&data.node().join("assignment.json"), |document| document.generation);
    let routes = files_of(&data.ingress().join("documents"));
    let routes = routes.iter().map(|path| read::<RouteDocument>(path, |document| document.generation));
    routes.chain([assignment]).max().unwrap_or_default()
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What can't be read was obeyed by nobody who still knows of it.
fn read<T: Document>(path: &Path, generation: impl Fn(T) -> Generation) -> Generation {
    let bytes = std::fs::read(path).unwrap_or_default();
    T::from_json(&bytes).map(generation).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rung_model::NodeId;
    use rung_store::{SqliteStore, Store};

    use super::*;

    #[tokio::test]
    async fn a_store_that_was_put_back_goes_on_with_a_new_epoch_and_one_that_was_not_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(&dir.path().join("data")).unwrap();
        let store = Arc::new(SqliteStore::open(data.root().join("store.db")).unwrap());
        let backing = Backing::One(Arc::clone(&store));
        let first = store.epoch();
        let backing = ensure_newest(&data, backing).await.unwrap();
        assert_eq!(store.epoch(), first, "nothing was known, and yet a new epoch began");
        let mut obeyed = Assignment::empty(NodeId::new("n").unwrap());
        obeyed.generation = Generation::new(first, 1_000);
        std::fs::create_dir_all(data.node()).unwrap();
        std::fs::write(data.node().join("assignment.json"), serde_json::to_vec(&obeyed).unwrap()).unwrap();
        let backing = ensure_newest(&data, backing).await.unwrap();
        assert!(store.epoch() > first, "the agent would go on refusing this store's assignments");
        let second = store.epoch();
        ensure_newest(&data, backing).await.unwrap();
        assert_eq!(store.epoch(), second, "each start begins a new epoch");
    }
}
