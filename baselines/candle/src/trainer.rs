//! One optimizer step after another.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;
use chronibench_protocol::{
    BatchDigest, BatchPlan, Spec, TokenStore, event::TokenCounts, plan::StepPlan, spec::TrainArgs,
};

use crate::{
    batch::Batch,
    check,
    error::ArmError,
    gemm,
    loss::cross_entropy,
    model::Model,
    optim::{Optimizer, global_norm},
};

type Result<T> = std::result::Result<T, ArmError>;

/// Model, optimizer and data of one trial.
pub struct Trainer {
    /// What is trained.
    pub model: Model,
    /// Samples.
    pub tokens: TokenStore,
    /// Batches.
    pub plan: BatchPlan,
    optimizer: Optimizer,
    args: TrainArgs,
    total_steps: u32,
}

/// Loss and gradients of one step, before clipping.
pub struct Gradients {
    /// Mean loss over the step's targets.
    pub loss: f64,
    /// One tensor for each of [`crate::weights::Parameters::trainable`], in that order.
    pub grads: Vec<Tensor>,
    /// Digest of the ids that entered the model.
    pub digest: String,
    /// Tokens that entered the model.
    pub tokens: TokenCounts,
}

/// What one optimizer step did.
#[derive(Debug)]
pub struct StepReport {
    /// Mean loss over the step's targets, before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate by group.
    pub lr: BTreeMap<String, f64>,
    /// Digest of the ids that entered the model.
    pub digest: String,
    /// Samples that entered the model, row after row.
    pub samples: Vec<u32>,
    /// Tokens that entered the model.
    pub tokens: TokenCounts,
}

impl Trainer {
    /// Reads everything a trial needs.
    ///
    /// # Errors
    /// A file cannot be read, or the parts do not fit together.
    pub fn load(spec: &Spec) -> Result<Self> {
        let model = Model::load(&spec.model, &spec.method)?;
        let tokens = TokenStore::load(&spec.data.tokens)?;
        let plan = load_plan(&spec.data.plan)?;
        let total_steps = spec.measure.total_steps();
        check::plan(&plan, &tokens, &model.config, spec.to_run().total_steps())?;
        let optimizer = Optimizer::new(model.parameters.trainable(), &spec.method, &spec.train)?;
        Ok(Self { model, tokens, plan, optimizer, args: spec.train.clone(), total_steps })
    }

    /// Gradients of the mean loss over all targets of step `step`, so that micro-batches of unequal size weigh as they
    /// would in one large batch.
    ///
    /// # Errors
    /// candle refuses an operation, or a trainable tensor gets no gradient.
    pub fn gradients(&self, step: u32) -> Result<Gradients> {
        let mut digest = BatchDigest::new();
        let mut tokens = TokenCounts::default();
        let mut batches = Vec::new();
        for micro in &self.step_plan(step).micro_batches {
            let pad = self.plan.pad_token_id;
            let batch = Batch::new(micro, &self.tokens, pad, &self.model.config, &mut digest)?;
            tokens += batch.counts;
            batches.push(batch);
        }
        let mut loss = 0.0;
        let mut grads = Vec::new();
        for batch in &batches {
            let (part, part_grads) = self.backward(batch, 1.0 / tokens.loss as f64)?;
            loss += part;
            grads = match grads.is_empty() {
                true => part_grads,
                false => {
                    grads.iter().zip(&part_grads).map(|(a, b)| a + b).collect::<candle_core::Result<_>>()?
                }
            };
        }
        Ok(Gradients { loss, grads, digest: digest.finish(), tokens })
    }

    fn backward(&self, batch: &Batch, scale: f64) -> Result<(f64, Vec<Tensor>)> {
        let loss = (cross_entropy(&self.model.logits(batch)?, batch, &self.args)? * scale)?;
        let mut store = loss.backward()?;
        let take = |(name, var): &(String, candle_core::Var)| {
            store.remove(var).ok_or_else(|| ArmError::NoGradient { name: name.clone() })
        };
        let grads = self.model.parameters.trainable().iter().map(take).collect::<Result<_>>()?;
        Ok((f64::from(loss.to_scalar::<f32>()?), grads))
    }

    /// Runs optimizer step `step`; steps are to be run in order.
    ///
    /// # Errors
    /// Those of [`Self::gradients`]; [`ArmError::Diverged`] when loss or gradient norm is not finite, in which case
    /// nothing is updated.
    pub fn step(&mut self, step: u32) -> Result<StepReport> {
        let Gradients { loss, grads, digest, tokens } = self.gradients(step)?;
        let grad_norm = global_norm(&grads)?;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(ArmError::Diverged { step, loss, grad_norm });
        }
        let lr = self.args.learning_rate * self.args.lr_factor(step, self.total_steps);
        let lr = self.optimizer.step(grads, grad_norm, lr)?;
        let samples = self.step_plan(step).samples();
        Ok(StepReport { loss, grad_norm, lr, digest, samples, tokens })
    }

    /// Nanoseconds and floating-point operations of all matrix products of `steps`. Each distinct rectangle among their
    /// micro-batches runs forward once to note its products, which are then replayed alone; the medians add up.
    ///
    /// # Errors
    /// candle refuses an operation.
    pub fn gemm_share(&self, steps: std::ops::Range<u32>) -> Result<(u64, u64)> {
        let mut geometries = BTreeMap::new();
        for step in steps {
            for micro in &self.step_plan(step).micro_batches {
                geometries.entry((micro.rows.len(), micro.row_slots)).or_insert((micro, 0)).1 += 1;
            }
        }
        // The products of a rectangle depend on its extents alone. Few kinds are timed often; many average out.
        let repeats = (12 / geometries.len().max(1)).clamp(1, 5) | 1;
        let (mut ns, mut flops) = (0, 0);
        for (micro, count) in geometries.into_values() {
            let (pad, mut unused) = (self.plan.pad_token_id, BatchDigest::new());
            let batch = Batch::new(micro, &self.tokens, pad, &self.model.config, &mut unused)?;
            let products = self.model.products.record(|| self.model.logits(&batch))?;
            let mut runs =
                (0..repeats).map(|_| gemm::replay(&products)).collect::<candle_core::Result<Vec<_>>>()?;
            runs.sort_unstable();
            let (run_ns, run_flops) = runs[runs.len() / 2];
            ns += run_ns * count;
            flops += run_flops * count;
        }
        Ok((ns, flops))
    }

    fn step_plan(&self, step: u32) -> &StepPlan {
        &self.plan.steps[step as usize]
    }
}

fn load_plan(path: &Path) -> Result<BatchPlan> {
    let bytes = std::fs::read(path).map_err(|source| ArmError::Io { path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let hint = "make the plan again from the data set of this scenario";
        ArmError::invalid(format!("not a batch plan: {e}"), path.display().to_string(), hint)
    })
}
