//! What ingresses let pass of limits that they share, on its way from each to all others. Nothing of it is kept: what
//! is lost makes a limit a little wider for a moment.
//!
//! An ingress asks the server that it is connected to, and gets what the others there did. Where there are several
//! servers each tells every other one what its own ingresses let pass, and never what it heard of a server: so nothing
//! comes twice, and no server need be there for two others. [`pass_on`] does the telling.
//!
//! A word says how long ago the first of what it tells passed, at most: an ingress that hears late does not take it for
//! requests of this moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rung_api::wire::{LimitTaken, LimitsTaken};
use rung_api::{Address, Client};
use rung_model::NodeId;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::shared::Control;

/// Several times the pause between two reports of an ingress that is alone, or of a server that has nothing to tell.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Words that wait for an ingress that does not ask; it has forgotten these clients by then.
const WAITING_MAX: usize = 20_000;
/// After this a server is told again how many ingresses there are here, if there are any.
const TELL_AGAIN: Duration = Duration::from_secs(3);
/// Between two words to the same server: ingresses report every 200 ms, each at a moment of its own.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked which servers there are, and whether one is to be told again.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longer than a healthy server takes; what it was not told by then is forgotten.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    proxies: BTreeMap<String, Asking>,
    servers: BTreeMap<NodeId, Server>,
    /// Something waits for another server.
    news: Arc<Notify>,
}

/// An ingress that asks here.
#[derive(Debug, Default)]
struct Asking {
    heard: Duration,
    waiting: Waiting,
}

/// Another server.
#[derive(Debug, Default)]
struct Server {
    /// How many ingresses ask there, and when it said so.
    ingresses: usize,
    heard: Option<Duration>,
    waiting: Waiting,
    /// How many there are here, as it was told, and when.
    told: Option<(usize, Duration)>,
    /// The last word's way there and back.
    took: Duration,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By limit and client.
    taken: BTreeMap<(String, String), u32>,
    /// When the first of them passed.
    since: Option<Duration>,
}

impl Shares {
    /// Takes what one ingress let pass, and answers with what the others did since it last asked.
    pub(crate) fn exchange(&mut self, proxy: &str, told: &LimitsTaken, now: Duration) -> LimitsTaken {
        self.forget_silent(now);
        let is_new = !self.proxies.contains_key(proxy);
        let own = self.proxies.entry(proxy.to_owned()).or_default();
        // A word that took longer than the one before it is older than its sender knew.
        let since_last = if is_new { Duration::ZERO } else { now.saturating_sub(own.heard) };
        let age = Duration::from_millis(told.age_ms).max(since_last);
        own.heard = now;
        let waiting = std::mem::take(&mut own.waiting);
        for (_, other) in self.proxies.iter_mut().filter(|(name, _)| *name != proxy) {
            other.waiting.add(told, age, now);
        }
        for server in self.servers.values_mut() {
            server.waiting.add(told, age, now);
        }
        if is_new || !told.limits.iter().all(|limit| limit.taken.is_empty()) {
            self.news.notify_one();
        }
        let elsewhere: usize = self.servers.values().map(|server| server.ingresses).sum();
        waiting.into_word(self.proxies.len() - 1 + elsewhere, now)
    }

    /// Another server says what its ingresses let pass, and how many they are.
    pub(crate) fn hear(&mut self, server: &NodeId, told: &LimitsTaken, now: Duration) {
        let known = self.servers.entry(server.clone()).or_default();
        known.ingresses = told.others;
        known.heard = Some(now);
        let age = Duration::from_millis(told.age_ms);
        for asking in self.proxies.values_mut() {
            asking.waiting.add(told, age, now);
        }
    }

    /// These are the other servers.
    fn among(&mut self, servers: impl Iterator<Item = NodeId>) {
        let mut before = std::mem::take(&mut self.servers);
        self.servers = servers
            .map(|server| {
                let known = before.remove(&server).unwrap_or_default();
                (server, known)
            })
            .collect();
    }

