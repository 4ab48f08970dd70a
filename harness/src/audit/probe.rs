//! Samples that no trial trains on, and their loss under saved weights.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use chronibench_protocol::{
    BatchPlan, Spec,
    audit::{AuditArgs, Probe},
    plan::{MicroBatch, StepPlan},
    spec::{DataSpec, Method},
};

use super::EvaluateSpec;
use crate::{
    error::{AtPath, Error, Exit, Result},
    runner::{Bench, child},
};

/// Samples of one batch; the standard error is over batches.
const ROWS: usize = 4;

/// Fewer samples than this say nothing.
const LEAST: usize = 8;

/// The samples, as a plan on disk, and their loss under the starting weights.
pub struct ProbeSet {
    data: DataSpec,
    samples: usize,
    before: Vec<(f64, u64)>,
}

impl ProbeSet {
    /// Chooses samples that are in no plan of this run; nothing where too few are left.
    ///
    /// # Errors
    /// The harness is interrupted, cannot write, or cannot evaluate the starting weights.
    pub fn choose(bench: &Bench<'_>, args: &AuditArgs, device: &str) -> Result<Option<Self>> {
        let tokens = &bench.inputs.tokens;
        let mut trained: BTreeSet<u32> = BTreeSet::new();
        let mut pad_token_id = 0;
        for case in &bench.setup.resolved.cases {
            let (_, plan) = bench.inputs.plan(case);
            pad_token_id = plan.pad_token_id;
            trained.extend(plan.steps.iter().flat_map(|s| &s.micro_batches).flat_map(|m| m.rows.concat()));
        }
        let learns = |s: &u32| tokens.sample(*s as usize).1.iter().skip(1).any(|m| *m != 0);
        let unseen: Vec<u32> =
            (0..tokens.len() as u32).filter(|s| !trained.contains(s)).filter(learns).collect();
        let wanted = (args.probe_samples as usize).min(unseen.len()) / ROWS * ROWS;
        if wanted < LEAST {
            return Ok(None);
        }
        // Evenly spaced: data sets are often sorted.
        let chosen: Vec<u32> = (0..wanted).map(|i| unseen[i * unseen.len() / wanted]).collect();
        let length = |s: &u32| tokens.sample(*s as usize).0.len() as u32;
        let longest = |rows: &[u32]| rows.iter().map(length).max().unwrap_or(1);
        let step = |rows: &[u32]| StepPlan {
            micro_batches: vec![MicroBatch {
                row_slots: longest(rows),
                rows: rows.iter().map(|s| vec![*s]).collect(),
            }],
        };
        let plan = BatchPlan {
            packing: "none".into(),
            max_length: longest(&chosen),
            pad_token_id,
            steps: chosen.chunks(ROWS).map(step).collect(),
        };
        let path = bench.folder.join("work/probe.json");
        std::fs::write(&path, serde_json::to_vec(&plan).expect("plain data")).at(&path)?;
        let data = DataSpec { tokens: bench.inputs.tokens_path().to_path_buf(), plan: path };
        let start = vec![bench.inputs.weights_path().to_path_buf()];
        // New adapters change nothing: the base alone is where every method starts.
        let mut losses = evaluate(bench, &data, &Method::Full {}, device, vec![start])?;
        let before = losses.pop().unwrap_or_default();
        Ok(Some(Self { data, samples: wanted, before }))
    }

    /// Loss under the weights of a trial, and under those of a reference.
    ///
    /// # Errors
    /// The weights cannot be read, or the harness is interrupted.
    pub fn probe(
        &self,
        bench: &Bench<'_>,
        spec: &Spec,
        saved: &Path,
        reference: Option<&Path>,
    ) -> Result<Probe> {
        let sets: Vec<Vec<PathBuf>> =
            [Some(saved), reference].into_iter().flatten().map(|p| vec![p.to_path_buf()]).collect();
        let losses = evaluate(bench, &self.data, &spec.method, &spec.device, sets)?;
        let after = losses.first().map(Vec::as_slice).unwrap_or_default();
        let falls: Vec<f64> = self.before.iter().zip(after).map(|(b, a)| mean(&[*b]) - mean(&[*a])).collect();
        Ok(Probe {
            samples: self.samples,
            before: mean(&self.before),
            after: mean(after),
            std_error: std_error(&falls),
            reference: losses.get(1).map(|l| mean(l)),
        })
    }
}

fn evaluate(
    bench: &Bench<'_>,
    data: &DataSpec,
    method: &Method,
    device: &str,
    weights: Vec<Vec<PathBuf>>,
) -> Result<Vec<Vec<(f64, u64)>>> {
    let spec = EvaluateSpec {
        model: chronibench_protocol::spec::ModelSpec {
            config: bench.setup.config.clone(),
            weights: bench.inputs.weights_path().to_path_buf(),
        },
        data: data.clone(),
        method: method.clone(),
        device: device.into(),
        weights,
    };
    let work = bench.folder.join("work");
    let path = work.join("evaluate.json");
    std::fs::write(&path, serde_json::to_vec(&spec).expect("plain data")).at(&path)?;
    let args = ["worker", "evaluate", "--spec"].map(String::from);
    let args: Vec<String> = args.into_iter().chain([path.display().to_string()]).collect();
    let answer = child::answer(&args, &work, "evaluate", bench.setup.helper_timeout)?;
    serde_json::from_str(&answer)
        .map_err(|e| Error::new(Exit::Trial, format!("the evaluation answered nonsense: {e}"), answer))
}

fn mean(losses: &[(f64, u64)]) -> f64 {
    let (sum, n) = losses.iter().fold((0.0, 0), |(s, n), (sum, tokens)| (s + sum, n + tokens));
    sum / n.max(1) as f64
}

fn std_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}
