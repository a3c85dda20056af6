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
    /// Mistakes that break something, sooner or later.
    pub const MISTAKES: [Self; 5] = [
        Self::AcknowledgesForTheProxy,
        Self::AppliesLateAnswers,
        Self::ReportsOnce,
        Self::LosesTheLedger,
        Self::AnswersBeforeTheStore,
    ];

    /// Mistakes about rollouts and runs, and what is said of what they break.
    pub const ABOUT_ROLLOUTS_AND_RUNS: [(Self, &str); 4] = [
        (Self::MixesCohorts, "although it never fails"),
        (Self::MeasuresByTheWall, "was held for"),
        (Self::LosesRuns, "is started twice"),
        (Self::TearsTransactions, "counts as handled and has no record"),
    ];
}
