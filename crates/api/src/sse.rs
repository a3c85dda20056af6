//! Server-sent events: the little of the format that Rung speaks (one `data:` line of JSON an event).
//!
//! A stream says how it ends: `event: end` when nothing is missing, `event: error` when something is. One that just
//! stops has broken off, however orderly its connection was closed: a task that died closes it in order, too.

use serde::Serialize;

use crate::error::ErrorBody;

/// What a stream is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<T> {
    Item(T),
    /// All that was asked for has been said.
    End,
    /// What is missing, and why. Nothing comes after it.
    Failed(ErrorBody),
}

impl<T: Serialize> Message<T> {
    /// The message as it travels.
    pub fn encode(&self) -> String {
        match self {
            Self::Item(item) => encode(&serde_json::to_string(item).expect("wire types serialize")),
            Self::End => "event: end\ndata: {}\n\n".to_owned(),
            Self::Failed(body) => {
                format!(
                    "event: error\n{}",
                    encode(&serde_json::to_string(body).expect("wire types serialize"))
                )
            }
        }
    }
}

/// Encodes one item. JSON has no raw line ends, so one `data:` line is enough.
pub fn encode(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// Cuts messages out of chunks as they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    kind: Kind,
}

/// Of the event whose lines are being read. Kinds that this version does not know are passed over.
#[derive(Debug, Default, Clone, Copy)]
enum Kind {
    #[default]
    Item,
    End,
    Error,
    Unknown,
}

impl Decoder {
    /// Takes a chunk and returns every message that it completes, items as their JSON. Comments (`:` keep-alives) are
    /// passed over.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Message<String>> {
        self.buffer.extend_from_slice(chunk);
        let mut messages = Vec::new();
        let mut from = 0;
        while let Some(length) = self.buffer[from..].iter().position(|&b| b == b'\n') {
            let line = String::from_utf8_lossy(&self.buffer[from..from + length]).into_owned();
            from += length + 1;
            messages.extend(self.take(line.trim_end()));
        }
        self.buffer.drain(..from);
        messages
    }

    fn take(&mut self, line: &str) -> Option<Message<String>> {
        if line.is_empty() {
            self.kind = Kind::Item;
        } else if let Some(kind) = line.strip_prefix("event: ") {
            self.kind = match kind {
                "end" => Kind::End,
                "error" => Kind::Error,
                _ => Kind::Unknown,
            };
        } else if let Some(data) = line.strip_prefix("data: ") {
            return match self.kind {
                Kind::Item => Some(Message::Item(data.to_owned())),
                Kind::End => Some(Message::End),
                Kind::Error => Some(Message::Failed(failure(data))),
                Kind::Unknown => None,
            };
        }
        None
    }
}

/// Also what nobody understands is a failure.
fn failure(json: &str) -> ErrorBody {
    serde_json::from_slice(json.as_bytes()).unwrap_or_else(|_| ErrorBody::new(crate::Code::Internal, json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn messages_arrive_whole_however_they_were_cut() {
        let missing = ErrorBody::new(Code::Unavailable, "node n1 can't be asked");
        let said = [
            Message::Item(serde_json::json!({"a": 1})),
            Message::Item(serde_json::json!({"b": "two\nlines"})),
            Message::Failed(missing.clone()),
            Message::End,
        ];
        let mut stream: String = said.iter().map(Message::encode).collect();
        stream.insert_str(0, ": keep-alive\n\nevent: of-the-future\ndata: {}\n\n");
        for size in [1, 3, 1000] {
            let mut decoder = Decoder::default();
            let heard: Vec<_> =
                stream.as_bytes().chunks(size).flat_map(|chunk| decoder.push(chunk)).collect();
            let items = ["{\"a\":1}", "{\"b\":\"two\\nlines\"}"].map(|json| Message::Item(json.to_owned()));
            let expected: Vec<_> =
                items.into_iter().chain([Message::Failed(missing.clone()), Message::End]).collect();
            assert_eq!(heard, expected, "in pieces of {size} bytes");
        }
    }
}
