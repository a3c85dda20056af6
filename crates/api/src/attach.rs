//! The frames of an attached run: its terminal, or its plain input and output.
//!
//! After an HTTP upgrade to [`PROTOCOL`] both sides send frames: one byte of type, four bytes of length (big endian),
//! the payload. The same bytes flow between CLI, server, agent and shim; those between pass them on unread.

use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, sink, split};

/// The protocol named in the `Upgrade` header.
pub const PROTOCOL: &str = "rung-attach";

/// A frame's payload is never longer; whoever sends a longer one is not speaking this protocol.
pub const PAYLOAD_MAX: usize = 1024 * 1024;

const HEAD: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// To the process.
    Stdin(Vec<u8>),
    /// From the process; a terminal's whole output comes as this.
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The size of the person's terminal.
    Resize {
        rows: u16,
        columns: u16,
    },
    /// The last frame from the process: its exit code, or 128 and the signal that ended it.
    Exit(i32),
    /// Nothing more comes to the process's input.
    StdinEof,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of an attached run has {0} bytes; at most {PAYLOAD_MAX} are allowed")]
    TooLong(usize),
    #[error("frame of an attached run has a payload of {length} bytes, which type {kind} does not have")]
    WrongLength { kind: u8, length: usize },
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        out
    }

    pub fn encode_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stdin(bytes) => frame(out, 0, bytes),
            Self::Stdout(bytes) => frame(out, 1, bytes),
            Self::Stderr(bytes) => frame(out, 2, bytes),
            Self::Resize { rows, columns } => {
                let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
                frame(out, 3, &[a, b, c, d]);
            }
            Self::Exit(code) => frame(out, 4, &code.to_be_bytes()),
            Self::StdinEof => frame(out, 5, &[]),
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("payloads are cut below PAYLOAD_MAX");
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Whoever has heard the last of a run closes its connection; so long it is waited for.
const FAREWELL: Duration = Duration::from_secs(2);

/// Passes frames on unread, until the run's side has said its last or nobody listens any more. A run that takes no input
/// is no end: it has ended, and what it printed is still on its way.
pub async fn pass_on<P, R>(person: P, run: R)
where
    P: AsyncRead + AsyncWrite,
    R: AsyncRead + AsyncWrite,
{
    let (mut from_person, mut to_person) = split(person);
    let (mut from_run, mut to_run) = split(run);
    let mut input = pin!(async {
        let _ = copy(&mut from_person, &mut to_run).await;
        let _ = to_run.shutdown().await;
        // A connection that is closed with something unread takes what was written last along.
        let _ = copy(&mut from_person, &mut sink()).await;
    });
    let mut output = pin!(async {
        let _ = copy(&mut from_run, &mut to_person).await;
        let _ = to_person.shutdown().await;
    });
    tokio::select! {
        () = &mut output => drop(tokio::time::timeout(FAREWELL, input).await),
        () = &mut input => output.await,
    }
}

/// Cuts frames out of chunks as they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes a chunk and returns the frames that it completes. Frames of an unknown type are passed over: a newer
    /// side may send them.
    ///
    /// # Errors
    /// The other side does not speak this protocol; the connection is of no use any more.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<Frame>, FrameError> {
        self.buffer.extend_from_slice(chunk);
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(head) = self.buffer.get(at..at + HEAD) {
            let kind = head[0];
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > PAYLOAD_MAX {
                return Err(FrameError::TooLong(length));
            }
            let Some(payload) = self.buffer.get(at + HEAD..at + HEAD + length) else { break };
            frames.extend(parse(kind, payload)?);
            at += HEAD + length;
        }
        self.buffer.drain(..at);
        Ok(frames)
    }
}

fn parse(kind: u8, payload: &[u8]) -> Result<Option<Frame>, FrameError> {
    let wrong = || FrameError::WrongLength { kind, length: payload.len() };
    Ok(Some(match kind {
        0 => Frame::Stdin(payload.to_vec()),
        1 => Frame::Stdout(payload.to_vec()),
        2 => Frame::Stderr(payload.to_vec()),
        3 => {
            let &[a, b, c, d] = payload else { return Err(wrong()) };
            Frame::Resize { rows: u16::from_be_bytes([a, b]), columns: u16::from_be_bytes([c, d]) }
        }
        4 => Frame::Exit(i32::from_be_bytes(payload.try_into().map_err(|_| wrong())?)),
        5 => Frame::StdinEof,
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_however_they_were_cut() {
        let frames = vec![
            Frame::Stdin(b"ls\n".to_vec()),
            Frame::Resize { rows: 24, columns: 80 },
            Frame::Stdout(vec![0; 300]),
            Frame::StdinEof,
            Frame::Exit(-1),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in [1, 4, 7, 1000] {
            let mut decoder = Decoder::default();
            let got: Vec<Frame> = bytes.chunks(size).flat_map(|c| decoder.push(c).unwrap()).collect();
            assert_eq!(got, frames, "cut into chunks of {size}");
        }
    }

    #[test]
    fn a_stream_that_is_something_else_is_refused_and_an_unknown_frame_is_passed_over() {
        assert!(Decoder::default().push(b"HTTP/1.1 200 OK").is_err());
        let mut bytes = vec![99, 0, 0, 0, 1, 7];
        bytes.extend(Frame::StdinEof.encode());
        assert_eq!(Decoder::default().push(&bytes), Ok(vec![Frame::StdinEof]));
    }

    #[tokio::test]
    async fn the_last_words_of_a_run_arrive_also_when_it_takes_no_input_any_more() {
        let (mut person, by_person) = tokio::net::UnixStream::pair().unwrap();
        let (mut run, by_run) = tokio::net::UnixStream::pair().unwrap();
        let words = vec![Frame::Stdout(vec![b'x'; 100_000]), Frame::Exit(0)];
        let said: Vec<u8> = words.iter().flat_map(Frame::encode).collect();
        run.write_all(&said).await.unwrap();
        // Ended, with its output in the connection and input on its way to it.
        drop(run);
        person.write_all(&Frame::StdinEof.encode()).await.unwrap();
        let passing = tokio::spawn(pass_on(by_person, by_run));
        let mut heard = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut person, &mut heard).await.unwrap();
        assert_eq!(Decoder::default().push(&heard).unwrap(), words);
        drop(person);
        passing.await.unwrap();
    }

    #[tokio::test]
    async fn a_run_hears_that_its_person_has_gone() {
        let (person, by_person) = tokio::io::duplex(64);
        let (mut run, by_run) = tokio::io::duplex(64);
        drop(person);
        let passing = tokio::spawn(pass_on(by_person, by_run));
        let mut heard = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut run, &mut heard).await.unwrap();
        drop(run);
        passing.await.unwrap();
    }
}
