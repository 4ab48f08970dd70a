//! Tables for programs and terminals.

use super::{KernelSummary, RowSummary};
use crate::{
    format::{NONE, estimate, number, or_dash, verdict},
    stats::Estimate,
    table::csv,
};

/// Columns of `results.csv`, in order; new ones are added behind. Times are seconds, rates per second, shares fractions of 1;
/// an empty field means that there is no figure.
pub const CSV_COLUMNS: [&str; 23] = [
    "trial",
    "side",
    "op",
    "case",
    "variant",
    "verdict",
    "reason",
    "bytes",
    "flops",
    "time_s",
    "time_low_s",
    "time_high_s",
    "warm_s",
    "warm_share_of_l2",
    "bytes_per_s",
    "flops_per_s",
    "of_copy",
    "of_matmul",
    "memory_bytes",
    "speedup_of_ours",
    "speedup_low",
    "speedup_high",
    "moved_bytes",
];

/// `results.csv`: one row an implementation of an operation at a shape, failures included; see [`CSV_COLUMNS`].
pub fn results_csv(summary: &KernelSummary) -> String {
    let rows = summary.rows.iter().map(|r| csv_row(summary, r));
    let header = CSV_COLUMNS.map(String::from).to_vec();
    csv(std::iter::once(header).chain(rows))
}

fn csv_row(summary: &KernelSummary, r: &RowSummary) -> Vec<String> {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let ends = |e: Option<Estimate>| e.and_then(|e| e.interval).unzip();
    let (low, high) = ends(r.cold);
    let speedup = speedup(summary, r);
    let (slow, fast) = ends(speedup);
    vec![
        r.trial.clone(),
        format!("{:?}", r.side).to_lowercase(),
        r.op.clone(),
        r.case.clone(),
        r.variant.clone(),
        verdict(Some(r.verdict)).into(),
        r.reason.clone().unwrap_or_default(),
        r.bytes.to_string(),
        r.flops.to_string(),
        text(r.cold.map(|e| e.median)),
        text(low),
        text(high),
        text(r.warm.map(|e| e.median)),
        text(r.warm_share_of_l2),
        text(rate(r, r.bytes)),
        text(Some(r.flops).filter(|f| *f > 0).and_then(|f| rate(r, f))),
        text(r.of_copy.map(|e| e.median)),
        text(r.of_matmul),
        text(r.memory_bytes),
        text(speedup.map(|e| e.median)),
        text(slow),
        text(fast),
        text(r.moved_bytes),
    ]
}

/// Per second of its median time.
pub(super) fn rate(r: &RowSummary, amount: u64) -> Option<f64> {
    r.cold.map(|e| amount as f64 / e.median)
}

/// Its time over ours.
pub(super) fn speedup(summary: &KernelSummary, r: &RowSummary) -> Option<Estimate> {
    let same = |s: &&super::Speedup| s.op == r.op && s.case == r.case && s.against == r.variant;
    summary.speedups.iter().find(same).map(|s| s.ratio)
}

/// Rows for a terminal, the first of them the heading.
pub fn terminal_table(summary: &KernelSummary) -> Vec<Vec<String>> {
    let heading = [
        "kernel",
        "shape",
        "by",
        "µs [95 %]",
        "TB/s or TFLOP/s",
        "of the limit",
        "ours is faster by",
        "verdict",
    ];
    let rows = summary.rows.iter().map(|r| cells(summary, r));
    std::iter::once(heading.map(String::from).to_vec()).chain(rows).collect()
}

/// One row in words.
pub(super) fn cells(summary: &KernelSummary, r: &RowSummary) -> Vec<String> {
    let (limited, limit) = match r.flops {
        0 => (
            or_dash(rate(r, r.bytes), |x| format!("{:.2} TB/s", x / 1e12)),
            or_dash(r.of_copy.as_ref(), |e| format!("{} of a copy", estimate(e, share))),
        ),
        flops => (
            or_dash(rate(r, flops), |x| format!("{:.0} TFLOP/s", x / 1e12)),
            or_dash(r.of_matmul, |x| format!("{} of a product", share(x))),
        ),
    };
    vec![
        r.op.clone(),
        r.case.clone(),
        r.variant.clone(),
        or_dash(r.cold.as_ref(), |e| estimate(e, |s| number(s * 1e6))),
        limited,
        limit,
        speedup(summary, r).map_or(NONE.into(), |e| estimate(&e, crate::format::times)),
        verdict(Some(r.verdict)).into(),
    ]
}

fn share(x: f64) -> String {
    format!("{:.0} %", x * 100.0)
}
