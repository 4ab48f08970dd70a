//! The native arm: one trial of the protocol.

use std::{collections::BTreeMap, io, time::Instant};

use chronibench_protocol::{
    BatchPlan, Event, Spec, TokenStore,
    event::{Done, Failure, GemmShare, Hello, Phase, Precision, Ready, Step, Window},
    spec::{Method, PROTOCOL, Scheduler},
};
use chronicals_kernels::{KernelPlan, gemm, linear_ce};

use crate::{
    backend::cpu::CpuBackend,
    config::ModelConfig,
    error::Error,
    fit::Batches,
    memory::peak_rss_bytes,
    model::Setup,
    trainer::{StepReport, Trainer},
};

/// Receives the arm's events.
pub type Emit<'a> = &'a mut dyn FnMut(Event) -> io::Result<()>;

/// Runs one trial on the CPU.
///
/// # Errors
/// Whatever ends the trial: a bad specification, damaged inputs, divergence, events that cannot be written.
pub fn run(spec: &Spec, emit: Emit<'_>) -> Result<(), Failure> {
    trial(spec, emit).map_err(Failure::from)
}

fn trial(spec: &Spec, emit: Emit<'_>) -> Result<(), Error> {
    let mut emit = |e: Event| {
        emit(e).map_err(|e| {
            Error::new(format!("cannot write events: {e}"), "the event file").hint("check the disk")
        })
    };
    let inputs = Inputs::load(spec)?;
    use_threads(spec.threads)?;
    emit(Event::Hello(hello(spec, &inputs)))?;
    let mut trainer = inputs.trainer(spec)?;
    emit(Event::Ready(ready(&inputs, &trainer)))?;
    let gemm = steps(spec, &inputs, &mut trainer, &mut emit)?;
    let peak_rss_bytes = peak_rss_bytes();
    if let Some(path) = &spec.save_weights {
        trainer.save(path)?;
    }
    emit(Event::Done(Done {
        steps: spec.measure.total_steps(),
        weights: spec.save_weights.clone(),
        kernels: trainer.backend().launches().clone(),
        peak_rss_bytes,
        gemm: Some(gemm),
    }))
}

/// What a trial reads.
struct Inputs {
    config: ModelConfig,
    batches: Batches,
    kernels: KernelPlan,
}

impl Inputs {
    fn load(spec: &Spec) -> Result<Self, Error> {
        if spec.protocol != PROTOCOL {
            return Err(Error::new(
                format!("protocol '{}', this arm speaks {PROTOCOL}", spec.protocol),
                "spec",
            )
            .hint("use harness and arm of one version"));
        }
        if spec.device != "cpu" {
            return Err(Error::new(
                format!("device '{}' is not available to this arm", spec.device),
                "spec.device",
            )
            .hint("use device: cpu"));
        }
        let config = ModelConfig::load(&spec.model.config)?;
        let tokens = TokenStore::load(&spec.data.tokens)
            .map_err(|e| Error::new(e.to_string(), spec.data.tokens.display().to_string()))?;
        let text = std::fs::read(&spec.data.plan).map_err(|e| Error::io(&spec.data.plan, &e))?;
        let plan: BatchPlan = serde_json::from_slice(&text).map_err(|e| {
            Error::new(format!("not a batch plan: {e}"), spec.data.plan.display().to_string())
        })?;
        let kernels = KernelPlan::resolve(&spec.kernels)
            .map_err(|e| Error::new(e.to_string(), "spec.kernels").hint("see `chronicals describe`"))?;
        let at = spec.data.plan.display().to_string();
        let steps = spec.measure.total_steps();
        if (plan.steps.len() as u32) < steps {
            let what = format!("the plan has {} steps, the trial needs {steps}", plan.steps.len());
            return Err(Error::new(what, at).hint("make the plan for this many steps"));
        }
        let batches = Batches::new(tokens, plan, &config, &at)?;
        Ok(Self { config, batches, kernels })
    }

    fn trainer(&self, spec: &Spec) -> Result<Trainer<CpuBackend>, Error> {
        let capacity = self.batches.capacity();
        let setup = Setup { config: &self.config, method: &spec.method, capacity, plan: self.kernels };
        let options = linear_ce::Options {
            label_smoothing: spec.train.label_smoothing_factor as f32,
            z_loss: spec.train.z_loss as f32,
        };
        let backend = CpuBackend::new(&self.config, setup.capacity, self.kernels, options);
        let mut trainer = Trainer::new(backend, &setup, &spec.train, spec.measure.total_steps())?;
        trainer.load_weights(&spec.model.weights)?;
        if let Method::Lora(lora) = &spec.method {
            let path = lora.adapter_weights.as_ref().ok_or_else(|| {
                Error::new("LoRA without starting adapters", "spec.method.adapter_weights")
                    .hint("the harness writes them; name the file")
            })?;
            trainer.load_adapters(path)?;
        }
        Ok(trainer)
    }
}

