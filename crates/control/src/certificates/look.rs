//! What people are told of certificates: the list, lines in `rung doctor`, problems of an app.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use rung_api::wire::certificates::{
    AccountListing, CertificateListing, CertificateReport, CertificateSource, FileCertificate, UselessFile,
};
use rung_api::wire::{DoctorCheck, DoctorState};
use rung_model::AppName;

use super::desk::is_covered;
use super::record::Record;
use super::schedule::is_orderable;
use crate::shared::Control;

/// Whoever looks after a file is told so long before its end.
const FILE_ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

const RENEW_HINT: &str = "mend what is named, then `rung certificate renew DOMAIN` orders it at once";

impl Control {
    pub(crate) fn certificate_report(&self) -> CertificateReport {
        let index = self.inner.shelf.index();
        let account = index.account.as_ref().map(|kept| AccountListing {
            directory: kept.value.directory.clone(),
            email: kept.value.email.clone(),
            at: kept.value.at,
            by: kept.value.by.clone(),
        });
        let records = index.records.iter().map(|(domain, kept)| (domain.clone(), kept.value.clone()));
        let files = self.inner.shelf.files();
        let certificates = list(self.domains(), records.collect(), &files, account.is_some());
        CertificateReport { account, certificates }
    }

    /// For `rung doctor`: what ends soon, and what can't be ordered.
    pub(crate) fn check_certificates(&self) -> Vec<DoctorCheck> {
        let now = Timestamp::now();
        let report = self.certificate_report();
        let listed = report.certificates.iter().filter_map(|listing| check(listing, now));
        listed.chain(self.inner.shelf.useless_files().iter().map(check_useless)).collect()
    }

    /// For `rung status`: the same of one app.
    pub(crate) fn certificate_problems(&self, app: &AppName) -> Vec<String> {
        let now = Timestamp::now();
        let named = self.read(|world| {
            let current = world.apps.get(app)?.value.current?;
            Some(world.release(app, current)?.file.domains.clone())
        });
        let domains: BTreeMap<_, _> =
            named.unwrap_or_default().into_iter().map(|domain| (domain, app.clone())).collect();
        let index = self.inner.shelf.index();
        let own = index.records.iter().filter(|(domain, _)| domains.contains_key(*domain));
        let records = own.map(|(domain, kept)| (domain.clone(), kept.value.clone())).collect();
        let listings = list(domains, records, &self.inner.shelf.files(), index.account.is_some());
        let own = listings.iter().filter(|listing| listing.app.is_some());
        own.filter_map(|listing| Some(check(listing, now)?.detail)).collect()
    }
}

fn list(
    domains: BTreeMap<String, AppName>,
    mut records: BTreeMap<String, Record>,
    files: &[FileCertificate],
    is_ordering: bool,
) -> Vec<CertificateListing> {
    let hosts: BTreeSet<String> = files.iter().map(|file| file.host.clone()).collect();
    let ends = |host: &str| files.iter().filter(|file| file.host == host).map(|file| file.until).min();
    let mut listings: Vec<CertificateListing> = Vec::new();
    for (domain, app) in &domains {
        let record = records.remove(domain).unwrap_or_default();
        let by_file = is_covered(&hosts, domain);
        let source = match (by_file, is_orderable(domain) && is_ordering) {
            (true, _) => CertificateSource::File,
            (false, true) => CertificateSource::Acme,
            (false, false) if record.held.is_some() => CertificateSource::Acme,
            (false, false) => CertificateSource::Nobody,
        };
        let listing = of_record(domain, Some(app.clone()), source, &record);
        listings.push(if by_file {
            let wildcard = domain.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            let until = ends(domain).or_else(|| ends(&wildcard?));
            CertificateListing { until, renewal: None, trouble: None, ..listing }
        } else {
            listing
        });
    }
    // What no app names any more is kept to its end.
    let unnamed = records.into_iter().filter(|(_, record)| record.held.is_some());
    listings
        .extend(unnamed.map(|(domain, record)| of_record(&domain, None, CertificateSource::Acme, &record)));
    for file in files.iter().filter(|file| !domains.contains_key(&file.host)) {
        listings.push(CertificateListing {
            domain: file.host.clone(),
            app: None,
            source: CertificateSource::File,
            until: Some(file.until),
            renewal: None,
            trouble: None,
        });
    }
    listings.sort_by(|a, b| a.domain.cmp(&b.domain));
    listings.dedup_by(|a, b| a.domain == b.domain);
    listings
}

fn of_record(
    domain: &str,
    app: Option<AppName>,
    source: CertificateSource,
    record: &Record,
) -> CertificateListing {
    let (held, trouble) = (record.held.as_ref(), record.trouble.as_ref());
    let is_ordered = app.is_some() && source == CertificateSource::Acme;
    let renewal = held.map(|held| held.renew).max(trouble.map(|trouble| trouble.again));
    CertificateListing {
        domain: domain.to_owned(),
        app,
        source,
        until: held.map(|held| held.until),
        renewal: renewal.filter(|_| is_ordered),
        trouble: trouble.map(|trouble| trouble.why.clone()).filter(|_| is_ordered),
    }
}

