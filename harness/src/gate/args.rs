//! Command line of `gate` and `noise`.

use std::path::PathBuf;

use chronibench_analysis::{
    gate::Enforce,
    sequential::{Design, FLIP_FROM, LOOKS, MOST_PAIRS},
};
use clap::{Args, ValueEnum};

use crate::{
    cli::Cases,
    error::{Error, Result},
};

/// Examples of `gate`.
pub const GATE_EXAMPLES: &str = "\
Examples:
  chronibench gate scenarios/gate-cpu.yaml --baseline HEAD~1
  chronibench gate scenarios/gate-cpu.yaml --baseline ./chronibench-1.2 -k full/on
  chronibench run scenarios/gate-cpu.yaml --save-baseline release
  chronibench gate scenarios/gate-cpu.yaml --baseline release --junit gate.xml --comment gate.md
  chronibench gate --enforce always --criterion {1,2,3,4}/{base,new}/criterion

Both programs take turns (A B, B A, …), a process each. After 4, 6, 8 and 12 pairs the paired log
ratios are looked at; the gate ends as soon as it can say PASS or FAIL. Three cases and more share
alpha so finely that 8 pairs cannot show a loss: that look is then after 10 pairs or more.

A FAIL ends in exit code 1 on a machine that `chronibench noise` has certified for the scenario,
and is advice elsewhere. Results of criterion have no certificate: there --enforce always makes it
count. Their pairs, four or more of base and new in turn (the braces above are a shell's), are all
looked at together. Exit codes: 0 pass, or advice; 1 slower; 3 a trial is invalid, or the two
programs are not comparable; 4 inconclusive, too few pairs among it.";

/// Examples of `noise`.
pub const NOISE_EXAMPLES: &str = "\
Examples:
  chronibench noise scenarios/gate-cpu.yaml
  chronibench noise scenarios/gate-cpu.yaml --comparisons 40 -k full/on

This program is compared with itself, as a gate would. Twenty comparisons without a false alarm
certify the machine for the scenario; what changed by chance becomes the least effect that a gate
there takes seriously. The certificate lies in the user's cache folder. Exit codes: 0 certified;
3 a trial is invalid; 4 not certified, and why.";

/// What the test is asked.
#[derive(Clone, Debug, Args)]
pub struct Test {
    /// Probability of a false alarm, over all looks and cases.
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share)]
    pub alpha: f64,
    /// Least loss that matters; the machine's own noise, where it is larger.
    #[arg(long, value_name = "SHARE", default_value = "1.5%", value_parser = share)]
    pub min_effect: f64,
    /// Most pairs of a case: 4, 6, 8 or 12; more where many cases share alpha.
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub max_pairs: u32,
}

impl Test {
    /// The test of pairs that are all there before it begins: one look, at all of them, which spends the whole of α.
    ///
    /// # Errors
    /// There are more pairs than are counted, or so many pairs cannot show a loss at α in each of so many cases.
    pub fn design_at_once(&self, pairs: u32, cases: usize) -> Result<Design> {
        let at = || format!("--criterion with {pairs} pairs");
        if pairs > MOST_PAIRS {
            return Err(Error::usage(format!("more than {MOST_PAIRS} pairs are not counted"), at())
                .hint(format!("leave {} pairs of folders out", pairs - MOST_PAIRS)));
        }
        // Fewer than the first look of a gate are looked at never: the gate is inconclusive.
        let looks = vec![pairs.max(LOOKS[0])];
        let design = Design { alpha: self.alpha, min_effect: self.min_effect, looks };
        let fit = design.clone().for_cases(cases).ok_or_else(|| self.too_fine(cases))?;
        match fit.looks == design.looks {
            true => Ok(design),
            false => {
                let what = format!("{pairs} pairs cannot show a loss at this level in each of {cases} cases");
                Err(Error::usage(what, at()).hint(format!(
                    "give {} pairs, or fewer than {FLIP_FROM}, or fewer cases with -k",
                    fit.looks[0]
                )))
            }
        }
    }

    fn too_fine(&self, cases: usize) -> Error {
        let what = format!("{MOST_PAIRS} pairs cannot show a loss at this level in each of {cases} cases");
        Error::usage(what, format!("--alpha {}", self.alpha))
            .hint("give a larger --alpha, or fewer cases with -k")
    }

    /// The test, for so many cases.
    ///
    /// # Errors
    /// No look is that late, or no number of pairs can show a loss at α.
    pub fn design(&self, cases: usize) -> Result<Design> {
        let mut design = Design { alpha: self.alpha, min_effect: self.min_effect, ..Design::default() };
        if !design.looks.contains(&self.max_pairs) {
            return Err(Error::usage(
                "no look is after that many pairs",
                format!("--max-pairs {}", self.max_pairs),
            )
            .hint("looks are after 4, 6, 8 and 12 pairs"));
        }
        design.looks.retain(|n| *n <= self.max_pairs);
        design.for_cases(cases).ok_or_else(|| self.too_fine(cases))
    }
}

