//! Making the inputs of a run with the trainer's own library: it tokenises, plans batches and draws weights. The
//! harness checks what comes out (see [`crate::inputs`]).

use std::{collections::BTreeMap, path::Path};

use chronibench_protocol::{
    Spec, TokenStore,
    event::Failure,
    spec::{DataSpec, Measure, Method, ModelSpec, PROTOCOL, PrecisionArgs, Scheduler, TrainArgs},
};
use serde_json::Value;

use super::native;
use crate::{
    error::Exit,
    inputs::{PreparePlan, PrepareSpec, PrepareWeights, Pretrain},
};

type Prepared<T> = Result<T, (Exit, Failure)>;

/// Makes everything that `spec.json` names; the answer is the tokeniser's report.
pub fn run(path: &Path) -> Prepared<Value> {
    let text = std::fs::read(path).map_err(|e| environment(&e, path))?;
    let spec: PrepareSpec = serde_json::from_slice(&text).map_err(|e| environment(&e, path))?;
    spec.devices.iter().try_for_each(|device| native::check_device(device))?;
    let (tokens, pad_token_id, report) =
        native::tokenize(&spec.data).map_err(|e| usage(&e, &spec.data.path))?;
    tokens.save(&spec.tokens).map_err(|e| environment(&e, &spec.tokens))?;
    for plan in &spec.plans {
        write_plan(&spec, plan, &tokens, pad_token_id, spec.data.settings.seed)?;
    }
    if let Some(weights) = &spec.weights {
        write_weights(&spec, weights, &tokens, pad_token_id)?;
    }
    Ok(report)
}

fn write_plan(
    spec: &PrepareSpec,
    plan: &PreparePlan,
    tokens: &TokenStore,
    pad: u32,
    seed: u64,
) -> Prepared<()> {
    let made = native::build_plan(
        &tokens.lengths(),
        &plan.batch,
        spec.data.settings.max_length,
        pad,
        seed,
        plan.steps,
    )
    .map_err(|e| usage(&e, &spec.data.path))?;
    let bytes = serde_json::to_vec(&made).expect("plain data");
    std::fs::write(&plan.path, bytes).map_err(|e| environment(&e, &plan.path))
}

fn write_weights(spec: &PrepareSpec, w: &PrepareWeights, tokens: &TokenStore, pad: u32) -> Prepared<()> {
    let failed = |f: Failure| (Exit::Usage, f);
    match &w.pretrain {
        None => first_weights(spec, w, w.bf16, &w.path).map_err(failed)?,
        Some(pretrain) => {
            let first = w.path.with_extension("first");
            first_weights(spec, w, false, &first).map_err(failed)?;
            // Another order of samples than the trials', which would else begin with batches seen before.
            write_plan(spec, &pretrain.plan, tokens, pad, spec.data.settings.seed.wrapping_add(1))?;
            let trial = pretraining(spec, w, pretrain, &first);
            native::train(&trial, &mut |_| Ok(())).map_err(|(_, f)| failed(f))?;
            std::fs::remove_file(&first).map_err(|e| environment(&e, &first))?;
            if w.bf16 {
                native::round_weights(&w.path).map_err(failed)?;
            }
        }
    }
    // Adapters are rounded too: an arm that holds them in bf16 would else have moved them before its first step.
    w.adapters.iter().try_for_each(|a| {
        native::write_adapter(&spec.config, &a.lora, w.seed, w.bf16, &a.path).map_err(failed)
    })
}

/// Weights before any training: a model's, or drawn.
fn first_weights(spec: &PrepareSpec, w: &PrepareWeights, bf16: bool, out: &Path) -> Result<(), Failure> {
    match &w.given {
        Some(model) => native::write_given_weights(&spec.config, model, bf16, out),
        None => native::write_weights(&spec.config, w.seed, bf16, out),
    }
}

/// The pretraining as a trial of the native arm that saves its weights.
fn pretraining(spec: &PrepareSpec, w: &PrepareWeights, p: &Pretrain, first: &Path) -> Spec {
    Spec {
        protocol: PROTOCOL.into(),
        trial_id: "pretrain".into(),
        arm: "pretrain".into(),
        model: ModelSpec { config: spec.config.clone(), weights: first.to_path_buf() },
        data: DataSpec { tokens: spec.tokens.clone(), plan: p.plan.path.clone() },
        method: Method::Full {},
        train: TrainArgs {
            learning_rate: p.learning_rate,
            lr_scheduler_type: Scheduler::Cosine,
            warmup_steps: p.plan.steps / 10,
            ..TrainArgs::default()
        },
        measure: Measure { untimed_steps: p.plan.steps, timed_steps: 0, window_steps: 1 },
        kernels: BTreeMap::new(),
        threads: spec.threads,
        device: "cpu".into(),
        options: Default::default(),
        precision: PrecisionArgs::default(),
        recompute: Default::default(),
        offload: false,
        memory_limit_gb: None,
        save_weights: Some(w.path.clone()),
        audit: None,
    }
}

/// The data library's messages end in "; how to mend it".
fn usage(e: &dyn std::fmt::Display, path: &Path) -> (Exit, Failure) {
    let message = e.to_string();
    let (what, hint) = message.rsplit_once("; ").unwrap_or((&message, ""));
    (Exit::Usage, Failure { what: what.into(), at: path.display().to_string(), hint: hint.into() })
}

fn environment(e: &dyn std::fmt::Display, path: &Path) -> (Exit, Failure) {
    let hint = "check the path, the permissions and the disk".into();
    (Exit::Environment, Failure { what: e.to_string(), at: path.display().to_string(), hint })
}
