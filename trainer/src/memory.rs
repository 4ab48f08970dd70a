//! How many bytes a training needs, counted by laying the model out without allocating it.

use std::collections::BTreeMap;

use chronibench_protocol::spec::Method;
use chronicals_kernels::{Seam, adamw::codes, linear_ce};
use sysinfo::System;

use crate::{
    backend::{Allocator, Component, View, cpu::Formats},
    config::ModelConfig,
    error::Error,
    model::{Capacity, Level, Model, Setup},
};

/// Counts elements instead of allocating them.
#[derive(Default)]
struct DryRun(BTreeMap<Component, u64>);

impl Allocator for DryRun {
    fn alloc(&mut self, component: Component, len: usize) -> View {
        *self.0.entry(component).or_default() += len as u64;
        View { buffer: 0, offset: 0, len }
    }
}

/// What a training takes of a device, and of the host's page-locked memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Bytes on the device by component.
    pub bytes: BTreeMap<String, u64>,
    /// Bytes of activations on the host.
    pub host_bytes: u64,
}

impl Plan {
    /// Bytes on the device.
    pub fn total(&self) -> u64 {
        self.bytes.values().sum()
    }
}

/// Elements (not bytes) of every component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements(pub BTreeMap<Component, u64>);

/// Tokens of a micro-batch, at most: kernels count them in 32 bits.
const MAX_TOKENS: usize = i32::MAX as usize - 1;

/// Values of the widest activation of all blocks, at most: what a step takes can then be added up in 64 bits.
const MAX_VALUES: u128 = 1 << 56;

/// What can be counted, whether or not any machine has room for it.
///
/// # Errors
/// A micro-batch of more tokens, or with more activations.
pub fn check_capacity(c: &ModelConfig, capacity: Capacity) -> Result<(), Error> {
    let widths = [c.vocab_size, c.hidden_size, 2 * c.intermediate_size, c.qkv_width()];
    let widest = widths.into_iter().max().expect("a few");
    let values = [capacity.tokens, c.layers, widest].into_iter().map(|n| n as u128).product::<u128>();
    let what = match capacity.tokens {
        n if n > MAX_TOKENS => format!("more than {MAX_TOKENS} tokens"),
        n if values > MAX_VALUES => format!("{n} tokens is too large to be counted for this model"),
        _ => return Ok(()),
    };
    Err(Error::new(format!("a micro-batch of {what}"), "rows and slots of a micro-batch")
        .hint("take fewer rows, or shorter ones"))
}

/// Counts what [`Model::build`] would allocate, and the loss's temporary memory.
///
/// # Errors
/// The method's settings make no sense, or [the micro-batch](check_capacity) does not.
pub fn elements(setup: &Setup<'_>, loss: linear_ce::Options) -> Result<Elements, Error> {
    check_capacity(setup.config, setup.capacity)?;
    let mut dry = DryRun::default();
    Model::build(&mut dry, setup)?;
    let (c, tokens) = (setup.config, setup.capacity.tokens);
    let shape = linear_ce::Shape { tokens, hidden: c.hidden_size, vocab: c.vocab_size };
    dry.0.insert(Component::Logits, linear_ce::workspace_bytes(setup.plan.get(Seam::Loss), shape, loss) / 4);
    Ok(Elements(dry.0))
}

/// Bytes of one element of each component.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accounting {
    /// Weights and adapters.
    pub weights: f64,
    /// Master copies of whatever trains; 0 without.
    pub master: f64,
    /// Gradients.
    pub gradients: f64,
    /// One AdamW moment (there are two).
    pub moment: f64,
    /// Activations.
    pub activations: f64,
    /// Statistics.
    pub statistics: f64,
    /// Logits.
    pub logits: f64,
}

impl Accounting {
    /// What this trainer's CPU backend holds: f32 throughout, unless [moments have 8 bits](cpu_bytes).
    pub const CPU: Self = Self {
        master: 0.0,
        weights: 4.0,
        gradients: 4.0,
        moment: 4.0,
        activations: 4.0,
        statistics: 4.0,
        logits: 4.0,
    };

