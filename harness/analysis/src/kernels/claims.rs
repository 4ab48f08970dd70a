//! What the Chronicals paper (arXiv 2601.02609v1) claims of its kernels, and what the rows say.

use chronibench_protocol::kernels::Side;
use serde::{Deserialize, Serialize};

use super::{RowSummary, Speedup, Traffic, UNFUSED};
use crate::stats::Estimate;

/// A claimed speed-up of a fused kernel over other ways to run the operation.
struct Claim {
    id: &'static str,
    /// What is claimed, in the paper's terms.
    what: &'static str,
    factor: f64,
    /// Forward, then backward.
    ops: [&'static str; 2],
    /// What memory traffic alone allows over the forward of a baseline, where the passes of that are known.
    caps: &'static [(&'static str, &'static str)],
}

const CLAIMS: [Claim; 3] = [
    Claim {
        id: "K1",
        what: "fused RMSNorm",
        factor: 7.0,
        ops: ["rmsnorm_forward", "rmsnorm_backward"],
        caps: &[
            (HF_EAGER, "9× (its passes are f32); 3.5× against five passes in bf16"),
            (UNFUSED, "3.5× against five passes in bf16"),
        ],
    },
    Claim {
        id: "K2",
        what: "fused SwiGLU",
        factor: 5.0,
        ops: ["swiglu_forward", "swiglu_backward"],
        caps: &[
            (HF_EAGER, "1.67× (two kernels: 10 bytes an activation against 6); 2.67× against three"),
            (UNFUSED, "1.67× against two kernels, 2.67× against three"),
        ],
    },
    Claim {
        id: "K3",
        what: "fused QK-RoPE",
        factor: 2.3,
        ops: ["qk_rope_forward", "qk_rope_backward"],
        caps: &[("liger", "about 1× (already fused)"), ("torch_compile", "about 1× (already fused)")],
    },
];

/// Transformers' own modules, as they are.
pub(super) const HF_EAGER: &str = "hf_eager";

/// K4: the share of memory traffic that fusion is said to remove.
const TRAFFIC_REMOVED: f64 = 0.75;

/// C1 and C2: how many times less memory linear cross-entropy is said to need.
const MEMORY_FACTOR: f64 = 37.0;

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

pub(super) fn judge(rows: &[RowSummary], speedups: &[Speedup], counted: &[Traffic]) -> Vec<ClaimOutcome> {
    let mut all: Vec<ClaimOutcome> = CLAIMS.iter().flat_map(|c| speed(c, speedups)).collect();
    all.extend(CLAIMS.iter().flat_map(|c| traffic(c, speedups, counted)));
    all.extend(counted.iter().map(removed));
    all.extend(memory(rows));
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

/// K1 to K3 against every implementation at every shape.
fn speed(claim: &Claim, speedups: &[Speedup]) -> Vec<ClaimOutcome> {
    let of_op = |op: &'static str| {
        let none = empty(claim.id, format!("{} {}×", claim.what, claim.factor), op, claim.factor);
        let forward = op == claim.ops[0];
        let cap = |against: &str| {
            let known = claim.caps.iter().find(|(name, _)| forward && *name == against);
            known.map(|(_, cap)| cap.to_string())
        };
        let found: Vec<ClaimOutcome> = speedups
            .iter()
            .filter(|s| s.op == op)
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
    claim.ops.into_iter().flat_map(of_op).collect()
}

/// K4 against our own unfused variant: what both count.
fn removed(t: &Traffic) -> ClaimOutcome {
    let measured = Some(Estimate { median: t.removed(), interval: None, n: 1 });
    ClaimOutcome {
        case: t.case.clone(),
        against: UNFUSED.into(),
        measured,
        outcome: outcome(measured, TRAFFIC_REMOVED),
        ..empty("K4", "75 % of the traffic, counted".into(), &t.op, TRAFFIC_REMOVED)
    }
}

/// K4 against Transformers, whose passes nobody counts: of two kernels that memory limits, the share of time that one saves is
/// the share of traffic. It is a line even where nothing was measured, unless the passes of that operation were counted.
fn traffic(claim: &Claim, speedups: &[Speedup], counted: &[Traffic]) -> Vec<ClaimOutcome> {
    let what = format!("{}: 75 % of the traffic, by time", claim.what);
    let op = claim.ops[0];
    let none = empty("K4", what, op, TRAFFIC_REMOVED);
    let eager = speedups.iter().filter(|s| s.op == op && s.against == HF_EAGER);
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
                outcome: outcome(Some(measured), TRAFFIC_REMOVED),
                ..none.clone()
            }
        })
        .collect();
    let is_counted = counted.iter().any(|t| t.op == op);
    if found.is_empty() && !is_counted { vec![none] } else { found }
}

/// C1 and C2: memory of each implementation over the least of ours at the same batch, whatever the chunk.
fn memory(rows: &[RowSummary]) -> Vec<ClaimOutcome> {
    let none = empty("C1 C2", "linear cross-entropy: 37× less memory".into(), "linear_ce", MEMORY_FACTOR);
    let of_op = || rows.iter().filter(|r| r.op == "linear_ce" && r.is_valid());
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
            outcome: outcome(measured, MEMORY_FACTOR),
            ..none.clone()
        });
    }
    if found.is_empty() { vec![none] } else { found }
}
