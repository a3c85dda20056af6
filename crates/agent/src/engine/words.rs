//! How queries and credentials are written in requests to the engine.

use std::fmt::Write;

/// `?a=1&b=x%20y`.
#[derive(Debug, Default)]
pub struct Query(String);

impl Query {
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                self.0.push(byte.into());
            } else {
                write!(self.0, "%{byte:02X}").expect("writing to a string succeeds");
            }
        }
        self
    }

    /// Behind the path that it belongs to.
    pub fn on(self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

/// As the engine wants credentials in a header (RFC 4648, the alphabet of URLs, padded).
pub fn base64_url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = (at(0) << 16) | (at(1) << 8) | at(2);
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit)) & 63;
            let is_padding = digit as usize > chunk.len();
            text.push(if is_padding { '=' } else { DIGITS[value as usize].into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let query = Query::default().with("fromImage", "a.b:1/shop").with("filters", "{\"x\"}");
        assert_eq!(query.on("/images"), "/images?fromImage=a.b%3A1%2Fshop&filters=%7B%22x%22%7D");
    }

    #[test]
    fn credentials_are_written_as_the_standard_has_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64_url(bytes.as_bytes()), text);
        }
        assert_eq!(base64_url(&[0xff, 0xff, 0xfe]), "___-");
    }
}
