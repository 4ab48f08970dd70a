//! Kernels one by one: values in, a report out.
//!
//! A row counts when its check held; times are medians over repetitions with bootstrap intervals. The unit is the
//! repetition here, in one process: intervals say how steady a time was, not how it varies from process to process; for that
//! some kernels run again after the references ([`Drift`]).

mod claims;
mod floors;
mod log;
mod report;
mod table;
mod traffic;

use std::collections::BTreeMap;

use chronibench_protocol::{
    chain::Evidence,
    kernels::{Ceiling, KernelRow, ResolvedKernels, Side},
    record::{GpuSample, Skipped, Verdict},
};
use serde::{Deserialize, Serialize};

use crate::{
    claims::{CHRONICALS, Ledger},
    stats::{Estimate, median, median_estimate, median_ratio, ratio_estimate},
};
pub use claims::{ClaimOutcome, Outcome};
pub use floors::FloorOutcome;
pub use log::KernelLog;
pub use report::report_md;
pub use table::{CSV_COLUMNS, results_csv, terminal_table};
pub use traffic::Traffic;

/// Name of the unfused variant, which is a baseline of its own and never ours in a comparison.
pub const UNFUSED: &str = "eager";

/// One implementation of an operation at a shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowSummary {
    /// Who.
    pub side: Side,
    /// Trial.
    pub trial: String,
    /// Operation.
    pub op: String,
    /// Shape.
    pub case: String,
    /// Implementation.
    pub variant: String,
    /// VALID, INVALID (the check failed) or ERROR (it does not run).
    pub verdict: Verdict,
    /// Why it is not VALID.
    pub reason: Option<String>,
    /// Fewest bytes.
    pub bytes: u64,
    /// FLOPs.
    pub flops: u64,
    /// Seconds, operands in memory.
    pub cold: Option<Estimate>,
    /// Seconds right after others.
    pub warm: Option<Estimate>,
    /// Bytes that warm runs touch over those that fit the L2 cache, where it is known.
    pub warm_share_of_l2: Option<f64>,
    /// A copy's time over its own, for as many bytes: of the copy in turn with it, else of that in turn with ours at the same
    /// operation and shape, else at the large copy's rate.
    pub of_copy: Option<Estimate>,
    /// Its FLOP/s over those of the large product.
    pub of_matmul: Option<f64>,
    /// Bytes that it needs besides its inputs.
    pub memory_bytes: Option<u64>,
    /// Bytes that its passes read and write, where they are counted.
    pub moved_bytes: Option<u64>,
    /// Largest error of its check over the allowed one.
    pub worst_error: Option<f64>,
    /// What the reader should know.
    pub note: Option<String>,
    /// The GPU before.
    pub before: Option<GpuSample>,
    /// The GPU after.
    pub after: Option<GpuSample>,
    /// Every cold run, for ratios.
    #[serde(skip)]
    pub cold_s: Vec<f64>,
    /// Every copy in turn with them.
    #[serde(skip)]
    pub copy_s: Vec<f64>,
}

impl RowSummary {
    /// Its times are results.
    pub fn is_valid(&self) -> bool {
        self.verdict == Verdict::Valid
    }
}

/// Another implementation's time over ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speedup {
    /// Operation.
    pub op: String,
    /// Shape.
    pub case: String,
    /// Our implementation: the fastest that is not the unfused one.
    pub ours: String,
    /// The other.
    pub against: String,
    /// Ratio of median times.
    pub ratio: Estimate,
}

/// A kernel's time in a later trial over that in the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Operation.
    pub op: String,
    /// Shape.
    pub case: String,
    /// Implementation.
    pub variant: String,
    /// The later trial.
    pub trial: String,
    /// Ratio of median times.
    pub ratio: Estimate,
}

/// A rate of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CeilingSummary {
    /// `copy` (B/s) or `matmul` (FLOP/s).
    pub name: String,
    /// Trial.
    pub trial: String,
    /// `before` or `after` the kernels.
    pub at: String,
    /// Rate.
    pub rate: Estimate,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTrial {
    /// Trial.
    pub id: String,
    /// Who.
    pub side: Option<Side>,
    /// Name and version, and the device, as it said.
    pub program: String,
    /// Settings and versions, as it said.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// VALID, ERROR or TIMEOUT.
    pub verdict: Verdict,
    /// Why it did not end well.
    pub reason: Option<String>,
    /// SM clock at its lowest and highest look, MHz.
    pub sm_mhz: Option<(u32, u32)>,
    /// Highest temperature, °C.
    pub temp_c: Option<u32>,
    /// Every throttle reason that was seen, as NVML's bits.
    pub throttle_mask: u64,
}

