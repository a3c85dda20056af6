//! The thread that owns the connection.
//!
//! ```text
//! commands -> [serving] --sync failed--> [lost] --file opened again--> [serving]
//!                 |                         | every command: unavailable
//!           channel closed -> end     channel closed -> end
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::session::{Failed, Session, Work};
use super::{backup, file};
use crate::memory::{Evaluated, Pending};
use crate::shared::Shared;
use crate::{Guard, LeaseId, Op, Revision, StoreError, TXN_MAX_BYTES, Txn};

pub type Reply<T> = oneshot::Sender<T>;

#[derive(Debug)]
pub enum Command {
    Txn {
        guards: Vec<Guard>,
        ops: Vec<Op>,
        reply: Reply<Result<Txn, StoreError>>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<Result<LeaseId, StoreError>>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<Result<(), StoreError>>,
    },
    BumpEpoch {
        above: u64,
        reply: Reply<Result<u64, StoreError>>,
    },
    Backup {
        to: PathBuf,
        reply: Reply<Result<Revision, StoreError>>,
    },
    /// Refuse every write from now on, so that the state can be carried elsewhere; answered with the last revision.
    Hold {
        reply: Reply<Revision>,
    },
    /// Take writes again.
    Release {
        reply: Reply<()>,
    },
    /// The next write gets this for an answer: after it was done, if unknown; instead, if refused.
    #[cfg(test)]
    Fail(Failed),
}

/// More than wait in practice; it bounds what one failure affects.
const GROUP_MAX_TXNS: usize = 64;
const GROUP_MAX_BYTES: usize = 2 * TXN_MAX_BYTES;

/// History on disk may be that much longer than the log in memory: it is cut in larger pieces, not at every commit.
const PRUNE_SLACK: Revision = 16;

/// A lease whose end could not be written (a full disk) is tried again so much later.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

enum Ended {
    /// The store was dropped.
    Closed,
    /// What is on disk must be read again.
    Lost,
}

pub struct Writer {
    path: PathBuf,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    /// History on disk is cut up to here.
    pruned: Revision,
    is_held: bool,
}

/// What a write is told while the state is carried elsewhere.
const HELD: &str = "its state is being moved; try again in a moment";

struct Waiting {
    guards: Vec<Guard>,
    ops: Vec<Op>,
    reply: Reply<Result<Txn, StoreError>>,
}

impl Writer {
    pub fn new(path: PathBuf, shared: Arc<Shared>, inbox: Receiver<Command>) -> Self {
        Self { path, shared, inbox, pruned: 0, is_held: false }
    }

