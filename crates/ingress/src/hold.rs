//! Holding requests while an exclusive service changes hands: bounded in number and in time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use rung_model::Hold;
use tokio::io::AsyncRead;

use crate::balance::ServiceLoad;
use crate::buffer::Buffer;
use crate::error_page::Failure;
use crate::timer::Timer;
use crate::worker::Worker;

/// What a held client may send ahead.
const AHEAD_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) enum Held {
    /// The table changed: look again.
    Released,
    Failed(Failure),
    ClientGone,
}

/// One of the places for held requests, given back when it is dropped.
struct Place<'a>(&'a ServiceLoad);

impl<'a> Place<'a> {
    fn take(load: &'a ServiceLoad, max: u32) -> Option<Self> {
        let place = Self(load);
        (load.held.fetch_add(1, Ordering::AcqRel) < max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits for the next table, at most until `hold.max_time` after `since`.
pub(crate) async fn wait<R: AsyncRead + Unpin>(
    worker: &Worker,
    timer: &Timer,
    client: &mut R,
    buffer: &mut Buffer,
    hold: &Hold,
    load: &ServiceLoad,
    since: Instant,
) -> Held {
    // Registered before anything else, so that no change between the look at the table and here is missed: both
    // happen on this thread, without a pause.
    let mut changed = pin!(worker.changed.notified());
    changed.as_mut().enable();
    let Some(_place) = Place::take(load, hold.max_requests) else { return Held::Failed(Failure::HoldFull) };
    let left = hold.max_time.saturating_sub(since.elapsed());
    if left.is_zero() {
        return Held::Failed(Failure::HeldTooLong);
    }
    timer.arm(left);
    let released = timer
        .limit(poll_fn(|cx| {
            if changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Held::Released);
            }
            while !buffer.is_full(AHEAD_MAX) {
                match buffer.poll_fill(cx, client, AHEAD_MAX) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Held::ClientGone),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        }))
        .await;
    timer.disarm();
    released.unwrap_or(Held::Failed(Failure::HeldTooLong))
}
