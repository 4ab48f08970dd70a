//! Sweeps: an arm tried with several sets of options, of which comparisons take the best.
//!
//! Every cell runs once; the cell whose first trial is VALID and fastest gets the other trials. Choosing by one trial favours the swept
//! arm by chance, never the other side.

use chronibench_protocol::record::{Case, Verdict};
use serde::{Deserialize, Serialize};

use crate::{compare::Side, summary::TrialSummary};

/// One sweep of an arm, on one cell of the matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepSummary {
    /// `arm/axis value…`.
    pub id: String,
    /// Every cell, in the scenario's order.
    pub cells: Vec<CellSummary>,
    /// The best cell's case; `None` while no cell has a VALID first trial.
    pub best: Option<String>,
}

/// One cell of a sweep: its first trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellSummary {
    /// Case id.
    pub case: String,
    /// Verdict of the first trial; `None` before it ran.
    pub verdict: Option<Verdict>,
    /// Real tokens/s of the first trial, if it is VALID.
    pub real_tokens_per_s: Option<f64>,
    /// Largest GPU memory of its processes, or else resident set, bytes.
    pub peak_memory: Option<u64>,
    /// Why it is not VALID.
    pub reasons: Vec<String>,
}

impl SweepSummary {
    /// Every cell has had its first trial.
    pub fn is_complete(&self) -> bool {
        self.cells.iter().all(|c| c.verdict.is_some())
    }
}

/// A cell as the summary has it: its case, and its trials.
pub(crate) struct Cell<'a> {
    pub case: &'a Case,
    pub trials: Vec<TrialSummary>,
}

/// All sweeps among the cases, in their order.
pub(crate) fn sweeps(cells: &[Cell<'_>]) -> Vec<SweepSummary> {
    let mut all: Vec<SweepSummary> = Vec::new();
    for cell in cells {
        let Some(sweep) = &cell.case.sweep else { continue };
        let summary = cell_summary(cell);
        match all.iter_mut().find(|s| s.id == sweep.of) {
            Some(known) => known.cells.push(summary),
            None => all.push(SweepSummary { id: sweep.of.clone(), cells: vec![summary], best: None }),
        }
    }
    for sweep in &mut all {
        let rated = sweep.cells.iter().filter_map(|c| Some((c.real_tokens_per_s?, &c.case)));
        // Of equals the first.
        let best = rated.reduce(|best, next| if next.0 > best.0 { next } else { best });
        sweep.best = best.map(|(_, case)| case.clone());
    }
    all
}

fn cell_summary(cell: &Cell<'_>) -> CellSummary {
    let first = cell.trials.iter().find(|t| t.round == 0 && !t.superseded);
    let metrics = first.filter(|t| t.is_valid()).map(|t| &t.metrics);
    CellSummary {
        case: cell.case.id.clone(),
        verdict: first.map(|t| t.verdict),
        real_tokens_per_s: metrics.and_then(|m| m.real_tokens_per_s),
        peak_memory: first.and_then(|t| t.metrics.peak_memory()),
        reasons: first.map(|t| t.reasons.clone()).unwrap_or_default(),
    }
}

/// What a comparison names: a case, or the best cell of a sweep.
pub(crate) fn find<'s, 'a>(id: &str, sides: &'s [Side<'a>], sweeps: &[SweepSummary]) -> Option<&'s Side<'a>> {
    let sweep = sweeps.iter().find(|s| s.id == id);
    let id = sweep.and_then(|s| s.best.as_deref()).unwrap_or(id);
    sides.iter().find(|s| s.case.id == id)
}
