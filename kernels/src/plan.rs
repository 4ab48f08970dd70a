//! Which variant of every seam runs.

use std::{collections::BTreeMap, fmt};

/// The smallest region of the step whose inputs, outputs and saved-model layout are equal across variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seam {
    /// Residual add and RMSNorm.
    Norm,
    /// QKV bias, QK-norm and rotary embedding.
    QkRope,
    /// Causal attention over the documents of a row.
    Attention,
    /// SwiGLU.
    Mlp,
    /// LM head and cross-entropy.
    Loss,
    /// Low-rank adapters.
    Lora,
    /// Gradient norm, clipping and AdamW.
    Optimizer,
}

impl Seam {
    /// Every seam, in the order of a step.
    pub const ALL: [Seam; 7] =
        [Seam::Norm, Seam::QkRope, Seam::Attention, Seam::Mlp, Seam::Loss, Seam::Lora, Seam::Optimizer];

    /// Name in scenarios and records.
    pub fn name(self) -> &'static str {
        match self {
            Seam::Norm => "norm",
            Seam::QkRope => "qk_rope",
            Seam::Attention => "attention",
            Seam::Mlp => "mlp",
            Seam::Loss => "loss",
            Seam::Lora => "lora",
            Seam::Optimizer => "optimizer",
        }
    }
}

/// How a seam is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Variant {
    /// As few passes over memory as the operation allows.
    #[default]
    Fused,
    /// The passes that PyTorch eager makes.
    Eager,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Variant; 2] = [Variant::Fused, Variant::Eager];

    /// Name in scenarios and records.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Fused => "fused",
            Variant::Eager => "eager",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A variant for every seam; there is no fallback from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelPlan {
    variants: [Variant; Seam::ALL.len()],
}

/// A plan names something that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// The word that is not known.
    pub unknown: String,
    /// The words that are.
    pub known: Vec<&'static str>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown kernel setting '{}'; known: {}", self.unknown, self.known.join(", "))
    }
}

impl std::error::Error for PlanError {}

impl KernelPlan {
    /// Every seam at `variant`.
    pub fn uniform(variant: Variant) -> Self {
        Self { variants: [variant; Seam::ALL.len()] }
    }

    /// The variant of `seam`.
    pub fn get(&self, seam: Seam) -> Variant {
        self.variants[seam as usize]
    }

    /// The same plan with one seam changed.
    pub fn with(mut self, seam: Seam, variant: Variant) -> Self {
        self.variants[seam as usize] = variant;
        self
    }

    /// Reads `seam → variant`; the key `all` sets every seam first. Unknown words are errors.
    pub fn resolve(settings: &BTreeMap<String, String>) -> Result<Self, PlanError> {
        let variant = |v: &str| {
            Variant::ALL.into_iter().find(|x| x.name() == v).ok_or_else(|| PlanError {
                unknown: v.into(),
                known: Variant::ALL.map(Variant::name).to_vec(),
            })
        };
        let mut plan = match settings.get("all") {
            Some(v) => Self::uniform(variant(v)?),
            None => Self::default(),
        };
        for (name, v) in settings.iter().filter(|(name, _)| *name != "all") {
            let seam = Seam::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| PlanError {
                unknown: name.clone(),
                known: Seam::ALL.map(Seam::name).to_vec(),
            })?;
            plan = plan.with(seam, variant(v)?);
        }
        Ok(plan)
    }

    /// `seam → variant`, as recorded.
    pub fn names(&self) -> BTreeMap<String, String> {
        Seam::ALL.into_iter().map(|s| (s.name().to_string(), self.get(s).name().to_string())).collect()
    }
}