/// One pool for the process, which runs one trial.
fn use_threads(threads: Option<usize>) -> Result<(), Error> {
    let Some(n) = threads else { return Ok(()) };
    // An error means that a pool exists already; `hello` tells how many threads really run.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(n).build_global();
    if rayon::current_num_threads() == n {
        Ok(())
    } else {
        Err(Error::new(
            format!("{n} threads asked for, {} run", rayon::current_num_threads()),
            "spec.threads",
        )
        .hint("run one trial a process"))
    }
}

fn hello(spec: &Spec, inputs: &Inputs) -> Hello {
    Hello {
        protocol: PROTOCOL.into(),
        name: "chronicals".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: "cpu".into(),
        threads: rayon::current_num_threads(),
        pid: std::process::id(),
        precision: Precision::f32(),
        settings: settings(spec, inputs),
        kernel_plan: inputs.kernels.names(),
    }
}

/// Effective settings for the parity diff, under the names of the specification.
fn settings(spec: &Spec, inputs: &Inputs) -> BTreeMap<String, serde_json::Value> {
    let a = &spec.train;
    let scheduler = match a.lr_scheduler_type {
        Scheduler::Constant => "constant",
        Scheduler::Linear => "linear",
        Scheduler::Cosine => "cosine",
    };
    let mut all: BTreeMap<String, serde_json::Value> = [
        ("learning_rate", a.learning_rate.into()),
        ("lr_scheduler_type", scheduler.into()),
        ("warmup_steps", a.warmup_steps.into()),
        ("weight_decay", a.weight_decay.into()),
        ("adam_beta1", a.adam_beta1.into()),
        ("adam_beta2", a.adam_beta2.into()),
        ("adam_epsilon", a.adam_epsilon.into()),
        ("max_grad_norm", a.max_grad_norm.into()),
        ("label_smoothing_factor", a.label_smoothing_factor.into()),
        ("z_loss", a.z_loss.into()),
        ("packing", inputs.batches.plan().packing.clone().into()),
        ("optimizer", "adamw".into()),
    ]
    .map(|(name, value): (&str, serde_json::Value)| (name.to_string(), value))
    .into();
    match &spec.method {
        Method::Full {} => all.insert("method".into(), "full".into()),
        Method::Lora(l) => {
            all.insert("r".into(), l.r.into());
            all.insert("lora_alpha".into(), l.lora_alpha.into());
            all.insert("target_modules".into(), l.target_modules.clone().into());
            all.insert("use_rslora".into(), l.use_rslora.into());
            all.insert("loraplus_lr_ratio".into(), l.loraplus_lr_ratio.into());
            all.insert("method".into(), "lora".into())
        }
    };
    all
}

fn ready(inputs: &Inputs, trainer: &Trainer<CpuBackend>) -> Ready {
    Ready {
        trainable: trainer.trainable().infos(),
        total_params: trainer.total_params(),
        tokens_sha256: inputs.batches.tokens().sha256(),
        planned_bytes: trainer.backend().planned_bytes(),
    }
}

/// Runs every step; the clock of a window is read at its two edges only.
fn steps(
    spec: &Spec,
    inputs: &Inputs,
    trainer: &mut Trainer<CpuBackend>,
    emit: &mut impl FnMut(Event) -> Result<(), Error>,
) -> Result<GemmShare, Error> {
    let m = &spec.measure;
    let clock = Instant::now();
    let now = || clock.elapsed().as_nanos() as u64;
    let mut window_start = 0;
    for step in 0..m.total_steps() {
        let timed = step.checked_sub(m.untimed_steps);
        if timed == Some(0) {
            gemm::reset_stats();
        }
        let start_ns = now();
        if timed.is_some_and(|t| t.is_multiple_of(m.window_steps)) {
            window_start = start_ns;
        }
        let batches = inputs.batches.step(step)?;
        let report = trainer.train_step(&batches)?;
        let end_ns = now();
        let phase = if timed.is_some() { Phase::Timed } else { Phase::Untimed };
        emit(Event::Step(step_event(step, phase, (start_ns, end_ns), batches.digest, report)))?;
        if let Some(t) = timed.filter(|t| (t + 1).is_multiple_of(m.window_steps)) {
            let index = t / m.window_steps;
            let first_step = step + 1 - m.window_steps;
            emit(Event::Window(Window {
                index,
                first_step,
                last_step: step,
                start_ns: window_start,
                end_ns: now(),
            }))?;
        }
    }
    let g = gemm::stats();
    Ok(GemmShare { ns: g.ns, flops: g.flops, method: "measured".into() })
}

fn step_event(
    step: u32,
    phase: Phase,
    (start_ns, end_ns): (u64, u64),
    digest: String,
    r: StepReport,
) -> Step {
    Step {
        step,
        phase,
        start_ns,
        end_ns,
        digest,
        tokens: r.tokens,
        loss: r.loss,
        grad_norm: r.grad_norm,
        lr: r.lr,
    }
}
