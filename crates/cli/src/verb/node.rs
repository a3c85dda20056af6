//! `rung node …`: who is in the cluster, and who shall be.

use std::time::Duration;

use anyhow::Context as _;
use rung_api::join::{DrainRequest, LabelRequest, NodeListing, NodeState, RemoveRequest};
use rung_model::label::in_words;
use rung_model::{Labels, NodeId, NodeRole};

use super::Session;
use crate::args::{LabelWord, NodeCommand};
use crate::edge::{Exit, Hinted};
use crate::{person, render};

/// A drain takes as long as the slowest request and the slowest start; a person sees each change within a moment.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub async fn node(session: &mut Session<'_>, command: NodeCommand) -> anyhow::Result<Exit> {
    match command {
        NodeCommand::Token { role } => token(session, role).await,
        NodeCommand::List => list(session).await,
        NodeCommand::Label { node, labels } => label(session, node, labels).await,
        NodeCommand::Drain { node, undo: true, .. } => {
            session
                .client
                .undrain(&node, &person::name())
                .await
                .context(format!("undoing the drain of {node}"))?;
            session.screen.line(&format!("{node} takes instances again"))?;
            Ok(Exit::Done)
        }
        NodeCommand::Drain { node, deadline, no_wait, undo: false } => {
            drain(session, node, deadline, no_wait).await
        }
        NodeCommand::Remove { node, force } => {
            let request = RemoveRequest { by: person::name(), force };
            session.client.remove_node(&node, &request).await.context(format!("removing {node}"))?;
            session.screen.line(&format!("{node} is not a part of the cluster any more"))?;
            Ok(Exit::Done)
        }
    }
}

async fn token(session: &mut Session<'_>, role: NodeRole) -> anyhow::Result<Exit> {
    let issued =
        session.client.make_join_token(role, &person::name()).await.context("making a join token")?;
    session.screen.show(&issued, |issued, _, _| {
        let servers = issued.servers.first().map_or("", String::as_str).trim_start_matches("https://");
        format!(
            "on the machine that shall be {} {role}, within 15 minutes:\n\n    rung join {servers} {}\n",
            if role == NodeRole::Ingress { "an" } else { "a" },
            issued.token
        )
    })?;
    Ok(Exit::Done)
}

async fn label(session: &mut Session<'_>, node: NodeId, words: Vec<LabelWord>) -> anyhow::Result<Exit> {
    let mut request = LabelRequest { by: person::name(), set: Labels::new(), remove: Vec::new() };
    for word in words {
        match word {
            LabelWord::Set(label) => drop(request.set.insert(label.name, label.value)),
            LabelWord::Remove(name) => request.remove.push(name),
        }
    }
    session.client.label(&node, &request).await.context(format!("labelling {node}"))?;
    let nodes = session.client.nodes().await.context("looking at the nodes")?;
    let labels = nodes.into_iter().find(|listing| listing.node == node).map(|listing| listing.labels);
    let labels =
        labels.filter(|labels| !labels.is_empty()).map_or("no labels".to_owned(), |labels| in_words(&labels));
    session.screen.line(&format!("{node} has {labels}"))?;
    Ok(Exit::Done)
}

async fn list(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let nodes = session.client.nodes().await.context("listing the nodes")?;
    session.screen.show(&nodes, |nodes, paint, _| render::nodes::render(nodes, paint))?;
    Ok(Exit::Done)
}

async fn drain(
    session: &mut Session<'_>,
    node: NodeId,
    deadline: Option<Duration>,
    no_wait: bool,
) -> anyhow::Result<Exit> {
    let request =
        DrainRequest { deadline_ms: deadline.map(|wait| wait.as_millis() as u64), by: person::name() };
    session.client.drain(&node, &request).await.context(format!("draining {node}"))?;
    if no_wait {
        return Ok(Exit::Done);
    }
    let mut said = String::new();
    loop {
        let nodes = session.client.nodes().await.context("looking at the nodes")?;
        let Some(listing) = nodes.iter().find(|listing| listing.node == node) else {
            let hint = "`rung node list` shows who is there";
            return Err(Hinted::failed(format!("{node} was removed while it was drained"), hint).into());
        };
        if listing.state == NodeState::Drained {
            session
                .screen
                .line(&format!("{node} runs nothing any more; `rung node remove {node}` takes it out"))?;
            return Ok(Exit::Done);
        }
        if listing.state == NodeState::Lost {
            return Err(lost(&node).into());
        }
        let now = progress(listing);
        if now != said {
            session.screen.line(&now)?;
            said = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Nothing leaves a node that is not there: whoever waits for that waits for ever.
fn lost(node: &NodeId) -> Hinted {
    let message = format!(
        "{node} was not heard of for a while: what can run elsewhere is started there, and nothing is drained"
    );
    let hint = format!(
        "`rung node remove {node}` when it is off for good; when it comes back it takes no instances until `rung node drain \
         {node} --undo`"
    );
    Hinted::failed(message, hint)
}

fn progress(listing: &NodeListing) -> String {
    let left = match listing.instances {
        1 => "1 instance".to_owned(),
        count => format!("{count} instances"),
    };
    let mut text = format!("{}: {left} left", listing.node);
    for blocked in &listing.blocked {
        text.push_str("\n  waits for ");
        text.push_str(blocked);
    }
    text
}
