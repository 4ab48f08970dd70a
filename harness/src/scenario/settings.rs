//! The settings of one case: what its axes say, put together.

use chronibench_analysis::stats::LOSS_FALL_MIN_STEPS;
use chronibench_protocol::{
    record::{BatchArgs, Packing},
    spec::{LORA_TARGETS, LoraArgs, Method, TrainArgs},
};
use serde_json::{Map, Value};

use super::{
    raw::{MethodType, Settings},
    source::Source,
};
use crate::error::{Error, Exit, Result};

/// Typed settings of a case.
pub struct Merged {
    /// Full or LoRA.
    pub method: Method,
    /// Optimizer and schedule.
    pub train: TrainArgs,
    /// Batch geometry.
    pub batch: BatchArgs,
}

/// Puts the settings of several axis values together, then those of a sweep over them; `case` is for messages.
///
/// # Errors
/// Two axes set the same thing, or something needed is set by none.
pub fn merge(
    parts: &[&Settings],
    over: &[&Settings],
    train: &TrainArgs,
    source: &Source,
    case: &str,
) -> Result<Merged> {
    let at = || format!("{}: case {case}", source.name);
    let mut all = together(parts, &at)?;
    all.extend(together(over, &at)?);
    let settings: Settings = serde_json::from_value(Value::Object(all)).expect("put together from settings");
    let missing = |field: &str, hint: &str| Error::usage(format!("no axis sets '{field}'"), at()).hint(hint);
    let method = match settings.r#type {
        None => return Err(missing("type", "give every value of one axis `type: full` or `type: lora`")),
        Some(MethodType::Full) => full(&settings, at())?,
        Some(MethodType::Lora) => Method::Lora(lora(&settings, at())?),
    };
    let batch = BatchArgs {
        packing: settings.packing.unwrap_or(Packing::None),
        per_device_train_batch_size: settings
            .per_device_train_batch_size
            .ok_or_else(|| missing("per_device_train_batch_size", "set it in one axis of the matrix"))?,
        gradient_accumulation_steps: settings.gradient_accumulation_steps.unwrap_or(1),
    };
    if batch.per_device_train_batch_size == 0 || batch.gradient_accumulation_steps == 0 {
        return Err(Error::usage("a batch of nothing", at())
            .hint("per_device_train_batch_size and gradient_accumulation_steps are at least 1"));
    }
    Ok(Merged { method, train: overlaid(train, &settings), batch })
}

fn together(parts: &[&Settings], at: &dyn Fn() -> String) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    for (key, value) in parts.iter().flat_map(|part| object(part)) {
        if all.insert(key.clone(), value).is_some() {
            let e = Error::usage(format!("'{key}' is set by two axes"), at());
            return Err(e.hint("let one axis of the matrix, or of the sweep, decide it"));
        }
    }
    Ok(all)
}

fn full(s: &Settings, at: String) -> Result<Method> {
    let lora = Settings {
        r: s.r,
        lora_alpha: s.lora_alpha,
        target_modules: s.target_modules.clone(),
        use_rslora: s.use_rslora,
        loraplus_lr_ratio: s.loraplus_lr_ratio,
        ..Settings::default()
    };
    match object(&lora).keys().next() {
        None => Ok(Method::Full {}),
        Some(key) => Err(Error::usage(format!("'{key}' means nothing under `type: full`"), at)
            .hint("take it out, or use `type: lora`")),
    }
}

fn lora(s: &Settings, at: String) -> Result<LoraArgs> {
    let need = |field: &str| Error::usage(format!("`type: lora` needs '{field}'"), &at).hint("add it");
    let named = |words: &Vec<super::located::Word>| words.iter().map(|w| w.text.clone()).collect();
    let (r, alpha) = (s.r.ok_or_else(|| need("r"))?, s.lora_alpha.ok_or_else(|| need("lora_alpha"))?);
    let args = LoraArgs {
        target_modules: s
            .target_modules
            .as_ref()
            .map_or_else(|| LORA_TARGETS.map(String::from).to_vec(), named),
        use_rslora: s.use_rslora.unwrap_or(false),
        loraplus_lr_ratio: s.loraplus_lr_ratio.unwrap_or(1.0),
        ..LoraArgs::of(r, alpha)
    };
    if args.r == 0 || args.target_modules.is_empty() {
        return Err(Error::usage("an adapter without parameters", at)
            .hint("`r` is at least 1 and `target_modules` names at least one projection"));
    }
    Ok(args)
}

