//! Two cases side by side: may they be compared, and what is the ratio?

use std::collections::BTreeMap;

use chronibench_protocol::record::{Case, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    judge::{
        some,
        work::{same, settings_in_force, settings_of},
    },
    metrics::TrialMetrics,
    stats::{Estimate, ratio_estimate},
    trial::TrialLog,
};

/// Largest relative difference of the first step's loss between arms that start from the same weights on the same batch.
/// It leaves room for another order of f32 sums, and none for another computation.
pub const FIRST_LOSS_TOLERANCE: f64 = 1e-3;

/// A setting that differs between two cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Name of the setting.
    pub name: String,
    /// In the case whose figure is divided.
    pub case: Value,
    /// In the case it is divided by.
    pub against: Value,
    /// The scenario says that it is meant.
    pub declared: bool,
}

/// How far the losses of two cases lie apart on steps whose batches are the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossGap {
    /// Relative difference at the first step.
    pub first: f64,
    /// Largest relative difference at any step.
    pub max: f64,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// VALID, NOT_COMPARABLE, or the verdict of a side without a valid trial; `None` while a side has not run.
    pub verdict: Option<Verdict>,
    /// Why it is not VALID.
    pub reasons: Vec<String>,
    /// Ratio of real tokens/s, paired by round; `None` unless VALID.
    pub speed: Option<Estimate>,
    /// Ratio of peak resident set, paired by round; `None` unless VALID.
    pub memory: Option<Estimate>,
    /// Settings that differ.
    pub differences: Vec<Difference>,
    /// Settings that one side alone reports: neither equal nor different.
    pub unobservable: Vec<String>,
    /// `None` where the batches or the trained set differ.
    pub loss_gap: Option<LossGap>,
}

/// A case with its valid trials.
#[derive(Clone, Debug)]
pub(crate) struct Side<'a> {
    /// The case.
    pub case: &'a Case,
    /// Worst verdict over its trials; `None` without a trial.
    pub verdict: Option<Verdict>,
    /// Its valid trials.
    pub valid: Vec<(&'a TrialLog, &'a TrialMetrics)>,
}

impl<'a> Side<'a> {
    fn round(&self, round: u32) -> Option<(&'a TrialLog, &'a TrialMetrics)> {
        self.valid.iter().copied().find(|(l, _)| l.header.as_ref().is_some_and(|h| h.round == round))
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let Some((log, _)) = self.valid.first() else { return all };
        if let Some(hello) = log.hello.as_ref().map(|h| &h.event) {
            all.extend(settings_in_force(hello));
            all.insert("device".into(), hello.device.clone().into());
            all.insert("threads".into(), hello.threads.into());
            let p = &hello.precision;
            for (name, value) in
                [("weights", &p.weights), ("master", &p.master), ("moments", &p.moments), ("grads", &p.grads)]
            {
                all.insert(format!("precision.{name}"), value.clone().into());
            }
            for (seam, variant) in &hello.kernel_plan {
                all.insert(format!("kernels.{seam}"), variant.clone().into());
            }
        }
        if let Some(header) = &log.header {
            all.extend(settings_of(&header.spec));
            all.insert("tokens_sha256".into(), header.tokens_sha256.clone().into());
            all.insert("untimed_steps".into(), header.spec.measure.untimed_steps.into());
            all.insert("timed_steps".into(), header.spec.measure.timed_steps.into());
            all.insert("window_steps".into(), header.spec.measure.window_steps.into());
        }
        let batch = &self.case.batch;
        all.insert("packing".into(), batch.packing.name().into());
        all.insert("per_device_train_batch_size".into(), batch.per_device_train_batch_size.into());
        all.insert("gradient_accumulation_steps".into(), batch.gradient_accumulation_steps.into());
        all
    }
}

