//! `chronicals train`.

mod session;

use std::path::{Path, PathBuf};

use chronibench_protocol::spec::Method;
use chronicals::{
    Error, Trainer,
    backend::Backend,
    checkpoint::{self, Identity, Resumed},
    device::Device,
    formats::folder,
    job::{Inputs, Job},
    memory::peak_rss_bytes,
    profile::{By, Options},
    progress::Progress,
};

use self::session::Session;
use super::Exit;

/// Arguments of `train`.
#[derive(clap::Args)]
#[command(
    after_help = "Example: chronicals train --config train.yaml, where train.yaml has (paths are relative to the file)
  model: {path: my-model}             # a Hugging Face folder, or a repository of the hub (fetched;
                                      # `HF_HUB_OFFLINE=1` forbids it)
  data: {path: data/chat-instruct/train.jsonl, max_length: 512}
  # Or {type: full}. Also use_rslora, use_dora, init_lora_weights: pissa, alpha_pattern,
  # rank_pattern: {k_proj: 8}.
  method: {type: lora, r: 16, lora_alpha: 32, loraplus_lr_ratio: 16}
  batch: {packing: bfd, per_device_train_batch_size: 2}
  train: {learning_rate: 1e-3, lr_scheduler_type: cosine, warmup_steps: 5}
  max_steps: 100
  output_dir: out
  recompute: auto                     # the default: what fits; or none, swiglu, norm, ffn, block
  memory_limit_gb: 40                 # plan for so much; what is free when left out
Conversations, with the chat template of an instruction-tuned model, whose folder has config.json \
and tokenizer:
  data: {path: chat.jsonl, tokenizer: model/, max_length: 2048, assistant_only_loss: true}
Records are JSON Lines, JSON, CSV or Parquet, in the shape of messages, ShareGPT, prompt and completion, \
Alpaca or text; the shape is recognised, or named by data.format. \
Keys of other names: data.columns: {prompt: question, completion: answer}. \
A part to evaluate on: data.validation_split: 0.05.
`chronicals data show train.yaml` prints what of it is learned.
To begin with drawn weights:
  model: {config: scenarios/models/tiny-qwen2.json}
  data: {path: data/chat-instruct/train.jsonl, max_length: 512,
    tokenizer: data/chat-instruct/tokenizer.json}
With moments of AdamW in 8 bits, which take a quarter:
  precision: {states: 8bit}
On a GPU also:
  device: cuda                        # or cuda:1
  offload: true                       # blocks' inputs wait in the host's memory
  precision: {dtype: bf16, states: f32}   # the default; dtype f32 to debug, states bf16, 8bit

Writes to output_dir metrics (metrics.jsonl, metrics.csv, and TensorBoard's event files in runs/), \
and a model that Transformers loads (model.safetensors in f32, config.json, tokenizer) \
or, under LoRA, an adapter that PEFT loads (adapter_model.safetensors, adapter_config.json); and with
  logging_steps: 10                   # metrics of every ten steps: the loss is their mean
  report_to: [tensorboard]            # besides metrics.jsonl; csv and tensorboard when left out
  peak_tflops: 989                    # what MFU is a share of; known of common GPUs
  eval_steps: 25                      # the loss of what data.validation_split or _path holds out
  save_steps: 50                      # a checkpoint every 50 steps
  save_total_limit: 2                 # of which the newest two are kept
  load_best_model_at_end: true        # keep the checkpoint of the best evaluation, and end with it
  early_stopping_patience: 3          # end after so many evaluations without improvement
  early_stopping_threshold: 0.01      # of so much
  max_loss_rise: 3.0                  # the default: give up when the loss rises by so many nats
folders checkpoint-50 and so on, from which a training that ended early goes on, to the bit, and which are models or adapters too. \
Ctrl-C ends the step at hand, writes a \
checkpoint and exits with 130, and so does a termination signal; a second one ends at once.
  chronicals train --config train.yaml --resume   # from its newest checkpoint, if any
  chronicals train --config train.yaml --resume-from out/checkpoint-50
  chronicals train --config train.yaml --overwrite         # from the beginning

Where a step goes:
  chronicals train --config train.yaml --profile prof
  chronicals train --config train.yaml --profile prof --profile-steps 5 --profile-warmup 20
prof/trace.json opens in ui.perfetto.dev or chrome://tracing. \
It prints, and writes to prof/profile.md, a table by seam and kernel: time, bytes, FLOPs, and how near that is to a copy and a product \
measured on the same device. profile.csv and profile.json are the same for programs. The training goes on to its last step: \
set max_steps to a few dozen where the profile is all that is wanted."
)]
pub struct Args {
    /// YAML file that describes the training
    #[arg(long)]
    config: PathBuf,
    /// Goes on from the newest checkpoint in output_dir that is of this training; begins where there is none
    #[arg(long)]
    resume: bool,
    /// Goes on from this checkpoint
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    resume_from: Option<PathBuf>,
    /// Begins anew in an output_dir that has checkpoints of an earlier training: they and its metrics are removed
    #[arg(long, conflicts_with_all = ["resume", "resume_from"])]
    overwrite: bool,
    /// Traces a few steps by kernel, and writes trace and table to this folder
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    /// Steps that are traced
    #[arg(long, value_name = "N", default_value_t = 3, requires = "profile")]
    profile_steps: u32,
    /// Steps of this process before those [default: 10, or what max_steps leaves]; on a GPU each shape of batch is launched once and captured once
    /// before it is replayed
    #[arg(long, value_name = "N", requires = "profile")]
    profile_warmup: Option<u32>,
    /// What takes the time on a GPU: cupti (kernels of the very steps that are replayed) or events (around every launch, launched one
    /// by one) [default: cupti if libcupti is found, else events]
    #[arg(long, value_name = "HOW", requires = "profile")]
    profile_by: Option<By>,
}

