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
    device::Device,
    fit::fit,
    job::{Inputs, Job},
    memory::peak_rss_bytes,
    trainer::StepReport,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;

/// Arguments of `train`.
#[derive(clap::Args)]
#[command(after_help = "Example (paths are relative to the file):
  model: {config: scenarios/models/tiny-qwen2.json}     # weights: model.safetensors to start from
  data: {path: data/chat-instruct/train.jsonl, tokenizer: data/chat-instruct/tokenizer.json, max_length: 512}
  method: {type: lora, r: 16, lora_alpha: 32, loraplus_lr_ratio: 16}      # or {type: full}
  batch: {packing: bfd, per_device_train_batch_size: 2}
  train: {learning_rate: 1e-3, lr_scheduler_type: cosine, warmup_steps: 5}
  max_steps: 100
  output_dir: out
Conversations, with the chat template of an instruction-tuned model, whose folder has config.json and tokenizer:
  data: {path: chat.jsonl, tokenizer: model/, max_length: 2048, assistant_only_loss: true, validation_split: 0.05}
Records are JSON Lines, JSON, CSV or Parquet, in the shape of messages, ShareGPT, prompt and completion, Alpaca or text; the shape is
recognised, or named by data.format. Keys of other names: data.columns: {prompt: question, completion: answer}.
`chronicals data show train.yaml` prints what of it is learned.
On a GPU also:
  device: cuda                                          # or cuda:1
  precision: {dtype: bf16, states: f32}                 # the default; dtype f32 to debug, states bf16 or 8bit to save memory

Writes to output_dir: model.safetensors or adapter_model.safetensors, config.json, metrics.jsonl.")]
pub struct Args {
    /// YAML file that describes the training
    #[arg(long)]
    config: PathBuf,
}

/// Trains.
pub fn run(args: &Args) -> Result<(), Exit> {
    let job = Job::load(&args.config).map_err(Exit::usage)?;
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
            let trainer = train(&job, &inputs, job.on_cpu(&inputs).map_err(Exit::usage)?)?;
            if let Some(peak) = peak_rss_bytes() {
                report_memory(&trainer, peak.saturating_sub(before), "measured above the start");
            }
        }
        Device::Cuda(ordinal) => {
            let trainer = train(&job, &inputs, job.on_gpu(ordinal, &inputs).map_err(Exit::usage)?)?;
            if let Ok((free, total)) = trainer.backend().device().gpu().memory() {
                report_memory(&trainer, (total - free) as u64, "in use on the device");
            }
        }
    }
    Ok(())
}

fn train<B: Backend>(job: &Job, inputs: &Inputs, backend: B) -> Result<Trainer<B>, Exit> {
    let mut metrics = Metrics::create(&job.output_dir).map_err(Exit::usage)?;
    let mut trainer = job.trainer(inputs, backend).map_err(Exit::usage)?;
    let batches = &inputs.batches;
    eprintln!("data: {}", inputs.recognised);
    eprintln!("{}", inputs.report);
    if let Some((held_out, report)) = &inputs.evaluation {
        eprintln!("held out: {report}; {} batches", held_out.steps());
    }
    let trained: usize = trainer.trainable().len();
    eprintln!("training {trained} of {} parameters for {} steps", trainer.total_params(), batches.steps());

    trainer.rehearse(batches).map_err(Exit::usage)?;
    let bar = progress(u64::from(batches.steps()));
    fit(&mut trainer, batches, batches.steps(), |step, r| {
        metrics.step(step, &r)?;
        show(&bar, step, batches.steps(), &r);
        Ok(())
    })
    .map_err(Exit::failed)?;
    bar.finish_and_clear();

    let name = match job.method {
        Method::Full {} => "model.safetensors",
        Method::Lora(_) => "adapter_model.safetensors",
    };
    let path = job.output_dir.join(name);
    trainer.save_trainable(&path).map_err(Exit::failed)?;
    copy_config(job).map_err(Exit::failed)?;
    eprintln!("saved {}", path.display());
    Ok(trainer)
}

fn report_memory<B: Backend>(trainer: &Trainer<B>, measured: u64, how: &str) {
    let planned: u64 = trainer.backend().planned_bytes().values().sum();
    eprintln!("memory: {} MB planned, {} MB {how}", planned / 1_000_000, measured / 1_000_000);
}

fn copy_config(job: &Job) -> Result<(), Error> {
    let to = job.output_dir.join("config.json");
    std::fs::copy(&job.model.config, &to).map_err(|e| Error::io(&to, &e))?;
    Ok(())
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

/// `metrics.jsonl`: a line a step.
struct Metrics {
    path: PathBuf,
    out: BufWriter<File>,
    last: Instant,
}

impl Metrics {
    fn create(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
        let path = dir.join("metrics.jsonl");
        let out = BufWriter::new(File::create(&path).map_err(|e| Error::io(&path, &e))?);
        Ok(Self { path, out, last: Instant::now() })
    }

    fn step(&mut self, step: u32, r: &StepReport) -> Result<(), Error> {
        let took: Duration = self.last.elapsed();
        self.last = Instant::now();
        let line = serde_json::json!({
            "step": step,
            "loss": r.loss,
            "grad_norm": r.grad_norm,
            "lr": r.lr,
            "tokens": r.tokens,
            "seconds": took.as_secs_f64(),
        });
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(|e| Error::io(&self.path, &e))
    }
}
