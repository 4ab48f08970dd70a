//! What the harness stores: one JSONL file a trial, from which every report is rebuilt.
//!
//! A stored trial begins with [`Line::Trial`], then holds the arm's events and the samples in order of arrival, and
//! ends with [`Line::Ledger`], [`Line::Weights`], [`Line::Audit`] and [`Line::Exit`]. Every attempt is stored, failures included.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::data::ResolvedData;
use crate::{
    audit::{AuditArgs, Findings},
    event::{Event, TensorInfo, TokenCounts},
    kernels::KernelHeader,
    spec::Spec,
};

/// Version of the stored lines.
pub const SCHEMA: &str = "chronibench.trial/1";

/// One line of `events/<trial>.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // a trial has few lines, and an event's are most of them
pub enum Line {
    /// First line: what was asked, and what the harness expects to see.
    Trial(Box<TrialHeader>),
    /// First line of a trial of kernels.
    Kernels(Box<KernelHeader>),
    /// An event of the arm, as received.
    Event {
        /// Nanoseconds since the trial was spawned, on the harness's clock.
        recv_ns: u64,
        /// The event.
        event: Event,
    },
    /// A line of the arm's event file that was no event.
    Garbage {
        /// Nanoseconds since the spawn.
        recv_ns: u64,
        /// Its first 200 characters.
        text: String,
    },
    /// A look at the process and the machine.
    Sample(Sample),
    /// The harness's own count of every step, beside the arm's.
    Ledger {
        /// One entry a step event.
        steps: Vec<LedgerStep>,
    },
    /// The harness's comparison of the weights before and after.
    Weights {
        /// One entry a tensor of either side.
        tensors: Vec<TensorChange>,
    },
    /// What the harness found out beside.
    Audit(Box<Findings>),
    /// Last line: how the process ended.
    Exit(Exit),
}

/// Head of a stored trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialHeader {
    /// [`SCHEMA`].
    pub schema: String,
    /// Case of the scenario, e.g. `chronicals/full/packed`.
    pub case: String,
    /// Which repetition of the case, from 0.
    pub round: u32,
    /// Position in the run's order, from 0.
    pub position: u32,
    /// Wall-clock start, RFC 3339.
    pub started_at: String,
    /// The specification given to the arm.
    pub spec: Spec,
    /// The trainable set that this scenario demands.
    pub expected_trainable: Vec<TensorInfo>,
    /// Hash of the token store.
    pub tokens_sha256: String,
    /// Size of the model, for the FLOP model.
    pub model: ModelShape,
    /// How often this trial was begun before, and ended by a fault of the machine.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// What kept the GPU from being idle when the trial began, after waiting for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_not_idle: Option<String>,
    /// The adapter and the environment of a rival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<RivalRecord>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// What of a rival's program the harness knows by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RivalRecord {
    /// Hash of the adapter's files.
    pub adapter_sha256: String,
    /// Hash of the lock of its environment.
    pub lock_sha256: String,
    /// How that was made: `venv`, `bundle`, `reuse`, or `path` for Python alone.
    pub environment: String,
}

/// The numbers of a model that FLOP and memory models need.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Transformer blocks.
    pub layers: u64,
    /// Query heads × head dimension.
    pub attention_width: u64,
    /// Elements of the weights used in matrix products of the blocks.
    pub block_matmul_params: u64,
    /// Elements of the LM head.
    pub head_params: u64,
    /// Elements of all parameters without adapters, tied tensors once.
    pub total_params: u64,
}

/// One look at a running trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds since the spawn.
    pub t_ns: u64,
    /// Resident set of the arm's process tree, bytes.
    pub rss_bytes: u64,
    /// Processor use of the arm's process tree, percent of one core.
    pub cpu_percent: f32,
    /// Processor use of the whole machine, percent of all cores.
    pub machine_cpu_percent: f32,
    /// GPU readings where a GPU exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSample>,
}

/// One look at a GPU through NVML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Memory used by the arm's processes, bytes.
    pub process_bytes: u64,
    /// Memory used on the device, bytes.
    pub device_bytes: u64,
    /// Board power, milliwatts.
    pub power_mw: u32,
    /// Energy counter, millijoules.
    pub energy_mj: u64,
    /// SM clock, MHz.
    pub sm_mhz: u32,
    /// Temperature, °C.
    pub temp_c: u32,
    /// NVML's throttle-reason bits.
    pub throttle_mask: u64,
}

/// A step as the arm reported it and as the harness recounted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStep {
    /// Step index.
    pub step: u32,
    /// The arm's digest equals the one of the harness's own tokens.
    pub digest_ok: bool,
    /// Counted by the harness.
    pub counted: TokenCounts,
    /// Reported by the arm.
    pub reported: TokenCounts,
}

/// A tensor before and after training, read by the harness from the files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorChange {
    /// Hugging Face or PEFT name.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Present before, after, or both.
    pub present: Presence,
    /// ‖after − before‖₂.
    pub delta_norm: f64,
    /// ‖before‖₂.
    pub norm: f64,
    /// No NaN or infinity after training.
    pub finite: bool,
    /// Elements whose bits changed.
    pub changed: u64,
    /// First 16 digits of the SHA-256 of its bytes before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<[String; 2]>,
}

/// On which side of a trial a tensor exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Lost in training.
    Before,
    /// Appeared in training.
    After,
    /// As it should be.
    Both,
}

/// How a trial's process ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// The harness killed it at its time limit of this many seconds.
    #[serde(default)]
    pub timed_out_after_s: Option<f64>,
    /// Why else the harness ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_for: Option<String>,
    /// Processes of the harness's control group that the kernel killed meanwhile for want of memory, where it counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Spawn to end, nanoseconds.
    pub wall_ns: u64,
    /// Last lines of standard error.
    pub stderr_tail: String,
}