impl Args {
    /// Of a process that begins with step `first`.
    fn profile(&self, job: &Job, first: u32) -> Result<Option<Profiling<'_>>, Error> {
        let Some(dir) = &self.profile else { return Ok(None) };
        let taken = first..job.max_steps;
        let options = Options::fit(self.profile_warmup, self.profile_steps, self.profile_by, taken)?;
        Ok(Some(Profiling { dir, options }))
    }

    /// A training that begins takes no earlier one's checkpoints and metrics away, unless it is told to.
    fn refuse_begun(&self, job: &Job) -> Result<(), Error> {
        let goes_on = self.resume || self.resume_from.is_some();
        if goes_on || self.overwrite { Ok(()) } else { checkpoint::refuse_begun(&job.output_dir) }
    }

    /// The checkpoint to go on from.
    fn checkpoint(&self, job: &Job, identity: &Identity) -> Result<Option<PathBuf>, Error> {
        if self.resume { checkpoint::newest(&job.output_dir, identity) } else { Ok(self.resume_from.clone()) }
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
    args.refuse_begun(&job).map_err(Exit::usage)?;
    args.profile(&job, 0).map_err(Exit::usage)?;
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
            let trainer = train(&job, &inputs, job.on_cpu(&inputs).map_err(Exit::usage)?, args)?;
            if let Some(peak) = peak_rss_bytes() {
                report_memory(&trainer, peak.saturating_sub(before), "measured above the start");
            }
        }
        Device::Cuda(ordinal) => {
            let backend = job.on_gpu(ordinal, &inputs).map_err(Exit::usage)?;
            let gpu = backend.device().gpu();
            let used = || gpu.memory().ok().map(|(free, total)| (total - free) as u64);
            let before = used();
            let trainer = train(&job, &inputs, backend, args)?;
            if let Some((before, after)) = before.zip(used()) {
                let what =
                    format!("taken on the device above {} MB of driver and libraries", before / 1_000_000);
                report_memory(&trainer, after.saturating_sub(before), &what);
            }
        }
    }
    Ok(())
}

