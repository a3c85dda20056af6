//! The nodes for the instances of one service, best first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rung_model::appfile::{AppFile, Count, Service, Spread};
use rung_model::{AppName, Intent, NodeId, ServiceName, VolumeName};

use super::ground::{Ground, Standing};
use super::{EXPLAINED_MAX, Refusal, Waiting, pinned_to};
use crate::draft::Draft;
use crate::numbers::NodeNumber;
use crate::reconcile::{Aim, service_aim};

/// What one more instance asks of a node.
#[derive(Debug)]
struct Asked<'s> {
    service: &'s Service,
    memory_bytes: u64,
    /// For volumes that have no node yet.
    disk_bytes: u64,
    engine: bool,
    pinned: Option<(VolumeName, NodeId)>,
    /// At most so many of the service on a node.
    share: Option<u32>,
}

/// How well a node suits, the smaller the better: labels that it lacks of those preferred, instances of the service's cohort,
/// the part of it that is given out, instances at all, and its place among the nodes, so that there is always an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    lacks: u32,
    own: u32,
    load: u64,
    running: u32,
    node: usize,
}

pub(crate) struct Placer<'s> {
    app: AppName,
    name: ServiceName,
    asked: Asked<'s>,
    /// The nodes of each zone that had room when they were last looked at.
    zones: Vec<Zone>,
    /// Instances of the service's cohort that shall run, by node.
    own: Vec<u32>,
    /// The node that was given out last: it is to be looked at again.
    last: Option<usize>,
    /// Disk that volumes have taken; empty when none is asked for.
    disk_given: BTreeMap<NodeId, u64>,
}

#[derive(Default)]
struct Zone {
    own: u32,
    nodes: BinaryHeap<Reverse<Fit>>,
}

impl<'s> Placer<'s> {
    /// For the cohort that is aimed at.
    pub fn new(draft: &Draft<'_>, app: &AppName, name: &ServiceName, service: &'s Service) -> Self {
        Self::of(draft, app, name, service, service_aim(draft, app, name))
    }

    pub fn of(
        draft: &Draft<'_>,
        app: &AppName,
        name: &ServiceName,
        service: &'s Service,
        aim: Option<Aim>,
    ) -> Self {
        let file = aim.and_then(|aim| draft.release(app, aim.release)).map(|release| &release.file);
        let disk_bytes = file.map_or(0, |file| new_volumes(draft, app, service, file));
        let asked = Asked {
            service,
            memory_bytes: service.memory_bytes.unwrap_or(0),
            disk_bytes,
            engine: file.is_some_and(|file| file.build.image.is_some()),
            pinned: pinned_to(draft, app, service.mounts.keys()),
            share: (service.place.count == Count::PerNode)
                .then(|| draft.app(app).count(name, service.instances)),
        };
        let ground = draft.ground();
        let mut placer = Self {
            app: app.clone(),
            name: name.clone(),
            asked,
            zones: Vec::new(),
            own: vec![0; ground.nodes().len()],
            last: None,
            disk_given: if disk_bytes > 0 { disk_given(draft) } else { BTreeMap::new() },
        };
        placer.zones.resize_with(ground.zones(), Zone::default);
        placer.count_own(draft, ground, aim);
        placer.look_at_all(ground);
        placer
    }

    /// Instances of the cohort. Another one will be gone soon, and does not count.
    fn count_own(&mut self, draft: &Draft<'_>, ground: &Ground, aim: Option<Aim>) {
        let Some(cohort) = aim.map(|aim| aim.cohort) else { return };
        for (_, placement) in draft.instances_of(&self.app, &self.name) {
            if placement.cohort != cohort || placement.intent != Intent::Run {
                continue;
            }
            if let Some(index) = ground.index(placement.node) {
                self.own[index] += 1;
                self.zones[ground.nodes()[index].zone].own += 1;
            }
        }
    }

