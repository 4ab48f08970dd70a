//! How many bytes a training takes on a GPU, counted without one.

use std::collections::BTreeMap;

use chronicals_kernels::{attention::cuda::Path, linear_ce};

use super::{
    Buckets, Formats, check_model,
    extents::{Extents, Extras, adapters},
    failure,
    offload::places,
};
use crate::{
    backend::{Allocator, Component, View},
    error::Error,
    memory::{Plan, check_capacity},
    model::{Model, Setup},
};

/// Names in plans, besides those of [`Component`].
pub(super) const MASTERS: &str = "master weights";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const WORKSPACE: &str = "workspace of products";
/// What the eager kernels keep from the forward to the backward pass.
pub(super) const KEPT: &str = "kept by eager kernels";
pub(super) const BATCH: &str = "batch and tables";

/// What decides sizes besides model and batch.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    /// Multiprocessors.
    pub processors: u32,
    /// Memory that products keep for themselves, bytes.
    pub workspace_bytes: usize,
}

impl Gpu {
    /// An H100 or H200 with cuBLASLt.
    pub const HOPPER: Self =
        Self { processors: 132, workspace_bytes: chronicals_kernels::gpu::matmul::WORKSPACES_BYTES };
}

/// Counts bytes instead of taking them.
struct DryRun {
    formats: Formats,
    buffers: usize,
    bytes: BTreeMap<&'static str, u64>,
}

impl Allocator for DryRun {
    fn alloc(&mut self, component: Component, len: usize) -> View {
        *self.bytes.entry(component.name()).or_default() += self.formats.bytes(component, len) as u64;
        self.buffers += 1;
        View { buffer: self.buffers - 1, offset: 0, len }
    }

    fn keeps_probabilities(&self) -> bool {
        false
    }
}

/// Bytes by component of what a backend would take.
///
/// # Errors
/// The method's settings make no sense, it or the model has no kernels, or [the micro-batch](check_capacity) cannot be counted.
pub fn bytes(setup: &Setup<'_>, loss: linear_ce::Options, formats: Formats, gpu: Gpu) -> Result<Plan, Error> {
    check_capacity(setup.config, setup.capacity)?;
    let path = Path::ALL.into_iter().rfind(|path| path.elem() == formats.elem);
    let path = setup.plan.path().or(path).expect("every element type has a path");
    check_model(setup.config, setup.plan, path)?;
    count(setup, &extents(setup, loss, formats, gpu), gpu.workspace_bytes)
}

/// Bytes that it needs outside of that plan, about: machine code, captured graphs, and operands of tuning, which go again. For what
/// [`bytes`] has counted.
pub fn outside_bytes(setup: &Setup<'_>, loss: linear_ce::Options, formats: Formats, gpu: Gpu) -> u64 {
    outside(setup, &extents(setup, loss, formats, gpu))
}

fn extents(setup: &Setup<'_>, loss: linear_ce::Options, formats: Formats, gpu: Gpu) -> Extents {
    Extents {
        dims: setup.config.into(),
        capacity: setup.capacity,
        formats,
        plan: setup.plan,
        loss,
        processors: gpu.processors,
        buckets: Buckets::of(setup.capacity),
    }
}

/// The same for extents.
pub(super) fn count(setup: &Setup<'_>, extents: &Extents, workspace_bytes: usize) -> Result<Plan, Error> {
    let workspace = BTreeMap::from([(WORKSPACE, workspace_bytes as u64)]);
    let mut dry = DryRun { formats: extents.formats, buffers: 0, bytes: workspace };
    let model = Model::build(&mut dry, setup)?;
    let extras = Extras::of(&model, extents).map_err(failure)?;
    for (name, bytes) in parts(&extras, &segment_bytes(&model)) {
        *dry.bytes.entry(name).or_default() += bytes as u64;
    }
    let some = dry.bytes.into_iter().filter(|(_, b)| *b > 0);
    let bytes = some.map(|(name, b)| (name.to_string(), b)).collect();
    Ok(Plan { bytes, host_bytes: (places(&model) * extras.entry) as u64 })
}

/// What a device needs outside of plans: kernels' machine code and captured graphs, about.
const OUTSIDE: u64 = 512 << 20;

/// Bytes outside of the plan, with the operands on which the largest product is tuned.
pub(super) fn outside(setup: &Setup<'_>, extents: &Extents) -> u64 {
    let c = setup.config;
    let elem = extents.elem().bytes();
    let product = |n: usize, k: usize| elem * (setup.capacity.tokens * (n + k) + n * k);
    let widths = [c.qkv_width(), c.attention_width(), 2 * c.intermediate_size, c.intermediate_size];
    let loss = extents.loss_plan(setup.capacity.tokens, setup.capacity.tokens);
    // Of the head: its weights, its gradient in f32 and a chunk of logits.
    let head = (elem + 4) * c.vocab_size * c.hidden_size + loss.chunk_bytes();
    let largest = widths.into_iter().map(|n| product(n, c.hidden_size)).max().unwrap_or(0).max(head);
    OUTSIDE + largest as u64
}

fn parts(e: &Extras, segments: &[usize]) -> Vec<(&'static str, usize)> {
    // Batch and numbers are there twice: as kernels read them, and as they arrive.
    let tables = 2 * (e.batch + e.scalars) + 2 * e.rotation + segments.iter().sum::<usize>();
    vec![(MASTERS, e.masters), (SCRATCH, e.scratch), (KEPT, e.pieces.bytes), (BATCH, tables)]
}

/// Bytes of each list of segments that occurs.
fn segment_bytes(model: &Model) -> Vec<usize> {
    let mut lists: Vec<&[chronicals_kernels::lora::Segment]> = Vec::new();
    for (_, adapter) in adapters(model) {
        if !lists.contains(&adapter.segments.as_slice()) {
            lists.push(&adapter.segments);
        }
    }
    lists.iter().map(|l| 4 * chronicals_kernels::lora::cuda::table(l).len()).collect()
}
