//! One `[jobs.<name>]`.

use super::defaults;
use super::error::Findings;
use super::read::{Field, Table, clip, nearest};
use super::service::{ServicePlaces, mounts};
use super::{Job, values};
use crate::job::{CatchUp, Overlap};
use crate::schedule::Zone;

pub(super) fn read(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> (Job, ServicePlaces) {
    let (mounts, places) = mounts(table, findings);
    let schedule =
        table.field("schedule").and_then(|field| field.parsed(findings, "\"0 3 * * *\"", values::schedule));
    let timezone =
        table.field("timezone").and_then(|field| field.parsed(findings, "\"Europe/Vienna\"", values::zone));
    let overlaps = [("forbid", Overlap::Forbid), ("allow", Overlap::Allow), ("replace", Overlap::Replace)];
    let catch_ups = [("none", CatchUp::None), ("last", CatchUp::Last), ("all", CatchUp::All)];
    let job = Job {
        command: command(table, findings),
        schedule,
        timezone: timezone.unwrap_or_else(Zone::utc),
        overlap: one_of(table, "overlap", &overlaps, findings),
        catch_up: one_of(table, "catch_up", &catch_ups, findings),
        start_deadline: work(table, "start_deadline", findings).unwrap_or(defaults::JOB_START_DEADLINE),
        timeout: work(table, "timeout", findings).unwrap_or(defaults::JOB_TIMEOUT),
        retries: retries(table, findings),
        retry_after: work(table, "retry_after", findings).unwrap_or(defaults::JOB_RETRY_AFTER),
        memory_bytes: table.field("memory").and_then(|field| field.size(findings, defaults::MEMORY_BOUNDS)),
        cpu_millis: table.field("cpu").and_then(|field| field.cores(findings, defaults::CPU_BOUNDS)),
        mounts,
    };
    refuse_contradictions(table, &job, findings);
    (job, places)
}

fn command(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> String {
    match table.field("command") {
        Some(field) => field.text(findings, "\"bin/report\"").unwrap_or_default().to_owned(),
        None => {
            let message = format!("`{}` has no command", clip(&table.name));
            findings.missing(table.span.clone(), message, "write command = \"bin/report\"");
            String::new()
        }
    }
}

fn work(table: &Table<'_, '_>, key: &str, findings: &mut Findings<'_>) -> Option<std::time::Duration> {
    table.field(key)?.duration(findings, defaults::WORK_BOUNDS)
}

fn retries(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> u32 {
    let asked =
        table.field("retries").and_then(|field| field.integer(findings, defaults::JOB_RETRIES_BOUNDS));
    u32::try_from(asked.unwrap_or(0)).expect("it is within JOB_RETRIES_BOUNDS")
}

/// A word out of a few.
pub(super) fn one_of<T: Copy + Default>(
    table: &Table<'_, '_>,
    key: &str,
    words: &[(&str, T)],
    findings: &mut Findings<'_>,
) -> T {
    let Some(field) = table.field(key) else { return T::default() };
    let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let all = all.join(", ");
    let Some(text) = field.text(findings, &all) else { return T::default() };
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        refuse_word(&field, text, words.iter().map(|(word, _)| *word), &all, findings);
    }
    found.map(|(_, value)| *value).unwrap_or_default()
}

fn refuse_word<'w>(
    field: &Field<'_, '_>,
    text: &str,
    words: impl Iterator<Item = &'w str>,
    all: &str,
    findings: &mut Findings<'_>,
) {
    let way_out = match nearest(text, words) {
        Some(known) => format!("did you mean {known:?}?"),
        None => format!("write one of {all}"),
    };
    field.report(findings, format!("{:?} is not a way to handle it", clip(text)), way_out);
}

fn refuse_contradictions(table: &Table<'_, '_>, job: &Job, findings: &mut Findings<'_>) {
    if job.schedule.is_none() && table.field("schedule").is_none() {
        for key in ["timezone", "overlap", "catch_up", "start_deadline"] {
            if let Some(field) = table.field(key) {
                let message = format!("`{key}` is about a schedule, and `{}` has none", clip(&table.name));
                findings.report(field.key_span, message, "add schedule = \"0 3 * * *\", or take it out");
            }
        }
    }
    if job.overlap != Overlap::Allow
        && job.catch_up == CatchUp::All
        && let Some(field) = table.field("catch_up")
    {
        let message =
            "`catch_up = \"all\"` runs missed times beside each other, which `overlap` does not allow";
        field.report(findings, message, "write overlap = \"allow\", or catch_up = \"last\"");
    }
    if job.retries == 0
        && let Some(field) = table.field("retry_after")
    {
        findings.report(field.key_span, "`retry_after` without `retries`", "add retries = 3, or take it out");
    }
}