/// The scenario's `train` with what the axes change.
fn overlaid(train: &TrainArgs, s: &Settings) -> TrainArgs {
    TrainArgs {
        learning_rate: s.learning_rate.unwrap_or(train.learning_rate),
        lr_scheduler_type: s.lr_scheduler_type.unwrap_or(train.lr_scheduler_type),
        warmup_steps: s.warmup_steps.unwrap_or(train.warmup_steps),
        weight_decay: s.weight_decay.unwrap_or(train.weight_decay),
        max_grad_norm: s.max_grad_norm.unwrap_or(train.max_grad_norm),
        label_smoothing_factor: s.label_smoothing_factor.unwrap_or(train.label_smoothing_factor),
        z_loss: s.z_loss.unwrap_or(train.z_loss),
        loss_chunk_rows: s.loss_chunk_rows.or(train.loss_chunk_rows),
        ..train.clone()
    }
}

pub(super) fn object(s: &Settings) -> Map<String, Value> {
    match serde_json::to_value(s).expect("settings are plain data") {
        Value::Object(o) => o,
        _ => unreachable!("a struct is an object"),
    }
}

/// Longest time that a trial is given: a year.
const MOST_SECONDS: f64 = 365.0 * 86_400.0;
/// Most steps of a trial, untimed and timed.
const MOST_STEPS: u64 = 10_000_000;

/// Checks what types cannot say about steps and schedule.
pub fn check_measure(raw: &super::raw::Raw, source: &Source) -> Result<()> {
    let m = &raw.measure;
    let wrong = |what: &str, hint: &str| Err(Error::new(Exit::Usage, what, &source.name).hint(hint));
    if raw.trials == 0 {
        return wrong("trials: 0 measures nothing", "at least 1; 3 or more give intervals");
    }
    if m.window_steps == 0 || m.timed_steps == 0 || !m.timed_steps.is_multiple_of(m.window_steps) {
        return wrong(
            "measure.timed_steps is not a positive multiple of measure.window_steps",
            "e.g. timed_steps: 12 with window_steps: 4",
        );
    }
    let steps = u64::from(m.untimed_steps) + u64::from(m.timed_steps);
    if steps < LOSS_FALL_MIN_STEPS as u64 {
        let what = format!(
            "measure has {steps} steps, and no trial of fewer than {LOSS_FALL_MIN_STEPS} is VALID: its falling loss \
             could not be told from noise"
        );
        return wrong(&what, "e.g. untimed_steps: 2 and timed_steps: 12");
    }
    if steps > MOST_STEPS {
        return wrong("measure has more than ten million steps", "e.g. untimed_steps: 4 and timed_steps: 12");
    }
    let limits = [
        (
            raw.timeout_s,
            "timeout_s is not a positive number of seconds, or more than a year",
            "e.g. timeout_s: 120",
        ),
        (
            raw.helper_timeout_s,
            "helper_timeout_s is not a positive number of seconds, or more than a year",
            "e.g. helper_timeout_s: 3600",
        ),
    ];
    for (seconds, what, hint) in limits {
        if !(seconds > 0.0 && seconds <= MOST_SECONDS) {
            return wrong(what, hint);
        }
    }
    if raw.threads == Some(0) {
        return wrong("threads: 0", "at least 1; leave it out to take every core");
    }
    if raw.data.max_length < 2 {
        return wrong("data.max_length is below 2, nothing could be predicted", "e.g. max_length: 256");
    }
    Ok(())
}