    pub fn run(mut self, connection: Connection) {
        let mut connection = Some(connection);
        while let Some(open) = connection.take() {
            match Session::new(&open) {
                Ok(session) => match self.serve(session) {
                    Ended::Closed => return,
                    Ended::Lost => {}
                },
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "store can't go on, opening it again");
                    // One try for each command: this must not spin.
                    match self.inbox.recv() {
                        Ok(command) => refuse(command, &error.to_string()),
                        Err(_) => return,
                    }
                }
            }
            drop(open);
            connection = self.reopen();
        }
    }

    /// `None` when the store was dropped meanwhile.
    fn reopen(&mut self) -> Option<Connection> {
        loop {
            let limits = self.shared.core().log_limits();
            let error = match file::open(&self.path, limits) {
                Ok((connection, core)) => {
                    *self.shared.core() = core;
                    self.shared.announce();
                    return Some(connection);
                }
                Err(error) => error,
            };
            // Each command is a reason to try again; without one nobody needs the store.
            let command = self.inbox.recv().ok()?;
            refuse(command, &error.to_string());
        }
    }

    fn serve(&mut self, mut session: Session<'_>) -> Ended {
        let mut retry = Duration::ZERO;
        loop {
            // While it is held no lease ends: its end would be a write.
            let next = self.shared.core().next_expiry().filter(|_| !self.is_held);
            let next = next.map(|next| next.max(retry));
            let command = match next {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => self.inbox.recv_timeout(next),
            };
            let result = match command {
                Err(RecvTimeoutError::Disconnected) => return Ended::Closed,
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Ok(command) => self.handle(&mut session, command),
            };
            let result = result.and_then(|()| self.expire(&mut session));
            match result {
                Ok(Expiries::Done) => retry = Duration::ZERO,
                Ok(Expiries::Refused) => retry = EXPIRY_RETRY,
                Err(ended) => return ended,
            }
        }
    }

    fn handle(&mut self, session: &mut Session<'_>, command: Command) -> Result<(), Ended> {
        let mut next = Some(command);
        while let Some(command) = next.take() {
            match command {
                Command::Hold { reply } => {
                    self.is_held = true;
                    answer(reply, self.shared.core().revision());
                }
                Command::Release { reply } => {
                    self.is_held = false;
                    answer(reply, ());
                }
                command @ (Command::Txn { .. } | Command::Grant { .. } | Command::Revoke { .. })
                    if self.is_held =>
                {
                    refuse(command, HELD);
                }
                Command::Txn { guards, ops, reply } => {
                    let (group, other) = self.gather(Waiting { guards, ops, reply });
                    next = other;
                    self.commit(session, group)?;
                }
                Command::Grant { ttl, reply } => {
                    let lease = self.shared.core().next_lease_id();
                    let work = Work { grant: Some((lease, ttl)), ..Work::default() };
                    self.write(session, &work, reply, |shared| {
                        shared.core().grant(lease, ttl);
                        lease
                    })?;
                }
                Command::Revoke { lease, reply } => self.revoke(session, lease, reply)?,
                Command::BumpEpoch { above, reply } => {
                    let epoch = self.shared.core().epoch().max(above).saturating_add(1);
                    let work = Work { epoch: Some(epoch), ..Work::default() };
                    self.write(session, &work, reply, |shared| {
                        shared.core().set_epoch(epoch);
                        epoch
                    })?;
                }
                Command::Backup { to, reply } => {
                    let revision = self.shared.core().revision();
                    answer(reply, backup::write(session.connection(), &to).map(|()| revision));
                }
                #[cfg(test)]
                Command::Fail(failed) => session.fail_next(failed),
            }
        }
        Ok(())
    }

    /// Takes what waits behind a transaction, as long as it is transactions.
    fn gather(&self, first: Waiting) -> (Vec<Waiting>, Option<Command>) {
        let mut bytes = size(&first.ops);
        let mut group = vec![first];
        while group.len() < GROUP_MAX_TXNS && bytes < GROUP_MAX_BYTES {
            match self.inbox.try_recv() {
                Ok(Command::Txn { guards, ops, reply }) => {
                    bytes += size(&ops);
                    group.push(Waiting { guards, ops, reply });
                }
                Ok(other) => return (group, Some(other)),
                Err(_) => break,
            }
        }
        (group, None)
    }

    fn commit(&mut self, session: &mut Session<'_>, group: Vec<Waiting>) -> Result<(), Ended> {
        let mut pending = Pending::default();
        let mut answers = Vec::with_capacity(group.len());
        {
            let core = self.shared.core();
            for Waiting { guards, ops, reply } in group {
                let verdict = core.evaluate(&pending, &guards, ops).map(|evaluated| match evaluated {
                    Evaluated::Conflict => (Txn::Conflict, Txn::Conflict),
                    Evaluated::Nothing(revision) => (Txn::Committed(revision), Txn::Conflict),
                    Evaluated::Change(change) => {
                        let revision = change.revision;
                        pending.push(change);
                        (Txn::Committed(revision), Txn::Unknown)
                    }
                });
                answers.push((reply, verdict));
            }
        }
        if pending.changes().is_empty() {
            for (reply, verdict) in answers {
                answer(reply, verdict.map(|(committed, _)| committed));
            }
            return Ok(());
        }
        let floor = self.shared.core().floor();
        let prune = (floor >= self.pruned + PRUNE_SLACK).then_some(floor);
        let result = session.write(&Work { changes: pending.changes(), prune, ..Work::default() });
        if result.is_ok() {
            self.pruned = prune.unwrap_or(self.pruned);
            let mut core = self.shared.core();
            for change in pending.into_changes() {
                core.apply(change);
            }
            drop(core);
            self.shared.announce();
        }
        for (reply, verdict) in answers {
            let verdict = verdict.and_then(|(committed, lost)| match &result {
                Ok(()) => Ok(committed),
                Err(Failed::Unknown(_)) if lost == Txn::Unknown => Ok(Txn::Unknown),
                // Also who had nothing to write: it was judged by what did not happen.
                Err(Failed::Unknown(detail) | Failed::Refused(detail)) => Err(unavailable(detail)),
            });
            answer(reply, verdict);
        }
        self.outcome(result)
    }

    /// Everything that is not a transaction, on its own.
    fn write<T>(
        &self,
        session: &mut Session<'_>,
        work: &Work<'_>,
        reply: Reply<Result<T, StoreError>>,
        done: impl FnOnce(&Shared) -> T,
    ) -> Result<(), Ended> {
        let result = session.write(work);
        match &result {
            Ok(()) => answer(reply, Ok(done(&self.shared))),
            Err(Failed::Refused(detail) | Failed::Unknown(detail)) => answer(reply, Err(unavailable(detail))),
        }
        self.shared.announce();
        self.outcome(result)
    }

    fn revoke(
        &self,
        session: &mut Session<'_>,
        lease: LeaseId,
        reply: Reply<Result<(), StoreError>>,
    ) -> Result<(), Ended> {
        let evaluated = self.shared.core().evaluate_revoke(lease);
        match evaluated {
            Err(error) => {
                answer(reply, Err(error));
                Ok(())
            }
            Ok(change) => {
                let changes: Vec<_> = change.clone().into_iter().collect();
                let work = Work { changes: &changes, revoke: Some(lease), ..Work::default() };
                self.write(session, &work, reply, |shared| shared.core().forget_lease(lease, change))
            }
        }
    }

    fn expire(&self, session: &mut Session<'_>) -> Result<Expiries, Ended> {
        if self.is_held {
            return Ok(Expiries::Done);
        }
        let expired = self.shared.core().expired();
        for lease in expired {
            let (reply, mut answer) = oneshot::channel();
            self.revoke(session, lease, reply)?;
            if let Ok(Err(error)) = answer.try_recv() {
                tracing::warn!(%error, lease = lease.0, "can't write that a lease has ended, trying again");
                return Ok(Expiries::Refused);
            }
        }
        Ok(Expiries::Done)
    }

    fn outcome(&self, result: Result<(), Failed>) -> Result<(), Ended> {
        match result {
            Ok(()) => Ok(()),
            Err(Failed::Refused(error)) => {
                tracing::warn!(path = %self.path.display(), %error, "store refused a write");
                Ok(())
            }
            Err(Failed::Unknown(error)) => {
                tracing::error!(path = %self.path.display(), %error, "store may have lost a write, opening it again");
                Err(Ended::Lost)
            }
        }
    }
}

enum Expiries {
    Done,
    Refused,
}

fn size(ops: &[Op]) -> usize {
    ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum()
}

fn unavailable(detail: &str) -> StoreError {
    StoreError::Unavailable(detail.to_owned())
}

/// Whoever asked may have gone; what was done is done.
fn answer<T>(reply: Reply<T>, result: T) {
    drop(reply.send(result));
}

fn refuse(command: Command, detail: &str) {
    match command {
        Command::Txn { reply, .. } => answer(reply, Err(unavailable(detail))),
        Command::Grant { reply, .. } => answer(reply, Err(unavailable(detail))),
        Command::Revoke { reply, .. } => answer(reply, Err(unavailable(detail))),
        Command::BumpEpoch { reply, .. } => answer(reply, Err(unavailable(detail))),
        Command::Backup { reply, .. } => answer(reply, Err(unavailable(detail))),
        // Nobody is answered: what can't be written can't be held or released either.
        Command::Hold { .. } | Command::Release { .. } => {}
        #[cfg(test)]
        Command::Fail(_) => {}
    }
}
