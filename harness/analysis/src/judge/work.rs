//! The work was the one asked for: settings, kernels, tokens, trainable set, batches.

use std::collections::BTreeMap;

use chronibench_protocol::{
    event::{Done, Hello, Ready, Step, TensorInfo},
    record::TrialHeader,
    spec::{Method, Spec},
};
use serde_json::Value;

use super::{Reason, some};
use crate::trial::TrialLog;

/// Relative difference under which two settings, or two learning rates, are one: arms may keep them in f32.
pub const SETTING_TOLERANCE: f64 = 1e-5;

pub(super) fn check(log: &TrialLog, header: &TrialHeader, out: &mut Vec<Reason>) {
    if let Some(hello) = &log.hello {
        settings(&header.spec, &hello.event, out);
        kernels(&header.spec, &hello.event, out);
        if let Some(done) = &log.done {
            launches(&header.spec.method, &hello.event, &done.event, out);
        }
    }
    learning_rates(log, &header.spec, out);
    if let Some(ready) = &log.ready {
        if ready.event.tokens_sha256 != header.tokens_sha256 {
            let (expected, seen) = (header.tokens_sha256.clone(), ready.event.tokens_sha256.clone());
            out.push(Reason::Tokens { expected, seen });
        }
        trainable(header, &ready.event, out);
    }
    ledger(log, out);
}

/// The training settings of a specification under the names that Hugging Face and PEFT give them, and `method`.
pub(crate) fn settings_of(spec: &Spec) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    // Neither type holds a map with other than string keys, so that both always have a JSON form.
    flatten("", &serde_json::to_value(&spec.train).expect("settings are JSON"), &mut all);
    flatten("method", &serde_json::to_value(&spec.method).expect("settings are JSON"), &mut all);
    all.remove("adapter_weights");
    all
}

/// The effective settings of an arm under the same names.
pub(crate) fn settings_in_force(hello: &Hello) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (key, value) in &hello.settings {
        flatten(key, value, &mut all);
    }
    all.remove("adapter_weights");
    all
}

fn flatten(key: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let grouped = matches!(key, "" | "method" | "train");
                let name = match (name.as_str(), grouped) {
                    ("type", true) => "method".to_string(),
                    (name, true) => name.to_string(),
                    (name, false) => format!("{key}.{name}"),
                };
                flatten(&name, field, out);
            }
        }
        _ => {
            out.insert(key.to_string(), value.clone());
        }
    }
}

/// Equal as settings: numbers within [`SETTING_TOLERANCE`], lists without regard to order, all else exactly.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            close(x.as_f64().unwrap_or(f64::NAN), y.as_f64().unwrap_or(f64::NAN))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().all(|v| y.iter().any(|w| same(v, w)))
        }
        _ => a == b,
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= SETTING_TOLERANCE * a.abs().max(b.abs())
}

fn settings(spec: &Spec, hello: &Hello, out: &mut Vec<Reason>) {
    let in_force = settings_in_force(hello);
    for (name, expected) in settings_of(spec) {
        if let Some(seen) = in_force.get(&name).filter(|seen| !same(seen, &expected)) {
            out.push(Reason::Setting { name, expected: expected.to_string(), seen: seen.to_string() });
        }
    }
}

fn kernels(spec: &Spec, hello: &Hello, out: &mut Vec<Reason>) {
    let all = spec.kernels.get("all");
    let named = spec.kernels.keys().filter(|seam| *seam != "all");
    let seams: std::collections::BTreeSet<&String> = named.chain(hello.kernel_plan.keys()).collect();
    for seam in seams {
        let Some(expected) = spec.kernels.get(seam).or(all) else { continue };
        let seen = hello.kernel_plan.get(seam);
        if seen != Some(expected) {
            let seen = seen.map_or("nothing", String::as_str).to_string();
            out.push(Reason::Kernel { seam: seam.clone(), expected: expected.clone(), seen });
        }
    }
    if let Some(expected) = all.filter(|_| hello.kernel_plan.is_empty()) {
        let (seam, seen) = ("all".into(), "no kernel plan".into());
        out.push(Reason::Kernel { seam, expected: expected.clone(), seen });
    }
}

