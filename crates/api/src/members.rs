//! Following who belongs to the cluster, through outages of the servers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rung_trust::{Member, MemberList, Members};

use crate::Client;
use crate::client::Address;
use crate::join::MemberReport;
use crate::seal::write_private;

const WAIT: Duration = Duration::from_secs(20);
/// Beyond the time that the server was allowed; then another one is asked.
const MARGIN: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(500);

/// What the list says, for those who accept connections.
pub fn known(report: &MemberReport) -> MemberList {
    let known = report.members.iter().filter_map(|member| {
        let key = member.key.parse().ok()?;
        Some((member.node.clone(), Member { role: member.role, key }))
    });
    MemberList(known.collect())
}

/// Where the cluster's servers are reached.
fn servers(report: &MemberReport) -> Vec<Address> {
    report.members.iter().filter_map(|member| member.api.as_ref()?.parse().ok()).collect()
}

/// What was kept at the last change; nothing at the first start.
pub fn recall(file: &Path) -> MemberReport {
    let kept = std::fs::read(file).ok();
    kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Keeps `members` as the servers say, and the client's servers too, until it is dropped.
pub async fn follow(client: Client, members: Members, file: PathBuf) {
    let mut held = recall(&file);
    members.set(known(&held));
    client.set_servers(servers(&held));
    // What was kept may be of another time of the same cluster: the first answer is taken whatever it says.
    held.mark.clear();
    loop {
        match tokio::time::timeout(WAIT + MARGIN, client.members(&held.mark, WAIT)).await {
            Ok(Ok(report)) => {
                // What says the same mark may have no list in it.
                if report.mark != held.mark {
                    members.set(known(&report));
                    client.set_servers(servers(&report));
                    let bytes = serde_json::to_vec(&report).expect("wire types serialize");
                    // Without it a start without servers knows the list before.
                    let _ = write_private(&file, &bytes);
                    held = report;
                }
            }
            Ok(Err(_)) | Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}
