//! Ports of instances are the proxy's: whoever else connects to one is refused.
//!
//! Instances listen on 127.0.0.1, where everybody on the machine may knock, and many listen on every address, which is the
//! whole network. What a service allows is asked by the proxy, so a way around the proxy is a way around `allow`. Where
//! Rung runs as root the kernel closes it, by a table of nftables:
//!
//! ```text
//!   from this machine:  a connection's first packet ─► to an instance's port? ─► by root (the proxy, the health check),
//!                                                                                or by the app's own user? else refused
//!   from another one:   to an instance's port? ─► refused
//! ```
//!
//! The table is this data directory's own: another Rung's, and the machine's own firewall, are not looked at, and whatever
//! one of them refuses stays refused. It is written whole, in one transaction, before an instance starts, and again every
//! few seconds, for whoever loads the machine's firewall anew flushes everybody's. It stays while instances outlive the
//! agent, and goes with the last of them. Only what connects is looked at: a connection that stands costs one comparison a
//! packet.
//!
//! Without nftables Rung works, and `rung doctor` says what is missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::node::Shared;

/// `nft` where Debian has it, which is not on everybody's `PATH`.
const NFT: &str = "/usr/sbin/nft";
/// It needs milliseconds; on a machine that is too busy for this an instance starts all the same.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the table may be away when somebody has flushed it.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How the tables of all data directories begin.
const PREFIX: &str = "rung_";
/// nftables takes 127 bytes.
const COMMENT_MAX: usize = 120;

/// The ports that are kept, each with the user who may connect to it beside root.
pub type Doors = BTreeMap<u16, Option<u32>>;

#[derive(Debug)]
pub struct Firewall {
    /// `None`: apps are not told apart here, and so nobody is kept from anything.
    table: Option<Table>,
    /// Held while the kernel is told something; what it knows.
    told: tokio::sync::Mutex<Option<Doors>>,
    shortfall: std::sync::Mutex<Option<String>>,
}

#[derive(Debug)]
struct Table {
    name: String,
    /// Whose it is, for people, and for the Rung that finds it when this one's directory is gone.
    home: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum FirewallError {
    #[error("nft is not installed: apt-get install nftables")]
    NotInstalled,
    #[error("running nft: {0}")]
    Run(io::Error),
    #[error("nft did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("nft refused the table: {0}")]
    Refused(String),
}

impl Firewall {
    /// Where apps have users of their own. `tag` (`rung-` and some digits) tells this data directory's table from another's.
    pub fn new(tag: &str, home: &Path) -> Self {
        // Whoever reads it later is in another directory.
        let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
        let table = Table { name: tag.replace('-', "_"), home };
        Self {
            table: Some(table),
            told: tokio::sync::Mutex::default(),
            shortfall: std::sync::Mutex::default(),
        }
    }

    /// Where nobody can be told from anybody.
    pub fn without_users() -> Self {
        let shortfall = "all apps run as one user; run rung as root".to_owned();
        Self { table: None, told: tokio::sync::Mutex::default(), shortfall: Some(shortfall).into() }
    }

    /// Why ports of instances are open to the machine; `None`: they are not.
    pub fn shortfall(&self) -> Option<String> {
        self.shortfall.lock().expect("nothing panics while it is held").clone()
    }

    /// Tells the kernel what `doors` says, unless it was told the same.
    async fn ensure(&self, doors: impl FnOnce() -> Doors) {
        let Some(table) = &self.table else { return };
        let mut told = self.told.lock().await;
        // Asked for now: a thousand instances that start together take a few turns.
        let doors = doors();
        if told.as_ref() == Some(&doors) {
            return;
        }
        let outcome = nft(&table.rules(&doors)).await;
        *told = outcome.is_ok().then_some(doors);
        let shortfall = outcome.err().map(|error| error.to_string());
        let mut known = self.shortfall.lock().expect("nothing panics while it is held");
        match &shortfall {
            Some(reason) if known.is_none() => {
                tracing::warn!(reason, "ports of instances are open to the whole machine");
            }
            _ => {}
        }
        *known = shortfall;
    }

    /// Whether it could be done here, by a table of no ports that goes again: why not, when not.
    pub async fn trial(&self) -> Option<String> {
        self.ensure(Doors::new).await;
        self.remove().await;
        self.shortfall()
    }

    /// What was told may have been flushed since.
    async fn forget(&self) {
        *self.told.lock().await = None;
    }

    async fn remove(&self) {
        let Some(table) = &self.table else { return };
        if self.told.lock().await.take().is_some()
            && let Err(error) = nft(&nothing(&table.name)).await
        {
            tracing::warn!(%error, "taking the firewall's table away");
        }
    }

