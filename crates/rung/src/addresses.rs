//! This machine's addresses.

use std::net::IpAddr;

/// Those under which the API is reached when it listens on `listening`; for certificates, so that tools that know
/// nothing of Rung's own names can check them, too.
pub fn of_this_machine(listening: IpAddr) -> Vec<IpAddr> {
    if !listening.is_unspecified() {
        return vec![listening];
    }
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let found = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    });
    let mut addresses: Vec<IpAddr> = found.collect();
    addresses.sort();
    addresses.dedup();
    addresses
}
