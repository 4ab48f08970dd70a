//! The loss of batches under saved weights, without training: whoever saved them.

use std::path::Path;

use chronibench_protocol::{
    BatchPlan, TokenStore,
    spec::{DataSpec, Method, ModelSpec, TrainArgs},
};
use chronicals_kernels::KernelPlan;

use crate::{
    backend::{
        Backend,
        cpu::CpuBackend,
        cuda::{CudaBackend, Options},
    },
    config::ModelConfig,
    device::Device,
    error::Error,
    fit::{Batches, Evaluation},
    lora,
    model::{Level, Setup},
    trainer::Trainer,
};

/// Loss of every micro-batch of a plan. `files` hold the model and, under LoRA, the adapters; `model.weights` is not read.
///
/// # Errors
/// A file does not fit the model, or the device fails.
pub fn losses(
    model: &ModelSpec,
    data: &DataSpec,
    method: &Method,
    device: &str,
    files: &[&Path],
) -> Result<Vec<Evaluation>, Error> {
    let device: Device = device.parse()?;
    let config = ModelConfig::load(&model.config)?;
    let batches = batches(data, &config)?;
    let (unused, method) = match method {
        Method::Full {} => (true, Method::Lora(lora::no_adapters())),
        lora => (false, lora.clone()),
    };
    on_device(device, &setup(&config, &method, &batches), &Run { batches: &batches, files, unused })
}

/// What is done with a model that does not train, on whatever device.
pub trait Evaluate {
    /// What comes of it.
    type Found;

    /// Does it.
    ///
    /// # Errors
    /// The device fails, or a file does not fit the model.
    fn on<B: Backend>(&self, backend: B, setup: &Setup<'_>) -> Result<Self::Found, Error>;
}

/// The setup of a model that is only evaluated: nothing is kept for a backward pass.
pub fn setup<'a>(config: &'a ModelConfig, method: &'a Method, batches: &Batches) -> Setup<'a> {
    Setup {
        config,
        method,
        capacity: batches.capacity(),
        plan: KernelPlan::default(),
        recompute: Level::Block,
        offload: false,
    }
}

/// Evaluates on a device, by its default kernels and number formats.
///
/// # Errors
/// There is no such device, or the evaluation fails.
pub fn on_device<E: Evaluate>(device: Device, setup: &Setup<'_>, what: &E) -> Result<E::Found, Error> {
    let &Setup { config, capacity, plan, .. } = setup;
    match device {
        Device::Cpu => what.on(CpuBackend::new(config, capacity, plan, Default::default()), setup),
        Device::Cuda(ordinal) => {
            let (loss, precision) = Default::default();
            let options = Options { config, capacity, plan, loss, precision, seed: 0 };
            what.on(CudaBackend::open(ordinal, &options)?, setup)
        }
    }
}

fn batches(data: &DataSpec, config: &ModelConfig) -> Result<Batches, Error> {
    let at = data.plan.display().to_string();
    let tokens = TokenStore::load(&data.tokens)
        .map_err(|e| Error::new(e.to_string(), data.tokens.display().to_string()))?;
    let text = std::fs::read(&data.plan).map_err(|e| Error::io(&data.plan, &e))?;
    let plan: BatchPlan = serde_json::from_slice(&text)
        .map_err(|e| Error::new(format!("not a batch plan: {e}"), at.clone()).hint("make it again"))?;
    Batches::new(tokens, plan, config, &at)
}

struct Run<'a> {
    batches: &'a Batches,
    files: &'a [&'a Path],
    /// The adapters are in no file.
    unused: bool,
}

impl Evaluate for Run<'_> {
    type Found = Vec<Evaluation>;

    fn on<B: Backend>(&self, backend: B, setup: &Setup<'_>) -> Result<Vec<Evaluation>, Error> {
        let mut trainer = Trainer::new(backend, setup, &TrainArgs::default(), 1)?;
        trainer.load_model(self.files)?;
        if self.unused {
            trainer.init_adapters(setup.config, 0)?;
        } else {
            trainer.load_adapters_of(self.files)?;
        }
        let mut all = Vec::new();
        for step in 0..self.batches.steps() {
            for batch in self.batches.step(step)?.micro_batches {
                all.push(trainer.evaluate_each(std::iter::once(Ok(batch)))?);
            }
        }
        Ok(all)
    }
}
