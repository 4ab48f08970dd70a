//! The native arm: one trial of the protocol.

use std::{collections::BTreeMap, io, time::Instant};

use chronibench_protocol::{
    BatchPlan, Event, Spec, TokenStore,
    event::{Done, GemmShare, Hello, Phase, Ready, Step, Window},
    parity::WEIGHT_ROUNDING,
    spec::{Method, PROTOCOL, Scheduler},
};
use chronicals_kernels::{
    KernelPlan, gemm,
    gpu::{Machine, machine::Cuda},
};

use crate::{
    backend::{
        About, Backend,
        cpu::CpuBackend,
        cuda::{CudaBackend, Options},
        loss_options,
    },
    config::ModelConfig,
    device::{Device, lacking, process_bytes},
    error::Error,
    fit::{Batches, fit},
    memory::peak_rss_bytes,
    model::{Level, Setup},
    room::{self, Asked, Choice},
    trainer::{StepReport, Trainer},
};

/// Receives the arm's events.
pub type Emit<'a> = &'a mut dyn FnMut(Event) -> io::Result<()>;

/// Runs one trial.
///
/// # Errors
/// Whatever ends the trial: a bad specification, damaged inputs, a machine without what it needs, divergence, events that
/// cannot be written.
pub fn run(spec: &Spec, emit: Emit<'_>) -> Result<(), Error> {
    let inputs = Inputs::load(spec)?;
    use_threads(spec.threads)?;
    match inputs.device {
        Device::Cpu => on_cpu(spec, &inputs, |backend, _| backend, emit),
        Device::Cuda(ordinal) => {
            let machine = Cuda::open(ordinal).map_err(lacking)?;
            // The products' workspace is there already, and in the plan.
            let driver = process_bytes().map(|all| all.saturating_sub(machine.workspace_bytes() as u64));
            on_gpu(spec, &inputs, machine, driver, emit)
        }
    }
}

/// As [`run`] on the processor, with the backend that `wrap` makes of its own.
///
/// # Errors
/// As [`run`].
pub fn run_with<B: Backend>(
    spec: &Spec,
    wrap: impl FnOnce(CpuBackend, &ModelConfig) -> B,
    emit: Emit<'_>,
) -> Result<(), Error> {
    let inputs = Inputs::load(spec)?;
    use_threads(spec.threads)?;
    on_cpu(spec, &inputs, wrap, emit)
}

/// As [`run`], on a machine that is open already, whatever `spec.device` says of its number.
///
/// # Errors
/// As [`run`]; and when the device is not a GPU.
pub fn run_on<D: Machine>(spec: &Spec, machine: D, emit: Emit<'_>) -> Result<(), Error> {
    let inputs = Inputs::load(spec)?;
    if inputs.device == Device::Cpu {
        return Err(Error::new("device cpu is not a GPU", "spec.device").hint("use device: cuda"));
    }
    on_gpu(spec, &inputs, machine, None, emit)
}

fn on_cpu<B: Backend>(
    spec: &Spec,
    inputs: &Inputs,
    wrap: impl FnOnce(CpuBackend, &ModelConfig) -> B,
    emit: Emit<'_>,
) -> Result<(), Error> {
    let Inputs { config, batches, kernels, .. } = inputs;
    let backend = CpuBackend::new(config, batches.capacity(), *kernels, loss_options(&spec.train));
    let backend = backend.with(spec.precision, "spec.precision", 0)?;
    trial(spec, inputs, wrap(backend, config), None, emit)
}

fn on_gpu<D: Machine>(
    spec: &Spec,
    inputs: &Inputs,
    machine: D,
    driver: Option<u64>,
    emit: Emit<'_>,
) -> Result<(), Error> {
    let options = Options {
        config: &inputs.config,
        capacity: inputs.batches.capacity(),
        plan: inputs.kernels,
        loss: loss_options(&spec.train),
        precision: spec.precision,
        seed: 0,
    };
    trial(spec, inputs, CudaBackend::new(machine, &options)?, driver, emit)
}

