//! The shell around [`Schedule`]: it looks at domains and records, carries orders out, and writes what came of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::{Account as AcmeAccount, AccountCredentials, CertificateIdentifier, NewAccount};
use jiff::Timestamp;
use rung_api::wire::certificates::{CertificatePair, ChallengeWay};
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, keys};
use rung_store::{Guard, Op, Revision, Txn};
use rung_trust::Leaf;
use tokio::sync::mpsc;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, Der};

use super::carrier::Carrier;
use super::challenge::Showing;
use super::order::{self, Obtained, OrderError};
use super::record::{Account, Held, Record, Trouble, challenge_key, open, record_key, rewrap, seal};
use super::schedule::{self, ADVICE_BOUNDS, ADVICE_EVERY, Effect, Event, Facts, Schedule, is_orderable};
use super::shelf::{Index, Kept};
use crate::shared::{ATTEMPTS, Control};
use crate::trees::chain;

/// Domains come and go with releases; a new one is ordered within this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Everything of an order, the ingresses' part too.
const ORDER_MAX: Duration = Duration::from_secs(10 * 60);
/// An authority that wants fewer orders gets none for this long.
const RATE_LIMITED: Duration = Duration::from_secs(3600);

/// Runs until the process ends; orders only while this server leads.
pub(crate) async fn keep_ordered(control: Control) {
    let mut schedule = Schedule::default();
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut changes = control.inner.shelf.changes();
    let mut account = CachedAccount::default();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(domain) = endings.recv() => {
                // It has no effects of its own: the look below has.
                schedule.step(Event::Ended(domain), Timestamp::now());
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let index = changes.borrow_and_update().clone();
        if index.sequence == 0 || !control.read_loop(crate::reconcile::Reconcile::leads) {
            continue;
        }
        control.sweep(&index).await;
        let Some(set) = &index.account else { continue };
        let effects = schedule.step(Event::Seen(control.facts(&index)), Timestamp::now());
        if effects.is_empty() {
            continue;
        }
        let desk = account.of(&control, set);
        for effect in effects {
            let (control, desk, ended) = (control.clone(), desk.clone(), ended.clone());
            tokio::spawn(async move {
                let domain = match effect {
                    Effect::Order { domain, way } => {
                        control.order(&desk, &domain, way).await;
                        domain
                    }
                    Effect::AskAdvice { domain } => {
                        control.ask_advice(&desk, &domain).await;
                        domain
                    }
                };
                // The loop ends with the process only.
                let _ = ended.send(domain);
            });
        }
    }
}

/// The account at the authority, opened once for each that is set.
#[derive(Debug, Default)]
struct CachedAccount(Option<(Timestamp, Arc<Desk>)>);

impl CachedAccount {
    fn of(&mut self, control: &Control, set: &Kept<Account>) -> Arc<Desk> {
        match &self.0 {
            Some((at, desk)) if *at == set.value.at => desk.clone(),
            _ => {
                let desk = Arc::new(Desk { control: control.clone(), opened: tokio::sync::OnceCell::new() });
                self.0 = Some((set.value.at, desk.clone()));
                desk
            }
        }
    }
}

struct Desk {
    control: Control,
    opened: tokio::sync::OnceCell<AcmeAccount>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    /// Opens the account, or makes it; several orders at once make one.
    async fn account(&self) -> Result<&AcmeAccount, OrderError> {
        self.opened.get_or_try_init(|| self.control.open_account()).await
    }
}

impl Control {
    /// What is known of every domain that a certificate is to be ordered for.
    fn facts(&self, index: &Index) -> BTreeMap<String, Facts> {
        // Before an ingress has asked nothing can be proved, and it may have one by file.
        if !self.inner.shelf.is_followed() {
            return BTreeMap::new();
        }
        let by_file: BTreeSet<String> = self.inner.shelf.files().into_iter().map(|file| file.host).collect();
        let wanted = self.domains().into_keys();
        let wanted = wanted.filter(|domain| is_orderable(domain) && !is_covered(&by_file, domain));
        // What failed with another account says nothing of this one.
        let since = index.account.as_ref().map_or(Timestamp::MIN, |kept| kept.value.at);
        wanted.map(|domain| (domain.clone(), facts_of(index.records.get(&domain), since))).collect()
    }

    /// The domains of what runs, with the app of each.
    pub(crate) fn domains(&self) -> BTreeMap<String, AppName> {
        self.read(|world| {
            let current = world.apps.values().filter_map(|held| {
                let app = &held.value;
                Some((app.name.clone(), world.release(&app.name, app.current?)?))
            });
            let named = current.flat_map(|(app, release)| {
                release.file.domains.iter().map(move |domain| (domain.clone(), app.clone()))
            });
            named.collect()
        })
    }

