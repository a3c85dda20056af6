//! `--floating`: this machine takes part in holding an address that moves between machines.

use std::net::IpAddr;

use anyhow::Context;
use rung_cli::edge::Hinted;
use rung_floating::Floating;
use rung_ingress::Supervisor;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::data::Data;

/// Runs beside the ingress; stopped before it, so that the address has moved when requests are finished.
pub struct Part {
    stop: watch::Sender<bool>,
    ended: JoinHandle<()>,
}

/// Begins to take part, if that was asked for. Otherwise ends what an earlier start began.
pub async fn take_part(
    said: Option<IpAddr>,
    supervisor: &Supervisor,
    data: &Data,
    tell: impl Fn(String) + Send + 'static,
) -> anyhow::Result<Option<Part>> {
    let Some(address) = said else {
        rung_floating::give_up(&data.ingress()).await;
        return Ok(None);
    };
    let http = supervisor.http().context("the ingress listens nowhere")?;
    let floating = Floating::prepare(address, http, &data.ingress()).map_err(|error| {
        Hinted::usage(format!("--floating {address}: {error}"), "docs/cluster.md says what it needs")
    })?;
    let (stop, stopping) = watch::channel(false);
    let (told, mut events) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            tell(event);
        }
    });
    Ok(Some(Part { stop, ended: tokio::spawn(floating.run(stopping, told)) }))
}

impl Part {
    /// Gives the address up.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // It does not panic, and when it did, there is nothing left to give up.
        let _ = self.ended.await;
    }
}