/// Everything that the report says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSummary {
    /// [`chronibench_protocol::kernels::SCHEMA`].
    pub schema: String,
    /// VALID unless a kernel of ours is not, or a trial did not end well.
    pub verdict: Verdict,
    /// Processes in order.
    pub trials: Vec<KernelTrial>,
    /// Rates of the machine.
    pub ceilings: Vec<CeilingSummary>,
    /// Every row of the first trial that has it.
    pub rows: Vec<RowSummary>,
    /// Other implementations' times over ours.
    pub speedups: Vec<Speedup>,
    /// What fusion leaves of the memory traffic.
    pub traffic: Vec<Traffic>,
    /// What the paper claims.
    pub claims: Vec<ClaimOutcome>,
    /// What this project asks of its kernels.
    pub floors: Vec<FloorOutcome>,
    /// Kernels that ran again.
    pub drift: Vec<Drift>,
    /// What did not run.
    pub skipped: Vec<Skipped>,
    /// Ends of the chains of all trials; `None` for a record that is older than chains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

impl KernelSummary {
    /// What the rows say of another ledger's claims.
    pub(crate) fn claims_of(&self, ledger: &Ledger) -> Vec<ClaimOutcome> {
        claims::judge(&ledger.kernels(), &self.rows, &self.speedups, &self.traffic)
    }
}

/// Summarises the trials of a run.
pub fn summarise(resolved: &ResolvedKernels, logs: &[KernelLog]) -> KernelSummary {
    let ceilings: Vec<CeilingSummary> =
        logs.iter().flat_map(|l| l.ceilings.iter().filter_map(|c| ceiling(l, c))).collect();
    let rate = |name: &str| {
        median(&ceilings.iter().filter(|c| c.name == name).map(|c| c.rate.median).collect::<Vec<_>>())
    };
    let best = Best { copy: rate("copy"), matmul: rate("matmul") };
    let mut rows: Vec<RowSummary> = Vec::new();
    let mut drift = Vec::new();
    for row in logs.iter().flat_map(|log| log.rows.iter().filter_map(|r| summary_of(log, r, &best))) {
        let same = |r: &&RowSummary| {
            (&r.op, &r.case, &r.variant, r.side) == (&row.op, &row.case, &row.variant, row.side)
        };
        match rows.iter().find(same) {
            None => rows.push(row),
            Some(first) => drift.extend(drifted(first, &row)),
        }
    }
    for i in 0..rows.len() {
        if rows[i].of_copy.is_none() {
            rows[i].of_copy = of_another_copy(&rows[i], &rows, &best);
        }
    }
    let trials: Vec<KernelTrial> = logs.iter().map(trial).collect();
    let (speedups, traffic) = (speedups(&rows), traffic::counted(&rows));
    let mut skipped = resolved.skipped.clone();
    skipped.extend(logs.iter().flat_map(|l| l.skipped.clone()));
    KernelSummary {
        schema: resolved.schema.clone(),
        verdict: verdict(&trials, &rows),
        claims: claims::judge(&CHRONICALS.kernels(), &rows, &speedups, &traffic),
        floors: floors::judge(&rows),
        trials,
        ceilings,
        rows,
        speedups,
        traffic,
        drift,
        skipped,
        evidence: None,
    }
}

/// Medians over the run of what the machine can do.
struct Best {
    copy: Option<f64>,
    matmul: Option<f64>,
}

fn ceiling(log: &KernelLog, c: &Ceiling) -> Option<CeilingSummary> {
    let amount = (c.bytes + c.flops) as f64;
    let rates: Vec<f64> = c.seconds.iter().map(|s| amount / s).collect();
    let rate = median_estimate(&rates)?;
    Some(CeilingSummary { name: c.name.clone(), trial: log.id().into(), at: c.at.clone(), rate })
}

fn summary_of(log: &KernelLog, r: &KernelRow, best: &Best) -> Option<RowSummary> {
    let side = log.side()?;
    let (verdict, reason) = match (&r.error, &r.check.failure) {
        (Some(f), _) => (Verdict::Error, Some(format!("{} ({}); {}", f.what, f.at, f.hint))),
        (None, Some(failure)) => (Verdict::Invalid, Some(failure.clone())),
        (None, None) if r.check.compared.is_empty() => {
            (Verdict::Invalid, Some("nothing was compared with a reference".into()))
        }
        (None, None) if r.cold_s.is_empty() => (Verdict::Error, Some("it was not timed".into())),
        (None, None) => (Verdict::Valid, None),
    };
    // The time of what fails its check is no result, whatever the arm says.
    let times = if verdict == Verdict::Valid { r.cold_s.clone() } else { Vec::new() };
    let cold = median_estimate(&times);
    let pairs: Vec<(f64, f64)> = r.copy_s.iter().copied().zip(times.iter().copied()).collect();
    let worst = |c: &chronibench_protocol::kernels::KernelCompared| {
        Some(c.error? / c.tolerance.max(f64::MIN_POSITIVE))
    };
    Some(RowSummary {
        side,
        trial: log.id().into(),
        op: r.op.clone(),
        case: r.case.clone(),
        variant: r.variant.clone(),
        verdict,
        reason,
        bytes: r.bytes,
        flops: r.flops,
        warm: median_estimate(if times.is_empty() { &[] } else { &r.warm_s }),
        warm_share_of_l2: (r.l2_bytes > 0).then(|| r.warm_bytes as f64 / r.l2_bytes as f64),
        of_copy: ratio_estimate(&pairs),
        of_matmul: best.matmul.zip(cold).filter(|_| r.flops > 0).map(|(m, t)| r.flops as f64 / t.median / m),
        cold,
        memory_bytes: r.memory_bytes,
        moved_bytes: r.moved_bytes,
        worst_error: r.check.compared.iter().filter_map(worst).max_by(f64::total_cmp),
        note: r.note.clone(),
        before: r.before.clone(),
        after: r.after.clone(),
        cold_s: times,
        copy_s: r.copy_s.clone(),
    })
}

