//! What happened, for `rung events`: the newest in memory, all of them in a bounded file of JSON lines.
//!
//! Events are for people. Nothing is decided by them, so losing the last ones with the power costs nothing and they
//! are not synced.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use jiff::Timestamp;
use rung_api::wire::{EventRecord, OwnEvents};
use rung_model::{
    AppName, Deployment, Document, InstanceId, InstanceState, NodeId, Observed, ObservedInstance, keys,
};
use rung_planner::World;
use rung_store::Event as StoreEvent;
use tokio::sync::watch;

use crate::reconcile::Event;

/// How many events are kept in memory and shown.
const KEPT: usize = 1000;

/// The file is moved aside at this size, and the one moved aside before it is dropped.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct EventLog {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    records: VecDeque<EventRecord>,
    next: u64,
    path: PathBuf,
    file: File,
    file_bytes: u64,
    /// Up to where other servers have told of theirs, and when that happened.
    heard: BTreeMap<NodeId, (u64, Timestamp)>,
}

impl EventLog {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let file_bytes = file.metadata()?.len();
        let (records, heard) = (VecDeque::new(), BTreeMap::new());
        let mut kept = Kept { records, next: 1, path: path.to_owned(), file, file_bytes, heard };
        for path in [path.with_extension("jsonl.1"), path.to_owned()] {
            kept.read(&path)?;
        }
        let newest = watch::Sender::new(kept.next - 1);
        Ok(Self { kept: Mutex::new(kept), newest })
    }

    /// `server`: of what the other servers do not see in the state.
    pub fn record(&self, app: Option<&AppName>, server: Option<&NodeId>, kind: &str, message: String) {
        tracing::info!(app = app.map(AppName::as_str), kind, "{message}");
        let (app, server, kind) = (app.cloned(), server.cloned(), kind.to_owned());
        let at = Timestamp::now();
        self.keep([EventRecord { sequence: 0, at, server, sequence_there: None, app, kind, message }]);
    }

    /// Writes them down under the next numbers.
    fn keep(&self, records: impl IntoIterator<Item = EventRecord>) {
        let mut kept = self.kept.lock().expect("no panic while held");
        for mut record in records {
            record.sequence = kept.next;
            kept.next += 1;
            kept.append(&record);
            kept.heard(&record);
            kept.records.push_back(record);
            if kept.records.len() > KEPT {
                kept.records.pop_front();
            }
        }
        let newest = kept.next - 1;
        drop(kept);
        self.newest.send_replace(newest);
    }

    /// Up to where another server's own events were heard.
    pub fn heard_of(&self, server: &NodeId) -> u64 {
        let kept = self.kept.lock().expect("no panic while held");
        kept.heard.get(server).map_or(0, |(sequence, _)| *sequence)
    }

    /// What another server has told of its own after [`heard_of`](Self::heard_of).
    pub fn hear(&self, server: &NodeId, told: OwnEvents) {
        let (heard, newest_at) = {
            let kept = self.kept.lock().expect("no panic while held");
            kept.heard.get(server).map_or((0, None), |(sequence, at)| (*sequence, Some(*at)))
        };
        if told.newest < heard {
            // Its last events were lost with the power, or all of them: it counts anew, and what it still has comes again.
            self.kept.lock().expect("no panic while held").forget(server);
            return;
        }
        let fresh = told.events.into_iter().filter(|event| event.sequence > heard);
        // After it was forgotten: what was told before the numbers began anew.
        let fresh = fresh.filter(|event| heard > 0 || newest_at.is_none_or(|at| event.at > at));
        let fresh: Vec<_> = fresh
            .map(|event| EventRecord {
                server: Some(server.clone()),
                sequence_there: Some(event.sequence),
                ..event
            })
            .collect();
        if !fresh.is_empty() {
            self.keep(fresh);
        }
    }

    /// Events that this server alone knows at first hand, for the others.
    pub fn own_after(&self, own: &NodeId, sequence: u64) -> OwnEvents {
        let kept = self.kept.lock().expect("no panic while held");
        let newer = kept.records.iter().filter(|record| record.sequence > sequence);
        let own =
            newer.filter(|record| record.server.as_ref() == Some(own) && record.sequence_there.is_none());
        OwnEvents { events: own.cloned().collect(), newest: kept.next - 1 }
    }

    /// Events after a sequence number.
    pub fn after(&self, sequence: u64, app: Option<&AppName>) -> Vec<EventRecord> {
        let kept = self.kept.lock().expect("no panic while held");
        let newer = kept.records.iter().filter(|record| record.sequence > sequence);
        newer.filter(|record| app.is_none() || record.app.as_ref() == app).cloned().collect()
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// What an event of the loop means to people, compared with the world before it.
    pub fn tell_apart(&self, event: &Event, before: &World) -> Vec<(AppName, &'static str, String)> {
        let (Event::Changed(batch) | Event::ChangedOnTheWay(batch)) = event else { return Vec::new() };
        let mut told = Vec::new();
        for change in &batch.events {
            let StoreEvent::Put(entry) = change else { continue };
            if entry.key.starts_with(keys::OBSERVED)
                && let Ok(observed) = Observed::from_json(&entry.value)
            {
                let known = before.observed.get(&observed.node).map(|held| &held.value.instances);
                told.extend(instance_transitions(known, &observed.instances));
            } else if entry.key.starts_with(keys::DEPLOYMENTS)
                && let Ok(deployment) = Deployment::from_json(&entry.value)
            {
                let known = before.deployment(&deployment.app, deployment.number);
                if known.is_none_or(|known| known.phase != deployment.phase) {
                    let words = deployment.timeline.last().map_or("begins", |entry| entry.message.as_str());
                    let message = format!("{}: {words}", deployment.number);
                    told.push((deployment.app.clone(), "deployment", message));
                }
            }
        }
        told
    }
}

