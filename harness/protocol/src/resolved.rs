//! A scenario with its defaults filled in and its matrix expanded, as `resolved.yaml` holds it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{audit::AuditArgs, data::ResolvedData};

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

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Resolved {
    /// Cases that get an audit trial before they are timed.
    pub fn audited(&self) -> impl Iterator<Item = &Case> {
        let asked = self.audit.as_ref().is_some_and(|a| a.steps > 0);
        self.cases.iter().filter(move |case| asked && case.trains())
    }
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedModel {
    /// The config as the scenario names it.
    pub config: String,
    /// Hash of that file.
    pub sha256: String,
    /// Where the starting weights are from; without, they are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<ResolvedWeights>,
    /// Seed of starting weights that are drawn: the model's, and adapters'.
    pub init_seed: u64,
    /// Steps of full fine-tuning that the starting weights got first, shared by all arms.
    pub pretrain_steps: u32,
}

/// Weights that a run starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedWeights {
    /// The folder or file as the scenario names it.
    pub path: String,
    /// Hash of the file; of several, of their hashes in the order of their names.
    pub sha256: String,
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

impl Case {
    /// A mock trains nothing, by its own account: there is nothing to audit.
    pub fn trains(&self) -> bool {
        !["mock", "mock-python"].contains(&self.runner.as_str())
    }
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
