//! What a case makes of its device: share of the peak, and on a GPU power and energy.

use chronibench_protocol::{
    event::Phase,
    peak::peak_gflops,
    record::{GpuSample, Verdict},
};
use serde::{Deserialize, Serialize};

use crate::{metrics::TrialMetrics, stats::mean, stats::median, trial::TrialLog};

/// What a case makes of its device: medians over its VALID trials.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Efficiency {
    /// Mean power of the board while timed steps ran, W.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f64>,
    /// That over real tokens a second, J.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_token: Option<f64>,
    /// The peak, GFLOP/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_gflops: Option<f64>,
    /// Where the peak is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_source: Option<String>,
    /// Model FLOPs over that peak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
}

const SOURCE: &str = "NVIDIA's data sheet, dense bf16";

/// A trial with what was made of it.
pub type Judged<'a> = (&'a TrialLog, &'a TrialMetrics, Verdict);

/// The name of the GPU of a run, by whichever arm tells it: one peak holds for all of them.
pub fn gpu<'a>(logs: impl Iterator<Item = &'a TrialLog>) -> Option<&'a str> {
    logs.filter_map(|log| Some(log.hello.as_ref()?.event.device.as_str()))
        .find(|name| peak_gflops(name).is_some())
}

/// Efficiency of a case from its trials on `gpu`; `audit` is its audit trial, whose findings may hold a measured peak. `None` where
/// nothing of it is known.
pub fn efficiency(trials: &[Judged<'_>], audit: Option<&TrialLog>, gpu: Option<&str>) -> Option<Efficiency> {
    let valid: Vec<_> = trials.iter().filter(|t| t.2 == Verdict::Valid).collect();
    let logs = || valid.iter().map(|t| t.0);
    let powers: Vec<f64> = logs().filter_map(power_w).collect();
    let joules: Vec<f64> =
        valid.iter().filter_map(|t| Some(power_w(t.0)? / t.1.real_tokens_per_s?)).collect();
    let peak = logs().find_map(|log| data_sheet(log, gpu)).or_else(|| logs().chain(audit).find_map(measured));
    let gflops: Vec<f64> = valid.iter().filter_map(|t| t.1.model_gflops).collect();
    if powers.is_empty() && (peak.is_none() || gflops.is_empty()) {
        return None;
    }
    Some(Efficiency {
        power_w: median(&powers),
        joules_per_token: median(&joules),
        peak_gflops: peak.as_ref().map(|p| p.0),
        mfu: peak.as_ref().zip(median(&gflops)).map(|(peak, gflops)| gflops / peak.0),
        peak_source: peak.map(|p| p.1),
    })
}

/// Mean power between the first and the last look at the GPU while timed steps ran: from the energy counter where the GPU
/// has one, else of the readings.
fn power_w(log: &TrialLog) -> Option<f64> {
    let from = log.steps.iter().take_while(|s| s.event.phase == Phase::Untimed).last()?.recv_ns;
    let to = log.windows.last()?.recv_ns;
    let looks: Vec<(u64, &GpuSample)> = log
        .samples
        .iter()
        .filter(|s| (from..=to).contains(&s.t_ns))
        .filter_map(|s| Some((s.t_ns, s.gpu.as_ref()?)))
        .filter(|(_, g)| g.process_bytes > 0)
        .collect();
    let ((t0, first), (t1, last)) = (*looks.first()?, *looks.last()?);
    let counted = last.energy_mj.saturating_sub(first.energy_mj) as f64 * 1e-3;
    if first.energy_mj > 0 && t1 > t0 && counted > 0.0 {
        return Some(counted / ((t1 - t0) as f64 * 1e-9));
    }
    let readings: Vec<f64> =
        looks.iter().map(|(_, g)| f64::from(g.power_mw) * 1e-3).filter(|w| *w > 0.0).collect();
    mean(&readings)
}

/// The peak of the GPU that the arm ran on, where its weights are bf16: some arms say `cuda` and no more.
fn data_sheet(log: &TrialLog, gpu: Option<&str>) -> Option<(f64, String)> {
    let hello = &log.hello.as_ref()?.event;
    let name = if hello.device.starts_with("cuda") { gpu? } else { &hello.device };
    let peak = peak_gflops(name)?;
    (hello.precision.weights == "bf16").then(|| (peak, SOURCE.to_string()))
}

/// The fastest product that the harness measured beside.
fn measured(log: &TrialLog) -> Option<(f64, String)> {
    let peak = log.audit.as_ref()?.peak.as_ref()?;
    Some((peak.gflops, format!("measured: {}", peak.method)))
}
