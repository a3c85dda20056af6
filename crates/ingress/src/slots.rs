//! Maps by the slot of an instance.
//!
//! Slots are counted up from one by this process: they need no hash that withstands an attacker, and looking one up is
//! on every request's way, three times.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

pub(crate) type SlotMap<T> = HashMap<u64, T, BuildHasherDefault<SlotHasher>>;
pub(crate) type SlotSet = HashSet<u64, BuildHasherDefault<SlotHasher>>;

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SlotHasher(u64);

impl Hasher for SlotHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, slot: u64) {
        // Spreads neighbours over all bits: tables look at the highest ones too.
        self.0 = slot.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }
}
