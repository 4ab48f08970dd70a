//! `chronicals import`, `export` and `merge`: a model from one form into another.

use std::path::PathBuf;

use chronicals::{
    Error,
    formats::{
        folder::{Adapter, Source, Style},
        write::Stored,
    },
};
use clap::ValueEnum;

/// How a folder is written.
#[derive(clap::Args)]
pub struct Output {
    /// Number format of the weights: rounded once
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeName,
    /// Most GB (10⁹ bytes) of a file of weights: larger models are cut into shards with an index
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    max_shard_gb: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeName {
    Bf16,
    F32,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err("must be above 0".into()) }
}

impl Output {
    fn style(&self) -> Style {
        let stored = match self.dtype {
            DtypeName::Bf16 => Stored::Bf16,
            DtypeName::F32 => Stored::F32,
        };
        Style { stored, shard: (self.max_shard_gb * 1e9) as u64 }
    }
}

/// Arguments of `import`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals import SmolLM2-135M-Instruct.Q4_1.gguf smollm2   which has tokenizer and chat template
  chronicals import Qwen/Qwen2.5-0.5B qwen --dtype f32        of the hub
  chronicals import model.gguf out --tokenizer tokenizer.json
GGUF: the architectures llama, qwen2 and qwen3 in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K. The folder OUT is then what \
`model: {path: OUT}` of a training takes, and what Transformers loads.")]
pub struct Import {
    /// GGUF file, Hugging Face folder, or repository of the hub (fetched; `HF_HUB_OFFLINE=1` forbids it)
    source: PathBuf,
    /// Folder to make
    out: PathBuf,
    /// tokenizer.json in place of the model's own
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `export`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals export out my-model        what full fine-tuning left, in bf16, without its checkpoints
  chronicals export out/checkpoint-200 my-model --dtype f32 --max-shard-gb 2")]
pub struct Export {
    /// Folder of a model, such as a training's output_dir
    source: PathBuf,
    /// Folder to make
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `merge`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals merge --model smollm2 --adapter out merged   W + scale·B·A in f32, rounded once to bf16
  chronicals merge --model Qwen/Qwen2.5-0.5B --adapter out merged --dtype f32")]
pub struct Merge {
    /// Hugging Face folder of the base model, GGUF file, or repository of the hub (fetched; `HF_HUB_OFFLINE=1` forbids it)
    #[arg(long)]
    model: PathBuf,
    /// Folder of a LoRA adapter, as a training or PEFT leaves it
    #[arg(long)]
    adapter: PathBuf,
    /// Folder to make
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Imports.
pub fn import(a: &Import) -> Result<(), Error> {
    convert(&Source::open(&a.source, a.tokenizer.as_deref())?, None, &a.output, &a.out)
}

/// Exports.
pub fn export(a: &Export) -> Result<(), Error> {
    convert(&Source::open(&a.source, None)?, None, &a.output, &a.out)
}

/// Merges.
pub fn merge(a: &Merge) -> Result<(), Error> {
    let source = Source::open(&a.model, None)?;
    let adapter = Adapter::open(&a.adapter, source.model())?;
    convert(&source, Some(&adapter), &a.output, &a.out)
}

fn convert(
    source: &Source,
    adapter: Option<&Adapter>,
    output: &Output,
    out: &std::path::Path,
) -> Result<(), Error> {
    let style = output.style();
    source.write(adapter, style, out)?;
    eprintln!("wrote {}: {} parameters in {}", out.display(), source.layout().len(), style.stored.name());
    Ok(())
}