    fn look_at_all(&mut self, ground: &Ground) {
        let mut fits: Vec<Vec<Reverse<Fit>>> = Vec::new();
        fits.resize_with(self.zones.len(), Vec::new);
        for (index, standing) in ground.nodes().iter().enumerate() {
            if self.refuse(index, standing).is_none() {
                fits[standing.zone].push(Reverse(self.fit(index, standing)));
            }
        }
        for (zone, fits) in self.zones.iter_mut().zip(fits) {
            zone.nodes = fits.into();
        }
    }

    /// The best node for one more. Whoever asks gives it the instance, or asks no more.
    pub fn next(&mut self, draft: &Draft<'_>) -> Option<NodeNumber> {
        let ground = draft.ground();
        if let Some(index) = self.last.take() {
            let standing = &ground.nodes()[index];
            self.own[index] += 1;
            self.zones[standing.zone].own += 1;
            // What a node refuses once it refuses to the end: it only fills up.
            if self.refuse(index, standing).is_none() {
                let fit = Reverse(self.fit(index, standing));
                self.zones[standing.zone].nodes.push(fit);
            }
        }
        let tops = self.zones.iter().enumerate();
        let tops = tops.filter_map(|(index, zone)| Some((self.rank(zone, zone.nodes.peek()?.0), index)));
        let (_, zone) = tops.min()?;
        let Reverse(best) = self.zones[zone].nodes.pop().expect("it was seen at the top");
        self.last = Some(best.node);
        Some(ground.nodes()[best.node].number)
    }

    /// Among the best of all zones.
    fn rank(&self, zone: &Zone, fit: Fit) -> (u32, u32, u32, Fit) {
        match self.asked.service.place.spread {
            Spread::Node => (fit.lacks, fit.own, zone.own, fit),
            Spread::Zone => (fit.lacks, zone.own, fit.own, fit),
            Spread::Pack => (fit.lacks, 0, 0, fit),
        }
    }

    fn fit(&self, index: usize, standing: &Standing) -> Fit {
        let place = &self.asked.service.place;
        let lacking = place.prefer.iter().filter(|(name, value)| standing.labels.get(*name) != Some(*value));
        let (lacks, load, running) = (lacking.count() as u32, standing.load, standing.given.running);
        match place.spread {
            Spread::Node | Spread::Zone => Fit { lacks, own: self.own[index], load, running, node: index },
            Spread::Pack => {
                Fit { lacks, own: 0, load: u64::MAX - load, running: u32::MAX - running, node: index }
            }
        }
    }

    /// Why a node can't take one more.
    fn refuse(&self, index: usize, standing: &Standing) -> Option<Refusal> {
        if let Some(refusal) = &standing.unusable {
            return Some(refusal.clone());
        }
        let asked = &self.asked;
        if let Some((volume, at)) = asked.pinned.as_ref().filter(|(_, at)| *at != standing.id) {
            return Some(Refusal::VolumeElsewhere { volume: volume.clone(), node: at.clone() });
        }
        let place = &asked.service.place;
        let missing = place.require.iter().find(|(name, value)| standing.labels.get(*name) != Some(*value));
        if let Some((name, value)) = missing {
            let has = standing.labels.get(name).cloned();
            return Some(Refusal::Label { name: name.clone(), asked: value.clone(), has });
        }
        if let Some(why) = standing.no_engine.as_ref().filter(|_| asked.engine) {
            return Some(Refusal::NoEngine { why: why.clone() });
        }
        if asked.share.is_some_and(|share| self.own[index] >= share) {
            return Some(Refusal::HasItsShare);
        }
        let free_bytes = standing.free_memory();
        if asked.memory_bytes > free_bytes {
            return Some(Refusal::Memory { asked_bytes: asked.memory_bytes, free_bytes });
        }
        if asked.service.port && standing.free_ports() == 0 {
            return Some(Refusal::Ports);
        }
        self.refuse_disk(standing)
    }