    async fn open_account(&self) -> Result<AcmeAccount, OrderError> {
        let index = self.inner.shelf.index();
        let kept = index.account.as_ref().ok_or(OrderError::Store("no account is set any more".into()))?;
        let account = &kept.value;
        let carrier = Box::new(Carrier::new(account.trust.as_deref()));
        let builder = AcmeAccount::builder_with_http(carrier);
        if let Some(sealed) = &account.sealed_credentials {
            let opened = open(&self.inner.keys, keys::TLS_ACCOUNT, sealed)
                .map_err(|error| OrderError::Store(error.to_string()))?;
            let credentials: AccountCredentials = serde_json::from_str(&opened).map_err(|_| {
                OrderError::Store("the account's key is damaged; set the account again".into())
            })?;
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact = account.email.as_ref().map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wanted =
            NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let (made, credentials) = builder.create(&wanted, account.directory.clone(), None).await?;
        let credentials = serde_json::to_string(&credentials).expect("credentials serialize");
        let _sealing = self.inner.keys.sealing().await;
        let sealed = seal(&self.inner.keys, keys::TLS_ACCOUNT, &credentials);
        let value = Account { sealed_credentials: Some(sealed), ..account.clone() };
        let value = serde_json::to_vec(&value).expect("documents serialize");
        let key = keys::TLS_ACCOUNT.to_owned();
        let guard = Guard::Modified { key: key.clone(), revision: kept.revision };
        match self.txn(vec![guard], vec![Op::Put { key, value, lease: None }]).await {
            Ok(Txn::Committed(revision)) => {
                self.inner.shelf.reach(revision).await;
                Ok(made)
            }
            Ok(_) => Err(OrderError::Store("the account was changed meanwhile".into())),
            Err(error) => Err(OrderError::Store(error.to_string())),
        }
    }

    /// Orders, and writes what came of it. The shelf holds that when it returns.
    async fn order(&self, desk: &Desk, domain: &str, way: ChallengeWay) {
        let mut showing = Showing::new(self.clone());
        let ordering = async {
            let account = desk.account().await?;
            let replaced = self.replaced(domain);
            order::obtain(account, domain, way, replaced, &mut showing).await
        };
        let outcome = match tokio::time::timeout(ORDER_MAX, ordering).await {
            Ok(outcome) => outcome,
            Err(_) => Err(OrderError::TooLong(ORDER_MAX)),
        };
        showing.end().await;
        match outcome {
            Ok(obtained) => self.keep_certificate(domain, &obtained).await,
            Err(error) => self.note_failure(domain, &error).await,
        }
    }

    /// Which certificate an authority that gives advice shall know to be replaced.
    fn replaced(&self, domain: &str) -> Option<CertificateIdentifier<'static>> {
        let index = self.inner.shelf.index();
        let record = &index.records.get(domain)?.value;
        let held = record.held.as_ref()?;
        // One that was refused is ordered as a new one.
        let is_known = held.advised.is_some() && record.trouble.is_none();
        is_known.then(|| identifier(&held.chain)).flatten()
    }

    async fn keep_certificate(&self, domain: &str, obtained: &Obtained) {
        let at = |time| Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
        let (from, until) = (at(obtained.leaf.from), at(obtained.leaf.until));
        let _sealing = self.inner.keys.sealing().await;
        let held = Held {
            chain: obtained.chain.clone(),
            sealed_key: seal(&self.inner.keys, &record_key(domain), &obtained.key),
            from,
            until,
            renew: schedule::renewal(from, until),
            ask_again: Timestamp::now(),
            advised: None,
            rest: serde_json::Map::new(),
        };
        let app = self.domains().remove(domain);
        let written = self.write_record(domain, |record| {
            let before = record.held.take();
            let ask_again = schedule::first_question(before.is_some(), held.ask_again);
            let rest = before.map(|before| before.rest).unwrap_or_default();
            record.held = Some(Held { rest, ask_again, ..held.clone() });
            record.trouble = None;
            record.asked = None;
        });
        if written.await {
            let until = until.strftime("%Y-%m-%d %H:%M UTC");
            self.record(app.as_ref(), "certificate", format!("{domain} has a certificate until {until}"));
        }
    }