/// When a FAIL counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EnforceArg {
    /// On a machine that `noise` has certified for the scenario.
    Certified,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl From<EnforceArg> for Enforce {
    fn from(arg: EnforceArg) -> Self {
        match arg {
            EnforceArg::Certified => Enforce::Certified,
            EnforceArg::Always => Enforce::Always,
            EnforceArg::Never => Enforce::Never,
        }
    }
}

/// What criterion's results have no use for: nothing runs. By clap's ids, as fields are called.
const NOT_OF_CRITERION: [&str; 9] =
    ["baseline", "candidate", "set", "arms", "anchor", "out", "history", "save_baseline", "max_pairs"];

/// Arguments of `gate`.
#[derive(Clone, Debug, Args)]
pub struct GateArgs {
    /// Scenario file.
    #[arg(required_unless_present = "criterion", conflicts_with = "criterion")]
    pub scenario: Option<PathBuf>,
    /// What to compare with: a saved baseline's name, a `chronibench` program, a revision of the
    /// repository (built first), or a run folder (advice only, unless --anchor).
    #[arg(long, value_name = "NAME|PROGRAM|REV|DIR", required_unless_present = "criterion")]
    pub baseline: Option<String>,
    /// What to gate: a `chronibench` program; this one when left out.
    #[arg(long, value_name = "PROGRAM")]
    pub candidate: Option<PathBuf>,
    /// Cases.
    #[command(flatten)]
    pub cases: Cases,
    /// Test.
    #[command(flatten)]
    pub test: Test,
    /// When a FAIL is more than advice.
    #[arg(long, value_enum, default_value = "certified")]
    pub enforce: EnforceArg,
    /// With a run folder as the baseline: a case whose program has not changed, run again to tell the
    /// machine's change from the program's.
    #[arg(long, value_name = "CASE")]
    pub anchor: Option<String>,
    /// Run folder to make; by default `runs/<time>-gate-<scenario>`.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write JUnit XML.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write a pull request's comment, in markdown.
    #[arg(long, value_name = "FILE")]
    pub comment: Option<PathBuf>,
    /// When it does not fail, add the candidate's figures to this history.
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// Keep the candidate under this name when it passes, for later gates.
    #[arg(long, value_name = "NAME")]
    pub save_baseline: Option<String>,
    /// Gate criterion's results instead: `target/criterion` folders, baseline and candidate in turn, at
    /// least four of each.
    #[arg(long, value_name = "DIR", num_args = 2.., conflicts_with_all = NOT_OF_CRITERION)]
    pub criterion: Vec<PathBuf>,
}

impl GateArgs {
    /// Refuses what would have no effect against a baseline of this kind: a run folder, or a program.
    ///
    /// # Errors
    /// There is such an option; it is named.
    pub fn check_for(&self, run_folder: bool) -> Result<()> {
        let (idle, hint): (&[(&str, bool)], _) = match run_folder {
            true => (
                &[("--history", self.history.is_some()), ("--save-baseline", self.save_baseline.is_some())],
                "leave it out, or name a program or a revision as the baseline",
            ),
            false => (
                &[("--anchor", self.anchor.is_some())],
                "leave it out: both programs run in turns, which is better than an anchor",
            ),
        };
        let kind = if run_folder { "a run folder" } else { "a program" };
        match idle.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((name, _)) => Err(Error::usage(
                format!("{name} has no effect where the baseline is {kind}"),
                format!("{name}, --baseline {}", self.baseline.as_deref().unwrap_or_default()),
            )
            .hint(hint)),
        }
    }
}

/// Arguments of `noise`.
#[derive(Clone, Debug, Args)]
pub struct NoiseArgs {
    /// Scenario file.
    pub scenario: PathBuf,
    /// Cases.
    #[command(flatten)]
    pub cases: Cases,
    /// Test.
    #[command(flatten)]
    pub test: Test,
    /// Comparisons of the program with itself.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub comparisons: u32,
    /// Run folder to make; by default `runs/<time>-noise-<scenario>`.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `1.5%` or `0.015`.
fn share(text: &str) -> std::result::Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |n| (n, 100.0));
    match number.trim().parse::<f64>().map(|n| n / unit) {
        Ok(share) if share > 0.0 && share < 0.5 => Ok(share),
        _ => Err("give a share between 0 and one half, as 1.5% or 0.015".into()),
    }
}
