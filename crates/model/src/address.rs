//! Addresses inside the cluster: each service with a port has one of its own, the same on every machine.
//!
//! They lie in 127.64.0.0/10, which every Linux machine takes for its own: a connection to one ends at the proxy of the
//! machine that it is made on. Apps get them by blocks of 64, and each block is a document of its own: that a key can be
//! created only once is what keeps two apps from ever having the same.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, ServiceName};

/// At which services listen for each other, on every address of theirs. Where it is taken the next free one is used, and
/// instances of that machine are told it.
pub const SERVICE_PORT: u16 = 7700;

/// Where names of services are answered by DNS: in Rung's own block.
pub const RESOLVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 64, 0, 1), 53);

/// 127.64.0.0.
const FIRST: u32 = 0x7f40_0000;
/// 127.64.0.0/10 has 2^22 addresses.
const ALL: u32 = 1 << 22;
/// More services than an app has; should it have more, it gets a second block.
const BLOCK: u32 = 64;

/// Which block. The first is nobody's: it is Rung's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct BlockNumber(u16);

impl BlockNumber {
    const LAST: u16 = (ALL / BLOCK - 1) as u16;

    /// Where an app's search for a free block begins: the same app finds the same block on most clusters.
    pub fn of(app: &AppName) -> Self {
        // FNV-1a: any hash does that is the same in every version.
        let hash = app
            .as_str()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self(u16::try_from(hash % u32::from(Self::LAST)).expect("it is below the last one") + 1)
    }

    #[must_use]
    pub fn next(self) -> Self {
        if self.0 == Self::LAST { Self(1) } else { Self(self.0 + 1) }
    }

    pub fn number(self) -> u16 {
        self.0
    }
}

impl std::str::FromStr for BlockNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// At `addresses/<number>`: the addresses of an app's services. An address stays its service's until the app is destroyed,
/// whatever its releases come to have: a rollback finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AddressBlock {
    pub number: BlockNumber,
    pub app: AppName,
    /// Which of the block's addresses, from 1 on.
    pub services: BTreeMap<ServiceName, u8>,
}

impl AddressBlock {
    pub fn new(number: BlockNumber, app: AppName) -> Self {
        Self { number, app, services: BTreeMap::new() }
    }

    pub fn address(&self, service: &ServiceName) -> Option<Ipv4Addr> {
        let at = self.services.get(service)?;
        Some(Ipv4Addr::from(FIRST + u32::from(self.number.0) * BLOCK + u32::from(*at)))
    }

    /// Gives the service an address of the block; false when all are given.
    pub fn give(&mut self, service: &ServiceName) -> bool {
        if self.services.contains_key(service) {
            return true;
        }
        // The first and the last look like a network's and a broadcast's, which confuses people rather than kernels.
        let is_free = |at: &u8| self.services.values().all(|given| given != at);
        let Some(free) = (1..=(BLOCK - 2) as u8).find(is_free) else { return false };
        self.services.insert(service.clone(), free);
        true
    }
}

/// How a service is reached from inside the cluster, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Inside {
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// Beside the service's own app.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<AppName>,
}

impl Inside {
    /// Whether an address is one of those that services have.
    pub fn covers(address: Ipv4Addr) -> bool {
        (FIRST..FIRST + ALL).contains(&address.to_bits())
    }
}

/// How an instance is told where a service is, with which it begins: `RUNG_SERVICE_API` for `api` of the own app,
/// `RUNG_SERVICE_BILLING_LEDGER` for `ledger` of the app `billing`.
pub fn variable(app: Option<&AppName>, service: &ServiceName) -> String {
    let mut name = "RUNG_SERVICE_".to_owned();
    if let Some(app) = app {
        name.push_str(app.base().as_str());
        name.push('_');
    }
    name.push_str(service.as_str());
    name.to_ascii_uppercase().replace('-', "_")
}

/// All names of services end so; nobody on the Internet is ever given a name below it.
pub const DOMAIN: &str = "internal";

/// By which name a service is found: `api.shop.internal`, and with its environment `api.staging.shop.internal`.
pub fn name(app: &AppName, service: &ServiceName) -> String {
    match app.environment() {
        environment if environment.is_production() => format!("{service}.{app}.{DOMAIN}"),
        environment => format!("{service}.{environment}.{}.{DOMAIN}", app.base()),
    }
}

/// By which names it is found by those who may call it. They are of its own environment, and need not say which that is.
pub fn names(app: &AppName, service: &ServiceName) -> impl Iterator<Item = String> {
    let there = (!app.is_in_production()).then(|| name(app, service));
    std::iter::once(name(&app.base(), service)).chain(there)
}

/// The users that the apps of a machine run as, by their numbers: what tells callers apart where each app has one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Users(pub BTreeMap<u32, AppName>);

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName::new(name).unwrap()
    }

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    #[test]
    fn every_service_of_a_block_has_an_address_of_its_own_inside_the_network() {
        let mut block = AddressBlock::new(BlockNumber::of(&app("shop")), app("shop"));
        let names: Vec<ServiceName> = (0..62).map(|n| service(&format!("s{n}"))).collect();
        assert!(names.iter().all(|name| block.give(name)), "a block has room for 62 services");
        assert!(!block.give(&service("one-more")), "a 63rd service got an address");
        assert!(block.give(&names[0]), "who has one keeps it");
        let mut addresses: Vec<Ipv4Addr> = names.iter().filter_map(|name| block.address(name)).collect();
        assert!(addresses.iter().all(|address| Inside::covers(*address)), "{addresses:?}");
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 62, "two services have one address");
    }

    #[test]
    fn the_first_block_is_nobodys_and_the_last_ends_the_network() {
        assert_eq!(BlockNumber(BlockNumber::LAST).next(), BlockNumber(1));
        let mut last = AddressBlock::new(BlockNumber(BlockNumber::LAST), app("z"));
        last.give(&service("web"));
        assert_eq!(last.address(&service("web")), Some(Ipv4Addr::new(127, 127, 255, 193)));
        for name in ["shop", "a", "blog@staging"] {
            assert_ne!(BlockNumber::of(&app(name)).number(), 0, "{name} got Rung's own block");
        }
        for (address, inside) in [
            ([127, 63, 255, 255], false),
            ([127, 64, 0, 0], true),
            ([127, 128, 0, 0], false),
            ([127, 0, 0, 1], false),
        ] {
            assert_eq!(Inside::covers(Ipv4Addr::from(address)), inside, "{address:?}");
        }
    }

    #[test]
    fn names_say_the_environment_only_to_those_who_are_in_none() {
        let of = |app: &AppName| names(app, &service("api")).collect::<Vec<_>>();
        assert_eq!(of(&app("shop")), ["api.shop.internal"]);
        assert_eq!(of(&app("shop@staging")), ["api.shop.internal", "api.staging.shop.internal"]);
        assert_eq!(name(&app("shop@staging"), &service("api")), "api.staging.shop.internal");
    }

    #[test]
    fn variables_are_named_like_the_services() {
        assert_eq!(variable(None, &service("thumb-nails")), "RUNG_SERVICE_THUMB_NAILS");
        assert_eq!(
            variable(Some(&app("billing@staging")), &service("ledger")),
            "RUNG_SERVICE_BILLING_LEDGER"
        );
    }
}
