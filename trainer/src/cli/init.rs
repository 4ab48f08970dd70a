//! `chronicals init`: a file for `chronicals train`, with settings that a device has room for.

use std::path::{Component, Path, PathBuf};

use chronibench_protocol::{
    TokenStore,
    spec::{LoraArgs, Method, States},
};
use chronicals::{
    Error,
    config::ModelConfig,
    formats::{hub, write},
    job::{Job, JobData},
    memory::gigabytes,
    preset::{self, BATCH_ROWS, Preset, Size},
};
use clap::ValueEnum;

/// Arguments of `init`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals init --model smollm2 --data chat.jsonl       for this machine's GPU, or its processor
  chronicals init --model Qwen/Qwen2.5-0.5B --data chat.jsonl --gpu 80GB --method full
  chronicals init --model smollm2 --data chat.jsonl --gpu cpu --max-length 512 --epochs 3
The data are read: rows are as long as nearly all samples, and steps are those of the epochs. \
Micro-batch, recomputation and what the optimizer keeps are the first that the plan of memory has room for \
(see `chronicals memory`). The file is yours: every setting has a comment, and `chronicals train --help` has the others.")]
pub struct Args {
    /// Hugging Face folder of the model, or repository of the hub (fetched; `HF_HUB_OFFLINE=1` forbids it)
    #[arg(long)]
    model: PathBuf,
    /// JSON Lines, JSON, CSV or Parquet file to learn from
    #[arg(long)]
    data: PathBuf,
    /// Memory that the GPU is sold with: 24GB, 40GB, 80GB, 141GB or any other; or cpu [default: this machine's]
    #[arg(long)]
    gpu: Option<String>,
    /// What trains
    #[arg(long, value_enum, default_value = "lora")]
    method: MethodName,
    /// Longest sample, tokens; longer ones are cut [default: what 99 of 100 samples have, in a power of two]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// Times that the data are gone through
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// File to write
    #[arg(long, default_value = "train.yaml")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum MethodName {
    Full,
    Lora,
}

/// LoRA's rank; alpha is twice that.
const R: usize = 16;

/// Share that is held out, and the fewest samples of which some are.
const HELD_OUT: f64 = 0.05;
const FEW: usize = 40;

impl Args {
    fn method(&self) -> Method {
        let lora = || -> LoraArgs {
            serde_json::from_value(serde_json::json!({"r": R, "lora_alpha": 2 * R}))
                .expect("rank and alpha are enough for LoRA")
        };
        match self.method {
            MethodName::Full => Method::Full {},
            MethodName::Lora => Method::Lora(lora()),
        }
    }
}

/// Writes the file.
pub fn run(a: &Args) -> Result<(), Error> {
    if a.out.exists() {
        return Err(Error::new("there is something here already", a.out.display().to_string())
            .hint("name another file with --out, or take it away first"));
    }
    let size = a.gpu.as_ref().map_or_else(|| Ok(Size::found()), |name| name.parse())?;
    let folder = hub::resolve(&a.model)?;
    let config = ModelConfig::load(&folder.join("config.json"))?;
    let context = u32::try_from(config.max_positions).unwrap_or(u32::MAX);
    if let Some(length) = a.max_length.filter(|length| *length > context) {
        let what = format!("{length} tokens, and the model has {context} positions");
        return Err(Error::new(what, "--max-length").hint("give no more than those"));
    }
    let lengths = lengths(a, &folder, context)?;
    let (length, preset) = chosen(a, &config, &size, &lengths)?;
    let shape = Shape::of(&lengths, length, a.epochs, &preset);
    let text = job(a, &size, &preset, &shape)?;
    write::text(&a.out, &text)?;
    // What was written is what can be read.
    Job::load(&a.out)?;
    let (steps, out) = (shape.steps, a.out.display());
    println!("wrote {out}: {steps} steps for {size}; train with `chronicals train --config {out}`");
    Ok(())
}

/// Tokens of every sample, up to the model's positions.
fn lengths(a: &Args, folder: &Path, context: u32) -> Result<Vec<usize>, Error> {
    let mut data = JobData::of(a.data.clone(), context);
    data.tokenizer = Some(folder.to_path_buf());
    let read = data.dataset(&data.tokenizer()?, 0)?;
    eprintln!("data: {}", read.recognised);
    eprintln!("{}", read.report);
    let mut lengths = TokenStore::lengths(&read.train);
    lengths.sort_unstable();
    Ok(lengths)
}

/// The length that was asked for; or that of nearly all samples, as far as there is room.
fn chosen(a: &Args, c: &ModelConfig, size: &Size, lengths: &[usize]) -> Result<(u32, Preset), Error> {
    let find = |length| preset::find(c, &a.method(), length, size).map(|preset| (length, preset));
    if let Some(length) = a.max_length {
        return find(length);
    }
    let most = lengths[(lengths.len() - 1) * 99 / 100].max(SHORTEST).next_power_of_two();
    let mut length = most.min(c.max_positions) as u32;
    loop {
        match find(length) {
            Err(_) if length as usize > SHORTEST => length = (length / 2).max(SHORTEST as u32),
            found => return found,
        }
    }
}

/// The shortest row that is chosen for anybody, slots.
const SHORTEST: usize = 128;

/// What the data come to.
struct Shape {
    length: u32,
    /// Samples that are longer.
    cut: usize,
    steps: u32,
    holds_out: bool,
}