    /// What a server is to be told now, if anything.
    fn news_for(&mut self, server: &NodeId, now: Duration) -> Option<LimitsTaken> {
        self.forget_silent(now);
        let ingresses = self.proxies.len();
        let known = self.servers.get_mut(server)?;
        let is_told = match known.told {
            Some((told, at)) => told == ingresses && (ingresses == 0 || now.saturating_sub(at) < TELL_AGAIN),
            None => ingresses == 0,
        };
        if is_told && known.waiting.taken.is_empty() {
            return None;
        }
        known.told = Some((ingresses, now));
        let mut word = std::mem::take(&mut known.waiting).into_word(ingresses, now);
        // As long on its way as the last one.
        word.age_ms += millis(known.took);
        Some(word)
    }

    /// It has heard a word that was so long on its way there and back.
    fn took(&mut self, server: &NodeId, took: Duration) {
        if let Some(known) = self.servers.get_mut(server) {
            known.took = took;
        }
    }

    /// It may not have heard the last word.
    fn tell_again(&mut self, server: &NodeId) {
        if let Some(known) = self.servers.get_mut(server) {
            known.told = None;
        }
    }

    fn forget_silent(&mut self, now: Duration) {
        self.proxies.retain(|_, asking| now.saturating_sub(asking.heard) < SILENT_AFTER);
        for server in self.servers.values_mut() {
            if server.heard.is_some_and(|at| now.saturating_sub(at) >= SILENT_AFTER) {
                (server.ingresses, server.heard) = (0, None);
            }
        }
    }
}

impl Waiting {
    fn add(&mut self, told: &LimitsTaken, age: Duration, now: Duration) {
        for LimitTaken { limit, taken } in &told.limits {
            for (whose, count) in taken {
                let is_full = self.taken.len() >= WAITING_MAX;
                match self.taken.get_mut(&(limit.clone(), whose.clone())) {
                    Some(waiting) => *waiting = waiting.saturating_add(*count),
                    None if is_full => {}
                    None => drop(self.taken.insert((limit.clone(), whose.clone()), *count)),
                }
            }
        }
        if !told.limits.iter().all(|limit| limit.taken.is_empty()) {
            let since = now.saturating_sub(age);
            self.since = Some(self.since.map_or(since, |earlier| earlier.min(since)));
        }
    }

    fn into_word(self, others: usize, now: Duration) -> LimitsTaken {
        let age_ms = self.since.map_or(0, |since| millis(now.saturating_sub(since)));
        LimitsTaken { others, age_ms, limits: self.into_limits() }
    }

