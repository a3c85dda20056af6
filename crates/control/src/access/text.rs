//! The token itself: `rung_<name>_<secret>`. Its name finds it, its secret proves it; scanners for leaked credentials
//! know it by its beginning.

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rung_model::TokenName;

const PREFIX: &str = "rung_";
const SECRET_BYTES: usize = 32;

/// A token as it is shown once and sent with each request.
pub(crate) struct TokenText {
    name: TokenName,
    secret: String,
}

impl TokenText {
    pub fn generate(name: TokenName) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
        Self { name, secret: hex::encode(bytes) }
    }

    pub fn parse(text: &str) -> Option<Self> {
        // Names have no underscore.
        let (name, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        Some(Self { name: TokenName::new(name).ok()?, secret: secret.to_owned() })
    }

    pub fn name(&self) -> &TokenName {
        &self.name
    }

    /// What is stored of it.
    pub fn hash(&self) -> String {
        hex::encode(hash(&self.secret))
    }

    /// Whether this is the token whose hash was stored.
    pub fn proves(&self, stored: &str) -> bool {
        is_equal(self.hash().as_bytes(), stored.as_bytes())
    }

    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.name, self.secret)
    }
}

pub(super) fn hash(text: &str) -> [u8; 32] {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// In a time that depends on the lengths only, so that nothing can be guessed byte by byte.
pub(crate) fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_proved_by_its_whole_secret_and_by_nothing_else() {
        let name = TokenName::new("ci-shop").unwrap();
        let made = TokenText::generate(name.clone());
        let text = made.reveal();
        let read = TokenText::parse(&text).unwrap();
        assert_eq!(read.name(), &name);
        assert!(read.proves(&made.hash()), "the token does not prove itself");
        assert!(!made.hash().contains(&made.secret), "the secret is stored");
        assert!(!TokenText::parse(&text[..text.len() - 1]).unwrap().proves(&made.hash()));
        assert!(!TokenText::generate(name).proves(&made.hash()), "two tokens are the same");
        for wrong in ["", "rung_", "rung_ci", "ci_00", "rung_CI_00"] {
            assert!(TokenText::parse(wrong).is_none(), "{wrong:?} was taken for a token");
        }
    }

    #[test]
    fn texts_are_equal_only_when_every_byte_is() {
        assert!(is_equal(b"abc", b"abc"));
        assert!(!is_equal(b"abc", b"abd"));
        assert!(!is_equal(b"abc", b"ab"));
    }
}
