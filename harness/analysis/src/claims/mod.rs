//! A ledger of claims: what somebody published, how it is checked, and what the check says.
//!
//! A file holds the claims (`scenarios/claims/`): the numbers are there, and nowhere in this code. Arithmetic needs nothing
//! else; a measured claim takes its figures from the summaries of stored runs.

mod check;
pub mod formula;
mod kernels;
mod table;

use std::{collections::BTreeMap, sync::LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::{Runs, check};
pub(crate) use kernels::KernelClaims;
pub use kernels::{KernelMemory, KernelSpeedup, KernelTraffic};
pub use table::markdown;

/// Version of a claims file.
pub const SCHEMA: &str = "chronibench.claims/1";

/// The claims of the paper that this project set out from; reports of kernels hold themselves to them.
pub static CHRONICALS: LazyLock<Ledger> = LazyLock::new(|| {
    let text = include_str!("../../../../scenarios/claims/chronicals-2601.02609.yaml");
    serde_saphyr::from_str(text).expect("a test reads it")
});

/// A claims file.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was published.
    pub title: String,
    /// Where.
    pub source: String,
    /// What all claims have in common.
    #[serde(default)]
    pub conditions: String,
    /// The claims.
    pub claims: Vec<Claim>,
}

/// One claim.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Unique in the file.
    pub id: String,
    /// What is claimed.
    pub quote: String,
    /// Where it stands; the file's source where it says nothing.
    #[serde(default)]
    pub source: String,
    /// On what it was measured, and what the check takes for equal.
    #[serde(default)]
    pub conditions: String,
    /// Whose figures the check measures, where they are not of what the claim is about: stands beside the verdict.
    #[serde(default)]
    pub measured_by: String,
    /// How it is checked.
    pub check: Check,
    /// The verdict that the file's author expects; of a check with parts by part.
    pub expect: Expect,
}

/// How a claim is checked.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A formula over published numbers and measured figures against a bound.
    Formula(Formula),
    /// A fused kernel's time against other implementations; one part a baseline.
    KernelSpeedup(KernelSpeedup),
    /// The share of memory traffic that fusion removes; one part an operation.
    KernelTraffic(KernelTraffic),
    /// Memory of an operation against other implementations; one part a baseline.
    KernelMemory(KernelMemory),
    /// Nothing here can decide it.
    Untestable {
        /// Why.
        why: String,
    },
}

/// A formula against a bound: exactly one of `equals`, `at_least`, `at_most`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Formula {
    /// Values by the names that the formula uses.
    pub values: BTreeMap<String, Value>,
    /// Numbers, names, `+ - * / ^`, parentheses, `min(a, b)`, `max(a, b)`.
    pub formula: String,
    /// The claimed number.
    #[serde(default)]
    pub equals: Option<f64>,
    /// Relative difference from it that rounding explains.
    #[serde(default = "one_percent")]
    pub tolerance: f64,
    /// The least that bears the claim out.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// The most that does.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Verdict where it fails: by default INCONSISTENT for published numbers alone, REFUTED for measured ones.
    #[serde(default)]
    pub otherwise: Option<Verdict>,
}

fn one_percent() -> f64 {
    0.01
}

/// A value of a formula.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Value {
    /// Published.
    Number(f64),
    /// A figure of one case of a stored run.
    Figure(Figure),
    /// A throughput ratio that a stored run states, of VALID trials.
    Ratio(Ratio),
}

/// A figure of one case of a stored run, over its VALID trials.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Name of the scenario.
    pub scenario: String,
    /// Case id.
    pub case: String,
    /// Which figure.
    pub metric: Metric,
}

/// Figures of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Real tokens a second.
    RealTokensPerS,
    /// Positions a second, padding included.
    SlotsPerS,
    /// Real tokens over positions.
    PackingEfficiency,
    /// Model FLOPs of real tokens, GFLOP/s.
    ModelGflops,
}

