//! Carries an ACME client's requests: one connection each, HTTP/1.1 over TLS, bounded in time and size.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, header};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rung_trust::{NoAuthorities, machine_authorities};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::outbound;

/// From the first packet to the last; an authority may think for a while.
const PATIENCE: Duration = Duration::from_secs(30);
/// Six hours: when an authority that does not say it is asked for its advice again (RFC 9773).
const ASK_AGAIN_S: HeaderValue = HeaderValue::from_static("21600");
/// Chains are a few KiB.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// See the module's text.
#[derive(Debug, Clone)]
pub(super) struct Carrier {
    /// Who vouches for the authority's address, PEM; what this machine trusts when it is `None`.
    trust: Option<Arc<str>>,
}

impl Carrier {
    pub fn new(trust: Option<&str>) -> Self {
        Self { trust: trust.map(Arc::from) }
    }

    async fn carry(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, String> {
        let (parts, body) = request.into_parts();
        let uri = parts.uri.clone();
        if uri.scheme_str() != Some("https") {
            return Err(format!("{uri} is not an https:// address"));
        }
        let body = body.collect().await.map_err(|_| "its body can't be read".to_owned())?.to_bytes();
        let is_question = parts.method == Method::GET;
        let request = Request::from_parts(parts, Body::from(body));
        let (answer, _held) =
            outbound::send(request, || self.roots()).await.map_err(|error| error.to_string())?;
        let (mut parts, body) = answer.into_parts();
        if is_question {
            // The client takes no advice on renewal without it, while the authority need not say it.
            parts.headers.entry(header::RETRY_AFTER).or_insert(ASK_AGAIN_S);
        }
        let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|error| format!("reading the answer of {uri} failed: {error}"))?;
        Ok(Response::from_parts(parts, Full::new(body.to_bytes())).into())
    }

    fn roots(&self) -> Result<RootCertStore, NoAuthorities> {
        let Some(trust) = &self.trust else { return machine_authorities() };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(trust.as_bytes()).flatten());
        Ok(roots)
    }
}

impl HttpClient for Carrier {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let carried = self.clone().carry(request);
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, carried).await {
                Ok(carried) => carried.map_err(|why| Error::Other(why.into())),
                Err(_) => {
                    let why = format!("the authority did not answer within {} s", PATIENCE.as_secs());
                    Err(Error::Other(why.into()))
                }
            }
        })
    }
}