/// `driver` is what the driver has of the device before anything is taken.
fn trial<B: Backend>(
    spec: &Spec,
    inputs: &Inputs,
    backend: B,
    driver: Option<u64>,
    emit: Emit<'_>,
) -> Result<(), Error> {
    let mut emit = |e: Event| {
        emit(e).map_err(|e| {
            Error::new(format!("cannot write events: {e}"), "the event file").hint("check the disk")
        })
    };
    let asked = Asked { recompute: spec.recompute, offload: spec.offload, limit_gb: spec.memory_limit_gb };
    let chosen = room::choose(&backend, &inputs.setup(spec, Level::None), asked)?;
    emit(Event::Hello(hello(spec, inputs, backend.about(), &chosen)))?;
    let mut trainer = inputs.trainer(spec, backend, chosen.level)?;
    trainer.rehearse(&inputs.batches)?;
    emit(Event::Ready(ready(inputs, &trainer, driver)))?;
    let gemm = steps(spec, inputs, &mut trainer, &mut emit)?;
    let peak_rss_bytes = peak_rss_bytes();
    if let Some(path) = &spec.save_weights {
        trainer.save(path)?;
    }
    emit(Event::Done(Done {
        steps: spec.to_run().total_steps(),
        weights: spec.save_weights.clone(),
        kernels: trainer.backend().launches(),
        peak_rss_bytes,
        peak_gpu_bytes: Default::default(),
        gemm,
    }))
}

