//! Refuses, before anything is timed, a trial that this arm cannot run as asked.

use chronibench_protocol::{
    BatchPlan, Spec, TokenStore,
    spec::{LoraArgs, Measure, Method, PROTOCOL, TrainArgs},
};

use crate::{config::Config, error::ArmError};

type Result<T> = std::result::Result<T, ArmError>;

fn refuse<T>(what: impl Into<String>, at: &str, hint: &str) -> Result<T> {
    Err(ArmError::invalid(what, at, hint))
}

/// The parts of a specification that need no file; `threads` is what candle will use.
pub fn spec(spec: &Spec, threads: usize) -> Result<()> {
    if spec.protocol != PROTOCOL {
        return refuse(
            format!("protocol '{}' is not {PROTOCOL}", spec.protocol),
            "protocol",
            "build arm and harness from the same source",
        );
    }
    if spec.device != "cpu" {
        return refuse(
            format!("device '{}' is not available", spec.device),
            "device",
            "this arm runs on cpu",
        );
    }
    if let Some(seam) = spec.kernels.keys().next() {
        return refuse(format!("no seam '{seam}'"), "kernels", "this arm has no interchangeable kernels");
    }
    if let Some(asked) = spec.threads
        && asked != threads
    {
        return refuse(
            format!("{asked} threads were asked for and {threads} are in use"),
            "threads",
            "set RAYON_NUM_THREADS before the process starts",
        );
    }
    measure(&spec.measure)?;
    train_args(&spec.train)?;
    if let Method::Lora(l) = &spec.method {
        let plain = LoraArgs {
            target_modules: l.target_modules.clone(),
            use_rslora: l.use_rslora,
            loraplus_lr_ratio: l.loraplus_lr_ratio,
            adapter_weights: l.adapter_weights.clone(),
            ..LoraArgs::of(l.r, l.lora_alpha)
        };
        if *l != plain {
            return refuse(
                "this arm has LoRA of one rank and alpha, without magnitudes",
                "method",
                "leave rank_pattern, alpha_pattern, use_dora and init_lora_weights out",
            );
        }
    }
    match &spec.method {
        Method::Lora(l) if !(l.loraplus_lr_ratio.is_finite() && l.loraplus_lr_ratio > 0.0) => {
            refuse("loraplus_lr_ratio is out of range", "method.loraplus_lr_ratio", "give a number above 0")
        }
        _ => Ok(()),
    }
}

fn measure(m: &Measure) -> Result<()> {
    let whole = m.timed_steps.checked_rem(m.window_steps) == Some(0);
    if !whole || m.timed_steps == 0 {
        return refuse(
            format!("{} timed steps do not make windows of {}", m.timed_steps, m.window_steps),
            "measure.window_steps",
            "let timed_steps be a positive multiple of window_steps",
        );
    }
    Ok(())
}

fn train_args(a: &TrainArgs) -> Result<()> {
    let unit = |v: f64| (0.0..1.0).contains(&v);
    let rules = [
        ("learning_rate", a.learning_rate >= 0.0 && a.learning_rate.is_finite()),
        ("weight_decay", a.weight_decay >= 0.0 && a.weight_decay.is_finite()),
        ("adam_beta1", unit(a.adam_beta1)),
        ("adam_beta2", unit(a.adam_beta2)),
        ("adam_epsilon", a.adam_epsilon > 0.0 && a.adam_epsilon.is_finite()),
        ("max_grad_norm", a.max_grad_norm >= 0.0 && a.max_grad_norm.is_finite()),
        ("label_smoothing_factor", unit(a.label_smoothing_factor)),
        ("z_loss", a.z_loss >= 0.0 && a.z_loss.is_finite()),
    ];
    if a.loss_chunk_rows.is_some() {
        return refuse(
            "this arm's logits exist all at once".to_string(),
            "train.loss_chunk_rows",
            "leave it out where candle is compared",
        );
    }
    match rules.iter().find(|(_, ok)| !ok) {
        Some((name, _)) => refuse(
            format!("{name} is out of range"),
            &format!("train.{name}"),
            "rates and weights are finite and 0 or more; betas and smoothing lie in [0, 1); epsilon is above 0",
        ),
        None => Ok(()),
    }
}

/// The plan against the steps asked for, the token store and the vocabulary.
pub fn plan(plan: &BatchPlan, tokens: &TokenStore, config: &Config, steps: u32) -> Result<()> {
    let hint = "make the plan again from the data set and tokenizer of this scenario";
    if plan.steps.len() < steps as usize {
        return refuse(format!("{} steps planned, {steps} asked for", plan.steps.len()), "data.plan", hint);
    }
    let highest = tokens.input_ids.iter().chain([&plan.pad_token_id]).max().copied().unwrap_or_default();
    if highest as usize >= config.vocab_size {
        let what = format!("token id {highest} is outside the vocabulary of {}", config.vocab_size);
        return refuse(what, "data.tokens", hint);
    }
    let lengths = tokens.lengths();
    for (index, step) in plan.steps.iter().take(steps as usize).enumerate() {
        let fits = |row: &Vec<u32>, slots: u32| {
            let sum: Option<usize> = row.iter().map(|&s| lengths.get(s as usize)).sum();
            sum.is_some_and(|n| n <= slots as usize)
        };
        let whole = step.micro_batches.iter().all(|m| {
            m.row_slots > 0 && !m.rows.is_empty() && m.rows.iter().all(|row| fits(row, m.row_slots))
        });
        if !whole || step.ledger(tokens, plan.pad_token_id).1.loss == 0 {
            let what =
                "a micro-batch is empty, overfull, names a sample that is not there, or has nothing to learn";
            return refuse(what, &format!("data.plan, step {index}"), hint);
        }
    }
    Ok(())
}
