//! One body's encoder, of whichever coding, and how many of each a thread has.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Write;

use brotli::CompressorWriter;
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective};

use super::WRITE;
use crate::coding::Coding;
use crate::relay::RelayError;

/// Half the time of the next level, for a hundredth more bytes.
const GZIP_LEVEL: u32 = 5;
/// The format's largest; about 300 KiB an encoder, together with its tables.
const GZIP_WINDOW_BITS: u8 = 15;
/// About as small as gzip, in less than half of its time; the next level takes twice the memory for nothing.
const ZSTD_LEVEL: i32 = 3;
/// Pages are seldom larger; with it an encoder takes 1.7 MB.
const ZSTD_WINDOW_BITS: u32 = 17;
/// The first one that is smaller than gzip.
const BROTLI_QUALITY: u32 = 5;
/// About 2 MB an encoder.
const BROTLI_WINDOW_BITS: u32 = 17;

/// So many bodies a thread compresses at once, by [`Coding::ALL`]: in about 40 MB each of the first two and 20 MB of the last.
const AT_ONCE: [usize; 3] = [24, 128, 10];
/// Encoders that wait for the next body: making one costs as much as compressing a few kilobytes. Those of brotli can't be
/// used again.
const KEPT: [usize; 3] = [2, 4, 0];

/// What is wanted of everything that was taken so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    Nothing,
    /// It can be read.
    Readable,
    /// The body is at its end.
    End,
}

/// The encoders of one thread.
#[derive(Debug, Default)]
pub(crate) struct Encoders {
    idle: RefCell<[Vec<Encoder>; 3]>,
    lent: [Cell<usize>; 3],
}

impl Encoders {
    pub(crate) fn has_room(&self, coding: Coding) -> bool {
        let index = coding as usize;
        self.lent[index].get() < AT_ONCE[index]
    }

    /// Whoever asked [`Encoders::has_room`] just before stays within the bound.
    pub(crate) fn lend(&self, coding: Coding) -> Lent<'_> {
        let index = coding as usize;
        self.lent[index].set(self.lent[index].get() + 1);
        let encoder = self.idle.borrow_mut()[index].pop().unwrap_or_else(|| Encoder::new(coding));
        Lent { encoders: self, index, encoder: Some(encoder) }
    }
}

/// An encoder, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lent<'e> {
    encoders: &'e Encoders,
    index: usize,
    encoder: Option<Encoder>,
}

impl Lent<'_> {
    pub(super) fn encoder(&mut self) -> &mut Encoder {
        self.encoder.as_mut().expect("it is taken by the drop only")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let lent = &self.encoders.lent[self.index];
        lent.set(lent.get() - 1);
        let idle = &mut self.encoders.idle.borrow_mut()[self.index];
        if idle.len() < KEPT[self.index] {
            idle.extend(self.encoder.take().and_then(Encoder::anew));
        }
    }
}

pub(super) struct Encoder {
    state: State,
    /// What came of it and was not yet sent.
    pub(super) coded: Vec<u8>,
}

enum State {
    Gzip(Compress),
    Zstd(CCtx<'static>),
    /// `None` after the end.
    Brotli(Option<Box<CompressorWriter<Vec<u8>>>>),
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coding = match self.state {
            State::Gzip(_) => Coding::Gzip,
            State::Zstd(_) => Coding::Zstd,
            State::Brotli(_) => Coding::Brotli,
        };
        f.debug_struct("Encoder").field("coding", &coding).field("coded", &self.coded.len()).finish()
    }
}

impl Encoder {
    fn new(coding: Coding) -> Self {
        let state = match coding {
            Coding::Gzip => State::Gzip(Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW_BITS)),
            Coding::Zstd => State::Zstd(zstd()),
            Coding::Brotli => {
                let (quality, window) = (BROTLI_QUALITY, BROTLI_WINDOW_BITS);
                State::Brotli(Some(Box::new(CompressorWriter::new(Vec::new(), WRITE, quality, window))))
            }
        };
        Self { state, coded: Vec::new() }
    }

    /// For another body, whatever became of this one.
    fn anew(mut self) -> Option<Self> {
        self.coded.clear();
        match &mut self.state {
            State::Gzip(state) => state.reset(),
            State::Zstd(state) => drop(state.reset(ResetDirective::SessionOnly).ok()?),
            State::Brotli(_) => return None,
        }
        Some(self)
    }

    /// Takes all of `data`. With a flush, everything taken so far is in `coded` afterwards; with the last one, the end too.
    pub(super) fn take(&mut self, data: &[u8], flush: Flush) -> Result<(), RelayError> {
        let coded = &mut self.coded;
        let taken = match &mut self.state {
            State::Gzip(state) => take_gzip(state, data, flush, coded),
            State::Zstd(state) => take_zstd(state, data, flush, coded),
            State::Brotli(state) => take_brotli(state, data, flush, coded),
        };
        taken.ok_or(super::BROKEN)
    }
}