    /// Takes the tables away of a Rung that was killed, and whose data is gone.
    async fn sweep(&self) -> Result<(), FirewallError> {
        let Some(own) = &self.table else { return Ok(()) };
        let tables = nft("list tables inet\n").await?;
        let others = tables
            .lines()
            .filter_map(|line| line.trim().strip_prefix("table inet "))
            .filter(|name| name.starts_with(PREFIX) && *name != own.name);
        for name in others {
            let listed = nft(&format!("list table inet {name}\n")).await?;
            if home_of(&listed).is_some_and(|home| !home.exists()) {
                nft(&nothing(name)).await?;
            }
        }
        Ok(())
    }
}

/// Before an instance starts: its port is kept from now on. What fails is said by `rung doctor`, and keeps nothing from
/// starting.
pub async fn ensure(node: &Shared) {
    node.firewall.ensure(|| node.ledger().doors()).await;
}

/// Renews the table as long as the agent lives.
pub async fn keep(node: Shared) {
    if let Err(error) = node.firewall.sweep().await {
        tracing::debug!(%error, "looking for tables that nobody needs");
    }
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        node.firewall.forget().await;
        ensure(&node).await;
    }
}

/// Every instance has ended.
pub async fn remove(node: &Shared) {
    node.firewall.remove().await;
}

/// Answers what it prints.
async fn nft(script: &str) -> Result<String, FirewallError> {
    let program = if Path::new(NFT).exists() { NFT } else { "nft" };
    let mut command = Command::new(program);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = async {
        let mut child = command.kill_on_drop(true).spawn()?;
        let mut stdin = child.stdin.take().expect("it was asked for");
        // It reads everything before it says anything; one that has ended already says why.
        let _ = stdin.write_all(script.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let Output { status, stdout, stderr } = match tokio::time::timeout(ANSWER_WITHIN, run).await {
        Err(_) => return Err(FirewallError::Silent),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(FirewallError::NotInstalled),
        Ok(Err(error)) => return Err(FirewallError::Run(error)),
        Ok(Ok(output)) => output,
    };
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let first = said.lines().map(str::trim).find(|line| !line.is_empty());
    Err(FirewallError::Refused(first.map_or_else(|| status.to_string(), str::to_owned)))
}

/// The path in a listed table's comment.
fn home_of(listed: &str) -> Option<&Path> {
    let line = listed.lines().find_map(|line| line.trim().strip_prefix("comment \""))?;
    Some(Path::new(line.strip_suffix('"')?))
}

/// Whatever was there goes, in the same transaction: added first, for what is not there can't be deleted.
fn nothing(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

impl Table {
    fn rules(&self, doors: &Doors) -> String {
        let ports = doors.keys().map(u16::to_string);
        let owned = doors.iter().filter_map(|(port, user)| Some(format!("{port} . {}", (*user)?)));
        let mut text = nothing(&self.name);
        // Refused by a reset, which a client understands at once.
        let _ = write!(
            text,
            "table inet {name} {{
  {comment}
  set ports {{ type inet_service; {ports} }}
  set owned {{ typeof tcp dport . meta skuid; {owned} }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oif != \"lo\" accept
    tcp flags & (syn | ack) != syn accept
    tcp dport != @ports accept
    meta skuid 0 accept
    tcp dport . meta skuid @owned accept
    reject with tcp reset
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iif \"lo\" accept
    tcp dport @ports reject with tcp reset
  }}
}}
",
            name = self.name,
            comment = self.comment(),
            ports = elements(ports),
            owned = elements(owned),
        );
        text
    }

    /// Left out for a path that nftables could misread.
    fn comment(&self) -> String {
        let is_plain =
            |home: &&str| home.len() <= COMMENT_MAX && !home.contains(|c: char| c == '"' || c.is_control());
        self.home.to_str().filter(is_plain).map(|home| format!("comment \"{home}\"")).unwrap_or_default()
    }
}

/// Nothing at all for an empty set, which nft does not read.
fn elements(of: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = of.collect();
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(home: &str) -> Table {
        Table { name: "rung_1a2b3c4d".to_owned(), home: home.into() }
    }

    #[test]
    fn a_table_is_written_whole_and_replaces_what_was_there() {
        let text = table("/data").rules(&Doors::from([(20_001, Some(70_000)), (20_002, None)]));
        let before = text.find("delete table inet rung_1a2b3c4d").expect("what was there goes");
        let after = text.find("table inet rung_1a2b3c4d {").expect("and a table comes");
        assert!(before < after, "{text}");
        assert!(text.contains("elements = { 20001, 20002 }"), "every port is kept: {text}");
        assert!(text.contains("elements = { 20001 . 70000 }"), "a container's port has no user: {text}");
    }

    #[test]
    fn a_machine_without_instances_has_empty_sets() {
        let text = table("/data").rules(&Doors::new());
        assert!(!text.contains("elements"), "nft does not read an empty list: {text}");
    }

    #[test]
    fn whose_a_table_is_can_be_read_from_it() {
        let listed = table("/var/lib/rung/node").rules(&Doors::new());
        assert_eq!(home_of(&listed), Some(Path::new("/var/lib/rung/node")), "{listed}");
        for odd in ["/a\"; flush ruleset; \"", "/a\nb", &"/long".repeat(40)] {
            let listed = table(odd).rules(&Doors::new());
            assert!(!listed.contains("comment"), "{listed}");
            assert_eq!(home_of(&listed), None, "{odd:?} was read back");
        }
    }
}
