//! Figures of one trial.

use std::collections::BTreeMap;

use chronibench_protocol::{
    event::{Phase, TokenCounts},
    record::{ModelShape, Sample},
    spec::Method,
};
use serde::{Deserialize, Serialize};

use crate::{
    changepoint::warmup_steps,
    stats::{LossFall, loss_fall, mean},
    trial::TrialLog,
};

/// Figures of one trial; `None` where the log does not reach far enough, or the arm does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialMetrics {
    /// Tokens of all timed windows, counted by the harness.
    pub timed_tokens: TokenCounts,
    /// Real tokens of the distinct samples among them; the rest came again in another epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_tokens: Option<u64>,
    /// Timed steps before the last change to a faster level: they were still warming up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warm_timed_steps: u32,
    /// Sum of the windows, seconds.
    pub timed_s: f64,
    /// Real tokens of the windows over their time: the throughput figure (total over total, never a mean of rates).
    pub real_tokens_per_s: Option<f64>,
    /// The same with every position that was computed, padding included.
    pub slots_per_s: Option<f64>,
    /// The same with the positions that enter the loss.
    pub loss_tokens_per_s: Option<f64>,
    /// Real tokens/s of each window.
    pub window_rates: Vec<f64>,
    /// Window time over timed steps, milliseconds.
    pub step_ms: Option<f64>,
    /// Largest resident set that the harness sampled before the last window ended, bytes: to save weights or to replay
    /// products is not training.
    pub peak_rss_sampled: Option<u64>,
    /// Largest resident set that the arm read from the kernel (`VmHWM`), bytes.
    pub peak_rss_reported: Option<u64>,
    /// Mean processor use of the arm while timed steps ran, percent of one core.
    pub cpu_percent: Option<f64>,
    /// Mean processor use of the machine in the same time, percent of all cores.
    pub machine_cpu_percent: Option<f64>,
    /// Largest GPU memory of the arm's processes, bytes, where a GPU was sampled.
    pub peak_gpu_bytes: Option<u64>,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// First third of the loss curve against the last.
    pub loss_fall: Option<LossFall>,
    /// Real tokens over slots, timed steps.
    pub packing_efficiency: Option<f64>,
    /// Time in matrix products over window time.
    pub gemm_share: Option<f64>,
    /// Rate of those products, GFLOP/s.
    pub gemm_gflops: Option<f64>,
    /// How the two were found: `measured` or `replayed`.
    pub gemm_method: Option<String>,
    /// [`model_flops_per_token`].
    pub model_flops_per_token: Option<f64>,
    /// Model FLOPs of the real tokens over window time, GFLOP/s.
    pub model_gflops: Option<f64>,
    /// Bytes that the arm planned, by component.
    pub planned_bytes: BTreeMap<String, u64>,
}

/// Which memory [`TrialMetrics::peak_memory`] is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// Of the process on the GPU.
    Gpu,
    /// The resident set.
    Rss,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl TrialMetrics {
    /// What the planned bytes are a part of: memory of the process on the GPU, where it has some, else its resident set.
    pub fn peak_memory(&self) -> Option<u64> {
        match self.memory_source()? {
            MemorySource::Gpu => self.peak_gpu_bytes,
            MemorySource::Rss => self.peak_rss(),
        }
    }

    /// What [`Self::peak_memory`] is of; `None` where nothing is known.
    pub fn memory_source(&self) -> Option<MemorySource> {
        let gpu = self.peak_gpu_bytes.filter(|b| *b > 0).map(|_| MemorySource::Gpu);
        gpu.or(self.peak_rss().map(|_| MemorySource::Rss))
    }

    /// The larger of the two readings of the peak resident set: a sampler misses short peaks, and the kernel's own mark
    /// leaves out child processes.
    pub fn peak_rss(&self) -> Option<u64> {
        self.peak_rss_sampled.max(self.peak_rss_reported)
    }

    /// Sum of the planned components, when there are any.
    pub fn planned_total(&self) -> Option<u64> {
        (!self.planned_bytes.is_empty()).then(|| self.planned_bytes.values().sum())
    }
}

/// Model FLOPs that a real token costs, by the 6·N rule: 2 a multiply-add, once forward and twice backward (gradient of
/// the input, gradient of the weight). A frozen weight needs no gradient of its own, so LoRA costs 4 for each base element
/// and 6 for each adapter element. The LM head counts, the embedding look-up does not, and attention scores are left out
/// because they depend on document lengths. Padding is no work that anybody asked for and earns nothing.
pub fn model_flops_per_token(model: &ModelShape, method: &Method, trainable: u64) -> f64 {
    let base = (model.block_matmul_params + model.head_params) as f64;
    match method {
        Method::Full {} => 6.0 * base,
        Method::Lora(_) => 4.0 * base + 6.0 * trainable as f64,
    }
}

