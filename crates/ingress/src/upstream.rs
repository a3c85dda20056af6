//! A connection to an instance: straight to it on this machine, or through the proxy of the node that it runs on.
//!
//! Through another node's proxy a connection is mutual TLS and begins with one line that names the instance; the proxy
//! answers with one byte, and from then on passes bytes both ways ([`crate::peer`] is its side). So everything above
//! sees one kind of connection, and what is local pays nothing but a look at an enum.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rung_model::InstanceId;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How the proxy of another node is reached.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) config: Arc<rustls::ClientConfig>,
    pub(crate) name: ServerName<'static>,
    pub(crate) instance: InstanceId,
}

/// Several round trips between machines of one cluster, and a lost packet or two.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);
/// What begins a connection.
pub(crate) const GREETING: &str = "rung-instance/1 ";
/// What the proxy answers.
pub(crate) const ACCEPTED: u8 = b'+';
pub(crate) const NOT_ROUTED: u8 = b'-';

#[derive(Debug)]
pub(crate) enum Upstream {
    Local(TcpStream),
    Remote(Box<RefCell<TlsStream<TcpStream>>>),
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum RelayRefusal {
    /// The instance's node says that it gets no requests: nothing was sent, and nothing is wrong with it.
    NotRouted,
    Io(io::Error),
}

impl From<io::Error> for RelayRefusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Upstream {
    /// Asks a node's proxy for one of its instances.
    pub(crate) async fn relayed(relay: &Relay) -> Result<Self, RelayRefusal> {
        let stream = TcpStream::connect(relay.address).await?;
        stream.set_nodelay(true)?;
        // A machine that has died says nothing: what it does not acknowledge for so long is sent elsewhere.
        socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        let mut stream = TlsConnector::from(relay.config.clone()).connect(relay.name.clone(), stream).await?;
        stream.write_all(format!("{GREETING}{}\n", relay.instance).as_bytes()).await?;
        stream.flush().await?;
        match stream.read_u8().await? {
            ACCEPTED => Ok(Self::Remote(Box::new(RefCell::new(stream)))),
            _ => Err(RelayRefusal::NotRouted),
        }
    }

    pub(crate) fn split(&mut self) -> (UpstreamReader<'_>, UpstreamWriter<'_>) {
        match self {
            Self::Local(stream) => {
                let (reader, writer) = stream.split();
                (UpstreamReader::Local(reader), UpstreamWriter::Local(writer))
            }
            Self::Remote(stream) => (UpstreamReader::Remote(stream), UpstreamWriter::Remote(stream)),
        }
    }

    pub(crate) fn socket(&self, act: impl FnOnce(&TcpStream)) {
        match self {
            Self::Local(stream) => act(stream),
            Self::Remote(stream) => act(stream.borrow().get_ref().0),
        }
    }
}

/// One direction each. Both are used by one task, which lets them take turns at a TLS session.
#[derive(Debug)]
pub(crate) enum UpstreamReader<'a> {
    Local(ReadHalf<'a>),
    Remote(&'a RefCell<TlsStream<TcpStream>>),
}

#[derive(Debug)]
pub(crate) enum UpstreamWriter<'a> {
    Local(WriteHalf<'a>),
    Remote(&'a RefCell<TlsStream<TcpStream>>),
}

impl AsyncRead for UpstreamReader<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Local(half) => Pin::new(half).poll_read(cx, buffer),
            Self::Remote(stream) => Pin::new(&mut *stream.borrow_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for UpstreamWriter<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Local(half) => Pin::new(half).poll_write(cx, bytes),
            Self::Remote(stream) => Pin::new(&mut *stream.borrow_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Local(half) => Pin::new(half).poll_write_vectored(cx, slices),
            Self::Remote(stream) => Pin::new(&mut *stream.borrow_mut()).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Local(half) => Pin::new(half).poll_flush(cx),
            Self::Remote(stream) => Pin::new(&mut *stream.borrow_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Local(half) => Pin::new(half).poll_shutdown(cx),
            Self::Remote(stream) => Pin::new(&mut *stream.borrow_mut()).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Local(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Remote(stream) => Pin::new(stream.get_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Local(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Remote(stream) => Pin::new(stream.get_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Local(stream) => Pin::new(stream).poll_flush(cx),
            Self::Remote(stream) => Pin::new(stream.get_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Local(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Remote(stream) => Pin::new(stream.get_mut()).poll_shutdown(cx),
        }
    }
}