    fn into_limits(self) -> Vec<LimitTaken> {
        let mut limits: BTreeMap<String, LimitTaken> = BTreeMap::new();
        for ((limit, whose), count) in self.taken {
            let entry =
                limits.entry(limit.clone()).or_insert_with(|| LimitTaken { limit, taken: BTreeMap::new() });
            entry.taken.insert(whose, count);
        }
        limits.into_values().collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

/// The way to another server. One that does not answer keeps nobody else waiting.
struct Line {
    address: Address,
    client: Client,
    /// What is on its way there.
    telling: Option<JoinHandle<()>>,
}

/// Tells the other servers what ingresses here let pass, as long as this one runs.
pub(crate) async fn pass_on(control: Control) {
    let news = control.shares(|shares| shares.news.clone());
    let mut lines: BTreeMap<NodeId, Line> = BTreeMap::new();
    let mut looked: Option<Duration> = None;
    loop {
        let now = control.clock().elapsed;
        if looked.is_none_or(|at| now.saturating_sub(at) >= LOOK_EVERY) {
            look(&control, &mut lines);
            looked = Some(now);
        }
        for (server, line) in &mut lines {
            line.tell(&control, server, now);
        }
        tokio::time::sleep(PAUSE).await;
        // Who is to be told again is found without any news, too.
        let _ = tokio::time::timeout(LOOK_EVERY, news.notified()).await;
    }
}

/// Which servers there are. A line stays as long as its server is where it was.
fn look(control: &Control, lines: &mut BTreeMap<NodeId, Line>) {
    let mut before = std::mem::take(lines);
    for (server, address) in control.where_other_servers_are() {
        let known = before.remove(&server).filter(|line| line.address == address);
        let line = known.or_else(|| {
            let client = control.client_of(&server, address.clone())?;
            Some(Line { address, client, telling: None })
        });
        if let Some(line) = line {
            lines.insert(server, line);
        }
    }
    control.shares(|shares| shares.among(lines.keys().cloned()));
}

impl Line {
    fn tell(&mut self, control: &Control, server: &NodeId, now: Duration) {
        if self.telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
            return;
        }
        let Some(told) = control.shares(|shares| shares.news_for(server, now)) else { return };
        let (control, client, server) = (control.clone(), self.client.clone(), server.clone());
        self.telling = Some(tokio::spawn(async move {
            let own = &control.inner.node;
            let began = control.clock().elapsed;
            match tokio::time::timeout(PATIENCE, client.pass_limits_on(own, &told)).await {
                Ok(Ok(())) => {
                    let took = control.clock().elapsed.saturating_sub(began);
                    return control.shares(|shares| shares.took(&server, took));
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "a server was not told what was let pass");
                }
                Err(_) => tracing::debug!(%server, "a server was not told in time what was let pass"),
            }
            control.shares(|shares| shares.tell_again(&server));
        }));
    }
}

