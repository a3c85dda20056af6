//! Compressing a body on its way: bounded memory, and nothing kept back from a client while the instance pauses.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress, Status};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::Malformed;
use crate::relay::{Encoding, Relay, RelayError, push_chunk_size, write_all};

/// Half the time of the next level, for a hundredth more bytes.
const LEVEL: u32 = 5;
/// The format's largest; about 300 KiB an encoder, together with its tables.
const WINDOW_BITS: u8 = 15;
/// So many bodies are compressed at once by a thread, in about 40 MiB; others pass as they are.
const AT_ONCE: usize = 128;
/// Encoders that wait for the next body: making one costs as much as compressing a few kilobytes.
const KEPT: usize = 4;
/// What is compressed in one go, a fifth of a millisecond: then other requests of the thread have their turn.
const TURN: usize = 16 * 1024;
/// So much goes out at once.
const WRITE: usize = 16 * 1024;
/// An instance that says nothing for so long has paused: its client gets what there is. No person notices it, and an
/// instance that writes in pieces does not lose much of the gain.
const PAUSE: Duration = Duration::from_millis(10);

/// The encoders of one thread.
#[derive(Debug, Default)]
pub(crate) struct Encoders {
    idle: RefCell<Vec<Encoder>>,
    lent: Cell<usize>,
}

impl Encoders {
    pub(crate) fn has_room(&self) -> bool {
        self.lent.get() < AT_ONCE
    }

    /// Whoever asked [`Encoders::has_room`] just before stays within the bound.
    pub(crate) fn lend(&self) -> Lent<'_> {
        self.lent.set(self.lent.get() + 1);
        let encoder = self.idle.borrow_mut().pop().unwrap_or_else(Encoder::new);
        Lent { encoders: self, encoder: Some(encoder) }
    }
}

/// An encoder, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lent<'e> {
    encoders: &'e Encoders,
    encoder: Option<Encoder>,
}

impl Lent<'_> {
    fn encoder(&mut self) -> &mut Encoder {
        self.encoder.as_mut().expect("it is taken by the drop only")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.encoders.lent.set(self.encoders.lent.get() - 1);
        let mut idle = self.encoders.idle.borrow_mut();
        if let Some(mut encoder) = self.encoder.take().filter(|_| idle.len() < KEPT) {
            encoder.reset();
            idle.push(encoder);
        }
    }
}

#[derive(Debug)]
struct Encoder {
    state: Compress,
    /// What came of it and was not yet sent.
    coded: Vec<u8>,
}

impl Encoder {
    fn new() -> Self {
        Self { state: Compress::new_gzip(Compression::new(LEVEL), WINDOW_BITS), coded: Vec::new() }
    }

    fn reset(&mut self) {
        self.state.reset();
        self.coded.clear();
    }

    /// Takes all of `data`. With a flush, everything taken so far is in `coded` afterwards; with the last one, the end too.
    fn take(&mut self, mut data: &[u8], flush: FlushCompress) -> Result<(), RelayError> {
        loop {
            self.coded.reserve(WRITE);
            let before = self.state.total_in();
            let status = self.state.compress_vec(data, &mut self.coded, flush).map_err(|_| BROKEN)?;
            let taken = usize::try_from(self.state.total_in() - before).map_err(|_| BROKEN)?;
            data = data.get(taken..).ok_or(BROKEN)?;
            let has_ended = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                _ => data.is_empty() && self.coded.len() < self.coded.capacity(),
            };
            if has_ended {
                return Ok(());
            }
        }
    }
}

const BROKEN: RelayError = RelayError::Malformed(Malformed("it could not be compressed"));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    More,
    Last,
}

/// One body on its way, compressed.
#[derive(Debug)]
pub(crate) struct Squeeze<'a> {
    /// As it would pass on the body; this reads by its decoder and writes by its bounds.
    relay: Relay<'a>,
    encoder: Lent<'a>,
    /// Something was read that the client has not got, at first the head.
    owes: bool,
}

impl<'a> Squeeze<'a> {
    pub(crate) fn new(relay: Relay<'a>, encoder: Lent<'a>) -> Self {
        Self { relay, encoder, owes: true }
    }

