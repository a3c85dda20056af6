//! Who serves the streams of a connection: tasks that take one after the other.
//!
//! A task for each stream would be made and thrown away with every request, and it is kilobytes large. So one that has
//! served a stream waits for the next, as long as the connection has more to do.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;

use super::{AHEAD_MIN, AHEAD_TOGETHER};
use crate::buffer::BODY_SIZE;

/// Of a connection that rests: most send the next request soon, and one at a time.
const RESTING: usize = 1;

/// A stream that nobody serves yet.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) request: http::Request<RecvStream>,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) open: OpenStream,
}

/// How the connection's own task and those that serve its streams meet.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Cell<usize>,
    /// The connection's task, to be woken when the last stream has ended.
    waker: RefCell<Option<Waker>>,
    waiting: RefCell<Vec<Rc<Place>>>,
    /// Nothing comes any more.
    is_over: Cell<bool>,
}

/// Where one task is given its streams.
#[derive(Debug)]
struct Place(RefCell<Given>);

#[derive(Debug)]
enum Given {
    /// Nothing yet.
    Nothing(Option<Waker>),
    Stream(Box<Incoming>),
    Leave,
}

impl Streams {
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// What one of them reads ahead: as a connection of its own would, while they are few.
    pub(super) fn ahead(&self) -> usize {
        (AHEAD_TOGETHER / self.open.get().max(1)).clamp(AHEAD_MIN, BODY_SIZE)
    }

    /// Wakes the task when the last stream has ended.
    pub(super) fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Gives the stream to a task that waits for one, or else back.
    pub(super) fn give(&self, incoming: Box<Incoming>) -> Option<Box<Incoming>> {
        match self.waiting.borrow_mut().pop() {
            Some(place) => {
                place.put(Given::Stream(incoming));
                None
            }
            None => Some(incoming),
        }
    }

    /// The connection has nothing to do: most of those that wait are let go.
    pub(super) fn rest(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.len() > RESTING
            && let Some(place) = waiting.pop()
        {
            place.put(Given::Leave);
        }
    }

    /// The connection has ended: nobody waits any more.
    pub(super) fn end(&self) {
        self.is_over.set(true);
        for place in mem::take(&mut *self.waiting.borrow_mut()) {
            place.put(Given::Leave);
        }
    }
}

impl Place {
    fn put(&self, given: Given) {
        if let Given::Nothing(Some(waker)) = self.0.replace(given) {
            waker.wake();
        }
    }

    fn poll_take(&self, cx: &Context<'_>) -> Poll<Option<Box<Incoming>>> {
        let mut given = self.0.borrow_mut();
        match mem::replace(&mut *given, Given::Nothing(None)) {
            Given::Stream(incoming) => Poll::Ready(Some(incoming)),
            Given::Leave => Poll::Ready(None),
            Given::Nothing(_) => {
                *given = Given::Nothing(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// A task's own: its next stream.
#[derive(Debug)]
pub(super) struct Servant {
    streams: Rc<Streams>,
    place: Rc<Place>,
}

impl Servant {
    /// For a stream that is there already.
    pub(super) fn new(streams: &Rc<Streams>, first: Box<Incoming>) -> Self {
        let place = Rc::new(Place(RefCell::new(Given::Stream(first))));
        Self { streams: streams.clone(), place }
    }

    /// The next stream; the first is there. `None`: there will be none for it.
    pub(super) async fn next(&self) -> Option<Box<Incoming>> {
        poll_fn(|cx| self.place.poll_take(cx)).await
    }

    /// It has served its stream, and waits for another one. False when none comes.
    pub(super) fn wait(&self) -> bool {
        let goes_on = !self.streams.is_over.get();
        if goes_on {
            self.streams.waiting.borrow_mut().push(self.place.clone());
        }
        goes_on
    }
}

/// Counts a stream from when it has come to when it has been served.
#[derive(Debug)]
pub(super) struct OpenStream(Rc<Streams>);

impl OpenStream {
    pub(super) fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0
            && let Some(waker) = self.0.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}
