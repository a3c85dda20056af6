//! The audit of handoffs: invariant 1, for every proxy and every server that plans.
//!
//! An instance is told to stop only when each proxy has acknowledged routes without it, and has ended its requests there,
//! unless the proxy was silent for as long as one is waited for; and no proxy sends a request to an instance after it has
//! acknowledged routes without it. Looked at is when the leader decides, by what is true then and not by what it knows.

use std::collections::BTreeSet;
use std::time::Duration;

use rung_model::{AssignedInstance, Assignment, Generation, InstanceId, Intent, RouteDocument, keys};
use rung_planner::proxies::SILENT_AFTER;
use rung_store::{Op, Revision};

use super::proxy::{draining, listed, name};
use super::stage::is_routed;
use super::{PROXIES, SERVERS, Story};
use crate::audit::{below_floor, parse, unhealthy_listed};

/// From a poll to the leader's plan: a server's document once in 1.5 s, and a message of 4 s.
const KNOWN_WITHIN: Duration = Duration::from_secs(6);

/// A server tells of its proxies at least this often; one that is gone before has told nobody.
const TOLD_WITHIN: Duration = Duration::from_millis(1500);

/// Whether a poll of a proxy waits at a server that can tell of it.
#[derive(Debug, Clone, Copy)]
pub struct Contact {
    /// `None`: it is heard.
    silent_since: Option<Duration>,
    /// When it came back from a silence after which the word of the server where it is now may come too late.
    back: Option<Duration>,
    /// Since when it was silent before that.
    before: Duration,
}

impl Contact {
    /// Of a proxy that was not started yet.
    pub const NONE: Self = Self { silent_since: Some(Duration::ZERO), back: None, before: Duration::ZERO };

    /// Whether the leader may go on without the proxy's word.
    fn is_excused(self, now: Duration) -> bool {
        let is_silent = self.silent_since.is_some_and(|since| now >= since + SILENT_AFTER);
        is_silent || self.back.is_some_and(|back| now < back + KNOWN_WITHIN)
    }
}

impl Story {
    pub(super) fn note_contacts(&mut self) {
        for proxy in 0..PROXIES {
            let is_well = |server: &usize| {
                let is_awake = self.now >= self.servers[*server].paused_until;
                is_awake && self.reaches_the_store(*server) && !self.store_is_full()
            };
            let is_heard = (0..SERVERS).filter(is_well).any(|server| self.polls_at(proxy, server));
            let now = self.now;
            let contact = &mut self.proxies[proxy].contact;
            match contact.silent_since {
                None if !is_heard => {
                    let is_untold = contact.back.is_some_and(|back| now < back + TOLD_WITHIN);
                    contact.silent_since = Some(if is_untold { contact.before } else { now });
                }
                Some(since) if is_heard => {
                    contact.silent_since = None;
                    if now + KNOWN_WITHIN >= since + SILENT_AFTER {
                        (contact.back, contact.before) = (Some(now), since);
                    }
                }
                _ => {}
            }
        }
    }

    /// What a step of the leader would break.
    pub(super) fn audit_plan(&mut self, server: usize, ops: &[Op]) -> Option<String> {
        let world = self.servers[server].reconcile.world();
        let puts = ops.iter().filter_map(|op| match op {
            Op::Put { key, value, .. } => Some((key, value)),
            Op::Delete { .. } => None,
        });
        puts.into_iter().find_map(|(key, value)| {
            if key.starts_with(keys::ROUTES) {
                let document: RouteDocument = parse(value);
                return unhealthy_listed(world, &document).or_else(|| below_floor(world, &document));
            }
            let is_assignment = key.starts_with(keys::ASSIGN);
            is_assignment.then(|| self.audit_assignment(key, &parse(value))).flatten()
        })
    }

    fn audit_assignment(&self, key: &str, next: &Assignment) -> Option<String> {
        let held: Assignment = parse(&self.store.get(key).value?.value);
        let runs = |assigned: &AssignedInstance| assigned.intent == Intent::Run;
        let stopped = held.instances.iter().filter(|(id, assigned)| {
            is_routed(assigned) && runs(assigned) && next.instances.get(*id).is_none_or(|next| !runs(next))
        });
        stopped.map(|(id, _)| id).find_map(|id| self.audit_stop(id))
    }

    /// The handoff's order: un-routed, acknowledged, drained, told to stop.
    fn audit_stop(&self, id: &InstanceId) -> Option<String> {
        if self.named_in_routes(listed).contains(id) {
            return Some(format!("{id} shall stop and is routed"));
        }
        let unrouted = self.unrouted.get(id)?;
        // One that was taken out because it was ill is not drained.
        let is_draining = self.named_in_routes(draining).contains(id);
        let waited_for = self.proxies.iter().enumerate();
        let mut waited_for = waited_for.filter(|(_, proxy)| !proxy.contact.is_excused(self.now));
        waited_for.find_map(|(number, proxy)| {
            let who = name(number);
            if proxy.acknowledged < *unrouted {
                return Some(format!(
                    "{id} shall stop, and {who} has not acknowledged its un-routing at {unrouted}"
                ));
            }
            (is_draining && proxy.sends_to(id))
                .then(|| format!("{id} shall stop, and {who} has a request in flight there"))
        })
    }

    fn named_in_routes(&self, named: fn(&RouteDocument) -> BTreeSet<InstanceId>) -> BTreeSet<InstanceId> {
        let read = self.store.list(keys::ROUTES, None, usize::MAX).value.entries;
        read.iter().flat_map(|entry| named(&parse(&entry.value))).collect()
    }

    /// What is routed before a transaction that changes routes.
    pub(super) fn routed_before(&self, ops: &[Op]) -> Option<BTreeSet<InstanceId>> {
        let changes_routes = |op: &Op| match op {
            Op::Put { key, .. } | Op::Delete { key } => key.starts_with(keys::ROUTES),
        };
        ops.iter().any(changes_routes).then(|| self.named_in_routes(listed))
    }

    pub(super) fn audit_routes(&mut self, revision: Revision, before: Option<BTreeSet<InstanceId>>) {
        let Some(before) = before else { return };
        let generation = Generation::new(self.store.epoch(), revision);
        let routed = self.named_in_routes(listed);
        self.note(|_| format!("routed by {generation}: {routed:?}"));
        self.unrouted.retain(|id, _| !routed.contains(id));
        self.unrouted.extend(before.into_iter().filter(|id| !routed.contains(id)).map(|id| (id, generation)));
    }

    /// No request after the un-routing was acknowledged, through the proxy's own restart either.
    pub(super) fn audit_request(&mut self, proxy: usize, id: &InstanceId) {
        let holds = self.proxies[proxy].holds;
        if let Some(unrouted) = self.unrouted.get(id).filter(|unrouted| **unrouted <= holds) {
            let who = name(proxy);
            self.fail(format!(
                "{who} sends a request to {id}, although it has acknowledged its un-routing at {unrouted}"
            ));
        }
    }
}
