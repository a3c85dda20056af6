//! Connections over TLS, from their handshake to their end.
//!
//! People's carry HTTP/1.1, one request each, by the rules of [`super::strict`]. Machines ask many things at a time, most of
//! them long polls, and each has one connection for all of it, by HTTP/2; what flows, and machines of an older version, come
//! by HTTP/1.1. Which it is was agreed in the handshake.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rung_trust::{Accepted, Caller, Listener, Protocol};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

use super::callers::CallerInfo;
use super::strict::StrictStream;

/// Reports and polls are small, and what is read is read at once. HTTP/2 begins with so much, so none of it is announced.
const WINDOW: u32 = 65_535;
/// A request that waits to be read (the server starts) holds up none of the others.
const WINDOW_OF_ALL: u32 = 4 * WINDOW;
/// A machine that starts everything at once asks for some dozens of things; what is more waits there.
const AT_ONCE: u32 = 128;
/// Of the headers of requests that are the same each time; there are two.
const HEADERS_REMEMBERED: u32 = 256;

/// Who does not belong here any more is told so, and has no reason to stay.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Serves until it is dropped. Connections then take no more requests, and end with those that they carry.
pub(super) async fn serve(mut listener: Listener, router: Router) -> Infallible {
    let closing = watch::Sender::new(());
    // As `axum::serve` does, so that a request need not.
    let router: Router = router.with_state(());
    loop {
        let Accepted { stream, address, caller, protocol } = listener.accept().await;
        let closed = Closing(closing.subscribe());
        let info = CallerInfo { caller, address };
        match (protocol, &info.caller) {
            (Protocol::SideBySide, Caller::Member(_)) => {
                tokio::spawn(side_by_side(stream, answering(router.clone(), info), closed));
            }
            (Protocol::SideBySide, Caller::Removed(_)) => {
                tokio::spawn(refuse(stream, router.clone(), info));
            }
            // Only machines know the name of it, and this one shows no certificate.
            (Protocol::SideBySide, Caller::Anybody) => {}
            (Protocol::OneByOne, Caller::Member(_)) => {
                let stream = StrictStream::trusting(stream);
                tokio::spawn(one_by_one(stream, answering(router.clone(), info), closed));
            }
            (Protocol::OneByOne, Caller::Anybody | Caller::Removed(_)) => {
                let stream = StrictStream::judging(stream);
                tokio::spawn(one_by_one(stream, answering(router.clone(), info), closed));
            }
        }
    }
}

/// Ends with the one who serves.
struct Closing(watch::Receiver<()>);

impl Closing {
    async fn begins(&mut self) {
        // Nothing is ever sent.
        let _ = self.0.changed().await;
    }
}

/// Hands requests on, with a word of who asks.
fn answering(
    router: Router,
    info: CallerInfo,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Future<Output = Result<Response, Infallible>> + Send + 'static,
> + Send
+ 'static {
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(info.clone()));
        TowerToHyperService::new(router.clone()).call(request.map(Body::new))
    })
}

async fn side_by_side<I, S>(stream: I, service: S, mut closed: Closing)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    let mut connection = pin!(http2().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // It was cut, or lost; whoever asks finds out.
        _ = connection.as_mut() => return,
        () = closed.begins() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn one_by_one<I, S>(stream: I, service: S, mut closed: Closing)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = closed.begins() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// For one answer, whatever is asked.
async fn refuse<I>(stream: I, router: Router, info: CallerInfo)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let told = Arc::new(Notify::new());
    let tells = told.clone();
    let answering = answering(router, info);
    let service = service_fn(move |request| {
        let (answer, tells) = (answering.call(request), tells.clone());
        async move {
            let answer = answer.await;
            tells.notify_one();
            answer
        }
    });
    let mut connection = pin!(http2().serve_connection(TokioIo::new(stream), service));
    let ended = async {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told.notified() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    };
    let _ = tokio::time::timeout(TOLD_WITHIN, ended).await;
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW_OF_ALL)
        .max_concurrent_streams(AT_ONCE)
        .header_table_size(HEADERS_REMEMBERED)
        // Each second is another header to remember, and machines have clocks.
        .auto_date_header(false);
    http
}

#[cfg(test)]
mod tests;
