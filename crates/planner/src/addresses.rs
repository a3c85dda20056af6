//! Where services are reached from inside the cluster: which addresses they have, and who may call.
//!
//! A service with a port gets its address in the same plan that makes the first release with it, in a step before it. From
//! then on it is the service's own, whatever later releases have, until the app is destroyed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rung_model::appfile::Service;
use rung_model::{AddressBlock, AppName, BlockNumber, Inside, Release, ServiceName};

use crate::draft::Draft;
use crate::routes::routing_release;
use crate::world::Held;

/// Every block that is given, and by whom it is found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Addresses {
    blocks: BTreeMap<BlockNumber, Held<AddressBlock>>,
    by_app: BTreeMap<AppName, Vec<BlockNumber>>,
}

impl Addresses {
    pub(crate) fn put(&mut self, block: Held<AddressBlock>) {
        let number = block.value.number;
        self.delete(number);
        let of_app = self.by_app.entry(block.value.app.clone()).or_default();
        of_app.push(number);
        of_app.sort();
        self.blocks.insert(number, block);
    }

    pub(crate) fn delete(&mut self, number: BlockNumber) {
        let Some(block) = self.blocks.remove(&number) else { return };
        if let Some(of_app) = self.by_app.get_mut(&block.value.app) {
            of_app.retain(|held| *held != number);
            if of_app.is_empty() {
                self.by_app.remove(&block.value.app);
            }
        }
    }

    pub(crate) fn revision_of(&self, number: BlockNumber) -> Option<u64> {
        self.blocks.get(&number).map(|held| held.revision)
    }

    pub(crate) fn blocks_of(&self, app: &AppName) -> impl Iterator<Item = &Held<AddressBlock>> {
        self.by_app.get(app).into_iter().flatten().map(|number| &self.blocks[number])
    }

    pub(crate) fn of(&self, app: &AppName, service: &ServiceName) -> Option<Ipv4Addr> {
        self.blocks_of(app).find_map(|held| held.value.address(service))
    }
}

/// Gives an address to each service with a port that has none yet.
pub fn ensure_addresses(draft: &mut Draft<'_>, app: &AppName) {
    let missing: Vec<ServiceName> = releases(draft, app)
        .flat_map(with_port)
        .map(|(service, _)| service)
        .filter(|service| draft.address_blocks(app).all(|block| block.address(service).is_none()))
        .cloned()
        .collect();
    for service in missing {
        let held = draft.address_blocks(app).cloned();
        let given = held.into_iter().find_map(|mut block| block.give(&service).then_some(block));
        let Some(block) = given.or_else(|| free_block(draft, app, &service)) else { return };
        draft.give_addresses(block);
    }
}

/// How each service with a port is reached, as the release says whose routes hold, and the coming one of what is new in it.
pub(crate) fn inside(draft: &Draft<'_>, app: &AppName) -> BTreeMap<ServiceName, Inside> {
    let mut found = BTreeMap::new();
    let environment = app.environment();
    let first = routing_release(draft, app).into_iter();
    for (service, declared) in first.chain(releases(draft, app)).flat_map(with_port) {
        let Some(address) = draft.address_blocks(app).find_map(|block| block.address(service)) else {
            continue;
        };
        let callers = declared.allow.iter().map(|caller| caller.in_environment(&environment)).collect();
        found.entry(service.clone()).or_insert(Inside { address, callers });
    }
    found
}

/// What serves and what comes.
fn releases<'a>(draft: &'a Draft<'_>, app: &'a AppName) -> impl Iterator<Item = &'a Release> {
    let record = draft.app(app);
    let coming = draft.deployment(app).filter(|deployment| !deployment.has_ended());
    let numbers = [record.current, coming.and_then(|deployment| deployment.release)];
    let is_there = record.destroying.is_none();
    numbers.into_iter().flatten().filter(move |_| is_there).filter_map(|number| draft.release(app, number))
}

fn with_port(release: &Release) -> impl Iterator<Item = (&ServiceName, &Service)> {
    release.file.services.iter().filter(|(_, declared)| declared.port)
}

/// `None`: 65,535 apps have them all. The next ones are served, but not from inside.
fn free_block(draft: &Draft<'_>, app: &AppName, service: &ServiceName) -> Option<AddressBlock> {
    let mut number = BlockNumber::of(app);
    let mut looked = 0;
    while !draft.is_block_free(number) {
        number = number.next();
        looked += 1;
        if looked == u16::MAX {
            return None;
        }
    }
    let mut block = AddressBlock::new(number, app.clone());
    block.give(service).then_some(block)
}
