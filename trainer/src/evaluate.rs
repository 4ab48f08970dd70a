//! The loss of batches under saved weights, without training: whoever saved them.

use std::path::Path;

use chronibench_protocol::{
    BatchPlan, TokenStore,
    spec::{DataSpec, LoraArgs, Method, ModelSpec, TrainArgs},
};
use chronicals_kernels::{KernelPlan, gpu::machine::Cuda};

use crate::{
    backend::{
        Backend,
        cpu::CpuBackend,
        cuda::{CudaBackend, Options},
    },
    config::ModelConfig,
    device::{Device, lacking},
    error::Error,
    fit::{Batches, Evaluation},
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
    // Adapters that change nothing: gradients and moments of the model itself are not wanted.
    let (unused, method) = match method {
        Method::Full {} => (true, Method::Lora(none())),
        lora => (false, lora.clone()),
    };
    let setup = Setup {
        config: &config,
        method: &method,
        capacity: batches.capacity(),
        plan: KernelPlan::default(),
        recompute: Level::Block,
        offload: false,
    };
    let run = Run { setup: &setup, batches: &batches, files, unused };
    match device {
        Device::Cpu => run.on(CpuBackend::new(&config, setup.capacity, setup.plan, Default::default())),
        Device::Cuda(ordinal) => {
            let options = Options {
                config: &config,
                capacity: setup.capacity,
                plan: setup.plan,
                loss: Default::default(),
                precision: Default::default(),
                seed: 0,
            };
            run.on(CudaBackend::new(Cuda::open(ordinal).map_err(lacking)?, &options)?)
        }
    }
}

fn none() -> LoraArgs {
    serde_json::from_value(serde_json::json!({"r": 8, "lora_alpha": 8, "target_modules": ["o_proj"]}))
        .expect("settings of LoRA")
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
    setup: &'a Setup<'a>,
    batches: &'a Batches,
    files: &'a [&'a Path],
    /// The adapters are in no file.
    unused: bool,
}

impl Run<'_> {
    fn on<B: Backend>(&self, backend: B) -> Result<Vec<Evaluation>, Error> {
        let mut trainer = Trainer::new(backend, self.setup, &TrainArgs::default(), 1)?;
        if self.unused {
            trainer.load_model(self.files)?;
            trainer.init_adapters(self.setup.config, 0)?;
        } else {
            trainer.load_model(self.files)?;
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
