//! A checksum in every row: SQLite checks its structure, but not whether a value is still what was written.

/// FNV-1a: against decay, not against an adversary. A dozen lines, and faster than the disk.
pub struct Checksum(u64);

impl Checksum {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Lengths are covered, so that bytes do not move from one field to the next.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self.number(bytes.len() as u64), |sum, &b| sum.byte(b))
    }

    #[must_use]
    pub fn number(self, number: u64) -> Self {
        number.to_be_bytes().into_iter().fold(self, Self::byte)
    }

    fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// As SQLite's integers are: the same 64 bits, signed.
    pub fn finish(self) -> i64 {
        self.0.cast_signed()
    }
}
