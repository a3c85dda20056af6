//! Carries the requests of the object store's client, bounded in time: a store that hangs must not hang a deploy.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body as HttpBody;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use rung_trust::machine_authorities;
use tokio::time::Sleep;

use crate::outbound::{self, Held, OutboundError};

/// From the first packet to the answer's head, for what sends nothing to speak of.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// The slowest way to a store that is waited for: a part of 5 MiB has a minute.
const SLOWEST_BYTES_PER_S: u64 = 100_000;
/// In an answer that has begun.
const SILENT_AT_MOST: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Carrier;

impl HttpConnector for Carrier {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Self))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("nothing was answered within {} s", .0.as_secs())]
struct Silent(Duration);

#[async_trait::async_trait]
impl HttpService for Carrier {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let sent = Duration::from_secs(request.body().content_length() as u64 / SLOWEST_BYTES_PER_S);
        let patience = ANSWERS_WITHIN + sent;
        let sending = outbound::send(request.map(HttpBody::new), machine_authorities);
        let (answer, held) = match tokio::time::timeout(patience, sending).await {
            Ok(answered) => answered.map_err(broken)?,
            Err(_) => return Err(HttpError::new(HttpErrorKind::Timeout, Silent(patience))),
        };
        Ok(answer.map(|body| HttpResponseBody::new(Answer::new(body, held))))
    }
}

fn broken(error: OutboundError) -> HttpError {
    let kind = match &error {
        OutboundError::Connect { .. } => HttpErrorKind::Connect,
        // Nobody will trust it at the next try either.
        error if error.is_before_the_request() => HttpErrorKind::Unknown,
        _ => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}

/// An answer that must go on, with the connection it comes by.
struct Answer {
    body: Incoming,
    patience: Pin<Box<Sleep>>,
    _held: Held,
}

impl Answer {
    fn new(body: Incoming, held: Held) -> Self {
        Self { body, patience: Box::pin(tokio::time::sleep(SILENT_AT_MOST)), _held: held }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.patience.as_mut().reset(tokio::time::Instant::now() + SILENT_AT_MOST);
            let failed = |error| HttpError::new(HttpErrorKind::Interrupted, error);
            return Poll::Ready(frame.map(|frame| frame.map_err(failed)));
        }
        ready!(self.patience.as_mut().poll(context));
        Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, Silent(SILENT_AT_MOST)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
