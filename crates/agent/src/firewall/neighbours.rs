//! Who is on the engine's networks, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rung_model::AppName;

use crate::driver::docker::{APP_LABEL, NODE_LABEL, RELEASE_LABEL};
use crate::engine::{Attachment, Engine, EngineError, Listed, ListedNetwork, Query};

/// Of a network card, as the kernel's bridge sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    fn read(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }

    /// The address that a card gives to itself for its own link (RFC 4291), which no engine tells of.
    fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// `172.17.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    pub base: IpAddr,
    bits: u8,
}

impl Subnet {
    fn read(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let (base, bits) = (base.parse::<IpAddr>().ok()?, bits.parse().ok()?);
        let most = if base.is_ipv4() { 32 } else { 128 };
        (bits > 0 && bits <= most).then_some(Self { base, bits })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

/// By what some containers are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    pub cards: BTreeSet<Mac>,
    pub v4: BTreeSet<Ipv4Addr>,
    pub v6: BTreeSet<Ipv6Addr>,
}

impl Ends {
    fn add(&mut self, of: &Attachment) {
        let card = of.mac.as_deref().and_then(Mac::read);
        self.cards.extend(card);
        self.v4.extend(of.v4.as_deref().and_then(|text| text.parse::<Ipv4Addr>().ok()));
        self.v6.extend(of.v6.as_deref().and_then(|text| text.parse::<Ipv6Addr>().ok()));
        self.v6.extend(card.map(Mac::link_local));
    }
}

/// What an engine said at some moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// This node's containers. `None`: those of builds, which are no app's yet.
    pub apps: BTreeMap<Option<AppName>, Ends>,
    /// Everybody else's on the same engine.
    pub others: Ends,
    /// The engine's networks on this machine.
    pub subnets: BTreeSet<Subnet>,
    /// The other side of a container's network, when this machine is not there.
    pub elsewhere: Option<IpAddr>,
}

impl Neighbours {
    /// `tag` is this node's.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn of(engine: &Engine, tag: &str) -> Result<Self, EngineError> {
        // Networks of other kinds are those of the machine's own neighbours.
        let bridges = Query::default().with("filters", r#"{"driver":["bridge"]}"#).on("/networks");
        let networks: Vec<ListedNetwork> = engine.get(&bridges).await?;
        let containers: Vec<Listed> = engine.get("/containers/json").await?;
        let here = local_addresses();
        Ok(Self::read(&networks, &containers, tag, |address| here.contains(&address)))
    }

    fn read(
        networks: &[ListedNetwork],
        containers: &[Listed],
        tag: &str,
        is_here: impl Fn(IpAddr) -> bool,
    ) -> Self {
        let subnets = networks.iter().flat_map(ListedNetwork::subnets).filter_map(Subnet::read).collect();
        let mut seen = Self { subnets, ..Self::default() };
        for container in containers {
            let is_ours = container.label(NODE_LABEL) == Some(tag);
            let ends = match is_ours {
                true => seen.apps.entry(app_of(container)).or_default(),
                false => &mut seen.others,
            };
            container.attachments().for_each(|attachment| ends.add(attachment));
            if is_ours {
                let gateways = container.attachments().filter_map(|it| it.gateway.as_deref()?.parse().ok());
                seen.elsewhere = seen.elsewhere.or(gateways.into_iter().find(|at| !is_here(*at)));
            }
        }
        seen
    }
}

/// What builds run has no release.
fn app_of(container: &Listed) -> Option<AppName> {
    container.label(RELEASE_LABEL)?;
    AppName::new(container.label(APP_LABEL)?).ok()
}

fn local_addresses() -> BTreeSet<IpAddr> {
    let of = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())))
    };
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|interface| interface.address).filter_map(of).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn app(name: &str) -> Option<AppName> {
        Some(AppName::new(name).unwrap())
    }

    /// As Docker 20.10 and Podman 4.3 say it, shortened.
    fn listed() -> (Vec<ListedNetwork>, Vec<Listed>) {
        let networks = r#"[
          {"Name":"bridge","Driver":"bridge","IPAM":{"Driver":"default","Config":[{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1"}]}},
          {"Name":"odd","Driver":"bridge","IPAM":{"Config":null}}]"#;
        let containers = r#"[
          {"Id":"1","Names":["/a"],"Labels":{"rung.node":"rung-1","rung.app":"shop","rung.release":"3"},
           "NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.2","Gateway":"172.17.0.1","MacAddress":"02:42:ac:11:00:02","GlobalIPv6Address":""}}}},
          {"Id":"2","Names":["/b"],"Labels":{"rung.node":"rung-1","rung.app":"shop"},
           "NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.3","Gateway":"172.17.0.1","MacAddress":"02:42:ac:11:00:03"}}}},
          {"Id":"3","Names":["/c"],"Labels":{"rung.node":"rung-2","rung.app":"shop","rung.release":"3"},
           "NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.4","MacAddress":"02:42:ac:11:00:04"},"odd":null}}},
          {"Id":"4","Labels":null,"NetworkSettings":{"Networks":{"host":{"IPAddress":"","MacAddress":""}}}}]"#;
        (serde_json::from_str(networks).unwrap(), serde_json::from_str(containers).unwrap())
    }

    pub fn seen() -> Neighbours {
        let (networks, containers) = listed();
        Neighbours::read(&networks, &containers, "rung-1", |_| true)
    }

    #[test]
    fn the_engine_says_who_is_where() {
        let seen = seen();
        let at = |last: u8| Ipv4Addr::new(172, 17, 0, last);
        assert_eq!(seen.apps[&app("shop")].v4, [at(2)].into(), "{seen:?}");
        assert_eq!(seen.apps[&None].v4, [at(3)].into(), "a build is no instance of its app");
        assert_eq!(seen.others.v4, [at(4)].into(), "another Rung looks after its own");
        let subnets: Vec<String> = seen.subnets.iter().map(ToString::to_string).collect();
        assert_eq!(subnets, ["172.17.0.0/16"]);
        assert_eq!(seen.elsewhere, None);
        let (networks, containers) = listed();
        let seen = Neighbours::read(&networks, &containers, "rung-1", |_| false);
        assert_eq!(seen.elsewhere, Some(Ipv4Addr::new(172, 17, 0, 1).into()));
    }

    #[test]
    fn a_card_has_an_address_of_its_own_for_its_link() {
        let card = Mac::read("02:42:ac:11:00:02").unwrap();
        assert_eq!(card.to_string(), "02:42:ac:11:00:02");
        assert_eq!(card.link_local(), "fe80::42:acff:fe11:2".parse::<Ipv6Addr>().unwrap());
        for odd in ["", "02:42:ac:11:00", "02:42:ac:11:00:02:07", "zz:42:ac:11:00:02"] {
            assert_eq!(Mac::read(odd), None, "{odd:?} was taken for a card");
        }
        for odd in ["172.17.0.0", "172.17.0.0/33", "0.0.0.0/0", "x/8"] {
            assert_eq!(Subnet::read(odd), None, "{odd:?} was taken for a network");
        }
    }
}
