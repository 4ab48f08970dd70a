//! Synthetic runs: honest trials as the harness would store them, to plant faults into.

use std::collections::BTreeMap;

use chronibench_analysis::TrialLog;
use chronibench_protocol::{
    event::{Done, Event, GemmShare, Hello, Phase, Precision, Ready, Step, TensorInfo, TokenCounts, Window},
    record::{
        Ablation, BatchArgs, Case, Comparison, Exit, LedgerStep, Line, ModelShape, Packing, Presence,
        Resolved, ResolvedData, ResolvedModel, SCHEMA, Sample, TensorChange, TrialHeader,
    },
    spec::{DataSpec, LoraArgs, Measure, Method, ModelSpec, PROTOCOL, Spec, TrainArgs},
};
use serde_json::json;

pub const MEASURE: Measure = Measure { untimed_steps: 3, timed_steps: 24, window_steps: 4 };
const MS: u64 = 1_000_000;

pub fn lora() -> Method {
    Method::Lora(LoraArgs {
        target_modules: vec!["q_proj".into()],
        loraplus_lr_ratio: 16.0,
        ..LoraArgs::of(2, 4.0)
    })
}

pub fn case(arm: &str, method: Method, packing: Packing) -> Case {
    let name = if matches!(method, Method::Full {}) { "full" } else { "lora" };
    let packed = if packing == Packing::None { "padded" } else { "packed" };
    let fused = arm.starts_with("chronicals");
    let variant = if arm == "chronicals-eager" { "eager" } else { "fused" };
    let kernels = ["attention", "loss", "norm"].map(|s| (s.to_string(), variant.to_string()));
    Case {
        id: format!("{arm}/{name}/{packed}"),
        arm: arm.into(),
        runner: if fused { "native" } else { "candle" }.into(),
        axes: BTreeMap::from([("method".into(), name.into()), ("packing".into(), packed.into())]),
        method,
        train: TrainArgs { learning_rate: 1e-3, ..TrainArgs::default() },
        batch: BatchArgs { packing, per_device_train_batch_size: 8, gradient_accumulation_steps: 1 },
        kernels: if fused { kernels.into() } else { BTreeMap::new() },
        device: "cpu".into(),
        options: Default::default(),
        precision: Default::default(),
        recompute: Default::default(),
        offload: false,
        memory_limit_gb: None,
        ablation: None,
        sweep: None,
    }
}

pub fn ablated(base: &Case, seam: &str) -> Case {
    let mut case = base.clone();
    case.id = format!("{}~{seam}/full/packed", base.arm);
    case.kernels.insert(seam.into(), "eager".into());
    case.ablation = Some(Ablation { of: base.id.clone(), off: seam.into(), design: None });
    case
}

pub fn comparison(case: &Case, against: &Case, target: Option<f64>, declared: &[&str]) -> Comparison {
    Comparison {
        label: format!("{} against {}", case.arm, against.arm),
        case: case.id.clone(),
        against: against.id.clone(),
        target,
        declared_differences: declared.iter().map(|s| s.to_string()).collect(),
    }
}

pub fn resolved(cases: Vec<Case>, trials: u32) -> Resolved {
    Resolved {
        schema: "chronibench.resolved/1".into(),
        name: "synthetic".into(),
        title: "A synthetic run".into(),
        description: "Made by a test.".into(),
        scenario_sha256: "5c".repeat(32),
        data: ResolvedData {
            path: "data/sample.jsonl".into(),
            sha256: "da".repeat(32),
            format: None,
            columns: Default::default(),
            template: "alpaca".into(),
            chat_template_path: None,
            chat_template_kwargs: Default::default(),
            max_length: 512,
            overlong: "truncate".into(),
            completion_only_loss: Some(true),
            assistant_only_loss: false,
            eos_token: None,
            pad_token: None,
            seed: 7,
        },
        model: ResolvedModel {
            config: "models/tiny-qwen2.json".into(),
            sha256: "ab".repeat(32),
            weights: None,
            init_seed: 1,
            pretrain_steps: 40,
        },
        trials,
        timeout_s: 60.0,
        retries: 0,
        measure: MEASURE,
        order: (0..trials).flat_map(|_| cases.iter().map(|c| c.id.clone())).collect(),
        cases,
        comparisons: Vec::new(),
        audit: None,
        skipped: Vec::new(),
    }
}

fn tensor(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), shape: shape.to_vec() }
}