/// What was launched against the plan: every seam ran, at its planned variant alone.
fn launches(method: &Method, hello: &Hello, done: &Done, out: &mut Vec<Reason>) {
    for (seam, expected) in &hello.kernel_plan {
        let of_seam = |name: &&String| name.strip_prefix(seam).is_some_and(|rest| rest.starts_with('.'));
        let seen: Vec<String> = done.kernels.keys().filter(of_seam).cloned().collect();
        let planned = format!("{seam}.{expected}.");
        // Full fine-tuning has a plan for the seam of the adapters and no adapters.
        let idle = seen.is_empty() && seam == "lora" && matches!(method, Method::Full {});
        if !idle && (seen.is_empty() || !seen.iter().all(|name| name.starts_with(&planned))) {
            let seen = if seen.is_empty() { "none".into() } else { some(&seen) };
            out.push(Reason::Launches { seam: seam.clone(), expected: expected.clone(), seen });
        }
    }
}

/// Some group of every step runs at the scheduled rate and, under LoRA+, some group at the rate times the ratio.
fn learning_rates(log: &TrialLog, spec: &Spec, out: &mut Vec<Reason>) {
    let ratio = match &spec.method {
        Method::Lora(lora) => lora.loraplus_lr_ratio,
        Method::Full {} => 1.0,
    };
    let wrong = |s: &Step| {
        let base = spec.train.learning_rate * spec.train.lr_factor(s.step, spec.measure.total_steps());
        [base, base * ratio].into_iter().find(|&want| !s.lr.values().any(|&lr| close(lr, want)))
    };
    out.extend(log.steps.iter().map(|s| &s.event).find_map(|s| {
        let seen = || s.lr.values().copied().collect();
        wrong(s).map(|expected| Reason::LearningRate { step: s.step, expected, seen: seen() })
    }));
}

fn trainable(header: &TrialHeader, ready: &Ready, out: &mut Vec<Reason>) {
    let by_name = |set: &[TensorInfo]| -> BTreeMap<String, Vec<usize>> {
        set.iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
    };
    let (want, have) = (by_name(&header.expected_trainable), by_name(&ready.trainable));
    let count = |set: &[TensorInfo]| set.iter().map(TensorInfo::numel).sum::<u64>();
    let (expected, seen) = (count(&header.expected_trainable), count(&ready.trainable));
    // A tensor named twice shows in the count alone.
    if want != have || expected != seen {
        let missing = want.keys().filter(|n| !have.contains_key(*n)).cloned().collect();
        let unexpected = have.keys().filter(|n| !want.contains_key(*n)).cloned().collect();
        let differs = |n: &&String| have.get(*n).is_some_and(|shape| *shape != want[*n]);
        let reshaped = want.keys().filter(differs).cloned().collect();
        out.push(Reason::TrainableSet { missing, unexpected, reshaped, expected, seen });
    }
    let adapters = match header.spec.method {
        Method::Lora(_) => expected,
        Method::Full {} => 0,
    };
    let expected = header.model.total_params + adapters;
    if ready.total_params != expected {
        out.push(Reason::ParameterCount { expected, seen: ready.total_params });
    }
}

fn ledger(log: &TrialLog, out: &mut Vec<Reason>) {
    let ledger = log.ledger.as_deref().unwrap_or_default();
    if !ledger.iter().map(|l| l.step).eq(log.steps.iter().map(|s| s.event.step)) {
        out.push(Reason::LedgerSteps { expected: log.steps.len(), seen: ledger.len() });
    }
    let digests: Vec<_> = ledger.iter().filter(|l| !l.digest_ok).collect();
    if let Some(first) = digests.first() {
        out.push(Reason::Digest { step: first.step, steps: digests.len() });
    }
    let samples: Vec<_> = ledger.iter().filter(|l| !l.samples_ok).collect();
    if let Some(first) = samples.first() {
        out.push(Reason::Samples { step: first.step, steps: samples.len() });
    }
    let counts: Vec<_> = ledger.iter().filter(|l| l.counted != l.reported).collect();
    if let Some(first) = counts.first() {
        let (expected, seen) = (first.counted, first.reported);
        out.push(Reason::Counts { step: first.step, steps: counts.len(), expected, seen });
    }
}
