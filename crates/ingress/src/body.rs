//! Body framing: where a body ends, strictly.
//!
//! A decoder never holds bytes. It is shown what has been read and says how much of it is framing, how much is
//! payload, and whether the body has ended.

/// How a body's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Of responses only: the connection's end is the body's.
    UntilClose,
}

/// What the next bytes are: `skip` of framing, then `data` of payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) skip: usize,
    pub(crate) data: usize,
    /// Nothing of this body follows.
    pub(crate) end: bool,
}

/// The bytes are not a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunked body is malformed: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Reads one body.
#[derive(Debug)]
pub(crate) enum Decoder {
    Ended,
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Ended,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(ChunkDecoder::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Whether the stream's end is this body's end.
    pub(crate) fn ends_with_stream(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// Looks at the next bytes; the caller takes `skip + data` of them away.
    pub(crate) fn next(&mut self, input: &[u8]) -> Result<Piece, Malformed> {
        let piece = match self {
            Self::Ended => Piece { skip: 0, data: 0, end: true },
            Self::UntilClose => Piece { skip: 0, data: input.len(), end: false },
            Self::Length(left) => {
                let data = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= data as u64;
                Piece { skip: 0, data, end: *left == 0 }
            }
            Self::Chunked(chunks) => chunks.next(input)?,
        };
        if piece.end {
            *self = Self::Ended;
        }
        Ok(piece)
    }
}

/// A size line is this long at most: 16 digits and room for an extension that will be dropped.
const LINE_MAX: usize = 256;
/// Trailers are dropped; so many bytes of them are read.
const TRAILERS_MAX: usize = 8 * 1024;

/// ```text
/// Size ─► (Extension ─►) SizeLf ─► Data ─► DataCr ─► DataLf ─► Size
///                           └─ 0 ─► TrailerStart ─► (Trailer ─► TrailerLf ─► TrailerStart) ─► EndLf
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

#[derive(Debug)]
pub(crate) struct ChunkDecoder {
    state: State,
    /// Of the chunk that is being read.
    left: u64,
    /// Digits of the size seen.
    digits: u8,
    /// Bytes of the size line, or of all trailers.
    line: usize,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Size, left: 0, digits: 0, line: 0 }
    }
}

impl ChunkDecoder {
    fn next(&mut self, input: &[u8]) -> Result<Piece, Malformed> {
        let mut at = 0;
        loop {
            if self.state == State::Data {
                let data = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len() - at);
                self.left -= data as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Piece { skip: at, data, end: false });
            }
            let Some(&byte) = input.get(at) else { return Ok(Piece { skip: at, data: 0, end: false }) };
            at += 1;
            if self.step(byte)? {
                return Ok(Piece { skip: at, data: 0, end: true });
            }
        }
    }

    /// Takes one byte of framing; true at the body's end.
    fn step(&mut self, byte: u8) -> Result<bool, Malformed> {
        match self.state {
            State::Size => self.size(byte)?,
            State::Extension => self.extension(byte)?,
            State::SizeLf => {
                expect(byte, b'\n', "a size line does not end with CR LF")?;
                self.line = 0;
                self.digits = 0;
                self.state = if self.left == 0 { State::TrailerStart } else { State::Data };
            }
            State::DataCr => {
                expect(byte, b'\r', "a chunk is longer than its size")?;
                self.state = State::DataLf;
            }
            State::DataLf => {
                expect(byte, b'\n', "a chunk is longer than its size")?;
                self.state = State::Size;
            }
            State::TrailerStart if byte == b'\r' => self.state = State::EndLf,
            State::TrailerStart | State::Trailer => self.trailer(byte)?,
            State::TrailerLf => {
                expect(byte, b'\n', "a trailer does not end with CR LF")?;
                self.state = State::TrailerStart;
            }
            State::EndLf => {
                expect(byte, b'\n', "the body does not end with CR LF")?;
                return Ok(true);
            }
            State::Data => unreachable!("payload is taken by `next`"),
        }
        Ok(false)
    }

    fn size(&mut self, byte: u8) -> Result<(), Malformed> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if self.digits > 0 => {
                self.state = State::SizeLf;
                return Ok(());
            }
            b';' if self.digits > 0 => {
                self.state = State::Extension;
                return Ok(());
            }
            _ => return Err(Malformed("a chunk's size is not a hexadecimal number")),
        };
        // 15 digits stay below 2^60: sizes never overflow, here or in any application's signed integer.
        if self.digits == 15 {
            return Err(Malformed("a chunk's size has more than 15 digits"));
        }
        if self.digits == 0 {
            self.left = 0;
        }
        self.digits += 1;
        self.left = self.left * 16 + u64::from(digit);
        Ok(())
    }

    fn extension(&mut self, byte: u8) -> Result<(), Malformed> {
        self.line += 1;
        match byte {
            b'\r' => self.state = State::SizeLf,
            b'\t' | b' '..=b'~' if self.line <= LINE_MAX => {}
            b'\t' | b' '..=b'~' => return Err(Malformed("a size line is too long")),
            _ => return Err(Malformed("a size line holds control characters")),
        }
        Ok(())
    }

    fn trailer(&mut self, byte: u8) -> Result<(), Malformed> {
        self.line += 1;
        if self.line > TRAILERS_MAX {
            return Err(Malformed("the trailers are too long"));
        }
        match byte {
            b'\r' => self.state = State::TrailerLf,
            b' ' | b'\t' if self.state == State::TrailerStart => {
                return Err(Malformed("a trailer starts with white space"));
            }
            b'\t' | b' '..=b'~' | 0x80.. => self.state = State::Trailer,
            _ => return Err(Malformed("a trailer holds control characters")),
        }
        Ok(())
    }
}

fn expect(byte: u8, expected: u8, why: &'static str) -> Result<(), Malformed> {
    if byte == expected { Ok(()) } else { Err(Malformed(why)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::fuzz::{decode, reference};

    proptest! {
        #[test]
        fn what_is_well_formed_is_read_the_same_however_it_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            extension in "(;[a-z]{1,5}(=[a-z0-9]{1,5})?)?",
            trailers in proptest::collection::vec("[A-Z][a-z]{0,5}: [a-z]{0,9}", 0..3),
            rest in proptest::collection::vec(any::<u8>(), 0..20),
            step in 1usize..64,
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n");
            for trailer in &trailers {
                input.extend_from_slice(format!("{trailer}\r\n").as_bytes());
            }
            input.extend_from_slice(b"\r\n");
            let length = input.len();
            input.extend_from_slice(&rest);
            prop_assert_eq!(decode(&input, step), Ok(Some((chunks.concat(), length))));
            prop_assert_eq!(reference(&input), Some((chunks.concat(), length)));
        }
    }

    #[test]
    fn strange_sizes_are_refused() {
        for bad in [
            "\r\n",
            ";x\r\n",
            " 5\r\n",
            "5 \r\n",
            "0x5\r\n",
            "-5\r\n",
            "+5\r\n",
            "5\n",
            "g\r\n",
            "1000000000000000\r\n",
            "ffffffffffffffff\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "0\r\n\n",
            "0\r\n x\r\n",
            "5;\u{1}\r\n",
            "5\rx",
        ] {
            assert!(decode(bad.as_bytes(), 3).is_err(), "{bad:?} was taken for a chunked body");
        }
    }
}
