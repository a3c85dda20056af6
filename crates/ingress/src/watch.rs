//! Looks after a client while others have the word: what it sends ahead is kept, and its leaving is noticed.
//!
//! A connection that was reset is over at once. One that only says that nothing more will be sent may still be read from:
//! `shutdown` and `close` look the same from here, until something is written. So such a client is waited for as long as
//! the answer goes on, and given up when nothing of it came for a moment.
//!
//! Nothing here asks the kernel: it is polled when the instance has nothing to say, and hears what the event loop heard.

use std::cell::Cell;
use std::fmt::Debug;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::buffer::Buffer;
use crate::stream::ClientReader;
use crate::timer::{Timer, Timers};
use crate::worker::Worker;

/// What a client may send ahead while it waits for its answer.
pub(crate) const AHEAD_MAX: usize = 16 * 1024;
/// Behind bytes that there is no room for, an end can't be read: it is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Whoever notices that the one who is written to has left.
pub(crate) trait Attention: Debug {
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Watch<'a, R> {
    reader: &'a mut R,
    buffer: &'a mut Buffer,
    timers: &'a Rc<Timers>,
    /// Payload bytes that went to the client.
    passed: &'a Cell<u64>,
    /// How long the answer to a client that sends no more may pause.
    moment: Duration,
    side: Side,
}

/// The client's side of its connection.
///
/// ```text
/// Open ─► Full ─► Closed
///   └───────────────┘
/// ```
#[derive(Debug)]
enum Side {
    Open,
    /// It has sent as much ahead as is kept.
    Full(Timer),
    /// It sends no more; when that was seen or last looked at, so many bytes had gone to it.
    Closed {
        timer: Timer,
        passed: u64,
    },
}

impl<'a, R: ClientReader> Watch<'a, R> {
    pub(crate) fn new(
        reader: &'a mut R,
        buffer: &'a mut Buffer,
        worker: &'a Worker,
        passed: &'a Cell<u64>,
    ) -> Self {
        let (timers, moment) = (&worker.timers, worker.limits().half_closed);
        Self { reader, buffer, timers, passed, moment, side: Side::Open }
    }

    fn timer(&self, after: Duration) -> Timer {
        let timer = self.timers.timer();
        timer.arm(after);
        timer
    }

    fn closed(&self) -> Side {
        Side::Closed { timer: self.timer(self.moment), passed: self.passed.get() }
    }
}

impl<R: ClientReader> Attention for Watch<'_, R> {
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.side {
                Side::Open if self.buffer.is_full(AHEAD_MAX) => {
                    self.side = Side::Full(self.timer(LOOK_AGAIN))
                }
                Side::Open => match ready!(self.buffer.poll_fill(cx, self.reader, AHEAD_MAX)) {
                    Ok(0) => self.side = self.closed(),
                    Ok(_) => {}
                    Err(_) => return Poll::Ready(()),
                },
                Side::Full(_) if self.reader.has_left(cx) => self.side = self.closed(),
                Side::Full(timer) if timer.poll_expired(cx) => timer.arm(LOOK_AGAIN),
                Side::Closed { timer, passed } if timer.poll_expired(cx) => {
                    if *passed == self.passed.get() {
                        return Poll::Ready(());
                    }
                    *passed = self.passed.get();
                    timer.arm(self.moment);
                }
                Side::Full(_) | Side::Closed { .. } => return Poll::Pending,
            }
        }
    }
}
