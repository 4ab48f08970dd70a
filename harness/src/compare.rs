//! `chronibench compare A B`: two stored runs, case by case.

use std::path::{Path, PathBuf};

use chronibench_analysis::{
    RunSummary,
    across::{Across, CaseAcross, Part, Seen, across, rows},
    asked::{Difference, is_of_method},
    stats::{Estimate, FEWEST_FOR_A_CLAIM},
    summarise,
};
use clap::Args;
use serde_json::Value;

use crate::{
    error::{Error, Exit, Result},
    gate::{baseline, output},
    store::{RESOLVED, Store, Stored},
    tables::TableArgs,
};

/// What the help shows.
pub const EXAMPLES: &str = "\
Examples:
  chronibench compare runs/monday runs/tuesday
  chronibench compare runs/monday runs/tuesday -k full/on --json
  chronibench compare runs/monday::chronicals/full/on runs/monday::candle/full/on

Every figure of the second is divided by the first's. Runs of two sessions are unpaired, and the
machine may have changed between them: `gate` runs both in turns, `join` goes through an anchor. Two cases
of one run (DIR::CASE) are paired by round. Fewer than 6 trials of a side give no verdict: their
interval is too narrow to be believed.
Exit codes: 0 whatever was seen; 1 with --fail-slower, a case is slower by its whole interval; 3 no
case can be compared.";

/// Arguments of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Run folder, or one case of it: DIR or DIR::CASE.
    pub a: String,
    /// Run folder, or one case of it.
    pub b: String,
    /// Cases and form.
    #[command(flatten)]
    pub table: TableArgs,
    /// End with exit code 1 when a case is slower.
    #[arg(long)]
    pub fail_slower: bool,
}

struct Loaded {
    dir: PathBuf,
    case: Option<String>,
    summary: RunSummary,
    environment: Value,
}

/// Compares two runs.
///
/// # Errors
/// One is no run folder, or they have no case in common.
pub fn run(args: &CompareArgs) -> Result<Exit> {
    let (a, b) = (load(&args.a)?, load(&args.b)?);
    let same_run = a.dir == b.dir;
    if same_run && (a.case.is_none() || b.case.is_none() || a.case == b.case) {
        return Err(Error::usage("both are the same run", args.a.clone())
            .hint("name another run, or two cases of this one: DIR::CASE"));
    }
    let part = |name, l| part(name, l);
    let mut found = across(part(&args.a, &a), part(&args.b, &b), same_run).map_err(|what| {
        Error::usage(what, format!("{} {}", args.a, args.b)).hint("name runs of one scenario")
    })?;
    if let Some(text) = &args.table.case {
        found.cases.retain(|c| c.case.contains(text.as_str()));
        if found.cases.is_empty() {
            return Err(Error::usage(format!("no case in common contains '{text}'"), format!("-k {text}"))
                .hint("leave -k out to see all"));
        }
    }
    args.table.give(&found, rows(&found), |rows| print(&found, rows))?;
    let few = found.cases.iter().filter(|c| c.seen == Seen::TooFew).count();
    if args.fail_slower && few > 0 {
        // On stderr: stdout may be JSON.
        eprintln!(
            "--fail-slower says nothing on {few} of {} cases: too few trials; run with --trials {FEWEST_FOR_A_CLAIM} or more",
            found.cases.len()
        );
    }
    Ok(exit(&found, args.fail_slower))
}

fn part<'a>(name: &'a str, l: &'a Loaded) -> Part<'a> {
    Part { name, summary: &l.summary, environment: &l.environment, case: l.case.as_deref() }
}

fn exit(found: &Across, fail_slower: bool) -> Exit {
    if found.cases.iter().all(|c| c.seen == Seen::NotComparable) {
        Exit::NotValid
    } else if fail_slower && found.cases.iter().any(|c| c.seen == Seen::Slower) {
        Exit::Regression
    } else {
        Exit::Pass
    }
}

