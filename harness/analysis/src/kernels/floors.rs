//! What this project asks of its own kernels, in one table.

use chronibench_protocol::kernels::Side;
use serde::{Deserialize, Serialize};

use super::{RowSummary, UNFUSED, ours};

/// Least share of a copy's rate, for what memory limits.
const OF_COPY: f64 = 0.85;

/// Linear cross-entropy's time over that of its three products, at most.
const OVER_PRODUCTS: f64 = 1.20;

/// Least rates of attention, FLOP/s, at [`ATTENTION_CASE`]: implementation, forward, backward.
const ATTENTION: [(&str, f64, f64); 2] = [("mma", 200e12, 160e12), ("hopper", 300e12, 240e12)];

const ATTENTION_CASE: &str = "14/2x64 8x2048";

/// A floor and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FloorOutcome {
    /// Operation.
    pub op: String,
    /// Shape.
    pub case: String,
    /// Implementation.
    pub variant: String,
    /// The floor in words.
    pub floor: String,
    /// The figure in words; `None` where the row is not VALID.
    pub measured: Option<String>,
    /// Whether it is met; `None` where nothing was measured.
    pub met: Option<bool>,
}

fn outcome(r: &RowSummary, floor: String, measured: Option<(String, bool)>) -> FloorOutcome {
    let (measured, met) = measured.unzip();
    let (op, case, variant) = (r.op.clone(), r.case.clone(), r.variant.clone());
    FloorOutcome { op, case, variant, floor, measured, met }
}

pub(super) fn judge(rows: &[RowSummary]) -> Vec<FloorOutcome> {
    let native = || rows.iter().filter(|r| r.side == Side::Native && r.variant != UNFUSED);
    let mut all: Vec<FloorOutcome> = native().filter(|r| r.flops == 0).map(of_copy).collect();
    all.extend(native().filter(|r| r.op == "linear_ce").map(|r| over_products(r, rows)));
    all.extend(native().filter(|r| r.case == ATTENTION_CASE).filter_map(attention));
    all
}

fn of_copy(r: &RowSummary) -> FloorOutcome {
    let measured = r.of_copy.map(|e| (format!("{:.0} %", e.median * 100.0), e.median >= OF_COPY));
    outcome(r, format!("{:.0} % of a copy", OF_COPY * 100.0), measured)
}

fn over_products(r: &RowSummary, rows: &[RowSummary]) -> FloorOutcome {
    // `16384x896x151936 by 2048`: the products know of no chunk.
    let case = r.case.split(" by ").next().unwrap_or_default();
    let products = ours(rows, "linear_ce_products", case);
    let time = |r: &RowSummary| r.cold.map(|e| e.median);
    let ratio = products.and_then(|p| Some(time(r)? / time(p)?));
    let measured = ratio.map(|x| (format!("{x:.2}×"), x <= OVER_PRODUCTS));
    outcome(r, format!("at most {OVER_PRODUCTS:.2}× its three products"), measured)
}

fn attention(r: &RowSummary) -> Option<FloorOutcome> {
    let (_, forward, backward) = ATTENTION.iter().find(|(name, ..)| *name == r.variant)?;
    let floor = match r.op.as_str() {
        "attention_forward" => forward,
        "attention_backward" => backward,
        _ => return None,
    };
    let measured = r.cold.map(|e| {
        let rate = r.flops as f64 / e.median;
        (format!("{:.0} TFLOP/s", rate / 1e12), rate >= *floor)
    });
    Some(outcome(r, format!("{:.0} TFLOP/s", floor / 1e12), measured))
}
