//! Two cases side by side: may they be compared, and what is the ratio?

use std::collections::BTreeMap;

use chronibench_protocol::{
    digest::sha256_hex,
    event::Hello,
    parity::{KEYS, ROUNDING, canonical},
    record::{Case, Verdict},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    agreement::{LossGap, disagreements, gap, tolerance},
    judge::{
        some,
        work::{same, settings_in_force, settings_of},
    },
    metrics::TrialMetrics,
    rounding::{rounding, rounds as rounds_weights},
    rounds::memory_source,
    slow::{rate_without, slow_steps},
    stats::{Estimate, ratio_estimate},
    trial::TrialLog,
};

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

/// A setting that one side alone reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnobservableSetting {
    /// Name of the setting.
    pub name: String,
    /// In the case whose figure is divided.
    pub case: Option<Value>,
    /// In the case it is divided by.
    pub against: Option<Value>,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// VALID, NOT_COMPARABLE, or the worst verdict of a side of whose trials fewer than half are valid; `None` while a side has not run.
    pub verdict: Option<Verdict>,
    /// Why it is not VALID.
    pub reasons: Vec<String>,
    /// Ratio of real tokens/s, paired by round; `None` unless VALID.
    pub speed: Option<Estimate>,
    /// The same if steps that are slow in most trials of a side ([`crate::slow`]) took as long as its median step; `None` where there is
    /// no such step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_without_slow_steps: Option<Estimate>,
    /// Ratio of peak memory, paired by round: of the GPU where the trials have memory there, else of the resident set; `None` unless
    /// VALID, and where the two sides' figures are not of one kind.
    pub memory: Option<Estimate>,
    /// Settings that differ.
    pub differences: Vec<Difference>,
    /// Settings that one side alone reports: neither equal nor different.
    pub unobservable: Vec<UnobservableSetting>,
    /// Settings that are the same, by name: those of `checked` and `asked`, and the rest by the word of both arms alone.
    pub identical: Vec<String>,
    /// Those of them that the harness holds against its own tokens, batches and counts ([`CHECKED`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checked: Vec<String>,
    /// Those of them that were asked of both, and that an arm does not say it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
    /// Settings that every arm should report ([`KEYS`]) and neither does.
    pub unreported: Vec<String>,
    /// `None` where the batches or the trained set differ.
    pub loss_gap: Option<LossGap>,
}

/// Settings that are not an arm's word alone: a valid trial's batches and steps are those that the harness planned, by digest and by
/// number.
pub const CHECKED: [&str; 8] = [
    "batches",
    "gradient_accumulation_steps",
    "packing",
    "per_device_train_batch_size",
    "timed_steps",
    "tokens_sha256",
    "untimed_steps",
    "window_steps",
];

impl Compared {
    /// Settings that are the same by the word of both arms.
    pub fn told(&self) -> impl Iterator<Item = &String> {
        self.identical.iter().filter(|name| !self.checked.contains(name) && !self.asked.contains(name))
    }
}

/// A case with its valid trials.
#[derive(Clone, Debug)]
pub(crate) struct Side<'a> {
    /// The case.
    pub case: &'a Case,
    /// Worst verdict over its trials; `None` without a trial.
    pub verdict: Option<Verdict>,
    /// Its trials that count, valid or not.
    pub trials: usize,
    /// Its valid trials.
    pub valid: Vec<(&'a TrialLog, &'a TrialMetrics)>,
}

impl<'a> Side<'a> {
    /// Why nothing is said of it: what fails more often than it works is not shown by the trials that worked.
    fn fails(&self) -> Option<String> {
        let (valid, all, id) = (self.valid.len(), self.trials, &self.case.id);
        match valid {
            0 if all == 0 => Some(format!("{id} has not run")),
            0 => Some(format!("{id} has no valid trial")),
            _ if 2 * valid < all => {
                Some(format!("{id} has {valid} valid trials of {all}, which is fewer than half"))
            }
            _ => None,
        }
    }

    fn round(&self, round: u32) -> Option<(&'a TrialLog, &'a TrialMetrics)> {
        self.valid.iter().copied().find(|(l, _)| l.header.as_ref().is_some_and(|h| h.round == round))
    }

