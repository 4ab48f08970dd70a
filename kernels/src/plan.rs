//! Which variant of every seam runs.

use std::{collections::BTreeMap, fmt};

use crate::attention::cuda::Path;

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
    /// How the launches of a step reach a device that is apart from the processor: kept and run again, or one by one.
    Graph,
}

impl Seam {
    /// Every seam, in the order of a step.
    pub const ALL: [Seam; 8] = [
        Seam::Norm,
        Seam::QkRope,
        Seam::Attention,
        Seam::Mlp,
        Seam::Loss,
        Seam::Lora,
        Seam::Optimizer,
        Seam::Graph,
    ];

    /// Those that a processor has: nothing is submitted to it.
    const ON_CPU: [Seam; 7] =
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
            Seam::Graph => "graph",
        }
    }
}

/// What kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The processor.
    Cpu,
    /// A GPU.
    Cuda,
}

impl Target {
    /// The seams that it has.
    pub fn seams(self) -> &'static [Seam] {
        match self {
            Target::Cpu => &Seam::ON_CPU,
            Target::Cuda => &Seam::ALL,
        }
    }

    /// Names of the variants of a seam. On a GPU fused attention may be asked for on one path, which is otherwise chosen by
    /// element type and architecture.
    pub fn variants(self, seam: Seam) -> Vec<&'static str> {
        let mut names = Variant::ALL.map(Variant::name).to_vec();
        if self == Target::Cuda && seam == Seam::Attention {
            names.extend(Path::ALL.map(Path::name));
        }
        names
    }

    /// Names of the variants that every seam has.
    fn variants_of_all(self) -> Vec<&'static str> {
        let everywhere = |v: &&str| self.seams().iter().all(|&s| self.variants(s).contains(v));
        Variant::ALL.map(Variant::name).into_iter().filter(everywhere).collect()
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
    path: Option<Path>,
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
        Self { variants: [variant; Seam::ALL.len()], path: None }
    }

    /// The variant of `seam`.
    pub fn get(&self, seam: Seam) -> Variant {
        self.variants[seam as usize]
    }

    /// The path of fused attention on a GPU, where one is named.
    pub fn path(&self) -> Option<Path> {
        self.path
    }

    /// The same plan with one seam changed.
    pub fn with(mut self, seam: Seam, variant: Variant) -> Self {
        self.variants[seam as usize] = variant;
        if seam == Seam::Attention {
            self.path = None;
        }
        self
    }

    /// The same plan with fused attention on a path.
    pub fn with_path(self, path: Path) -> Self {
        Self { path: Some(path), ..self.with(Seam::Attention, Variant::Fused) }
    }

    /// Reads `seam → variant`; the key `all` sets every seam first. Unknown words are errors.
    pub fn resolve(settings: &BTreeMap<String, String>, target: Target) -> Result<Self, PlanError> {
        let variant = |v: &str, known: Vec<&'static str>| {
            let found = Variant::ALL.into_iter().find(|x| x.name() == v && known.contains(&v));
            found.ok_or_else(|| PlanError { unknown: v.into(), known })
        };
        let mut plan = match settings.get("all") {
            Some(v) => Self::uniform(variant(v, target.variants_of_all())?),
            None => Self::default(),
        };
        for (name, v) in settings.iter().filter(|(name, _)| *name != "all") {
            let seam = target.seams().iter().copied().find(|s| s.name() == name);
            let seam = seam.ok_or_else(|| PlanError {
                unknown: name.clone(),
                known: target.seams().iter().map(|s| s.name()).collect(),
            })?;
            let names = target.variants(seam);
            let path = Path::ALL.into_iter().find(|p| p.name() == v && names.contains(&p.name()));
            plan = match path {
                Some(path) => plan.with_path(path),
                None => plan.with(seam, variant(v, names)?),
            };
        }
        Ok(plan)
    }

    /// Name of a seam's variant, as set and recorded.
    pub fn name(&self, seam: Seam) -> &'static str {
        match self.path {
            Some(path) if seam == Seam::Attention => path.name(),
            _ => self.get(seam).name(),
        }
    }

    /// `seam → variant`, as recorded.
    pub fn names(&self, target: Target) -> BTreeMap<String, String> {
        target.seams().iter().map(|&s| (s.name().to_string(), self.name(s).to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(settings: &[(&str, &str)], target: Target) -> Result<KernelPlan, PlanError> {
        let settings = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        KernelPlan::resolve(&settings, target)
    }

    #[test]
    fn a_path_is_a_variant_of_attention_on_a_gpu_alone() {
        let plan = resolve(&[("all", "fused"), ("attention", "mma")], Target::Cuda).unwrap();
        assert_eq!((plan.get(Seam::Attention), plan.path()), (Variant::Fused, Some(Path::Mma)));
        assert_eq!(plan.names(Target::Cuda)["attention"], "mma");
        assert_eq!(plan.with(Seam::Attention, Variant::Fused).names(Target::Cuda)["attention"], "fused");
        assert_eq!(resolve(&[("norm", "mma")], Target::Cuda).unwrap_err().known, ["fused", "eager"]);
        assert_eq!(resolve(&[("attention", "mma")], Target::Cpu).unwrap_err().unknown, "mma");
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for target in [Target::Cpu, Target::Cuda] {
            assert_eq!(resolve(&[("all", "lazy")], target).unwrap_err().known, ["fused", "eager"]);
            assert_eq!(resolve(&[("norms", "eager")], target).unwrap_err().unknown, "norms");
            let plan = resolve(&[("all", "eager"), ("loss", "fused")], target).unwrap();
            assert!(target.seams().iter().all(|s| (plan.get(*s) == Variant::Fused) == (*s == Seam::Loss)));
        }
    }

    #[test]
    fn a_processor_has_no_graph() {
        assert!(!KernelPlan::default().names(Target::Cpu).contains_key("graph"));
        assert_eq!(resolve(&[("graph", "eager")], Target::Cpu).unwrap_err().unknown, "graph");
        let plan = resolve(&[("graph", "eager")], Target::Cuda).unwrap();
        assert_eq!((plan.get(Seam::Graph), plan.get(Seam::Norm)), (Variant::Eager, Variant::Fused));
    }
}
