//! Pieces of the words of reasons.

use chronibench_protocol::event::{Phase, TokenCounts};

use super::faults::Peak;

/// At most four names, and how many more.
pub(crate) fn some(names: &[String]) -> String {
    let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 4 { format!("{shown} and {} more", names.len() - 4) } else { shown }
}

pub(super) fn in_use(peak: &Option<Peak>) -> String {
    let Some(peak) = peak else { return String::new() };
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let gpu = if peak.gpu > 0 { format!(" and {} on the GPU", gb(peak.gpu)) } else { String::new() };
    format!("; the most seen in use was {} resident{gpu}", gb(peak.rss))
}

pub(super) fn phase(p: &Phase) -> &'static str {
    match p {
        Phase::Untimed => "untimed",
        Phase::Timed => "timed",
    }
}

pub(super) fn counts(t: &TokenCounts) -> String {
    format!("{} slots, {} real, {} loss", t.slots, t.real, t.loss)
}

/// `step 3`, or `step 3 and 4 others`.
pub(super) fn steps_at(step: &u32, steps: &usize) -> String {
    match steps {
        0 | 1 => format!("step {step}"),
        2 => format!("step {step} and 1 other"),
        n => format!("step {step} and {} others", n - 1),
    }
}

/// `label` and the names, or nothing without a name.
pub(super) fn named(label: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{label}{}", some(names)) }
}

pub(super) fn rates(seen: &[f64]) -> String {
    if seen.is_empty() {
        return "none".into();
    }
    seen.iter().map(|r| format!("{r:e}")).collect::<Vec<_>>().join(", ")
}

/// Enough of a hash to tell two apart.
pub(super) fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// JSON has no NaN: an arm that diverged writes `null` or `NaN`, which is no valid number of an event.
pub(super) fn divergence(line: &str) -> &'static str {
    if line.contains("null") || line.contains("NaN") {
        " (JSON has no NaN: an arm that diverges must say so in an `error` event)"
    } else {
        ""
    }
}