    fn hello(&self) -> Option<&'a Hello> {
        self.valid.first()?.0.hello.as_ref().map(|h| &h.event)
    }

    /// Settings in the arm's own word.
    fn told(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let Some(hello) = self.hello() else { return all };
        let named = settings_in_force(hello).into_iter().map(|(name, value)| (canonical(&name, value), name));
        let (same, renamed): (Vec<_>, Vec<_>) = named.partition(|((canonical, _), name)| canonical == name);
        // What a program calls by its own name (`optim: adamw_8bit`) says more than the name that all share (`optimizer`).
        all.extend(same.into_iter().chain(renamed).map(|(setting, _)| setting));
        all.insert("device".into(), hello.device.clone().into());
        // Those of the host do no part of a GPU's work.
        if hello.device == "cpu" {
            all.insert("threads".into(), hello.threads.into());
        }
        let p = &hello.precision;
        for (name, value) in
            [("weights", &p.weights), ("master", &p.master), ("moments", &p.moments), ("grads", &p.grads)]
        {
            all.insert(format!("precision.{name}"), value.clone().into());
        }
        for (seam, variant) in &hello.kernel_plan {
            all.insert(format!("kernels.{seam}"), variant.clone().into());
        }
        all
    }

    /// Effective settings: the arm's own word, then what the harness asked for or knows by itself.
    fn settings(&self) -> BTreeMap<String, Value> {
        let mut all = self.told();
        let Some((log, _)) = self.valid.first() else { return all };
        if let Some(header) = &log.header {
            all.extend(settings_of(&header.spec));
            all.insert("tokens_sha256".into(), header.tokens_sha256.clone().into());
            all.insert("untimed_steps".into(), header.spec.measure.untimed_steps.into());
            all.insert("timed_steps".into(), header.spec.measure.timed_steps.into());
            all.insert("window_steps".into(), header.spec.measure.window_steps.into());
        }
        let digests: String = log.steps.iter().map(|s| s.event.digest.as_str()).collect();
        all.insert("batches".into(), sha256_hex(digests.as_bytes())[..12].into());
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
/// `packing` for the whole batch geometry (packing, rows, accumulation, and so the batches themselves) and `method` for the method with its LoRA settings.
/// With `kernels_matter` a kernel variant is a setting like any other; between two arms it is what tells them apart.
pub(crate) fn compare(
    case: &Side<'_>,
    against: &Side<'_>,
    declared: &[String],
    kernels_matter: bool,
) -> Compared {
    let mut out = Compared::default();
    out.reasons.extend([case, against].into_iter().filter_map(Side::fails));
    if !out.reasons.is_empty() {
        out.verdict = case.verdict.zip(against.verdict).map(|(a, b)| a.max(b));
        return out;
    }
    parity(case, against, declared, kernels_matter, &mut out);
    let same_training = !out.differences.iter().any(|d| d.name == "method");
    // Of the first round that both have.
    let both = rounds(case, against).next().filter(|_| same_training);
    out.loss_gap = both.and_then(|((a, _), (b, _))| gap(a, b));
    if let (Some(gap), Some(a), Some(b)) = (&out.loss_gap, case.hello(), against.hello()) {
        out.reasons.extend(disagreements(gap, tolerance(&a.precision, &b.precision)));
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
        out.speed_without_slow_steps = without_slow_steps(case, against);
        let all = case.valid.iter().chain(&against.valid).map(|(_, m)| *m);
        if memory_source(all).is_some() {
            out.memory = ratio_estimate(&pairs(|m| m.peak_memory().map(|b| b as f64)));
        }
    }
    out
}

/// The ratio of speeds if steps that are slow again and again, on either side, took as long as the median step of their trial.
fn without_slow_steps(case: &Side<'_>, against: &Side<'_>) -> Option<Estimate> {
    let found = [case, against].map(|side| slow_steps(&side.valid));
    if found.iter().all(Option::is_none) {
        return None;
    }
    let [a, b] = found.map(|slow| slow.map(|s| s.steps).unwrap_or_default());
    let pair = |(x, y)| rate_without(x, &a).zip(rate_without(y, &b));
    ratio_estimate(&rounds(case, against).filter_map(pair).collect::<Vec<_>>())
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
    let (by_a, by_b) = (case.told(), against.told());
    let unknown_rounding = add_rounding(case, against, [&mut a, &mut b]);
    if a.get("method") != b.get("method") {
        // Settings of LoRA have no counterpart in full fine-tuning; they are part of the difference in `method`.
        let lora = ["r", "lora_alpha", "target_modules", "use_rslora", "loraplus_lr_ratio"];
        for name in lora {
            a.remove(name);
            b.remove(name);
        }
    }
    let names: std::collections::BTreeSet<String> = a.keys().chain(b.keys()).cloned().collect();
    let known = names.clone();
    for name in names {
        if !kernels_matter && name.starts_with("kernels.") {
            continue;
        }
        match (a.remove(&name), b.remove(&name)) {
            (Some(x), Some(y)) if same(&x, &y) => {
                if CHECKED.contains(&name.as_str()) {
                    out.checked.push(name.clone());
                } else if !(by_a.contains_key(&name) && by_b.contains_key(&name)) {
                    out.asked.push(name.clone());
                }
                out.identical.push(name);
            }
            (Some(x), Some(y)) => {
                let declared = declared.iter().any(|d| covers(d, &name));
                out.differences.push(Difference { name, case: x, against: y, declared });
            }
            (case, against) => out.unobservable.push(UnobservableSetting { name, case, against }),
        }
    }
    out.unreported = KEYS.into_iter().filter(|key| !known.contains(*key)).map(String::from).collect();
    out.unreported.extend(unknown_rounding.then(|| ROUNDING.to_string()));
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

/// How each side rounds its weights, where one keeps them in bf16 and the two are not known to do the same: what programs are known to
/// do is nobody's word, and counts as no equal setting. Whether neither is known.
fn add_rounding(case: &Side<'_>, against: &Side<'_>, settings: [&mut BTreeMap<String, Value>; 2]) -> bool {
    let (Some(a), Some(b)) = (case.hello(), against.hello()) else { return false };
    if !rounds_weights(a) && !rounds_weights(b) {
        return false;
    }
    let known = [rounding(&case.case.runner, a), rounding(&against.case.runner, b)];
    let (unknown, equal) = (known.iter().all(Option::is_none), known[0] == known[1]);
    let both_tell = settings.iter().all(|all| all.contains_key(ROUNDING));
    for (all, value) in settings.into_iter().zip(known).filter(|_| !both_tell) {
        all.remove(ROUNDING);
        all.extend(value.filter(|_| !equal).map(|value| (ROUNDING.to_string(), value)));
    }
    unknown
}

fn covers(declared: &str, name: &str) -> bool {
    let geometry = ["packing", "per_device_train_batch_size", "gradient_accumulation_steps", "batches"];
    declared == name
        || name.strip_prefix(declared).is_some_and(|rest| rest.starts_with('.'))
        || (declared == "packing" && geometry.contains(&name))
}
