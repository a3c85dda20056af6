//! The lines of a head that was composed here: `Name: value`, until the empty one.
//!
//! Looked at by what only some routes ask for; what every request needs was noted when it was read.

pub(crate) fn headers(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = head.split(|byte| *byte == b'\n').skip(1).map(<[u8]>::trim_ascii_end);
    lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

pub(crate) fn header<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    headers(head).find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

pub(crate) fn cookie<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    headers(head).filter(|(found, _)| found.eq_ignore_ascii_case(b"cookie")).find_map(|(_, value)| {
        value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).find_map(|pair| {
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
        })
    })
}