    async fn note_failure(&self, domain: &str, error: &OrderError) {
        let why = chain(error);
        let now = Timestamp::now();
        let least = if error.is_rate_limit() { RATE_LIMITED } else { Duration::ZERO };
        let mut told = None;
        let app = self.domains().remove(domain);
        let written = self.write_record(domain, |record| {
            let failures = record.trouble.as_ref().map_or(0, |trouble| trouble.failures).saturating_add(1);
            let pause = schedule::pause(failures).max(least);
            // Many that fail together do not come back together.
            let pause = pause + pause.mul_f64(fastrand::f64() / 10.0);
            let again = now.checked_add(pause).unwrap_or(Timestamp::MAX);
            let is_news = record.trouble.as_ref().is_none_or(|trouble| trouble.why != why);
            told = is_news.then_some(pause);
            record.trouble = Some(Trouble { failures, why: why.clone(), at: now, again });
            record.asked = None;
        });
        if written.await
            && let Some(pause) = told
        {
            let minutes = pause.as_secs().div_ceil(60);
            let message = format!("{domain} got no certificate: {why}; tried again in {minutes} min");
            self.record(app.as_ref(), "certificate", message);
        }
    }

    /// When the authority would like to see the certificate renewed.
    async fn ask_advice(&self, desk: &Desk, domain: &str) {
        let index = self.inner.shelf.index();
        let held = index.records.get(domain).and_then(|kept| kept.value.held.clone());
        let identified = held.as_ref().and_then(|held| identifier(&held.chain));
        let advice = match (identified, desk.account().await) {
            (Some(identifier), Ok(account)) => account.renewal_info(&identifier).await.ok(),
            _ => None,
        };
        let now = Timestamp::now();
        self.write_record(domain, |record| {
            let Some(held) = &mut record.held else { return };
            let (renew, pause) = match &advice {
                Some((info, pause)) => {
                    let window = &info.suggested_window;
                    let at = |time: SystemTime| Timestamp::try_from(time).ok();
                    let bounds = at(window.start.into()).zip(at(window.end.into()));
                    held.advised = Some(now);
                    let draw = fastrand::f64();
                    let renew =
                        bounds.and_then(|(start, end)| schedule::advised(start, end, held.until, draw));
                    (renew, (*pause).clamp(ADVICE_BOUNDS.0, ADVICE_BOUNDS.1))
                }
                // It gives none, or is not there: what was planned holds.
                None => (None, ADVICE_EVERY),
            };
            held.renew = renew.unwrap_or(held.renew);
            held.ask_again = now.checked_add(pause).unwrap_or(Timestamp::MAX);
        })
        .await;
    }

    /// Changes a domain's record and waits until the shelf holds it. `false`: it could not be written.
    pub(crate) async fn write_record(&self, domain: &str, mut change: impl FnMut(&mut Record)) -> bool {
        for _ in 0..ATTEMPTS {
            let index = self.inner.shelf.index();
            let kept = index.records.get(domain);
            let mut record = kept.map(|kept| kept.value.clone()).unwrap_or_default();
            change(&mut record);
            let key = record_key(domain);
            let guard = match kept {
                Some(kept) => Guard::Modified { key: key.clone(), revision: kept.revision },
                None => Guard::Absent { key: key.clone() },
            };
            let value = serde_json::to_vec(&record).expect("documents serialize");
            match self.txn(vec![guard], vec![Op::Put { key, value, lease: None }]).await {
                Ok(Txn::Committed(revision)) => {
                    self.inner.shelf.reach(revision).await;
                    return true;
                }
                Ok(Txn::Conflict | Txn::Unknown) => self.see_news(&index).await,
                Err(error) => {
                    tracing::warn!(domain, %error, "what became of a certificate's order can't be written");
                    return false;
                }
            }
        }
        tracing::warn!(domain, "what became of a certificate's order can't be written: others write it");
        false
    }

    /// Somebody else wrote: waits a moment for the shelf to hold it.
    async fn see_news(&self, before: &Index) {
        let mut changes = self.inner.shelf.changes();
        let newer = changes.wait_for(|index| index.sequence != before.sequence);
        let _ = tokio::time::timeout(LOOK_EVERY, newer).await;
    }

    /// Removes what nobody needs: challenges of killed servers, and records of domains that no app names any more, once
    /// what they hold has ended.
    async fn sweep(&self, index: &Index) {
        let now = Timestamp::now();
        let left = index.challenges.iter().filter(|(_, kept)| kept.until <= now);
        let mut left: Vec<String> = left.map(|(token, _)| challenge_key(token)).collect();
        let ended = |kept: &Kept<Record>| kept.value.held.as_ref().is_none_or(|held| held.until <= now);
        let ended: Vec<_> = index.records.iter().filter(|(_, kept)| ended(kept)).collect();
        if !ended.is_empty() {
            let domains = self.domains();
            let unnamed = ended.into_iter().filter(|(domain, _)| !domains.contains_key(*domain));
            left.extend(unnamed.map(|(domain, _)| record_key(domain)));
        }
        for key in left {
            if let Err(error) = self.txn(Vec::new(), vec![Op::Delete { key }]).await {
                tracing::debug!(%error, "sweeping what is left of certificates");
                return;
            }
        }
    }
}

