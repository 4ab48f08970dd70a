//! Tables for programs and terminals.

use crate::{
    format::{NONE, bracketed, estimate, mib, number, or_dash, percent, verdict},
    summary::{CaseSummary, RunSummary, TrialSummary},
};

/// Columns of `results.csv`, in order; new ones are added behind. Rates are per second of window time, sizes are bytes,
/// shares are fractions of 1, and an empty field means that there is no figure. `reasons` are joined by `; `.
pub const CSV_COLUMNS: [&str; 31] = [
    "scenario",
    "case",
    "arm",
    "axes",
    "trial_id",
    "round",
    "position",
    "verdict",
    "reasons",
    "timed_s",
    "timed_slots",
    "timed_real_tokens",
    "timed_loss_tokens",
    "real_tokens_per_s",
    "slots_per_s",
    "loss_tokens_per_s",
    "step_ms",
    "peak_rss_sampled_bytes",
    "peak_rss_reported_bytes",
    "planned_bytes",
    "peak_gpu_bytes",
    "cpu_percent",
    "machine_cpu_percent",
    "first_loss",
    "last_loss",
    "loss_fall_z",
    "packing_efficiency",
    "gemm_share",
    "gemm_gflops",
    "gemm_method",
    "model_gflops",
];

/// `results.csv`: one row a stored trial, failures included; see [`CSV_COLUMNS`].
pub fn results_csv(summary: &RunSummary) -> String {
    let rows = summary.cases.iter().flat_map(|c| c.trials.iter().map(move |t| csv_row(&summary.name, c, t)));
    let header = CSV_COLUMNS.map(String::from).to_vec();
    csv(std::iter::once(header).chain(rows))
}

/// Rows of one length as CSV, the heading first.
pub fn csv(rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).expect("a Vec takes every write, and rows have one length");
    }
    let bytes = writer.into_inner().expect("a Vec takes every write");
    String::from_utf8(bytes).expect("fields are UTF-8")
}

fn csv_row(scenario: &str, case: &CaseSummary, trial: &TrialSummary) -> Vec<String> {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let m = &trial.metrics;
    let axes: Vec<String> = case.axes.iter().map(|(k, v)| format!("{k}={v}")).collect();
    vec![
        scenario.into(),
        case.id.clone(),
        case.arm.clone(),
        axes.join(";"),
        trial.id.clone(),
        trial.round.to_string(),
        trial.position.to_string(),
        verdict(Some(trial.verdict)).into(),
        trial.reasons.join("; "),
        m.timed_s.to_string(),
        m.timed_tokens.slots.to_string(),
        m.timed_tokens.real.to_string(),
        m.timed_tokens.loss.to_string(),
        text(m.real_tokens_per_s),
        text(m.slots_per_s),
        text(m.loss_tokens_per_s),
        text(m.step_ms),
        text(m.peak_rss_sampled),
        text(m.peak_rss_reported),
        text(m.planned_total()),
        text(m.peak_gpu_bytes),
        text(m.cpu_percent),
        text(m.machine_cpu_percent),
        text(m.first_loss),
        text(m.last_loss),
        text(m.loss_fall.map(|f| f.z()).filter(|z| z.is_finite())),
        text(m.packing_efficiency),
        text(m.gemm_share),
        text(m.gemm_gflops),
        text(m.gemm_method.as_ref()),
        text(m.model_gflops),
    ]
}

/// Rows for a terminal, the first of them the heading: one row a case.
pub fn summary_table(summary: &RunSummary) -> Vec<Vec<String>> {
    let rates = summary.cases.iter().filter_map(|c| c.real_tokens_per_s.as_ref());
    let rate = bracketed("real tokens/s", rates);
    let heading = ["case", "valid", &rate, "step", "peak RSS", "loss", "real/slots", "GEMM", "verdict"];
    std::iter::once(heading.map(String::from).to_vec()).chain(summary.cases.iter().map(table_row)).collect()
}

pub(crate) fn table_row(c: &CaseSummary) -> Vec<String> {
    let loss = match (c.first_loss, c.final_loss) {
        (Some(first), Some(last)) => format!("{first:.3} → {last:.3}"),
        _ => NONE.into(),
    };
    vec![
        c.id.clone(),
        format!("{}/{}", c.valid, c.trials.len()),
        or_dash(c.real_tokens_per_s.as_ref(), |e| estimate(e, number)),
        or_dash(c.step_ms.as_ref(), |e| format!("{} ms", number(e.median))),
        or_dash(c.peak_rss.as_ref(), |e| mib(e.median)),
        loss,
        or_dash(c.packing_efficiency, percent),
        or_dash(c.gemm_share, percent),
        verdict(c.verdict).into(),
    ]
}
