//! Moving a body from one connection to the other: constant memory, as fast as the slower side.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::{Decoder, Malformed};
use crate::buffer::Buffer;
use crate::timer::Timer;
use crate::watch::Attention;

/// Pieces from this size on are written from where they were read; smaller ones are gathered for one write.
const DIRECT_MIN: usize = 8 * 1024;

/// Why a body did not get through.
#[derive(Debug)]
pub(crate) enum RelayError {
    /// The reading side failed, or ended before the body did.
    Read,
    ReadStalled,
    Malformed(Malformed),
    /// Longer than it may be.
    TooLong,
    /// `nothing`: not even the first byte was taken.
    Write {
        nothing: bool,
    },
    WriteStalled,
    /// The one who is written to has left, while there was nothing to write.
    Left,
}

/// How the writing side learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Chunked,
}

/// One body on its way.
#[derive(Debug)]
pub(crate) struct Relay<'a> {
    /// What was read and not yet passed on. What follows the body stays in it.
    pub(crate) buffer: &'a mut Buffer,
    pub(crate) decoder: Decoder,
    pub(crate) encoding: Encoding,
    /// Written first: the head.
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) timer: &'a Timer,
    /// How long either side may do nothing.
    pub(crate) stall: Duration,
    /// So much is read ahead of the writing side, at most.
    pub(crate) ahead: usize,
    /// Payload bytes passed on.
    pub(crate) passed: &'a Cell<u64>,
    /// So many there may be.
    pub(crate) max: u64,
    /// Looks after the writing side while the reading one has nothing.
    pub(crate) watch: Option<&'a mut (dyn Attention + 'a)>,
}

impl Relay<'_> {
    pub(crate) async fn run<R, W>(mut self, reader: &mut R, writer: &mut W) -> Result<(), RelayError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let direct = self.gather().map_err(RelayError::Malformed)?;
            if self.passed.get() > self.max {
                return Err(RelayError::TooLong);
            }
            let has_ended = self.decoder.has_ended() && direct == 0;
            if has_ended && self.encoding == Encoding::Chunked {
                self.out.extend_from_slice(b"0\r\n\r\n");
            }
            write_all(writer, self.timer, self.stall, self.out, &self.buffer.filled()[..direct]).await?;
            self.out.clear();
            if has_ended {
                self.timer.disarm();
                return Ok(());
            }
            if direct > 0 {
                self.buffer.consume(direct);
                if self.encoding == Encoding::Chunked {
                    self.out.extend_from_slice(b"\r\n");
                }
                if !self.buffer.is_empty() || self.decoder.has_ended() {
                    continue;
                }
            }
            self.fill(reader).await?;
        }
    }

    /// Moves small pieces into `out`; returns the length of a large one that is to be written from the buffer.
    fn gather(&mut self) -> Result<usize, Malformed> {
        loop {
            let piece = self.decoder.next(self.buffer.filled())?;
            self.buffer.consume(piece.skip);
            if piece.data > 0 {
                self.passed.set(self.passed.get() + piece.data as u64);
                if self.encoding == Encoding::Chunked {
                    push_chunk_size(self.out, piece.data);
                }
                if piece.data >= DIRECT_MIN {
                    return Ok(piece.data);
                }
                self.out.extend_from_slice(&self.buffer.filled()[..piece.data]);
                self.buffer.consume(piece.data);
                if self.encoding == Encoding::Chunked {
                    self.out.extend_from_slice(b"\r\n");
                }
            }
            if piece.end || piece.data == 0 || self.buffer.is_empty() {
                return Ok(0);
            }
        }
    }

    async fn fill<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), RelayError> {
        self.fill_up_to(reader, self.ahead).await
    }

    /// Reads once, holding at most so many bytes. May be dropped before it is ready: nothing is lost.
    pub(crate) async fn fill_up_to<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        limit: usize,
    ) -> Result<(), RelayError> {
        self.timer.arm(self.stall);
        let (buffer, watch) = (&mut *self.buffer, &mut self.watch);
        let read = self.timer.limit(poll_fn(|cx| {
            if let Poll::Ready(read) = buffer.poll_fill(cx, reader, limit) {
                return Poll::Ready(Some(read));
            }
            match watch {
                Some(watch) => watch.poll_left(cx).map(|()| None),
                None => Poll::Pending,
            }
        }));
        match read.await {
            Err(_) => Err(RelayError::ReadStalled),
            Ok(None) => Err(RelayError::Left),
            Ok(Some(Ok(0))) if self.decoder.ends_with_stream() => {
                self.decoder = Decoder::Ended;
                Ok(())
            }
            Ok(Some(Ok(0) | Err(_))) => Err(RelayError::Read),
            Ok(Some(Ok(_))) => Ok(()),
        }
    }
}

pub(crate) fn push_chunk_size(out: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let highest = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..highest).rev() {
        out.push(DIGITS[(size >> (place * 4)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes both slices, in as few calls as the socket takes.
pub(crate) async fn write_all<W: AsyncWrite + Unpin>(
    writer: &mut W,
    timer: &Timer,
    stall: Duration,
    first: &[u8],
    second: &[u8],
) -> Result<(), RelayError> {
    let total = first.len() + second.len();
    let mut written = 0;
    let all = poll_fn(|cx| -> Poll<io::Result<()>> {
        while written < total {
            let head = first.get(written..).unwrap_or_default();
            let body = &second[written.saturating_sub(first.len())..];
            let result = if body.is_empty() {
                Pin::new(&mut *writer).poll_write(cx, head)
            } else {
                let slices = [IoSlice::new(head), IoSlice::new(body)];
                let from = usize::from(head.is_empty());
                Pin::new(&mut *writer).poll_write_vectored(cx, &slices[from..])
            };
            match result {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    written += count;
                    timer.arm(stall);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // A socket has nothing to flush; TLS may hold records back.
        Pin::new(&mut *writer).poll_flush(cx)
    });
    timer.arm(stall);
    match timer.limit(all).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(RelayError::Write { nothing: written == 0 }),
        Err(_) => Err(RelayError::WriteStalled),
    }
}
