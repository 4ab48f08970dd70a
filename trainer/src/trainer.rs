//! A model in training: steps, evaluation, saving.

mod evaluate;
mod pissa;

use std::{collections::BTreeMap, ops::Range, path::Path};

use chronibench_protocol::{
    event::TokenCounts,
    spec::{Method, TrainArgs},
};
use chronicals_data::batch::StepBatches;

use crate::{
    args,
    backend::{Backend, Stager, Update, Work},
    config::ModelConfig,
    error::Error,
    fit::Batches,
    formats::peft,
    init,
    model::{
        Model, Setup,
        step::{self, Purpose},
    },
    params::{self, Layout},
    profile::Profile,
    room, weights,
};

/// What one optimizer step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss over the loss tokens, before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The same by parameter group; empty where a device has several groups and one norm.
    pub grad_norm_by_group: BTreeMap<String, f64>,
    /// Learning rate by group.
    pub lr: BTreeMap<String, f64>,
    /// Tokens of the step.
    pub tokens: TokenCounts,
    /// Digest of the ids that ran, see [`StepBatches::digest`].
    pub digest: String,
    /// See [`StepBatches::samples`].
    pub samples: Vec<u32>,
}

/// What is known of a step's batches before the first of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Step of the plan.
    pub step: u32,
    /// How many micro-batches there are.
    pub micro_batches: usize,
    /// Their tokens.
    pub tokens: TokenCounts,
    /// See [`StepBatches::digest`].
    pub digest: String,
    /// See [`StepBatches::samples`].
    pub samples: Vec<u32>,
}

impl Head {
    /// Of batches.
    pub fn of(step: u32, batches: &StepBatches) -> Self {
        let StepBatches { micro_batches, counts, digest, samples } = batches;
        let (micro_batches, tokens) = (micro_batches.len(), *counts);
        Self { step, micro_batches, tokens, digest: digest.clone(), samples: samples.clone() }
    }
}

/// A step that was handed to the device.
pub struct Running<B: Backend> {
    ended: B::Ended,
    step: u32,
    lr: BTreeMap<String, f64>,
    head: Head,
}

/// A model, its optimizer and where it is in the schedule.
pub struct Trainer<B> {
    backend: B,
    model: Model,
    layout: Layout,
    adapters: Option<Layout>,
    args: TrainArgs,
    total_steps: u32,
    step: u32,
    /// What the adapters began as, where they are a part of the base.
    began: Option<Vec<f32>>,
}

impl<B: Backend> Trainer<B> {
    /// Allocates everything a training of `total_steps` optimizer steps needs; parameters are zero until loaded or
    /// drawn.
    ///
    /// # Errors
    /// The settings make no sense, or the device has no room.
    pub fn new(mut backend: B, setup: &Setup<'_>, args: &TrainArgs, total_steps: u32) -> Result<Self, Error> {
        args::check(args)?;
        room::check_offload::<B>(setup.offload)?;
        let adapters = match setup.method {
            Method::Full {} => None,
            Method::Lora(_) => Some(init::trainable(setup.config, setup.method)?),
        };
        let model = Model::build(&mut backend, setup)?;
        backend.prepare(&model)?;
        let layout = Layout::model(setup.config);
        Ok(Self { backend, model, layout, adapters, args: args.clone(), total_steps, step: 0, began: None })
    }

    /// Draws fresh parameters.
    ///
    /// # Errors
    /// The device fails.
    pub fn init(&mut self, config: &ModelConfig, seed: u64) -> Result<(), Error> {
        init::fill(&mut self.backend, config, &self.layout, self.model.weights, seed)?;
        self.init_adapters(config, seed)
    }

    /// Draws fresh adapters on the weights that are there.
    ///
    /// # Errors
    /// The device fails.
    pub fn init_adapters(&mut self, config: &ModelConfig, seed: u64) -> Result<(), Error> {
        let (Some(layout), Some(values)) = (&self.adapters, self.model.adapters) else { return Ok(()) };
        init::fill(&mut self.backend, config, layout, values, seed)?;
        // While B is zero, outputs have the lengths of the weight's rows.
        for t in layout.tensors.iter().filter(|t| t.group == "lora_magnitude") {
            let weight = self.layout.get(&params::weight_of(&t.name)).expect("every projection has a weight");
            let rows = self.backend.read(self.model.weights.slice(weight.offset, weight.len()))?;
            let lengths = rows.chunks(weight.shape[1]).map(|row| length(row) as f32).collect::<Vec<_>>();
            self.backend.write(values.slice(t.offset, t.len()), &lengths)?;
        }
        Ok(())
    }

    /// Loads the model's weights.
    ///
    /// # Errors
    /// See [`weights::load`].
    pub fn load_weights(&mut self, path: &Path) -> Result<(), Error> {
        weights::load(&mut self.backend, &self.layout, self.model.weights, path)
    }