fn load(name: &str) -> Result<Loaded> {
    let (dir, case) = match name.split_once("::") {
        Some((dir, case)) => (dir, Some(case.to_string())),
        None => (name, None),
    };
    let path = Path::new(dir);
    if !path.join(RESOLVED).is_file() && baseline::is_saved(dir) {
        return Err(Error::usage("a saved baseline is a program, and has no figures", name)
            .hint(format!("run it in turns with this one: `chronibench gate FILE --baseline {dir}`")));
    }
    if crate::kernel::store::is_run(path) {
        return Err(Error::usage("only runs of a scenario are compared", name)
            .hint("`chronibench report DIR` shows what a run of kernels came to"));
    }
    let Stored { resolved, environment, logs } = Store::open(path)?.load()?;
    let dir = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    Ok(Loaded { dir, case, summary: summarise(&resolved, &logs), environment })
}

/// What two cases were not asked alike, in lines. What a method differs in is a reason, and in the table. Of two programs the kernels and
/// options that one alone has are the program, and no lines of their own.
fn asked_otherwise(case: &CaseAcross) -> Vec<String> {
    let other_program = case.differences.iter().any(|(name, ..)| name == "runner");
    let own = |(name, a, b): &Difference| {
        let has_name = name.starts_with("kernels.") || name.starts_with("options.");
        other_program && has_name && (a.is_null() || b.is_null())
    };
    let told = case.differences.iter().filter(|d| !is_of_method(d) && !own(d));
    let line = |(name, a, b): &Difference| match name.as_str() {
        "runner" => format!("{}: runner differs: {a} and {b}", case.case),
        _ => format!("{}: {name} was asked to be {a} and {b}", case.case),
    };
    told.map(line).collect()
}

fn print(found: &Across, rows: Vec<Vec<String>>) {
    output::grid(rows);
    for (name, a, b) in &found.environment {
        let show = |v: &Value| v.as_str().map_or_else(|| v.to_string(), |s| s.chars().take(24).collect());
        println!("{name} differs: {} and {}", show(a), show(b));
    }
    found.cases.iter().flat_map(asked_otherwise).for_each(|line| println!("{line}"));
    for only in &found.only {
        println!("on one side alone: {only}");
    }
    let few = |e: &Option<Estimate>| e.is_some_and(|e| e.n < FEWEST_FOR_A_CLAIM);
    let intervals = match found.cases.iter().any(|c| few(&c.a) || few(&c.b) || few(&c.speed)) {
        true => format!(
            "95 % bootstrap intervals, of fewer than {FEWEST_FOR_A_CLAIM} trials no wider than their range"
        ),
        false => "95 % bootstrap intervals".to_string(),
    };
    let how = if found.paired { "paired by round" } else { "unpaired, of two sessions" };
    println!("{intervals}, {how}; first: {}, second: {}", found.a, found.b);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_runner_is_one_line() {
        let told = |differences: &[(&str, Value, Value)]| {
            let differences = differences.iter().map(|(n, a, b)| (n.to_string(), a.clone(), b.clone()));
            asked_otherwise(&CaseAcross {
                case: "a".into(),
                a: None,
                b: None,
                speed: None,
                memory: None,
                seen: Seen::TooFew,
                reasons: Vec::new(),
                differences: differences.collect(),
            })
        };
        let none = Value::Null;
        let kernels = ["kernels.loss", "kernels.mlp"].map(|name| (name, json!("fused"), none.clone()));
        let options = ("options.attention", none.clone(), json!("sdpa"));
        let rate = ("train.learning_rate", json!(1), json!(2));
        let runner = ("runner", json!("native"), json!("trl"));
        let all = [&kernels[..], &[options, runner, rate.clone()]].concat();
        let lines =
            ["a: runner differs: \"native\" and \"trl\"", "a: train.learning_rate was asked to be 1 and 2"];
        assert_eq!(told(&all), lines);
        // Of one program a kernel is a setting.
        assert_eq!(told(&kernels[..1]), ["a: kernels.loss was asked to be \"fused\" and null"]);
    }
}
