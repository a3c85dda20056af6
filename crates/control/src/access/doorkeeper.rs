//! Counts wrong tokens by address, so that guessing has no speed. A machine without I/O: the caller brings the time.
//!
//! After [`WRONG_MAX`] wrong tokens within [`WINDOW`] an address is not listened to until the window is over. Tokens that
//! were right from that address before still are: whoever shares it with the guesser is not locked out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A person who mistypes needs a few; a script with an old token stops soon.
const WRONG_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// Addresses that are remembered at a time; with more, the one that was seen first is forgotten.
const ADDRESSES_MAX: usize = 10_000;
const KNOWN_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Open,
    Shut { wait: Duration },
}

#[derive(Debug, Default)]
pub struct Doorkeeper {
    visits: BTreeMap<IpAddr, Visits>,
}

#[derive(Debug)]
struct Visits {
    wrong: u32,
    /// When the first of them came.
    since: Instant,
    /// Hashes of tokens that were right from here.
    known: BTreeSet<[u8; 32]>,
}

impl Visits {
    fn door(&self, now: Instant) -> Door {
        let wait = WINDOW.saturating_sub(now.duration_since(self.since));
        if self.wrong >= WRONG_MAX && !wait.is_zero() { Door::Shut { wait } } else { Door::Open }
    }
}

impl Doorkeeper {
    /// Whether a token may be tried from there.
    pub fn door(&self, from: IpAddr, token: &[u8; 32], now: Instant) -> Door {
        match self.visits.get(&neighbourhood(from)) {
            Some(visits) if !visits.known.contains(token) => visits.door(now),
            _ => Door::Open,
        }
    }

    pub fn right(&mut self, from: IpAddr, token: [u8; 32], now: Instant) {
        let visits = self.visits_of(from, now);
        if visits.known.len() < KNOWN_MAX {
            visits.known.insert(token);
        }
    }

    /// Shut: this was the one too many.
    pub fn wrong(&mut self, from: IpAddr, now: Instant) -> Door {
        let visits = self.visits_of(from, now);
        if now.duration_since(visits.since) >= WINDOW {
            (visits.wrong, visits.since) = (0, now);
        }
        visits.wrong += 1;
        visits.door(now)
    }

    fn visits_of(&mut self, from: IpAddr, now: Instant) -> &mut Visits {
        let key = neighbourhood(from);
        if self.visits.len() >= ADDRESSES_MAX && !self.visits.contains_key(&key) {
            let oldest = self.visits.iter().min_by_key(|(_, visits)| visits.since).map(|(key, _)| *key);
            oldest.and_then(|oldest| self.visits.remove(&oldest));
        }
        self.visits.entry(key).or_insert_with(|| Visits { wrong: 0, since: now, known: BTreeSet::new() })
    }
}

/// Of IPv6 everybody has a network of 64 bits, and may come from any address in it.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn guessing_is_shut_out_for_a_while_and_nobody_else_is() {
        let (mut keeper, start) = (Doorkeeper::default(), Instant::now());
        let (guesser, other) = (address("192.0.2.7"), address("192.0.2.8"));
        keeper.right(guesser, [1; 32], start);
        for _ in 1..WRONG_MAX {
            assert_eq!(keeper.wrong(guesser, start), Door::Open);
        }
        assert_eq!(keeper.wrong(guesser, start), Door::Shut { wait: WINDOW }, "ten are not too many");
        assert_ne!(keeper.door(guesser, &[2; 32], start), Door::Open, "guessing goes on");
        assert_eq!(keeper.door(guesser, &[1; 32], start), Door::Open, "a neighbour is locked out");
        assert_eq!(keeper.door(other, &[2; 32], start), Door::Open, "another address is locked out");
        let later = start + WINDOW;
        assert_eq!(keeper.door(guesser, &[2; 32], later), Door::Open, "the door stays shut for ever");
        assert_eq!(keeper.wrong(guesser, later), Door::Open, "old mistakes count for ever");
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_count_as_one_and_memory_is_bounded() {
        let (mut keeper, start) = (Doorkeeper::default(), Instant::now());
        for n in 0..WRONG_MAX {
            keeper.wrong(address(&format!("2001:db8::{n}")), start);
        }
        assert_ne!(keeper.door(address("2001:db8::ffff"), &[0; 32], start), Door::Open);
        for n in 0..10_100_u32 {
            keeper.wrong(IpAddr::V4(n.into()), start + Duration::from_secs(1));
        }
        assert_eq!(keeper.visits.len(), ADDRESSES_MAX);
    }
}
