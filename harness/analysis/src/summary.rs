//! A whole run as values: `results.json`.

mod judged;

use std::collections::BTreeMap;

use chronibench_protocol::{
    chain::Evidence,
    event::Precision,
    record::{Case, Resolved, Skipped, Verdict},
};
use serde::{Deserialize, Serialize};

use crate::{
    compare::Side,
    comparisons::{ablation, comparison},
    division,
    efficiency::{Efficiency, efficiency, gpu},
    judge::audit::{Check, audits_of},
    metrics::TrialMetrics,
    slow::{SlowSteps, slow_steps},
    stats::{Estimate, median, median_estimate},
    sweep::{self, Cell, sweeps},
    trial::TrialLog,
};

use judged::{Trial, own};

pub use crate::comparisons::{AblationSummary, ComparisonSummary, Outcome};
pub use crate::division::DivisionSummary;
pub use crate::sweep::SweepSummary;
pub use crate::table::{CSV_COLUMNS, results_csv, summary_table};

/// Version of [`RunSummary`].
pub const SCHEMA: &str = "chronibench.results/1";

/// Everything the report says, as values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of the scenario.
    pub name: String,
    /// Worst verdict over all trials and comparisons; `None` before the first trial.
    pub verdict: Option<Verdict>,
    /// Trials that the scenario asks for.
    pub trials_planned: usize,
    /// Trials that are stored.
    pub trials_stored: usize,
    /// Trials that are VALID.
    pub trials_valid: usize,
    /// Stored trials of no case of this scenario, by trial or case id.
    pub strays: Vec<String>,
    /// One entry a case, in the scenario's order.
    pub cases: Vec<CaseSummary>,
    /// The ratios that the scenario asks for.
    pub comparisons: Vec<ComparisonSummary>,
    /// What each seam brings.
    pub ablations: Vec<AblationSummary>,
    /// Arms that were tried with several sets of options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sweeps: Vec<SweepSummary>,
    /// How the gain of all seams is divided among them, where a design measured that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divisions: Vec<DivisionSummary>,
    /// What did not run, and why.
    pub skipped: Vec<Skipped>,
    /// Ends of the chains of all trials; `None` for a record that is older than chains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// One case: medians over its VALID trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseSummary {
    /// Case id.
    pub id: String,
    /// Arm.
    pub arm: String,
    /// Axis → value.
    pub axes: BTreeMap<String, String>,
    /// What it was asked ([`crate::asked`]).
    #[serde(default)]
    pub asked: BTreeMap<String, serde_json::Value>,
    /// Worst verdict over its trials; `None` without a trial.
    pub verdict: Option<Verdict>,
    /// Trials that are VALID.
    pub valid: usize,
    /// Number formats of the state, as the arm reports them.
    pub precision: Option<Precision>,
    /// Kernel plan in force.
    pub kernel_plan: BTreeMap<String, String>,
    /// Real tokens/s.
    pub real_tokens_per_s: Option<Estimate>,
    /// Timed steps that are slow in most of its trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_steps: Option<SlowSteps>,
    /// Slots/s.
    pub slots_per_s: Option<Estimate>,
    /// Loss tokens/s.
    pub loss_tokens_per_s: Option<Estimate>,
    /// Milliseconds a step.
    pub step_ms: Option<Estimate>,
    /// Peak resident set, bytes: the larger of the two readings.
    pub peak_rss: Option<Estimate>,
    /// Bytes planned by the arm.
    pub planned_bytes: Option<u64>,
    /// Processor use, percent of one core.
    pub cpu_percent: Option<f64>,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Mean loss of the last third of the steps.
    pub final_loss: Option<f64>,
    /// Real tokens over slots.
    pub packing_efficiency: Option<f64>,
    /// Time in matrix products over window time.
    pub gemm_share: Option<f64>,
    /// Rate of the matrix products, GFLOP/s.
    pub gemm_gflops: Option<f64>,
    /// How the two were found.
    pub gemm_method: Option<String>,
    /// Model FLOPs of real tokens over window time, GFLOP/s.
    pub model_gflops: Option<f64>,
    /// Share of the device's peak, power, energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub efficiency: Option<Efficiency>,
    /// What the harness looked up by itself, of the audit trial and of the worst of the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audits: Vec<Check>,
    /// Its trials in the order given.
    pub trials: Vec<TrialSummary>,
}

