//! Batches of a plan, and the loop that trains on them.

use chronibench_protocol::{BatchPlan, TokenStore};
use chronicals_data::batch::{StepBatches, collate_step};

use crate::{
    backend::Backend,
    config::ModelConfig,
    error::Error,
    model::Capacity,
    trainer::{StepReport, Trainer},
};

/// Tokens and the plan of batches over them, checked against each other and the model.
#[derive(Clone, Debug)]
pub struct Batches {
    tokens: TokenStore,
    plan: BatchPlan,
}

impl Batches {
    /// Checks that every id is in the vocabulary.
    ///
    /// # Errors
    /// They do not belong together; `at` says in whose name.
    pub fn new(tokens: TokenStore, plan: BatchPlan, config: &ModelConfig, at: &str) -> Result<Self, Error> {
        let vocab = config.vocab_size;
        let outside = |id: &&u32| **id as usize >= vocab;
        if let Some(id) = tokens.input_ids.iter().chain([&plan.pad_token_id]).find(outside) {
            return Err(Error::new(format!("token id {id} is outside the vocabulary of {vocab}"), at)
                .hint("use the tokenizer that belongs to the model"));
        }
        Ok(Self { tokens, plan })
    }

    /// Number of optimizer steps planned.
    pub fn steps(&self) -> u32 {
        self.plan.steps.len() as u32
    }

    /// The tokens.
    pub fn tokens(&self) -> &TokenStore {
        &self.tokens
    }

    /// The plan.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    /// The largest micro-batch.
    pub fn capacity(&self) -> Capacity {
        let micro = || self.plan.steps.iter().flat_map(|s| &s.micro_batches);
        Capacity {
            tokens: micro().map(|m| m.rows.len() * m.row_slots as usize).max().unwrap_or(1),
            row_slots: micro().map(|m| m.row_slots as usize).max().unwrap_or(1),
        }
    }

    /// The micro-batches of a step: a function of the step alone, so that a resumed run goes on where it stopped.
    ///
    /// # Errors
    /// The plan does not fit the tokens.
    pub fn step(&self, step: u32) -> Result<StepBatches, Error> {
        let plan = &self.plan.steps[step as usize];
        collate_step(plan, &self.tokens, self.plan.pad_token_id)
            .map_err(|e| Error::new(e.to_string(), format!("step {step} of the batch plan")))
    }
}

/// Trains on every step of the plan and reports each.
///
/// # Errors
/// A step fails, or `report` does.
pub fn fit<B: Backend>(
    trainer: &mut Trainer<B>,
    batches: &Batches,
    mut report: impl FnMut(u32, &StepReport) -> Result<(), Error>,
) -> Result<(), Error> {
    for step in 0..batches.steps() {
        let r = trainer.train_step(&batches.step(step)?)?;
        report(step, &r)?;
    }
    Ok(())
}
