//! Connections to addresses outside of the cluster: webhooks, certificate authorities, object stores.
//!
//! HTTP/1.1, one connection a request, over TLS where the address says so. How long anybody is waited for is the caller's
//! to say.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use rung_trust::NoAuthorities;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::trees::chain;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error("its address has no host")]
    NoHost,
    #[error("connecting to {whom} failed: {source}")]
    Connect { whom: String, source: io::Error },
    #[error("{host} is no name for TLS")]
    NoName { host: String },
    #[error("TLS with {whom} failed: {source}")]
    Tls { whom: String, source: io::Error },
    #[error(transparent)]
    NoAuthorities(#[from] NoAuthorities),
    #[error("the connection to {whom} broke: {}", chain(.source))]
    Broken { whom: String, source: hyper::Error },
}

impl OutboundError {
    /// Nobody has heard anything of the request.
    pub fn is_before_the_request(&self) -> bool {
        !matches!(self, Self::Broken { .. })
    }
}

/// A stream of either kind: the code for HTTP over it is made once.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

/// Ends the connection when it is dropped, so it stays with whoever reads the answer.
#[derive(Debug)]
pub(crate) struct Held(JoinHandle<()>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request with a whole address, and answers with what was answered.
pub(crate) async fn send(
    request: Request<Body>,
    trusted: impl FnOnce() -> Result<RootCertStore, NoAuthorities>,
) -> Result<(Response<Incoming>, Held), OutboundError> {
    let (mut parts, body) = request.into_parts();
    let uri = std::mem::take(&mut parts.uri);
    let authority = uri.authority().ok_or(OutboundError::NoHost)?;
    let host = authority.as_str().rsplit('@').next().expect("a split has a last part");
    let host = header::HeaderValue::from_str(host).map_err(|_| OutboundError::NoHost)?;
    parts.headers.entry(header::HOST).or_insert(host);
    parts.uri = uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
    let (mut sender, held, whom) = connect(&uri, trusted).await?;
    let asked = sender.send_request(Request::from_parts(parts, body)).await;
    let answer = asked.map_err(|source| OutboundError::Broken { whom, source })?;
    Ok((answer, held))
}

async fn connect(
    uri: &Uri,
    trusted: impl FnOnce() -> Result<RootCertStore, NoAuthorities>,
) -> Result<(SendRequest<Body>, Held, String), OutboundError> {
    let host = uri.host().ok_or(OutboundError::NoHost)?.trim_matches(['[', ']']);
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let whom = format!("{host}:{port}");
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|source| OutboundError::Connect { whom: whom.clone(), source })?;
    let wire: Box<dyn Wire> = match is_tls {
        false => Box::new(stream),
        true => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| OutboundError::NoName { host: host.to_owned() })?;
            let config = ClientConfig::builder().with_root_certificates(trusted()?).with_no_client_auth();
            let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
            Box::new(connecting.map_err(|source| OutboundError::Tls { whom: whom.clone(), source })?)
        }
    };
    let (sender, connection) = http1::handshake(TokioIo::new(wire))
        .await
        .map_err(|source| OutboundError::Broken { whom: whom.clone(), source })?;
    let held = Held(tokio::spawn(async move {
        // Whatever ended it is told to whoever sends or reads.
        let _ = connection.await;
    }));
    Ok((sender, held, whom))
}
