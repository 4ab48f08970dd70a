//! The specification of one trial, written by the harness and read by an arm.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{init::InitLora, patterns::Patterns};

/// Version of the protocol; an arm refuses any other.
pub const PROTOCOL: &str = "chronibench.protocol/1";

/// Everything one trial needs. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Always [`PROTOCOL`].
    pub protocol: String,
    /// Unique within a run, also the stem of the event file.
    pub trial_id: String,
    /// Name of the arm as the scenario calls it.
    pub arm: String,
    /// Model and the weights that training starts from.
    pub model: ModelSpec,
    /// Tokenised samples and the batches to take from them.
    pub data: DataSpec,
    /// Full fine-tuning or LoRA.
    pub method: Method,
    /// Optimizer and schedule.
    pub train: TrainArgs,
    /// Which steps are timed, and in what windows.
    pub measure: Measure,
    /// Seam → variant, for arms with interchangeable kernels; empty otherwise.
    #[serde(default)]
    pub kernels: BTreeMap<String, String>,
    /// Worker threads; `None` takes every core.
    #[serde(default)]
    pub threads: Option<usize>,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Settings of an adapter's own: every one that it has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, serde_json::Value>,
    /// Number formats, for arms that have a choice.
    #[serde(default, skip_serializing_if = "PrecisionArgs::is_default")]
    pub precision: PrecisionArgs,
    /// What is kept from the forward to the backward pass, for arms that can make it again.
    #[serde(default, skip_serializing_if = "Recompute::is_default")]
    pub recompute: Recompute,
    /// Inputs of blocks wait for the backward pass in the host's memory, for arms on a GPU that can do so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
    /// Most that the plan of memory may come to, GB (10⁹ bytes); what is free when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_gb: Option<f64>,
    /// Where to write all model and adapter weights after the last step (untimed), if asked.
    #[serde(default)]
    pub save_weights: Option<PathBuf>,
    /// The first steps of the schedule alone, to be looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditTrial>,
}

impl Spec {
    /// The steps that really run: those of an audit are all untimed. The schedule is that of [`Spec::measure`] all the same.
    pub fn to_run(&self) -> Measure {
        match &self.audit {
            None => self.measure.clone(),
            Some(audit) => Measure { untimed_steps: audit.steps, timed_steps: 0, window_steps: 1 },
        }
    }
}

/// A trial that is no measurement: its weights tell what its steps did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditTrial {
    /// Steps to run, from the first of the schedule on, all untimed and without windows.
    pub steps: u32,
    /// Where to write all weights, as in [`Spec::save_weights`], after the first step whose learning rate is not 0.
    pub first_weights: PathBuf,
}

/// Number formats of a training; what is left out is the arm's own choice, which its `hello` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrecisionArgs {
    /// Of activations, and of weights as products read them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Of what the optimizer keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<States>,
}

impl PrecisionArgs {
    /// Nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// bfloat16, with sums in f32.
    Bf16,
    /// For debugging, and for comparison with a processor.
    F32,
}

/// What AdamW keeps between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum States {
    /// f32 master weights and moments.
    #[serde(rename = "f32")]
    F32,
    /// bf16 weights and moments, rounded stochastically; no master weights.
    #[serde(rename = "bf16")]
    Bf16,
    /// f32 master weights, 8-bit moments.
    #[serde(rename = "8bit")]
    Eight,
}

/// What a training keeps from the forward to the backward pass, block by block; the rest is made again there, by the same
/// kernels from the same inputs. Each level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// The first of the others that fits memory.
    #[default]
    Auto,
    /// Everything is kept.
    None,
    /// SwiGLU's output is made again.
    Swiglu,
    /// So are the normalised inputs.
    Norm,
    /// So are gate and up, by one more product.
    Ffn,
    /// The residual stream at each block's entry is kept alone; the block's forward pass runs again.
    Block,
}

impl Recompute {
    /// Nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Architecture and starting point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Hugging Face `config.json`.
    pub config: PathBuf,
    /// f32 safetensors with Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, …); a tied head has no
    /// `lm_head.weight`.
    pub weights: PathBuf,
}

/// Tokenised samples and batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// A [`crate::TokenStore`] on disk.
    pub tokens: PathBuf,
    /// A [`crate::BatchPlan`] on disk (JSON).
    pub plan: PathBuf,
}

/// Which parameters train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Every parameter.
    Full {},
    /// Low-rank adapters on a frozen base.
    Lora(LoraArgs),
}

