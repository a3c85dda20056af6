//! What will happen when.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_agent::converge;
use rung_api::wire::{ProxyDocuments, ProxyPoll};
use rung_control::reconcile::{PollId, StepId};
use rung_model::app::Destroying;
use rung_model::traffic::Counts;
use rung_model::{AppName, Assignment, DeploymentNumber, InstanceId, Observed, ReleaseNumber, RunId};
use rung_store::{Guard, Op, Txn};

/// Which life of a process it belongs to; what belongs to an earlier one is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Life(pub u32);

#[derive(Debug, Clone)]
pub enum Happening {
    // The server.
    ServerStarts,
    ServerTick(Life),
    WatchReady(Life),
    ListPage(Life),
    /// A leader's transaction reaches the store.
    Commit {
        life: Life,
        step: StepId,
        guards: Vec<Guard>,
        ops: Vec<Op>,
    },
    /// A transaction whose outcome was unknown is applied after all.
    LateCommit {
        by: Option<Life>,
        guards: Vec<Guard>,
        ops: Vec<Op>,
    },
    Written {
        life: Life,
        step: StepId,
        outcome: Option<Txn>,
    },
    AssignmentPolled {
        life: Life,
        poll: u64,
        after: rung_model::Generation,
    },
    AssignmentPollOver {
        server: Life,
        life: Life,
        poll: u64,
    },
    Reported {
        life: Life,
        message: u64,
        observed: Box<Observed>,
    },
    ReleaseAsked {
        life: Life,
        app: AppName,
        release: ReleaseNumber,
    },
    RoutesPolled {
        life: Life,
        ticket: u64,
        poll: ProxyPoll,
    },
    RoutesPollOver {
        server: Life,
        poll: PollId,
    },
    RoutesPollClosed {
        life: Life,
        ticket: u64,
    },
    // The agent.
    AgentStarts,
    AgentTick(Life),
    AgentHears(Life, Box<converge::Event>),
    AssignmentAnswered {
        life: Life,
        poll: u64,
        answer: Result<Option<Box<Assignment>>, ()>,
    },
    ReportAnswered {
        life: Life,
        message: u64,
        taken: bool,
    },
    AgentRetries(Life),
    // The machine.
    Spawned {
        life: Life,
        instance: InstanceId,
        attempt: u32,
        port: Option<u16>,
    },
    ProcessEnds {
        instance: InstanceId,
        attempt: u32,
        reason: String,
    },
    RunEnds {
        run: RunId,
        nonce: u64,
    },
    DataPurged {
        life: Life,
        app: AppName,
        volumes: Destroying,
    },
    // The ingress.
    IngressStarts,
    IngressTick(Life),
    TableApplied {
        life: Life,
        thread: usize,
        version: u64,
    },
    RoutesAnswered {
        life: Life,
        ticket: u64,
        answer: ProxyDocuments,
    },
    RoutesFailed {
        life: Life,
        ticket: u64,
    },
    /// The ingress reports what it counted, when there is anything to report.
    TrafficDue(Life),
    /// Such a report reaches the server: totals.
    TrafficReported {
        life: Life,
        cohorts: Vec<(AppName, DeploymentNumber, Counts)>,
    },
    Request,
    RequestEnds {
        life: Life,
        instance: InstanceId,
    },
    // Everybody else.
    PersonActs,
    Fault,
    FaultsEnd,
    Look,
}

/// Happenings in the order of their time, and of their making at the same time.
#[derive(Debug, Default)]
pub struct Agenda {
    entries: BTreeMap<(Duration, u64), Happening>,
    made: u64,
}

impl Agenda {
    pub fn at(&mut self, time: Duration, happening: Happening) {
        self.made += 1;
        self.entries.insert((time, self.made), happening);
    }

    pub fn take_first(&mut self) -> Option<(Duration, Happening)> {
        self.entries.pop_first().map(|((time, _), happening)| (time, happening))
    }
}
