//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{compare, env::commands::EnvCommand, gate, history, publish, worker};

/// Benchmarks of fine-tuning that can be believed.
#[derive(Clone, Debug, Parser)]
#[command(name = "chronibench", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  chronibench run scenarios/quickstart.yaml
  chronibench run scenarios/quickstart.yaml --arm chronicals --trials 1
  chronibench plan scenarios/ablation-cpu.yaml
  chronibench report runs/20250131-101500-quickstart

Exit codes:
  0    everything ran and is valid
  1    a gate's candidate is slower than its baseline; with --fail-slower, a run than another
  2    wrong usage, scenario or data set
  3    a trial or a comparison is invalid or not comparable
  4    a gate, or the certificate of a machine, is inconclusive
  5    the machine lacks something: a file, a permission, a library
  6    a trial crashed or ran past its time limit
  7    a claim's verdict is not the one that its file expects
  8    a stored run is not what the harness wrote
  130  interrupted; finished trials are kept";

/// The sub-commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run a scenario and write a run folder with its report.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Show cases, order and estimated time of a scenario, without running it.
    #[command(after_help = "Example:\n  chronibench plan scenarios/quickstart.yaml -k lora")]
    Plan(SelectArgs),
    /// Show the machine, its libraries, and what will be skipped and why.
    Doctor,
    /// Print the JSON Schema of scenarios, for editors.
    #[command(after_help = "Example:\n  chronibench schema > scenario.schema.json")]
    Schema,
    /// Rebuild results and report of a run from its stored events.
    #[command(after_help = "Example:\n  chronibench report runs/20250131-101500-quickstart")]
    Report {
        /// Run folder.
        dir: PathBuf,
    },
    /// Join several runs through an arm that ran in each of them.
    #[command(after_help = JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Judge every trial of a run again, and show what each audit came to.
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit {
        /// Run folder.
        dir: PathBuf,
    },
    /// Check that a stored run still is what the harness wrote: chains, counts, files, report.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Compare two stored runs, case by case, with intervals.
    #[command(after_help = compare::EXAMPLES)]
    Compare(compare::CompareArgs),
    /// Keep figures of many runs, and find where their level changed.
    #[command(subcommand, after_help = history::EXAMPLES)]
    History(history::HistoryCommand),
    /// Verify a run, copy it into the folder of published ones, and write their index.
    #[command(after_help = publish::EXAMPLES)]
    Publish(publish::PublishArgs),
    /// Check a file of published claims against arithmetic and stored runs.
    #[command(subcommand)]
    Claims(ClaimsCommand),
    /// Check every CUDA kernel, time it alone, and compare it with what PyTorch has.
    #[command(after_help = KERNEL_EXAMPLES)]
    Kernel(KernelArgs),
    /// Rivals in Python: their options, and the environments that they run in.
    #[command(subcommand)]
    Env(EnvCommand),
    /// Run a program against a baseline, in turns, and say whether it is slower.
    #[command(after_help = gate::args::GATE_EXAMPLES)]
    Gate(gate::args::GateArgs),
    /// Certify this machine for gates of a scenario, by comparing a program with itself.
    #[command(after_help = gate::args::NOISE_EXAMPLES)]
    Noise(gate::args::NoiseArgs),
    /// A child process of a run.
    #[command(hide = true, subcommand)]
    Worker(worker::Command),
}

const AUDIT_EXAMPLES: &str = "\
Example:
  chronibench audit runs/20250131-101500-quickstart

Exit code 3: a trial is not valid, a verdict is not the published one, or tokens counted again
from the inputs are not those stored. docs/audits.md says what each audit proves.";

const RUN_EXAMPLES: &str = "\
Examples:
  chronibench run scenarios/quickstart.yaml
  chronibench run scenarios/quickstart.yaml --out /tmp/first --trials 1
  chronibench run scenarios/quickstart.yaml -k full/ --set measure.timed_steps=24
  chronibench run scenarios/quickstart.yaml --dry-run
  chronibench run scenarios/quickstart.yaml --resume runs/20250131-101500-quickstart

--resume wants the scenario and the selection that the run began with, this program and this machine.
What a trial left that had not ended lies in the folder's aside/.";

/// Which cases of a scenario.
#[derive(Clone, Debug, Args)]
pub struct Cases {
    /// Change a setting: dotted path and a YAML value.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Only cases whose id contains this.
    #[arg(short = 'k', value_name = "TEXT")]
    pub case: Option<String>,
    /// Only this arm, or one of its sweep, ARM@CELL (may be repeated).
    #[arg(long = "arm", value_name = "NAME")]
    pub arms: Vec<String>,
}

impl Cases {
    /// The selection in a scenario.
    pub fn of(&self, file: PathBuf) -> SelectArgs {
        SelectArgs { file, cases: self.clone(), trials: None }
    }
}

