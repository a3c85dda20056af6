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

/// The one under which others shall reach this machine: what was said, what is listened on, or the first of a network.
pub fn advertised(said: Option<IpAddr>, listening: IpAddr) -> IpAddr {
    let of_a_network = |ip: &&IpAddr| !ip.is_loopback() && ip.is_ipv4();
    said.unwrap_or_else(|| {
        let all = of_this_machine(listening);
        all.iter().find(of_a_network).or_else(|| all.first()).copied().unwrap_or(listening)
    })
}
