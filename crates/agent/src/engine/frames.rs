//! What a container prints, as the engine sends it: each piece behind a head of eight bytes that says which stream it
//! is of. A container with a terminal has one stream, and sends it bare.

use rung_api::wire::Stream;

const HEAD: usize = 8;

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub stream: Stream,
    pub bytes: Vec<u8>,
}

/// Cuts pieces out of chunks as they arrive.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// The pieces that are complete with this chunk.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Piece> {
        self.buffer.extend_from_slice(chunk);
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(head) = self.buffer.get(at..at + HEAD) {
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let stream = if head[0] == 2 { Stream::Stderr } else { Stream::Stdout };
            let Some(bytes) = self.buffer.get(at + HEAD..at + HEAD + length) else { break };
            pieces.push(Piece { stream, bytes: bytes.to_vec() });
            at += HEAD + length;
        }
        self.buffer.drain(..at);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_arrive_whole_however_they_were_cut() {
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 3];
        bytes.extend(b"out");
        bytes.extend([2, 0, 0, 0, 0, 0, 0, 5]);
        bytes.extend(b"error");
        for size in [1, 3, 9, 100] {
            let mut frames = Frames::default();
            let pieces: Vec<Piece> = bytes.chunks(size).flat_map(|chunk| frames.push(chunk)).collect();
            let expected = [
                Piece { stream: Stream::Stdout, bytes: b"out".to_vec() },
                Piece { stream: Stream::Stderr, bytes: b"error".to_vec() },
            ];
            assert_eq!(pieces, expected, "cut into chunks of {size}");
        }
    }
}