    /// Loads the adapters: of an adapter's folder its own file, whatever else is in there.
    ///
    /// # Errors
    /// See [`weights::load`]; also when the method has no adapters.
    pub fn load_adapters(&mut self, path: &Path) -> Result<(), Error> {
        let (Some(layout), Some(values)) = (&self.adapters, self.model.adapters) else {
            return Err(Error::new("full fine-tuning has no adapters to load", path.display().to_string())
                .hint("leave adapter_weights out, or choose method lora"));
        };
        let file = path.join(peft::WEIGHTS);
        let path = if file.exists() { &file } else { path };
        weights::load(&mut self.backend, layout, values, path)
    }

    /// Loads the model's weights from whichever of `files` has a tensor, beside whatever else they hold.
    ///
    /// # Errors
    /// See [`weights::load_from`].
    pub fn load_model(&mut self, files: &[&Path]) -> Result<(), Error> {
        weights::load_from(&mut self.backend, &self.layout, self.model.weights, files)
    }

    /// The same for the adapters, if there are any.
    ///
    /// # Errors
    /// See [`weights::load_from`].
    pub fn load_adapters_of(&mut self, files: &[&Path]) -> Result<(), Error> {
        match (&self.adapters, self.model.adapters) {
            (Some(layout), Some(values)) => weights::load_from(&mut self.backend, layout, values, files),
            _ => Ok(()),
        }
    }

    /// Names and shapes of whatever trains.
    pub fn trainable(&self) -> &Layout {
        self.adapters.as_ref().unwrap_or(&self.layout)
    }

    /// Elements of all parameters, adapters included.
    pub fn total_params(&self) -> u64 {
        (self.layout.len() + self.adapters.as_ref().map_or(0, Layout::len)) as u64
    }

    /// Readies the device for every batch to come, so that no step waits for what only the first of a shape needs.
    ///
    /// # Errors
    /// The device fails, or the plan does not fit the tokens.
    pub fn rehearse(&mut self, batches: &Batches) -> Result<(), Error> {
        let to_come = self.step..self.total_steps.min(batches.steps());
        self.rehearse_for(batches, to_come, Purpose::Training)
    }

    /// The same for batches that are evaluated, every step of them.
    ///
    /// # Errors
    /// As [`rehearse`](Self::rehearse).
    pub fn rehearse_evaluation(&mut self, batches: &Batches) -> Result<(), Error> {
        self.rehearse_for(batches, 0..batches.steps(), Purpose::Evaluation)
    }

    fn rehearse_for(&mut self, batches: &Batches, steps: Range<u32>, purpose: Purpose) -> Result<(), Error> {
        if !B::APART {
            return Ok(());
        }
        let all = batches.geometries(steps)?;
        all.into_iter().try_for_each(|geometry| self.backend.rehearse(&self.model, geometry, purpose))
    }

    /// One optimizer step over all micro-batches, from beginning to end. [`fit`](crate::fit::fit) trains without a pause between
    /// steps.
    ///
    /// # Errors
    /// As [`launch`](Self::launch) and [`wait`](Self::wait).
    pub fn train_step(&mut self, batches: &StepBatches) -> Result<StepReport, Error> {
        let stager = self.backend.stager();
        let mut each = batches.micro_batches.iter().cloned();
        let head = Head::of(self.step, batches);
        let running = self.launch(head, |_| stager.stage(each.next().expect("as many as the head says")))?;
        self.wait(running)
    }

    /// Hands a step to the device: forward and backward of every micro-batch, then the update. `batch` gives the micro-batches,
    /// by number.
    ///
    /// The gradient is that of the mean loss over *all* loss tokens of the step, so micro-batches of unequal size weigh
    /// as they would in one large batch.
    ///
    /// # Errors
    /// A step without a single loss token, and whatever `batch` says.
    pub fn launch(
        &mut self,
        head: Head,
        mut batch: impl FnMut(usize) -> Result<B::Staged, Error>,
    ) -> Result<Running<B>, Error> {
        if head.tokens.loss == 0 {
            return Err(Error::new("the batch has no token to learn", format!("step {}", self.step))
                .hint("every sample was masked or one token long: check the data and completion_only_loss"));
        }
        let update = self.next_update();
        let Self { backend: b, model: m, .. } = self;
        b.begin(1.0 / head.tokens.loss as f32);
        b.schedule(&m.groups, &update);
        if head.micro_batches == 1 {
            b.feed(batch(0)?);
            b.submit(Work::Step, |b| {
                first(b, m);
                b.update(&m.groups, m.grads);
            });
        } else {
            accumulate(b, m, head.micro_batches, batch)?;
            b.submit(Work::Update, |b| b.update(&m.groups, m.grads));
        }
        let ended = b.end();
        self.step += 1;
        let lr = self.model.groups.iter().map(|g| (g.name.to_string(), update.lr * g.lr_ratio)).collect();
        Ok(Running { ended, step: self.step - 1, lr, head })
    }

