//! Whether the new release answers worse than the old one, by what the proxies counted.

use rung_model::appfile::rollout::AbortIf;
use rung_model::duration::in_words;
use rung_model::rollout::Evidence;
use rung_model::traffic::Counts;
use rung_model::{AppName, DeploymentNumber, ReleaseNumber};

use super::evidence;
use crate::draft::Draft;

/// What was counted and weighed of a deployment, in this leadership and before. Kept in memory between two plans and
/// written with the deployment now and then; a server that dies loses the last seconds of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Judging {
    /// The step, or the watch, that it belongs to.
    of: Span,
    /// The facts up to which it is weighed.
    seen_new: Counts,
    seen_old: Counts,
    pub new: Counts,
    pub old: Counts,
    pub evidence: Evidence,
}

/// What is judged on its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Span {
    Step(u32),
    #[default]
    Watch,
}

/// The two that are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rivals {
    pub new: DeploymentNumber,
    pub old: DeploymentNumber,
}

/// Takes in what was counted since the last look; `stored` is what was written of this span before.
pub(crate) fn look<'d>(
    draft: &'d mut Draft<'_>,
    app: &AppName,
    rivals: Rivals,
    span: Span,
    stored: impl FnOnce() -> (Counts, Counts, Evidence),
    weigh: impl FnOnce(&mut Evidence, &Counts, &Counts),
) -> &'d Judging {
    let (facts_new, facts_old) =
        (draft.input.traffic.of(app, rivals.new), draft.input.traffic.of(app, rivals.old));
    let judging = draft.progress.judged.entry((app.clone(), rivals.new)).or_insert_with(|| {
        let (new, old, evidence) = stored();
        Judging { of: span, seen_new: facts_new.clone(), seen_old: facts_old.clone(), new, old, evidence }
    });
    if judging.of != span {
        // Each step is judged by its own requests; what came while it was being reached is nobody's.
        *judging = Judging {
            of: span,
            seen_new: facts_new.clone(),
            seen_old: facts_old.clone(),
            ..Judging::default()
        };
    }
    let (new, old) = (facts_new.since(&judging.seen_new), facts_old.since(&judging.seen_old));
    if new.requests > 0 || old.requests > 0 {
        judging.new.add(&new);
        judging.old.add(&old);
        weigh(&mut judging.evidence, &new, &old);
        (judging.seen_new, judging.seen_old) = (facts_new, facts_old);
    }
    judging
}

/// Why the new release is taken back, when it is.
pub(crate) fn verdict(
    judging: &Judging,
    limits: &AbortIf,
    new: ReleaseNumber,
    old: ReleaseNumber,
) -> Option<String> {
    if judging.new.requests < limits.requests {
        return None;
    }
    if evidence::errors_are_convincing(&judging.evidence) {
        let (of_new, of_old) = (errors(&judging.new), errors(&judging.old));
        let limit = limits.error_rate.unwrap_or_default();
        return Some(format!(
            "{new} fails more often than {old}: {of_new}, against {of_old} at the same time; the limit is {limit}"
        ));
    }
    if evidence::slowness_is_convincing(&judging.evidence) {
        let (of_new, of_old) = (p95(&judging.new), p95(&judging.old));
        let limit = in_words(limits.p95.unwrap_or_default());
        return Some(format!(
            "{new} answers more slowly than {old}: {of_new}, against {of_old} at the same time; the limit is {limit}"
        ));
    }
    None
}

/// The same after success: the old release serves no more, and counts as it did before.
pub(crate) fn verdict_alone(
    judging: &Judging,
    limits: &AbortIf,
    before: &Counts,
    new: ReleaseNumber,
    old: ReleaseNumber,
) -> Option<String> {
    if judging.new.requests < limits.requests {
        return None;
    }
    match evidence::is_convincing_alone(&judging.evidence) {
        (true, _) => {
            let limit = limits.error_rate.unwrap_or_default();
            let (of_new, of_old) = (errors(&judging.new), errors(before));
            Some(format!("{new} fails too often: {of_new}, after {of_old} of {old}; the limit is {limit}"))
        }
        (_, true) => {
            let limit = in_words(limits.p95.unwrap_or_default());
            let (of_new, of_old) = (p95(&judging.new), p95(before));
            Some(format!("{new} answers too slowly: {of_new}, after {of_old} of {old}; the limit is {limit}"))
        }
        _ => None,
    }
}

/// `6 of 31 requests (19.4 %)`.
pub(crate) fn errors(counts: &Counts) -> String {
    format!("{} of {} requests ({:.1} %)", counts.errors, counts.requests, counts.error_rate() * 100.0)
}

fn p95(counts: &Counts) -> String {
    match counts.p95() {
        Some(time) => {
            let rounded =
                std::time::Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            format!("p95 {} of {} requests", in_words(rounded), counts.requests)
        }
        None => "no answers".to_owned(),
    }
}
