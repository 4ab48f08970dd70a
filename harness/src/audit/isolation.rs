//! Whether documents that share a row see each other: one step on two documents of which only the second has labels, made twice
//! with another first document. Nothing of the step may differ. It works for every arm, through the protocol alone.

use std::path::Path;

use chronibench_protocol::{
    BatchPlan, Spec, TokenStore,
    audit::Isolation,
    plan::{MicroBatch, StepPlan},
    record::{Case, Packing},
    spec::{AuditTrial, DataSpec},
};

use super::updates::complete;
use crate::{
    error::{AtPath, Error, Result},
    runner::{Bench, Turn},
    weights::Weights,
};

/// Rows with several documents are what this is about.
pub fn applies(case: &Case) -> bool {
    case.batch.packing != Packing::None
}

/// A row of two documents is nothing new to an arm on these batches.
pub fn is_usual(plan: &BatchPlan) -> bool {
    plan.steps.iter().flat_map(|s| &s.micro_batches).flat_map(|m| &m.rows).any(|row| row.len() > 1)
}

/// Runs the two trials of one step; in words what the arm gave nothing for: it failed, told no loss, or saved no weights.
///
/// # Errors
/// No two samples fit into a row, the harness cannot write, or it is interrupted.
pub fn look(bench: &Bench<'_>, turn: Turn<'_>, spec: &Spec) -> Result<Told<Isolation>> {
    let (_, plan) = bench.inputs.plan(turn.case);
    let [first, second] = documents(&bench.inputs.tokens, plan.max_length as usize)?;
    // Any other tokens will do; these are of the same vocabulary.
    let other: Vec<u32> = first.iter().rev().map(|id| if *id > 0 { id - 1 } else { id + 1 }).collect();
    let folder = bench.folder.join("work").join(format!("{}-isolation", turn.trial_id()));
    let mut ends = Vec::new();
    for (name, ahead) in [("one", &first), ("other", &other)] {
        let dir = folder.join(name);
        std::fs::create_dir_all(&dir).at(&dir)?;
        ends.push(step(bench, turn, &one_step(spec, plan, ahead, &second, &dir)?, &dir)?);
    }
    let other = ends.pop().expect("two steps");
    let isolation = match (ends.pop().expect("two steps"), other) {
        (Ok(one), Ok(other)) => {
            let (distance, tensor) = distance(bench, spec, &one.1, &other.1)?;
            Ok(Isolation { losses: [one.0, other.0], distance, tensor })
        }
        (Err(why), _) | (_, Err(why)) => {
            Err(format!("expected one step on a row of two documents, saw the arm fail: {why}"))
        }
    };
    std::fs::remove_dir_all(&folder).at(&folder)?;
    Ok(isolation)
}

/// Something of an arm's, or why it gave nothing.
type Told<T> = std::result::Result<T, String>;

/// Two samples that fit a row together, the longer ones of the first that there are; the second with something to learn.
fn documents(tokens: &TokenStore, room: usize) -> Result<[Vec<u32>; 2]> {
    let ids = |s: usize| tokens.sample(s).0;
    let fitting = |s: &usize| (8..=room / 2).contains(&ids(*s).len());
    let mut some = (0..tokens.len()).filter(fitting);
    match (some.next(), some.next()) {
        (Some(a), Some(b)) => Ok([ids(a).to_vec(), ids(b).to_vec()]),
        _ => Err(Error::environment("no two samples fit into one row", "the data set")
            .hint("raise data.max_length")),
    }
}

/// The specification of one step on the two documents.
fn one_step(spec: &Spec, plan: &BatchPlan, ahead: &[u32], second: &[u32], dir: &Path) -> Result<Spec> {
    let mut tokens = TokenStore::new();
    tokens.push(ahead, &vec![0; ahead.len()]);
    tokens.push(second, &vec![1; second.len()]);
    let micro = MicroBatch { row_slots: (ahead.len() + second.len()) as u32, rows: vec![vec![0, 1]] };
    let plan = BatchPlan { steps: vec![StepPlan { micro_batches: vec![micro] }], ..plan.clone() };
    let data = DataSpec { tokens: dir.join("tokens.safetensors"), plan: dir.join("plan.json") };
    tokens
        .save(&data.tokens)
        .map_err(|e| Error::environment(e.to_string(), data.tokens.display().to_string()))?;
    std::fs::write(&data.plan, serde_json::to_vec(&plan).expect("plain data")).at(&data.plan)?;
    Ok(Spec {
        data,
        audit: Some(AuditTrial { steps: 1, first_weights: dir.join("first.safetensors") }),
        save_weights: Some(dir.join("weights.safetensors")),
        ..spec.clone()
    })
}

/// Loss and weights of the step. Weights that lack a tensor would hide what a neighbour does to it.
fn step(bench: &Bench<'_>, turn: Turn<'_>, spec: &Spec, dir: &Path) -> Result<Told<(f64, Weights)>> {
    let steps = match bench.child(&turn.case.runner, Some(turn.arm()), spec, dir)? {
        Ok(steps) => steps,
        Err(why) => return Ok(Err(why)),
    };
    let Some(loss) = steps.first().map(|s| s.loss).filter(|l| l.is_finite()) else {
        return Ok(Err("it told no loss".into()));
    };
    let saved = spec.save_weights.as_deref().expect("asked for");
    Ok(complete(saved, &bench.expect.trainable(&spec.method)).map(|weights| (loss, weights)))
}

/// The largest distance between two updates of a tensor, over the length of one. The embedding is left out: rows of other tokens
/// move there, if only by their decay.
fn distance(bench: &Bench<'_>, spec: &Spec, one: &Weights, other: &Weights) -> Result<(f64, String)> {
    let start = super::start(spec).into_iter().map(Weights::open).collect::<Result<Vec<_>>>()?;
    let mut worst = (0.0, String::new());
    for t in bench.expect.trainable(&spec.method) {
        let Some(before) = start.iter().find(|w| w.has(&t)) else { continue };
        if t.name.contains("embed_tokens") {
            continue;
        }
        let (s, a, b) = (before.read(&t.name)?, one.read(&t.name)?, other.read(&t.name)?);
        let square = |x: f64| x * x;
        let far: f64 = a.iter().zip(&b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let way: f64 = s.iter().zip(&a).map(|(s, a)| square(f64::from(*a) - f64::from(*s))).sum();
        let relative = if far == 0.0 { 0.0 } else { (far / way.max(f64::MIN_POSITIVE)).sqrt().min(1e3) };
        if relative > worst.0 {
            worst = (relative, t.name.clone());
        }
    }
    Ok(worst)
}
