//! Networks of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// See the module's text. IPv4 addresses and the same written as IPv6 are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    #[error("{0:?} is not an address")]
    Address(String),
    #[error("{0:?} is not a number of bits")]
    Bits(String),
    #[error("{network:?} has more than {width} bits")]
    TooManyBits { network: String, width: u8 },
}

impl Network {
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (network, width) = (mapped(self.address), if self.address.is_ipv4() { 32 } else { 128 });
        let mask = u128::MAX.checked_shl(u32::from(width - self.bits)).unwrap_or(0);
        // The 96 bits in front of an IPv4 address count in any case.
        let mask = if self.address.is_ipv4() { mask | (u128::MAX << 32) } else { mask };
        mapped(ip) & mask == network & mask
    }
}

fn mapped(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork::Address(address.to_owned()))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => bits.parse().map_err(|_| InvalidNetwork::Bits(bits.to_owned()))?,
        };
        if bits > width {
            return Err(InvalidNetwork::TooManyBits { network: text.to_owned(), width });
        }
        Ok(Self { address, bits })
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        if self.bits == width {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_what_its_first_bits_say() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.1.2.3", "11.1.2.3"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("203.0.113.7", "203.0.113.7", "203.0.113.8"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("::1", "::1", "127.0.0.1"),
            ("0.0.0.0/0", "8.8.8.8", "2001:db8::1"),
        ] {
            let read: Network = network.parse().unwrap();
            assert_eq!(read.to_string(), network, "written back");
            assert!(read.contains(inside.parse().unwrap()), "{network} does not contain {inside}");
            assert!(!read.contains(outside.parse().unwrap()), "{network} contains {outside}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "a/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?} was taken for a network");
        }
    }
}
