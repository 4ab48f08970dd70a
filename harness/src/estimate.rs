//! How long trials take: from trials already run, from an earlier run on this machine, or from a FLOP model.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use chronibench_analysis::stats::median;
use chronibench_protocol::{
    event::TokenCounts,
    record::{Case, Line, ModelShape, Resolved},
    spec::Method,
};
use serde_json::Value;

use crate::{environment, inputs::Inputs, store::Store};

/// What a guess takes for a GPU that it knows nothing of: half of what dense bf16 products reach on an H100.
pub const GPU_GFLOPS: f64 = 350e3;

/// Seconds in which a trial on a GPU compiles, loads and tunes its kernels, and saves its weights.
pub const GPU_START_S: f64 = 10.0;

/// Times of the trials so far, by case.
#[derive(Default)]
pub struct Pace {
    walls: BTreeMap<String, Vec<f64>>,
    /// What the FLOP model says of every case at a nominal rate: right in proportion at best.
    model: BTreeMap<String, f64>,
}

impl Pace {
    /// No trial has run yet.
    pub fn new(resolved: &Resolved, shape: &ModelShape, inputs: &Inputs) -> Self {
        const NOMINAL_GFLOPS: f64 = 100.0;
        let seconds = |c: &Case| from_flops(c, shape, &inputs.counts(c), NOMINAL_GFLOPS);
        let cases = resolved.cases.iter();
        // A sweep's place is its best cell's, whichever that is.
        let named = |c: &Case| [Some(c.id.clone()), c.sweep.as_ref().map(|s| s.of.clone())];
        let model = cases.flat_map(|c| named(c).into_iter().flatten().map(|id| (id, seconds(c)))).collect();
        Self { walls: BTreeMap::new(), model }
    }

    /// A trial has ended.
    pub fn add(&mut self, case: &str, lines: &[Line]) {
        if let Some(Line::Exit(exit)) = lines.last() {
            self.add_seconds(case, exit.wall_ns as f64 / 1e9);
        }
    }

    fn add_seconds(&mut self, case: &str, seconds: f64) {
        self.walls.entry(case.to_string()).or_default().push(seconds);
    }

    /// Median time of a case, seconds.
    pub fn case(&self, id: &str) -> Option<f64> {
        self.walls.get(id).and_then(|w| median(w))
    }

    /// Estimated time of the trials in `order`; for a case that never ran, the FLOP model is scaled to those that did.
    pub fn left(&self, order: &[String]) -> Option<Duration> {
        let model = |id: &str| self.model.get(id).copied().unwrap_or(1.0);
        let scales: Vec<f64> = self.walls.keys().filter_map(|id| Some(self.case(id)? / model(id))).collect();
        let scale = median(&scales)?;
        let seconds: f64 = order.iter().map(|id| self.case(id).unwrap_or(scale * model(id))).sum();
        Some(Duration::from_secs_f64(seconds))
    }
}

/// The latest run under `runs/` of the same scenario, with the same steps, on the same machine.
pub fn earlier_run(runs: &Path, resolved: &Resolved) -> Option<(PathBuf, Pace)> {
    let machine = environment::machine().ok()?;
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(runs).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    folders.sort();
    folders.into_iter().rev().find_map(|dir| {
        let stored = Store::open(&dir).ok()?.load().ok()?;
        let here = stored.environment.get("machine") == Some(&machine);
        let same = stored.resolved.scenario_sha256 == resolved.scenario_sha256
            && stored.resolved.measure == resolved.measure;
        let mut pace = Pace::default();
        for log in &stored.logs {
            if let Some(exit) = &log.exit {
                pace.add_seconds(log.case(), exit.wall_ns as f64 / 1e9);
            }
        }
        (here && same && !pace.walls.is_empty()).then_some((dir, pace))
    })
}

/// Share of the rate of a lone matrix product that a whole training step reaches, by runner. Rough on purpose: it
/// is used only where nothing was ever measured, and the plan says so.
fn efficiency(runner: &str) -> f64 {
    match runner {
        "candle" => 0.15,
        _ => 0.7,
    }
}

/// Seconds of a trial from its tokens: 6 FLOPs a parameter and slot for full fine-tuning, 4 with a frozen base
/// (forward, and the gradient of the activations), plus start and saving of weights.
pub fn from_flops(case: &Case, model: &ModelShape, counts: &TokenCounts, gflops: f64) -> f64 {
    let per_parameter = match case.method {
        Method::Full {} => 6.0,
        Method::Lora(_) => 4.0,
    };
    let parameters = (model.block_matmul_params + model.head_params) as f64;
    let flops = per_parameter * parameters * counts.slots as f64;
    0.5 + flops / (gflops * 1e9 * efficiency(&case.runner))
}

/// A rate that `chronibench worker calibrate` printed.
pub fn rate(answer: &str) -> Option<f64> {
    serde_json::from_str::<Value>(answer).ok()?.as_f64().filter(|r| *r > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_uses_medians_and_fills_gaps_with_the_model() {
        let model = [("a", 4.0), ("b", 8.0), ("c", 6.0)].map(|(id, s)| (id.to_string(), s));
        let mut pace = Pace { model: model.into(), ..Pace::default() };
        let order = ["a", "b", "c"].map(String::from);
        assert_eq!(pace.left(&order), None);
        for s in [1.0, 2.0, 9.0] {
            pace.add_seconds("a", s);
        }
        pace.add_seconds("b", 4.0);
        assert_eq!(pace.left(&order), Some(Duration::from_secs(2 + 4 + 3)));
    }
}