/// LoRA settings, named as in PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraArgs {
    /// Rank of every adapter.
    pub r: usize,
    /// Numerator of the scaling: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Projections that get an adapter: any of `q_proj k_proj v_proj o_proj gate_proj up_proj down_proj`.
    #[serde(default = "all_targets")]
    pub target_modules: Vec<String>,
    /// Ranks of modules that have another than `r`. A key is a module's name (`model.layers.0.self_attn.q_proj`), its end behind a dot
    /// (`q_proj`), or a regular expression for either; of several that match, the first counts.
    #[serde(default, skip_serializing_if = "Patterns::is_empty")]
    pub rank_pattern: Patterns<usize>,
    /// The same for `lora_alpha`.
    #[serde(default, skip_serializing_if = "Patterns::is_empty")]
    pub alpha_pattern: Patterns<f64>,
    /// Rank-stabilised scaling (arXiv 2312.03732).
    #[serde(default)]
    pub use_rslora: bool,
    /// DoRA (arXiv 2402.09353): the magnitude of every output of a weight trains besides its direction.
    #[serde(default, skip_serializing_if = "is_false")]
    pub use_dora: bool,
    /// What the adapters begin as: `true` (A random, B zero), `pissa` (the largest singular values of the weight, found), or
    /// `pissa_niter_N` (the same by N iterations).
    #[serde(default, skip_serializing_if = "InitLora::is_default")]
    pub init_lora_weights: InitLora,
    /// LoRA+ (arXiv 2402.12354): learning rate of B over that of A; 1 is plain LoRA.
    #[serde(default = "one")]
    pub loraplus_lr_ratio: f64,
    /// Starting adapters (safetensors, PEFT names: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`).
    /// The harness fills this in; a scenario leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub adapter_weights: Option<PathBuf>,
}

impl LoraArgs {
    /// Plain LoRA of a rank and an alpha, on every projection.
    pub fn of(r: usize, lora_alpha: f64) -> Self {
        Self {
            r,
            lora_alpha,
            target_modules: all_targets(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            use_rslora: false,
            use_dora: false,
            init_lora_weights: InitLora::Kaiming,
            loraplus_lr_ratio: one(),
            adapter_weights: None,
        }
    }
}

/// The seven projections, in model order.
pub const LORA_TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn all_targets() -> Vec<String> {
    LORA_TARGETS.map(String::from).to_vec()
}

fn is_false(setting: &bool) -> bool {
    !setting
}

fn one() -> f64 {
    1.0
}

/// Optimizer and schedule, named as in Hugging Face `TrainingArguments`.
///
/// The optimizer is AdamW with decoupled weight decay, applied to matrices only (not to norms and biases). The
/// gradient of a step is the mean over the loss tokens of all its micro-batches, clipped by its global norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainArgs {
    /// Peak learning rate (of LoRA's A under LoRA+).
    pub learning_rate: f64,
    /// `constant`, `linear` (to zero) or `cosine` (to zero); each after the warm-up.
    pub lr_scheduler_type: Scheduler,
    /// Steps over which the learning rate rises linearly; step 0 runs at `1/(warmup_steps+1)` of the peak, never at 0.
    pub warmup_steps: u32,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// First-moment decay.
    pub adam_beta1: f64,
    /// Second-moment decay.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Share of the target's probability spread evenly over the vocabulary.
    pub label_smoothing_factor: f64,
    /// Weight of the squared log-partition (z-loss).
    pub z_loss: f64,
    /// Rows whose logits exist at a time in the fused linear cross-entropy: fewer take less memory and read the head's weight and
    /// gradient more often. Unset: as many as fit 1.25 GiB on a GPU, a cache on a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_chunk_rows: Option<u32>,
}

impl Default for TrainArgs {
    fn default() -> Self {
        Self {
            learning_rate: 2e-5,
            lr_scheduler_type: Scheduler::Linear,
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            label_smoothing_factor: 0.0,
            z_loss: 0.0,
            loss_chunk_rows: None,
        }
    }
}

impl TrainArgs {
    /// Learning-rate factor in (0, 1] of step `step` (from 0) out of `total` optimizer steps.
    ///
    /// Defined here because every arm must follow the same schedule: linear warm-up over `warmup_steps`, then the
    /// decay reaches zero one step *after* the last, so that no step is wasted at rate 0.
    pub fn lr_factor(&self, step: u32, total: u32) -> f64 {
        if step < self.warmup_steps {
            return (f64::from(step) + 1.0) / (f64::from(self.warmup_steps) + 1.0);
        }
        let progress =
            f64::from(step - self.warmup_steps) / f64::from(total.saturating_sub(self.warmup_steps).max(1));
        match self.lr_scheduler_type {
            Scheduler::Constant => 1.0,
            Scheduler::Linear => 1.0 - progress,
            Scheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

/// Shape of the learning rate over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// The peak throughout.
    Constant,
    /// A straight line to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
}

/// Which steps are timed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// Steps run first and left out of every throughput figure.
    pub untimed_steps: u32,
    /// Steps that are timed; a multiple of `window_steps`.
    pub timed_steps: u32,
    /// Steps in one window; the clock is read at a window's two edges only.
    pub window_steps: u32,
}

impl Measure {
    /// Optimizer steps in the trial.
    pub fn total_steps(&self) -> u32 {
        self.untimed_steps + self.timed_steps
    }
}