impl Shape {
    /// Packed rows are nearly full.
    fn of(lengths: &[usize], length: u32, epochs: u32, p: &Preset) -> Self {
        let tokens: u64 = lengths.iter().map(|n| (*n as u64).min(length.into())).sum();
        let holds_out = lengths.len() >= FEW;
        // What is held out is not gone through.
        let learned = tokens as f64 * if holds_out { 1.0 - HELD_OUT } else { 1.0 };
        let a_step = f64::from(p.rows * p.accumulation) * f64::from(length);
        let steps = (learned * f64::from(epochs) / a_step).ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
        let cut = lengths.iter().filter(|n| **n > length as usize).count();
        Self { length, cut, steps, holds_out }
    }

    fn validation(&self) -> String {
        match self.holds_out {
            true => format!(
                "  validation_split: {HELD_OUT}          # held out, and evaluated every eval_steps\n"
            ),
            false => String::new(),
        }
    }

    /// Evaluations and checkpoints: ten of each.
    fn watched(&self) -> String {
        let every = (self.steps / 10).max(1);
        let best = match self.holds_out {
            true => format!(
                "eval_steps: {every}\nload_best_model_at_end: true      # what is saved is the best of the evaluations\n"
            ),
            false => String::new(),
        };
        format!(
            "{best}save_steps: {every}                     # a checkpoint, for --resume\nsave_total_limit: 2\n"
        )
    }
}

fn method(a: &Args) -> String {
    match a.method {
        MethodName::Full => "method: {type: full}\n".to_string(),
        MethodName::Lora => format!("method: {{type: lora, r: {R}, lora_alpha: {}}}\n", 2 * R),
    }
}

fn device(p: &Preset) -> String {
    let states = match p.states {
        None => return "device: cpu\n".to_string(),
        Some(States::F32) => "f32",
        Some(States::Eight) => "8bit",
        Some(States::Bf16) => "bf16",
    };
    format!(
        "device: cuda\nprecision: {{dtype: bf16, states: {states}}}     # states: f32 is best, 8bit and bf16 save memory\n"
    )
}

/// A path as seen from the folder of the file that is written, so that all of it may move together, unless it was given as a whole one;
/// as YAML: a JSON string is one.
fn place(path: &Path, file: &Path) -> Result<String, Error> {
    let seen = if path.is_absolute() { path.to_path_buf() } else { relative(path, file)? };
    Ok(serde_json::Value::from(seen.to_string_lossy()).to_string())
}

/// A path that is there, from the folder of a file.
fn relative(path: &Path, file: &Path) -> Result<PathBuf, Error> {
    let folder = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path, &e));
    let climbs = |path: &Path| path.components().any(|c| c == Component::ParentDir);
    if let Ok(inside) = absolute(path)?.strip_prefix(absolute(folder)?)
        && !climbs(inside)
    {
        return Ok(if inside.as_os_str().is_empty() { ".".into() } else { inside.to_path_buf() });
    }
    // The way up is that of the disk, whatever links there are.
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io(path, &e));
    let (path, folder) = (real(path)?, real(folder)?);
    let shared = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    Ok(up.chain(path.components().skip(shared)).collect())
}

fn job(a: &Args, size: &Size, p: &Preset, shape: &Shape) -> Result<String, Error> {
    // A repository keeps its name.
    let model = if a.model.exists() {
        place(&a.model, &a.out)?
    } else {
        format!("{:?}", a.model.display().to_string())
    };
    let rate = if a.method == MethodName::Full { "2.0e-5" } else { "2.0e-4" };
    let (planned, room, level) = (gigabytes(p.planned), gigabytes(p.room), p.level);
    Ok(format!(
        "# Made by `chronicals init` for {size}: {planned} planned, of {room}.
model: {{path: {model}}}
data:
  path: {data}
  max_length: {length}                # tokens; {cut} samples are longer and are cut
{validation}  # assistant_only_loss: true     # of conversations, learn what the assistant says alone
{method}batch:
  packing: bfd                    # several samples share a row and do not see each other
  per_device_train_batch_size: {rows}
  gradient_accumulation_steps: {accumulation}   # {BATCH_ROWS} rows to a step
train: {{learning_rate: {rate}, lr_scheduler_type: cosine, warmup_steps: {warmup}}}
max_steps: {steps}                      # {epochs} times through the data
{watched}recompute: {level}                   # auto: the first level that fits the memory that is free
{device}output_dir: out
",
        data = place(&a.data, &a.out)?,
        length = shape.length,
        cut = shape.cut,
        validation = shape.validation(),
        method = method(a),
        rows = p.rows,
        accumulation = p.accumulation,
        warmup = shape.steps / 30,
        steps = shape.steps,
        epochs = a.epochs,
        watched = shape.watched(),
        device = device(p),
    ))
}

#[cfg(test)]
mod tests {
    use chronicals::model::Level;

    use super::*;

    #[test]
    fn an_epoch_does_not_go_through_what_is_held_out() {
        let preset =
            Preset { rows: 2, accumulation: 4, level: Level::None, states: None, planned: 0, room: 0 };
        let steps = |samples, epochs| {
            let shape = Shape::of(&vec![100; samples], 100, epochs, &preset);
            (shape.holds_out, shape.steps)
        };
        assert_eq!(steps(39, 1), (false, 5));
        assert_eq!((steps(800, 1), steps(800, 2)), ((true, 95), (true, 190)));
    }
}