impl Control {
    pub(crate) fn shares<T>(&self, act: impl FnOnce(&mut Shares) -> T) -> T {
        act(&mut self.inner.shares.lock().expect("exchanging does not panic"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(count: u32) -> LimitsTaken {
        let taken = [("1f".to_owned(), count)].into();
        LimitsTaken { others: 0, age_ms: 250, limits: vec![LimitTaken { limit: "shop".into(), taken }] }
    }

    fn nothing() -> LimitsTaken {
        LimitsTaken { others: 0, age_ms: 0, limits: Vec::new() }
    }

    fn heard(answer: &LimitsTaken) -> u32 {
        answer.limits.iter().flat_map(|limit| limit.taken.values()).sum()
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_hears_what_the_others_let_pass_and_nothing_of_its_own() {
        let mut shares = Shares::default();
        assert_eq!(shares.exchange("a", &told(5), at(1)).others, 0, "a is alone");
        assert_eq!(heard(&shares.exchange("b", &told(0), at(1))), 0, "what was told before it came is over");
        let answer = shares.exchange("a", &told(3), at(2));
        assert_eq!((answer.others, heard(&answer)), (1, 0));
        shares.exchange("a", &told(4), at(3));
        assert_eq!(heard(&shares.exchange("b", &told(2), at(3))), 7, "two reports come as one");
        assert_eq!(heard(&shares.exchange("b", &told(0), at(4))), 0, "it was heard twice");
        assert_eq!(heard(&shares.exchange("a", &told(0), at(4))), 2);
        assert_eq!(shares.exchange("b", &told(0), at(20)).others, 0, "who is silent is gone");
    }

    #[test]
    fn what_waited_is_told_with_its_age() {
        let mut shares = Shares::default();
        let ms = Duration::from_millis;
        shares.among([id("s-1")].into_iter());
        shares.exchange("b", &nothing(), ms(900));
        shares.exchange("a", &nothing(), ms(900));
        shares.exchange("a", &told(3), ms(1000));
        shares.exchange("a", &told(3), ms(1200));
        assert_eq!(shares.exchange("b", &nothing(), ms(1300)).age_ms, 550, "the older of two words counts");
        // It was 1.4 s on its way, of which its sender knows nothing.
        shares.exchange("a", &told(3), ms(2600));
        assert_eq!(shares.exchange("b", &nothing(), ms(2700)).age_ms, 1500);
        assert_eq!(shares.exchange("b", &nothing(), ms(2800)).age_ms, 0, "nothing is told");
        shares.took(&id("s-1"), ms(40));
        let word = shares.news_for(&id("s-1"), ms(2800)).expect("there are words for it");
        assert_eq!(word.age_ms, 2050 + 40, "and the way to another server is added");
    }

    fn id(server: &str) -> NodeId {
        NodeId::new(server).unwrap()
    }

    /// Three servers that know each other, by number.
    fn three() -> [Shares; 3] {
        std::array::from_fn(|own| {
            let mut shares = Shares::default();
            shares.among((0..3).filter(|number| *number != own).map(|number| id(&format!("s-{number}"))));
            shares
        })
    }

    /// Each tells all others; how many words that took.
    fn pass_around(servers: &mut [Shares; 3], now: Duration) -> usize {
        let mut words = 0;
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                if let Some(told) = servers[from].news_for(&id(&format!("s-{to}")), now) {
                    words += 1;
                    servers[to].hear(&id(&format!("s-{from}")), &told, now);
                }
            }
        }
        words
    }

    #[test]
    fn what_one_ingress_lets_pass_reaches_those_at_other_servers_once() {
        let mut servers = three();
        for (number, server) in servers.iter_mut().enumerate() {
            server.exchange(&format!("ingress-{number}"), &nothing(), at(1));
        }
        assert_eq!(pass_around(&mut servers, at(1)), 6, "each tells both others that it has one");
        assert_eq!(pass_around(&mut servers, at(2)), 0, "they go on telling what is known");
        assert_eq!(servers[0].exchange("ingress-0", &told(5), at(2)).others, 2);
        for _ in 0..3 {
            pass_around(&mut servers, at(2));
        }
        for number in [1, 2] {
            let answer = servers[number].exchange(&format!("ingress-{number}"), &nothing(), at(2));
            assert_eq!((answer.others, heard(&answer)), (2, 5), "at server {number}");
        }
        assert_eq!(heard(&servers[0].exchange("ingress-0", &nothing(), at(3))), 0, "it heard of itself");
    }

    #[test]
    fn a_server_that_is_silent_or_gone_has_no_ingresses() {
        let mut servers = three();
        for server in &mut servers {
            server.exchange("ingress", &nothing(), at(1));
        }
        pass_around(&mut servers, at(1));
        let [server, ..] = &mut servers;
        assert_eq!(server.exchange("ingress", &nothing(), at(5)).others, 2);
        server.among([id("s-1")].into_iter());
        assert_eq!(server.exchange("ingress", &nothing(), at(6)).others, 1, "it was taken out");
        assert_eq!(server.exchange("ingress", &nothing(), at(12)).others, 0, "it says nothing any more");
    }

    #[test]
    fn one_that_missed_a_word_is_told_again_how_many_there_are() {
        let mut shares = Shares::default();
        let other = id("s-1");
        shares.among([other.clone()].into_iter());
        assert_eq!(shares.news_for(&other, at(1)), None, "nobody has anything to share");
        shares.exchange("ingress", &nothing(), at(1));
        assert!(shares.news_for(&other, at(1)).is_some());
        shares.tell_again(&other);
        assert_eq!(shares.news_for(&other, at(1)).map(|told| told.others), Some(1));
        assert_eq!(shares.news_for(&other, at(2)), None);
        shares.exchange("ingress", &nothing(), at(4));
        assert_eq!(
            shares.news_for(&other, at(4)).map(|told| told.others),
            Some(1),
            "it would count as silent"
        );
        let told = shares.news_for(&other, at(30)).map(|told| told.others);
        assert_eq!(told, Some(0), "the ingress has gone, and the other server does not know");
        assert_eq!(shares.news_for(&other, at(60)), None);
    }
}
