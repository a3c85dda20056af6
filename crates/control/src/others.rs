//! What the other servers tell of themselves: their audit trails are copied here, and what happened at them stands among
//! the events of this server. Each server asks each other one, by long polls, so that it knows at once, and knows still
//! when that one is lost.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use rung_api::audit::{AuditRecord, KeptTrail, ServerTrail, Standing};
use rung_api::{Address, Client, ClientError, Code, ErrorBody};
use rung_model::{NodeId, NodeRole};
use tokio::task::JoinHandle;

use crate::audit::Whose;
use crate::shared::Control;
use crate::trees::chain;

/// How often it is looked which servers there are.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long another server holds a question to which there is no news.
const WAIT: Duration = Duration::from_secs(20);
/// One that has not answered by then does not answer at all.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// Events come in swarms.
const BREATH: Duration = Duration::from_millis(200);
/// After a question that failed.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A trail that can't be copied is looked at again then: a person may have mended it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A person who asks for the trails waits so long for a server that does not answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Follows each other server, as long as there are several.
pub(crate) async fn follow(control: Control) {
    let mut followed: BTreeMap<Whose, (Address, Following)> = BTreeMap::new();
    loop {
        let servers = control.servers_by_joining();
        let mut before = std::mem::take(&mut followed);
        for (server, address) in control.where_other_servers_are() {
            let Some(joined) = servers.iter().find(|(other, _)| *other == server).map(|whose| whose.1) else {
                continue;
            };
            let whose = (server, joined);
            let known = before.remove(&whose).filter(|(at, _)| *at == address);
            let following = known.map(|(_, following)| following).or_else(|| {
                let client = control.client_of(&whose.0, address.clone())?;
                Some(Following::begin(&control, &whose, &client))
            });
            followed.extend(following.map(|following| (whose, (address, following))));
        }
        drop(before);
        control.inner.audit.forget_old_copies(servers).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends with this.
struct Following([JoinHandle<()>; 2]);

impl Following {
    fn begin(control: &Control, whose: &Whose, client: &Client) -> Self {
        let copying = copy_trail(control.clone(), whose.clone(), client.clone());
        let hearing = hear_events(control.clone(), whose.0.clone(), client.clone());
        Self([tokio::spawn(copying), tokio::spawn(hearing)])
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn copy_trail(control: Control, whose: Whose, client: Client) {
    let audit = &control.inner.audit;
    let mut told = false;
    loop {
        let after = audit.copied(&whose).await.map_or(0, |head| head.sequence);
        let records = match asked(client.own_audit(after, WAIT)).await {
            Ok(records) if records.is_empty() => continue,
            Ok(records) => records,
            Err(why) => {
                tracing::debug!(server = %whose.0, why, "asking for the audit trail");
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
        };
        match audit.copy(&whose, records).await {
            Ok(()) => told = false,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(server = %whose.0, error, "the audit trail of another server can't be copied");
                if !told {
                    let message = format!("the audit trail of server {} is not copied: {error}", whose.0);
                    control.record(None, "audit", message);
                    told = true;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

async fn hear_events(control: Control, server: NodeId, client: Client) {
    let events = &control.inner.events;
    let mut newest = None;
    loop {
        // Events that all see are passed over there; they need not be asked for again.
        let after = newest.unwrap_or_else(|| events.heard_of(&server));
        match asked(client.own_events(after, WAIT)).await {
            Ok(told) => {
                newest = (told.newest >= after).then_some(told.newest);
                events.hear(&server, told);
                tokio::time::sleep(BREATH).await;
            }
            Err(why) => {
                tracing::debug!(%server, why, "asking for events");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

async fn asked<T>(question: impl Future<Output = Result<T, ClientError>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWERED_WITHIN, question).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err("no answer".to_owned()),
    }
}

impl Control {
    fn servers_by_joining(&self) -> Vec<Whose> {
        self.read(|world| {
            let members = world.members.values().map(|held| &held.value);
            let servers = members.filter(|member| member.role == NodeRole::Server);
            servers.map(|member| (member.node.clone(), member.joined)).collect()
        })
    }

    /// The trails that are here.
    pub(crate) async fn kept_trails(&self, tail: usize) -> io::Result<Vec<KeptTrail>> {
        let own = &self.inner.node;
        let known = self.servers_by_joining().into_iter().find(|(server, _)| server == own);
        // A machine that never was one of several has no member's document.
        let whose = known.unwrap_or_else(|| (own.clone(), Timestamp::UNIX_EPOCH));
        self.inner.audit.tails(whose, tail).await
    }

    /// A page of another server's trail, by its own word.
    pub(crate) async fn trail_of(&self, server: &NodeId, after: u64) -> Result<Vec<AuditRecord>, ErrorBody> {
        let others = self.other_servers();
        let Some((_, client)) = others.iter().find(|(other, _)| other == server) else {
            return Err(ErrorBody::new(Code::NotFound, format!("there is no other server {server}")));
        };
        let answer = tokio::time::timeout(PATIENCE, client.own_audit(after, Duration::ZERO)).await;
        let unreached = |why: String| {
            ErrorBody::new(Code::Unavailable, format!("asking server {server} for its audit trail: {why}"))
                .hint("`rung cluster` tells how the servers are")
        };
        answer.map_err(|_| unreached("no answer".to_owned()))?.map_err(|error| unreached(chain(&error)))
    }

    /// The trail of each server, from itself or else from whoever has copied most of it.
    pub(crate) async fn trails(&self, tail: usize) -> io::Result<Vec<ServerTrail>> {
        let others = self.other_servers();
        let mut asked: FuturesUnordered<_> = others
            .iter()
            .map(async |(server, client)| {
                (server, tokio::time::timeout(PATIENCE, client.kept_audits(tail)).await)
            })
            .collect();
        let here = self.kept_trails(tail).await?;
        let mut gathered = Gathered::default();
        let mut silent = BTreeMap::new();
        gathered.add(&self.inner.node, here.clone());
        while let Some((server, answer)) = asked.next().await {
            match answer {
                Ok(Ok(kept)) => gathered.add(server, kept),
                Ok(Err(error)) => drop(silent.insert(server.clone(), chain(&error))),
                Err(_) => drop(silent.insert(server.clone(), "no answer".to_owned())),
            }
        }
        Ok(gathered.told(&here, &self.servers_by_joining(), &silent))
    }
}

/// What several servers have of the trails.
#[derive(Debug, Default)]
struct Gathered {
    /// With whether it is the server's own word.
    trails: BTreeMap<Whose, (bool, KeptTrail)>,
}

impl Gathered {
    fn add(&mut self, from: &NodeId, kept: Vec<KeptTrail>) {
        for (at, trail) in kept.into_iter().enumerate() {
            let is_own = at == 0 && trail.server == *from;
            let whose = (trail.server.clone(), trail.joined);
            let length = |trail: &KeptTrail| trail.head.as_ref().map_or(0, |head| head.sequence);
            match self.trails.get(&whose) {
                Some((was_own, known)) if *was_own || (!is_own && length(known) >= length(&trail)) => {}
                _ => drop(self.trails.insert(whose, (is_own, trail))),
            }
        }
    }

    /// `here`: what the server that is asked has itself.
    fn told(
        mut self,
        here: &[KeptTrail],
        servers: &[Whose],
        silent: &BTreeMap<NodeId, String>,
    ) -> Vec<ServerTrail> {
        for (server, joined) in servers {
            self.trails.entry((server.clone(), *joined)).or_insert_with(|| {
                let (server, joined) = (server.clone(), *joined);
                (false, KeptTrail { server, joined, records: Vec::new(), head: None, trouble: None })
            });
        }
        let told = self.trails.into_iter().map(|(whose, (is_own, trail))| {
            let standing = if is_own {
                Standing::Answered
            } else if servers.contains(&whose) {
                let why = silent.get(&whose.0).cloned();
                Standing::Silent { why: why.unwrap_or_else(|| "where it is reached is not known".to_owned()) }
            } else {
                Standing::Gone
            };
            let copy = here.iter().skip(1).find(|copy| (&copy.server, copy.joined) == (&whose.0, whose.1));
            ServerTrail {
                server: whose.0,
                joined: whose.1,
                standing,
                records: trail.records,
                copied: copy.and_then(|copy| copy.head.clone()),
                trouble: copy.and_then(|copy| copy.trouble.clone()),
            }
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use rung_api::audit::Head;

    use super::*;

    fn trail(server: &str, joined: i64, sequence: u64) -> KeptTrail {
        KeptTrail {
            server: server.parse().unwrap(),
            joined: Timestamp::from_second(joined).unwrap(),
            records: Vec::new(),
            head: Some(Head { sequence, hash: String::new() }),
            trouble: None,
        }
    }

    #[test]
    fn each_server_is_taken_at_its_own_word_and_a_lost_one_by_the_longest_copy() {
        let name = |name: &str| name.parse::<NodeId>().unwrap();
        let joined = |trail: &KeptTrail| (trail.server.clone(), trail.joined);
        let here = [trail("web-1", 1, 5), trail("web-2", 2, 7), trail("web-3", 3, 4)];
        let there = [trail("web-2", 2, 8), trail("web-1", 1, 4), trail("web-3", 3, 6), trail("web-3", 1, 9)];
        let mut gathered = Gathered::default();
        gathered.add(&name("web-1"), here.to_vec());
        gathered.add(&name("web-2"), there.to_vec());
        let chosen = |whose: Whose| gathered.trails[&whose].1.head.as_ref().unwrap().sequence;
        assert_eq!(chosen(joined(&here[0])), 5);
        assert_eq!(chosen(joined(&here[1])), 8);
        assert_eq!(chosen(joined(&here[2])), 6, "the shorter copy of the lost server");
        let servers: Vec<_> = here.iter().map(joined).collect();
        let silent = BTreeMap::from([(name("web-3"), "connection refused".to_owned())]);
        let told = gathered.told(&here, &servers, &silent);
        let standings: Vec<_> = told.iter().map(|told| (told.server.as_str(), &told.standing)).collect();
        let lost = Standing::Silent { why: "connection refused".to_owned() };
        assert_eq!(
            standings,
            [
                ("web-1", &Standing::Answered),
                ("web-2", &Standing::Answered),
                ("web-3", &Standing::Gone),
                ("web-3", &lost)
            ]
        );
        assert_eq!(
            told[1].copied.as_ref().map(|head| head.sequence),
            Some(7),
            "what is copied here is compared"
        );
    }
}
