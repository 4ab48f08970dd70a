//! `chronicals init`: a file for `chronicals train`, with settings that a device has room for.

use std::path::{Path, PathBuf};

use chronibench_protocol::spec::{LoraArgs, Method, States};
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
  chronicals init --model smollm2 --data chat.jsonl                             for the processor of this machine, into train.yaml
  chronicals init --model Qwen/Qwen2.5-0.5B --data chat.jsonl --preset 80gb --method full --max-length 2048 --out full.yaml
The data is read, so that the number of steps is that of so many epochs. The file is yours: every setting has a line that says what it
does, and `chronicals train --help` has the others.")]
pub struct Args {
    /// Hugging Face folder of the model, or repository in the hub's cache
    #[arg(long)]
    model: PathBuf,
    /// JSON Lines, JSON, CSV or Parquet file to learn from
    #[arg(long)]
    data: PathBuf,
    /// Memory of the GPU: 24gb, 40gb, 80gb, 141gb or any other number; or cpu
    #[arg(long, default_value = "cpu")]
    preset: String,
    /// What trains
    #[arg(long, value_enum, default_value = "lora")]
    method: MethodName,
    /// Longest sample, tokens; longer ones are cut
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: u32,
    /// Times that the data is gone through
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

/// LoRA's rank and alpha.
const R: usize = 16;

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
    let size: Size = a.preset.parse()?;
    let folder = hub::resolve(&a.model)?;
    let config = ModelConfig::load(&folder.join("config.json"))?;
    if a.max_length as usize > config.max_positions {
        let what = format!("the model has {} positions", config.max_positions);
        return Err(Error::new(what, "--max-length").hint("give no more than those"));
    }
    let preset = preset::find(&config, &a.method(), a.max_length, size)?;
    let steps = steps(a, &folder)?;
    let text = job(a, &folder, size, &preset, steps)?;
    write::text(&a.out, &text)?;
    // What was written is what can be read.
    Job::load(&a.out)?;
    println!("wrote {}: {steps} steps; train with `chronicals train --config {0}`", a.out.display());
    Ok(())
}

/// Share that is held out.
const HELD_OUT: f64 = 0.05;

/// Steps of the epochs: packed rows are nearly full.
fn steps(a: &Args, folder: &Path) -> Result<u32, Error> {
    let mut data = JobData::of(a.data.clone(), a.max_length);
    data.tokenizer = Some(folder.to_path_buf());
    data.validation_split = Some(HELD_OUT);
    let tokenizer = data.tokenizer()?;
    let read = data.dataset(&tokenizer, 0)?;
    eprintln!("data: {}", read.recognised);
    eprintln!("{}", read.report);
    let tokens: usize = read.train.lengths().iter().sum();
    let a_step = u64::from(BATCH_ROWS) * u64::from(a.max_length);
    Ok((tokens as u64 * u64::from(a.epochs)).div_ceil(a_step).clamp(1, u32::MAX.into()) as u32)
}

fn job(a: &Args, folder: &Path, size: Size, p: &Preset, steps: u32) -> Result<String, Error> {
    let place = |path: &Path| -> Result<String, Error> {
        let whole = std::path::absolute(path).map_err(|e| Error::io(path, &e))?;
        // A JSON string is one of YAML.
        Ok(serde_json::Value::from(whole.to_string_lossy()).to_string())
    };
    let (method, rate) = match a.method {
        MethodName::Full => ("{type: full}".to_string(), "2e-5"),
        MethodName::Lora => (format!("{{type: lora, r: {R}, lora_alpha: {}}}", 2 * R), "2e-4"),
    };
    let device = match size {
        Size::Cpu => "device: cpu\n".to_string(),
        Size::Gpu(_) => {
            let states = if p.states == Some(States::Eight) { "8bit" } else { "f32" };
            format!("device: cuda\nprecision: {{dtype: bf16, states: {states}}}\n")
        }
    };
    let every = (steps / 10).max(1);
    Ok(format!(
        "# Made by `chronicals init` for {size}: {planned} planned with recompute: {level}.
model: {{path: {model}}}
data:
  path: {data}
  max_length: {length}              # tokens; longer samples are cut
  validation_split: {HELD_OUT}        # held out, and evaluated every eval_steps
  # template: chat                # the model's own chat template, for conversations and instruction-tuned models
  # assistant_only_loss: true     # learn what the assistant says alone
method: {method}
batch:
  packing: bfd                    # several samples share a row and do not see each other
  per_device_train_batch_size: {rows}
  gradient_accumulation_steps: {accumulation}
train: {{learning_rate: {rate}, lr_scheduler_type: cosine, warmup_steps: {warmup}}}
max_steps: {steps}
eval_steps: {every}
save_steps: {every}
save_total_limit: 2
load_best_model_at_end: true
recompute: auto                   # the first level that fits the memory that is free
{device}output_dir: {out}
",
        planned = gigabytes(p.planned),
        level = p.level,
        model = place(folder)?,
        data = place(&a.data)?,
        length = a.max_length,
        rows = p.rows,
        accumulation = p.accumulation,
        warmup = steps / 30,
        out = place(&a.out.with_extension("out"))?,
    ))
}
