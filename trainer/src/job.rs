//! A training described by a YAML file, for use without the harness.

mod data;
mod settings;

use std::path::{Path, PathBuf};

use chronibench_protocol::{
    TokenStore,
    digest::sha256_hex,
    event::Precision,
    init::InitLora,
    record::BatchArgs,
    spec::{LoraArgs, Method, PrecisionArgs, Recompute, TrainArgs},
};
use chronicals_data::{
    dataset::{Dataset, Recognised},
    plan::{build_plan, evaluation_plan},
    tokenize::TokenizeReport,
};
use chronicals_kernels::{KernelPlan, gpu::machine::Cuda};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    backend::{
        Backend,
        cpu::CpuBackend,
        cuda::{CudaBackend, Options},
        loss_options,
    },
    checkpoint,
    config::ModelConfig,
    device::Device,
    error::Error,
    fit::Batches,
    formats::{
        self,
        beside::Beside,
        hub,
        peft::{self, AdapterConfig},
    },
    lora,
    metrics::Report,
    model::{Capacity, Level, Setup},
    room::{self, Asked, Choice},
    trainer::Trainer,
};
pub use data::{Counter, JobData, told};

/// The file's contents. Paths are relative to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Architecture and starting weights.
    pub model: JobModel,
    /// What to learn from.
    pub data: JobData,
    /// Full fine-tuning, or LoRA.
    #[serde(default = "full")]
    pub method: Method,
    /// Batch geometry.
    pub batch: BatchArgs,
    /// Optimizer and schedule.
    #[serde(default)]
    pub train: TrainArgs,
    /// Optimizer steps.
    pub max_steps: u32,
    /// Seed of the order of samples and of whatever is drawn.
    #[serde(default)]
    pub seed: u64,
    /// Seam → variant.
    #[serde(default)]
    pub kernels: std::collections::BTreeMap<String, String>,
    /// `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Number formats; the device's own when left out.
    #[serde(default)]
    pub precision: PrecisionArgs,
    /// What the backward pass makes again; what memory has room for when left out.
    #[serde(default)]
    pub recompute: Recompute,
    /// Blocks' entries wait for the backward pass in the host's memory; on a GPU alone.
    #[serde(default)]
    pub offload: bool,
    /// Most that the plan of memory may come to, GB (10⁹ bytes); what is free when left out.
    #[serde(default)]
    pub memory_limit_gb: Option<f64>,
    /// Worker threads; all cores when left out.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Folder for weights, metrics, checkpoints and a copy of the config.
    pub output_dir: PathBuf,
    /// Steps that a line of the metrics is of: its loss is their mean.
    #[serde(default = "one")]
    pub logging_steps: u32,
    /// Metrics besides `metrics.jsonl`: `csv`, `tensorboard`.
    #[serde(default = "all_reports")]
    pub report_to: Vec<Report>,
    /// TFLOP/s that the device can do at most, to tell MFU; those of known GPUs when left out.
    #[serde(default)]
    pub peak_tflops: Option<f64>,
    /// Steps between evaluations of what `data` holds out; only after the last when left out.
    #[serde(default)]
    pub eval_steps: Option<u32>,
    /// Evaluate before the first step too.
    #[serde(default)]
    pub eval_on_start: bool,
    /// Steps between checkpoints; none are written when left out.
    #[serde(default)]
    pub save_steps: Option<u32>,
    /// How many checkpoints are kept, the newest; all when left out.
    #[serde(default)]
    pub save_total_limit: Option<u32>,
    /// A checkpoint is written at every evaluation that is the best so far and kept whatever the limit, and what is saved in the end
    /// is the best.
    #[serde(default)]
    pub load_best_model_at_end: bool,
    /// Evaluations without improvement after which the training ends; it never does for that when left out.
    #[serde(default)]
    pub early_stopping_patience: Option<u32>,
    /// By how much the held-out loss must fall to be an improvement.
    #[serde(default)]
    pub early_stopping_threshold: f64,
    /// Nats by which the running mean of the loss may rise above its lowest before the training is given up; 0 for any.
    #[serde(default = "three")]
    pub max_loss_rise: f64,
}

