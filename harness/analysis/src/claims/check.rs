//! The verdict on every claim of a ledger.

use std::collections::BTreeMap;

use super::{
    Check, Claim, Expect, Figure, Finding, Formula, Ledger, Metric, Ratio, Value, Verdict, formula, kernels,
};
use crate::{
    format::number,
    kernels::KernelSummary,
    stats::Estimate,
    summary::{CaseSummary, RunSummary},
};

/// Stored runs by folder; where several have a figure, the last one counts.
#[derive(Default)]
pub struct Runs {
    /// Runs of training.
    pub training: Vec<(String, RunSummary)>,
    /// Runs of kernels.
    pub kernels: Vec<(String, KernelSummary)>,
}

/// Checks every claim, in the file's order.
pub fn check(ledger: &Ledger, runs: &Runs) -> Vec<Finding> {
    let kernels = kernels::outcomes(ledger, &runs.kernels);
    ledger
        .claims
        .iter()
        .flat_map(|claim| match &claim.check {
            Check::Formula(f) => vec![formula_finding(claim, f, runs)],
            Check::Untestable { why } => vec![one(claim, Verdict::Untestable, why.clone(), None)],
            _ => kernels::findings(claim, &kernels),
        })
        .collect()
}

/// What the file expects of a claim, or of one of its parts.
pub(super) fn expected(claim: &Claim, part: Option<&str>) -> Option<Verdict> {
    match (&claim.expect, part) {
        (Expect::One(verdict), None) => Some(*verdict),
        (Expect::Each(parts), Some(part)) => parts.get(part).copied(),
        _ => None,
    }
}

fn one(claim: &Claim, verdict: Verdict, figures: String, run: Option<String>) -> Finding {
    Finding::of(claim, None, (verdict, figures), run)
}

/// A value with the ends of its interval and the run that it is from.
struct Known {
    low: f64,
    middle: f64,
    high: f64,
    run: Option<String>,
}

impl Known {
    fn of(e: &Estimate, run: &str) -> Self {
        let (low, high) = e.interval.unwrap_or((e.median, e.median));
        Self { low, middle: e.median, high, run: Some(run.into()) }
    }
}

fn formula_finding(claim: &Claim, f: &Formula, runs: &Runs) -> Finding {
    let mut known: BTreeMap<&str, Known> = BTreeMap::new();
    for (name, value) in &f.values {
        match look_up(value, runs) {
            Some(k) => drop(known.insert(name, k)),
            None => {
                let missing = match value {
                    Value::Figure(x) => format!("no run of '{}' has {}", x.scenario, x.case),
                    Value::Ratio(x) => {
                        let Ratio { ratio_of, over, method, scenario } = x;
                        format!("no run of '{scenario}' compares {ratio_of} with {over} ({method})")
                    }
                    Value::Number(_) => name.clone(),
                };
                return one(claim, Verdict::Untestable, missing, None);
            }
        }
    }
    let mut of_runs: Vec<String> = known.values().filter_map(|k| k.run.clone()).collect();
    of_runs.sort();
    of_runs.dedup();
    match extremes(&f.formula, &known) {
        Err(why) => one(claim, Verdict::Untestable, why, None),
        Ok(range) => {
            let (verdict, bound) = verdict(f, range, !of_runs.is_empty());
            let run = (!of_runs.is_empty()).then(|| of_runs.join(", "));
            one(claim, verdict, format!("{} = {}; {bound}", f.formula, show(range)), run)
        }
    }
}

