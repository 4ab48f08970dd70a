//! criterion's results through the same gate.
//!
//! A `target/criterion` folder is one process a benchmark, however many samples it holds: one figure. Several folders, of
//! baseline and candidate in turn, are the pairs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use chronibench_analysis::{
    gate::{CasePairs, GatePlan, Program, SCHEMA, judge},
    stats::median,
};
use serde::Deserialize;

use super::{GateArgs, exit, output};
use crate::{
    error::{AtPath, Error, Exit, Result},
    store::damaged,
};

/// `noise` compares programs on a scenario; what a benchmark's process says on this machine nobody has looked at.
const UNCERTIFIED: &str =
    "nothing certifies a machine for results of criterion: give --enforce always for a FAIL to count";

/// Judges the folders.
///
/// # Errors
/// A folder holds no results, or damaged ones.
pub fn run(args: &GateArgs) -> Result<Exit> {
    let folders = &args.criterion;
    if !folders.len().is_multiple_of(2) {
        return Err(Error::usage(format!("{} folders are no pairs", folders.len()), "--criterion")
            .hint("give baseline and candidate in turn, four times or more: A B A B A B A B"));
    }
    let runs: Vec<BTreeMap<String, f64>> = folders.iter().map(|f| rates(f)).collect::<Result<_>>()?;
    let cases = selected(args.cases.case.as_deref(), &runs[0])?;
    let design = args.test.design_at_once((folders.len() / 2) as u32, cases.len())?;
    let about = |i: usize| Program { name: folders[i].display().to_string(), ..Program::default() };
    let plan = GatePlan {
        schema: SCHEMA.into(),
        scenario: "criterion".into(),
        baseline: about(0),
        candidate: about(1),
        design,
        cases: cases.clone(),
        enforce: args.enforce.into(),
        certificate: None,
        advisory: Vec::new(),
        uncertified: Some(UNCERTIFIED.into()),
    };
    let gate = judge(&plan, &cases.iter().map(|case| pairs_of(case, &runs)).collect::<Vec<_>>());
    output::write(&gate, args.junit.as_deref(), args.comment.as_deref())?;
    output::print(&gate, &folders[1]);
    Ok(exit(&gate))
}

/// The benchmarks of the first folder whose name contains `text`.
fn selected(text: Option<&str>, first: &BTreeMap<String, f64>) -> Result<Vec<String>> {
    let cases: Vec<String> = first.keys().filter(|c| text.is_none_or(|t| c.contains(t))).cloned().collect();
    match text.filter(|_| cases.is_empty()) {
        None => Ok(cases),
        Some(text) => {
            Err(Error::usage(format!("no benchmark's name contains '{text}'"), format!("-k {text}"))
                .hint(format!("there are {}", first.keys().cloned().collect::<Vec<_>>().join(", "))))
        }
    }
}

fn pairs_of(case: &str, runs: &[BTreeMap<String, f64>]) -> CasePairs {
    let mut out = CasePairs { case: case.into(), unit: "runs/s".into(), ..CasePairs::default() };
    for pair in runs.chunks_exact(2) {
        match (pair[0].get(case), pair[1].get(case)) {
            (Some(a), Some(b)) => out.pairs.push((*a, *b)),
            _ => out.problems.push("a folder lacks this benchmark".into()),
        }
    }
    out
}

/// `new/benchmark.json`.
#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

/// `new/sample.json`: nanoseconds of so many iterations.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Iterations a second of every benchmark below a folder: 1 over the median time of its samples.
///
/// A benchmark's folder has its results in `new`, and those before in `base`. Either may be a benchmark's name, too, and then has a
/// `new` of its own, beside results or without them: so every folder is gone into, and a name is what `benchmark.json` says.
fn rates(dir: &Path) -> Result<BTreeMap<String, f64>> {
    let mut rates = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let results = folder.join("new");
        let sample = results.join("sample.json");
        if sample.is_file() {
            let Benchmark { full_id } = read(&results.join("benchmark.json"))?;
            let Sample { iters, times } = read(&sample)?;
            let each: Vec<f64> = times.iter().zip(&iters).map(|(t, n)| t / n).collect();
            let typical = median(&each).filter(|t| t.is_finite() && *t > 0.0);
            let typical = typical.ok_or_else(|| damaged(&sample, "no time in it"))?;
            rates.insert(full_id, 1e9 / typical);
        }
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            let path: PathBuf = entry.at(&folder)?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    match rates.is_empty() {
        false => Ok(rates),
        true => Err(Error::usage("no results of criterion", dir.display().to_string())
            .hint("give the folder that `cargo bench` wrote: target/criterion")),
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).at(path)?;
    serde_json::from_str(&text).map_err(|e| damaged(path, &e.to_string()))
}
