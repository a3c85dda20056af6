//! Server-sent events: the little of the format that Rung speaks (one `data:` line of JSON an event).

/// Encodes one event. JSON has no raw line ends, so one `data:` line is enough.
pub fn encode(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// Cuts events out of chunks as they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes a chunk and returns the data of every event that it completes. Comments (`:` keep-alives) are passed over.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(chunk);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                events.push(String::from_utf8_lossy(data).trim_end().to_owned());
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_whole_however_they_were_cut() {
        let stream = format!("{}: keep-alive\n\n{}", encode("{\"a\":1}"), encode("{\"b\":2}"));
        let mut decoder = Decoder::default();
        let events: Vec<String> = stream.as_bytes().chunks(3).flat_map(|chunk| decoder.push(chunk)).collect();
        assert_eq!(events, ["{\"a\":1}", "{\"b\":2}"]);
    }
}
