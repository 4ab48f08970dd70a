//! Kernels timed one by one: what an arm is asked, and what it says of each.
//!
//! The same protocol as training: `ARM --spec spec.json --events events.jsonl`, one [`KernelSpec`] in, events out: `hello`,
//! `ceiling`s and `kernel`s, `skipped` for what the machine lacks, then `done`; or `error`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    event::Failure,
    record::{GpuSample, Skipped},
};

/// Version of the records of a run of kernels.
pub const SCHEMA: &str = "chronibench.kernels/3";

/// Everything one trial needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    /// Always [`crate::spec::PROTOCOL`].
    pub protocol: String,
    /// Unique within a run, also the stem of the event file.
    pub trial_id: String,
    /// What to time, in this order where the arm can.
    pub cases: Vec<KernelCase>,
    /// Only implementations of this name.
    #[serde(default)]
    pub variant: Option<String>,
    /// Timed runs of each kernel and shape.
    pub repetitions: u32,
    /// `cuda:N`.
    pub device: String,
    /// Bytes that are written before every timed run, so that operands come from memory.
    pub flush_bytes: u64,
}

/// An operation at a shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelCase {
    /// Operation, e.g. `rmsnorm_forward`.
    pub op: String,
    /// Shape in words, unique for an operation.
    pub case: String,
    /// The same by name, e.g. `tokens`.
    pub dims: BTreeMap<String, u64>,
    /// Lengths of the documents, where the operation sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<u32>,
    /// Fewest bytes that it reads and writes, on bf16.
    pub bytes: u64,
    /// Floating-point operations, 0 where they do not matter.
    pub flops: u64,
}

/// One implementation of an operation at a shape: checked, then timed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// As in [`KernelCase`].
    pub op: String,
    /// As in [`KernelCase`].
    pub case: String,
    /// Implementation, e.g. `fused`, `eager`, `liger`.
    pub variant: String,
    /// Fewest bytes that it reads and writes: those of [`KernelCase`], or its own where it has other operands.
    pub bytes: u64,
    /// As in [`KernelCase`].
    pub flops: u64,
    /// Seconds of every run, operands in memory; empty unless the check held.
    #[serde(default)]
    pub cold_s: Vec<f64>,
    /// Seconds of every run right after others.
    #[serde(default)]
    pub warm_s: Vec<f64>,
    /// Seconds of a copy of as many bytes, in turn with the cold runs; empty where there is none.
    #[serde(default)]
    pub copy_s: Vec<f64>,
    /// Bytes that the warm runs touch in all, over every set of operands that they rotate.
    #[serde(default)]
    pub warm_bytes: u64,
    /// Size of the L2 cache, bytes; 0 where it is not known.
    #[serde(default)]
    pub l2_bytes: u64,
    /// Bytes that it needs besides its inputs, gradients included, where that is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes that its passes read and write, every operand of every kernel and product once; counted, not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_bytes: Option<u64>,
    /// What the check before the timing said.
    #[serde(default)]
    pub check: KernelCheck,
    /// It does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What the reader should know, e.g. which of several forms was the fastest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The GPU before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<GpuSample>,
    /// The GPU after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<GpuSample>,
}

/// A comparison with a reference in higher precision, on the operands and at the shape that are timed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelCheck {
    /// Every output that was looked at.
    pub compared: Vec<KernelCompared>,
    /// Why the times are no result; `None` where everything held.
    #[serde(default)]
    pub failure: Option<String>,
}

/// One output at sampled places. Numbers that are not finite are absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelCompared {
    /// Output.
    pub what: String,
    /// Values compared.
    pub values: u64,
    /// Largest error, in units of the scale of the output.
    pub error: Option<f64>,
    /// Largest error allowed, in the same units.
    pub tolerance: f64,
    /// Place of the largest error.
    pub index: u64,
    /// What was there.
    pub got: Option<f64>,
    /// What should be.
    pub want: Option<f64>,
}

/// What the machine can do at best, measured in the same session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// `copy` or `matmul`.
    pub name: String,
    /// `before` or `after` the kernels.
    pub at: String,
    /// Bytes read and written, 0 for a product.
    pub bytes: u64,
    /// Floating-point operations, 0 for a copy.
    pub flops: u64,
    /// Seconds of every run.
    pub seconds: Vec<f64>,
}

/// Who runs the kernels of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The kernels of this project.
    Native,
    /// Other implementations.
    References,
}

/// Head of a stored trial of kernels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelHeader {
    /// [`SCHEMA`].
    pub schema: String,
    /// Who.
    pub side: Side,
    /// Position in the run's order, from 0.
    pub position: u32,
    /// Wall-clock start, RFC 3339.
    pub started_at: String,
    /// The specification given to the arm.
    pub spec: KernelSpec,
}

/// A run of kernels with its defaults filled in: `resolved.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedKernels {
    /// [`SCHEMA`].
    pub schema: String,
    /// Short name, used in folder names.
    pub name: String,
    /// One line.
    pub title: String,
    /// Only operations whose name contains this.
    #[serde(default)]
    pub op: Option<String>,
    /// Only our implementations of this name.
    #[serde(default)]
    pub variant: Option<String>,
    /// Timed runs of each kernel and shape.
    pub repetitions: u32,
    /// `auto`, `none` or a Python.
    pub references: String,
    /// Trials in the order in which they run.
    pub order: Vec<String>,
    /// What does not run, known before.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
}
