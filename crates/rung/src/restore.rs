//! `rung cluster restore`: what is done to a data directory while no server runs on it.

use anyhow::Context;
use rung_cli::edge::Hinted;
use rung_cli::say;
use rung_cli::{ClusterRestoreArgs, Exit, Global, data_directory};
use rung_control::quorum;

use crate::data::Data;

pub fn run(global: &Global, args: &ClusterRestoreArgs) -> anyhow::Result<Exit> {
    let data = Data::open(&data_directory(global.data.as_deref())?)?;
    anyhow::ensure!(args.snapshot.is_file(), "{} is not a file", args.snapshot.display());
    if !global.yes {
        let message = format!(
            "the state in {} would be replaced by {}; what was changed since is lost",
            data.root().display(),
            args.snapshot.display()
        );
        return Err(Hinted::failed(message, "do it with -y").into());
    }
    let known = crate::known::newest_known(&data).epoch;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let restored = runtime
        .block_on(quorum::restore(data.root(), &args.snapshot, known))
        .with_context(|| format!("restoring {}", args.snapshot.display()))?;
    say!("{} entries are restored, in epoch {}", restored.entries, restored.epoch);
    if !restored.left.is_empty() {
        say!(
            "this machine is the only server now; on {} remove the data directory before they join again",
            restored.left.join(", ")
        );
    }
    say!("start rung: nothing is changed until `rung cluster approve`, which shows first what would be");
    Ok(Exit::Done)
}
