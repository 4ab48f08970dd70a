//! Batches of a plan, and the loop that trains on them.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use chronibench_protocol::{BatchPlan, TokenStore};
use chronicals_data::batch::{Geometry, StepBatches, collate_step};

use crate::{
    backend::{Backend, Stager},
    config::ModelConfig,
    error::Error,
    model::Capacity,
    trainer::{Head, Running, StepReport, Trainer},
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

    /// Every geometry that micro-batches of some steps have, once.
    ///
    /// # Errors
    /// The plan does not fit the tokens.
    pub fn geometries(&self, steps: Range<u32>) -> Result<BTreeSet<Geometry>, Error> {
        let steps = steps.start.min(steps.end) as usize..steps.end as usize;
        let micro = self.plan.steps[steps].iter().flat_map(|step| &step.micro_batches);
        micro
            .map(|micro| Geometry::of(micro, &self.tokens))
            .collect::<Result<_, _>>()
            .map_err(|e| Error::new(e.to_string(), "the batch plan"))
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

/// Trains up to step `to` of the plan, from where the trainer is, and reports each step.
///
/// The batches to come are collated and encoded by a thread of their own. A device that works by itself has the next step before
/// the numbers of the last are read: it does not wait for the host between steps.
///
/// # Errors
/// A step fails, or `report` does.
pub fn fit<B: Backend>(
    trainer: &mut Trainer<B>,
    batches: &Batches,
    to: u32,
    report: impl FnMut(u32, StepReport) -> Result<(), Error>,
) -> Result<(), Error> {
    fit_until(trainer, batches, to, || false, report)
}

/// The same, but begins no step once `stop` says so; those that were begun are ended.
///
/// # Errors
/// As [`fit`].
pub fn fit_until<B: Backend>(
    trainer: &mut Trainer<B>,
    batches: &Batches,
    to: u32,
    stop: impl Fn() -> bool,
    mut report: impl FnMut(u32, StepReport) -> Result<(), Error>,
) -> Result<(), Error> {
    let (stager, steps) = (trainer.backend().stager(), trainer.step()..to);
    if steps.is_empty() {
        return Ok(());
    }
    std::thread::scope(|scope| {
        // Dropped on the way out, whereupon the preparer ends.
        let (send, prepared) = sync_channel(WAITING);
        let preparer = std::thread::Builder::new().name("preparer".into());
        let all = steps.clone();
        let prepare = move || prepare(batches, &stager, all, &send);
        preparer.spawn_scoped(scope, prepare).map_err(|e| {
            Error::new(format!("cannot start a thread: {e}"), "preparing batches").environment()
        })?;
        let mut finish = |trainer: &mut Trainer<B>, step, running| report(step, trainer.wait(running)?);
        let mut last = None;
        for step in steps {
            if stop() {
                break;
            }
            let running = launch(trainer, step, &prepared)?;
            if !B::APART {
                finish(trainer, step, running)?;
            } else if let Some((before, running)) = last.replace((step, running)) {
                finish(trainer, before, running)?;
            }
        }
        last.map_or(Ok(()), |(step, running)| finish(trainer, step, running))
    })
}

/// Loss of batches that were not learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Sum over the loss tokens.
    pub loss_sum: f64,
    /// Loss tokens.
    pub loss_tokens: u64,
}

impl Evaluation {
    /// Mean over the loss tokens.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.loss_tokens.max(1) as f64
    }

    /// `e` to the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }
}

/// Loss of every batch of a plan, without training.
///
/// # Errors
/// A batch cannot be made, or the device fails.
pub fn evaluate<B: Backend>(trainer: &mut Trainer<B>, batches: &Batches) -> Result<Evaluation, Error> {
    let each = (0..batches.steps()).flat_map(|s| match batches.step(s) {
        Ok(step) => step.micro_batches.into_iter().map(Ok).collect(),
        Err(e) => vec![Err(e)],
    });
    trainer.evaluate_each(each)
}

/// What waits for the trainer, besides what it works on: enough that it need not wait, and little memory.
const WAITING: usize = 2;

/// What the preparer hands over, in the order of the plan.
enum Prepared<S> {
    Head(Head),
    Batch(S),
}

type Sent<S> = Result<Prepared<S>, Error>;

/// Collates and encodes every batch, until that fails or nobody wants them any more.
fn prepare<S: Stager>(batches: &Batches, stager: &S, steps: Range<u32>, to: &SyncSender<Sent<S::Staged>>) {
    for step in steps {
        let collated = batches.step(step);
        let head = collated.as_ref().map(|batches| Prepared::Head(Head::of(step, batches)));
        if to.send(head.map_err(Clone::clone)).is_err() {
            return;
        }
        for batch in collated.into_iter().flat_map(|batches| batches.micro_batches) {
            if to.send(stager.stage(batch).map(Prepared::Batch)).is_err() {
                return;
            }
        }
    }
}

fn launch<B: Backend>(
    trainer: &mut Trainer<B>,
    step: u32,
    prepared: &Receiver<Sent<B::Staged>>,
) -> Result<Running<B>, Error> {
    // The preparer ends early when it panics, which ends this thread too when it is joined.
    let next = || prepared.recv().unwrap_or_else(|_| Err(Error::new("no more batches", "preparing batches")));
    let Prepared::Head(head) = next()? else { unreachable!("a step begins with its head") };
    assert_eq!(head.step, step, "steps come in order");
    trainer.launch(head, |_| match next()? {
        Prepared::Batch(batch) => Ok(batch),
        Prepared::Head(_) => unreachable!("a step has as many batches as its head says"),
    })
}
