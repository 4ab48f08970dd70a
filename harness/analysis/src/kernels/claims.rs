//! What is claimed of kernels (by default in the Chronicals paper, [`CHRONICALS`](crate::claims::CHRONICALS)), and what the rows say.

use chronibench_protocol::kernels::Side;
use serde::{Deserialize, Serialize};

use super::{RowSummary, Speedup, Traffic, UNFUSED};
use crate::{
    claims::{KernelClaims, KernelMemory, KernelSpeedup},
    stats::Estimate,
};

/// Transformers' own modules, as they are.
pub(super) const HF_EAGER: &str = "hf_eager";

/// Whether the measurement bears a claim out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// The lower end of the interval reaches it.
    Reproduced,
    /// It does not.
    NotReproduced,
    /// Nothing to compare with was measured.
    NotMeasured,
}

/// A claim against one baseline at one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimOutcome {
    /// As in the list of claims: `K1`.
    pub id: String,
    /// What is claimed.
    pub what: String,
    /// Operation.
    pub op: String,
    /// Shape; empty where nothing was measured.
    pub case: String,
    /// Implementation that ours is compared with; empty where there is none.
    pub against: String,
    /// The claimed ratio, or share for K4.
    pub claimed: f64,
    /// The measured one.
    pub measured: Option<Estimate>,
    /// What memory traffic alone allows, where that is known.
    pub cap: Option<String>,
    /// The verdict.
    pub outcome: Outcome,
}

fn outcome(measured: Option<Estimate>, claimed: f64) -> Outcome {
    match measured {
        None => Outcome::NotMeasured,
        Some(e) if e.interval.map_or(e.median, |(low, _)| low) >= claimed => Outcome::Reproduced,
        Some(_) => Outcome::NotReproduced,
    }
}

pub(super) fn judge(
    claims: &KernelClaims<'_>,
    rows: &[RowSummary],
    speedups: &[Speedup],
    counted: &[Traffic],
) -> Vec<ClaimOutcome> {
    let mut all: Vec<ClaimOutcome> =
        claims.speedups.iter().flat_map(|(id, c)| speed(id, c, speedups)).collect();
    for (id, share) in claims.traffic.iter().map(|(id, c)| (*id, c.removed)) {
        let by_time = |c: &KernelSpeedup| traffic((id, share), c, speedups, counted);
        all.extend(claims.speedups.iter().flat_map(|(_, c)| by_time(c)));
        all.extend(counted.iter().map(|t| removed((id, share), t)));
    }
    all.extend(claims.memory.iter().flat_map(|(id, c)| memory(id, c, rows)));
    all
}

fn empty(id: &str, what: String, op: &str, claimed: f64) -> ClaimOutcome {
    ClaimOutcome {
        id: id.into(),
        what,
        op: op.into(),
        case: String::new(),
        against: String::new(),
        claimed,
        measured: None,
        cap: None,
        outcome: Outcome::NotMeasured,
    }
}

/// A speed-up against every implementation at every shape.
fn speed(id: &str, claim: &KernelSpeedup, speedups: &[Speedup]) -> Vec<ClaimOutcome> {
    let of_op = |op: &String| {
        let none = empty(id, format!("{} {}×", claim.kernel, claim.factor), op, claim.factor);
        let forward = *op == claim.ops[0];
        let cap = |against: &str| claim.caps.get(against).filter(|_| forward).cloned();
        let found: Vec<ClaimOutcome> = speedups
            .iter()
            .filter(|s| s.op == *op)
            .map(|s| ClaimOutcome {
                case: s.case.clone(),
                against: s.against.clone(),
                measured: Some(s.ratio),
                cap: cap(&s.against),
                outcome: outcome(Some(s.ratio), claim.factor),
                ..none.clone()
            })
            .collect();
        // A backward that nobody compared is not worth a line of its own.
        if found.is_empty() && forward { vec![none] } else { found }
    };
    claim.ops.iter().flat_map(of_op).collect()
}

/// Traffic against our own unfused variant: what both count.
fn removed((id, share): (&str, f64), t: &Traffic) -> ClaimOutcome {
    let measured = Some(Estimate { median: t.removed(), interval: None, n: 1 });
    ClaimOutcome {
        case: t.case.clone(),
        against: UNFUSED.into(),
        measured,
        outcome: outcome(measured, share),
        ..empty(id, format!("{:.0} % of the traffic, counted", share * 100.0), &t.op, share)
    }
}

/// Traffic against Transformers, whose passes nobody counts: of two kernels that memory limits, the share of time that one saves is
/// the share of traffic. It is a line even where nothing was measured, unless the passes of that operation were counted.
fn traffic(
    (id, share): (&str, f64),
    claim: &KernelSpeedup,
    speedups: &[Speedup],
    counted: &[Traffic],
) -> Vec<ClaimOutcome> {
    let what = format!("{}: {:.0} % of the traffic, by time", claim.kernel, share * 100.0);
    let op = &claim.ops[0];
    let none = empty(id, what, op, share);
    let eager = speedups.iter().filter(|s| s.op == *op && s.against == HF_EAGER);
    let found: Vec<ClaimOutcome> = eager
        .map(|s| {
            let saved = |ratio: f64| 1.0 - 1.0 / ratio;
            let measured = Estimate {
                median: saved(s.ratio.median),
                interval: s.ratio.interval.map(|(low, high)| (saved(low), saved(high))),
                n: s.ratio.n,
            };
            ClaimOutcome {
                case: s.case.clone(),
                against: s.against.clone(),
                measured: Some(measured),
                outcome: outcome(Some(measured), share),
                ..none.clone()
            }
        })
        .collect();
    let is_counted = counted.iter().any(|t| t.op == *op);
    if found.is_empty() && !is_counted { vec![none] } else { found }
}

/// Memory of each implementation over the least of ours at the same batch, whatever the chunk.
fn memory(id: &str, claim: &KernelMemory, rows: &[RowSummary]) -> Vec<ClaimOutcome> {
    let what = format!("{}: {}× less memory", claim.kernel, claim.factor);
    let none = empty(id, what, &claim.op, claim.factor);
    let of_op = || rows.iter().filter(|r| r.op == claim.op && r.is_valid());
    let bytes = |r: &&RowSummary| r.memory_bytes.unwrap_or(u64::MAX);
    let least = of_op().filter(|r| r.side == Side::Native && r.variant != UNFUSED).min_by_key(bytes);
    let Some((ours, least)) = least.and_then(|r| Some((r, r.memory_bytes.filter(|b| *b > 0)?))) else {
        return vec![none];
    };
    let mut found: Vec<ClaimOutcome> = Vec::new();
    for row in of_op().filter(|r| r.side == Side::References || r.variant == UNFUSED) {
        let Some(bytes) = row.memory_bytes else { continue };
        let measured = Some(Estimate { median: bytes as f64 / least as f64, interval: None, n: 1 });
        found.push(ClaimOutcome {
            case: ours.case.clone(),
            against: row.variant.clone(),
            measured,
            outcome: outcome(measured, claim.factor),
            ..none.clone()
        });
    }
    if found.is_empty() { vec![none] } else { found }
}