/// A scenario and what of it to run.
#[derive(Clone, Debug, Args)]
pub struct SelectArgs {
    /// Scenario file.
    pub file: PathBuf,
    /// Which of it.
    #[command(flatten)]
    pub cases: Cases,
    /// Trials of every case, instead of the scenario's number.
    #[arg(long, value_name = "N")]
    pub trials: Option<u32>,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Scenario and selection.
    #[command(flatten)]
    pub select: SelectArgs,
    /// Run folder to make; by default `runs/<time>-<scenario>`.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in this folder, which was ended: no finished trial is lost, and none runs again.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "dry_run"])]
    pub resume: Option<PathBuf>,
    /// Show what would run, as `plan` does.
    #[arg(long)]
    pub dry_run: bool,
    /// When all is valid, keep this program under a name, for `gate --baseline NAME`.
    #[arg(long, value_name = "NAME")]
    pub save_baseline: Option<String>,
    /// When all is valid, add the figures to this history.
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// Keep the starting weights in the run folder.
    #[arg(long)]
    pub keep_inputs: bool,
    /// How long a trial waits for a GPU on which nothing else runs; it begins then, and is marked.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub idle_wait: u64,
}

const JOIN_EXAMPLES: &str = "\
Example:
  chronibench join runs/monday runs/tuesday --anchor chronicals --out runs/joined

Every figure becomes a ratio to the anchor of its own run, and the report shows how the anchor
drifted. Exit code 3: GPU, driver, binary, cpu or cores differ and are not declared, or the
anchor did not do the same work.";

/// Arguments of `join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// Run folders.
    #[arg(required = true, num_args = 2..)]
    pub dirs: Vec<PathBuf>,
    /// Arm that ran in each.
    #[arg(long, value_name = "ARM")]
    pub anchor: String,
    /// Folder for `joined.json` and `report.md`.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What may differ between the machines: `gpu`, `driver`, `binary`, `cpu`, `cores` (may be repeated).
    #[arg(long, value_name = "NAME")]
    pub declare: Vec<String>,
}

const CLAIMS_EXAMPLES: &str = "\
Examples:
  chronibench claims check
  chronibench claims check scenarios/claims/chronicals-2601.02609.yaml --run runs/first --run runs/kernels
  chronibench claims check --markdown reports/claims.md

Verdicts: REPRODUCED, REFUTED, INCONSISTENT (published numbers contradict one another), UNTESTABLE.
Arithmetic needs no run and no GPU. Exit code 7: a verdict is not the one that the file expects.";

/// Sub-commands of `claims`.
#[derive(Clone, Debug, Subcommand)]
pub enum ClaimsCommand {
    /// Check every claim and print the verdicts.
    #[command(after_help = CLAIMS_EXAMPLES)]
    Check(ClaimsArgs),
    /// Print the JSON Schema of claims files, for editors.
    Schema,
}

/// Arguments of `claims check`.
#[derive(Clone, Debug, Args)]
pub struct ClaimsArgs {
    /// Claims file.
    #[arg(default_value = "scenarios/claims/chronicals-2601.02609.yaml")]
    pub file: PathBuf,
    /// Run folder that measured claims take their figures from (may be repeated).
    #[arg(long = "run", value_name = "DIR")]
    pub run: Vec<PathBuf>,
    /// Without --run: the folder whose run folders they take them from.
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub runs: PathBuf,
    /// Write the table as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Write the table as a page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  chronibench verify runs/20250131-101500-quickstart
  chronibench verify reports/2026-11-28-quickstart reports/2026-11-26-gpu-h100
  chronibench verify runs/latest --require-chain

It proves integrity, not honesty: that nothing was changed, lost or added after the harness wrote
it, unless all of it was made anew. It needs no network, no GPU and none of the arms. A run older
than chains is NO_CHAIN: all else is checked, nothing proves its events, and --require-chain refuses
it. A run that had chains and lost them is BROKEN. Exit code 8: something was changed.";

/// Arguments of `verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Run folders.
    #[arg(required = true)]
    pub dirs: Vec<PathBuf>,
    /// A run without chains is a failure too.
    #[arg(long)]
    pub require_chain: bool,
    /// Print one JSON object a folder.
    #[arg(long)]
    pub json: bool,
}

const KERNEL_EXAMPLES: &str = "\
Examples:
  chronibench kernel
  chronibench kernel --op rmsnorm --repetitions 50 --references none
  chronibench kernel --variant fused --references /opt/venv/bin/python --out runs/kernels
  chronibench report runs/kernels

References need a Python with torch and transformers, and with liger_kernel for its kernels; what
is missing is skipped and said. Exit code 3: a kernel's check failed, its time is no result.";

/// Arguments of `kernel`.
#[derive(Clone, Debug, Args)]
pub struct KernelArgs {
    /// Only operations whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub op: Option<String>,
    /// Only our implementations of this name: `fused`, `eager`, `mma`, `hopper`.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Timed runs of each kernel and shape.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// References: `auto` takes python3 of the PATH, `none` leaves them out, or a Python.
    #[arg(long, value_name = "auto|none|PYTHON", default_value = "auto")]
    pub references: String,
    /// Run folder to make; by default `runs/<time>-kernels`.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
