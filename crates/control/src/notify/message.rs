//! What a webhook is told, and how it knows who tells it.

use jiff::Timestamp;
use ring::hmac;
use rung_model::{Deployment, Origin, Release};
use serde_json::{Value, json};

pub(super) const EVENT: &str = "deployment_ended";

/// The same for every try: doubles are told by it.
pub(super) fn id(deployment: &Deployment) -> String {
    format!("{}.{}", deployment.app, deployment.number)
}

pub(super) fn body(deployment: &Deployment, release: Option<&Release>) -> Vec<u8> {
    // One that has its draft still made no release: what it says of itself is in the draft.
    let (note, provenance) = match (&deployment.draft, release) {
        (Some(draft), _) => (draft.note.as_ref(), Some(&draft.provenance)),
        (None, Some(release)) => (release.note.as_ref(), Some(&release.provenance)),
        (None, None) => (None, None),
    };
    let message = json!({
        "id": id(deployment),
        "event": EVENT,
        "app": deployment.app.base(),
        "environment": deployment.app.environment(),
        "deployment": deployment.number.to_string(),
        "kind": deployment.kind,
        "goal": deployment.asked.goal,
        "outcome": deployment.outcome(),
        "release": deployment.release.map(|number| number.to_string()),
        "from": deployment.from.map(|number| number.to_string()),
        "by": deployment.by,
        "began": deployment.at,
        "ended": deployment.timeline.last().map_or(deployment.at, |entry| entry.at),
        "reason": deployment.trouble.as_ref().map(|trouble| &trouble.reason),
        "note": note,
        "commit": provenance.and_then(|provenance| provenance.origin.as_ref()).map(commit),
    });
    serde_json::to_vec(&message).expect("a value of JSON serializes")
}

fn commit(origin: &Origin) -> Value {
    json!({ "id": origin.commit, "branch": origin.branch, "dirty": origin.dirty })
}

/// `t=1790000000,v1=…`: the second is the HMAC-SHA256 of the first, a dot and the body. The time keeps what was once
/// overheard from being sent again years later.
pub(super) fn signature(secret: &str, at: Timestamp, body: &[u8]) -> String {
    let at = at.as_second();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{at}.").as_bytes());
    context.update(body);
    format!("t={at},v1={}", hex::encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_covers_the_time_and_the_body() {
        let at = Timestamp::from_second(1_790_000_000).unwrap();
        // As `printf '1790000000.{}' | openssl dgst -sha256 -hmac hunter2` has it.
        let expected = "513fd10ffab3274e5c53c2046d3921d75549e5549f5764f447fbf8794b3d3fa6";
        assert_eq!(signature("hunter2", at, b"{}"), format!("t=1790000000,v1={expected}"));
    }
}