    pub(crate) async fn run<R, W>(mut self, reader: &mut R, writer: &mut W) -> Result<(), RelayError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let moved = self.compress()?;
            if self.relay.decoder.has_ended() {
                self.encoder.encoder().take(&[], FlushCompress::Finish)?;
                self.write(writer, Part::Last).await?;
                self.relay.timer.disarm();
                return Ok(());
            }
            if self.encoder.encoder().coded.len() >= WRITE {
                self.write(writer, Part::More).await?;
            }
            if moved > 0 && !self.relay.buffer.is_empty() {
                tokio::task::yield_now().await;
                continue;
            }
            self.fill(reader, writer).await?;
        }
    }

    /// Compresses of what was read as much as there is a turn for; how many bytes of it were taken.
    fn compress(&mut self) -> Result<usize, RelayError> {
        let Self { relay, encoder, owes } = self;
        let shown = relay.buffer.len().min(TURN);
        let piece = relay.decoder.next(&relay.buffer.filled()[..shown]).map_err(RelayError::Malformed)?;
        relay.buffer.consume(piece.skip);
        if piece.data > 0 {
            encoder.encoder().take(&relay.buffer.filled()[..piece.data], FlushCompress::None)?;
            relay.buffer.consume(piece.data);
            *owes = true;
        }
        Ok(piece.skip + piece.data)
    }

    /// Reads more. When that takes a while, the client gets what there is first.
    async fn fill<R, W>(&mut self, reader: &mut R, writer: &mut W) -> Result<(), RelayError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.owes {
            if let Ok(filled) = tokio::time::timeout(PAUSE, self.relay.fill_up_to(reader, TURN)).await {
                return filled;
            }
            self.encoder.encoder().take(&[], FlushCompress::Sync)?;
            self.write(writer, Part::More).await?;
            self.owes = false;
        }
        self.relay.fill_up_to(reader, TURN).await
    }

    async fn write<W: AsyncWrite + Unpin>(&mut self, writer: &mut W, part: Part) -> Result<(), RelayError> {
        let Self { relay, encoder, .. } = self;
        let coded = &mut encoder.encoder().coded;
        if !coded.is_empty() {
            relay.passed.set(relay.passed.get() + coded.len() as u64);
            if relay.encoding == Encoding::Chunked {
                push_chunk_size(relay.out, coded.len());
            }
            relay.out.append(coded);
            if relay.encoding == Encoding::Chunked {
                relay.out.extend_from_slice(b"\r\n");
            }
        }
        if part == Part::Last && relay.encoding == Encoding::Chunked {
            relay.out.extend_from_slice(b"0\r\n\r\n");
        }
        write_all(writer, relay.timer, relay.stall, relay.out, &[]).await?;
        relay.out.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn unpacked(coded: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(coded).read_to_end(&mut out).expect("it is whole gzip");
        out
    }

    proptest! {
        #[test]
        fn what_comes_out_is_what_went_in_however_it_is_cut(
            pieces in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..3000), 1usize..20, any::<bool>()),
                0..12,
            ),
        ) {
            let encoders = Encoders::default();
            // The second body comes by the same encoder.
            for _ in 0..2 {
                let (mut lent, mut body, mut sent) = (encoders.lend(), Vec::new(), Vec::new());
                for (bytes, times, flush) in &pieces {
                    let bytes = bytes.repeat(*times);
                    body.extend_from_slice(&bytes);
                    lent.encoder().take(&bytes, FlushCompress::None).expect("it takes everything");
                    if *flush {
                        lent.encoder().take(&[], FlushCompress::Sync).expect("it flushes");
                        sent.append(&mut lent.encoder().coded);
                    }
                }
                lent.encoder().take(&[], FlushCompress::Finish).expect("it ends");
                sent.append(&mut lent.encoder().coded);
                prop_assert_eq!(unpacked(&sent), body);
            }
        }
    }

    #[test]
    fn what_was_flushed_can_be_read_before_the_end() {
        let encoders = Encoders::default();
        let mut lent = encoders.lend();
        lent.encoder().take(b"tick\n", FlushCompress::None).unwrap();
        lent.encoder().take(&[], FlushCompress::Sync).unwrap();
        let mut seen = [0; 5];
        let coded = lent.encoder().coded.clone();
        flate2::read::GzDecoder::new(coded.as_slice()).read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"tick\n");
    }

    #[test]
    fn encoders_are_bounded_and_used_again() {
        let encoders = Encoders::default();
        let all: Vec<_> = (0..AT_ONCE).map(|_| encoders.lend()).collect();
        assert!(!encoders.has_room(), "one more body would be compressed at once");
        drop(all);
        assert!(encoders.has_room());
        assert_eq!(encoders.idle.borrow().len(), KEPT, "all of their memory is kept");
    }
}