/// The verdict on a trial or a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Every proof of training holds.
    Valid,
    /// A proof failed: the numbers say nothing.
    Invalid,
    /// The arms did different work.
    NotComparable,
    /// The arm failed.
    Error,
    /// The arm was killed at its time limit.
    Timeout,
}

/// A scenario with its defaults filled in and its matrix expanded: `resolved.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolved {
    /// `chronibench.resolved/1`.
    pub schema: String,
    /// Short name, used in folder names.
    pub name: String,
    /// One line.
    pub title: String,
    /// A paragraph for the report.
    #[serde(default)]
    pub description: String,
    /// Hash of the scenario file as read.
    pub scenario_sha256: String,
    /// Data set facts.
    pub data: ResolvedData,
    /// Model facts.
    pub model: ResolvedModel,
    /// Trials of every case.
    pub trials: u32,
    /// Seconds after which a trial is killed.
    pub timeout_s: f64,
    /// How often a trial that a fault of the machine ended is begun again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Steps.
    pub measure: crate::spec::Measure,
    /// Every case, in the scenario's order.
    pub cases: Vec<Case>,
    /// Case ids in the order in which the trials run, all rounds. From the second round on the id of a sweep stands for its best cell.
    pub order: Vec<String>,
    /// Ratios that the report states.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// What is looked into beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditArgs>,
    /// Arms or cases left out, and why.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedModel {
    /// The config as the scenario names it.
    pub config: String,
    /// Hash of that file.
    pub sha256: String,
    /// Seed of the starting weights.
    pub init_seed: u64,
    /// Steps of full fine-tuning that the starting weights got first, shared by all arms.
    pub pretrain_steps: u32,
}

/// One cell of the matrix for one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `arm/axis value/axis value…`, unique.
    pub id: String,
    /// Arm name.
    pub arm: String,
    /// Program that runs it: `native`, `candle`, `mock`, or a rival.
    pub runner: String,
    /// Axis → value name, e.g. `method: lora`.
    pub axes: BTreeMap<String, String>,
    /// Full or LoRA.
    pub method: crate::spec::Method,
    /// Optimizer and schedule.
    pub train: crate::spec::TrainArgs,
    /// Batch geometry.
    pub batch: BatchArgs,
    /// Seam → variant.
    pub kernels: BTreeMap<String, String>,
    /// Where it runs: `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "cpu", skip_serializing_if = "is_cpu")]
    pub device: String,
    /// A rival's own settings, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, serde_json::Value>,
    /// Number formats.
    #[serde(default, skip_serializing_if = "crate::spec::PrecisionArgs::is_default")]
    pub precision: crate::spec::PrecisionArgs,
    /// What is kept from the forward to the backward pass.
    #[serde(default, skip_serializing_if = "crate::spec::Recompute::is_default")]
    pub recompute: crate::spec::Recompute,
    /// Inputs of blocks wait for the backward pass in the host's memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
    /// Most that the plan of memory may come to, GB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_gb: Option<f64>,
    /// For an ablation: the case this one is to be compared with, and the seam that is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ablation: Option<Ablation>,
    /// For a cell of an arm's sweep: which sweep it is of, and what it sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepCell>,
}

/// One set of options that an arm is tried with, to find its best.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepCell {
    /// `arm/axis value…`, as comparisons name the best cell.
    pub of: String,
    /// Sweep axis → value.
    pub values: BTreeMap<String, String>,
    /// Settings that the cell decides; differences in them are declared by that.
    #[serde(default)]
    pub sets: Vec<String>,
}

fn cpu() -> String {
    "cpu".into()
}

fn is_cpu(device: &str) -> bool {
    device == "cpu"
}

/// How samples become batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchArgs {
    /// How rows are filled.
    pub packing: Packing,
    /// Rows of one micro-batch: samples without packing, bins with it.
    pub per_device_train_batch_size: u32,
    /// Micro-batches of one optimizer step.
    #[serde(default = "one")]
    pub gradient_accumulation_steps: u32,
}

fn one() -> u32 {
    1
}

/// Packing strategies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// One sample a row, padded to the longest of its micro-batch.
    None,
    /// Best-fit decreasing.
    Bfd,
    /// First-fit in the given order.
    Ff,
    /// No padding: all samples of a micro-batch in one row (TRL's `padding_free`).
    PaddingFree,
}

impl Packing {
    /// The name used in scenarios and plans.
    pub fn name(self) -> &'static str {
        match self {
            Packing::None => "none",
            Packing::Bfd => "bfd",
            Packing::Ff => "ff",
            Packing::PaddingFree => "padding_free",
        }
    }
}

/// One seam switched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ablation {
    /// Case with every seam on.
    pub of: String,
    /// The seam at its unfused variant here, several joined by `+`, or `all`.
    pub off: String,
    /// Of the case with every seam of a factorial or sampled design off: the design.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub design: Option<Factorial>,
}

/// A design in which seams are off in many combinations, so that the gain can be divided among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factorial {
    /// The seams, in the order in which the plot turns them on.
    pub seams: Vec<String>,
    /// Orders whose coalitions are measured, as indices of `seams`; every coalition where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Vec<usize>>,
}

/// A ratio of two cases that the report states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What the reader is told.
    pub label: String,
    /// Case whose figure is divided.
    pub case: String,
    /// Case it is divided by.
    pub against: String,
    /// The least ratio hoped for, if any; the report says whether it was reached.
    #[serde(default)]
    pub target: Option<f64>,
    /// Differences between the two that are meant, e.g. `packing`.
    #[serde(default)]
    pub declared_differences: Vec<String>,
}

/// Something that did not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Arm or case.
    pub what: String,
    /// Why.
    pub why: String,
    /// How to get it.
    pub hint: String,
}
