//! What failed, how it was measured, where, and how to do it again.

use std::collections::BTreeSet;

use serde_json::Value;

use super::markdown::{code, heading, plain, table};
use crate::{
    agreement::{BF16, F32},
    format::{percent, verdict},
    judge::some,
    stats::{
        CONFIDENCE, FEWEST_FOR_A_CLAIM, FEWEST_FOR_A_TARGET, LOSS_FALL_MIN_Z, RESAMPLES, range_coverage,
    },
    summary::RunSummary,
};

pub(super) fn failures(summary: &RunSummary) -> String {
    let mut out = String::new();
    for (case, trial) in summary.cases.iter().flat_map(|c| c.trials.iter().map(move |t| (c, t))) {
        if let Some(why) = &trial.gpu_not_idle {
            let name = code(&trial.id);
            out += &format!("- trial {name} began on a GPU that was not idle: {}\n", plain(why));
        }
        if trial.is_valid() {
            continue;
        }
        let name = verdict(Some(trial.verdict)).replace('_', "\\_");
        out +=
            &format!("- **{name}** {} (round {}, trial {})\n", code(&case.id), trial.round, code(&trial.id));
        if trial.superseded {
            out += "  - begun again: a fault of the machine ended it\n";
        }
        out.extend(trial.reasons.iter().map(|r| format!("  - {}\n", plain(r))));
    }
    for stray in &summary.strays {
        out += &format!("- stored trial {} belongs to no case of this scenario\n", code(stray));
    }
    if out.is_empty() { out } else { format!("## Trials that do not count\n\n{out}") }
}

pub(super) fn rounded_away(summary: &RunSummary) -> String {
    let mut out = String::new();
    for case in &summary.cases {
        let stuck: BTreeSet<&String> = case.trials.iter().flat_map(|t| &t.rounded_away).collect();
        if !stuck.is_empty() {
            let names: Vec<String> = stuck.into_iter().cloned().collect();
            out += &format!("- {}: {}\n", code(&case.id), plain(&some(&names)));
        }
    }
    if out.is_empty() {
        return out;
    }
    format!(
        "## Trained, but too coarse to move

These weights are held in bf16 without masters, and stood still: no update of AdamW at this learning rate reaches the next value of \
bf16. They got gradients, and the trials count.

{out}"
    )
}

/// What the shortest of the intervals is worth, by the values that it rests on: those that were used, not those that were planned.
fn few(summary: &RunSummary) -> String {
    let ratios =
        summary.comparisons.iter().map(|c| &c.result).chain(summary.ablations.iter().map(|a| &a.result));
    let all = ratios.filter_map(|r| r.speed).chain(summary.cases.iter().filter_map(|c| c.real_tokens_per_s));
    match all.filter(|e| e.interval.is_some()).map(|e| e.n).min() {
        Some(n) if n < FEWEST_FOR_A_CLAIM => format!(
            " Of fewer than {FEWEST_FOR_A_CLAIM} it is their range: that of {n}, the fewest here, holds the true median with a probability \
             of {} only.",
            percent(range_coverage(n))
        ),
        _ => String::new(),
    }
}

pub(super) fn method(summary: &RunSummary) -> String {
    let few = few(summary);
    let partial = if summary.trials_stored < summary.trials_planned {
        "\n- The run is not complete; medians and intervals are over the trials stored so far."
    } else {
        ""
    };
    format!(
        "## How it was measured

- **Three token counts**, made by the harness from its own token stream and checked against a digest of every batch that an arm consumed: *slots* (positions computed, padding included), *real* tokens (positions that hold a token of a sample), *loss* tokens (positions whose next token is learned).
- **Throughput** is the real tokens of all timed windows over the time of those windows. An arm reads its clock at the edges of a window only; untimed steps are left out.
- **Interval**: seeded percentile bootstrap ({RESAMPLES} resamples, {:.0} %) of the median over trials. The unit is the process, never the step.{few}
- **Ratios** are paired by round: the exponential of the median log ratio, with a bootstrap over rounds. A *target* is a floor: *yes* and *no* need {FEWEST_FOR_A_TARGET} pairs, as these all pass a floor that the true median misses with a probability of at most {}. A side of whose trials fewer than half are VALID has no ratio.
- **A trial is VALID** when it ended well, its events are complete and in order, its batches, counts, settings, kernel plan and trainable set are the ones asked for, every gradient norm is finite and not zero, the loss falls (mean of the last third below that of the first by {LOSS_FALL_MIN_Z} standard errors), every trainable tensor changed, and no other tensor changed by a bit.
- **Two cases are comparable** when the settings that arms tell, and those that they were asked for, are equal except for declared differences and, on equal weights and batches, their first losses and gradient norms agree: within {} and {} relative where both hold their weights in f32, within {} and {} where one holds them in bf16.
- **Model FLOPs** of a real token follow the 6·N rule: 2 a multiply-add, once forward and twice backward; frozen weights need no gradient of their own (4·N); the LM head counts; attention scores are left out because they depend on document lengths.{partial}
",
        CONFIDENCE * 100.0,
        percent(0.5f64.powi(FEWEST_FOR_A_TARGET as i32)),
        F32.loss, F32.grad_norm, BF16.loss, BF16.grad_norm
    )
}

pub(crate) fn environment(environment: &Value) -> String {
    let mut rows = vec![heading(&["", ""])];
    leaves("", environment, &mut rows);
    if rows.len() == 1 {
        return String::new();
    }
    format!(
        "## Environment\n\n<details><summary>Machine and programs</summary>\n\n{}\n</details>\n",
        table(&rows)
    )
}

fn leaves(name: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                leaves(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, field, rows);
            }
        }
        Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => {
            for (i, item) in items.iter().enumerate() {
                leaves(&format!("{name}.{i}"), item, rows);
            }
        }
        Value::Array(items) => {
            let text: Vec<String> = items.iter().map(scalar).collect();
            rows.push(vec![plain(name), plain(&text.join(", "))]);
        }
        Value::Null => {}
        leaf => rows.push(vec![plain(name), plain(&scalar(leaf))]),
    }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
