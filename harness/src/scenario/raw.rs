//! A scenario as written. Every unknown field is an error.

use chronibench_protocol::{
    audit::AuditArgs,
    data::Columns,
    record::Packing,
    spec::{Measure, PrecisionArgs, Recompute, Scheduler, TrainArgs},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use super::mock::{Behaviour, MockScript};
use super::{
    cheat::Cheat,
    located::{Ordered, Word},
};

/// Version of the scenario format.
pub const SCHEMA: &str = "chronibench.scenario/1";

/// What to train, with what, how often, and what to compare. Paths are relative to the scenario file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// `chronibench.scenario/1`.
    pub schema: Word,
    /// Short name, used in folder names: letters, digits, `-` and `.`.
    pub name: Word,
    /// One line.
    pub title: String,
    /// A paragraph for the report.
    #[serde(default)]
    pub description: String,
    /// Model and starting weights.
    pub model: RawModel,
    /// Data set and how it becomes samples.
    pub data: RawData,
    /// Optimizer and schedule of every case, unless an axis says otherwise.
    #[serde(default)]
    pub train: TrainArgs,
    /// Which steps are timed.
    pub measure: Measure,
    /// Trials of every case, each in its own process.
    pub trials: u32,
    /// Seconds after which a trial is killed.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
    /// Seconds after which a helper of the harness is ended, and the run with it: what prepares the inputs, measures how fast the machine
    /// multiplies, or evaluates weights. An hour when left out.
    #[serde(default = "default_helper_timeout")]
    pub helper_timeout_s: f64,
    /// How often a trial that a fault of the machine ended before its first timed step (a GPU held by somebody else, a lost file system) is begun again; every
    /// attempt is stored.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// Worker threads of every arm; all cores when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Where every arm trains: `cpu` (when left out), `cuda` or `cuda:N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Word>,
    /// Programs to compare.
    pub arms: Ordered<RawArm>,
    /// Axis → value name → settings; every arm runs every combination.
    pub matrix: Ordered<Ordered<Settings>>,
    /// When present, combinations that match none of these are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<Ordered<Word>>,
    /// Combinations that match one of these are left out: `arm`, or an axis, each with a value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Ordered<Word>>,
    /// Cases to run again with one seam at a time at its unfused variant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ablations: Vec<RawAblation>,
    /// Ratios that the report states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<RawComparison>,
    /// What is looked into beside, to tell that arms really trained; `{steps: 0}` leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditArgs>,
}

fn default_helper_timeout() -> f64 {
    3600.0
}

fn default_timeout() -> f64 {
    600.0
}

fn default_retries() -> u32 {
    1
}

/// Model and starting weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// Hugging Face `config.json`.
    pub config: Word,
    /// Hugging Face folder, or file of safetensors, with the starting weights; they are drawn without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Word>,
    /// Seed of starting weights that are drawn: the model's, and adapters'.
    #[serde(default)]
    pub init_seed: u64,
    /// Full fine-tuning given to the starting weights once, before any trial, shared by all arms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrain: Option<RawPretrain>,
}

/// A short training that turns random weights into a starting point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPretrain {
    /// Optimizer steps.
    pub steps: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Packed rows a step.
    pub per_device_train_batch_size: u32,
}

/// Data set and how it becomes samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawData {
    /// JSON Lines, JSON, CSV or Parquet file.
    pub path: Word,
    /// Hugging Face `tokenizer.json`, or the folder that it is in.
    pub tokenizer: Word,
    /// Shape of the records; recognised from the first one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Word>,
    /// Keys of the records that are not the usual ones.
    #[serde(default, skip_serializing_if = "Columns::is_default")]
    pub columns: Columns,
    /// From record to text: `chat`, `alpaca`, `plain`, `text`, or the one that suits the records (`auto`).
    pub template: Word,
    /// A Jinja file in place of the tokenizer's chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_path: Option<Word>,
    /// Variables that the chat template reads.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub chat_template_kwargs: Map<String, Value>,
    /// Longest sample kept, tokens; also the length of a packed row.
    pub max_length: u32,
    /// What happens to longer samples.
    #[serde(default)]
    pub overlong: Overlong,
    /// Only what follows the prompt is learned; so it is for records with a prompt when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_only_loss: Option<bool>,
    /// Only what the assistant says is learned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub assistant_only_loss: bool,
    /// Token behind every sample that no chat template wrote; the tokenizer's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// Token in empty slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token: Option<String>,
    /// Seed of the order of samples.
    #[serde(default)]
    pub seed: u64,
}

/// What happens to samples longer than `max_length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Cut at the end, and counted.
    #[default]
    Truncate,
    /// Left out, and counted.
    Refuse,
    /// All samples are joined end to end and cut every `max_length` tokens: rows without padding, whose samples see
    /// each other (TRL's `packing_strategy: wrapped`).
    Wrapped,
}

