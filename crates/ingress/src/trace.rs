//! W3C trace context: passed on as it came when it is well-formed, started here when it is not or when there is none.
//!
//! Nothing is recorded here but the trace's id in the access log, so the parent that came stays the parent. One that is
//! started says "recorded": whoever samples by its parent would record nothing at all otherwise.

use crate::head::push;

const TRACE_ID: usize = 32;
const SPAN_ID: usize = 16;
/// `00-<trace>-<span>-<flags>`.
const LENGTH: usize = 3 + TRACE_ID + 1 + SPAN_ID + 3;

/// What a request's head says of its trace, while it is read.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) enum Said<'h> {
    #[default]
    Nothing,
    /// Its id.
    Once(&'h [u8]),
    /// Malformed, or said twice: nobody could tell which holds.
    Nonsense,
}

impl<'h> Said<'h> {
    pub(crate) fn take(&mut self, value: &'h [u8]) {
        *self = match self {
            Self::Nothing => trace_id(value).map_or(Self::Nonsense, Self::Once),
            Self::Once(_) | Self::Nonsense => Self::Nonsense,
        };
    }

    pub(crate) fn is_passed_on(self) -> bool {
        matches!(self, Self::Once(_))
    }

    /// The trace's id: what came, or a fresh one.
    pub(crate) fn id(self, out: &mut String) {
        match self {
            Self::Once(id) => out.extend(id.iter().map(|digit| char::from(*digit))),
            Self::Nothing | Self::Nonsense => push_hex(out, fastrand::u128(1..), TRACE_ID),
        }
    }
}

/// Appends the header of a trace that begins here.
pub(crate) fn start(out: &mut Vec<u8>, id: &str) {
    let mut span = String::with_capacity(SPAN_ID);
    push_hex(&mut span, u128::from(fastrand::u64(1..)), SPAN_ID);
    push(out, &[b"traceparent: 00-", id.as_bytes(), b"-", span.as_bytes(), b"-01\r\n"]);
}

fn push_hex(out: &mut String, number: u128, digits: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend((0..digits).rev().map(|at| char::from(DIGITS[(number >> (4 * at)) as usize & 15])));
}

fn trace_id(value: &[u8]) -> Option<&[u8]> {
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    // Later versions may say more behind; version 255 is none.
    let (head, rest) = value.split_at_checked(LENGTH)?;
    let version = &head[..2];
    let is_long = !rest.is_empty();
    if version == b"ff" || (is_long && (version == b"00" || rest[0] != b'-')) {
        return None;
    }
    let (id, span, flags) = (&head[3..3 + TRACE_ID], &head[36..36 + SPAN_ID], &head[53..]);
    let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
    let digits = is_hex(version) && is_hex(id) && is_hex(span) && is_hex(flags);
    (dashes && digits && !is_zero(id) && !is_zero(span)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_well_formed_context_is_known_by_its_trace() {
        assert_eq!(trace_id(GOOD.as_bytes()), Some(&GOOD.as_bytes()[3..35]));
        let later = format!("01{}-more", &GOOD[2..]);
        assert!(trace_id(later.as_bytes()).is_some(), "a later version says more");
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            GOOD.replace('-', "_"),
            format!("{GOOD}-more"),
            format!("ff{}", &GOOD[2..]),
            GOOD[..GOOD.len() - 1].to_owned(),
        ] {
            assert_eq!(trace_id(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_is_said_twice_counts_as_unsaid_and_a_fresh_trace_is_well_formed() {
        let mut said = Said::default();
        said.take(GOOD.as_bytes());
        assert!(said.is_passed_on());
        said.take(GOOD.as_bytes());
        assert!(!said.is_passed_on());
        let mut id = String::new();
        said.id(&mut id);
        let mut line = Vec::new();
        start(&mut line, &id);
        let value = line.strip_prefix(b"traceparent: ").and_then(|line| line.strip_suffix(b"\r\n")).unwrap();
        assert_eq!(trace_id(value), Some(id.as_bytes()));
    }
}
