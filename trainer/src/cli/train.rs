//! `chronicals train`.

use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chronibench_protocol::spec::Method;
use chronicals::{
    Error, Trainer,
    backend::Backend,
    checkpoint::{self, Identity},
    device::Device,
    fit::{self, Evaluation},
    formats::folder,
    job::{Inputs, Job},
    memory::peak_rss_bytes,
    profile::{By, Options},
    trainer::StepReport,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;

/// Arguments of `train`.
#[derive(clap::Args)]
#[command(
    after_help = "Example: chronicals train --config train.yaml, where train.yaml has (paths are relative to the file)
  model: {path: my-model}                               # a Hugging Face folder, or a repository in the hub's cache
  data: {path: data/chat-instruct/train.jsonl, max_length: 512}
  method: {type: lora, r: 16, lora_alpha: 32, loraplus_lr_ratio: 16}      # or {type: full}
  batch: {packing: bfd, per_device_train_batch_size: 2}
  train: {learning_rate: 1e-3, lr_scheduler_type: cosine, warmup_steps: 5}
  max_steps: 100
  output_dir: out
  recompute: auto                                       # the default: keep what memory has room for; or none, swiglu, norm, ffn, block
  memory_limit_gb: 40                                   # plan for so much; what is free when left out
Conversations, with the chat template of an instruction-tuned model, whose folder has config.json and tokenizer:
  data: {path: chat.jsonl, tokenizer: model/, max_length: 2048, assistant_only_loss: true, validation_split: 0.05}
Records are JSON Lines, JSON, CSV or Parquet, in the shape of messages, ShareGPT, prompt and completion, Alpaca or text; the shape is
recognised, or named by data.format. Keys of other names: data.columns: {prompt: question, completion: answer}.
`chronicals data show train.yaml` prints what of it is learned.
To begin with drawn weights:
  model: {config: scenarios/models/tiny-qwen2.json}
  data: {path: data/chat-instruct/train.jsonl, tokenizer: data/chat-instruct/tokenizer.json, max_length: 512}
On a GPU also:
  device: cuda                                          # or cuda:1
  offload: true                                         # blocks' inputs wait for the backward pass in the host's memory
  precision: {dtype: bf16, states: f32}                 # the default; dtype f32 to debug, states bf16 or 8bit to save memory

Writes to output_dir metrics.jsonl, and a model that Transformers loads (model.safetensors in f32, config.json, tokenizer) or, under LoRA,
an adapter that PEFT loads (adapter_model.safetensors, adapter_config.json); and with
  eval_steps: 25                                        # the loss of what data.validation_split or validation_path holds out
  save_steps: 50                                        # a checkpoint every 50 steps
  save_total_limit: 2                                   # of which the newest two are kept
folders checkpoint-50 and so on, from which a training that ended early goes on, to the bit:
  chronicals train --config train.yaml --resume                 # from the newest checkpoint, or from the beginning
  chronicals train --config train.yaml --resume-from out/checkpoint-50

Where a step goes:
  chronicals train --config train.yaml --profile prof   # prof/trace.json opens in ui.perfetto.dev or chrome://tracing
  chronicals train --config train.yaml --profile prof --profile-steps 5 --profile-warmup 20
It prints, and writes to prof/profile.md, a table by seam and kernel: time, bytes, FLOPs, and how near that is to a copy and a product
measured on the same device. profile.csv and profile.json are the same for programs. The training goes on to its last step: set
max_steps to a few dozen where the profile is all that is wanted."
)]
pub struct Args {
    /// YAML file that describes the training
    #[arg(long)]
    config: PathBuf,
    /// Goes on from the newest checkpoint in output_dir; begins where there is none
    #[arg(long)]
    resume: bool,
    /// Goes on from this checkpoint
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    resume_from: Option<PathBuf>,
    /// Traces a few steps by kernel, and writes trace and table to this folder
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    /// Steps that are traced
    #[arg(long, value_name = "N", default_value_t = 3, requires = "profile")]
    profile_steps: u32,
    /// Steps before those [default: 10, or what max_steps leaves]; on a GPU each shape of batch is launched once and captured once
    /// before it is replayed
    #[arg(long, value_name = "N", requires = "profile")]
    profile_warmup: Option<u32>,
    /// What takes the time on a GPU: cupti (kernels of the very steps that are replayed) or events (around every launch, launched one
    /// by one) [default: cupti if libcupti is found, else events]
    #[arg(long, value_name = "HOW", requires = "profile")]
    profile_by: Option<By>,
}

impl Args {
    fn profile(&self, job: &Job) -> Result<Option<Profiling<'_>>, Error> {
        let Some(dir) = &self.profile else { return Ok(None) };
        let options = Options::fit(self.profile_warmup, self.profile_steps, self.profile_by, job.max_steps)?;
        Ok(Some(Profiling { dir, options }))
    }

    /// The checkpoint to go on from.
    fn checkpoint(&self, job: &Job) -> Result<Option<PathBuf>, Error> {
        if self.resume {
            return Ok(checkpoint::all(&job.output_dir)?.into_values().next_back());
        }
        Ok(self.resume_from.clone())
    }
}

