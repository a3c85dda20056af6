//! The keys of `[deploy]` that say how the traffic moves.

use std::time::Duration;

use toml::de::DeValue;

use super::defaults;
use super::error::Findings;
use super::job::one_of;
use super::read::{Field, Table, clip};
use super::rollout::{AbortIf, CanaryStep, RolloutPolicy, Share, Strategy, WithoutTraffic};
use super::{schema, values};
use crate::routes::{Mark, SplitBy, Testers};

pub(super) fn read(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> RolloutPolicy {
    let strategy = strategy(table, findings);
    let words = [
        ("wait", WithoutTraffic::Wait),
        ("continue", WithoutTraffic::Continue),
        ("abort", WithoutTraffic::Abort),
    ];
    let is_bluegreen = strategy == Strategy::BlueGreen;
    let policy = RolloutPolicy {
        split: table.field("split").and_then(|field| split(&field, findings)).unwrap_or(SplitBy::Visitor),
        testers: table.field("testers").and_then(|field| testers(&field, findings)),
        abort_if: table.field("abort_if").and_then(|field| abort_if(&field, findings)),
        without_traffic: one_of(table, "without_traffic", &words, findings),
        wait_at_most: wait(table, "wait_at_most", findings).unwrap_or(defaults::WAIT_AT_MOST),
        keep: wait(table, "keep", findings).unwrap_or(if is_bluegreen {
            defaults::KEEP_BLUEGREEN
        } else {
            Duration::ZERO
        }),
        watch: wait(table, "watch", findings).unwrap_or(Duration::ZERO),
        settle: table
            .field("settle")
            .and_then(|field| field.duration(findings, defaults::SETTLE_BOUNDS))
            .unwrap_or(defaults::SETTLE),
        strategy,
    };
    refuse_contradictions(table, &policy, findings);
    policy
}

fn wait(table: &Table<'_, '_>, key: &str, findings: &mut Findings<'_>) -> Option<Duration> {
    table.field(key)?.duration(findings, defaults::ROLLOUT_WAIT_BOUNDS)
}

fn strategy(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Strategy {
    let batch = table.field("batch").and_then(|field| batch(&field, findings));
    let steps = table.field("steps").map(|field| steps(&field, findings));
    let rolling = Strategy::Rolling { batch };
    let Some(field) = table.field("strategy") else { return rolling };
    let Some(text) = field.text(findings, "\"rolling\"") else { return rolling };
    match text {
        "rolling" => rolling,
        "bluegreen" => Strategy::BlueGreen,
        "canary" => {
            if steps.is_none() {
                let way_out = "add steps = [\"5% 5m\", \"25% 10m\", \"100%\"]";
                field.report(findings, "`strategy = \"canary\"` without `steps`", way_out);
            }
            Strategy::Canary { steps: steps.unwrap_or_default() }
        }
        other => {
            let message = format!("`strategy = {:?}` is not known", clip(other));
            field.report(findings, message, "write \"rolling\", \"bluegreen\" or \"canary\"");
            rolling
        }
    }
}

fn batch(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<u32> {
    let count = field.integer(findings, defaults::BATCH_BOUNDS)?;
    Some(u32::try_from(count).expect("it is within BATCH_BOUNDS"))
}

const STEPS_EXAMPLE: &str = "[\"5% 5m\", \"25% 10m\", \"100%\"]";

fn steps(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Vec<CanaryStep> {
    let elements = field.elements(findings, &format!("steps = {STEPS_EXAMPLE}"));
    if elements.len() > defaults::STEPS_MAX {
        field.report(findings, format!("more than {} steps", defaults::STEPS_MAX), "take some of them out");
    }
    let mut steps: Vec<CanaryStep> = Vec::new();
    let mut is_whole = true;
    for element in &elements {
        let Some(step) = element.parsed(findings, STEPS_EXAMPLE, values::canary_step) else {
            is_whole = false;
            continue;
        };
        if steps.last().is_some_and(|before| before.share >= step.share) {
            element.report(findings, "each step's share is larger than the one before", "put them in order");
        }
        if step.share == Share::ALL && step.time.is_some() {
            let way_out =
                "write \"100%\"; with watch = \"10m\" beside it a regression still reverts by itself";
            element.report(
                findings,
                "the step of everybody has no time: with it the deployment is done",
                way_out,
            );
        }
        steps.push(step);
    }
    if is_whole && steps.last().is_none_or(|last| last.share != Share::ALL) {
        field.report(findings, "the last step is not \"100%\"", "add \"100%\" at the end");
    }
    steps
}

fn abort_if(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<AbortIf> {
    let example = "abort_if = { error_rate = \"2%\", p95 = \"800ms\" }";
    let table = field.table(&schema::ABORT_IF, findings, example)?;
    let error_rate =
        table.field("error_rate").and_then(|field| field.parsed(findings, "\"2%\"", values::error_rate));
    let p95 = table.field("p95").and_then(|field| field.duration(findings, defaults::CHECK_TIMEOUT_BOUNDS));
    let requests =
        table.field("requests").and_then(|field| field.integer(findings, defaults::ABORT_REQUESTS_BOUNDS));
    if table.field("error_rate").is_none() && table.field("p95").is_none() {
        field.report(findings, "`abort_if` names no limit", format!("write {example}"));
    }
    let requests = requests.map_or(defaults::ABORT_REQUESTS, |count| u64::try_from(count).unwrap_or(0));
    Some(AbortIf { error_rate, p95, requests })
}

fn split(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<SplitBy> {
    if matches!(field.value(), DeValue::Table(_)) {
        return mark(field, &schema::SPLIT, findings).map(|(mark, _)| SplitBy::Mark(mark));
    }
    match field.text(findings, "\"visitor\"")? {
        "visitor" => Some(SplitBy::Visitor),
        "address" => Some(SplitBy::Address),
        "request" => Some(SplitBy::Request),
        other => {
            let message = format!("`split = {:?}` is not known", clip(other));
            let way_out = "write \"visitor\", \"address\", \"request\", { header = \"X-User\" } or { cookie = \"session\" }";
            field.report(findings, message, way_out);
            None
        }
    }
}

fn testers(field: &Field<'_, '_>, findings: &mut Findings<'_>) -> Option<Testers> {
    let (mark, is) = mark(field, &schema::TESTERS, findings)?;
    Some(Testers { mark, is })
}

/// `{ header = "X-Beta" }` or `{ cookie = "beta" }`, and perhaps the value that it must have.
fn mark(
    field: &Field<'_, '_>,
    section: &'static schema::Section,
    findings: &mut Findings<'_>,
) -> Option<(Mark, Option<String>)> {
    let table = field.table(section, findings, &format!("{} = {{ header = \"X-User\" }}", field.key))?;
    let header = table.field("header");
    let cookie = table.field("cookie");
    let mark = match (&header, &cookie) {
        (Some(header), None) => Mark::Header(header.parsed(findings, "\"X-User\"", values::header_name)?),
        (None, Some(cookie)) => Mark::Cookie(cookie.parsed(findings, "\"session\"", values::header_name)?),
        _ => {
            let message = format!("`{}` is one of `header` and `cookie`", field.name);
            field.report(findings, message, format!("write {} = {{ header = \"X-User\" }}", field.key));
            return None;
        }
    };
    let is = section.keys.contains(&"is").then(|| table.field("is")).flatten();
    Some((mark, is.and_then(|is| is.text(findings, "\"on\"").map(str::to_owned))))
}

fn refuse_contradictions(table: &Table<'_, '_>, policy: &RolloutPolicy, findings: &mut Findings<'_>) {
    let mut refuse = |key: &str, message: &str, way_out: &str| {
        if let Some(field) = table.field(key) {
            findings.report(field.key_span.clone(), message, way_out);
        }
    };
    if !matches!(policy.strategy, Strategy::Rolling { .. }) {
        refuse("batch", "`batch` is of rolling deployments", "take it out");
    }
    if !matches!(policy.strategy, Strategy::Canary { .. }) {
        for key in ["steps", "split", "testers", "without_traffic", "wait_at_most"] {
            let message = format!("`{key}` is of canary deployments");
            refuse(key, &message, "add strategy = \"canary\", or take it out");
        }
    }
    if policy.watch > Duration::ZERO && policy.abort_if.is_none() {
        let way_out = "add abort_if = { error_rate = \"2%\" }";
        refuse("watch", "`watch` without `abort_if`: nothing says what a regression is", way_out);
    }
    if policy.abort_if.is_some()
        && policy.watch.is_zero()
        && !matches!(policy.strategy, Strategy::Canary { .. })
    {
        let way_out = "add watch = \"10m\", or strategy = \"canary\" with steps";
        refuse("abort_if", "`abort_if` has no time to judge in", way_out);
    }
    if let Strategy::Canary { steps } = &policy.strategy
        && steps.first().is_some_and(|first| first.share == Share::NONE)
        && policy.testers.is_none()
    {
        let way_out = "add testers = { header = \"X-Beta\" }, or begin with a share";
        refuse("steps", "a step of 0% without `testers` is for nobody", way_out);
    }
}