fn base_tensors() -> Vec<TensorInfo> {
    vec![
        tensor("model.embed_tokens.weight", &[8, 4]),
        tensor("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
        tensor("model.norm.weight", &[4]),
    ]
}

fn adapters() -> Vec<TensorInfo> {
    let at = "base_model.model.model.layers.0.self_attn.q_proj";
    vec![tensor(&format!("{at}.lora_A.weight"), &[2, 4]), tensor(&format!("{at}.lora_B.weight"), &[4, 2])]
}

fn trainable(method: &Method) -> Vec<TensorInfo> {
    if matches!(method, Method::Full {}) { base_tensors() } else { adapters() }
}

/// An honest trial whose steps take `step_ms`, counted by the rounds so that trials differ.
pub fn trial(case: &Case, round: u32, step_ms: u64) -> TrialLog {
    TrialLog::from_lines(lines(case, round, step_ms))
}

/// The stored lines of an honest trial.
pub fn lines(case: &Case, round: u32, step_ms: u64) -> Vec<Line> {
    let spec = spec(case, round);
    let mut out = vec![Line::Trial(Box::new(header(case, round, &spec)))];
    let mut clock = Clock { recv: 200 * MS, arm: 0 };
    out.push(clock.event(Event::Hello(hello(case, &spec))));
    clock.recv += 300 * MS;
    out.push(clock.event(Event::Ready(ready(case))));
    let mut ledger = Vec::new();
    let mut edge = 0;
    for index in 0..MEASURE.total_steps() {
        let step = step(case, &spec, index, &mut clock, step_ms);
        ledger.push(LedgerStep {
            step: index,
            digest_ok: true,
            samples_ok: true,
            counted: step.tokens,
            reported: step.tokens,
        });
        let timed = step.phase == Phase::Timed;
        if timed && (index - MEASURE.untimed_steps).is_multiple_of(MEASURE.window_steps) {
            edge = step.start_ns;
        }
        let end_ns = step.end_ns;
        out.push(clock.event(Event::Step(step)));
        out.push(Line::Sample(sample(case, &clock, round)));
        let done = (index + 1).saturating_sub(MEASURE.untimed_steps);
        if done > 0 && done.is_multiple_of(MEASURE.window_steps) {
            let first_step = index + 1 - MEASURE.window_steps;
            let window = Window {
                index: done / MEASURE.window_steps - 1,
                first_step,
                last_step: index,
                start_ns: edge,
                end_ns,
            };
            out.push(clock.event(Event::Window(window)));
        }
    }
    out.push(clock.event(Event::Done(done(case, step_ms))));
    out.push(Line::Ledger { steps: ledger, unique: None });
    out.push(Line::Weights { tensors: weights(case) });
    let exit = Exit { code: Some(0), wall_ns: clock.recv, ..Exit::default() };
    out.push(Line::Exit(exit));
    out
}

struct Clock {
    recv: u64,
    arm: u64,
}

impl Clock {
    fn event(&self, event: Event) -> Line {
        Line::Event { recv_ns: self.recv, event }
    }
}

fn spec(case: &Case, round: u32) -> Spec {
    Spec {
        protocol: PROTOCOL.into(),
        trial_id: format!("{}-{round}", case.id.replace('/', "-")),
        arm: case.arm.clone(),
        model: ModelSpec { config: "config.json".into(), weights: "model.safetensors".into() },
        data: DataSpec { tokens: "tokens.safetensors".into(), plan: "plan.json".into() },
        method: case.method.clone(),
        train: case.train.clone(),
        measure: MEASURE,
        kernels: case.kernels.clone(),
        threads: Some(2),
        device: "cpu".into(),
        options: Default::default(),
        precision: Default::default(),
        recompute: Default::default(),
        offload: false,
        memory_limit_gb: None,
        save_weights: None,
        audit: None,
    }
}

fn header(case: &Case, round: u32, spec: &Spec) -> TrialHeader {
    TrialHeader {
        schema: SCHEMA.into(),
        case: case.id.clone(),
        round,
        position: round,
        started_at: "2026-01-01T00:00:00Z".into(),
        spec: spec.clone(),
        expected_trainable: trainable(&case.method),
        tokens_sha256: "70".repeat(32),
        model: ModelShape {
            layers: 1,
            attention_width: 4,
            block_matmul_params: 16,
            head_params: 32,
            total_params: 52,
        },
        attempt: 0,
        gpu_not_idle: None,
        rival: None,
    }
}

fn hello(case: &Case, spec: &Spec) -> Hello {
    let mut settings = BTreeMap::from([
        ("learning_rate".to_string(), json!(spec.train.learning_rate)),
        ("max_grad_norm".to_string(), json!(1)),
        ("method".to_string(), json!(case.axes["method"])),
    ]);
    if let Method::Lora(l) = &case.method {
        settings.insert("r".into(), json!(l.r));
        settings.insert("loraplus_lr_ratio".into(), json!(l.loraplus_lr_ratio));
    }
    Hello {
        protocol: PROTOCOL.into(),
        name: case.arm.clone(),
        version: "0.1.0".into(),
        device: "cpu".into(),
        threads: 2,
        pid: 1,
        precision: Precision::f32(),
        settings,
        kernel_plan: case.kernels.clone(),
        chosen: Default::default(),
    }
}

fn ready(case: &Case) -> Ready {
    let adapters = if matches!(case.method, Method::Full {}) { 0 } else { 16 };
    let planned = [("weights", 40u64 << 20), ("activations", 30 << 20)].map(|(k, v)| (k.to_string(), v));
    Ready {
        trainable: trainable(&case.method),
        total_params: 52 + adapters,
        tokens_sha256: "70".repeat(32),
        planned_bytes: if case.runner == "native" { planned.into() } else { BTreeMap::new() },
    }
}

fn step(case: &Case, spec: &Spec, index: u32, clock: &mut Clock, step_ms: u64) -> Step {
    let packed = case.batch.packing != Packing::None;
    let start_ns = clock.arm;
    clock.arm += step_ms * MS;
    clock.recv += step_ms * MS;
    let x = f64::from(index);
    // A bent curve with a fixed ripple in place of batch noise.
    let floor = if matches!(case.method, Method::Full {}) { 3.0 } else { 3.4 };
    let ripple = 0.05 * (x * 2.4 + if packed { 1.0 } else { 0.0 }).sin();
    let base = spec.train.learning_rate * spec.train.lr_factor(index, MEASURE.total_steps());
    let mut lr = BTreeMap::from([("decay".to_string(), base)]);
    if let Method::Lora(l) = &case.method {
        lr.insert("lora_B".into(), base * l.loraplus_lr_ratio);
    }
    Step {
        step: index,
        phase: if index < MEASURE.untimed_steps { Phase::Untimed } else { Phase::Timed },
        start_ns,
        end_ns: clock.arm,
        digest: format!("{index:03}-{}", case.batch.packing.name()),
        samples: Vec::new(),
        tokens: TokenCounts {
            slots: 1000,
            real: if packed { 950 } else { 430 },
            loss: if packed { 700 } else { 320 },
        },
        loss: floor + 2.0 * (-x / 8.0).exp() + ripple,
        grad_norm: 1.5,
        grad_norm_by_group: Default::default(),
        lr,
    }
}

fn sample(case: &Case, clock: &Clock, round: u32) -> Sample {
    let base: u64 = if case.runner == "native" { 90 } else { 240 };
    Sample {
        t_ns: clock.recv,
        rss_bytes: (base + u64::from(round) * 3) << 20,
        cpu_percent: 180.0,
        machine_cpu_percent: 95.0,
        gpu: None,
    }
}

fn done(case: &Case, step_ms: u64) -> Done {
    let gemm = GemmShare {
        ns: step_ms * MS * u64::from(MEASURE.timed_steps) * 6 / 10,
        flops: 1_000_000_000,
        method: if case.runner == "native" { "measured" } else { "replayed" }.into(),
    };
    Done {
        steps: MEASURE.total_steps(),
        weights: None,
        kernels: case.kernels.iter().map(|(seam, v)| (format!("{seam}.{v}.forward"), 27)).collect(),
        peak_rss_bytes: Some(if case.runner == "native" { 91 } else { 250 } << 20),
        peak_gpu_bytes: Default::default(),
        gemm: Some(gemm),
    }
}

fn weights(case: &Case) -> Vec<TensorChange> {
    let full = matches!(case.method, Method::Full {});
    let change = |t: TensorInfo, trained: bool| TensorChange {
        delta_norm: if trained { 0.1 } else { 0.0 },
        norm: 2.0,
        finite: true,
        changed: if trained { t.numel() } else { 0 },
        least_bf16_change: None,
        hashes: None,
        present: Presence::Both,
        name: t.name,
        shape: t.shape,
    };
    let mut all: Vec<TensorChange> = base_tensors().into_iter().map(|t| change(t, full)).collect();
    if !full {
        all.extend(adapters().into_iter().map(|t| change(t, true)));
    }
    all
}