fn facts_of(kept: Option<&Kept<Record>>, since: Timestamp) -> Facts {
    let Some(record) = kept.map(|kept| &kept.value) else { return Facts::default() };
    let trouble = record.trouble.as_ref().filter(|trouble| trouble.at >= since);
    Facts {
        renew: record.held.as_ref().map(|held| held.renew),
        ask_again: record.held.as_ref().map(|held| held.ask_again),
        failures: trouble.map_or(0, |trouble| trouble.failures),
        again: trouble.map(|trouble| trouble.again),
        asked: record.asked.is_some(),
    }
}

/// Whether somebody put a certificate for it beside an ingress; a wildcard covers one level.
pub(super) fn is_covered(by_file: &BTreeSet<String>, domain: &str) -> bool {
    let wildcard = domain.split_once('.').map(|(_, rest)| format!("*.{rest}"));
    by_file.contains(domain) || wildcard.is_some_and(|wildcard| by_file.contains(&wildcard))
}

/// By which an authority knows a certificate.
fn identifier(chain: &str) -> Option<CertificateIdentifier<'static>> {
    let leaf = CertificateDer::pem_slice_iter(chain.as_bytes()).next()?.ok()?;
    let leaf = Leaf::read(&leaf).ok()?;
    let key = leaf.authority_key?;
    let identifier = CertificateIdentifier::new(Der::from_slice(&key), Der::from_slice(&leaf.serial));
    Some(identifier.into_owned())
}

impl Control {
    /// For an ingress: the certificate of a host, and its key.
    pub(crate) fn certificate_pair(&self, host: &str) -> Result<CertificatePair, ErrorBody> {
        let index = self.inner.shelf.index();
        let held =
            index.records.get(host).and_then(|kept| kept.value.held.as_ref()).ok_or_else(|| {
                ErrorBody::new(Code::NotFound, format!("there is no certificate for {host}"))
            })?;
        let key = open(&self.inner.keys, &record_key(host), &held.sealed_key).map_err(|trouble| {
            ErrorBody::new(Code::Internal, trouble.to_string())
                .hint("was secret.key of the data directory replaced? put the old one back")
        })?;
        Ok(CertificatePair { chain: held.chain.clone(), key })
    }

    /// Puts every key of certificates under the primary master key; answers how many were not there yet.
    pub(crate) async fn rewrap_certificates(
        &self,
        lost: &mut Vec<String>,
    ) -> Result<u64, rung_store::StoreError> {
        let index = self.inner.shelf.index();
        let mut rewrap = |at: &str, sealed: &str| {
            let rewrapped = rewrap(&self.inner.keys, at, sealed);
            rewrapped.unwrap_or_else(|trouble| {
                lost.push(trouble.at);
                None
            })
        };
        let mut wrapped = 0;
        if let Some(kept) = &index.account
            && let Some(sealed) = &kept.value.sealed_credentials
            && let Some(sealed) = rewrap(keys::TLS_ACCOUNT, sealed)
        {
            let account = Account { sealed_credentials: Some(sealed), ..kept.value.clone() };
            wrapped += self.replace(keys::TLS_ACCOUNT.to_owned(), &account, kept.revision).await?;
        }
        for (domain, kept) in &index.records {
            let Some(held) = &kept.value.held else { continue };
            let key = record_key(domain);
            let Some(sealed_key) = rewrap(&key, &held.sealed_key) else { continue };
            let held = Some(Held { sealed_key, ..held.clone() });
            wrapped += self.replace(key, &Record { held, ..kept.value.clone() }, kept.revision).await?;
        }
        Ok(wrapped)
    }

    /// Whoever was quicker wrote with the primary key already, or is found in the next round.
    async fn replace<T: serde::Serialize>(
        &self,
        key: String,
        document: &T,
        revision: Revision,
    ) -> Result<u64, rung_store::StoreError> {
        let value = serde_json::to_vec(document).expect("documents serialize");
        let guard = Guard::Modified { key: key.clone(), revision };
        if let Txn::Committed(revision) =
            self.txn(vec![guard], vec![Op::Put { key, value, lease: None }]).await?
        {
            self.inner.shelf.reach(revision).await;
        }
        Ok(1)
    }
}
