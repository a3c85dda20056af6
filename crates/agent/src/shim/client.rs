//! One connection to a shim: lines of requests at first, perhaps frames later.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rung_api::attach::{Decoder, Frame};

use crate::shim::protocol::{Request, Response};

/// A client that does not read gets no more than this; output waits for an attached one, others are dropped.
pub const PENDING_MAX: usize = 256 * 1024;
/// Requests are short; whoever sends a longer line is not an agent.
const LINE_MAX: usize = 1024 * 1024;

#[derive(Debug)]
pub enum Mode {
    Requests,
    /// Wants to hear of the end.
    Waiting,
    Attached(Decoder),
}

#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    pub mode: Mode,
    input: Vec<u8>,
    output: Vec<u8>,
    pub open: bool,
    /// It has heard of the end.
    pub told_end: bool,
}

/// What a client wants.
#[derive(Debug)]
pub enum Wish {
    Request(Request),
    Frame(Frame),
}

impl Client {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (input, output) = (Vec::new(), Vec::new());
        Ok(Self { stream, mode: Mode::Requests, input, output, open: true, told_end: false })
    }

    pub fn is_attached(&self) -> bool {
        matches!(self.mode, Mode::Attached(_))
    }

    pub fn pending(&self) -> usize {
        self.output.len()
    }

    pub fn answer(&mut self, response: &Response) {
        serde_json::to_writer(&mut self.output, response).expect("responses serialize into memory");
        self.output.push(b'\n');
        self.flush();
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.output.extend_from_slice(frame);
        self.flush();
    }

    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.open = false;
                    self.output.clear();
                }
            }
        }
    }

    /// Reads what is there.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Vec<Wish> {
        match self.stream.read(buffer) {
            Ok(0) => self.open = false,
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.open = false,
        }
        let wishes = self.next_wishes();
        if self.input.len() > LINE_MAX {
            self.open = false;
        }
        wishes
    }

    /// The wishes among the bytes that were read. After `attach` the rest is frames.
    fn next_wishes(&mut self) -> Vec<Wish> {
        if let Mode::Attached(decoder) = &mut self.mode {
            let input = std::mem::take(&mut self.input);
            return match decoder.push(&input) {
                Ok(frames) => frames.into_iter().map(Wish::Frame).collect(),
                Err(_) => {
                    self.open = false;
                    Vec::new()
                }
            };
        }
        let mut wishes = Vec::new();
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => {
                    let attach = matches!(request, Request::Attach);
                    wishes.push(Wish::Request(request));
                    if attach {
                        break;
                    }
                }
                Err(error) => self.answer(&Response::Refused { reason: format!("not understood: {error}") }),
            }
        }
        wishes
    }

    /// From now on frames; answers those that came along with the request.
    pub fn become_attached(&mut self) -> Vec<Wish> {
        self.mode = Mode::Attached(Decoder::default());
        self.next_wishes()
    }
}
