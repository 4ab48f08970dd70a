//! Every call into the trainer.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chronibench_protocol::{
    BatchPlan, Event, Spec, TokenStore, event::Failure, record::BatchArgs, spec::LoraArgs,
};
use chronicals::data::{
    plan,
    records::{FORMATS, ReadArgs},
    template::{Loss, Template},
    tokenize::{TokenizeArgs, tokenize_file},
    tokenizer::{TextTokenizer, TokenizerArgs},
};
use chronicals::{Seam, Target, Variant};
use chronicals_kernels::gemm::linear_forward;
use serde_json::Value;

use crate::{
    audit::EvaluateSpec,
    error::Exit,
    inputs::PrepareData,
    scenario::{Offer, Seams},
};

/// What scenarios may name.
pub fn offer() -> Offer {
    Offer {
        seams: seams(Target::Cpu),
        cuda_seams: seams(Target::Cuda),
        templates: Template::ALL.map(Template::name).to_vec(),
        formats: FORMATS.map(|format| format.name).to_vec(),
    }
}

fn seams(target: Target) -> Seams {
    Seams {
        variants: target.seams().iter().map(|&s| (s.name(), target.variants(s))).collect(),
        default: Variant::default().name(),
        unfused: Variant::Eager.name(),
        lora_only: vec![Seam::Lora.name()],
    }
}

/// Token store, id of the padding token, and what was counted.
pub fn tokenize(data: &PrepareData) -> Result<(TokenStore, u32, Value), Box<dyn std::error::Error>> {
    let d = &data.settings;
    let tokenizer = TokenizerArgs {
        eos_token: d.eos_token.clone(),
        pad_token: d.pad_token.clone(),
        chat_template_path: data.chat_template.clone(),
        chat_template_kwargs: d.chat_template_kwargs.clone(),
    };
    let tokenizer = TextTokenizer::load(&data.tokenizer, &tokenizer)?;
    let args = TokenizeArgs {
        template: d.template.parse()?,
        max_length: d.max_length,
        overlong: d.overlong.parse()?,
        loss: Loss { completion_only: d.completion_only_loss, assistant_only: d.assistant_only_loss },
    };
    let read = ReadArgs { format: d.format.clone(), columns: d.columns.clone() };
    let (tokens, report) = tokenize_file(&data.path, &read, &tokenizer, &args)?;
    Ok((tokens, tokenizer.pad().id, serde_json::to_value(report)?))
}

/// The batches of `steps` optimizer steps.
pub fn build_plan(
    lengths: &[usize],
    batch: &BatchArgs,
    max_length: u32,
    pad: u32,
    seed: u64,
    steps: u32,
) -> Result<BatchPlan, plan::PlanError> {
    plan::build_plan(lengths, batch, max_length, pad, seed, steps)
}

/// Fresh model weights.
pub fn write_weights(config: &Path, seed: u64, bf16: bool, out: &Path) -> Result<(), Failure> {
    chronicals::init::write_initial_weights(config, seed, bf16, out).map_err(Failure::from)
}

/// The weights of a model that there is.
pub fn write_given_weights(config: &Path, model: &Path, bf16: bool, out: &Path) -> Result<(), Failure> {
    chronicals::init::write_given_weights(config, model, bf16, out).map_err(Failure::from)
}

/// Fresh adapters.
pub fn write_adapter(
    config: &Path,
    lora: &LoraArgs,
    seed: u64,
    bf16: bool,
    out: &Path,
) -> Result<(), Failure> {
    chronicals::init::write_initial_adapter(config, lora, seed, bf16, out).map_err(Failure::from)
}

/// Rounds the weights of a file to bf16; they stay f32 in it.
pub fn round_weights(path: &Path) -> Result<(), Failure> {
    chronicals::weights::round_to_bf16(path).map_err(Failure::from)
}

/// Looks for the device, and for the libraries that it needs.
pub fn check_device(device: &str) -> Result<(), (Exit, Failure)> {
    chronicals::device::check(device).map_err(told)
}

/// One trial.
pub fn train(spec: &Spec, emit: &mut dyn FnMut(Event) -> io::Result<()>) -> Result<(), (Exit, Failure)> {
    chronicals::worker::run(spec, emit).map_err(told)
}

/// A failure of the trainer, with the exit code that it leads to.
pub fn told(e: chronicals::Error) -> (Exit, Failure) {
    (if e.is_environment() { Exit::Environment } else { Exit::Trial }, e.into())
}

/// Loss of every batch under weights that some arm saved: sums and loss tokens.
pub fn evaluate(spec: &EvaluateSpec, files: &[PathBuf]) -> Result<Vec<(f64, u64)>, (Exit, Failure)> {
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    Ok(chronicals::evaluate::losses(&spec.model, &spec.data, &spec.method, &spec.device, &files)
        .map_err(told)?
        .iter()
        .map(|e| (e.loss_sum, e.loss_tokens))
        .collect())
}

/// The fastest matrix product of a device, GFLOP/s.
pub fn peak_gflops(device: &str) -> Result<f64, (Exit, Failure)> {
    if device == "cpu" { Ok(gemm_gflops()) } else { chronicals::device::peak_gflops(device).map_err(told) }
}

/// Rate of the trainer's matrix product on a square that leaves the caches, GFLOP/s: the best of a few, because
/// whatever else runs can only slow it down.
pub fn gemm_gflops() -> f64 {
    const SIDE: usize = 768;
    const ROUNDS: usize = 6;
    const LEAST: Duration = Duration::from_millis(700);
    let (x, w) = (vec![1.0f32; SIDE * SIDE], vec![0.5f32; SIDE * SIDE]);
    let mut y = vec![0.0f32; SIDE * SIDE];
    let flops = (2 * SIDE * SIDE * SIDE) as f64;
    let mut rate = || {
        let start = Instant::now();
        linear_forward(&mut y, &x, &w, SIDE, SIDE, SIDE, 0.0);
        flops / start.elapsed().as_secs_f64() / 1e9
    };
    let began = Instant::now();
    let (mut best, mut rounds) = (0.0f64, 0);
    while rounds < ROUNDS || began.elapsed() < LEAST {
        best = best.max(rate());
        rounds += 1;
    }
    best
}
