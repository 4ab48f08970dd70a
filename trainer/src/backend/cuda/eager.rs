//! The eager variants: what their kernels keep from the forward to the backward pass, and calls of them.
//!
//! Autograd keeps more than the fused kernels do. Each place in the model has its piece of one memory, found by the buffer that
//! the seam reads or writes there; what a batch needs of a piece depends on its extents, and fits.

use std::collections::BTreeMap;

use chronibench_protocol::spec::States;
use chronicals_kernels::{
    Seam, Variant, adamw,
    attention::cuda_eager as attention,
    gpu::{GpuError, Machine, Ptr, eager::Memory},
    linear_ce::cuda_eager as linear_ce,
    lora::cuda_eager as lora,
    qk_rope::{
        cuda::{NormBackward, NormForward},
        cuda_eager as qk_rope,
    },
    rmsnorm::cuda_eager as rmsnorm,
    swiglu::cuda_eager as swiglu,
};

use super::{
    CudaBackend, Formats,
    extents::{Extents, adapters},
    submit::Logged,
};
use crate::{
    backend::{Attention, Norm, View},
    model::Model,
};

/// Where each piece begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    at: BTreeMap<(usize, usize), usize>,
    /// Of all of them.
    pub bytes: usize,
    /// Where the mask of the batch begins.
    mask: Option<usize>,
}

impl Pieces {
    /// Of a model's eager seams.
    pub(super) fn of(model: &Model, e: &Extents) -> Self {
        let (t, dims, elem) = (e.capacity.tokens, e.dims, e.elem());
        let mut pieces = Self::default();
        if e.is_eager(Seam::Norm) {
            let bytes = rmsnorm::saved_bytes(elem, dims.norm(t));
            let norms = model.blocks.iter().flat_map(|k| [&k.norm1, &k.norm2]).chain([&model.norm]);
            norms.for_each(|n| pieces.put(n.rstd, bytes));
        }
        if e.is_eager(Seam::QkRope) {
            let bytes = qk_rope::saved_bytes(elem, true, dims.rope(t));
            let norms = model.blocks.iter().filter_map(|k| k.rope.norm);
            norms.for_each(|n| pieces.put(n.rstd, bytes));
        }
        if e.is_eager(Seam::Attention) {
            let most = e.eager_attention();
            pieces.mask = Some(pieces.bytes);
            pieces.grow(most.mask);
            model.blocks.iter().for_each(|k| pieces.put(k.attention.qkv, most.saved));
        }
        if e.is_eager(Seam::Mlp) {
            let bytes = swiglu::saved_bytes(elem, t, dims.ffn);
            model.blocks.iter().for_each(|k| pieces.put(k.gate_up_out, bytes));
        }
        pieces
    }

    /// A piece for a place; one alone where several share a buffer.
    fn put(&mut self, place: View, bytes: usize) {
        let place = (place.buffer, place.offset);
        if !self.at.contains_key(&place) {
            self.at.insert(place, self.bytes);
            self.grow(bytes);
        }
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes.next_multiple_of(256);
    }
}

/// Scratch of a model's eager seams, bytes of each.
///
/// # Errors
/// Adapters that have no eager kernels.
pub(super) fn scratch_bytes(model: &Model, e: &Extents) -> Result<Vec<usize>, GpuError> {
    let (t, dims, elem) = (e.capacity.tokens, e.dims, e.elem());
    let rope = model.blocks[0].rope;
    let mut all = Vec::new();
    let mut add = |seam, bytes: &dyn Fn() -> usize| {
        if e.is_eager(seam) {
            all.push(bytes());
        }
    };
    add(Seam::Norm, &|| rmsnorm::scratch_bytes(elem, dims.norm(t)));
    let (bias, norm) = (rope.bias.is_some(), rope.norm.is_some());
    add(Seam::QkRope, &|| qk_rope::scratch_bytes(elem, bias, norm, dims.rope(t)));
    add(Seam::Attention, &|| e.eager_attention().scratch);
    add(Seam::Mlp, &|| swiglu::scratch_bytes(elem, t, dims.ffn));
    add(Seam::Loss, &|| linear_ce::scratch_bytes(&e.loss_plan(t, t), e.loss));
    add(Seam::Optimizer, &|| adamw::cuda_eager::scratch_bytes(elem, state(e.formats), model.grads.len));
    if e.is_eager(Seam::Lora) {
        for (linear, adapter) in adapters(model) {
            all.push(lora::scratch_bytes(&e.lora(linear, adapter, t), &adapter.segments)?);
        }
    }
    Ok(all)
}

/// What AdamW's eager step is of.
fn state(formats: Formats) -> adamw::cuda_eager::Layout {
    let (master, copy) = (formats.states != States::Bf16, formats.has_masters());
    adamw::cuda_eager::Layout { master, of_elem: false, copy, clip: true }
}

impl<D: Machine> CudaBackend<D> {
    pub(super) fn is_eager(&self, seam: Seam) -> bool {
        self.plan.get(seam) == Variant::Eager
    }

    /// The piece of a place, and the scratch.
    fn memory_of(&self, place: View) -> Memory {
        let own = self.own();
        let at = own.pieces.at.get(&(place.buffer, place.offset));
        let saved = at.map_or(Ptr::NULL, |at| self.ptr(&own.kept, *at));
        Memory { saved, scratch: self.scratch() }
    }

