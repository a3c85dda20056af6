//! `rung certificate list`.

use rung_api::wire::certificates::{CertificateListing, CertificateReport, CertificateSource};

use super::paint::{Mood, Paint};
use super::table::{Cell, cell, colored, table};
use super::time::Clock;

pub fn render(report: &CertificateReport, paint: Paint, clock: &Clock) -> String {
    let account = match &report.account {
        Some(account) => {
            let email = account.email.as_ref().map(|email| format!(" for {email}")).unwrap_or_default();
            format!("ordered at {}{email}", account.directory)
        }
        None => "none are ordered; `rung certificate enable` begins".to_owned(),
    };
    if report.certificates.is_empty() {
        return format!("{account}\nno app that runs names a domain, and no certificate lies by file");
    }
    let rows: Vec<_> = report.certificates.iter().map(|listing| row(listing, clock)).collect();
    let mut out = table(&["DOMAIN", "APP", "BY", "HOLDS UNTIL", "NEXT ORDER"], &rows, paint);
    for listing in &report.certificates {
        if let Some(trouble) = &listing.trouble {
            out.push_str(&format!("\n{}: {trouble}", listing.domain));
        }
    }
    format!("{out}\n{account}")
}

fn row(listing: &CertificateListing, clock: &Clock) -> Vec<Cell> {
    let until = match (listing.until, listing.source) {
        (Some(until), _) if until <= clock.now => colored("ended", Mood::Bad),
        (Some(until), _) => cell(clock.ahead(until)),
        (None, CertificateSource::Acme) if listing.trouble.is_none() => cell("being ordered"),
        (None, _) => colored("none", Mood::Bad),
    };
    let next = match (listing.renewal, listing.source) {
        (Some(next), _) if next <= clock.now => cell("now"),
        (Some(next), _) => cell(clock.ahead(next)),
        (None, _) => cell("-"),
    };
    let app = listing.app.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    vec![cell(&listing.domain), cell(app), cell(listing.source), until, next]
}