/// Against the copy that ran in turn with ours, so that both shares mean the same, or at the large copy's rate.
fn of_another_copy(row: &RowSummary, rows: &[RowSummary], best: &Best) -> Option<Estimate> {
    let same = |r: &&RowSummary| r.op == row.op && same_case(&r.case, &row.case) && !r.copy_s.is_empty();
    let in_turn = rows.iter().find(same);
    let seconds: Vec<f64> = match in_turn {
        Some(r) => r.copy_s.iter().map(|s| s * row.bytes as f64 / r.bytes as f64).collect(),
        None => vec![row.bytes as f64 / best.copy?],
    };
    median_ratio(&seconds, &row.cold_s)
}

fn drifted(first: &RowSummary, later: &RowSummary) -> Option<Drift> {
    let RowSummary { op, case, variant, trial, .. } = later.clone();
    Some(Drift { op, case, variant, trial, ratio: median_ratio(&later.cold_s, &first.cold_s)? })
}

fn trial(log: &KernelLog) -> KernelTrial {
    let reason = log.failure();
    let timed_out = log.exit.as_ref().is_some_and(|e| e.timed_out_after_s.is_some());
    let verdict = match (&reason, timed_out) {
        (None, _) => Verdict::Valid,
        (Some(_), true) => Verdict::Timeout,
        (Some(_), false) => Verdict::Error,
    };
    let looks = || log.gpu.iter().chain(log.rows.iter().flat_map(|r| r.before.iter().chain(&r.after)));
    let clocks = || looks().map(|g| g.sm_mhz);
    KernelTrial {
        id: log.id().into(),
        side: log.side(),
        program: log
            .hello
            .as_ref()
            .map_or_else(String::new, |h| format!("{} {} on {}", h.name, h.version, h.device)),
        settings: log.hello.as_ref().map_or_else(BTreeMap::new, |h| h.settings.clone()),
        verdict,
        reason,
        sm_mhz: clocks().min().zip(clocks().max()),
        temp_c: looks().map(|g| g.temp_c).max(),
        throttle_mask: looks().fold(0, |mask, g| mask | g.throttle_mask),
    }
}

fn verdict(trials: &[KernelTrial], rows: &[RowSummary]) -> Verdict {
    let ours = || rows.iter().filter(|r| r.side == Side::Native);
    if let Some(t) = trials.iter().find(|t| t.verdict != Verdict::Valid) {
        return t.verdict;
    }
    // A wrong time is worse than none.
    match ours().find(|r| r.verdict == Verdict::Invalid).or_else(|| ours().find(|r| !r.is_valid())) {
        Some(row) => row.verdict,
        None if ours().next().is_none() => Verdict::Error,
        None => Verdict::Valid,
    }
}

/// Whether a shape of ours is one of another implementation, which knows of no chunk: `16384x896x151936 by 4096`.
fn same_case(ours: &str, other: &str) -> bool {
    ours.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with(" by "))
}

/// The fastest implementation of ours at an operation and shape, the unfused one left out.
pub(crate) fn ours<'a>(rows: &'a [RowSummary], op: &str, case: &str) -> Option<&'a RowSummary> {
    let time = |r: &&RowSummary| r.cold.map_or(f64::INFINITY, |e| e.median);
    rows.iter()
        .filter(|r| r.side == Side::Native && r.is_valid() && r.variant != UNFUSED)
        .filter(|r| r.op == op && same_case(&r.case, case))
        .min_by(|a, b| time(a).total_cmp(&time(b)))
}

fn speedups(rows: &[RowSummary]) -> Vec<Speedup> {
    let other = |r: &&RowSummary| r.is_valid() && (r.side == Side::References || r.variant == UNFUSED);
    rows.iter()
        .filter(other)
        .filter_map(|r| {
            let ours = ours(rows, &r.op, &r.case)?;
            Some(Speedup {
                op: r.op.clone(),
                case: r.case.clone(),
                ours: ours.variant.clone(),
                against: r.variant.clone(),
                ratio: median_ratio(&r.cold_s, &ours.cold_s)?,
            })
        })
        .collect()
}