/// All figures of one trial.
pub fn metrics(log: &TrialLog) -> TrialMetrics {
    let mut m = TrialMetrics::default();
    throughput(log, &mut m);
    m.unique_tokens = log.unique;
    m.warm_timed_steps = warm_timed_steps(log);
    process(log, &mut m);
    m.first_loss = log.steps.first().map(|s| s.event.loss).filter(|l| l.is_finite());
    m.last_loss = log.steps.last().map(|s| s.event.loss).filter(|l| l.is_finite());
    m.loss_fall = loss_fall(&log.losses());
    if let Some(ready) = &log.ready {
        m.planned_bytes = ready.event.planned_bytes.clone();
    }
    if let Some(gemm) = log.done.as_ref().and_then(|d| d.event.gemm.as_ref()) {
        m.gemm_share = per(gemm.ns as f64 * 1e-9, m.timed_s);
        m.gemm_gflops = per(gemm.flops as f64, gemm.ns as f64);
        m.gemm_method = Some(gemm.method.clone());
    }
    if let Some(h) = &log.header {
        let trainable = h.expected_trainable.iter().map(|t| t.numel()).sum();
        let flops = model_flops_per_token(&h.model, &h.spec.method, trainable);
        m.model_flops_per_token = Some(flops);
        m.model_gflops = m.real_tokens_per_s.map(|r| r * flops * 1e-9);
    }
    m
}

/// Timed steps that belong to the warm-up, by change point over the time of a slot in every step.
fn warm_timed_steps(log: &TrialLog) -> u32 {
    let steps = || log.steps.iter().map(|s| &s.event).filter(|s| s.tokens.slots > 0);
    let times: Vec<f64> =
        steps().map(|s| s.end_ns.saturating_sub(s.start_ns) as f64 / s.tokens.slots as f64).collect();
    let untimed = steps().take_while(|s| s.phase == Phase::Untimed).count();
    warmup_steps(&times).saturating_sub(untimed) as u32
}

fn throughput(log: &TrialLog, m: &mut TrialMetrics) {
    let counted = log.counted();
    let mut steps = 0u64;
    for w in log.windows.iter().map(|w| &w.event) {
        let seconds = w.end_ns.saturating_sub(w.start_ns) as f64 * 1e-9;
        let mut tokens = TokenCounts::default();
        for (_, &c) in counted.iter().filter(|(s, _)| (w.first_step..=w.last_step).contains(*s)) {
            tokens += c;
            steps += 1;
        }
        m.window_rates.extend(per(tokens.real as f64, seconds));
        m.timed_tokens += tokens;
        m.timed_s += seconds;
    }
    if steps == 0 {
        return;
    }
    m.real_tokens_per_s = per(m.timed_tokens.real as f64, m.timed_s);
    m.slots_per_s = per(m.timed_tokens.slots as f64, m.timed_s);
    m.loss_tokens_per_s = per(m.timed_tokens.loss as f64, m.timed_s);
    m.step_ms = per(m.timed_s * 1e3, steps as f64);
    m.packing_efficiency = per(m.timed_tokens.real as f64, m.timed_tokens.slots as f64);
}

fn process(log: &TrialLog, m: &mut TrialMetrics) {
    m.peak_rss_reported = log.done.as_ref().and_then(|d| d.event.peak_rss_bytes);
    let end = log.windows.last().map_or(u64::MAX, |w| w.recv_ns);
    let training = || log.samples.iter().filter(|s| s.t_ns <= end);
    m.peak_rss_sampled = training().map(|s| s.rss_bytes).max();
    m.peak_gpu_bytes = training().filter_map(|s| s.gpu.as_ref()).map(|g| g.process_bytes).max();
    // Loading and saving would dilute the figure: only the timed part is averaged.
    let from = log.steps.iter().take_while(|s| s.event.phase == Phase::Untimed).last().map(|s| s.recv_ns);
    let from = from.or(log.ready.as_ref().map(|r| r.recv_ns)).unwrap_or(0);
    let timed: Vec<&Sample> = training().filter(|s| s.t_ns >= from).collect();
    let average = |f: fn(&Sample) -> f32| mean(&timed.iter().map(|s| f64::from(f(s))).collect::<Vec<_>>());
    m.cpu_percent = average(|s| s.cpu_percent);
    m.machine_cpu_percent = average(|s| s.machine_cpu_percent);
}

fn per(amount: f64, of: f64) -> Option<f64> {
    let rate = amount / of;
    (of > 0.0 && rate.is_finite()).then_some(rate)
}
