//! What the harness stores: one JSONL file a trial, from which every report is rebuilt.
//!
//! A stored trial begins with [`Line::Trial`], then holds the arm's events and the samples in order of arrival, and
//! ends with [`Line::Ledger`], [`Line::Weights`], [`Line::Audit`] and [`Line::Exit`]. Every attempt is stored, failures included.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    audit::Findings,
    event::{Event, Step, TensorInfo, TokenCounts},
    kernels::KernelHeader,
    plan::BatchPlan,
    spec::Spec,
    tokens::TokenStore,
};
pub use crate::{
    data::ResolvedData,
    resolved::{
        Ablation, BatchArgs, Case, Comparison, Factorial, Packing, Resolved, ResolvedModel, ResolvedWeights,
        Skipped, SweepCell,
    },
    sample::{GpuSample, Sample},
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
        /// Real tokens of the distinct samples of the timed steps: a sample that comes again adds nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unique: Option<u64>,
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

/// A step as the arm reported it and as the harness recounted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStep {
    /// Step index.
    pub step: u32,
    /// The arm's digest equals the one of the harness's own tokens.
    pub digest_ok: bool,
    /// The samples that the arm names, if it names any, are the planned ones in the planned order.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub samples_ok: bool,
    /// Counted by the harness.
    pub counted: TokenCounts,
    /// Reported by the arm.
    pub reported: TokenCounts,
}

impl LedgerStep {
    /// What an arm says of a step, against the plan and the tokens of the harness.
    pub fn count(said: &Step, plan: &BatchPlan, tokens: &TokenStore) -> Self {
        let planned = plan.steps.get(said.step as usize);
        let (digest, counted) = planned.map(|p| p.ledger(tokens, plan.pad_token_id)).unwrap_or_default();
        Self {
            step: said.step,
            digest_ok: digest == said.digest,
            samples_ok: said.samples.is_empty() || planned.is_some_and(|p| p.samples() == said.samples),
            counted,
            reported: said.tokens,
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
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
    /// Of a tensor that did not move and holds bf16 values alone: the smallest change that rounding to bf16 would not undo, over
    /// its elements (half the spacing below the least of them; 0 where one is 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_bf16_change: Option<f64>,
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