/// Least, middle and greatest value over the corners of all intervals: exact for a formula that is monotone in each of its
/// values, as those of claims are.
fn extremes(text: &str, known: &BTreeMap<&str, Known>) -> Result<(f64, f64, f64), String> {
    let at = |pick: &dyn Fn(usize, &Known) -> f64| {
        let values = known.iter().enumerate().map(|(i, (name, k))| (name.to_string(), pick(i, k)));
        formula::evaluate(text, &values.collect())
    };
    let middle = at(&|_, k| k.middle)?;
    let (mut low, mut high) = (middle, middle);
    // A value without an interval has one corner, so few of the bits matter.
    let open: Vec<usize> =
        known.values().enumerate().filter(|(_, k)| k.low < k.high).map(|(i, _)| i).collect();
    for corner in 0..1u32 << open.len().min(10) {
        let upper = |i: usize| open.iter().position(|o| *o == i).is_some_and(|bit| corner >> bit & 1 == 1);
        let value = at(&|i, k| if upper(i) { k.high } else { k.low })?;
        (low, high) = (low.min(value), high.max(value));
    }
    Ok((low, middle, high))
}

fn verdict(f: &Formula, (low, middle, high): (f64, f64, f64), measured: bool) -> (Verdict, String) {
    let fails = f.otherwise.unwrap_or(if measured { Verdict::Refuted } else { Verdict::Inconsistent });
    let by = |reached: bool, missed: bool| match (reached, missed) {
        (true, _) => Verdict::Reproduced,
        (_, true) => fails,
        _ => Verdict::Untestable,
    };
    if let Some(claimed) = f.equals {
        let off = |x: f64| (x - claimed).abs() > f.tolerance * claimed.abs();
        let bound = format!("claimed {} ± {}", short(claimed), super::table::tolerance(f.tolerance));
        return (if off(middle) { fails } else { Verdict::Reproduced }, bound);
    }
    if let Some(least) = f.at_least {
        return (by(low >= least, high < least), format!("claimed at least {}", short(least)));
    }
    let most = f.at_most.unwrap_or(f64::INFINITY);
    (by(high <= most, low > most), format!("claimed at most {}", short(most)))
}

fn show((low, middle, high): (f64, f64, f64)) -> String {
    if low == high { short(middle) } else { format!("{} [{}, {}]", short(middle), short(low), short(high)) }
}

/// Three digits are not enough to tell 39.1 % from 39.6 %.
fn short(x: f64) -> String {
    if x.abs() < 1.0 {
        format!("{x:.4}")
    } else if x.abs() < 100.0 {
        format!("{x:.3}")
    } else {
        number(x)
    }
}

fn look_up(value: &Value, runs: &Runs) -> Option<Known> {
    match value {
        Value::Number(x) => Some(Known { low: *x, middle: *x, high: *x, run: None }),
        Value::Figure(f) => runs.training.iter().rev().find_map(|(dir, run)| figure(f, dir, run)),
        Value::Ratio(r) => runs.training.iter().rev().find_map(|(dir, run)| ratio(r, dir, run)),
    }
}

fn figure(f: &Figure, dir: &str, run: &RunSummary) -> Option<Known> {
    let case = run.cases.iter().find(|c| c.id == f.case && c.valid > 0 && run.name == f.scenario)?;
    let plain = |x: f64| Known { low: x, middle: x, high: x, run: Some(dir.into()) };
    match f.metric {
        Metric::RealTokensPerS => case.real_tokens_per_s.map(|e| Known::of(&e, dir)),
        Metric::SlotsPerS => case.slots_per_s.map(|e| Known::of(&e, dir)),
        Metric::PackingEfficiency => case.packing_efficiency.map(plain),
        Metric::ModelGflops => case.model_gflops.map(plain),
    }
}

fn ratio(r: &Ratio, dir: &str, run: &RunSummary) -> Option<Known> {
    if run.name != r.scenario {
        return None;
    }
    let is = |id: &str, arm: &str| {
        let of = |c: &&CaseSummary| c.id == id;
        let case = run.cases.iter().find(of);
        case.is_some_and(|c| c.arm == arm && c.axes.get("method").is_some_and(|m| *m == r.method))
    };
    let compared = run.comparisons.iter().find(|c| is(&c.case, &r.ratio_of) && is(&c.against, &r.over))?;
    Some(Known::of(compared.result.speed.as_ref()?, dir))
}