/// A profile that is wanted.
struct Profiling<'a> {
    dir: &'a Path,
    options: Options,
}

/// Trains.
pub fn run(args: &Args) -> Result<(), Exit> {
    let job = Job::load(&args.config).map_err(Exit::usage)?;
    let profiling = args.profile(&job).map_err(Exit::usage)?;
    let from = args.checkpoint(&job).map_err(Exit::usage)?;
    if let Some(n) = job.threads {
        rayon::ThreadPoolBuilder::new().num_threads(n).build_global().map_err(|e| {
            Exit::usage(
                Error::new(e.to_string(), "threads").hint("give a number of threads, or leave it out"),
            )
        })?;
    }
    let before = peak_rss_bytes().unwrap_or(0);
    let inputs = job.inputs().map_err(Exit::usage)?;
    match inputs.device {
        Device::Cpu => {
            let trainer = train(&job, &inputs, job.on_cpu(&inputs).map_err(Exit::usage)?, from, profiling)?;
            if let Some(peak) = peak_rss_bytes() {
                report_memory(&trainer, peak.saturating_sub(before), "measured above the start");
            }
        }
        Device::Cuda(ordinal) => {
            let backend = job.on_gpu(ordinal, &inputs).map_err(Exit::usage)?;
            let gpu = backend.device().gpu();
            let used = || gpu.memory().ok().map(|(free, total)| (total - free) as u64);
            let before = used();
            let trainer = train(&job, &inputs, backend, from, profiling)?;
            if let Some((before, after)) = before.zip(used()) {
                let what =
                    format!("taken on the device above {} MB of driver and libraries", before / 1_000_000);
                report_memory(&trainer, after.saturating_sub(before), &what);
            }
        }
    }
    Ok(())
}

fn train<B: Backend>(
    job: &Job,
    inputs: &Inputs,
    mut backend: B,
    from: Option<PathBuf>,
    profiling: Option<Profiling<'_>>,
) -> Result<Trainer<B>, Exit> {
    if let Some(Profiling { dir, options }) = &profiling {
        // A folder that cannot be made is told before the training, not behind it.
        std::fs::create_dir_all(dir).map_err(|e| Exit::usage(Error::io(dir, &e)))?;
        backend.profile(options).map_err(Exit::usage)?;
    }
    let chosen = job.choose(inputs, &backend).map_err(Exit::usage)?;
    eprintln!("recompute: {} ({})", chosen.level, chosen.why);
    let mut trainer = job.trainer(inputs, backend, chosen.level).map_err(Exit::usage)?;
    let precision = trainer.backend().about().precision;
    let identity = job.identity(inputs, &precision).map_err(Exit::usage)?;
    if let Some(dir) = &from {
        checkpoint::load(&mut trainer, dir, &identity).map_err(Exit::usage)?;
        eprintln!("resumed from {}, after step {}", dir.display(), trainer.step());
    }
    let mut metrics = Metrics::open(&job.output_dir, trainer.step()).map_err(Exit::usage)?;
    let batches = &inputs.batches;
    eprintln!("data: {}", inputs.recognised);
    eprintln!("{}", inputs.report);
    if let Some((held_out, report)) = &inputs.evaluation {
        eprintln!("held out: {report}; {} batches", held_out.steps());
    }
    let trained: usize = trainer.trainable().len();
    eprintln!("training {trained} of {} parameters for {} steps", trainer.total_params(), batches.steps());

    trainer.rehearse(batches).map_err(Exit::usage)?;
    steps(job, inputs, &mut trainer, &identity, &mut metrics).map_err(Exit::failed)?;

    let path = job.output_dir.join(trainer.trainable_file());
    trainer.save_trainable(&path).map_err(Exit::failed)?;
    let lora = if let Method::Lora(lora) = &job.method { Some(lora) } else { None };
    folder::finish(&job.model.config, job.data.tokenizer.as_deref(), lora, &job.output_dir)
        .map_err(Exit::failed)?;
    eprintln!("saved {}", path.display());
    if let Some(Profiling { dir, .. }) = &profiling {
        write_profile(&mut trainer, dir).map_err(Exit::failed)?;
    }
    Ok(trainer)
}

/// Whether something that is done every so many steps is due when so many are taken.
fn is_due(every: Option<u32>, taken: u32, all: u32) -> bool {
    every.is_some_and(|n| taken.is_multiple_of(n.max(1)) || taken == all)
}