/// Compares `case` with `against`.
///
/// `declared` names the settings that may differ: by their own name, by a prefix before a dot (`precision`, `kernels`), or
/// `packing` for the whole batch geometry (packing, rows, accumulation) and `method` for the method with its LoRA settings.
/// With `kernels_matter` a kernel variant is a setting like any other; between two arms it is what tells them apart.
pub(crate) fn compare(
    case: &Side<'_>,
    against: &Side<'_>,
    declared: &[String],
    kernels_matter: bool,
) -> Compared {
    let mut out = Compared::default();
    for side in [case, against] {
        if side.valid.is_empty() {
            let why = if side.verdict.is_some() { "has no valid trial" } else { "has not run" };
            out.reasons.push(format!("{} {why}", side.case.id));
        }
    }
    if !out.reasons.is_empty() {
        out.verdict = case.verdict.zip(against.verdict).map(|(a, b)| a.max(b));
        return out;
    }
    parity(case, against, declared, kernels_matter, &mut out);
    let same_training = !out.differences.iter().any(|d| d.name == "method");
    out.loss_gap = if same_training { loss_gap(case, against) } else { None };
    if let Some(gap) = out.loss_gap.filter(|g| g.first > FIRST_LOSS_TOLERANCE) {
        out.reasons.push(format!(
            "expected the first losses to agree within {FIRST_LOSS_TOLERANCE} on equal weights and batches, saw a relative difference of {:.2e}",
            gap.first
        ));
    }
    let pairs = |f: fn(&TrialMetrics) -> Option<f64>| -> Vec<(f64, f64)> {
        rounds(case, against).filter_map(|(a, b)| f(a.1).zip(f(b.1))).collect()
    };
    let speed = ratio_estimate(&pairs(|m| m.real_tokens_per_s));
    if speed.is_none() {
        out.reasons.push("no round has a valid trial of both".into());
    }
    out.verdict = Some(if out.reasons.is_empty() { Verdict::Valid } else { Verdict::NotComparable });
    if out.reasons.is_empty() {
        out.speed = speed;
        out.memory = ratio_estimate(&pairs(|m| m.peak_rss().map(|b| b as f64)));
    }
    out
}

type Trial<'a> = (&'a TrialLog, &'a TrialMetrics);

fn rounds<'a>(case: &Side<'a>, against: &Side<'a>) -> impl Iterator<Item = (Trial<'a>, Trial<'a>)> {
    let rounds = case.valid.iter().filter_map(|(l, _)| l.header.as_ref().map(|h| h.round));
    rounds.filter_map(|r| case.round(r).zip(against.round(r)))
}

fn parity(
    case: &Side<'_>,
    against: &Side<'_>,
    declared: &[String],
    kernels_matter: bool,
    out: &mut Compared,
) {
    let (mut a, mut b) = (case.settings(), against.settings());
    if a.get("method") != b.get("method") {
        // Settings of LoRA have no counterpart in full fine-tuning; they are part of the difference in `method`.
        let lora = ["r", "lora_alpha", "target_modules", "use_rslora", "loraplus_lr_ratio"];
        for name in lora {
            a.remove(name);
            b.remove(name);
        }
    }
    let names: std::collections::BTreeSet<String> = a.keys().chain(b.keys()).cloned().collect();
    for name in names {
        if !kernels_matter && name.starts_with("kernels.") {
            continue;
        }
        match (a.remove(&name), b.remove(&name)) {
            (Some(x), Some(y)) if same(&x, &y) => {}
            (Some(x), Some(y)) => {
                let declared = declared.iter().any(|d| covers(d, &name));
                out.differences.push(Difference { name, case: x, against: y, declared });
            }
            _ => out.unobservable.push(name),
        }
    }
    let undeclared: Vec<String> = out
        .differences
        .iter()
        .filter(|d| !d.declared)
        .map(|d| format!("{} ({} against {})", d.name, d.case, d.against))
        .collect();
    if !undeclared.is_empty() {
        out.reasons
            .push(format!("expected identical settings, saw undeclared differences: {}", some(&undeclared)));
    }
}

fn covers(declared: &str, name: &str) -> bool {
    let geometry = ["packing", "per_device_train_batch_size", "gradient_accumulation_steps"];
    declared == name
        || name.strip_prefix(declared).is_some_and(|rest| rest.starts_with('.'))
        || (declared == "packing" && geometry.contains(&name))
}

/// Losses of the first round that both have, on the steps whose batches are the same; `None` when the first is not.
fn loss_gap(case: &Side<'_>, against: &Side<'_>) -> Option<LossGap> {
    let ((a, _), (b, _)) = rounds(case, against).next()?;
    let relative = |x: f64, y: f64| if x == y { 0.0 } else { (x - y).abs() / x.abs().max(y.abs()) };
    let steps = a.steps.iter().zip(&b.steps).map(|(x, y)| (&x.event, &y.event));
    let gaps: Vec<Option<f64>> =
        steps.map(|(x, y)| (x.digest == y.digest).then(|| relative(x.loss, y.loss))).collect();
    let first = *gaps.first()?.as_ref()?;
    Some(LossGap { first, max: gaps.into_iter().flatten().fold(first, f64::max) })
}
