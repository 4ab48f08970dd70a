//! Power, energy and model FLOP utilisation of trials on a GPU.

use chronibench_protocol::{
    event::Phase,
    record::{GpuSample, Verdict},
};
use serde::{Deserialize, Serialize};

use crate::{metrics::TrialMetrics, stats::median, summary::TrialSummary, trial::TrialLog};

/// What a case makes of a GPU: medians over its VALID trials.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Efficiency {
    /// Mean power of the board while timed steps ran, W.
    pub power_w: Option<f64>,
    /// That over real tokens a second, J.
    pub joules_per_token: Option<f64>,
    /// Dense peak of the GPU in the format of the weights, GFLOP/s.
    pub peak_gflops: Option<f64>,
    /// Where the peak is from.
    pub peak_source: Option<String>,
    /// Model FLOPs over that peak.
    pub mfu: Option<f64>,
}

/// Dense bf16 peaks, GFLOP/s, by words of the GPU's name: the first row whose words are all in it counts.
const PEAKS: [(&[&str], f64); 6] = [
    (&["H100", "PCIe"], 756.0e3),
    (&["H100", "NVL"], 835.0e3),
    (&["H100"], 989.4e3),
    (&["H200"], 989.4e3),
    (&["A100"], 312.0e3),
    (&["L40S"], 362.05e3),
];

const SOURCE: &str = "NVIDIA's data sheet, dense bf16";

/// Efficiency of a case from its trials; `None` where no trial has readings of a GPU.
pub fn efficiency(trials: &[(&TrialLog, &TrialMetrics, Verdict)]) -> Option<Efficiency> {
    let valid: Vec<_> = trials.iter().filter(|t| t.2 == Verdict::Valid).collect();
    let powers: Vec<f64> = valid.iter().filter_map(|t| power_w(t.0)).collect();
    let joules: Vec<f64> =
        valid.iter().filter_map(|t| Some(power_w(t.0)? / t.1.real_tokens_per_s?)).collect();
    let peak = valid.iter().find_map(|t| peak_gflops(t.0));
    let gflops: Vec<f64> = valid.iter().filter_map(|t| t.1.model_gflops).collect();
    if powers.is_empty() && peak.is_none() {
        return None;
    }
    Some(Efficiency {
        power_w: median(&powers),
        joules_per_token: median(&joules),
        peak_gflops: peak,
        peak_source: peak.map(|_| SOURCE.into()),
        mfu: peak.zip(median(&gflops)).map(|(peak, gflops)| gflops / peak),
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
    let readings: Vec<f64> = looks.iter().map(|(_, g)| f64::from(g.power_mw) * 1e-3).filter(|w| *w > 0.0).collect();
    crate::stats::mean(&readings)
}

/// The peak of the GPU that the arm names, where its weights are bf16.
fn peak_gflops(log: &TrialLog) -> Option<f64> {
    let hello = &log.hello.as_ref()?.event;
    let known = PEAKS.iter().find(|(words, _)| words.iter().all(|w| hello.device.contains(w)))?;
    (hello.precision.weights == "bf16").then_some(known.1)
}

/// Whether any of these trials has a figure of its own on a GPU.
pub(crate) fn is_on_gpu(trials: &[TrialSummary]) -> bool {
    trials.iter().any(|t| t.metrics.peak_gpu_bytes.is_some_and(|b| b > 0))
}