/// Architecture and starting weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobModel {
    /// Hugging Face folder of the model to start from, or a repository of the hub: config, weights and tokenizer.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Hugging Face `config.json`, in place of a folder.
    #[serde(default)]
    pub config: PathBuf,
    /// Weights to start from, a file or a folder; those of the folder, or drawn from the seed, when left out.
    #[serde(default)]
    pub weights: Option<PathBuf>,
}

impl JobModel {
    /// Paths as seen from where the job's file is not; a folder's files in their places.
    fn resolve(&mut self, dir: &Path) -> Result<(), Error> {
        self.weights.iter_mut().for_each(|p| *p = dir.join(&*p));
        match (&self.path, self.config.as_os_str().is_empty()) {
            (None, false) => self.config = dir.join(&self.config),
            (None, true) => {
                return Err(Error::new("no model is named", "model")
                    .hint("give `path`, a Hugging Face folder, or `config`, a config.json"));
            }
            (Some(_), false) => {
                return Err(Error::new("both path and config are set", "model").hint("keep one of the two"));
            }
            (Some(path), true) => {
                let beside = dir.join(path);
                let folder = if beside.exists() { beside } else { hub::resolve(path)? };
                self.config = folder.join("config.json");
                self.weights.get_or_insert(folder);
            }
        }
        Ok(())
    }
}

fn full() -> Method {
    Method::Full {}
}

fn one() -> u32 {
    1
}

fn all_reports() -> Vec<Report> {
    Report::ALL.to_vec()
}

/// Twentyfold perplexity.
fn three() -> f64 {
    3.0
}

fn cpu() -> String {
    "cpu".into()
}

/// A job's inputs, read and checked.
pub struct Inputs {
    /// Architecture.
    pub config: ModelConfig,
    /// Batches of every step.
    pub batches: Batches,
    /// What became of the samples.
    pub report: TokenizeReport,
    /// Batches of one evaluation, a step each, and what became of the samples; `None` where nothing is held out.
    pub evaluation: Option<(Batches, TokenizeReport)>,
    /// What the data turned out to be.
    pub recognised: Recognised,
    /// What goes beside the weights: the tokenizer as it was used.
    pub beside: Beside,
    /// Where it runs.
    pub device: Device,
    /// Which kernels run.
    pub kernels: KernelPlan,
}

impl Inputs {
    /// The largest micro-batch, of training or of evaluation.
    pub fn capacity(&self) -> Capacity {
        let (train, evaluation) = (self.batches.capacity(), self.evaluation.as_ref());
        let other = evaluation.map_or(train, |(batches, _)| batches.capacity());
        Capacity { tokens: train.tokens.max(other.tokens), row_slots: train.row_slots.max(other.row_slots) }
    }
}

