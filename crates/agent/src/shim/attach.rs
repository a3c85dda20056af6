//! Input and output of an attached life: what is kept until somebody attaches, and what waits for the command.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rung_api::attach::Frame;
use rung_api::wire::Stream;

use crate::shim::client::PENDING_MAX;

#[derive(Debug, Default)]
pub struct Attachment {
    /// Frames of output from before the first attach.
    pub backlog: Vec<u8>,
    /// Input that the command has not taken yet.
    pending: VecDeque<u8>,
    eof: bool,
    pub was_attached: bool,
}

impl Attachment {
    pub fn wants_to_write(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    pub fn push_input(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    pub fn end_input(&mut self) {
        self.eof = true;
    }

    /// Writes what the command takes now; closes its input after the last byte when that was asked for.
    pub fn write(&mut self, input: &mut Option<OwnedFd>) {
        while let Some(fd) = input.as_ref() {
            let (front, _) = self.pending.as_slices();
            if front.is_empty() {
                break;
            }
            match nix::unistd::write(fd, front) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => *input = None,
            }
        }
        if input.is_none() {
            self.pending.clear();
        }
        if self.eof && self.pending.is_empty() {
            *input = None;
        }
    }
}

pub fn output_frame(stream: Stream, bytes: &[u8]) -> Vec<u8> {
    match stream {
        Stream::Stderr => Frame::Stderr(bytes.to_vec()),
        Stream::Stdout | Stream::Rung => Frame::Stdout(bytes.to_vec()),
    }
    .encode()
}
