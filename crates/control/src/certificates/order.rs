//! One order, from asking for it to a certificate with its key.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rung_api::wire::certificates::{Challenge, ChallengeWay};
use rung_trust::Leaf;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::challenge::Showing;

/// Authorities look from several places in the world, and some take minutes.
const POLLED: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));

/// Why there is no certificate. The words are for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("{0}")]
    Acme(#[from] Error),
    #[error("the authority offers no way to prove the name that an ingress can go")]
    NoWay,
    #[error("the authority could not see by {way} that the name leads here: {why}")]
    NotProved { way: ChallengeWay, why: String },
    #[error("the authority refused the order")]
    Refused,
    #[error(
        "no ingress that serves HTTPS follows this server, so nothing can be proved; start it with --https"
    )]
    NoIngress,
    #[error("a key could not be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("what the authority sent is not a certificate for this name and key")]
    Unfit,
    #[error("keeping the challenge in the store failed: {0}")]
    Store(String),
    #[error("the order took longer than {} minutes", .0.as_secs() / 60)]
    TooLong(Duration),
}

impl OrderError {
    /// The authority wants fewer orders.
    pub fn is_rate_limit(&self) -> bool {
        let Self::Acme(Error::Api(problem)) = self else { return false };
        problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:rateLimited")
    }
}

#[derive(Debug)]
pub(super) struct Obtained {
    /// PEM, leaf first.
    pub chain: String,
    /// PEM.
    pub key: String,
    pub leaf: Leaf,
}

pub(super) async fn obtain(
    account: &Account,
    domain: &str,
    way: ChallengeWay,
    replaces: Option<CertificateIdentifier<'static>>,
    showing: &mut Showing,
) -> Result<Obtained, OrderError> {
    let identifiers = [Identifier::Dns(domain.to_owned())];
    let mut wanted = NewOrder::new(&identifiers);
    if let Some(replaces) = replaces {
        wanted = wanted.replaces(replaces);
    }
    let mut order = account.new_order(&wanted).await?;
    let way = prove(&mut order, domain, way, showing).await?;
    match order.poll_ready(&POLLED).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(refusal(&mut order, way).await),
        // An order that became invalid names its own error; the challenge's says more.
        Err(Error::Api(_)) => return Err(refusal(&mut order, way).await),
        Err(error) => return Err(error.into()),
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![domain.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&POLLED).await?;
    let leaf = check(&chain, &key, domain).ok_or(OrderError::Unfit)?;
    Ok(Obtained { chain, key: key.serialize_pem(), leaf })
}

/// Shows what the authority wants to see, and tells it so. Answers the way that was gone.
async fn prove(
    order: &mut Order,
    domain: &str,
    wanted: ChallengeWay,
    showing: &mut Showing,
) -> Result<ChallengeWay, OrderError> {
    let mut authorizations = order.authorizations();
    let mut gone = wanted;
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            // The authority remembers an earlier proof.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            _ => return Err(OrderError::Refused),
        }
        let offers = |way| authorization.challenges.iter().any(|offered| offered.r#type == kind(way));
        let ways = [wanted, ChallengeWay::Http01, ChallengeWay::TlsAlpn01];
        let way = ways.into_iter().find(|way| offers(*way)).ok_or(OrderError::NoWay)?;
        let mut challenge = authorization.challenge(kind(way)).ok_or(OrderError::NoWay)?;
        showing
            .show(Challenge {
                host: domain.to_owned(),
                way,
                token: challenge.token.clone(),
                authorization: challenge.key_authorization().as_str().to_owned(),
            })
            .await?;
        gone = way;
        challenge.set_ready().await?;
    }
    Ok(gone)
}

fn kind(way: ChallengeWay) -> ChallengeType {
    match way {
        ChallengeWay::Http01 => ChallengeType::Http01,
        ChallengeWay::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// What the authority saw instead.
async fn refusal(order: &mut Order, way: ChallengeWay) -> OrderError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            let why = problem.detail.clone().unwrap_or_else(|| problem.to_string());
            return OrderError::NotProved { way, why };
        }
    }
    OrderError::Refused
}

/// Nothing is kept that could not be shown.
fn check(chain: &str, key: &KeyPair, domain: &str) -> Option<Leaf> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().ok()?;
    let leaf = chain.first()?;
    let read = Leaf::read(leaf).ok()?;
    let name = ServerName::try_from(domain.to_owned()).ok()?;
    verify_server_name(&ParsedCertificate::try_from(leaf).ok()?, &name).ok()?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).ok()?;
    CertifiedKey::from_der(chain, key, &default_provider()).ok()?;
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_another_name_or_key_is_not_kept() {
        let made = rcgen::generate_simple_self_signed(["shop.example.com".to_owned()]).unwrap();
        let chain = made.cert.pem();
        assert!(check(&chain, &made.signing_key, "shop.example.com").is_some());
        assert!(check(&chain, &made.signing_key, "blog.example.com").is_none(), "of another name");
        let other = KeyPair::generate().unwrap();
        assert!(check(&chain, &other, "shop.example.com").is_none(), "of another key");
        assert!(check("", &made.signing_key, "shop.example.com").is_none(), "an empty answer");
    }
}