impl CaseSummary {
    /// Trials that decide: one that a fault of the machine ended, and that was begun again, is shown and no more.
    pub fn counted(&self) -> impl Iterator<Item = &TrialSummary> {
        self.trials.iter().filter(|t| !t.superseded)
    }
}

/// One stored trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialSummary {
    /// Trial id.
    pub id: String,
    /// Repetition.
    pub round: u32,
    /// Place in the run's order.
    pub position: u32,
    /// Verdict.
    pub verdict: Verdict,
    /// Why it is not VALID.
    pub reasons: Vec<String>,
    /// A fault of the machine ended it, and it was begun again: it is shown, and decides nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// What kept the GPU from being idle when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_not_idle: Option<String>,
    /// Trained tensors that stood still because bf16 is too coarse for the updates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounded_away: Vec<String>,
    /// Figures, also of a trial that is not VALID: they are stored, never averaged.
    pub metrics: TrialMetrics,
}

impl TrialSummary {
    /// Its figures count.
    pub fn is_valid(&self) -> bool {
        self.verdict == Verdict::Valid
    }
}

impl RunSummary {
    /// Whether a trial of `case` decides the run's verdict: not when it was begun again, nor when it is of a sweep's cell that is not
    /// the best. What the best of a sweep needs is a cell that runs, not that all do.
    pub fn decides(&self, case: &CaseSummary, trial: &TrialSummary) -> bool {
        let spare = |s: &SweepSummary| {
            s.best.as_ref().is_some_and(|b| *b != case.id) && s.cells.iter().any(|c| c.case == case.id)
        };
        !trial.superseded && !self.sweeps.iter().any(spare)
    }

    /// Verdicts of the trials that decide.
    pub fn deciding(&self) -> impl Iterator<Item = Verdict> {
        let all = self.cases.iter().flat_map(|c| c.trials.iter().map(move |t| (c, t)));
        all.filter(|(c, t)| self.decides(c, t)).map(|(_, t)| t.verdict)
    }
}

/// Judges, measures and compares all trials of a run. Partial runs give partial summaries.
pub fn summarise(resolved: &Resolved, logs: &[TrialLog]) -> RunSummary {
    let (audits, logs): (Vec<&TrialLog>, Vec<&TrialLog>) = logs.iter().partition(|log| log.is_audit());
    let audited: Vec<&str> = resolved.audited().map(|c| c.id.as_str()).collect();
    let due = |log: &TrialLog| audited.contains(&log.case());
    let trials: Vec<Trial<'_>> = logs.iter().map(|log| Trial::of(log, &logs, &audits, due(log))).collect();
    let sides: Vec<Side<'_>> = resolved.cases.iter().map(|case| side(case, &trials)).collect();
    let cell = |case| Cell { case, trials: own(case, &trials).map(Trial::summary).collect() };
    let sweeps = sweeps(&resolved.cases.iter().map(cell).collect::<Vec<_>>());
    let find = |id: &str| sweep::find(id, &sides, &sweeps);
    let known = |t: &&Trial<'_>| resolved.cases.iter().any(|c| c.id == t.log.case());
    let counted = |t: &&Trial<'_>| !t.superseded;
    let strays = trials.iter().filter(|t| !known(t));
    let worst_stray = strays.clone().map(|t| t.judgement.verdict).max();
    let mut summary = RunSummary {
        schema: SCHEMA.into(),
        name: resolved.name.clone(),
        verdict: None,
        trials_planned: planned(resolved, &sweeps),
        trials_stored: trials.iter().filter(counted).count(),
        trials_valid: trials.iter().filter(|t| t.judgement.verdict == Verdict::Valid).count(),
        strays: strays.map(|t| t.id()).collect(),
        cases: resolved.cases.iter().map(|c| case_summary(c, &trials, &audits)).collect(),
        comparisons: resolved.comparisons.iter().map(|c| comparison(c, &find)).collect(),
        ablations: sides.iter().filter_map(|s| ablation(s, &find)).collect(),
        divisions: division::divisions(&sides),
        skipped: resolved.skipped.clone(),
        sweeps,
        evidence: None,
    };
    let compared = summary.comparisons.iter().map(|c| &c.result);
    let compared =
        compared.chain(summary.ablations.iter().map(|a| &a.result)).filter_map(|r| r.verdict).max();
    summary.verdict = compared.max(summary.deciding().max()).max(worst_stray);
    summary
}