/// A throughput ratio by the arms that it compares.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// Arm whose figure is divided.
    pub ratio_of: String,
    /// Arm that it is divided by.
    pub over: String,
    /// Value of the axis `method` of both.
    pub method: String,
    /// Name of the scenario in which they are compared.
    pub scenario: String,
}

/// What the author expects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Expect {
    /// Of the only part.
    One(Verdict),
    /// By part.
    Each(BTreeMap<String, Verdict>),
}

/// What a check says of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// The figures bear it out.
    Reproduced,
    /// They do not.
    Refuted,
    /// Published numbers contradict one another.
    Inconsistent,
    /// There is nothing to hold it to, or the interval holds the bound.
    Untestable,
}

impl Verdict {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Reproduced => "REPRODUCED",
            Verdict::Refuted => "REFUTED",
            Verdict::Inconsistent => "INCONSISTENT",
            Verdict::Untestable => "UNTESTABLE",
        }
    }
}

/// One claim, or one part of it, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Claim.
    pub id: String,
    /// Part, where the check has several: a baseline or an operation.
    pub part: Option<String>,
    /// What is claimed.
    pub quote: String,
    /// The figures that decided.
    pub figures: String,
    /// Folder of the run that they are from.
    pub run: Option<String>,
    /// What they say.
    pub verdict: Verdict,
    /// Whose figures they are, where they are not of what the claim is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_by: Option<String>,
    /// What the file expects; `None` for a part that it does not name.
    pub expected: Option<Verdict>,
}

impl Finding {
    /// What the figures of a claim say.
    fn of(
        claim: &Claim,
        part: Option<&str>,
        (verdict, figures): (Verdict, String),
        run: Option<String>,
    ) -> Self {
        // Where nothing was measured it was by nobody.
        let measured_by = run.as_ref().map(|_| claim.measured_by.clone()).filter(|by| !by.is_empty());
        Self {
            id: claim.id.clone(),
            part: part.map(String::from),
            quote: claim.quote.clone(),
            figures,
            run,
            verdict,
            measured_by,
            expected: check::expected(claim, part),
        }
    }

    /// The verdict, with whose figures it rests on.
    pub fn verdict_words(&self) -> String {
        match &self.measured_by {
            Some(by) => format!("{} (by {by})", self.verdict.name()),
            None => self.verdict.name().into(),
        }
    }

    /// The verdict is the one that the file expects.
    pub fn as_expected(&self) -> bool {
        self.expected == Some(self.verdict)
    }
}

impl Ledger {
    /// Looks for what a schema cannot say.
    ///
    /// # Errors
    /// The first mistake, with the claim that has it.
    pub fn validate(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema is '{}', and this version reads {SCHEMA}", self.schema));
        }
        let mut seen = std::collections::BTreeSet::new();
        for claim in &self.claims {
            let wrong = |what: &str| Err(format!("claim {}: {what}", claim.id));
            if !seen.insert(&claim.id) {
                return wrong("the id comes twice");
            }
            match &claim.check {
                Check::Formula(f) => {
                    let bounds = [f.equals, f.at_least, f.at_most].iter().flatten().count();
                    if bounds != 1 {
                        return wrong("give one of equals, at_least, at_most");
                    }
                    let any = f.values.keys().map(|name| (name.clone(), 1.5)).collect();
                    if let Err(e) = formula::evaluate(&f.formula, &any)
                        && !e.contains("comes to")
                    {
                        return wrong(&e);
                    }
                }
                Check::Untestable { .. } if claim.expect != Expect::One(Verdict::Untestable) => {
                    return wrong("what is untestable is expected to be UNTESTABLE");
                }
                _ => {}
            }
            let parts = matches!(claim.expect, Expect::Each(_));
            let has_parts = !matches!(claim.check, Check::Formula(_) | Check::Untestable { .. });
            if parts != has_parts {
                return wrong(if has_parts { "expect a verdict by part" } else { "expect one verdict" });
            }
        }
        Ok(())
    }
}
