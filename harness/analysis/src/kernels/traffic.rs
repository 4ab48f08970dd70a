//! Memory traffic of fused and unfused variants, as both count it.

use chronibench_protocol::kernels::Side;
use serde::{Deserialize, Serialize};

use super::{RowSummary, UNFUSED, ours};

/// What our fastest implementation and the unfused one move at an operation and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Operation.
    pub op: String,
    /// Shape.
    pub case: String,
    /// Our implementation.
    pub ours: String,
    /// Bytes that its passes read and write.
    pub bytes: u64,
    /// Those of the unfused one.
    pub unfused_bytes: u64,
}

impl Traffic {
    /// Share of the traffic that fusion removes; negative where it adds some.
    pub fn removed(&self) -> f64 {
        1.0 - self.bytes as f64 / self.unfused_bytes as f64
    }
}

/// Every operation and shape at which both count what they move.
pub(super) fn counted(rows: &[RowSummary]) -> Vec<Traffic> {
    let unfused = |r: &&RowSummary| r.side == Side::Native && r.variant == UNFUSED && r.is_valid();
    rows.iter()
        .filter(unfused)
        .filter_map(|r| {
            let ours = ours(rows, &r.op, &r.case)?;
            let (bytes, unfused_bytes) = (ours.moved_bytes?, r.moved_bytes.filter(|b| *b > 0)?);
            let (op, case, ours) = (r.op.clone(), r.case.clone(), ours.variant.clone());
            Some(Traffic { op, case, ours, bytes, unfused_bytes })
        })
        .collect()
}
