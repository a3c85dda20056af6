//! What goes wrong, and how often. Each story has its own rates, so that some are nearly calm and some are not.

use std::time::Duration;

use fastrand::Rng;

use crate::agenda::Happening;
use crate::story::{Story, say};

/// How likely what goes wrong is; `0` is never, `n` is once in `n` times.
#[derive(Debug, Default)]
pub struct Faults {
    /// No more faults, and no more people, from then on.
    pub end: Duration,
    pub have_ended: bool,
    pub lost_message: u32,
    pub doubled_message: u32,
    pub slow_message: u32,
    pub unknown_commit: u32,
    /// A kill between two effects of one step.
    pub killed_between: u32,
    every: (u64, u64),
    pub store_down_until: Duration,
    paused: [Duration; 3],
}

/// Who can be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Server,
    Agent,
    Ingress,
}

impl Faults {
    pub fn any(rng: &mut Rng) -> Self {
        let rate = |rng: &mut Rng, most: u32| if rng.bool() { 0 } else { rng.u32(most..most * 20) };
        Self {
            end: Duration::from_secs(rng.u64(10..45)),
            lost_message: rate(rng, 5),
            doubled_message: rate(rng, 4),
            slow_message: rate(rng, 4),
            unknown_commit: rate(rng, 6),
            killed_between: rate(rng, 60),
            every: if rng.u32(0..4) == 0 { (100_000, 200_000) } else { (200, rng.u64(1000..12_000)) },
            ..Self::default()
        }
    }

    /// Until when the part that this happens to stands still.
    pub fn paused_until(&self, happening: &Happening, now: Duration) -> Option<Duration> {
        let until = self.paused[part_of(happening)? as usize];
        (now < until).then_some(until)
    }
}

fn part_of(happening: &Happening) -> Option<Part> {
    use Happening as H;
    Some(match happening {
        H::ServerTick(_)
        | H::WatchReady(_)
        | H::ListPage(_)
        | H::Written { .. }
        | H::AssignmentPolled { .. }
        | H::Reported { .. }
        | H::ReleaseAsked { .. }
        | H::RoutesPolled { .. }
        | H::RoutesPollClosed { .. } => Part::Server,
        H::AgentTick(_)
        | H::AgentHears(..)
        | H::AssignmentAnswered { .. }
        | H::ReportAnswered { .. }
        | H::AgentRetries(_)
        | H::Spawned { .. }
        | H::DataPurged { .. } => Part::Agent,
        H::IngressTick(_)
        | H::TableApplied { .. }
        | H::RoutesAnswered { .. }
        | H::RoutesFailed { .. }
        | H::RequestEnds { .. } => Part::Ingress,
        _ => return None,
    })
}

/// What becomes of a message.
pub(crate) enum Fate {
    /// It arrives after each of these times.
    Arrives(Vec<Duration>),
    /// It does not; its sender notices after this time.
    Lost(Duration),
}

impl Story {
    pub fn faulty(&mut self, rate: fn(&Faults) -> u32) -> bool {
        let rate = rate(&self.faults);
        !self.faults.have_ended && self.once_in(rate)
    }

    pub(crate) fn fate(&mut self) -> Fate {
        if self.faulty(|faults| faults.lost_message) {
            return Fate::Lost(self.between_ms(100, 4000));
        }
        let mut arrivals = vec![self.message_delay()];
        if self.faulty(|faults| faults.doubled_message) {
            arrivals.push(self.message_delay());
        }
        Fate::Arrives(arrivals)
    }

    fn message_delay(&mut self) -> Duration {
        if self.faulty(|faults| faults.slow_message) {
            self.between_ms(5, 3000)
        } else {
            self.between_ms(0, 3)
        }
    }

    /// Something big breaks.
    pub fn fault(&mut self) {
        if self.faults.have_ended {
            return;
        }
        let (from, to) = self.faults.every;
        let next = self.between_ms(from, to);
        self.after(next, Happening::Fault);
        self.summary.faults += 1;
        match self.rng.u32(0..11) {
            0 => self.kill_server(),
            1 => self.kill_agent(),
            2 => self.kill_ingress(),
            3 => {
                self.kill_server();
                self.kill_agent();
            }
            4 => {
                self.faults.store_down_until = self.now + self.between_ms(10, 8000);
                say!(self, "the disk is full");
            }
            5 => {
                let step = self.rng.i64(-3_600_000..3_600_000);
                self.clock_offset += step;
                say!(self, "the clock steps by {step} ms");
            }
            6 => {
                let part = [Part::Server, Part::Agent, Part::Ingress][self.rng.usize(0..3)];
                let longest = if self.rng.bool() { 1000 } else { 20_000 };
                let pause = self.between_ms(10, longest);
                self.faults.paused[part as usize] = self.now + pause;
                say!(self, "{part:?} stands still for {pause:?}");
            }
            7..=9 => self.crash_a_process(),
            _ => self.make_a_process_ill(),
        }
    }

    pub fn end_faults(&mut self) {
        say!(self, "no more faults, and nobody asks for anything any more");
        self.faults.have_ended = true;
        self.faults.store_down_until = self.now;
        self.after(Duration::from_millis(500), Happening::Look);
    }

    pub fn store_is_down(&self) -> bool {
        self.now < self.faults.store_down_until
    }
}
