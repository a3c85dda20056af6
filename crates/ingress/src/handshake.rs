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
    // A stranger who speaks no TLS, or waits, is nobody's trouble but their own.
    if let Some(session) = shake_hands(&worker, config, stream).await {
        let protocol = session.get_ref().1.alpn_protocol();
        if protocol == Some(ACME_TLS) {
            // An authority has seen what it wanted to see.
            return;
        }
        let speaks_http2 = protocol == Some(b"h2");
        let client = TlsClient::new(session);
        if speaks_http2 {
            http2::serve(worker, Rewound::new(Vec::new(), client), peer, None).await;
        } else {
            serve(worker, client, peer, None).await;
        }
    }
}

/// `None` when the client does not get through it in time, or at all.
async fn shake_hands(
    worker: &Worker,
    config: Arc<ServerConfig>,
    stream: TcpStream,
) -> Option<TlsStream<TcpStream>> {
    let timer = worker.timers.timer();
    timer.arm(worker.limits().handshake);
    let mut accept = pin!(TlsAcceptor::from(config).accept(stream));
    let mut is_last = false;
    poll_fn(|cx| {
        if let Poll::Ready(session) = accept.as_mut().poll(cx) {
            return Poll::Ready(session.ok());
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
