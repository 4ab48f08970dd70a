//! A gate: may this candidate replace that baseline?
//!
//! Pairs of figures come from a run in which both sides took turns ([`pairs::live`]), from a stored run ([`pairs::stored`]) or
//! from elsewhere; [`judge`] puts each case through the sequential test, and says what that means for the whole.

mod certificate;
mod junit;
mod markdown;
pub mod pairs;

use chronibench_protocol::record::Verdict;
use serde::{Deserialize, Serialize};

pub use certificate::{CERTIFICATE_SCHEMA, Certificate, MIN_COMPARISONS, Noise, certify};
pub use junit::junit_xml;
pub use markdown::{comment, table};
pub use pairs::CasePairs;

use crate::{
    sequential::{Design, GateVerdict, LOOKS, Look, median_ratio_of},
    stats::{Estimate, median_estimate},
};

/// Version of [`GatePlan`] and [`GateReport`].
pub const SCHEMA: &str = "chronibench.gate/1";

/// When a FAIL is more than advice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforce {
    /// On a machine whose certificate says that it tells the truth.
    #[default]
    Certified,
    /// Everywhere: the test alone is trusted.
    Always,
    /// Nowhere.
    Never,
}

/// One of the two programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What the user called it.
    pub name: String,
    /// Hash of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Revision of its sources, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// What a gate is asked, as stored beside the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatePlan {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of the scenario.
    pub scenario: String,
    /// What is compared with.
    pub baseline: Program,
    /// What is gated.
    pub candidate: Program,
    /// The test, with the α of the whole gate and the least effect as declared.
    pub design: Design,
    /// Cases of the scenario.
    pub cases: Vec<String>,
    /// When a FAIL counts.
    pub enforce: Enforce,
    /// Of this machine and scenario, if there is one.
    pub certificate: Option<Certificate>,
    /// Why the figures can be advice only, whatever the machine.
    #[serde(default)]
    pub advisory: Vec<String>,
    /// Of figures that no certificate is made for: what to do for a FAIL to count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertified: Option<String>,
}

impl GatePlan {
    /// The test of one case: its part of α, and the least effect that the machine can be trusted with.
    pub fn design_of(&self, case: &str) -> Design {
        let noise = self.certificate.as_ref().and_then(|c| c.noise_of(case)).map_or(0.0, |n| n.p95_change);
        Design {
            alpha: self.design.alpha / self.cases.len().max(1) as f64,
            min_effect: self.design.min_effect.max(noise),
            looks: self.design.looks.clone(),
        }
    }
}

/// What a gate says: `gate.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Worst over the cases; INVALID before FAIL.
    pub verdict: GateVerdict,
    /// A FAIL counts.
    pub enforced: bool,
    /// Why it does not.
    pub advisory: Vec<String>,
    /// What is compared with.
    pub baseline: Program,
    /// What is gated.
    pub candidate: Program,
    /// Probability of an alarm where nothing has changed, over all cases and looks.
    pub alpha: f64,
    /// Case by case.
    pub cases: Vec<CaseGate>,
}

/// One case of a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseGate {
    /// Case of the scenario.
    pub case: String,
    /// What is measured: `real tokens/s`, or `1/s`.
    pub unit: String,
    /// Its verdict.
    pub verdict: GateVerdict,
    /// Decided, or nothing left to look at.
    pub finished: bool,
    /// Why it is INVALID.
    pub reasons: Vec<String>,
    /// Least loss that matters here.
    pub min_effect: f64,
    /// Every look; the last one decides.
    pub looks: Vec<Look>,
    /// Candidate over baseline, pair by pair.
    pub ratios: Vec<f64>,
    /// Median of the ratios, with its bootstrap interval.
    pub ratio: Option<Estimate>,
    /// Median figure of the baseline.
    pub baseline: Option<Estimate>,
    /// Median figure of the candidate.
    pub candidate: Option<Estimate>,
}

