//! Compressing a body on its way: bounded memory, and nothing kept back from a client while the instance pauses.

mod encoder;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::Malformed;
use crate::relay::{Encoding, Relay, RelayError, push_chunk_size, write_all};

use encoder::Flush;
pub(crate) use encoder::{Encoders, Lent};

/// What is compressed in one go, a fifth of a millisecond: then other requests of the thread have their turn.
const TURN: usize = 16 * 1024;
/// So much goes out at once.
const WRITE: usize = 16 * 1024;
/// An instance that says nothing for so long has paused: its client gets what there is. No person notices it, and an
/// instance that writes in pieces does not lose much of the gain.
const PAUSE: Duration = Duration::from_millis(10);

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
                self.encoder.encoder().take(&[], Flush::End)?;
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
            encoder.encoder().take(&relay.buffer.filled()[..piece.data], Flush::Nothing)?;
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
            self.encoder.encoder().take(&[], Flush::Readable)?;
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