    /// The norm of x, or of the sum of two, which goes to x.
    pub(super) fn eager_norm(
        &self,
        on: &Logged<'_>,
        n: &Norm,
        summands: Option<[View; 2]>,
        x: View,
        y: View,
    ) -> Result<(), GpuError> {
        let (elem, eps, shape) =
            (self.elem(), self.extents.dims.eps, self.extents.dims.norm(self.shape.tokens));
        let [x, weight, y, rstd] = [x, n.weight.value, y, n.rstd].map(|v| self.at(v));
        let memory = self.memory_of(n.rstd);
        // SAFETY: see `seams`; the piece is as large as the most tokens need.
        unsafe {
            match summands.map(|both| both.map(|v| self.at(v))) {
                None => rmsnorm::forward(on, elem, x, weight, eps, y, rstd, memory, shape),
                Some([a, b]) => rmsnorm::add_forward(on, elem, a, b, x, weight, eps, y, rstd, memory, shape),
            }
        }
    }

    pub(super) fn eager_norm_backward(
        &self,
        on: &Logged<'_>,
        n: &Norm,
        [dy, x, dx]: [View; 3],
        accumulate: bool,
    ) -> Result<(), GpuError> {
        let shape = self.extents.dims.norm(self.shape.tokens);
        let [dy, x, rstd, weight, dx] = [dy, x, n.rstd, n.weight.value, dx].map(|v| self.at(v));
        let (elem, dweight, memory) =
            (self.elem(), n.weight.grad.map(|g| self.at(g)), self.memory_of(n.rstd));
        // SAFETY: as above.
        unsafe { rmsnorm::backward(on, elem, dy, x, rstd, weight, dx, accumulate, dweight, memory, shape) }
    }

    pub(super) fn eager_qk_rope(
        &self,
        on: &Logged<'_>,
        qkv: View,
        bias: Option<Ptr>,
        norm: Option<(View, NormForward)>,
    ) -> Result<(), GpuError> {
        let memory = self.memory_of(norm.map_or(qkv, |(rstd, _)| rstd));
        let (elem, qkv, norm) = (self.elem(), self.at(qkv), norm.map(|(_, norm)| norm));
        let shape = self.extents.dims.rope(self.shape.tokens);
        // SAFETY: as above.
        unsafe { qk_rope::forward(on, elem, qkv, bias, norm, self.rotation(), memory, shape) }
    }

    pub(super) fn eager_qk_rope_backward(
        &self,
        on: &Logged<'_>,
        dqkv: View,
        dbias: Option<Ptr>,
        norm: Option<(View, NormBackward)>,
    ) -> Result<(), GpuError> {
        let memory = self.memory_of(norm.map_or(dqkv, |(rstd, _)| rstd));
        let (elem, dqkv, norm) = (self.elem(), self.at(dqkv), norm.map(|(_, norm)| norm));
        let shape = self.extents.dims.rope(self.shape.tokens);
        // SAFETY: as above.
        unsafe { qk_rope::backward(on, elem, dqkv, dbias, norm, self.rotation(), memory, shape) }
    }

    fn eager_batch(&self) -> attention::Batch {
        let (t, slots) = (self.shape.tokens, self.shape.row_slots);
        attention::Batch::new(self.elem(), self.extents.dims.attention(), t / slots, slots)
    }

    fn mask(&self) -> Ptr {
        let own = self.own();
        self.ptr(&own.kept, own.pieces.mask.expect("eager attention has a mask"))
    }

    /// Makes the mask of the batch, once for all blocks.
    pub(super) fn eager_mask(&self, on: &Logged<'_>) -> Result<(), GpuError> {
        // SAFETY: as above; the documents are the batch's, whose tokens are whole rows, and none of them crosses one.
        unsafe { attention::mask(on, &self.eager_batch(), &self.documents(), self.mask()) }
    }

    pub(super) fn eager_attention(&self, on: &Logged<'_>, a: &Attention) -> Result<(), GpuError> {
        let [qkv, out] = [a.qkv, a.out].map(|v| self.at(v));
        // SAFETY: as above; the mask was made with the first layer's input.
        unsafe {
            attention::forward(on, on, &self.eager_batch(), qkv, self.mask(), out, self.memory_of(a.qkv))
        }
    }

    pub(super) fn eager_attention_backward(
        &self,
        on: &Logged<'_>,
        a: &Attention,
        dout: View,
        dqkv: View,
    ) -> Result<(), GpuError> {
        let [dout, qkv, dqkv] = [dout, a.qkv, dqkv].map(|v| self.at(v));
        // SAFETY: as above.
        unsafe { attention::backward(on, on, &self.eager_batch(), dout, qkv, dqkv, self.memory_of(a.qkv)) }
    }

    pub(super) fn eager_swiglu(
        &self,
        on: &Logged<'_>,
        gate_up: View,
        act: View,
        backward: bool,
    ) -> Result<(), GpuError> {
        let (t, ffn, memory) = (self.shape.tokens, self.extents.dims.ffn, self.memory_of(gate_up));
        let (elem, [gate_up, act]) = (self.elem(), [gate_up, act].map(|v| self.at(v)));
        let call = if backward { swiglu::backward } else { swiglu::forward };
        // SAFETY: as above.
        unsafe { call(on, elem, gate_up, act, memory, t, ffn) }
    }
}