/// The steps that are left, with evaluations and checkpoints between them.
fn steps<B: Backend>(
    job: &Job,
    inputs: &Inputs,
    trainer: &mut Trainer<B>,
    identity: &Identity,
    metrics: &mut Metrics,
) -> Result<(), Error> {
    let all = inputs.batches.steps();
    let bar = progress(u64::from(all));
    bar.set_position(trainer.step().into());
    let evaluate = |trainer: &mut Trainer<B>, metrics: &mut Metrics| -> Result<(), Error> {
        let Some((held_out, _)) = &inputs.evaluation else { return Ok(()) };
        let e = fit::evaluate(trainer, held_out)?;
        bar.suspend(|| {
            let (step, loss, perplexity) = (trainer.step(), e.loss(), e.perplexity());
            eprintln!("after step {step}: held-out loss {loss:.4}, perplexity {perplexity:.3}");
        });
        metrics.evaluation(trainer.step(), &e)
    };
    if job.eval_on_start && trainer.step() == 0 {
        evaluate(trainer, metrics)?;
    }
    while trainer.step() < all {
        let next = |every: Option<u32>| {
            let every = every.unwrap_or(all).max(1);
            (trainer.step() / every + 1).saturating_mul(every).min(all)
        };
        let to = next(job.save_steps).min(next(job.eval_steps));
        fit::fit(trainer, &inputs.batches, to, |step, r| {
            metrics.step(step, &r)?;
            show(&bar, step, all, &r);
            Ok(())
        })?;
        if to == all || is_due(job.eval_steps, to, all) {
            evaluate(trainer, metrics)?;
        }
        if is_due(job.save_steps, to, all) {
            checkpoint::save(trainer, &job.output_dir, identity, job.save_total_limit)?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn write_profile<B: Backend>(trainer: &mut Trainer<B>, dir: &Path) -> Result<(), Error> {
    let profile = trainer.profiled()?.ok_or_else(|| Error::new("no step was profiled", "--profile"))?;
    for file in profile.write(dir)? {
        eprintln!("wrote {}", file.display());
    }
    print!("{}", profile.markdown());
    Ok(())
}

fn report_memory<B: Backend>(trainer: &Trainer<B>, measured: u64, how: &str) {
    let planned: u64 = trainer.backend().planned_bytes().values().sum();
    let host = match trainer.backend().planned_host_bytes() {
        0 => String::new(),
        bytes => format!(", {} MB page-locked on the host", bytes / 1_000_000),
    };
    let share = 100.0 * planned as f64 / measured.max(1) as f64;
    let (planned, measured) = (planned / 1_000_000, measured / 1_000_000);
    eprintln!("memory: {planned} MB planned, {share:.1} % of {measured} MB {how}{host}");
}

/// A bar on a terminal; elsewhere `show` prints lines.
fn progress(steps: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {eta} left");
    ProgressBar::new(steps).with_style(style.expect("the template is well-formed"))
}

fn show(bar: &ProgressBar, step: u32, steps: u32, r: &StepReport) {
    let text = format!("loss {:.4}  norm {:.3}", r.loss, r.grad_norm);
    if bar.is_hidden() {
        // Every tenth of the way, and the first and last step.
        if step == 0 || step + 1 == steps || (step + 1).is_multiple_of((steps / 10).max(1)) {
            eprintln!("step {}/{steps}  {text}", step + 1);
        }
    } else {
        bar.set_message(text);
        bar.inc(1);
    }
}

/// `metrics.jsonl`: a line a step, of this training and of those that it goes on from.
struct Metrics {
    path: PathBuf,
    out: BufWriter<File>,
    last: Instant,
}

impl Metrics {
    /// Keeps the lines of the steps before `step`.
    fn open(dir: &Path, step: u32) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
        let path = dir.join("metrics.jsonl");
        let failed = |e: std::io::Error| Error::io(&path, &e);
        let before =
            if step == 0 { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
        let out = File::create(&path).map_err(failed)?;
        let mut metrics = Self { path: path.clone(), out: BufWriter::new(out), last: Instant::now() };
        let kept = |line: &&str| {
            let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
            line.and_then(|l| l["step"].as_u64()).is_some_and(|s| s < u64::from(step))
        };
        let text: String = before.lines().filter(kept).map(|line| format!("{line}\n")).collect();
        metrics.out.write_all(text.as_bytes()).and_then(|()| metrics.out.flush()).map_err(failed)?;
        Ok(metrics)
    }

    fn step(&mut self, step: u32, r: &StepReport) -> Result<(), Error> {
        let took: Duration = self.last.elapsed();
        self.last = Instant::now();
        self.line(&serde_json::json!({
            "step": step,
            "loss": r.loss,
            "grad_norm": r.grad_norm,
            "lr": r.lr,
            "tokens": r.tokens,
            "seconds": took.as_secs_f64(),
        }))
    }

    fn evaluation(&mut self, step: u32, e: &Evaluation) -> Result<(), Error> {
        self.line(&serde_json::json!({
            "step": step,
            "eval_loss": e.loss(),
            "eval_perplexity": e.perplexity(),
            "eval_tokens": e.loss_tokens,
        }))?;
        // An evaluation is not of the step behind it.
        self.last = Instant::now();
        Ok(())
    }

    fn line(&mut self, line: &serde_json::Value) -> Result<(), Error> {
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(|e| Error::io(&self.path, &e))
    }
}
