//! What the shells around the machines owe them, and mistakes that can be planted there.

/// How the simulated shells behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wiring {
    /// As they should.
    Right,
    /// The server takes every poll for an acknowledgement of everything, so that an instance is stopped while a proxy
    /// still sends requests to it.
    AcknowledgesForTheProxy,
    /// The proxy's shell applies answers that come late, past the generation check of its view.
    AppliesLateAnswers,
    /// The agent's shell sends a report once and never again, whatever becomes of it.
    ReportsOnce,
    /// The agent's shell forgets which processes an earlier agent started.
    LosesTheLedger,
    /// The server answers people before the store has said anything.
    AnswersBeforeTheStore,
    /// The proxy's shell counts the requests of one release as the other's, so that a release that is fine is taken back
    /// for the faults of the one before it.
    MixesCohorts,
    /// The server's shell takes the time that passes from a clock that people set.
    MeasuresByTheWall,
    /// The agent's shell forgets which runs an earlier agent began.
    LosesRuns,
    /// The store's shell writes the parts of a transaction one after the other.
    TearsTransactions,
}

impl Wiring {
    /// Every planted mistake.
    pub const MISTAKES: [Self; 9] = [
        Self::AcknowledgesForTheProxy,
        Self::AppliesLateAnswers,
        Self::ReportsOnce,
        Self::LosesTheLedger,
        Self::AnswersBeforeTheStore,
        Self::MixesCohorts,
        Self::MeasuresByTheWall,
        Self::LosesRuns,
        Self::TearsTransactions,
    ];
}
