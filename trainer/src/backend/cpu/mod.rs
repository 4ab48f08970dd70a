//! The CPU backend: f32, on the kernels of `chronicals-kernels`, with rayon's current pool.

mod adapters;
mod cache;
mod costs;
mod laps;
mod seams;

use std::{
    cell::{Ref, RefCell, RefMut},
    collections::BTreeMap,
    ops::Range,
};

use chronicals_data::batch::Batch;
use chronicals_kernels::{KernelPlan, Seam, Variant, attention, gpu::Cost, linear_ce, qk_rope, rmsnorm};

use super::{Allocator, Component, StepStats, Update, View, dims::Dims};
use crate::{config::ModelConfig, model::Capacity};

/// Buffers are borrowed at run time: two views of one buffer may be read together, and a kernel that would read what it
/// writes is a panic, not a race.
pub struct CpuBackend {
    buffers: Vec<RefCell<Vec<f32>>>,
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

    fn get(&self, v: View) -> Ref<'_, [f32]> {
        Ref::map(self.buffers[v.buffer].borrow(), |b| &b[v.offset..v.offset + v.len])
    }

    fn get_mut(&self, v: View) -> RefMut<'_, [f32]> {
        RefMut::map(self.buffers[v.buffer].borrow_mut(), |b| &mut b[v.offset..v.offset + v.len])
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
        (self.buffers[views[0].buffer].borrow_mut(), views.map(|v| v.offset..v.offset + v.len))
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
        *self.planned.entry(component).or_default() += 4 * len as u64;
        self.buffers.push(RefCell::new(vec![0.0; len]));
        View { buffer: self.buffers.len() - 1, offset: 0, len }
    }
}
