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
use rung_api::wire::EventRecord;
use rung_model::{
    AppName, Deployment, Document, InstanceId, InstanceState, Observed, ObservedInstance, keys,
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
}

impl EventLog {
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut records = VecDeque::new();
        if let Ok(file) = File::open(path) {
            for line in io::BufReader::new(file).lines() {
                // A line that was cut by a crash is passed over.
                if let Ok(record) = serde_json::from_slice::<EventRecord>(line?.as_bytes()) {
                    records.push_back(record);
                    if records.len() > KEPT {
                        records.pop_front();
                    }
                }
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let file_bytes = file.metadata()?.len();
        let next = records.back().map_or(1, |record| record.sequence + 1);
        let kept = Kept { records, next, path: path.to_owned(), file, file_bytes };
        Ok(Self { kept: Mutex::new(kept), newest: watch::Sender::new(next - 1) })
    }

    pub fn record(&self, app: Option<&AppName>, kind: &str, message: String) {
        let mut kept = self.kept.lock().expect("no panic while held");
        let sequence = kept.next;
        kept.next += 1;
        let record =
            EventRecord { sequence, at: Timestamp::now(), app: app.cloned(), kind: kind.to_owned(), message };
        tracing::info!(app = app.map(AppName::as_str), kind, "{}", record.message);
        kept.append(&record);
        kept.records.push_back(record);
        if kept.records.len() > KEPT {
            kept.records.pop_front();
        }
        drop(kept);
        self.newest.send_replace(sequence);
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
        log.record(Some(&app), "deployment", "d1: begins".into());
        log.record(None, "ingress", "ingress restarted".into());
        drop(log);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"sequence\":3,\"a").unwrap();
        let log = EventLog::open(&path).unwrap();
        assert_eq!(log.after(0, None).len(), 2, "not both events survived");
        assert_eq!(log.after(0, Some(&app)).len(), 1);
        log.record(None, "ingress", "again".into());
        assert_eq!(log.after(2, None)[0].sequence, 3, "numbers did not go on");
    }
}
