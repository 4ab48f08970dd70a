//! The CPU backend: f32, but for moments of 8 bits where asked for, on the kernels of `chronicals-kernels`, with rayon's current pool.

mod adapters;
mod buffer;
mod cache;
mod costs;
mod formats;
mod laps;
mod seams;
mod update;

use std::{
    cell::{Ref, RefMut},
    collections::BTreeMap,
    ops::Range,
};

use chronibench_protocol::spec::PrecisionArgs;
use chronicals_data::batch::Batch;
use chronicals_kernels::{KernelPlan, Seam, Variant, attention, gpu::Cost, linear_ce, qk_rope, rmsnorm};

pub use formats::Formats;

use buffer::Buffer;

use super::{Allocator, Component, StepStats, Update, View, check_optimizer, dims::Dims};
use crate::{config::ModelConfig, error::Error, model::Capacity};

/// Trains on the processor, on the current pool's threads.
pub struct CpuBackend {
    buffers: Vec<Buffer>,
    formats: Formats,
    seed: u32,
    planned: BTreeMap<Component, u64>,
    launches: BTreeMap<String, u64>,
    plan: KernelPlan,
    dims: Dims,
    tables: qk_rope::Tables,
    loss_options: linear_ce::Options,
    capacity: Capacity,
    batch: Batch,
    loss_scale: f32,
    update: Option<Update>,
    stats: StepStats,
    laps: Option<laps::Laps>,
    cache: Option<cache::Cache>,
}

impl CpuBackend {
    /// A backend without buffers for models of this architecture and micro-batches up to `capacity`.
    pub fn new(
        c: &ModelConfig,
        capacity: Capacity,
        plan: KernelPlan,
        loss_options: linear_ce::Options,
    ) -> Self {
        Self {
            buffers: Vec::new(),
            formats: Formats::default(),
            seed: 0,
            planned: BTreeMap::new(),
            launches: BTreeMap::new(),
            plan,
            dims: c.into(),
            tables: qk_rope::Tables::new(&c.inv_freq, capacity.row_slots),
            loss_options,
            capacity,
            batch: Batch::default(),
            loss_scale: 1.0,
            update: None,
            stats: StepStats::default(),
            laps: None,
            cache: None,
        }
    }

    /// In the formats that are asked for, at the setting `at`; `seed` is that of stochastic rounding. Before anything is allocated.
    ///
    /// # Errors
    /// The processor does not have them, or not with the plan's optimizer.
    pub fn with(self, asked: PrecisionArgs, at: &str, seed: u32) -> Result<Self, Error> {
        let formats = Formats::new(asked, at)?;
        check_optimizer(self.plan, formats.eight_bit)?;
        Ok(Self { formats, seed, ..self })
    }

    fn get(&self, v: View) -> Ref<'_, [f32]> {
        Ref::map(self.buffers[v.buffer].values(), |b| &b[v.offset..v.offset + v.len])
    }

    fn get_mut(&self, v: View) -> RefMut<'_, [f32]> {
        RefMut::map(self.buffers[v.buffer].values_mut(), |b| &mut b[v.offset..v.offset + v.len])
    }

    /// Length in use of an activation laid out for the full capacity.
    fn in_use(&self, v: View) -> View {
        let width = v.len / self.capacity.tokens;
        v.slice(0, width * self.tokens())
    }

    fn act(&self, v: View) -> Ref<'_, [f32]> {
        self.get(self.in_use(v))
    }

    fn act_mut(&self, v: View) -> RefMut<'_, [f32]> {
        self.get_mut(self.in_use(v))
    }

    fn tokens(&self) -> usize {
        self.batch.ids.len()
    }

    /// Gradient buffer, locked whole because its views lie in one buffer; the ranges address the views inside.
    fn grads<const N: usize>(&self, views: [View; N]) -> (RefMut<'_, Vec<f32>>, [Range<usize>; N]) {
        assert!(views.iter().all(|v| v.buffer == views[0].buffer), "gradients share a buffer");
        (self.buffers[views[0].buffer].values_mut(), views.map(|v| v.offset..v.offset + v.len))
    }

    /// Logs a launch, begins its lap and returns the seam's variant.
    fn launch(&mut self, seam: Seam, operation: &str, cost: impl FnOnce(&Self) -> Cost) -> Variant {
        let variant = self.plan.get(seam);
        if self.laps.is_some() {
            self.lap(seam.name(), variant.name(), operation, cost(self));
        }
        *self.launches.entry(format!("{}.{variant}.{operation}", seam.name())).or_default() += 1;
        variant
    }

    fn norm_shape(&self) -> rmsnorm::Shape {
        self.dims.norm(self.tokens())
    }

    fn rope_shape(&self) -> qk_rope::Shape {
        self.dims.rope(self.tokens())
    }

    fn rotation(&self) -> qk_rope::Rotation<'_> {
        qk_rope::Rotation { tables: &self.tables, positions: &self.batch.positions }
    }

    fn attention_shape(&self) -> (attention::Layout<'_>, attention::Shape) {
        let b = &self.batch;
        let layout = attention::Layout { cu_seqlens: &b.cu_seqlens, rows: b.rows, row_slots: b.row_slots };
        (layout, self.dims.attention())
    }

    /// Saved probabilities of the current batch: rows × heads × slots × slots.
    fn probs_in_use(&self, v: View) -> View {
        v.slice(0, self.batch.rows * self.dims.heads * self.batch.row_slots * self.batch.row_slots)
    }

    fn loss_shape(&self) -> linear_ce::Shape {
        self.dims.loss(self.tokens())
    }

    fn add_loss(&mut self, sums: linear_ce::Sums) {
        self.stats.loss_sum += sums.loss;
        self.stats.loss_tokens += sums.tokens;
    }
}

impl Allocator for CpuBackend {
    fn alloc(&mut self, component: Component, len: usize) -> View {
        let coded = component == Component::OptimizerStates && self.formats.eight_bit;
        let buffer = if coded { Buffer::coded(len) } else { Buffer::of(len) };
        *self.planned.entry(component).or_default() += buffer.bytes();
        self.buffers.push(buffer);
        View { buffer: self.buffers.len() - 1, offset: 0, len }
    }
}
