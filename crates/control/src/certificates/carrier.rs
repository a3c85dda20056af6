//! Carries an ACME client's requests: one connection each, HTTP/1.1 over TLS, bounded in time and size.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rung_trust::machine_authorities;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::trees::chain;

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
        let uri = parts.uri;
        let host = uri.host().ok_or("its address has no host")?.trim_matches(['[', ']']).to_owned();
        if uri.scheme_str() != Some("https") {
            return Err(format!("{uri} is not an https:// address"));
        }
        let port = uri.port_u16().unwrap_or(443);
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| format!("connecting to {host}:{port} failed: {error}"))?;
        let config = ClientConfig::builder().with_root_certificates(self.roots()?).with_no_client_auth();
        let name = ServerName::try_from(host.clone()).map_err(|_| format!("{host} is no name for TLS"))?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| format!("TLS with {host}:{port} failed: {error}"))?;
        let broken =
            |error: hyper::Error| format!("the connection to {host}:{port} broke: {}", chain(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let body = body.collect().await.map_err(|_| "its body can't be read".to_owned())?.to_bytes();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let is_question = parts.method == Method::GET;
        let mut request = Request::builder()
            .method(parts.method)
            .uri(path)
            .header(header::HOST, uri.authority().map_or(host.as_str(), |authority| authority.as_str()))
            .body(Full::new(body))
            .map_err(|error| format!("it can't be asked: {error}"))?;
        request.headers_mut().extend(parts.headers);
        let answer = sender.send_request(request).await.map_err(broken)?;
        let (mut parts, body) = answer.into_parts();
        if is_question {
            // The client takes no advice on renewal without it, while the authority need not say it.
            parts.headers.entry(header::RETRY_AFTER).or_insert(ASK_AGAIN_S);
        }
        let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await;
        connection.abort();
        let body = body.map_err(|error| format!("reading the answer of {host}:{port} failed: {error}"))?;
        Ok(Response::from_parts(parts, Full::new(body.to_bytes())).into())
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let Some(trust) = &self.trust else {
            return machine_authorities().map_err(|error| error.to_string());
        };
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