/// What a trial reads.
struct Inputs {
    config: ModelConfig,
    batches: Batches,
    device: Device,
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
        let device: Device = spec.device.parse()?;
        let config = ModelConfig::load(&spec.model.config)?;
        let tokens = TokenStore::load(&spec.data.tokens)
            .map_err(|e| Error::new(e.to_string(), spec.data.tokens.display().to_string()))?;
        let text = std::fs::read(&spec.data.plan).map_err(|e| Error::io(&spec.data.plan, &e))?;
        let plan: BatchPlan = serde_json::from_slice(&text).map_err(|e| {
            Error::new(format!("not a batch plan: {e}"), spec.data.plan.display().to_string())
        })?;
        let kernels = device.kernels(&spec.kernels, "spec.kernels")?;
        let at = spec.data.plan.display().to_string();
        let steps = spec.to_run().total_steps();
        if (plan.steps.len() as u32) < steps {
            let what = format!("the plan has {} steps, the trial needs {steps}", plan.steps.len());
            return Err(Error::new(what, at).hint("make the plan for this many steps"));
        }
        let batches = Batches::new(tokens, plan, &config, &at)?;
        Ok(Self { config, batches, device, kernels })
    }

    fn setup<'a>(&'a self, spec: &'a Spec, recompute: Level) -> Setup<'a> {
        let capacity = self.batches.capacity();
        let (config, method) = (&self.config, &spec.method);
        Setup { config, method, capacity, plan: self.kernels, recompute, offload: spec.offload }
    }

    fn trainer<B: Backend>(&self, spec: &Spec, backend: B, recompute: Level) -> Result<Trainer<B>, Error> {
        let setup = self.setup(spec, recompute);
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

fn hello(spec: &Spec, inputs: &Inputs, about: About, chosen: &Choice) -> Hello {
    let mut settings = settings(spec, inputs);
    settings.extend(about.settings);
    settings.insert("recompute".into(), chosen.level.name().into());
    settings.insert("offload".into(), chosen.offload.into());
    if about.precision.weights == "bf16" {
        // States in bf16 have no masters, and are rounded stochastically.
        let how = if about.precision.master == "none" { "stochastic" } else { "nearest, of masters" };
        settings.insert(WEIGHT_ROUNDING.into(), how.into());
    }
    Hello {
        protocol: PROTOCOL.into(),
        name: "chronicals".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: about.device,
        threads: rayon::current_num_threads(),
        pid: std::process::id(),
        precision: about.precision,
        settings,
        kernel_plan: about.kernel_plan,
        chosen: BTreeMap::from([("recompute".into(), chosen.why.clone())]),
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
        ("loss_chunk_rows", a.loss_chunk_rows.map_or("by size".into(), Into::into)),
        ("packing", inputs.batches.plan().packing.clone().into()),
        ("optimizer", "adamw".into()),
        ("loss_normalization", "step_loss_tokens".into()),
        ("compile", false.into()),
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

fn ready<B: Backend>(inputs: &Inputs, trainer: &Trainer<B>, driver: Option<u64>) -> Ready {
    let mut planned_bytes = trainer.backend().planned_bytes();
    planned_bytes.extend(driver.map(|bytes| ("driver".to_string(), bytes)));
    Ready {
        trainable: trainer.trainable().infos(),
        total_params: trainer.total_params(),
        tokens_sha256: inputs.batches.tokens().sha256(),
        planned_bytes,
    }
}

/// Runs every step. A step begins where the one before it ended, and a window where the one before it did: nothing lies between.
fn steps<B: Backend>(
    spec: &Spec,
    inputs: &Inputs,
    trainer: &mut Trainer<B>,
    emit: &mut impl FnMut(Event) -> Result<(), Error>,
) -> Result<Option<GemmShare>, Error> {
    let m = spec.to_run();
    let clock = Instant::now();
    gemm::reset_stats();
    let (mut step_start, mut window_start) = (0, 0);
    let mut tell = |step: u32, report| {
        let end_ns = clock.elapsed().as_nanos() as u64;
        let timed = step.checked_sub(m.untimed_steps);
        let phase = if timed.is_some() { Phase::Timed } else { Phase::Untimed };
        emit(Event::Step(step_event(step, phase, (step_start, end_ns), report)))?;
        step_start = end_ns;
        match timed.map(|t| t + 1) {
            None => {
                // Where it is the last of them, what is counted begins here.
                gemm::reset_stats();
                window_start = end_ns;
                Ok(())
            }
            Some(t) if t.is_multiple_of(m.window_steps) => {
                let start_ns = std::mem::replace(&mut window_start, end_ns);
                let (index, first_step) = (t / m.window_steps - 1, step + 1 - m.window_steps);
                emit(Event::Window(Window { index, first_step, last_step: step, start_ns, end_ns }))
            }
            Some(_) => Ok(()),
        }
    };
    if let Some(audit) = &spec.audit {
        fit(trainer, &inputs.batches, first_update(spec).min(audit.steps), &mut tell)?;
        trainer.save(&audit.first_weights)?;
    }
    fit(trainer, &inputs.batches, m.total_steps(), &mut tell)?;
    // The clock is around the processor's products; those of a GPU are not timed one by one.
    let measured = inputs.device == Device::Cpu;
    let g = gemm::stats();
    Ok(measured.then(|| GemmShare { ns: g.ns, flops: g.flops, method: "measured".into() }))
}

/// Steps up to and with the first whose learning rate is not 0.
fn first_update(spec: &Spec) -> u32 {
    let total = spec.measure.total_steps();
    let moves = |step: &u32| spec.train.learning_rate * spec.train.lr_factor(*step, total) > 0.0;
    (0..total).find(moves).unwrap_or(0) + 1
}

fn step_event(step: u32, phase: Phase, (start_ns, end_ns): (u64, u64), r: StepReport) -> Step {
    Step {
        step,
        phase,
        start_ns,
        end_ns,
        digest: r.digest,
        samples: r.samples,
        tokens: r.tokens,
        loss: r.loss,
        grad_norm: r.grad_norm,
        grad_norm_by_group: r.grad_norm_by_group,
        lr: r.lr,
    }
}
