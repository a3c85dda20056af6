//! What is done to a data directory while no server runs on it: `rung cluster restore` and `rung cluster enter`.

use anyhow::Context;
use rung_cli::edge::Hinted;
use rung_cli::{ClusterEnterArgs, ClusterRestoreArgs, Exit, Global, data_directory};
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
    println!("{} entries are restored, in epoch {}", restored.entries, restored.epoch);
    if !restored.left.is_empty() {
        println!(
            "this machine is the only server now; on {} remove the data directory before they join again",
            restored.left.join(", ")
        );
    }
    println!("start rung: nothing is changed until `rung cluster approve`, which shows first what would be");
    Ok(Exit::Done)
}

/// This machine becomes a server of a cluster.
pub fn enter(global: &Global, args: &ClusterEnterArgs) -> anyhow::Result<Exit> {
    let data = Data::open(&data_directory(global.data.as_deref())?)?;
    let text = std::fs::read(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    let bundle: quorum::Bundle = serde_json::from_slice(&text).with_context(|| {
        format!("{} does not hold what `rung cluster admit` printed", args.file.display())
    })?;
    quorum::enter(data.root(), &bundle)?;
    rung_api::seal::write_private(&data.node_name(), bundle.record.name.as_bytes())
        .with_context(|| format!("writing {}", data.node_name().display()))?;
    println!("this machine is server {}; start rung, and remove {}", bundle.record.name, args.file.display());
    Ok(Exit::Done)
}
