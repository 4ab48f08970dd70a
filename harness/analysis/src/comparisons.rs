//! The ratios of a run: those that the scenario asks for, and those of its ablations.

use chronibench_protocol::record::{Comparison, Verdict};
use serde::{Deserialize, Serialize};

use crate::{
    compare::{Compared, Side, compare},
    stats::{Estimate, FEWEST_FOR_A_TARGET},
};

/// A ratio that the scenario asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonSummary {
    /// What the reader is told.
    pub label: String,
    /// Case whose figure is divided.
    pub case: String,
    /// Case it is divided by.
    pub against: String,
    /// The least ratio hoped for.
    pub target: Option<f64>,
    /// Against the target; `None` without a target or a ratio.
    pub outcome: Option<Outcome>,
    /// The comparison itself.
    #[serde(flatten)]
    pub result: Compared,
}

/// A ratio against its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole interval reaches the target; of fewer than six pairs that is every pair.
    Reached,
    /// The whole interval stays below.
    Missed,
    /// The target lies inside the interval, or there are fewer than [`FEWEST_FOR_A_TARGET`] pairs.
    Unclear,
}

/// One seam switched off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AblationSummary {
    /// Case with the seam off.
    pub case: String,
    /// Case with every seam on.
    pub of: String,
    /// The seam, or `all`.
    pub off: String,
    /// The case with the seam off over the one with every seam on: below 1 where the seam pays.
    #[serde(flatten)]
    pub result: Compared,
}

/// Finds a side by what a comparison names.
pub(crate) type Find<'f, 'a> = dyn Fn(&str) -> Option<&'f Side<'a>> + 'f;

/// A comparison of the scenario.
pub(crate) fn comparison<'f>(asked: &Comparison, find: &Find<'f, '_>) -> ComparisonSummary {
    let (case, against) = (find(&asked.case), find(&asked.against));
    let result = match (case, against) {
        (Some(a), Some(b)) => {
            let sets = [a, b].into_iter().filter_map(|s| s.case.sweep.as_ref()).flat_map(|s| s.sets.clone());
            let declared: Vec<String> = asked.declared_differences.iter().cloned().chain(sets).collect();
            compare(a, b, &declared, a.case.arm == b.case.arm)
        }
        (a, _) => absent(if a.is_none() { &asked.case } else { &asked.against }),
    };
    let named = |side: Option<&Side<'_>>, asked: &str| side.map_or(asked, |s| &s.case.id).to_string();
    ComparisonSummary {
        label: asked.label.clone(),
        case: named(case, &asked.case),
        against: named(against, &asked.against),
        target: asked.target,
        outcome: asked.target.zip(result.speed).map(|(target, ratio)| outcome(target, &ratio)),
        result,
    }
}

fn outcome(target: f64, ratio: &Estimate) -> Outcome {
    match ratio.interval.filter(|_| ratio.n >= FEWEST_FOR_A_TARGET) {
        Some((low, _)) if low >= target => Outcome::Reached,
        Some((_, high)) if high < target => Outcome::Missed,
        _ => Outcome::Unclear,
    }
}

/// The comparison of an ablation with its base; `None` of any other case.
pub(crate) fn ablation<'f>(off: &Side<'_>, find: &Find<'f, '_>) -> Option<AblationSummary> {
    let ablation = off.case.ablation.as_ref()?;
    let declared: Vec<String> = match ablation.off.as_str() {
        "all" => vec!["kernels".to_string()],
        seams => seams.split('+').map(|seam| format!("kernels.{seam}")).collect(),
    };
    let result = match find(&ablation.of) {
        Some(base) => {
            let mut result = compare(off, base, &declared, true);
            if result.verdict == Some(Verdict::Valid) && result.differences.is_empty() {
                result.verdict = Some(Verdict::NotComparable);
                result.reasons.push(format!(
                    "expected {} to differ, saw the same kernel plan in both",
                    declared.join(" and ")
                ));
                (result.speed, result.memory, result.speed_without_slow_steps) = (None, None, None);
            }
            result
        }
        None => absent(&ablation.of),
    };
    let (case, of, off) = (off.case.id.clone(), ablation.of.clone(), ablation.off.clone());
    Some(AblationSummary { case, of, off, result })
}

fn absent(id: &str) -> Compared {
    Compared {
        reasons: vec![format!("{id} is not part of this run, or no cell of its sweep is valid")],
        ..Compared::default()
    }
}
