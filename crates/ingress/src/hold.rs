//! Requests that wait, bounded in number and in time: while an exclusive service changes hands, and for an instance that has
//! as many as it can bear.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rung_model::Hold;
use rung_model::route::Overload;
use tokio::sync::futures::Notified;

use crate::balance::ServiceLoad;
use crate::buffer::Buffer;
use crate::error_page::Failure;
use crate::stream::{ClientReader, ClientStream};
use crate::timer::Timer;
use crate::watch::AHEAD_MAX;
use crate::worker::Worker;

/// A limit may rise, a circuit close, and a client leave behind bytes that there is no room for, without anybody's word.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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

/// A place in the queue for an instance, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Queued(Arc<ServiceLoad>);

impl Queued {
    fn take(load: &Arc<ServiceLoad>, max: u32) -> Option<Self> {
        let place = Self(load.clone());
        (load.queued.fetch_add(1, Ordering::AcqRel) < max).then_some(place)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits until an instance may have room, at most until `rule.wait` after `since`. The place is kept for another wait.
pub(crate) async fn queue<C: ClientStream>(
    timer: &Timer,
    client: &mut C,
    buffer: &mut Buffer,
    rule: &Overload,
    load: &Arc<ServiceLoad>,
    place: &mut Option<Queued>,
    since: Instant,
) -> Held {
    if place.is_none() {
        *place = Queued::take(load, rule.queue);
    }
    let left = rule.wait.saturating_sub(since.elapsed());
    if place.is_none() || left.is_zero() {
        return Held::Failed(Failure::Busy);
    }
    timer.arm(left.min(LOOK_AGAIN));
    let mut room = pin!(load.room.notified());
    let mut client = client.halves().0;
    let released = timer.limit(poll_fn(|cx| watch(cx, room.as_mut(), timer, &mut client, buffer))).await;
    timer.disarm();
    // Whether it is too late is found with the next look.
    released.unwrap_or(Held::Released)
}

/// Ready when the signal comes, or when the client leaves; what it sends meanwhile is kept.
///
/// A client that only ends its side is given up, too: nothing was begun for it, and others wait for its place.
fn watch<R: ClientReader>(
    cx: &mut Context<'_>,
    signal: Pin<&mut Notified<'_>>,
    timer: &Timer,
    client: &mut R,
    buffer: &mut Buffer,
) -> Poll<Held> {
    if signal.poll(cx).is_ready() {
        return Poll::Ready(Held::Released);
    }
    while !buffer.is_full(AHEAD_MAX) {
        match buffer.poll_fill(cx, client, AHEAD_MAX) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Held::ClientGone),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return Poll::Pending,
        }
    }
    if client.has_left(cx) {
        return Poll::Ready(Held::ClientGone);
    }
    timer.arm(LOOK_AGAIN);
    Poll::Pending
}

/// Waits for the next table, or until it is time to look again; at most until `hold.max_time` after `since`.
pub(crate) async fn wait<C: ClientStream>(
    worker: &Worker,
    timer: &Timer,
    client: &mut C,
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
    let mut client = client.halves().0;
    let released = timer.limit(poll_fn(|cx| watch(cx, changed.as_mut(), timer, &mut client, buffer))).await;
    timer.disarm();
    // Whether it is too late is found with the next look.
    released.unwrap_or(Held::Released)
}