/// Judges all cases; `pairs` has one entry a case of the plan.
pub fn judge(plan: &GatePlan, pairs: &[CasePairs]) -> GateReport {
    let cases: Vec<CaseGate> = pairs.iter().map(|p| case(plan, p)).collect();
    let advisory = advisory(plan);
    GateReport {
        schema: SCHEMA.into(),
        scenario: plan.scenario.clone(),
        verdict: cases.iter().map(|c| c.verdict).max().unwrap_or(GateVerdict::Inconclusive),
        enforced: advisory.is_empty(),
        advisory,
        baseline: plan.baseline.clone(),
        candidate: plan.candidate.clone(),
        alpha: plan.design.alpha,
        cases,
    }
}

fn case(plan: &GatePlan, of: &CasePairs) -> CaseGate {
    let design = plan.design_of(&of.case);
    let ratios: Vec<f64> = of.pairs.iter().map(|(baseline, candidate)| candidate / baseline).collect();
    let (verdict, finished) = match of.problems.is_empty() {
        true => design.verdict(&ratios),
        false => (GateVerdict::Invalid, true),
    };
    let side = |f: fn(&(f64, f64)) -> f64| median_estimate(&of.pairs.iter().map(f).collect::<Vec<_>>());
    CaseGate {
        case: of.case.clone(),
        unit: of.unit.clone(),
        verdict,
        finished,
        reasons: of.problems.clone(),
        min_effect: design.min_effect,
        looks: design.looks(&ratios),
        ratio: median_ratio_of(&ratios),
        ratios,
        baseline: side(|p| p.0),
        candidate: side(|p| p.1),
    }
}

/// Why a FAIL is advice; empty where it counts.
fn advisory(plan: &GatePlan) -> Vec<String> {
    let mut why = plan.advisory.clone();
    match (plan.enforce, &plan.certificate) {
        (Enforce::Always, _) => {}
        (Enforce::Never, _) => why.push("nothing is enforced, as asked".into()),
        (Enforce::Certified, None) => {
            let none = "this machine has no certificate for this scenario: run `chronibench noise` first";
            why.push(plan.uncertified.clone().unwrap_or_else(|| none.into()));
        }
        (Enforce::Certified, Some(c)) => {
            why.extend(c.why_not.iter().map(|w| format!("this machine is not certified: {w}")));
            let unknown = plan.cases.iter().filter(|case| c.noise_of(case).is_none());
            why.extend(unknown.map(|case| format!("the certificate does not know {case}")));
            why.extend(c.other_design(&plan.design, plan.cases.len()));
        }
    }
    why
}

impl CaseGate {
    /// The outcome in words.
    pub fn words(&self) -> String {
        let Some(look) = self.looks.last() else {
            return match self.reasons.first() {
                Some(reason) => reason.clone(),
                None => format!(
                    "{} pairs, too few for a look: the first one needs {}",
                    self.ratios.len(),
                    LOOKS[0]
                ),
            };
        };
        let change = change_words(look.change);
        match self.verdict {
            GateVerdict::Invalid => self.reasons.join("; "),
            GateVerdict::Fail => change,
            _ if look.upper < 0.0 && -look.change < self.min_effect => {
                format!("{change}, which is less than the {} that matter", percent(self.min_effect))
            }
            _ if look.upper < 0.0 => {
                format!("{change}, and not sure beyond the error that is allowed: more pairs may tell")
            }
            _ if look.lower > 0.0 => change,
            GateVerdict::Pass => "no difference seen".into(),
            _ => format!("no difference seen, and a loss of {} not excluded", percent(self.min_effect)),
        }
    }
}

fn change_words(change: f64) -> String {
    format!("{} {}", percent(change.abs()), if change < 0.0 { "slower" } else { "faster" })
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A change with its one-sided bounds: `−0.31 % [−1.02, +0.41]`.
pub(crate) fn change(look: &Look) -> String {
    let signed = |x: f64| format!("{}{:.2}", if x < 0.0 { '−' } else { '+' }, x.abs() * 100.0);
    format!("{} % [{}, {}]", signed(look.change), signed(look.lower), signed(look.upper))
}

/// A verdict of trials or of a comparison that spoils a gate, in words.
pub(crate) fn spoils(what: &str, verdict: Option<Verdict>, reasons: &[String]) -> Option<String> {
    let verdict = verdict.filter(|v| *v != Verdict::Valid)?;
    Some(format!("{what} is {}: {}", crate::format::verdict(Some(verdict)), reasons.join("; ")))
}
