//! An arm that trains nothing: it plays a script, so that the harness can be tested against arms whose throughput and
//! whose faults are known.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chronibench_protocol::{
    BatchPlan, Event, Spec, TokenStore,
    digest::sha256_hex,
    event::{Done, Failure, Hello, Phase, Precision, Ready, Step, TensorInfo, Window},
    spec::{Method, PROTOCOL},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{EventFile, faults, planted};
use crate::{
    error::Error,
    expect::HfConfig,
    scenario::raw::{Behaviour, MockScript},
};

/// The tensor that the published run without gradients left out.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Plays `script` as a trial of `spec`.
pub fn run(spec: &Spec, script: &MockScript, events: &mut EventFile) -> Result<(), Failure> {
    play(spec, script, events).map_err(|e| Failure { what: e.what, at: e.at, hint: e.hint })
}

fn play(spec: &Spec, script: &MockScript, events: &mut EventFile) -> Result<(), Error> {
    let told = |r: std::io::Result<()>| r.map_err(|e| failed(&e, "event file"));
    let config = HfConfig::load(&spec.model.config)?;
    let mut trainable = config.trainable(&spec.method);
    if script.behaviour == Behaviour::ZeroGradients {
        trainable.retain(|t| t.name != EMBEDDING);
    }
    let tokens = TokenStore::load(&spec.data.tokens).map_err(|e| failed(&e, "tokens"))?;
    let plan = std::fs::read(&spec.data.plan).map_err(|e| failed(&e, "plan"))?;
    let plan: BatchPlan = serde_json::from_slice(&plan).map_err(|e| failed(&e, "plan"))?;
    told(events.event(&Event::Hello(hello(spec))))?;
    told(events.event(&Event::Ready(ready(&config, spec, &trainable, &tokens))))?;

    let clock = Clock { began: Instant::now(), step: step_length(spec, script) };
    for step in 0..spec.measure.total_steps() {
        let now = |b: Behaviour| script.behaviour == b && step >= script.at_step;
        if script.behaviour != Behaviour::Honest && step >= script.at_step {
            faults::misbehave(script.behaviour, &spec.trial_id, events)?;
        }
        clock.sleep_until(step + 1);
        let mut event = step_event(spec, &plan, &tokens, step, &clock);
        if now(Behaviour::Nan) {
            event.loss = f64::NAN;
        }
        if now(Behaviour::WrongDigest) {
            event.digest = "0".repeat(64);
        }
        if now(Behaviour::WrongSamples) {
            event.samples.reverse();
            event.samples.push(0);
        }
        if now(Behaviour::WrongCounts) {
            event.tokens.real += 1;
        }
        if script.behaviour == Behaviour::ZeroGradients {
            event.grad_norm = 0.0;
            event.loss = 12.0;
        }
        told(events.event(&Event::Step(event)))?;
        if let Some(window) = window(spec, step, &clock) {
            told(events.event(&Event::Window(window)))?;
        }
    }
    if script.behaviour == Behaviour::NoDone {
        return Ok(());
    }
    if let Some(path) = &spec.save_weights {
        let frozen = matches!(script.behaviour, Behaviour::Frozen | Behaviour::ZeroGradients);
        save(spec, if frozen { &[] } else { &trainable }, path)?;
    }
    let steps = spec.measure.total_steps();
    let weights = spec.save_weights.clone();
    told(events.event(&Event::Done(Done { steps, weights, ..Done::default() })))
}

/// Time as the script tells it: step `n` ends `n + 1` step lengths after the start, and the mock sleeps until then.
struct Clock {
    began: Instant,
    step: Duration,
}

impl Clock {
    fn sleep_until(&self, edge: u32) {
        std::thread::sleep((self.step * edge).saturating_sub(self.began.elapsed()));
    }

    fn ns(&self, edge: u32) -> u64 {
        (self.step * edge).as_nanos() as u64
    }
}

/// The length of a step of this trial: the script's, with the noise that belongs to the trial and the planted delay. Exact, so
/// that what a gate says of mock arms is the same at every run.
fn step_length(spec: &Spec, script: &MockScript) -> Duration {
    let hash = sha256_hex(spec.trial_id.as_bytes());
    let uniform =
        |part: &str| (u32::from_str_radix(part, 16).expect("hex digits") as f64 + 0.5) / 2f64.powi(32);
    let (u, v) = (uniform(&hash[..8]), uniform(&hash[8..16]));
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    Duration::from_secs_f64(script.step_ms / 1e3 * (script.noise * normal).exp() * (1.0 + planted::share()))
}

