//! A training described by a YAML file, for use without the harness.

use std::path::{Path, PathBuf};

use chronibench_protocol::{
    TokenStore,
    digest::{sha256_hex, sha256_of_file},
    event::Precision,
    record::BatchArgs,
    spec::{Method, PrecisionArgs, Recompute, TrainArgs},
};
use chronicals_data::{
    plan::build_plan,
    template::TemplateError,
    tokenize::{Overlong, TokenizeArgs, TokenizeReport, tokenize_file},
    tokenizer::{SpecialTokenNames, TextTokenizer},
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
    device::{Device, check_cpu_precision},
    error::Error,
    fit::Batches,
    model::{Level, Setup},
    room::{self, Asked, Choice},
    trainer::Trainer,
};

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
    /// Most that the plan of memory may come to, GB (10⁹ bytes); what is free when left out.
    #[serde(default)]
    pub memory_limit_gb: Option<f64>,
    /// Worker threads; all cores when left out.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Folder for weights, metrics, checkpoints and a copy of the config.
    pub output_dir: PathBuf,
    /// Steps between checkpoints; none are written when left out.
    #[serde(default)]
    pub save_steps: Option<u32>,
    /// How many checkpoints are kept, the newest; all when left out.
    #[serde(default)]
    pub save_total_limit: Option<u32>,
}

/// Architecture and starting weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobModel {
    /// Hugging Face `config.json`.
    pub config: PathBuf,
    /// safetensors to start from; drawn from the seed when left out.
    #[serde(default)]
    pub weights: Option<PathBuf>,
}

/// What to learn from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobData {
    /// JSONL file.
    pub path: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Prompt template.
    #[serde(default = "alpaca")]
    pub template: String,
    /// Longest sample, tokens.
    pub max_length: u32,
    /// What happens to longer ones.
    #[serde(default = "truncate")]
    pub overlong: Overlong,
    /// Learn the response only.
    #[serde(default)]
    pub completion_only_loss: bool,
}

fn full() -> Method {
    Method::Full {}
}

fn cpu() -> String {
    "cpu".into()
}

fn truncate() -> Overlong {
    Overlong::Truncate
}

fn alpaca() -> String {
    "alpaca".into()
}

/// A job's inputs, read and checked.
pub struct Inputs {
    /// Architecture.
    pub config: ModelConfig,
    /// Batches of every step.
    pub batches: Batches,
    /// What became of the samples.
    pub report: TokenizeReport,
    /// Where it runs.
    pub device: Device,
    /// Which kernels run.
    pub kernels: KernelPlan,
}

impl Job {
    /// Reads a job.
    ///
    /// # Errors
    /// The file cannot be read, or a field is unknown, missing or of the wrong kind (with its line and column).
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        let mut job: Self = serde_saphyr::from_str(&text).map_err(|e| {
            Error::new(e.to_string(), path.display().to_string())
                .hint("see `chronicals train --help` for an example")
        })?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let paths = [&mut job.model.config, &mut job.data.path, &mut job.data.tokenizer, &mut job.output_dir];
        paths.into_iter().chain(&mut job.model.weights).for_each(|p| *p = dir.join(&*p));
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
        let device: Device = self.device.parse()?;
        let config = ModelConfig::load(&self.model.config)?;
        let kernels = device.kernels(&self.kernels, "kernels")?;
        let (batches, report) = self.batches(&config)?;
        Ok(Inputs { config, batches, report, device, kernels })
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
        let frozen = frozen.map(|path| sha256_of_file(path).map_err(|e| Error::io(path, &e))).transpose()?;
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
        ];
        Ok(named.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }

    /// The processor's backend.
    ///
    /// # Errors
    /// Number formats that it does not have.
    pub fn on_cpu(&self, i: &Inputs) -> Result<CpuBackend, Error> {
        check_cpu_precision(self.precision, "precision")?;
        Ok(CpuBackend::new(&i.config, i.batches.capacity(), i.kernels, loss_options(&self.train)))
    }

    /// The backend of a GPU.
    ///
    /// # Errors
    /// There is no such GPU, a library is missing, or there are no kernels for the model or the plan.
    pub fn on_gpu(&self, ordinal: usize, i: &Inputs) -> Result<CudaBackend<Cuda>, Error> {
        let options = Options {
            config: &i.config,
            capacity: i.batches.capacity(),
            plan: i.kernels,
            loss: loss_options(&self.train),
            precision: self.precision,
            seed: self.seed as u32,
        };
        CudaBackend::open(ordinal, &options)
    }

    fn setup<'a>(&'a self, i: &'a Inputs, recompute: Level) -> Setup<'a> {
        let (config, method, capacity) = (&i.config, &self.method, i.batches.capacity());
        Setup { config, method, capacity, plan: i.kernels, recompute }
    }

    /// What the backward pass makes again, before anything is taken.
    ///
    /// # Errors
    /// As [`room::choose`].
    pub fn choose<B: Backend>(&self, i: &Inputs, backend: &B) -> Result<Choice, Error> {
        let asked = Asked { recompute: self.recompute, limit_gb: self.memory_limit_gb };
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
        if let Method::Lora(l) = &self.method
            && let Some(path) = &l.adapter_weights
        {
            trainer.load_adapters(path)?;
        }
        Ok(trainer)
    }

    fn batches(&self, config: &ModelConfig) -> Result<(Batches, TokenizeReport), Error> {
        let (tokens, report, pad) = self.data.tokenize()?;
        let plan =
            build_plan(&tokens.lengths(), &self.batch, self.data.max_length, pad, self.seed, self.max_steps)
                .map_err(|e| Error::new(e.to_string(), "batch"))?;
        let at = self.data.tokenizer.display().to_string();
        Ok((Batches::new(tokens, plan, config, &at)?, report))
    }
}

impl JobData {
    /// Token ids, what became of the samples, and the padding id.
    ///
    /// # Errors
    /// A bad record, tokenizer or template.
    pub fn tokenize(&self) -> Result<(TokenStore, TokenizeReport, u32), Error> {
        let tokenizer = TextTokenizer::load(&self.tokenizer, &SpecialTokenNames::default())
            .map_err(|e| Error::new(e.to_string(), self.tokenizer.display().to_string()))?;
        let args = TokenizeArgs {
            template: self
                .template
                .parse()
                .map_err(|e: TemplateError| Error::new(e.to_string(), "data.template"))?,
            max_length: self.max_length,
            overlong: self.overlong,
            completion_only_loss: self.completion_only_loss,
        };
        let (tokens, report) = tokenize_file(&self.path, &tokenizer, &args)
            .map_err(|e| Error::new(e.to_string(), self.path.display().to_string()))?;
        Ok((tokens, report, tokenizer.pad().id))
    }
}
