//! A log's record: one line of text that is safe to show, whatever the application wrote.
//!
//! `1763757600123456 o. listening on 20017`: microseconds since 1970, the stream (`o`, `e`, or `r` for Rung's own
//! words), `.` or `+` (the line goes on in the next record), a space, the escaped text.

use std::fmt::Write;

use rung_api::wire::Stream;

/// Longer lines are cut into partial records: memory stays bounded, and nothing is lost.
pub const RECORD_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    Partial,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub micros: i64,
    pub stream: Stream,
    pub end: End,
    pub text: String,
}

/// Appends one record.
pub fn encode(out: &mut Vec<u8>, micros: i64, stream: Stream, end: End, line: &[u8]) {
    let mut head = String::with_capacity(24);
    let stream = match stream {
        Stream::Stdout => 'o',
        Stream::Stderr => 'e',
        Stream::Rung => 'r',
    };
    let end = if end == End::Partial { '+' } else { '.' };
    write!(head, "{micros} {stream}{end} ").expect("writing to a string succeeds");
    out.extend_from_slice(head.as_bytes());
    escape(out, line);
    out.push(b'\n');
}

/// A record as it was written; `None` for a torn or foreign line.
pub fn decode(line: &[u8]) -> Option<Record> {
    let line = std::str::from_utf8(line).ok()?;
    let (micros, rest) = line.split_once(' ')?;
    let (kind, text) = rest.split_once(' ')?;
    let stream = match kind.as_bytes().first()? {
        b'o' => Stream::Stdout,
        b'e' => Stream::Stderr,
        b'r' => Stream::Rung,
        _ => return None,
    };
    let end = if kind.ends_with('+') { End::Partial } else { End::Whole };
    Some(Record { micros: micros.parse().ok()?, stream, end, text: text.to_owned() })
}

/// Bytes that are not UTF-8 and control characters (but tabs) become `\xNN`.
fn escape(out: &mut Vec<u8>, line: &[u8]) {
    for chunk in line.utf8_chunks() {
        let text = chunk.valid().as_bytes();
        let mut from = 0;
        for (at, &byte) in text.iter().enumerate() {
            if (byte < 0x20 && byte != b'\t') || byte == 0x7f {
                out.extend_from_slice(&text[from..at]);
                push_hex(out, byte);
                from = at + 1;
            }
        }
        out.extend_from_slice(&text[from..]);
        for &byte in chunk.invalid() {
            push_hex(out, byte);
        }
    }
}

fn push_hex(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_application_writes_is_one_line_of_text() {
        let mut out = Vec::new();
        encode(&mut out, 12, Stream::Stderr, End::Partial, b"a\x1b[31m\xff\tz\0");
        assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1);
        let record = decode(out.trim_ascii_end()).unwrap();
        assert_eq!(
            record,
            Record {
                micros: 12,
                stream: Stream::Stderr,
                end: End::Partial,
                text: "a\\x1b[31m\\xff\tz\\x00".into()
            }
        );
        assert_eq!(decode(b"torn"), None);
    }
}
