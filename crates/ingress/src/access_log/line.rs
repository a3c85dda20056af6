//! How a line of the access log looks: JSON, or the combined format that readers of logs know.
//!
//! Neither holds a query, a cookie or a credential, for those may be secrets; of the page that a client came from the
//! query is left out, too.

use std::net::IpAddr;
use std::time::Duration;

use super::Record;
use crate::config::LogFormat;
use crate::fields::header;
use crate::head::{Request, Version, push, push_display, push_number};

/// One request.
pub(super) struct Entry<'r> {
    pub client: IpAddr,
    pub request: &'r Request,
    pub head: &'r [u8],
    pub record: &'r Record,
    /// The part of the requests that is written.
    pub sample: f64,
}

/// A second, as `strftime` has it.
pub(super) fn second(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Json => "%Y-%m-%dT%H:%M:%S.",
        LogFormat::Combined => "%d/%b/%Y:%H:%M:%S +0000",
    }
}

/// So many lines could not be written.
pub(super) fn of_dropped(format: LogFormat, lines: u64) -> String {
    let now = jiff::Timestamp::now();
    match format {
        LogFormat::Json => format!("{{\"time\":\"{now:.3}\",\"dropped_lines\":{lines}}}\n"),
        LogFormat::Combined => {
            let now = now.strftime(second(format));
            format!("- - - [{now}] \"-\" 0 0 \"-\" \"rung: {lines} lines dropped\"\n")
        }
    }
}

impl Entry<'_> {
    pub(super) fn push_json(&self, lines: &mut Vec<u8>, time: impl FnOnce(&mut Vec<u8>)) {
        let Self { client, request, record, .. } = self;
        lines.extend_from_slice(b"{\"time\":\"");
        time(lines);
        push(lines, &[b"\",\"id\":\"", request.id.as_bytes(), b"\",\"trace\":\"", request.trace.as_bytes()]);
        lines.extend_from_slice(b"\",\"client\":\"");
        push_display(lines, client);
        push(
            lines,
            &[b"\",\"method\":\"", request.method.as_bytes(), b"\",\"host\":\"", request.host.as_bytes()],
        );
        lines.extend_from_slice(b"\",\"path\":\"");
        push_escaped(lines, &request.path);
        lines.extend_from_slice(b"\",\"status\":");
        push_number(lines, u64::from(record.status));
        lines.extend_from_slice(b",\"bytes\":");
        push_number(lines, record.bytes);
        lines.extend_from_slice(b",\"duration_ms\":");
        push_millis(lines, record.started.map(|started| started.elapsed()).unwrap_or_default());
        if let Some(instance) = &record.instance {
            push(lines, &[b",\"app\":\"", instance.service.app.as_bytes(), b"\",\"service\":\""]);
            push(
                lines,
                &[instance.service.name.as_bytes(), b"\",\"instance\":\"", instance.id.as_str().as_bytes()],
            );
            lines.extend_from_slice(b"\",\"upstream_ms\":");
            push_millis(lines, record.upstream);
        }
        if record.retries > 0 {
            lines.extend_from_slice(b",\"retries\":");
            push_number(lines, u64::from(record.retries));
        }
        if let Some(error) = record.error {
            push(lines, &[b",\"error\":\"", error.as_bytes(), b"\""]);
        }
        if self.sample < 1.0 && !record.went_wrong() {
            push(lines, &[b",\"sample\":", self.sample.to_string().as_bytes()]);
        }
        lines.extend_from_slice(b"}\n");
    }

    pub(super) fn push_combined<T>(&self, lines: &mut Vec<u8>, second: impl FnOnce(&mut Vec<u8>) -> T) {
        let Self { client, request, record, .. } = self;
        push_display(lines, client);
        lines.extend_from_slice(b" - - [");
        second(lines);
        lines.extend_from_slice(b"] \"");
        if request.method.is_empty() {
            lines.push(b'-');
        } else {
            push_plain(lines, request.method.as_bytes());
            lines.push(b' ');
            push_plain(lines, request.path.as_bytes());
            lines.extend_from_slice(match request.version {
                Version::Http10 => b" HTTP/1.0",
                Version::Http11 => b" HTTP/1.1",
                Version::Http2 => b" HTTP/2.0",
            });
        }
        lines.extend_from_slice(b"\" ");
        push_number(lines, u64::from(record.status));
        lines.push(b' ');
        push_number(lines, record.bytes);
        let from =
            header(self.head, "referer").and_then(|from| from.split(|byte| b"?#".contains(byte)).next());
        for value in [from, header(self.head, "user-agent")] {
            lines.extend_from_slice(b" \"");
            push_plain(lines, value.filter(|value| !value.is_empty()).unwrap_or(b"-"));
            lines.push(b'"');
        }
        lines.push(b'\n');
    }
}

/// What could end a field or a line, or move a terminal, as nginx writes it.
fn push_plain(lines: &mut Vec<u8>, text: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => {
                let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
                lines.extend_from_slice(&[b'\\', b'x', high, low]);
            }
            byte => lines.push(*byte),
        }
    }
}

/// Paths are visible ASCII; two of those mean something in JSON.
fn push_escaped(lines: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            lines.push(b'\\');
        }
        lines.push(byte);
    }
}

fn push_millis(lines: &mut Vec<u8>, time: Duration) {
    let micros = time.as_micros() as u64;
    push_number(lines, micros / 1000);
    lines.push(b'.');
    lines.extend([100, 10, 1].map(|place| b'0' + (micros / place % 10) as u8));
}
