//! From an accepted socket to a TLS connection that can be served.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::forward::serve;
use crate::http2;
use crate::managed::ACME_TLS;
use crate::stream::{Rewound, TlsClient};
use crate::worker::Worker;

/// Shakes hands and serves the connection to its end.
pub(crate) async fn serve_tls(
    worker: Rc<Worker>,
    config: Arc<ServerConfig>,
    stream: TcpStream,
    peer: IpAddr,
) {
    // A stranger who speaks no TLS, or waits, is nobody's trouble but their own. What is needed for this only, or for
    // HTTP/2 only, is kept apart: the task has it in it otherwise for as long as the connection is idle.
    let Some((client, speaks)) = Box::pin(shake_hands(&worker, config, stream)).await else { return };
    match speaks {
        // An authority has seen what it wanted to see.
        Speaks::Proof => {}
        Speaks::Http1 => serve(worker, client, peer, None).await,
        Speaks::Http2 => {
            Box::pin(http2::serve(worker, Rewound::new(Vec::new(), client), peer, None)).await;
        }
    }
}

/// What the two have agreed to speak.
enum Speaks {
    Http1,
    Http2,
    /// Nothing: it was asked for proof that a name leads here.
    Proof,
}

impl Speaks {
    fn by(session: &TlsStream<TcpStream>) -> Self {
        match session.get_ref().1.alpn_protocol() {
            Some(b"h2") => Self::Http2,
            Some(ACME_TLS) => Self::Proof,
            Some(_) | None => Self::Http1,
        }
    }
}

/// `None` when the client does not get through it in time, or at all.
async fn shake_hands(
    worker: &Worker,
    config: Arc<ServerConfig>,
    stream: TcpStream,
) -> Option<(TlsClient, Speaks)> {
    let timer = worker.timers.timer();
    timer.arm(worker.limits().handshake);
    let mut accept = pin!(TlsAcceptor::from(config).accept(stream));
    let mut is_last = false;
    poll_fn(|cx| {
        if let Poll::Ready(session) = accept.as_mut().poll(cx) {
            return Poll::Ready(session.ok().map(|session| {
                let speaks = Speaks::by(&session);
                (TlsClient::new(session), speaks)
            }));
        }
        if worker.is_draining() && !is_last {
            // As for an idle connection: one that is quick enough is still served.
            is_last = true;
            timer.arm(worker.limits().idle_linger);
        }
        if timer.poll_expired(cx) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what a function's future is made, without calling it.
    fn size_of_task<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_an_idle_connection_is_small() {
        let (plain, tls) = (size_of_task(serve::<TcpStream>), size_of_task(serve_tls));
        assert!(plain < 512, "{plain} bytes for each plain connection");
        assert!(tls < 1024, "{tls} bytes for each connection over TLS, beside its session");
    }
}