fn train<B: Backend>(job: &Job, inputs: &Inputs, mut backend: B, args: &Args) -> Result<Trainer<B>, Exit> {
    let _taken = checkpoint::take(&job.output_dir).map_err(Exit::usage)?;
    // What a kill had left aside is in its place now.
    args.refuse_begun(job).map_err(Exit::usage)?;
    let about = backend.about();
    let identity = job.identity(inputs, &about.precision).map_err(Exit::usage)?;
    let from = args.checkpoint(job, &identity).map_err(Exit::usage)?;
    let first = from.as_ref().map_or(Ok(0), |dir| checkpoint::steps_of(dir, &identity));
    let profiling = args.profile(job, first.map_err(Exit::usage)?).map_err(Exit::usage)?;
    if let Some(Profiling { dir, options }) = &profiling {
        // A folder that cannot be made is told before the training, not behind it.
        std::fs::create_dir_all(dir).map_err(|e| Exit::usage(Error::io(dir, &e)))?;
        backend.profile(options).map_err(Exit::usage)?;
    }
    let chosen = job.choose(inputs, &backend).map_err(Exit::usage)?;
    eprintln!("recompute: {} ({})", chosen.level, chosen.why);
    let mut trainer = job.trainer(inputs, backend, chosen.level).map_err(Exit::usage)?;
    let mut progress = Progress::default();
    if let Some(dir) = &from {
        progress = resume(job, &mut trainer, dir, &identity).map_err(Exit::usage)?;
    }
    let batches = &inputs.batches;
    eprintln!("data: {}", inputs.recognised);
    eprintln!("{}", inputs.report);
    if let Some((held_out, report)) = &inputs.evaluation {
        eprintln!("held out: {report}; {} batches", held_out.steps());
    }
    let trained: usize = trainer.trainable().len();
    eprintln!("training {trained} of {} parameters for {} steps", trainer.total_params(), batches.steps());

    trainer.rehearse(batches).map_err(Exit::usage)?;
    if let Some((held_out, _)) = &inputs.evaluation {
        trainer.rehearse_evaluation(held_out).map_err(Exit::usage)?;
    }
    // The last thing that can be refused is behind: only now an earlier training is written over.
    if args.overwrite {
        checkpoint::clear(&job.output_dir).map_err(Exit::usage)?;
    }
    let metrics = job.metrics(&about.device, &about.precision);
    let mut session =
        Session::open(job, inputs, identity, progress, metrics, trainer.step()).map_err(Exit::usage)?;
    session.run(&mut trainer)?;

    let path = job.output_dir.join(trainer.trainable_file());
    trainer.check_finite().and_then(|()| trainer.save_update(&path)).map_err(Exit::failed)?;
    let lora = if let Method::Lora(lora) = &job.method { Some(trainer.update_settings(lora)) } else { None };
    folder::finish(&job.model.config, &inputs.beside, lora.as_ref(), &job.output_dir)
        .map_err(Exit::failed)?;
    eprintln!("saved {}", path.display());
    if let Some(Profiling { dir, .. }) = &profiling {
        write_profile(&mut trainer, dir).map_err(Exit::failed)?;
    }
    Ok(trainer)
}

/// Takes a checkpoint up.
fn resume<B: Backend>(
    job: &Job,
    trainer: &mut Trainer<B>,
    dir: &Path,
    identity: &Identity,
) -> Result<Progress, Error> {
    let Resumed { progress, same_products } = checkpoint::load(trainer, dir, identity)?;
    eprintln!("resumed from {}, after step {}", dir.display(), trainer.step());
    if !same_products {
        eprintln!(
            "note: the checkpoint's matrix products were chosen on another kind of GPU or with another cuBLASLt: \
             these may round otherwise, so the training goes on, but not to the bit"
        );
    }
    bring_best(job, &progress, dir)?;
    Ok(progress)
}

/// What is to be loaded in the end comes along where a training goes on in another folder.
fn bring_best(job: &Job, progress: &Progress, from: &Path) -> Result<(), Error> {
    let Some(best) = progress.best().filter(|_| job.load_best_model_at_end) else { return Ok(()) };
    let beside = from.parent().unwrap_or(Path::new(""));
    if !checkpoint::bring(best.step, beside, &job.output_dir)? {
        let missing = checkpoint::place(beside, best.step);
        let what = format!("the best checkpoint so far is not there: {}", missing.display());
        return Err(Error::new(what, "load_best_model_at_end")
            .hint("put it back, or set load_best_model_at_end: false to end with the last"));
    }
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
    if measured < planned / 2 {
        return eprintln!(
            "memory: {} MB planned, not measured: another program gave memory back meanwhile",
            planned / 1_000_000
        );
    }
    let share = 100.0 * planned as f64 / measured.max(1) as f64;
    let (planned, measured) = (planned / 1_000_000, measured / 1_000_000);
    eprintln!("memory: {planned} MB planned, {share:.1} % of {measured} MB {how}{host}");
}
