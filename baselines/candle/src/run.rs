//! A trial as the protocol wants it told.

use std::{collections::BTreeMap, io, path::PathBuf, time::Instant};

use chronibench_protocol::{
    Event, Spec,
    event::{Done, GemmShare, Hello, Phase, Precision, Ready, Step, Window},
    spec::{Method, PROTOCOL},
};
use serde_json::{Value, json};

use crate::{check, error::ArmError, trainer::Trainer, weights};

type Result<T> = std::result::Result<T, ArmError>;

/// Runs a whole trial and hands every event but `error` to `events`; the caller turns an error returned here into that
/// event with [`chronibench_protocol::event::Failure::from`].
///
/// The number of threads is that of rayon's global pool, which `RAYON_NUM_THREADS` sets before the process starts.
///
/// # Errors
/// The specification cannot be run as it stands, a file cannot be read or written, the training diverges, or `events`
/// fails.
pub fn run(spec: &Spec, events: &mut dyn FnMut(Event) -> io::Result<()>) -> Result<()> {
    let clock = Instant::now();
    let mut tell = |event| events(event).map_err(ArmError::Events);
    let threads = candle_core::utils::get_num_threads();
    check::spec(spec, threads)?;
    tell(Event::Hello(hello(spec, threads)))?;
    let mut trainer = Trainer::load(spec)?;
    tell(Event::Ready(ready(&trainer)))?;

    let now = || clock.elapsed().as_nanos() as u64;
    let m = spec.to_run();
    let mut window_start = 0;
    for step in 0..m.total_steps() {
        let timed = step.checked_sub(m.untimed_steps);
        let start_ns = now();
        if timed.is_some_and(|t| t % m.window_steps == 0) {
            window_start = start_ns;
        }
        let report = trainer.step(step)?;
        let end_ns = now();
        tell(Event::Step(Step {
            step,
            phase: if timed.is_some() { Phase::Timed } else { Phase::Untimed },
            start_ns,
            end_ns,
            digest: report.digest,
            samples: report.samples,
            tokens: report.tokens,
            loss: report.loss,
            grad_norm: report.grad_norm,
            grad_norm_by_group: Default::default(),
            lr: report.lr,
        }))?;
        if let Some(t) = timed.filter(|t| (t + 1) % m.window_steps == 0) {
            tell(Event::Window(Window {
                index: t / m.window_steps,
                first_step: step + 1 - m.window_steps,
                last_step: step,
                start_ns: window_start,
                end_ns,
            }))?;
        }
        if let Some(audit) = spec.audit.as_ref().filter(|_| step == 0) {
            trainer.model.parameters.save(&audit.first_weights)?;
        }
    }
    let done = finish(spec, &trainer)?;
    tell(Event::Done(done))
}

fn hello(spec: &Spec, threads: usize) -> Hello {
    Hello {
        protocol: PROTOCOL.into(),
        name: "candle".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: "cpu".into(),
        threads,
        pid: std::process::id(),
        precision: Precision::f32(),
        settings: settings(spec),
        kernel_plan: BTreeMap::new(),
        chosen: Default::default(),
    }
}

/// The settings in force: every training argument, optimizer and method by name, and under LoRA every argument of it.
fn settings(spec: &Spec) -> BTreeMap<String, Value> {
    let a = &spec.train;
    let mut all = json!({
        "learning_rate": a.learning_rate,
        "lr_scheduler_type": a.lr_scheduler_type,
        "warmup_steps": a.warmup_steps,
        "weight_decay": a.weight_decay,
        "adam_beta1": a.adam_beta1,
        "adam_beta2": a.adam_beta2,
        "adam_epsilon": a.adam_epsilon,
        "max_grad_norm": a.max_grad_norm,
        "label_smoothing_factor": a.label_smoothing_factor,
        "z_loss": a.z_loss,
        "optimizer": "adamw",
        "method": "full",
    });
    if let Method::Lora(l) = &spec.method {
        all["method"] = json!("lora");
        all["r"] = json!(l.r);
        all["lora_alpha"] = json!(l.lora_alpha);
        all["target_modules"] = json!(l.target_modules);
        all["use_rslora"] = json!(l.use_rslora);
        all["loraplus_lr_ratio"] = json!(l.loraplus_lr_ratio);
    }
    all.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn ready(trainer: &Trainer) -> Ready {
    let parameters = &trainer.model.parameters;
    Ready {
        trainable: parameters.trainable().iter().map(|(n, v)| weights::info(n.as_str(), v.dims())).collect(),
        total_params: parameters.numel(),
        tokens_sha256: trainer.tokens.sha256(),
        planned_bytes: BTreeMap::new(),
    }
}

/// Everything after the last step: the peak first, so that neither saving nor the replay raises it.
fn finish(spec: &Spec, trainer: &Trainer) -> Result<Done> {
    let peak_rss_bytes = Some(peak_rss()?);
    if let Some(path) = &spec.save_weights {
        trainer.model.parameters.save(path)?;
    }
    let m = spec.to_run();
    let (ns, flops) = trainer.gemm_share(m.untimed_steps..m.total_steps())?;
    Ok(Done {
        steps: m.total_steps(),
        weights: spec.save_weights.clone(),
        kernels: BTreeMap::new(),
        peak_rss_bytes,
        peak_gpu_bytes: Default::default(),
        gemm: Some(GemmShare { ns, flops, method: "replayed".into() }),
    })
}

/// `VmHWM` in bytes.
fn peak_rss() -> Result<u64> {
    let path = PathBuf::from("/proc/self/status");
    let status =
        std::fs::read_to_string(&path).map_err(|source| ArmError::Io { path: path.clone(), source })?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| ArmError::Io { path, source: io::Error::other("no VmHWM") })
}