    /// Waits for a step, the oldest first.
    ///
    /// # Errors
    /// The loss or the gradient norm is not finite, or the device fails; the parameters are then not to be used.
    pub fn wait(&mut self, running: Running<B>) -> Result<StepReport, Error> {
        let Running { ended, step, lr, head: Head { tokens, digest, samples, .. } } = running;
        let stats = self.backend.stats(ended)?;
        let loss = stats.loss_sum / tokens.loss as f64;
        if !(loss.is_finite() && stats.grad_norm.is_finite()) {
            return Err(Error::new(
                format!("training diverged: loss {loss}, gradient norm {}", stats.grad_norm),
                format!("step {step}"),
            )
            .hint("lower learning_rate, add warmup_steps, or set max_grad_norm"));
        }
        let grad_norm_by_group = stats.by_group(lr.keys());
        Ok(StepReport { loss, grad_norm: stats.grad_norm, grad_norm_by_group, lr, tokens, digest, samples })
    }

    fn next_update(&self) -> Update {
        let a = &self.args;
        Update {
            lr: a.learning_rate * a.lr_factor(self.step, self.total_steps),
            beta1: a.adam_beta1,
            beta2: a.adam_beta2,
            eps: a.adam_epsilon,
            weight_decay: a.weight_decay,
            step: self.step + 1,
            max_grad_norm: a.max_grad_norm,
        }
    }

    /// Reads whatever trains, and looks for values that are no numbers.
    ///
    /// # Errors
    /// There are such, of which the first tensor is named; or the device fails.
    pub fn check_finite(&self) -> Result<(), Error> {
        let values = self.model.adapters.unwrap_or(self.model.weights);
        weights::check_finite(&self.backend, self.trainable(), values)
    }

    /// Writes model tensors, and adapters if there are any, as one f32 safetensors file.
    ///
    /// # Errors
    /// See [`weights::save`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let adapters = self.adapters.iter().zip(self.model.adapters);
        let parts: Vec<_> = std::iter::once((&self.layout, self.model.weights)).chain(adapters).collect();
        weights::save(&self.backend, &parts, path)
    }

    /// Writes only what trains: the model, or the adapters under PEFT names.
    ///
    /// # Errors
    /// See [`weights::save`].
    pub fn save_trainable(&self, path: &Path) -> Result<(), Error> {
        let values = self.model.adapters.unwrap_or(self.model.weights);
        weights::save(&self.backend, &[(self.trainable(), values)], path)
    }

    /// When the calls of some steps ran, where the backend was asked to [keep](Backend::profile) it.
    ///
    /// # Errors
    /// See [`Backend::profiled`].
    pub fn profiled(&mut self) -> Result<Option<Profile>, Error> {
        self.backend.profiled()
    }

    /// Loads what trains, as [`save_trainable`](Self::save_trainable) wrote it.
    ///
    /// # Errors
    /// See [`weights::load`].
    pub fn load_trainable(&mut self, path: &Path) -> Result<(), Error> {
        let values = self.model.adapters.unwrap_or(self.model.weights);
        let layout = self.adapters.as_ref().unwrap_or(&self.layout);
        weights::load(&mut self.backend, layout, values, path)
    }

    /// Name of the file of what trains.
    pub fn trainable_file(&self) -> &'static str {
        if self.adapters.is_some() { peft::WEIGHTS } else { "model.safetensors" }
    }

    /// Steps taken.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// Takes so many steps for taken: what is loaded besides is of that step.
    pub(crate) fn set_step(&mut self, step: u32) {
        self.step = step;
    }

    pub(crate) fn parts(&mut self) -> (&mut B, &Model) {
        (&mut self.backend, &self.model)
    }

    /// The backend, to look at.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The model's views, to look at.
    pub fn model(&self) -> &Model {
        &self.model
    }
}

/// `‖row‖`.
fn length(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Forward and backward of a micro-batch.
fn train<B: Backend>(b: &mut B, m: &Model) {
    step::forward(b, m, Purpose::Training);
    step::backward(b, m);
}

/// The same, the first of a step.
fn first<B: Backend>(b: &mut B, m: &Model) {
    b.zero(m.grads);
    train(b, m);
}

/// The sum of every micro-batch's gradient.
fn accumulate<B: Backend>(
    b: &mut B,
    m: &Model,
    count: usize,
    mut batch: impl FnMut(usize) -> Result<B::Staged, Error>,
) -> Result<(), Error> {
    for i in 0..count {
        b.feed(batch(i)?);
        if i == 0 {
            b.submit(Work::First, |b| first(b, m));
        } else {
            b.submit(Work::More, |b| train(b, m));
        }
    }
    Ok(())
}
