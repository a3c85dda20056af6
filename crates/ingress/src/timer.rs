//! Timeouts that cost a store each: one coarse sweep per thread instead of a timer per await.
//!
//! Every connection sets and clears deadlines several times per request and almost none is ever met. So a deadline is
//! a number in a cell, and a task of the thread looks at all of them each [`TICK`]. Deadlines are late by a tick at most.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::clock::now_ms;

/// Timeouts are seconds; a twentieth of one is exact enough, and the sweep is far below 0.1 % of a core.
pub(crate) const TICK: Duration = Duration::from_millis(50);

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    deadline: Cell<u64>,
    expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// All timers of one thread.
#[derive(Debug)]
pub(crate) struct Timers {
    slots: RefCell<Slab<Rc<Slot>>>,
    /// Read once a tick; deadlines are counted from it.
    now: Cell<u64>,
}

impl Timers {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { slots: RefCell::new(Slab::new()), now: Cell::new(now_ms()) })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    pub(crate) fn timer(self: &Rc<Self>) -> Timer {
        if self.is_empty() {
            // The sweep rests while there is no timer, and the time with it.
            self.now.set(now_ms());
        }
        let slot = Rc::new(Slot {
            deadline: Cell::new(NEVER),
            expired: Cell::new(false),
            waker: RefCell::new(None),
        });
        let key = self.slots.borrow_mut().insert(slot.clone());
        Timer { timers: self.clone(), slot, key }
    }

    /// Wakes whoever's deadline has passed.
    pub(crate) fn sweep(&self) {
        let now = now_ms();
        self.now.set(now);
        for (_, slot) in self.slots.borrow().iter() {
            if slot.deadline.get() <= now {
                slot.expired.set(true);
                slot.deadline.set(NEVER);
                if let Some(waker) = &*slot.waker.borrow() {
                    waker.wake_by_ref();
                }
            }
        }
    }

    /// Wakes everybody, to look at what has changed.
    pub(crate) fn wake_all(&self) {
        for (_, slot) in self.slots.borrow().iter() {
            if let Some(waker) = &*slot.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }
}

/// The deadline was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired;

/// One deadline, set again and again. Used by one task.
#[derive(Debug)]
pub(crate) struct Timer {
    timers: Rc<Timers>,
    slot: Rc<Slot>,
    key: usize,
}

impl Timer {
    pub(crate) fn arm(&self, after: Duration) {
        let after = u64::try_from(after.as_millis()).unwrap_or(NEVER);
        self.slot.expired.set(false);
        self.slot.deadline.set(self.timers.now.get().saturating_add(after));
    }

    pub(crate) fn disarm(&self) {
        self.slot.expired.set(false);
        self.slot.deadline.set(NEVER);
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.slot.deadline.get() != NEVER || self.slot.expired.get()
    }

    /// To be called before a task returns `Pending`; true when the deadline has passed.
    pub(crate) fn poll_expired(&self, cx: &Context<'_>) -> bool {
        if self.slot.expired.get() {
            return true;
        }
        let mut waker = self.slot.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }

    /// The future's output, unless the armed deadline passes first.
    pub(crate) async fn limit<F: Future>(&self, future: F) -> Result<F::Output, Expired> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if self.poll_expired(cx) => Poll::Ready(Err(Expired)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.slots.borrow_mut().remove(self.key);
    }
}
