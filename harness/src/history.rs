//! `chronibench history`: figures of many runs in one file, and where their level changed.

use std::path::{Path, PathBuf};

use chronibench_analysis::{
    history::{Entry, Series, entries, rows, series},
    summarise,
    summary::CaseSummary,
};
use chronibench_protocol::digest::sha256_hex;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    error::{AtPath, Error, Exit, Result},
    evidence,
    gate::output,
    lock,
    store::{Store, Stored, write_whole},
    tables::TableArgs,
};

/// What the help shows.
pub const EXAMPLES: &str = "\
Examples:
  chronibench history add runs/20250131-101500-gate-cpu
  chronibench run scenarios/gate-cpu.yaml --history runs/history.jsonl
  chronibench history show -k full/on
  chronibench history show --json --fail-slower

One line a case and run. A run is added once. Figures of another machine, scenario, model, data set,
setting or number of steps are another series; a series of 15 or more is looked through for changes
of level (Pettitt's test at 1 %, 2 % of change at least).
Exit codes: 0; 1 with --fail-slower, the last change of a series was to a slower level.";

/// Where a history lies by default.
pub const FILE: &str = "runs/history.jsonl";

/// Sub-commands of `history`.
#[derive(Clone, Debug, Subcommand)]
pub enum HistoryCommand {
    /// Add runs.
    Add(AddArgs),
    /// Show all figures, and the steps among them.
    Show(ShowArgs),
}

/// Arguments of `history add`.
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// Run folders.
    #[arg(required = true)]
    pub dirs: Vec<PathBuf>,
    /// The history.
    #[arg(long, value_name = "FILE", default_value = FILE)]
    pub file: PathBuf,
}

/// Arguments of `history show`.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// The history.
    #[arg(long, value_name = "FILE", default_value = FILE)]
    pub file: PathBuf,
    /// Cases and form.
    #[command(flatten)]
    pub table: TableArgs,
    /// End with exit code 1 when the last change of a series was to a slower level.
    #[arg(long)]
    pub fail_slower: bool,
}

/// Runs a sub-command of `history`.
///
/// # Errors
/// A folder is no run, or the file is no history.
pub fn run(command: &HistoryCommand) -> Result<Exit> {
    match command {
        HistoryCommand::Add(args) => {
            for dir in &args.dirs {
                let added = add(&args.file, dir)?;
                println!("{}: {added} cases added to {}", dir.display(), args.file.display());
            }
            Ok(Exit::Pass)
        }
        HistoryCommand::Show(args) => show(args),
    }
}

/// Adds a run to a history; how many cases that were, none where the run is in it.
///
/// # Errors
/// The folder is no run of a scenario, or the file is no history.
pub fn add(file: &Path, dir: &Path) -> Result<usize> {
    if crate::kernel::store::is_run(dir) {
        return Err(Error::usage("a run of kernels has no tokens/s", dir.display().to_string())
            .hint("give a run of a scenario"));
    }
    let Stored { resolved, environment, logs } = Store::open(dir)?.load()?;
    let head = match evidence::read(dir)? {
        Some(evidence) => evidence.head(),
        // Older than chains: known by the moment at which it began.
        None => sha256_hex(environment.to_string().as_bytes()),
    };
    let _alone = lock::alone(file)?;
    let mut known = read(file)?;
    if known.iter().any(|e| e.head == head) {
        return Ok(0);
    }
    // Of the header, what is not in the record of the scenario: threads, and the tokens that the tokenizer made.
    let header = logs.iter().find_map(|l| l.header.as_ref());
    let header = header.map(|h| json!([h.spec.threads, h.tokens_sha256]));
    let r = &resolved;
    let run = json!([r.scenario_sha256, r.measure, r.model, r.data, header]);
    let work = |c: &CaseSummary| sha256_hex(json!([run, c.asked]).to_string().as_bytes())[..16].to_string();
    let name = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut summary = summarise(&resolved, &logs);
    // Of a gate, the candidate: what it is held against is in the history already, or never was meant to be.
    summary.cases.retain_mut(|c| {
        let candidate = c.id.strip_prefix("candidate+").map(str::to_string);
        let is_baseline = c.id.starts_with("baseline+");
        c.id = candidate.unwrap_or_else(|| c.id.clone());
        !is_baseline
    });
    let new = entries(&name, &head, &work, &summary, &environment);
    let count = new.len();
    known.extend(new);
    let line = |e: &Entry| serde_json::to_string(e).expect("plain data") + "\n";
    write_whole(file, known.iter().map(line).collect::<String>().as_bytes())?;
    Ok(count)
}

fn read(file: &Path) -> Result<Vec<Entry>> {
    let text = match std::fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at(file)?,
    };
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            Error::environment(
                format!("not a line of a history: {e}"),
                format!("{}:{}", file.display(), i + 1),
            )
            .hint("restore the file, or take another one with --file")
        })
    };
    text.lines().enumerate().map(parse).collect()
}

fn show(args: &ShowArgs) -> Result<Exit> {
    let mut all: Vec<Series> = series(&read(&args.file)?);
    all.retain(|s| args.table.case.as_ref().is_none_or(|text| s.case.contains(text.as_str())));
    if all.is_empty() {
        return Err(Error::usage("there is no such case in the history", args.file.display().to_string())
            .hint("add runs with `chronibench history add DIR`, or leave -k out"));
    }
    args.table.give(&all, rows(&all), output::grid)?;
    let slower = all.iter().any(Series::is_slower);
    Ok(if args.fail_slower && slower { Exit::Regression } else { Exit::Pass })
}
