//! A plan on its way into a real etcd, as the server that plans writes it: step by step, each a transaction that is
//! guarded by the leader's key and by the revision that it replaces.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rung_model::keys;
use rung_planner::{Plan, Write};
use rung_store::etcd::{ETCD_MAX_TXN_OPS, EtcdAdmin, EtcdConfig};
use rung_store::{EtcdStore, Guard, Op, Revision, Store, Txn};

use crate::table::Table;

use super::{in_seconds, row};

/// As servers tell it.
const QUOTA_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Nodes of which the assignment changes, each second.
const CHURN: usize = 100;
/// So many of their documents share a transaction, as they do in plans.
const SHARED: usize = 15;
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Writes the plan once, and then documents of it anew for so long. `made`: how long the plan took to make.
pub fn measure(plan: &Plan, made: Duration, churn: Duration, table: &mut Table) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        let etcd = Etcd::start(directory.path()).await?;
        let mut leader = Leader::new(&etcd).await?;
        let (began, mut bytes) = (Instant::now(), 0);
        for step in &plan.steps {
            bytes += leader.commit(&step.writes).await?;
        }
        let took = began.elapsed();
        let (megabytes, transactions) = (bytes / 1_000_000, plan.steps.len());
        table.push(row(
            format!(
                "{megabytes} MB of documents in {transactions} transactions, until they are durable in etcd"
            ),
            "",
            &[took.as_secs_f64()],
            in_seconds,
        ));
        table.push(row("planned and durable", "15 s", &[(made + took).as_secs_f64()], in_seconds));
        let seconds = churn.as_secs();
        let latest = churned(&mut leader, plan, seconds).await?;
        table.push(row(
            format!(
                "{CHURN} nodes a second get another assignment for {seconds} s: how late the last ones were"
            ),
            "1 s",
            &[latest.as_secs_f64()],
            in_seconds,
        ));
        let size = EtcdAdmin::new(vec![etcd.endpoint.clone()], None).status().await?.db_bytes;
        table.push(row(
            format!("size of etcd's database after that, of {} MB that it may have", QUOTA_BYTES / 1_000_000),
            "below its quota",
            &[size as f64 / 1e6],
            |megabytes| format!("{megabytes:.0} MB"),
        ));
        Ok(())
    })
}

/// Writes assignments anew, node after node; says how late the last second's were.
async fn churned(leader: &mut Leader, plan: &Plan, seconds: u64) -> anyhow::Result<Duration> {
    let writes = plan.steps.iter().flat_map(|step| &step.writes);
    let assignments: Vec<Write> =
        writes.filter(|write| write.key.starts_with(keys::ASSIGN)).cloned().collect();
    let mut next = assignments.iter().cycle();
    let began = Instant::now();
    let mut late = Duration::ZERO;
    for second in 0..seconds {
        let due = Duration::from_secs(second);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        let writes: Vec<Write> = next.by_ref().take(CHURN).cloned().collect();
        for shared in writes.chunks(SHARED) {
            leader.commit(shared).await?;
        }
        late = began.elapsed().saturating_sub(due);
    }
    Ok(late)
}

/// What the server that plans is to etcd.
struct Leader {
    store: EtcdStore,
    fence: Revision,
    /// Of each document that was written.
    revisions: BTreeMap<String, Revision>,
}

impl Leader {
    async fn new(etcd: &Etcd) -> anyhow::Result<Self> {
        let endpoints = vec![etcd.endpoint.clone()];
        let store = EtcdStore::create(EtcdConfig { endpoints, tls: None, root: "rung/".into() }, 1).await?;
        let put = Op::Put { key: keys::LEADER.into(), value: b"bench".to_vec(), lease: None };
        match store.txn(Vec::new(), vec![put]).await? {
            Txn::Committed(fence) => Ok(Self { store, fence, revisions: BTreeMap::new() }),
            other => anyhow::bail!("taking the lead: {other:?}"),
        }
    }

    /// One transaction; says how many bytes it holds.
    async fn commit(&mut self, writes: &[Write]) -> anyhow::Result<usize> {
        let mut guards = vec![Guard::Created { key: keys::LEADER.to_owned(), revision: self.fence }];
        let mut ops = Vec::new();
        let mut bytes = 0;
        for write in writes {
            let key = write.key.clone();
            let value = write.value.clone().context("a plan from nothing removes nothing")?;
            bytes += value.len();
            guards.push(match self.revisions.get(&key) {
                Some(revision) => Guard::Modified { key: key.clone(), revision: *revision },
                None => Guard::Absent { key: key.clone() },
            });
            ops.push(Op::Put { key, value, lease: None });
        }
        let Txn::Committed(revision) = self.store.txn(guards, ops).await? else {
            anyhow::bail!("{} was not written", writes[0].key)
        };
        self.revisions.extend(writes.iter().map(|write| (write.key.clone(), revision)));
        Ok(bytes)
    }
}

/// Debian's, with the files that it keeps in a directory that goes with this run.
struct Etcd {
    child: Child,
    endpoint: String,
}

impl Etcd {
    async fn start(directory: &Path) -> anyhow::Result<Self> {
        let free_port =
            || -> anyhow::Result<u16> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
        let (endpoint, peer) = (format!("127.0.0.1:{}", free_port()?), free_port()?);
        let (client, peer) = (format!("http://{endpoint}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args(["--name", "bench", "--initial-cluster", &format!("bench={peer}")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--max-txn-ops", &ETCD_MAX_TXN_OPS.to_string()])
            .args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()])
            .args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "30m"])
            .args(["--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.join("etcd.log"))?)
            .spawn()
            .context("starting etcd (apt-get install etcd-server)")?;
        let etcd = Self { child, endpoint };
        let admin = EtcdAdmin::new(vec![etcd.endpoint.clone()], None);
        let ready = async {
            while !admin.status().await.is_ok_and(|status| status.leader.is_some()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(READY_WITHIN, ready).await.context("etcd does not become ready")?;
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