impl Job {
    /// Reads a job.
    ///
    /// # Errors
    /// The file cannot be read, or a field is unknown, missing or of the wrong kind (with its line and column).
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        let mut job: Self = serde_saphyr::from_str(&text).map_err(|e| {
            // It says by itself that it is one.
            let said = e.to_string();
            Error::new(said.strip_prefix("error: ").unwrap_or(&said), path.display().to_string())
                .hint("see `chronicals train --help` for an example")
        })?;
        let dir = path.parent().unwrap_or(Path::new(""));
        job.model.resolve(dir)?;
        std::iter::once(&mut job.output_dir).chain(job.data.paths()).for_each(|p| *p = dir.join(&*p));
        // A model's folder has its tokenizer too.
        let folder = job.model.config.parent().unwrap_or(Path::new("")).to_path_buf();
        job.data.tokenizer.get_or_insert(folder);
        if let Method::Lora(l) = &mut job.method {
            l.adapter_weights.iter_mut().for_each(|p| *p = dir.join(&*p));
        }
        Ok(job)
    }

    /// Reads the config and tokenises the data.
    ///
    /// # Errors
    /// Whatever is wrong with config, data, tokenizer or settings.
    pub fn inputs(&self) -> Result<Inputs, Error> {
        self.check_places()?;
        let device: Device = self.device.parse()?;
        let config = ModelConfig::load(&self.model.config)?;
        let kernels = device.kernels(&self.kernels, "kernels")?;
        let tokenizer = self.data.tokenizer()?;
        let data = self.data.dataset(&tokenizer, self.seed)?;
        self.check_context(&data, &config)?;
        if let Method::Lora(lora) = &self.method {
            lora::check_patterns(&config, lora)?;
        }
        let folder = self.model.config.parent().unwrap_or(Path::new(""));
        let beside = Beside::of(&tokenizer, &self.data.tokenizer_args(), folder)?;
        let Dataset { train, report, validation, recognised } = data;
        let at = tokenizer.path().display().to_string();
        let (max_length, pad) = (self.data.max_length, tokenizer.pad().id);
        let plan = build_plan(&train.lengths(), &self.batch, max_length, pad, self.seed, self.max_steps)
            .map_err(|e| told(&e, Path::new("batch")))?;
        let batches = Batches::new(train, plan, &config, &at)?;
        let evaluation = validation.map(|(samples, report)| {
            let (packing, rows) = (self.batch.packing, self.batch.per_device_train_batch_size);
            let plan = evaluation_plan(&samples.lengths(), packing, rows, max_length, pad)
                .map_err(|e| told(&e, Path::new("batch")))?;
            Ok((Batches::new(samples, plan, &config, &at)?, report))
        });
        let evaluation = evaluation.transpose()?;
        self.check_stopping(evaluation.is_some())?;
        Ok(Inputs { config, batches, report, evaluation, recognised, beside, device, kernels })
    }

    /// What must be equal for a checkpoint to be taken up: everything that decides a step.
    ///
    /// # Errors
    /// The weights that stay as they are cannot be read.
    pub fn identity(&self, i: &Inputs, precision: &Precision) -> Result<checkpoint::Identity, Error> {
        let plan = serde_json::to_vec(i.batches.plan()).expect("plain data");
        let mut method = self.method.clone();
        let frozen = match &mut method {
            // The checkpoint has whatever trains, wherever that began.
            Method::Full {} => None,
            Method::Lora(lora) => {
                lora.adapter_weights = None;
                self.model.weights.as_deref()
            }
        };
        let frozen = frozen.map(formats::sha256).transpose()?;
        let named = [
            ("max_steps", json!(self.max_steps)),
            ("seed", json!(self.seed)),
            ("method", json!(method)),
            ("train", json!(self.train)),
            ("precision", json!(precision)),
            ("model", json!(format!("{:?}", i.config))),
            ("frozen weights", json!(frozen)),
            ("tokens", json!(i.batches.tokens().sha256())),
            ("batches", json!(sha256_hex(&plan))),
            ("kernels", json!(format!("{:?}", i.kernels))),
            ("held-out tokens", json!(i.evaluation.as_ref().map(|(batches, _)| batches.tokens().sha256()))),
        ];
        Ok(named.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }

    /// The processor's backend.
    ///
    /// # Errors
    /// Number formats that it does not have.
    pub fn on_cpu(&self, i: &Inputs) -> Result<CpuBackend, Error> {
        let backend = CpuBackend::new(&i.config, i.capacity(), i.kernels, loss_options(&self.train));
        backend.with(self.precision, "precision", self.seed as u32)
    }

    /// The backend of a GPU.
    ///
    /// # Errors
    /// There is no such GPU, a library is missing, or there are no kernels for the model or the plan.
    pub fn on_gpu(&self, ordinal: usize, i: &Inputs) -> Result<CudaBackend<Cuda>, Error> {
        let options = Options {
            config: &i.config,
            capacity: i.capacity(),
            plan: i.kernels,
            loss: loss_options(&self.train),
            precision: self.precision,
            seed: self.seed as u32,
        };
        CudaBackend::open(ordinal, &options)
    }

    fn setup<'a>(&'a self, i: &'a Inputs, recompute: Level) -> Setup<'a> {
        let (config, method, capacity) = (&i.config, &self.method, i.capacity());
        Setup { config, method, capacity, plan: i.kernels, recompute, offload: self.offload }
    }

    /// What the backward pass makes again, before anything is taken.
    ///
    /// # Errors
    /// As [`room::choose`].
    pub fn choose<B: Backend>(&self, i: &Inputs, backend: &B) -> Result<Choice, Error> {
        let asked =
            Asked { recompute: self.recompute, offload: self.offload, limit_gb: self.memory_limit_gb };
        room::choose(backend, &self.setup(i, Level::None), asked)
    }

    /// Takes all memory, and loads or draws the parameters.
    ///
    /// # Errors
    /// Whatever is wrong with weights or settings, or a device without room.
    pub fn trainer<B: Backend>(&self, i: &Inputs, backend: B, recompute: Level) -> Result<Trainer<B>, Error> {
        let config = &i.config;
        let setup = self.setup(i, recompute);
        let mut trainer = Trainer::new(backend, &setup, &self.train, self.max_steps)?;
        match &self.model.weights {
            Some(path) => {
                trainer.load_weights(path)?;
                trainer.init_adapters(config, self.seed)?;
            }
            None => trainer.init(config, self.seed)?,
        }
        let Method::Lora(l) = &self.method else { return Ok(trainer) };
        if let InitLora::Pissa { niter } = l.init_lora_weights {
            trainer.init_pissa(config, l, niter, self.seed)?;
        }
        if let Some(path) = &l.adapter_weights {
            check_adapter(l, path)?;
            trainer.load_adapters(path)?;
        }
        Ok(trainer)
    }

    /// No sample is longer than the positions that the model was made for.
    fn check_context(&self, data: &Dataset, config: &ModelConfig) -> Result<(), Error> {
        let lengths = |store: &TokenStore| store.lengths().into_iter().max().unwrap_or(0);
        let held_out = data.validation.as_ref().map_or(0, |(store, _)| lengths(store));
        let longest = lengths(&data.train).max(held_out);
        let context = config.max_positions;
        if longest <= context {
            return Ok(());
        }
        let what = format!("a sample has {longest} tokens, the model has {context} positions");
        Err(Error::new(what, self.data.path.display().to_string()).hint(format!(
            "set data.max_length to {context} or less: longer samples are then cut, or left out with overlong: refuse"
        )))
    }
}

/// An adapter's folder says how it is meant, which must be how it is used.
fn check_adapter(lora: &LoraArgs, path: &Path) -> Result<(), Error> {
    if !path.join(peft::CONFIG).exists() {
        return Ok(());
    }
    let theirs = AdapterConfig::load(path)?;
    let rows = [
        ("r", json!(theirs.r), json!(lora.r)),
        ("lora_alpha", json!(theirs.lora_alpha), json!(lora.lora_alpha)),
        ("rank_pattern", json!(theirs.rank_pattern), json!(lora.rank_pattern)),
        ("alpha_pattern", json!(theirs.alpha_pattern), json!(lora.alpha_pattern)),
        ("use_rslora", json!(theirs.use_rslora), json!(lora.use_rslora)),
        ("use_dora", json!(theirs.use_dora), json!(lora.use_dora)),
    ];
    match rows.into_iter().find(|(_, theirs, ours)| theirs != ours) {
        None => Ok(()),
        Some((name, theirs, ours)) => {
            let what = format!("the adapter has {name} {theirs}, the method has {ours}");
            Err(Error::new(what, path.display().to_string())
                .hint(format!("set method.{name} to the adapter's")))
        }
    }
}
