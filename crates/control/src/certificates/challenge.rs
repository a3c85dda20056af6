//! What proves a name to an authority, shown by every ingress for as long as an order takes.

use std::time::Duration;

use jiff::Timestamp;
use rung_api::wire::certificates::Challenge;
use rung_store::{Op, Txn};

use super::order::OrderError;
use super::record::{KeptChallenge, challenge_key};
use crate::shared::Control;

/// Longer than any order takes.
const LEFT_AFTER: Duration = Duration::from_secs(3600);
/// Ingresses that follow another server are not heard here; they have it within a moment, too.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// Challenges of one order.
#[derive(Debug)]
pub(super) struct Showing {
    control: Control,
    tokens: Vec<String>,
}

impl Showing {
    pub fn new(control: Control) -> Self {
        Self { control, tokens: Vec::new() }
    }

    /// Returns when the ingresses show it.
    pub async fn show(&mut self, challenge: Challenge) -> Result<(), OrderError> {
        let key = challenge_key(&challenge.token);
        let until = Timestamp::now().checked_add(LEFT_AFTER).unwrap_or(Timestamp::MAX);
        self.tokens.push(challenge.token.clone());
        let value = serde_json::to_vec(&KeptChallenge { challenge, until }).expect("wire types serialize");
        let put = Op::Put { key, value, lease: None };
        match self.control.txn(Vec::new(), vec![put]).await {
            Ok(Txn::Committed(revision)) => {
                let shelf = &self.control.inner.shelf;
                let index = shelf.reach(revision).await;
                if !shelf.shown(index.sequence).await {
                    return Err(OrderError::NoIngress);
                }
                if self.control.read(several_servers) {
                    tokio::time::sleep(ELSEWHERE).await;
                }
                Ok(())
            }
            Ok(Txn::Conflict | Txn::Unknown) => {
                Err(OrderError::Store("the store did not say whether it was kept".to_owned()))
            }
            Err(error) => Err(OrderError::Store(error.to_string())),
        }
    }

    /// Takes everything away again.
    pub async fn end(self) {
        let ops: Vec<_> = self.tokens.iter().map(|token| Op::Delete { key: challenge_key(token) }).collect();
        if !ops.is_empty()
            && let Err(error) = self.control.txn(Vec::new(), ops).await
        {
            tracing::warn!(%error, "a challenge was left in the store; it is removed within an hour");
        }
    }
}

fn several_servers(world: &rung_planner::World) -> bool {
    world.members.values().filter(|held| held.value.role == rung_model::NodeRole::Server).count() > 1
}