fn failed(e: &dyn std::fmt::Display, at: &str) -> Error {
    Error::environment(e.to_string(), at).hint("prepare the run again")
}

fn hello(spec: &Spec) -> Hello {
    let settings = match serde_json::to_value(&spec.train) {
        Ok(serde_json::Value::Object(o)) => o.into_iter().collect(),
        _ => BTreeMap::new(),
    };
    Hello {
        protocol: PROTOCOL.into(),
        name: "mock".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: "cpu".into(),
        threads: spec.threads.unwrap_or(1),
        pid: std::process::id(),
        precision: Precision::f32(),
        settings,
        kernel_plan: BTreeMap::new(),
        chosen: Default::default(),
    }
}

fn ready(config: &HfConfig, spec: &Spec, trainable: &[TensorInfo], tokens: &TokenStore) -> Ready {
    let adapters: u64 = match spec.method {
        Method::Full {} => 0,
        Method::Lora(_) => trainable.iter().map(TensorInfo::numel).sum(),
    };
    Ready {
        trainable: trainable.to_vec(),
        total_params: config.shape().total_params + adapters,
        tokens_sha256: tokens.sha256(),
        planned_bytes: BTreeMap::new(),
    }
}

fn step_event(spec: &Spec, plan: &BatchPlan, tokens: &TokenStore, step: u32, clock: &Clock) -> Step {
    let total = spec.measure.total_steps();
    let planned = &plan.steps[step as usize];
    let (digest, counts) = planned.ledger(tokens, plan.pad_token_id);
    let timed = step >= spec.measure.untimed_steps;
    let lr = spec.train.learning_rate * spec.train.lr_factor(step, total);
    let ratio = match &spec.method {
        Method::Full {} => None,
        Method::Lora(l) => Some(l.loraplus_lr_ratio),
    };
    Step {
        step,
        phase: if timed { Phase::Timed } else { Phase::Untimed },
        start_ns: clock.ns(step),
        end_ns: clock.ns(step + 1),
        digest,
        samples: planned.samples(),
        tokens: counts,
        loss: 6.0 - 3.0 * f64::from(step + 1) / f64::from(total),
        grad_norm: 1.0,
        grad_norm_by_group: BTreeMap::new(),
        lr: match ratio {
            None => BTreeMap::from([("model".into(), lr)]),
            Some(ratio) => BTreeMap::from([("lora_A".into(), lr), ("lora_B".into(), lr * ratio)]),
        },
    }
}

fn window(spec: &Spec, step: u32, clock: &Clock) -> Option<Window> {
    let m = &spec.measure;
    let timed = step.checked_sub(m.untimed_steps)? + 1;
    (timed % m.window_steps == 0).then(|| {
        let first_step = step + 1 - m.window_steps;
        Window {
            index: timed / m.window_steps - 1,
            first_step,
            last_step: step,
            start_ns: clock.ns(first_step),
            end_ns: clock.ns(step + 1),
        }
    })
}

/// Saves the starting weights with every tensor of `moved` shifted a little.
fn save(spec: &Spec, moved: &[TensorInfo], path: &Path) -> Result<(), Error> {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let adapter: Option<&PathBuf> = match &spec.method {
        Method::Full {} => None,
        Method::Lora(l) => l.adapter_weights.as_ref(),
    };
    for file in [&spec.model.weights].into_iter().chain(adapter) {
        let bytes = std::fs::read(file).map_err(|e| failed(&e, "weights"))?;
        let read = SafeTensors::deserialize(&bytes).map_err(|e| failed(&e, "weights"))?;
        for (name, t) in read.tensors() {
            let shift = if moved.iter().any(|m| m.name == name) { 1e-3 } else { 0.0 };
            let shifted = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes")) + shift;
            let data = t.data().chunks_exact(4).flat_map(|b| shifted(b).to_le_bytes()).collect();
            tensors.push((name, t.shape().to_vec(), data));
        }
    }
    let view =
        |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).expect("sizes agree");
    let views = tensors.iter().map(|(name, shape, data)| (name.clone(), view(shape, data)));
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path)
        .map_err(|e| failed(&e, "weights"))
}
