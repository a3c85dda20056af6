//! The ingress: the proxy's view, its threads and its disk, and the requests that go through it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rung_api::wire::ProxyDocuments;
use rung_ingress::view::{Effect, Event, View};
use rung_model::appfile::rollout::Share;
use rung_model::traffic::Counts;
use rung_model::{AppName, Backend, DeploymentNumber, Endpoint, InstanceId, RouteDocument};

use crate::agenda::{Happening, Life};
use crate::faults::Fate;
use crate::story::{Story, say};
use crate::wiring::Wiring;

const THREADS: usize = 2;
const REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Ingress {
    pub life: Life,
    /// `None`: it is not running.
    pub view: Option<View>,
    /// What each thread picks from.
    pub threads: Vec<Table>,
    published: BTreeMap<u64, Vec<RouteDocument>>,
    polling: Option<u64>,
    next_tick: Option<Duration>,
    pub in_flight: BTreeMap<InstanceId, u64>,
    /// What became of the requests to apps that are measured, in this life.
    counted: BTreeMap<(AppName, DeploymentNumber), Counts>,
    /// Outlives the process.
    disk: BTreeMap<AppName, RouteDocument>,
}

#[derive(Debug, Default, Clone)]
pub struct Table {
    version: u64,
    pub documents: Vec<RouteDocument>,
}

impl Story {
    pub fn start_ingress(&mut self) {
        if self.ingress.view.is_some() {
            return;
        }
        let disk = std::mem::take(&mut self.ingress.disk);
        let documents = disk.values().cloned().collect();
        self.ingress = Ingress {
            life: Life(self.ingress.life.0 + 1),
            view: Some(View::new(THREADS)),
            threads: vec![Table::default(); THREADS],
            disk,
            ..Ingress::default()
        };
        say!(self, "ingress {} starts", self.ingress.life.0);
        let life = self.ingress.life;
        self.step_ingress(Event::Started { documents });
        self.traffic_due(life);
    }

    pub fn kill_ingress(&mut self) {
        if self.ingress.view.take().is_none() {
            return;
        }
        say!(self, "ingress {} is killed", self.ingress.life.0);
        self.ingress.threads.clear();
        self.ingress.in_flight.clear();
        self.proxy_process_ended(self.ingress.life);
        let delay = if self.once_in(5) { self.between_ms(1000, 15_000) } else { self.between_ms(2, 60) };
        self.after(delay, Happening::IngressStarts);
    }

    fn is_ingress(&self, life: Life) -> bool {
        self.ingress.view.is_some() && self.ingress.life == life
    }