fn zstd() -> CCtx<'static> {
    let mut state = CCtx::create();
    for parameter in [CParameter::CompressionLevel(ZSTD_LEVEL), CParameter::WindowLog(ZSTD_WINDOW_BITS)] {
        state.set_parameter(parameter).expect("both are within the format's bounds");
    }
    state
}

fn take_gzip(state: &mut Compress, mut data: &[u8], flush: Flush, coded: &mut Vec<u8>) -> Option<()> {
    let wanted = match flush {
        Flush::Nothing => FlushCompress::None,
        Flush::Readable => FlushCompress::Sync,
        Flush::End => FlushCompress::Finish,
    };
    loop {
        coded.reserve(WRITE);
        let before = state.total_in();
        let status = state.compress_vec(data, coded, wanted).ok()?;
        data = data.get(usize::try_from(state.total_in() - before).ok()?..)?;
        let has_ended = match flush {
            Flush::End => status == Status::StreamEnd,
            _ => data.is_empty() && coded.len() < coded.capacity(),
        };
        if has_ended {
            return Some(());
        }
    }
}

fn take_zstd(state: &mut CCtx<'static>, mut data: &[u8], flush: Flush, coded: &mut Vec<u8>) -> Option<()> {
    let wanted = match flush {
        Flush::Nothing => ZSTD_EndDirective::ZSTD_e_continue,
        Flush::Readable => ZSTD_EndDirective::ZSTD_e_flush,
        Flush::End => ZSTD_EndDirective::ZSTD_e_end,
    };
    loop {
        coded.reserve(WRITE);
        let (mut input, from) = (InBuffer::around(data), coded.len());
        let mut output = OutBuffer::around_pos(coded, from);
        let left = state.compress_stream2(&mut output, &mut input, wanted).ok()?;
        data = data.get(input.pos()..)?;
        if data.is_empty() && (flush == Flush::Nothing || left == 0) {
            return Some(());
        }
    }
}

fn take_brotli(
    state: &mut Option<Box<CompressorWriter<Vec<u8>>>>,
    data: &[u8],
    flush: Flush,
    coded: &mut Vec<u8>,
) -> Option<()> {
    let writer = state.as_mut()?;
    writer.write_all(data).ok()?;
    match flush {
        Flush::Nothing => {}
        Flush::Readable => writer.flush().ok()?,
        Flush::End => {
            coded.append(&mut state.take()?.into_inner());
            return Some(());
        }
    }
    coded.append(writer.get_mut());
    Some(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    /// What of it can be read.
    fn read(coding: Coding, coded: &[u8]) -> Vec<u8> {
        let (mut out, mut piece) = (Vec::new(), vec![0; 4096]);
        match coding {
            // An end that is missing is an error behind everything that came.
            Coding::Gzip => drop(flate2::read::GzDecoder::new(coded).read_to_end(&mut out)),
            Coding::Brotli => drop(brotli::Decompressor::new(coded, 4096).read_to_end(&mut out)),
            Coding::Zstd => {
                let (mut state, mut input) = (zstd_safe::DCtx::create(), InBuffer::around(coded));
                loop {
                    let mut output = OutBuffer::around(&mut piece[..]);
                    state.decompress_stream(&mut output, &mut input).expect("it is zstd");
                    if output.as_slice().is_empty() {
                        break;
                    }
                    out.extend_from_slice(output.as_slice());
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn what_comes_out_is_what_went_in_however_it_is_cut(
            pieces in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..3000), 1usize..20, any::<bool>()),
                0..8,
            ),
        ) {
            let encoders = Encoders::default();
            // The second body comes by the same encoder, where that is possible.
            for coding in Coding::ALL.into_iter().flat_map(|coding| [coding; 2]) {
                let (mut lent, mut body, mut sent) = (encoders.lend(coding), Vec::new(), Vec::new());
                for (bytes, times, flush) in &pieces {
                    let bytes = bytes.repeat(*times);
                    body.extend_from_slice(&bytes);
                    lent.encoder().take(&bytes, Flush::Nothing).expect("it takes everything");
                    if *flush {
                        lent.encoder().take(&[], Flush::Readable).expect("it flushes");
                        sent.append(&mut lent.encoder().coded);
                        prop_assert_eq!(read(coding, &sent), &body[..], "{:?} keeps something back", coding);
                    }
                }
                lent.encoder().take(&[], Flush::End).expect("it ends");
                sent.append(&mut lent.encoder().coded);
                prop_assert_eq!(read(coding, &sent), body, "by {:?}", coding);
            }
        }
    }

    #[test]
    fn encoders_are_bounded_and_used_again() {
        let encoders = Encoders::default();
        for coding in Coding::ALL {
            let all: Vec<_> = (0..AT_ONCE[coding as usize]).map(|_| encoders.lend(coding)).collect();
            assert!(!encoders.has_room(coding), "one more body would be compressed at once by {coding:?}");
            drop(all);
            assert!(encoders.has_room(coding));
            assert_eq!(encoders.idle.borrow()[coding as usize].len(), KEPT[coding as usize], "of {coding:?}");
        }
    }
}