    fn refuse_disk(&self, standing: &Standing) -> Option<Refusal> {
        if let Some(free_bytes) = standing.short_of_disk {
            return Some(Refusal::ShortOfDisk { free_bytes });
        }
        let asked_bytes = self.asked.disk_bytes;
        let has = standing.disk_bytes.filter(|_| asked_bytes > 0)?;
        let free_bytes = has.saturating_sub(self.disk_given.get(&standing.id).copied().unwrap_or(0));
        (asked_bytes > free_bytes).then_some(Refusal::Disk { asked_bytes, free_bytes })
    }

    /// How badly a node suits what it has of the service: the larger, the worse.
    pub fn strain(&self, draft: &Draft<'_>, node: NodeNumber) -> (u32, u32, u32) {
        let ground = draft.ground();
        let Some(index) = ground.index(node) else { return Default::default() };
        let standing = &ground.nodes()[index];
        let (lacks, own) = (self.fit(index, standing).lacks, self.own[index]);
        let zone = self.zones[standing.zone].own;
        match self.asked.service.place.spread {
            Spread::Zone => (lacks, zone, own),
            Spread::Node | Spread::Pack => (lacks, own, zone),
        }
    }

    /// Whether a move is worth it: a preferred label more, or two fewer where there were most.
    pub fn gains(&self, draft: &Draft<'_>, from: NodeNumber, to: NodeNumber) -> bool {
        let (from, to) = (self.strain(draft, from), self.strain(draft, to));
        from.0 > to.0 || (from.0 == to.0 && from.1 >= to.1 + 2)
    }

    /// Nodes that lack nothing but memory.
    pub fn full(&self, draft: &Draft<'_>) -> Vec<NodeId> {
        let nodes = draft.ground().nodes().iter().enumerate();
        let full = nodes.filter(|(index, standing)| {
            matches!(self.refuse(*index, standing), Some(Refusal::Memory { .. }))
        });
        full.map(|(_, standing)| standing.id.clone()).collect()
    }

    /// Node by node, of as many as anybody reads.
    pub fn refusals(&self, draft: &Draft<'_>) -> BTreeMap<NodeId, Refusal> {
        let nodes = draft.ground().nodes().iter().enumerate();
        let refused =
            nodes.filter_map(|(index, standing)| Some((standing.id.clone(), self.refuse(index, standing)?)));
        refused.take(EXPLAINED_MAX).collect()
    }

    pub fn app(&self) -> &AppName {
        &self.app
    }

    pub fn service(&self) -> &ServiceName {
        &self.name
    }

    /// So many instances wait.
    pub fn waiting(&self, draft: &Draft<'_>, instances: u32) -> Waiting {
        let reasons = self.refusals(draft);
        let others = draft.ground().nodes().len().saturating_sub(reasons.len()) as u32;
        Waiting { app: self.app.clone(), service: self.name.clone(), instances, reasons, others }
    }
}

/// What the service's volumes that are nowhere yet shall hold.
fn new_volumes(draft: &Draft<'_>, app: &AppName, service: &Service, file: &AppFile) -> u64 {
    let pins = &draft.app(app).volumes;
    let new = service.mounts.keys().filter(|volume| !pins.contains_key(*volume));
    new.filter_map(|volume| file.volumes.get(volume)?.size_bytes).sum()
}

/// What volumes shall hold, by the node that they are on.
fn disk_given(draft: &Draft<'_>) -> BTreeMap<NodeId, u64> {
    let mut given = BTreeMap::new();
    for app in draft.input.world.apps.keys() {
        let record = draft.app(app);
        let Some(file) = record.current.and_then(|number| draft.release(app, number)) else { continue };
        for (volume, node) in &record.volumes {
            let size = file.file.volumes.get(volume).and_then(|volume| volume.size_bytes).unwrap_or(0);
            *given.entry(node.clone()).or_default() += size;
        }
    }
    given
}
