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
//! Containers have addresses beside that, by which these ports are reached as well: [`walls`].
//!
//! Without nftables Rung works, and `rung doctor` says what is missing.

mod neighbours;
mod nft;
mod rules;
pub mod walls;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::node::Shared;
use nft::{Owner, elements, nft, nothing};

/// How long the table may be away when somebody has flushed it.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// The ports that are kept, each with the user who may connect to it beside root.
pub type Doors = BTreeMap<u16, Option<u32>>;

#[derive(Debug)]
pub struct Firewall {
    /// `None`: apps are not told apart here, and so nobody is kept from anything.
    table: Option<Owner>,
    /// Held while the kernel is told something; what it knows.
    told: tokio::sync::Mutex<Option<Doors>>,
    shortfall: std::sync::Mutex<Option<String>>,
}

impl Firewall {
    /// Where apps have users of their own. `tag` (`rung-` and some digits) tells this data directory's table from another's.
    pub fn new(tag: &str, home: &Path) -> Self {
        Self {
            table: Some(Owner::new(tag, home)),
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
        let outcome = nft(&rules(table, &doors)).await;
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
            && let Err(error) = nft(&nothing(&format!("inet {}", table.name))).await
        {
            tracing::warn!(%error, "taking the firewall's table away");
        }
    }
}

/// Before an instance starts: its port is kept from now on. What fails is said by `rung doctor`, and keeps nothing from
/// starting.
pub async fn ensure(node: &Shared) {
    node.firewall.ensure(|| node.ledger().doors()).await;
}

/// Renews the table as long as the agent lives.
pub async fn keep(node: Shared) {
    if node.firewall.table.is_some()
        && let Err(error) = nft::sweep().await
    {
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

fn rules(of: &Owner, doors: &Doors) -> String {
    let ports = doors.keys().map(u16::to_string);
    let owned = doors.iter().filter_map(|(port, user)| Some(format!("{port} . {}", (*user)?)));
    let mut text = nothing(&format!("inet {}", of.name));
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
        name = of.name,
        comment = of.comment(),
        ports = elements(ports),
        owned = elements(owned),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner::new("rung-1a2b3c4d", Path::new("/data"))
    }

    #[test]
    fn a_table_is_written_whole_and_replaces_what_was_there() {
        let text = rules(&owner(), &Doors::from([(20_001, Some(70_000)), (20_002, None)]));
        let before = text.find("delete table inet rung_1a2b3c4d").expect("what was there goes");
        let after = text.find("table inet rung_1a2b3c4d {").expect("and a table comes");
        assert!(before < after, "{text}");
        assert!(text.contains("elements = { 20001, 20002 }"), "every port is kept: {text}");
        assert!(text.contains("elements = { 20001 . 70000 }"), "a container's port has no user: {text}");
    }

    #[test]
    fn a_machine_without_instances_has_empty_sets() {
        let text = rules(&owner(), &Doors::new());
        assert!(!text.contains("elements"), "nft does not read an empty list: {text}");
    }
}
