//! `[pages]`: what an app shows instead of Rung's own pages.

use super::error::Findings;
use super::read::{Field, Table, clip};
use super::{defaults, schema, values};
use crate::route::Pages;

/// What the ingress says by itself.
const STATUSES: [u16; 13] = [400, 401, 403, 404, 408, 413, 421, 429, 431, 500, 502, 503, 504];

pub(super) fn read(top: &Table<'_, '_>, findings: &mut Findings<'_>) -> Pages {
    let mut pages = Pages::default();
    let Some(field) = top.field("pages") else { return pages };
    let example = "[pages] with maintenance = \"<h1>Back soon</h1>\" below it";
    for entry in field.entries(findings, example) {
        let status = entry.key.parse().ok().filter(|status| STATUSES.contains(status));
        if status.is_none() && !schema::PAGES.keys.contains(&entry.key.as_str()) {
            let message = format!("`{}` is not a page", clip(&entry.key));
            let statuses = STATUSES.map(|status| status.to_string()).join(", ");
            let way_out = format!("pages are `maintenance`, `error`, and by status: {statuses}");
            findings.report(entry.key_span.clone(), message, way_out);
            continue;
        }
        let Some(html) = html(&entry, findings) else { continue };
        match (status, entry.key.as_str()) {
            (Some(status), _) => drop(pages.by_status.insert(status, html)),
            (None, "maintenance") => pages.maintenance = Some(html),
            (None, _) => pages.error = Some(html),
        }
    }
    pages
}

fn html(entry: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<String> {
    let text = entry.text(findings, "\"<h1>Back soon</h1>\"")?;
    if text.len() <= defaults::PAGE_MAX {
        return Some(text.to_owned());
    }
    let max = values::show_size(defaults::PAGE_MAX as u64);
    let message = format!("`{}` is longer than {max}", clip(&entry.name));
    entry.report(findings, message, "keep it short: pictures and styles can come from another host");
    None
}