    fn step_ingress(&mut self, event: Event) {
        let life = self.ingress.life;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(view) = &mut self.ingress.view else { return };
            for effect in view.step(event, self.now) {
                if self.faulty(|faults| faults.killed_between) {
                    self.kill_ingress();
                }
                if !self.is_ingress(life) {
                    return;
                }
                events.extend(self.carry_out_of_ingress(effect));
            }
        }
        let wake = self.ingress.view.as_ref().and_then(View::next_wake);
        if let Some(at) = wake
            && self.ingress.next_tick != Some(at)
        {
            self.ingress.next_tick = Some(at);
            self.agenda.at(at.max(self.now), Happening::IngressTick(life));
        }
    }

    fn carry_out_of_ingress(&mut self, effect: Effect) -> Option<Event> {
        let life = self.ingress.life;
        match effect {
            Effect::Publish { version, documents } => {
                let documents = documents.into_iter().map(Arc::unwrap_or_clone).collect();
                self.ingress.published.insert(version, documents);
                for thread in 0..THREADS {
                    let delay = self.between_ms(0, 6);
                    self.after(delay, Happening::TableApplied { life, thread, version });
                }
            }
            Effect::Keep(document) => {
                self.ingress.disk.insert(document.app.clone(), document);
            }
            Effect::Forget(app) => {
                self.ingress.disk.remove(&app);
            }
            Effect::Count => return Some(self.counted()),
            Effect::Poll { ticket, poll, .. } => {
                // The earlier one's connection is closed.
                if let Some(abandoned) = self.ingress.polling.replace(ticket) {
                    let delay = self.between_ms(0, 8);
                    self.after(delay, Happening::RoutesPollClosed { life, ticket: abandoned });
                }
                let lost = Happening::RoutesFailed { life, ticket };
                self.send(Happening::RoutesPolled { life, ticket, poll }, lost);
            }
            Effect::Refused { what } => say!(self, "the proxy refuses {what}"),
        }
        None
    }

    fn counted(&self) -> Event {
        let view = self.ingress.view.as_ref().expect("it was stepped just now");
        let count = |id: &InstanceId| (id.clone(), self.ingress.in_flight.get(id).copied().unwrap_or(0));
        Event::Counted { draining: view.draining().into_iter().map(count).collect() }
    }

    pub fn tick_ingress(&mut self, life: Life) {
        if self.is_ingress(life) && self.ingress.next_tick.is_some_and(|at| at <= self.now) {
            self.ingress.next_tick = None;
            self.step_ingress(Event::Tick);
        }
    }

    pub fn table_applied(&mut self, life: Life, thread: usize, version: u64) {
        if !self.is_ingress(life) {
            return;
        }
        if self.ingress.threads[thread].version < version {
            let documents = self.ingress.published[&version].clone();
            self.audit_table(thread, &documents);
            self.ingress.threads[thread] = Table { version, documents };
        }
        self.step_ingress(Event::Applied { thread, version });
    }

    pub fn routes_answered(&mut self, life: Life, ticket: u64, answer: ProxyDocuments) {
        if !self.is_ingress(life) {
            return;
        }
        if self.ingress.polling == Some(ticket) {
            self.ingress.polling = None;
        } else if self.wiring == Wiring::AppliesLateAnswers {
            for thread in &mut self.ingress.threads {
                for late in &answer.documents {
                    thread.documents.retain(|document| document.app != late.app);
                    thread.documents.push(late.clone());
                }
            }
        }
        self.step_ingress(Event::Answered { ticket, answer });
    }

    pub fn routes_failed(&mut self, life: Life, ticket: u64) {
        if self.is_ingress(life) {
            self.ingress.polling.take_if(|polling| *polling == ticket);
            self.step_ingress(Event::Failed { ticket });
        }
    }

    // What it counts.

    pub fn traffic_due(&mut self, life: Life) {
        if !self.is_ingress(life) {
            return;
        }
        if !self.faults.have_ended {
            self.after(REPORT_EVERY, Happening::TrafficDue(life));
        }
        let counted = self.ingress.counted.iter();
        let cohorts: Vec<_> =
            counted.map(|((app, cohort), counts)| (app.clone(), *cohort, counts.clone())).collect();
        if let Fate::Arrives(delays) = self.fate() {
            for delay in delays {
                self.after(delay, Happening::TrafficReported { life, cohorts: cohorts.clone() });
            }
        }
    }

    // Requests.

    /// A request comes in, and the next one will.
    pub fn request(&mut self) {
        if !self.faults.have_ended {
            let next = self.between_ms(5, 120);
            self.after(next, Happening::Request);
        }
        if self.ingress.view.is_none() {
            return;
        }
        let thread = self.rng.usize(0..THREADS);
        let documents = &self.ingress.threads[thread].documents;
        let backends: Vec<(&RouteDocument, &Backend)> = documents
            .iter()
            .flat_map(|document| document.backends.values().map(move |backend| (document, backend)))
            .filter(|(_, backend)| !backend.endpoints.is_empty())
            .collect();
        if backends.is_empty() {
            return;
        }
        let (document, backend) = backends[self.rng.usize(0..backends.len())];
        let candidate = backend.split.as_ref().map(|split| split.candidate);
        let of_candidate =
            backend.split.as_ref().is_some_and(|split| self.rng.u32(0..Share::ALL.0) < split.share.0);
        let is_own = |endpoint: &&Endpoint| (Some(endpoint.cohort) == candidate) == of_candidate;
        let own: Vec<&Endpoint> = backend.endpoints.iter().filter(is_own).collect();
        let own = if own.is_empty() { backend.endpoints.iter().collect() } else { own };
        let chosen = own[self.rng.usize(0..own.len())];
        let (app, instance, cohort) = (document.app.clone(), chosen.instance.clone(), chosen.cohort);
        let others = backend.endpoints.iter().find(|endpoint| endpoint.cohort != cohort);
        let other = others.map(|endpoint| endpoint.cohort);
        let is_measured = document.measured;
        self.summary.requests += 1;
        self.audit_request(thread, &app, &instance);
        let is_taken = self.machine.processes.get(&instance).is_some_and(|process| process.is_alive());
        if !is_taken {
            return;
        }
        if is_measured {
            let errs = self.machine.processes[&instance].behaviour.errs;
            let is_error = self.rng.u32(0..100) < errs;
            let cohort = if self.wiring == Wiring::MixesCohorts { other.unwrap_or(cohort) } else { cohort };
            let counts = self.ingress.counted.entry((app, cohort)).or_default();
            counts.add(&Counts { requests: 1, errors: u64::from(is_error), times: BTreeMap::new() });
        }
        *self.ingress.in_flight.entry(instance.clone()).or_default() += 1;
        let takes = if self.once_in(20) { self.between_ms(500, 6000) } else { self.between_ms(1, 80) };
        self.after(takes, Happening::RequestEnds { life: self.ingress.life, instance });
    }

    pub fn request_ends(&mut self, life: Life, instance: &InstanceId) {
        if !self.is_ingress(life) {
            return;
        }
        let Some(count) = self.ingress.in_flight.get_mut(instance) else { return };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        self.ingress.in_flight.remove(instance);
        let is_draining = self.ingress.view.as_ref().is_some_and(|view| view.draining().contains(instance));
        if is_draining {
            let counted = self.counted();
            self.step_ingress(counted);
        }
    }

    /// An instance's process is gone: what was in flight there is cut.
    pub fn cut_requests(&mut self, instance: &InstanceId) {
        if self.ingress.in_flight.contains_key(instance) {
            self.ingress.in_flight.insert(instance.clone(), 1);
            self.after(
                Duration::from_millis(1),
                Happening::RequestEnds { life: self.ingress.life, instance: instance.clone() },
            );
        }
    }
}