    /// What arXiv 2601.02609 counts: bf16 weights and gradients, f32 moments, nothing else.
    pub const PAPER: Self = Self {
        master: 0.0,
        weights: 2.0,
        gradients: 2.0,
        moment: 4.0,
        activations: 0.0,
        statistics: 0.0,
        logits: 0.0,
    };

    /// Bytes by component.
    pub fn bytes(&self, e: &Elements) -> BTreeMap<String, u64> {
        let n = |c: Component| e.0.get(&c).copied().unwrap_or(0) as f64;
        let trained = n(Component::Gradients);
        let rows = [
            (Component::Weights.name(), n(Component::Weights) * self.weights),
            (Component::Adapters.name(), n(Component::Adapters) * self.weights),
            ("master weights", trained * self.master),
            (Component::Gradients.name(), trained * self.gradients),
            (Component::OptimizerStates.name(), n(Component::OptimizerStates) * self.moment),
            (Component::Activations.name(), n(Component::Activations) * self.activations),
            (Component::Statistics.name(), n(Component::Statistics) * self.statistics),
            (Component::Logits.name(), n(Component::Logits) * self.logits),
        ];
        rows.into_iter().filter(|(_, b)| *b > 0.0).map(|(name, b)| (name.to_string(), b as u64)).collect()
    }
}

/// Bytes by component that this trainer's CPU backend takes.
pub fn cpu_bytes(e: &Elements, formats: Formats) -> BTreeMap<String, u64> {
    let mut bytes = Accounting::CPU.bytes(e);
    if let Some(both) = e.0.get(&Component::OptimizerStates).filter(|_| formats.eight_bit) {
        let one = codes::bytes((both / 2) as usize) as u64;
        bytes.insert(Component::OptimizerStates.name().to_string(), 2 * one);
    }
    bytes
}

/// Elements of the states of `params` parameters under full fine-tuning, for models known by their size alone.
pub fn elements_of(params: u64) -> Elements {
    Elements(BTreeMap::from([
        (Component::Weights, params),
        (Component::Gradients, params),
        (Component::OptimizerStates, 2 * params),
    ]))
}

/// Elements for a model, a method and a batch at the default kernel plan.
///
/// # Errors
/// As [`elements`].
pub fn elements_for(
    c: &ModelConfig,
    method: &Method,
    rows: usize,
    row_slots: usize,
    recompute: Level,
) -> Result<Elements, Error> {
    let capacity = Capacity { tokens: rows.saturating_mul(row_slots), row_slots };
    let setup = Setup { config: c, method, capacity, plan: Default::default(), recompute, offload: false };
    elements(&setup, Default::default())
}

/// Memory that programs can have without others being put aside, bytes: what the system or this process's group has left.
/// `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    // What the group has of the file cache goes when it is wanted, so that it counts as left.
    let of_group = system.cgroup_limits().map_or(u64::MAX, |g| g.total_memory.saturating_sub(g.rss));
    Some(system.available_memory().min(of_group)).filter(|bytes| *bytes > 0)
}

/// In decimal units, as GPU memory is quoted in papers.
pub fn gigabytes(bytes: u64) -> String {
    let b = bytes as f64;
    match b {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b => format!("{:.2} kB", b / 1e3),
    }
}

/// Peak resident set of this process so far, bytes, where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_billion_in_the_papers_accounting_is_84_gb() {
        let bytes = Accounting::PAPER.bytes(&elements_of(7_000_000_000));
        let gb = |name: &str| bytes[name] as f64 / 1e9;
        assert_eq!((gb("weights"), gb("gradients"), gb("optimizer states")), (14.0, 14.0, 56.0));
        assert_eq!(bytes.values().sum::<u64>(), 84_000_000_000);
    }
}
