//! What ingresses need of secrets that say who may come in: enough to recognize a key or a password, not to know it.
//!
//! The store's documents name secrets by version only. On their way to an ingress the values are opened and digested, so
//! that neither the wire nor an ingress's disk ever holds one.

use ring::digest::{SHA256, digest};
use rung_api::{Code, ErrorBody};
use rung_model::route::{Auth, Verifier};
use rung_model::{RouteDocument, SecretName};

use crate::shared::Control;

impl Control {
    /// # Errors
    /// When the store can't be read: what an ingress holds already is better than nobody's keys.
    pub(crate) async fn add_verifiers(&self, documents: &mut [RouteDocument]) -> Result<(), ErrorBody> {
        for document in documents.iter_mut().filter(|document| !document.secrets.is_empty()) {
            let asked: Vec<Auth> =
                document.rules.iter().filter_map(|route| route.policy.auth.clone()).collect();
            for (name, version) in document.secrets.clone() {
                let value = match self.open_secret(&document.app, &name, version).await {
                    Ok(value) => value,
                    Err(error) if error.code == Code::Unavailable => return Err(error),
                    Err(error) => {
                        tracing::warn!(app = %document.app, secret = %name, error = error.message,
                            "nobody can come in by a secret that does not open");
                        continue;
                    }
                };
                let salt = Verifier::salt(&document.app, &name, version);
                let known: Vec<Verifier> =
                    asked.iter().flat_map(|auth| verifiers(auth, &name, &value, &salt)).collect();
                document.verifiers.insert(name, known);
            }
        }
        Ok(())
    }
}

/// Of one way to ask, when it is by this secret.
fn verifiers(auth: &Auth, secret: &SecretName, value: &str, salt: &str) -> Vec<Verifier> {
    let lines = value.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let verifier = |name: &str, shown: &str| {
        let digest = digest(&SHA256, format!("{salt}{shown}").as_bytes());
        Verifier { name: harmless(name), digest: hex::encode(digest) }
    };
    match auth {
        Auth::ApiKey(keys) if keys.secret == *secret => lines
            .enumerate()
            .filter_map(|(nth, line)| match said(line) {
                Some((_, "")) => None,
                Some((name, key)) => Some(verifier(name, key)),
                None => Some(verifier(&format!("key-{}", nth + 1), line)),
            })
            .collect(),
        Auth::Basic(people) if people.secret == *secret => lines
            .filter_map(said)
            .filter(|(_, password)| !password.is_empty())
            .map(|(name, password)| verifier(name, &format!("{name}:{password}")))
            .collect(),
        Auth::ApiKey(_) | Auth::Basic(_) | Auth::Jwt(_) => Vec::new(),
    }
}

/// Blanks around the colon are how people write it, and no part of a name or of a secret.
fn said(line: &str) -> Option<(&str, &str)> {
    line.split_once(':').map(|(name, secret)| (name.trim(), secret.trim()))
}

/// It becomes the value of a header.
fn harmless(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).take(100).collect()
}

#[cfg(test)]
mod tests {
    use rung_model::route::{ApiKeyAuth, BasicAuth};

    use super::*;

    #[test]
    fn each_line_of_a_secret_is_a_key_and_none_can_be_read() {
        let secret = SecretName::new("API_KEYS").unwrap();
        let auth = Auth::ApiKey(ApiKeyAuth { secret: secret.clone(), header: None });
        let value = "# for partners\nacme: k-123\n\nk-456\nnobody:\n";
        let known = verifiers(&auth, &secret, value, "salt");
        let names: Vec<&str> = known.iter().map(|verifier| verifier.name.as_str()).collect();
        assert_eq!(names, ["acme", "key-2"]);
        assert_eq!(known[0].digest, hex::encode(digest(&SHA256, b"saltk-123")));
        assert!(known.iter().all(|verifier| !format!("{verifier:?}").contains("k-123")), "{known:?}");
    }

    #[test]
    fn a_person_is_known_by_name_and_password_together() {
        let secret = SecretName::new("STAFF").unwrap();
        let auth = Auth::Basic(BasicAuth { secret: secret.clone(), realm: "r".into() });
        let value = "ada:love:lace\nno password\nnobody:\ngrace: hopper\n";
        let known = verifiers(&auth, &secret, value, "salt");
        assert_eq!(known.len(), 2, "a line without a password lets nobody in");
        assert_eq!((known[0].name.as_str()), "ada");
        assert_eq!(known[0].digest, hex::encode(digest(&SHA256, b"saltada:love:lace")));
        assert_eq!(known[1].digest, hex::encode(digest(&SHA256, b"saltgrace:hopper")));
    }
}