fn instance_transitions(
    before: Option<&BTreeMap<InstanceId, ObservedInstance>>,
    now: &BTreeMap<InstanceId, ObservedInstance>,
) -> Vec<(AppName, &'static str, String)> {
    let mut told = Vec::new();
    for (id, instance) in now {
        let known = before.and_then(|before| before.get(id));
        let is_new =
            known.is_none_or(|known| known.state != instance.state || known.restarts != instance.restarts);
        let kind = match instance.state {
            InstanceState::Healthy => "instance_healthy",
            InstanceState::Unhealthy => "instance_unhealthy",
            InstanceState::BackingOff => "instance_exited",
            InstanceState::CrashLooping => "instance_crash_looping",
            InstanceState::Failed => "instance_failed",
            InstanceState::Stopped => "instance_stopped",
            InstanceState::Preparing | InstanceState::Starting | InstanceState::Stopping => continue,
        };
        if is_new {
            let reason = instance.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let state = kind.trim_start_matches("instance_").replace('_', " ");
            told.push((instance.app.clone(), kind, format!("{id} {state}{reason}")));
        }
    }
    told
}

impl Kept {
    fn read(&mut self, path: &Path) -> io::Result<()> {
        let Ok(file) = File::open(path) else { return Ok(()) };
        for line in io::BufReader::new(file).lines() {
            // A line that was cut by a crash is passed over.
            let Ok(record) = serde_json::from_slice::<EventRecord>(line?.as_bytes()) else { continue };
            self.next = record.sequence + 1;
            self.heard(&record);
            self.records.push_back(record);
            if self.records.len() > KEPT {
                self.records.pop_front();
            }
        }
        Ok(())
    }

    fn heard(&mut self, record: &EventRecord) {
        if let (Some(server), Some(sequence)) = (&record.server, record.sequence_there) {
            let at = self.heard.get(server).map_or(record.at, |(_, at)| record.at.max(*at));
            self.heard.insert(server.clone(), (sequence, at));
        }
    }

    /// The next it tells may have any number.
    fn forget(&mut self, server: &NodeId) {
        if let Some((sequence, _)) = self.heard.get_mut(server) {
            *sequence = 0;
        }
    }

    fn append(&mut self, record: &EventRecord) {
        let mut line = serde_json::to_vec(record).expect("wire types serialize");
        line.push(b'\n');
        if self.file_bytes + line.len() as u64 > FILE_MAX_BYTES {
            self.rotate();
        }
        match self.file.write_all(&line) {
            Ok(()) => self.file_bytes += line.len() as u64,
            Err(error) => tracing::warn!(%error, "an event was not written to {}", self.path.display()),
        }
    }

    fn rotate(&mut self) {
        let aside = self.path.with_extension("jsonl.1");
        let fresh = std::fs::rename(&self.path, &aside)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&self.path));
        if let Ok(file) = fresh {
            self.file = file;
            self.file_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_there_again_after_a_restart_and_a_torn_line_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let app = AppName::new("shop").unwrap();
        let log = EventLog::open(&path).unwrap();
        log.record(Some(&app), None, "deployment", "d1: begins".into());
        log.record(None, None, "ingress", "ingress restarted".into());
        drop(log);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"sequence\":3,\"a").unwrap();
        let log = EventLog::open(&path).unwrap();
        assert_eq!(log.after(0, None).len(), 2, "not both events survived");
        assert_eq!(log.after(0, Some(&app)).len(), 1);
        log.record(None, None, "ingress", "again".into());
        assert_eq!(log.after(2, None)[0].sequence, 3, "numbers did not go on");
    }

    #[test]
    fn what_other_servers_tell_is_taken_once_also_over_restarts_and_when_they_count_anew() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| EventLog::open(&dir.path().join(name)).unwrap();
        let (one, two): (NodeId, NodeId) = ("web-1".parse().unwrap(), "web-2".parse().unwrap());
        let there = open("two");
        there.record(None, Some(&two), "etcd", "started again".into());
        there.record(None, None, "deployment", "everybody sees it".into());
        let pass = |here: &EventLog, there: &EventLog| {
            here.hear(&two, there.own_after(&two, here.heard_of(&two)));
            here.after(0, None).into_iter().map(|event| event.message).collect::<Vec<_>>()
        };
        let here = open("one");
        here.record(None, Some(&one), "ingress", "restarted".into());
        assert_eq!(pass(&here, &there), ["restarted", "started again"]);
        drop(here);
        let here = open("one");
        assert_eq!(pass(&here, &there), ["restarted", "started again"], "it came twice");
        assert_eq!(here.own_after(&one, 0).events.len(), 1, "what was heard is passed on");
        // The other one has lost what it had.
        let anew = open("anew");
        pass(&here, &anew);
        anew.record(None, Some(&two), "etcd", "begins anew".into());
        assert_eq!(pass(&here, &anew), ["restarted", "started again", "begins anew"]);
    }
}