/// A program under comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawArm {
    /// Which program.
    pub runner: Runner,
    /// Seam → variant; `all` sets every seam first. For arms with interchangeable kernels.
    #[serde(default)]
    pub kernels: Ordered<Word>,
    /// Number formats; the arm's own when left out. For the native arm on a GPU.
    #[serde(default, skip_serializing_if = "PrecisionArgs::is_default")]
    pub precision: PrecisionArgs,
    /// What the native arm keeps from the forward to the backward pass; what memory has room for when left out.
    #[serde(default, skip_serializing_if = "Recompute::is_default")]
    pub recompute: Recompute,
    /// Inputs of the native arm's blocks wait for the backward pass in the host's memory; on a GPU alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
    /// Most that the native arm's plan of memory may come to, GB (10⁹ bytes); what is free when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_gb: Option<f64>,
    /// Settings of a rival's own; `chronibench env list NAME` shows them.
    #[serde(default)]
    pub options: Ordered<Value>,
    /// Script of a `mock` arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mock: Option<MockScript>,
    /// A lie that the native arm tells on a processor, to test the audits; never for a measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cheat: Option<Cheat>,
    /// Axis → value name → options: the arm is tried with every combination, and comparisons take the best.
    #[serde(default)]
    pub sweep: Ordered<Ordered<RawOptions>>,
}

/// What one value of a sweep's axis changes of an arm and of its cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawOptions {
    /// In place of what the matrix says, e.g. `packing` and `per_device_train_batch_size`.
    pub settings: Settings,
    /// Seam → variant, over the arm's own.
    pub kernels: Ordered<Word>,
    /// Number formats, over the arm's own.
    #[serde(skip_serializing_if = "PrecisionArgs::is_default")]
    pub precision: PrecisionArgs,
    /// A rival's own options, over the arm's.
    pub options: Ordered<Value>,
    /// In place of the arm's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// In place of the arm's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<bool>,
    /// Script of a `mock` arm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mock: Option<MockScript>,
}

/// Programs that the harness can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runner {
    /// The Chronicals trainer.
    Native,
    /// Plain autograd on candle-core.
    Candle,
    /// No training at all: plays a script, to test the harness itself.
    Mock,
    /// The same from Python, by the code that all rivals' adapters share.
    MockPython,
    /// Hugging Face Transformers on the processor.
    HfCpu,
    /// Hugging Face Transformers and TRL.
    Trl,
    /// Transformers with Liger's kernels.
    Liger,
    /// Unsloth.
    Unsloth,
    /// LLMQ, in C++ and CUDA.
    Llmq,
    /// The package `chronicals` of arXiv 2601.02609, as published.
    ChronicalsPy,
}

impl Runner {
    /// Name in records.
    pub fn name(self) -> &'static str {
        match self {
            Runner::Native => "native",
            Runner::Candle => "candle",
            Runner::Mock => "mock",
            Runner::MockPython => "mock-python",
            Runner::HfCpu => "hf-cpu",
            Runner::Trl => "trl",
            Runner::Liger => "liger",
            Runner::Unsloth => "unsloth",
            Runner::Llmq => "llmq",
            Runner::ChronicalsPy => "chronicals-py",
        }
    }
}

/// One flat set of settings, named as in Hugging Face `TrainingArguments`, PEFT `LoraConfig` and TRL `SFTConfig`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Full fine-tuning or LoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<MethodType>,
    /// LoRA rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<usize>,
    /// Numerator of LoRA's scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Projections with an adapter; all seven when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<Word>>,
    /// Rank-stabilised scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// LoRA+: learning rate of B over that of A.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
    /// How rows are filled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<Packing>,
    /// Rows of one micro-batch: samples without packing, bins with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_device_train_batch_size: Option<u32>,
    /// Micro-batches of one optimizer step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_accumulation_steps: Option<u32>,
    /// Peak learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Shape of the learning rate over the steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_scheduler_type: Option<Scheduler>,
    /// Steps of linear warm-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u32>,
    /// Decoupled weight decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Global gradient norm above which gradients are scaled down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Share of the target's probability spread over the vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing_factor: Option<f64>,
    /// Weight of the squared log-partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub z_loss: Option<f64>,
    /// Rows whose logits exist at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_chunk_rows: Option<u32>,
}

/// Which parameters train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodType {
    /// Every parameter.
    Full,
    /// Low-rank adapters.
    Lora,
}

/// A case to take apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAblation {
    /// Arm of the case, with every seam on.
    pub arm: Word,
    /// Axis → value: the case.
    pub case: Ordered<Word>,
    /// Seams to turn off, one case each; `all` is one case with every seam off. When left out: each seam that the
    /// method uses, and `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<Vec<Word>>,
    /// In which combinations.
    #[serde(default, skip_serializing_if = "AblationDesign::is_default")]
    pub design: AblationDesign,
    /// Orders of a sampled design.
    #[serde(default = "default_orders", skip_serializing_if = "is_default_orders")]
    pub orders: u32,
}

fn default_orders() -> u32 {
    4
}

fn is_default_orders(orders: &u32) -> bool {
    *orders == default_orders()
}

/// Which combinations of seams are turned off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AblationDesign {
    /// One at a time, and all.
    #[default]
    OneOff,
    /// Every combination: Shapley values and interactions, exactly.
    Factorial,
    /// The combinations that some random orders pass through: Shapley values, over these orders.
    Sampled,
}

impl AblationDesign {
    /// Nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A ratio that the report states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawComparison {
    /// What the reader is told.
    pub label: String,
    /// Case whose figure is divided, as `arm/value/value`.
    pub case: Word,
    /// Case it is divided by.
    pub against: Word,
    /// The least ratio hoped for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Differences between the two that are meant, e.g. `packing`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub declared_differences: Vec<String>,
}
