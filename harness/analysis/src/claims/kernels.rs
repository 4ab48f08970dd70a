//! Claims of single kernels, against a run of kernels.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Check, Claim, Expect, Finding, Ledger, Verdict};
use crate::{
    format::{percent, times},
    kernels::{ClaimOutcome, KernelSummary, Outcome},
};

/// A fused kernel is said to be this many times as fast as other ways to run the operation. A claim without a shape is
/// taken at the forward shape that serves it best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelSpeedup {
    /// The kernel in words.
    pub kernel: String,
    /// Claimed ratio of times.
    pub factor: f64,
    /// Forward, then backward.
    pub ops: [String; 2],
    /// What memory traffic alone allows the forward over a baseline, where its passes are known.
    #[serde(default)]
    pub caps: BTreeMap<String, String>,
}

/// Fusion is said to remove this share of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelTraffic {
    /// Claimed share.
    pub removed: f64,
}

/// An operation is said to need this many times less memory than other ways to run it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelMemory {
    /// The operation in words.
    pub kernel: String,
    /// Claimed ratio.
    pub factor: f64,
    /// Operation.
    pub op: String,
}

/// What of a ledger a run of kernels is held to.
pub(crate) struct KernelClaims<'a> {
    pub(crate) speedups: Vec<(&'a str, &'a KernelSpeedup)>,
    pub(crate) traffic: Vec<(&'a str, &'a KernelTraffic)>,
    pub(crate) memory: Vec<(&'a str, &'a KernelMemory)>,
}

impl Ledger {
    pub(crate) fn kernels(&self) -> KernelClaims<'_> {
        let mut all = KernelClaims { speedups: Vec::new(), traffic: Vec::new(), memory: Vec::new() };
        for claim in &self.claims {
            match &claim.check {
                Check::KernelSpeedup(c) => all.speedups.push((&claim.id, c)),
                Check::KernelTraffic(c) => all.traffic.push((&claim.id, c)),
                Check::KernelMemory(c) => all.memory.push((&claim.id, c)),
                Check::Formula(_) | Check::Untestable { .. } => {}
            }
        }
        all
    }
}

/// What a run of kernels, by its folder, comes to.
pub(super) type Outcomes<'a> = Vec<(&'a str, Vec<ClaimOutcome>)>;

/// What every run comes to, the last one first.
pub(super) fn outcomes<'a>(ledger: &Ledger, runs: &'a [(String, KernelSummary)]) -> Outcomes<'a> {
    runs.iter().rev().map(|(dir, summary)| (dir.as_str(), summary.claims_of(ledger))).collect()
}

/// The parts of a claim of kernels, in the order in which the file expects them. Each is held to the first run that has it: a run may be
/// of some kernels alone.
pub(super) fn findings(claim: &Claim, runs: &Outcomes) -> Vec<Finding> {
    let Expect::Each(parts) = &claim.expect else { return Vec::new() };
    let of_part = |part: &String| {
        let of_run = |(dir, outcomes): &(&str, Vec<ClaimOutcome>)| {
            let found = outcomes.iter().filter(|o| o.id == claim.id && belongs(claim, part, o));
            judge(&found.collect::<Vec<_>>(), claim).map(|judged| (judged, dir.to_string()))
        };
        let (judged, run) = runs.iter().find_map(of_run).map_or_else(
            || ((Verdict::Untestable, "no run of kernels has it".to_string()), None),
            |(judged, dir)| (judged, Some(dir)),
        );
        Finding::of(claim, Some(part), judged, run)
    };
    parts.keys().map(of_part).collect()
}

/// Of a speed-up the forward alone decides: the claim gives one number, and the paper derives it for the forward.
fn belongs(claim: &Claim, part: &str, o: &ClaimOutcome) -> bool {
    match &claim.check {
        Check::KernelSpeedup(c) => o.against == part && o.op == c.ops[0],
        Check::KernelTraffic(_) => o.op == part && o.against == crate::kernels::UNFUSED,
        _ => o.against == part,
    }
}

/// Nothing where nothing was measured.
fn judge(found: &[&ClaimOutcome], claim: &Claim) -> Option<(Verdict, String)> {
    let measured: Vec<(&ClaimOutcome, f64)> =
        found.iter().filter_map(|o| Some((*o, o.measured?.median))).collect();
    let ends = measured.iter().fold((f64::INFINITY, 0.0f64), |(l, h), (_, m)| (l.min(*m), h.max(*m)));
    let show = |x: f64| match claim.check {
        Check::KernelTraffic(_) => percent(x),
        _ => times(x),
    };
    let (first, _) = measured.first()?;
    let range = if measured.len() == 1 {
        show(ends.0)
    } else {
        format!("{} to {} over {} shapes", show(ends.0), show(ends.1), measured.len())
    };
    let figures = format!("{range}; claimed {}", show(first.claimed));
    let reached = measured.iter().any(|(o, _)| o.outcome == Outcome::Reproduced);
    Some((if reached { Verdict::Reproduced } else { Verdict::Refuted }, figures))
}
