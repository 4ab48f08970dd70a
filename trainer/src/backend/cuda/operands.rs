//! What the seams' calls have in common: operands of the batch, and how a call is made. What `seams` relies on holds here.

use chronicals_kernels::{
    attention::cuda as attention,
    embedding::cuda as embedding,
    gpu::{GpuError, Machine, Ptr},
    linear_ce::cuda as linear_ce,
    qk_rope::cuda as qk_rope,
};

use super::{
    CudaBackend,
    extents::scalars,
    submit::{Logged, Rehearsal},
};
use crate::backend::{Param, View};

impl<D: Machine> CudaBackend<D> {
    /// Calls `launch` unless something failed before, and keeps its failure.
    pub(super) fn run(&mut self, launch: impl FnOnce(&Self, &Logged<'_>) -> Result<(), GpuError>) {
        if self.failed.is_none() {
            let (launcher, products) = (self.device.launcher(), self.device.products());
            let load = |entry| self.device.load(entry);
            let rehearsal = self.rehearsal.as_ref().map(|products| Rehearsal { load: &load, products });
            let record =
                self.record.calls_of(&*self.device, self.shape.pairs).filter(|_| rehearsal.is_none());
            let on = Logged { launcher, products, rehearsal, record, log: &self.log, plan: self.plan };
            self.failed = launch(self, &on).err();
        }
    }

    pub(super) fn scratch(&self) -> Ptr {
        self.ptr(&self.own().scratch, 0)
    }

    pub(super) fn of_batch(&self, at: usize) -> Ptr {
        self.ptr(&self.own().batch, at)
    }

    pub(super) fn documents(&self) -> attention::Documents {
        attention::Documents { list: self.of_batch(self.layout.documents), tokens: self.shape.tokens }
    }

    pub(super) fn rotation(&self) -> qk_rope::Rotation {
        let own = self.own();
        let positions = self.of_batch(self.layout.positions);
        qk_rope::Rotation { cos: self.ptr(&own.cos, 0), sin: self.ptr(&own.sin, 0), positions }
    }

    pub(super) fn embedding_shape(&self) -> embedding::Shape {
        let d = self.extents.dims;
        embedding::Shape { tokens: self.shape.tokens, vocabulary: d.vocab, hidden: d.hidden }
    }

    pub(super) fn loss_plan(&self) -> linear_ce::Plan {
        self.extents.loss_plan(self.shape.tokens, self.shape.rows)
    }

    pub(super) fn loss_operands(&self, head: &Param, x: View) -> linear_ce::Operands {
        linear_ce::Operands {
            x_TD: self.at(x),
            w_VD: self.at(head.value),
            index: self.of_batch(self.layout.labels),
            loss: self.scalar(scalars::LOSS),
            scratch: self.scratch(),
        }
    }
}
