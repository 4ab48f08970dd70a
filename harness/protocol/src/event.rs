//! What an arm says while it runs: one JSON object a line.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    kernels::{Ceiling, KernelRow},
    record::Skipped,
};

/// One line of an arm's event file.
///
/// Order: `hello`, `ready`, then `step`s with a `window` after the last step of each window, then `done`; or `error`
/// at any point; a trial of kernels has its own order ([`crate::kernels`]). Times are nanoseconds of one monotonic clock of the arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First line: who runs, on what, and with which settings in force.
    Hello(Hello),
    /// Model and data are loaded; nothing has been trained yet.
    Ready(Ready),
    /// One optimizer step.
    Step(Step),
    /// A run of timed steps.
    Window(Window),
    /// One kernel at one shape, of a trial of kernels.
    Kernel(Box<KernelRow>),
    /// A rate that bounds them.
    Ceiling(Ceiling),
    /// Something that does not run here, of a trial of kernels.
    Skipped(Skipped),
    /// Last line of a trial that finished.
    Done(Done),
    /// Last line of a trial that failed.
    Error(Failure),
}

/// Identity and effective settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::spec::PROTOCOL`].
    pub protocol: String,
    /// Program, e.g. `chronicals`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `cpu`, or the GPU's name.
    pub device: String,
    /// Threads in use.
    pub threads: usize,
    /// Process id.
    pub pid: u32,
    /// State precision.
    pub precision: Precision,
    /// Effective training settings as the arm understood them, for the parity diff.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Seam → variant that will really run; empty for an arm without seams.
    #[serde(default)]
    pub kernel_plan: BTreeMap<String, String>,
    /// Setting → why it is what it is, where the arm chose it; not compared.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen: BTreeMap<String, String>,
}

/// Number formats of everything that persists between steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precision {
    /// Weights as the forward reads them, e.g. `f32`.
    pub weights: String,
    /// Master copy of the weights, or `none`.
    pub master: String,
    /// AdamW moments.
    pub moments: String,
    /// Gradients.
    pub grads: String,
}

impl Precision {
    /// Everything in f32 with no separate master copy.
    pub fn f32() -> Self {
        let f32 = || "f32".to_string();
        Self { weights: f32(), master: "none".into(), moments: f32(), grads: f32() }
    }
}

/// What is about to be trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Trainable tensors by their Hugging Face or PEFT name.
    pub trainable: Vec<TensorInfo>,
    /// Elements of all model parameters, adapters included, tied tensors once.
    pub total_params: u64,
    /// Hash of the token store that was read ([`crate::TokenStore::sha256`]).
    pub tokens_sha256: String,
    /// Bytes planned by component, for arms that plan their memory.
    #[serde(default)]
    pub planned_bytes: BTreeMap<String, u64>,
}

/// Name and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Hugging Face or PEFT name.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// Part of a trial a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before the measured region.
    Untimed,
    /// Inside a window.
    Timed,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// From 0.
    pub step: u32,
    /// Timed or not.
    pub phase: Phase,
    /// When the step began.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// [`crate::BatchDigest`] of the ids that entered the model, hexadecimal.
    pub digest: String,
    /// Its samples as indices into the token store, row after row; empty where the arm's own packing lost them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<u32>,
    /// Token counts as the arm sees them; the harness counts for itself and compares.
    pub tokens: TokenCounts,
    /// Mean loss over the loss tokens, before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The same by parameter group, where the arm says; its squares add up to that of the global norm.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grad_norm_by_group: BTreeMap<String, f64>,
    /// Learning rate by parameter group.
    pub lr: BTreeMap<String, f64>,
}

/// Three ways to count the tokens of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Positions that the model computed, padding included.
    pub slots: u64,
    /// Positions that hold a token of a sample.
    pub real: u64,
    /// Positions whose next token enters the loss.
    pub loss: u64,
}

impl std::ops::AddAssign for TokenCounts {
    fn add_assign(&mut self, o: Self) {
        self.slots += o.slots;
        self.real += o.real;
        self.loss += o.loss;
    }
}

/// A run of timed steps, with the clock read (and a device synchronised) at its two edges only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// From 0.
    pub index: u32,
    /// First step inside.
    pub first_step: u32,
    /// Last step inside.
    pub last_step: u32,
    /// Edge before the first step.
    pub start_ns: u64,
    /// Edge after the last step.
    pub end_ns: u64,
}

/// End of a trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Optimizer steps run.
    pub steps: u32,
    /// Where the weights were saved, if they were: model tensors by Hugging Face name and adapters by PEFT name, f32,
    /// in one safetensors file.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// Launches over the whole trial by `seam.variant.operation`. An arm that names a kernel plan must log them: a
    /// seam that never ran, or ran at another variant, makes the trial INVALID.
    #[serde(default)]
    pub kernels: BTreeMap<String, u64>,
    /// Peak resident set as the arm itself read it (`VmHWM`), bytes.
    #[serde(default)]
    pub peak_rss_bytes: Option<u64>,
    /// What the arm's allocator on the GPU says of its own peaks, bytes: `allocated` and `reserved` with PyTorch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peak_gpu_bytes: BTreeMap<String, u64>,
    /// Time in matrix products.
    #[serde(default)]
    pub gemm: Option<GemmShare>,
}

/// How much of a step is matrix products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GemmShare {
    /// Nanoseconds in matrix products over all timed steps.
    pub ns: u64,
    /// Their floating-point operations.
    pub flops: u64,
    /// `measured` (a clock around each product) or `replayed` (the step's products run alone afterwards).
    pub method: String,
}

/// Why a trial failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub what: String,
    /// Where: file, step, tensor.
    #[serde(rename = "where")]
    pub at: String,
    /// How to mend it.
    pub hint: String,
}
