//! `rung join` as a server: this machine gets a member of etcd of its own, and serves the API like every other server.

use std::time::{Duration, Instant};

use anyhow::Context;
use rung_api::Code;
use rung_api::wire::cluster::EnterRequest;
use rung_cli::{JoinArgs, UpArgs};
use rung_control::quorum;
use rung_trust::TrustDirectory;

use crate::data::Data;
use crate::join;
use crate::membership::Membership;

/// While another server still gets the state, or etcd has not seen all of its members for long enough, none is let in.
const LET_IN_WITHIN: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Where the API is served; RUNG on a keypad.
const API_PORT: u16 = 7864;

/// Asks for what makes this machine a server, unless it has it. May be cut off anywhere, and done again.
pub async fn ensure_entered(
    data: &Data,
    trust: &TrustDirectory,
    membership: &Membership,
    args: &JoinArgs,
) -> anyhow::Result<()> {
    if quorum::state_in(data.root()).is_some() {
        return Ok(());
    }
    let client = membership.client(&membership.identity(trust)?)?;
    let request = EnterRequest { address: join::advertised(args, membership).await? };
    let began = Instant::now();
    let bundle = loop {
        match client.enter_cluster(&request).await {
            Ok(bundle) => break bundle,
            Err(error) if error.code() == Some(Code::Unavailable) && began.elapsed() < LET_IN_WITHIN => {
                tracing::info!(%error, "asking to be let in");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error).context("becoming a server"),
        }
    };
    let bundle: quorum::Bundle =
        serde_json::from_value(bundle).context("reading what makes this machine a server")?;
    rung_api::seal::write_private(&data.node_name(), membership.node.as_str().as_bytes())
        .with_context(|| format!("writing {}", data.node_name().display()))?;
    Ok(quorum::enter(data.root(), &bundle)?)
}

/// A server is reached by other machines; what was not said is as for the other roles that join.
pub fn as_up(args: &JoinArgs) -> UpArgs {
    UpArgs {
        directory: None,
        http: Some(args.http.clone().unwrap_or_else(|| JoinArgs::HTTP.to_owned())),
        https: args.https.clone(),
        address: args.address,
        floating: args.floating,
        api: Some(std::net::SocketAddr::new(args.listen(), API_PORT).to_string()),
        ingress: args.ingress.clone(),
        labels: args.labels.clone(),
        artifacts: args.artifacts.clone(),
        keep: args.keep,
    }
}