/// Trials of the order, without those of a best cell that no sweep can have any more.
fn planned(resolved: &Resolved, sweeps: &[SweepSummary]) -> usize {
    let barren = |id: &String| sweeps.iter().any(|s| s.id == *id && s.best.is_none() && s.is_complete());
    resolved.order.iter().filter(|id| !barren(id)).count()
}

fn side<'a>(case: &'a Case, trials: &'a [Trial<'a>]) -> Side<'a> {
    let own = || own(case, trials).filter(|t| !t.superseded);
    let valid = own().filter(|t| t.judgement.verdict == Verdict::Valid);
    Side {
        case,
        verdict: own().map(|t| t.judgement.verdict).max(),
        trials: own().count(),
        valid: valid.map(|t| (t.log, &t.metrics)).collect(),
    }
}

fn case_summary(case: &Case, trials: &[Trial<'_>], audits: &[&TrialLog]) -> CaseSummary {
    let own: Vec<&Trial<'_>> = own(case, trials).collect();
    let valid: Vec<&TrialMetrics> =
        own.iter().filter(|t| t.judgement.verdict == Verdict::Valid).map(|t| &t.metrics).collect();
    let values =
        |f: &dyn Fn(&TrialMetrics) -> Option<f64>| valid.iter().filter_map(|m| f(m)).collect::<Vec<_>>();
    let estimate = |f: &dyn Fn(&TrialMetrics) -> Option<f64>| median_estimate(&values(f));
    let middle = |f: &dyn Fn(&TrialMetrics) -> Option<f64>| median(&values(f));
    let hello = own.iter().find_map(|t| t.log.hello.as_ref()).map(|h| &h.event);
    let judged: Vec<_> = own.iter().map(|t| (t.log, &t.metrics, t.judgement.verdict)).collect();
    let audit = || audits.iter().copied().filter(|a| a.case() == case.id);
    CaseSummary {
        id: case.id.clone(),
        arm: case.arm.clone(),
        axes: case.axes.clone(),
        asked: crate::asked::asked(case),
        verdict: own.iter().filter(|t| !t.superseded).map(|t| t.judgement.verdict).max(),
        valid: valid.len(),
        precision: hello.map(|h| h.precision.clone()),
        kernel_plan: hello.map(|h| h.kernel_plan.clone()).unwrap_or_default(),
        real_tokens_per_s: estimate(&|m| m.real_tokens_per_s),
        slow_steps: slow_steps(&side(case, trials).valid),
        slots_per_s: estimate(&|m| m.slots_per_s),
        loss_tokens_per_s: estimate(&|m| m.loss_tokens_per_s),
        step_ms: estimate(&|m| m.step_ms),
        peak_rss: estimate(&|m| m.peak_rss().map(|b| b as f64)),
        planned_bytes: valid.iter().find_map(|m| m.planned_total()),
        cpu_percent: middle(&|m| m.cpu_percent),
        first_loss: middle(&|m| m.first_loss),
        final_loss: middle(&|m| m.loss_fall.map(|f| f.last)),
        packing_efficiency: middle(&|m| m.packing_efficiency),
        gemm_share: middle(&|m| m.gemm_share),
        gemm_gflops: middle(&|m| m.gemm_gflops),
        gemm_method: valid.iter().find_map(|m| m.gemm_method.clone()),
        model_gflops: middle(&|m| m.model_gflops),
        efficiency: efficiency(&judged, audit().next(), gpu(trials.iter().map(|t| t.log))),
        audits: audits_of(own.iter().map(|t| t.log).chain(audit())),
        trials: own.iter().map(|t| t.summary()).collect(),
    }
}
