//! Certificates that the platform orders: for people, and for the ingresses that follow them.

use axum::extract::State;
use jiff::Timestamp;
use rung_api::wire::certificates::{
    AccountRequest, CertificateNews, CertificatePair, CertificatePoll, CertificateReport, Terms,
};
use rung_api::{Code, ErrorBody};
use rung_model::keys;
use rung_store::{Guard, Op};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::Answer;
use super::extract::{Body, Json, Named, Query, Wait};
use crate::access::Caller;
use crate::certificates::{Account, is_orderable};
use crate::shared::{Committed, Control, contended};

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

pub async fn list(State(control): State<Control>) -> Answer<CertificateReport> {
    Ok(Json(control.certificate_report()))
}

pub async fn set_account(
    State(control): State<Control>,
    caller: Caller,
    Body(request): Body<AccountRequest>,
) -> Answer<()> {
    check(&request)?;
    let directory = request.directory.unwrap_or_else(|| LETS_ENCRYPT.to_owned());
    let kept = control.inner.shelf.index().account.clone();
    // The same authority knows us already: only what is said of the account changes.
    let same = kept.as_ref().map(|kept| &kept.value).filter(|account| {
        account.directory == directory && account.email == request.email && account.trust == request.trust
    });
    let account = Account {
        directory: directory.clone(),
        email: request.email,
        trust: request.trust,
        at: Timestamp::now(),
        by: request.by,
        sealed_credentials: same.and_then(|account| account.sealed_credentials.clone()),
        rest: kept.as_ref().map(|kept| kept.value.rest.clone()).unwrap_or_default(),
    };
    let key = keys::TLS_ACCOUNT.to_owned();
    let guard = match &kept {
        Some(kept) => Guard::Modified { key: key.clone(), revision: kept.revision },
        None => Guard::Absent { key: key.clone() },
    };
    let value = serde_json::to_vec(&account).expect("documents serialize");
    match control.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await? {
        Committed::Done => {
            caller.note(format!("at {directory}"));
            let message = format!("certificates are ordered at {directory}, set by {}", account.by);
            control.record(None, "certificate", message);
            Ok(Json(()))
        }
        Committed::Conflict => Err(contended("the account for certificates").into()),
    }
}

fn check(request: &AccountRequest) -> Result<(), ErrorBody> {
    let wrong = |message: String, hint: &str| Err(ErrorBody::new(Code::InvalidRequest, message).hint(hint));
    if request.terms == Terms::NotAgreed {
        let message =
            "the authority gives certificates only to who agrees to its terms of service".to_owned();
        return wrong(message, "read them where the authority publishes them, then say --agree-to-terms");
    }
    if let Some(directory) = &request.directory
        && directory.strip_prefix("https://").is_none_or(str::is_empty)
    {
        let message = format!("{directory:?} is not the address of an ACME directory");
        return wrong(message, "write it like https://acme-v02.api.letsencrypt.org/directory");
    }
    if let Some(email) = &request.email
        && !(email.split('@').filter(|part| !part.is_empty()).count() == 2 && is_plain(email))
    {
        return wrong(format!("{email:?} is not an e-mail address"), "write it like ops@example.com");
    }
    if let Some(trust) = &request.trust {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(trust.as_bytes()).collect();
        if !read.is_ok_and(|certificates| !certificates.is_empty()) {
            return wrong(
                "what shall vouch for the authority's address holds no certificate".to_owned(),
                "give a file with one or more in PEM, which begins with -----BEGIN CERTIFICATE-----",
            );
        }
    }
    Ok(())
}

fn is_plain(email: &str) -> bool {
    email.bytes().all(|byte| byte.is_ascii_graphic() && !b",;<>\"".contains(&byte))
}

/// What is held is kept and shown to its end; nothing is ordered any more.
pub async fn forget_account(State(control): State<Control>, caller: Caller) -> Answer<()> {
    if control.inner.shelf.index().account.is_none() {
        let message = "no certificates are ordered";
        return Err(ErrorBody::new(Code::NotFound, message).hint("`rung certificate enable` begins").into());
    }
    control.commit(Vec::new(), vec![Op::Delete { key: keys::TLS_ACCOUNT.to_owned() }]).await?;
    let message = format!("certificates are ordered no more, said {}", caller.who().name());
    control.record(None, "certificate", message);
    Ok(Json(()))
}

pub async fn renew(State(control): State<Control>, named: Named) -> Answer<()> {
    let domain = named.text("domain");
    let refused = |message: String, hint: &str| Err(ErrorBody::new(Code::Refused, message).hint(hint).into());
    if control.inner.shelf.index().account.is_none() {
        let hint = "`rung certificate enable` says at which authority, and for whom";
        return refused("no certificates are ordered".to_owned(), hint);
    }
    if !control.domains().contains_key(domain) {
        let message = format!("no app that runs names the domain {domain}");
        let hint =
            "put it under `domains` in the app file and deploy; `rung certificate list` shows them all";
        return Err(ErrorBody::new(Code::NotFound, message).hint(hint).into());
    }
    if !is_orderable(domain) {
        let hint = "put a certificate and its key into ingress/certificates/ of the data directory";
        return refused(format!("{domain} is not a name that can be proved by an ingress"), hint);
    }
    if !control.write_record(domain, |record| record.asked = Some(Timestamp::now())).await {
        return Err(contended(&format!("the certificate of {domain}")).into());
    }
    Ok(Json(()))
}

pub async fn poll(
    State(control): State<Control>,
    named: Named,
    Query(wait): Query<Wait>,
    Body(poll): Body<CertificatePoll>,
) -> Answer<CertificateNews> {
    match control.inner.shelf.poll(named.text("proxy"), poll, wait.duration()).await {
        Some(news) => Ok(Json(news)),
        None => Err(ErrorBody::new(Code::Unavailable, "certificates are not read from the store yet").into()),
    }
}

pub async fn pair(State(control): State<Control>, named: Named) -> Answer<CertificatePair> {
    let host = named.text("host");
    Ok(Json(control.certificate_pair(host)?))
}
