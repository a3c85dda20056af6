//! One HTTP/2 connection to one member, with or without TLS, and the pings that find out that nobody is there any more.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection as H2Connection, SendRequest};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A member on the same network answers within a millisecond; one that does not is passed over for the next.
const DIAL_WITHIN: Duration = Duration::from_secs(2);

/// A member that is paused or cut off is found out after both: well below the time of a leader's lease.
const PING_EVERY: Duration = Duration::from_millis(700);
const PONG_WITHIN: Duration = Duration::from_millis(1300);

/// Flow control's windows: a page of the largest values fits without waiting for the other side.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// What a client shows and believes.
#[derive(Clone)]
pub struct EtcdTls(Arc<rustls::ClientConfig>);

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EtcdTls")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading the certificates for etcd")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the certificates for etcd can't be used")]
    Unusable(#[from] rustls::Error),
}

impl EtcdTls {
    /// From PEM: who signs the members' certificates, and this client's own certificate with its key.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(authority) {
            roots.add(root?)?;
        }
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// Counts the calls that wait for an answer: only then the member is pinged, as gRPC's servers demand.
#[derive(Debug)]
pub struct Active(Arc<AtomicUsize>);

impl Active {
    fn one_more(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection; cheap to clone. It ends when the last clone is dropped.
#[derive(Clone)]
pub struct Connection {
    pub send: SendRequest<Bytes>,
    active: Arc<AtomicUsize>,
    /// Ends the driver with the last handle.
    _driver: Arc<Driver>,
}

struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    pub async fn dial(endpoint: &str, tls: Option<&EtcdTls>) -> io::Result<Self> {
        let dialled = tokio::time::timeout(DIAL_WITHIN, Self::dial_patiently(endpoint, tls)).await;
        dialled.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")))
    }

    async fn dial_patiently(endpoint: &str, tls: Option<&EtcdTls>) -> io::Result<Self> {
        let tcp = TcpStream::connect(endpoint).await?;
        tcp.set_nodelay(true)?;
        match tls {
            None => Self::greet(tcp).await,
            Some(EtcdTls(config)) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                Self::greet(connector.connect(server_name(endpoint)?, tcp).await?).await
            }
        }
    }

    async fn greet<T>(io: T) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(io::Error::other)?;
        let active = Arc::new(AtomicUsize::new(0));
        let driver = tokio::spawn(drive(connection, Arc::clone(&active)));
        Ok(Self { send, active, _driver: Arc::new(Driver(driver)) })
    }

    pub fn count(&self) -> Active {
        Active::one_more(&self.active)
    }
}

/// Moves bytes until the connection ends or nobody answers. With the end of this every open call fails.
async fn drive<T>(mut connection: H2Connection<T, Bytes>, active: Arc<AtomicUsize>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = connection.ping_pong().expect("it is taken once");
    let silence = async {
        loop {
            tokio::time::sleep(PING_EVERY).await;
            if active.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let pong = tokio::time::timeout(PONG_WITHIN, pings.ping(h2::Ping::opaque())).await;
            if !matches!(pong, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "connection to etcd ended");
        },
        () = silence => tracing::debug!("etcd does not answer pings"),
    }
}

fn server_name(endpoint: &str) -> io::Result<ServerName<'static>> {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok(ServerName::from(ip)),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(io::Error::other),
    }
}
