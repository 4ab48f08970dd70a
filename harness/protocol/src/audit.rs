//! What the harness looks up to tell whether an arm really trained, beside the arm's own events: settings and findings.
//!
//! Findings are figures, never verdicts; those follow from them in `chronibench-analysis`, again and again from what is stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::Skipped;

/// How much is looked into, as a scenario asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditArgs {
    /// Steps of the audit trial, the first ones of the schedule; 0 leaves out all audits that cost time.
    pub steps: u32,
    /// Samples that no audited step trained on, whose loss the harness computes from saved weights; 0 for none.
    pub probe_samples: u32,
    /// Whether the documents of a packed row are checked for seeing each other, by two more trials of one step.
    pub isolation: bool,
    /// Most that a repetition of the audited steps by the reference may cost, in 10¹² floating-point operations; 0 for none.
    pub replay_tflop: f64,
}

impl Default for AuditArgs {
    fn default() -> Self {
        Self { steps: 4, probe_samples: 32, isolation: true, replay_tflop: 5.0 }
    }
}

/// What the harness found out about one trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings {
    /// How every trainable tensor moved, of an audit trial.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<TensorUpdate>,
    /// The same steps by the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Loss of unseen samples under the saved weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// What one document of a row does to another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// The fastest that this machine multiplies matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<Peak>,
    /// Audits that could not be made for a reason of the harness's own, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// Audits that the arm gave nothing for: it saved no weights, or failed on what it was to train on. They are held against it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Skipped>,
}

/// How a tensor moved in the first step, and in all steps of an audit trial, told from three files of weights.
///
/// Weight decay is taken out first: what is left of AdamW's first update is the learning rate times the sign of the gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorUpdate {
    /// Hugging Face or PEFT name.
    pub name: String,
    /// The rate that the schedule has for this tensor at the first step.
    pub expected: f64,
    /// Sum of the rates of all audited steps.
    pub expected_sum: f64,
    /// Rate inferred from the first step; 0 where nothing moved, none without weights after it.
    pub first: Option<f64>,
    /// Share of the elements that moved in the first step.
    pub first_moved: f64,
    /// Root mean square over what moved of the way from start to end.
    pub travel: f64,
    /// Share of the elements that moved from start to end.
    pub moved: f64,
    /// Every element was 0 at the start, as LoRA's B is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_zero: bool,
    /// Share of the elements whose update the stored format rounds beyond recognition: bf16 has no number within twice the rate,
    /// f32 none within two and a half times.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub too_coarse: f64,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// The steps of an arm repeated by the reference: the native arm, from the same weights, on the same batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// What the reference ran on, and in which format: `cpu, f32`.
    pub reference: String,
    /// Loss of the first steps.
    pub losses: Vec<f64>,
    /// Gradient norm before clipping of the same steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grad_norms: Vec<f64>,
    /// Weights beside each other, of an audit trial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorAgreement>,
}

/// How far a tensor went the way that the reference's went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorAgreement {
    /// Hugging Face or PEFT name.
    pub name: String,
    /// Cosine between the two first updates; none where neither moved.
    pub first_cosine: Option<f64>,
    /// Length of the arm's first update over the reference's.
    pub first_ratio: Option<f64>,
    /// Cosine between the two ways from start to end.
    pub cosine: Option<f64>,
    /// Length of the arm's way over the reference's.
    pub ratio: Option<f64>,
}

/// Mean loss of samples that no audited step trained on, by the harness's own forward pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Samples.
    pub samples: usize,
    /// Under the starting weights.
    pub before: f64,
    /// Under the weights that the arm saved.
    pub after: f64,
    /// Standard error of the mean difference between the two, over batches.
    pub std_error: f64,
    /// Under the reference's weights after the same steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
}

/// A step on rows of two documents, of which only the second has labels, made twice with another first document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Isolation {
    /// Loss with each first document, as the arm reports it.
    pub losses: [f64; 2],
    /// Largest relative distance of a tensor's two updates, from the saved weights, without the embedding.
    pub distance: f64,
    /// The tensor that it is of.
    pub tensor: String,
}

/// A rate that no training on this machine can exceed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// Floating-point operations in a second, in 10⁹.
    pub gflops: f64,
    /// How it was found.
    pub method: String,
}
