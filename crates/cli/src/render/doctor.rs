//! `rung doctor`.

use rung_api::wire::{DoctorReport, DoctorState};

use super::harmless;
use super::paint::{Mood, Paint};

pub fn render(report: &DoctorReport, paint: Paint) -> String {
    let mut lines = vec![format!("rung {}", report.version)];
    for check in &report.checks {
        let (mark, mood) = match check.state {
            DoctorState::Fine => ("ok", Mood::Good),
            DoctorState::Warning => ("!!", Mood::Warning),
            DoctorState::Broken => ("XX", Mood::Bad),
        };
        lines.push(format!("  {}  {}: {}", paint.mood(mood, mark), check.name, harmless(&check.detail)));
        lines.extend(check.hint.iter().map(|hint| format!("      {}", paint.dim(hint))));
    }
    for (node, facts) in &report.isolation {
        lines.push(String::new());
        lines.push(format!("isolation of instances on {node}"));
        for fact in facts {
            if fact.available {
                lines.push(format!("  {}  {}", paint.good("ok"), fact.name));
            } else {
                lines.push(format!(
                    "  {}  {}: {}",
                    paint.warning("--"),
                    fact.name,
                    harmless(&fact.consequence)
                ));
            }
        }
    }
    lines.join("\n")
}

/// Whether something does not work at all.
pub fn is_broken(report: &DoctorReport) -> bool {
    report.checks.iter().any(|check| check.state == DoctorState::Broken)
}