fn check(listing: &CertificateListing, now: Timestamp) -> Option<DoctorCheck> {
    // One that nobody shows is nobody's trouble.
    let is_shown = listing.app.is_some();
    let domain = &listing.domain;
    let (state, detail, hint) = match (listing.source, listing.until, &listing.trouble) {
        (CertificateSource::File, Some(until), _) if ends_within(until, now, FILE_ENDS_SOON) => {
            let state = if until <= now { DoctorState::Broken } else { DoctorState::Warning };
            let detail = format!("{domain}: the certificate by file {}", ends(until, now));
            (
                state,
                detail,
                "put a new one in its place: ingress/certificates/ in the data directory".to_owned(),
            )
        }
        (CertificateSource::Acme, Some(until), trouble) if is_shown && until <= now => {
            let why = trouble.as_ref().map(|why| format!(" and can't be renewed: {why}")).unwrap_or_default();
            let detail = format!("{domain}: the certificate {}{why}", ends(until, now));
            (DoctorState::Broken, detail, RENEW_HINT.to_owned())
        }
        (CertificateSource::Acme, Some(until), Some(why)) if is_shown => {
            let detail =
                format!("{domain}: the certificate {} and can't be renewed: {why}", ends(until, now));
            (DoctorState::Warning, detail, RENEW_HINT.to_owned())
        }
        (CertificateSource::Acme, None, Some(why)) if is_shown => {
            let detail = format!("{domain} has no certificate: {why}");
            (DoctorState::Warning, detail, RENEW_HINT.to_owned())
        }
        _ => return None,
    };
    let hint = hint.replace("DOMAIN", domain);
    Some(DoctorCheck { name: "certificate".to_owned(), state, detail, hint: Some(hint) })
}

fn check_useless(file: &UselessFile) -> DoctorCheck {
    DoctorCheck {
        name: "certificate".to_owned(),
        state: DoctorState::Warning,
        detail: format!("{}: of no use by file: {}", file.host, file.why),
        hint: Some("ingress/certificates/ in the data directory wants NAME.crt and NAME.key".to_owned()),
    }
}

fn ends_within(until: Timestamp, now: Timestamp, time: Duration) -> bool {
    now.checked_add(time).is_ok_and(|then| until <= then)
}

fn ends(until: Timestamp, now: Timestamp) -> String {
    let left = until.duration_since(now);
    match (left.is_negative(), left.as_hours() / 24) {
        (true, _) => format!("ended at {}", until.strftime("%Y-%m-%d %H:%M UTC")),
        (false, 0) => "ends within a day".to_owned(),
        (false, 1) => "ends in a day".to_owned(),
        (false, days) => format!("ends in {days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::record::{Held, Trouble};

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + day * 86_400).unwrap()
    }

    fn held(until: i64) -> Record {
        let held = Held {
            chain: String::new(),
            sealed_key: String::new(),
            from: day(0),
            until: day(until),
            renew: day(until * 2 / 3),
            ask_again: day(1),
            advised: None,
            rest: serde_json::Map::new(),
        };
        Record { held: Some(held), ..Record::default() }
    }

    fn failing(mut record: Record) -> Record {
        let why = "connecting to acme.example:443 failed".to_owned();
        record.trouble = Some(Trouble { failures: 3, why, at: day(1), again: day(61) });
        record
    }

    fn listing(record: Record, files: &[FileCertificate]) -> CertificateListing {
        let app = AppName::new("shop").unwrap();
        let domains = BTreeMap::from([("shop.example".to_owned(), app)]);
        list(domains, BTreeMap::from([("shop.example".to_owned(), record)]), files, true).remove(0)
    }

    #[test]
    fn a_certificate_that_is_renewed_in_time_is_no_news() {
        assert!(check(&listing(held(90), &[]), day(70)).is_none());
        assert!(check(&listing(Record::default(), &[]), day(0)).is_none(), "one that is being ordered");
    }

    #[test]
    fn one_that_cannot_be_renewed_is_told_with_its_days_and_why() {
        let told = check(&listing(failing(held(90)), &[]), day(80)).unwrap();
        assert_eq!(told.state, DoctorState::Warning);
        assert_eq!(
            told.detail,
            "shop.example: the certificate ends in 10 days and can't be renewed: connecting to acme.example:443 failed"
        );
        assert!(told.hint.unwrap().contains("rung certificate renew shop.example"));
        assert_eq!(check(&listing(failing(held(90)), &[]), day(91)).unwrap().state, DoctorState::Broken);
        let none = check(&listing(failing(Record::default()), &[]), day(0)).unwrap();
        assert!(none.detail.starts_with("shop.example has no certificate: connecting"), "{}", none.detail);
    }

    #[test]
    fn a_file_stands_before_what_was_ordered_and_is_told_two_weeks_before_its_end() {
        let file = |host: &str| FileCertificate { host: host.to_owned(), until: day(20) };
        let listed = listing(failing(held(90)), &[file("shop.example")]);
        assert_eq!((listed.source, listed.until), (CertificateSource::File, Some(day(20))));
        assert!(check(&listed, day(5)).is_none());
        let told = check(&listed, day(7)).unwrap();
        assert!(told.detail.contains("by file ends in 13 days"), "{}", told.detail);
        let domains = BTreeMap::from([("a.shop.example".to_owned(), AppName::new("shop").unwrap())]);
        let listed = list(domains, BTreeMap::new(), &[file("*.shop.example")], true).remove(1);
        assert_eq!((listed.domain.as_str(), listed.source), ("a.shop.example", CertificateSource::File));
    }
}
