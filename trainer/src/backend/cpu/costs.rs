//! What the processor's calls move and compute: the fewest bytes of the operation, each operand once, whatever the variant.

use chronicals_data::batch::IGNORE_INDEX;
use chronicals_kernels::{adamw::codes, embedding, gpu::Cost, qk_rope, rmsnorm, swiglu};

use super::CpuBackend;
use crate::backend::{Adapter, Linear};

const F32: u64 = 4;

fn cost(elements: usize, flops: u64) -> Cost {
    Cost { bytes: F32 * elements as u64, flops, flops_a_pair: 0 }
}

impl CpuBackend {
    pub(super) fn norm_cost(&self, op: &str) -> Cost {
        Cost::bytes(rmsnorm::cases::bytes(op, self.norm_shape(), F32))
    }

    pub(super) fn rope_cost(&self, op: &str) -> Cost {
        Cost::bytes(qk_rope::cases::bytes(op, self.rope_shape(), F32))
    }

    pub(super) fn swiglu_cost(&self, op: &str) -> Cost {
        Cost::bytes(swiglu::cases::bytes(op, self.tokens(), self.dims.ffn, F32))
    }

    pub(super) fn embedding_cost(&self, backward: bool) -> Cost {
        let (t, d) = (self.tokens(), self.dims);
        let rows = t.min(d.vocab);
        let bytes = if backward { embedding::cases::backward_bytes } else { embedding::cases::forward_bytes };
        Cost::bytes(bytes(t, rows, d.hidden, F32 as usize))
    }

    /// Two products over half of each document's square; five on the way back.
    pub(super) fn attention_cost(&self, backward: bool) -> Cost {
        let shape = self.dims.attention();
        let pairs: u64 =
            self.batch.cu_seqlens.array_windows().map(|[a, b]| u64::from(b - a).pow(2) / 2).sum();
        let (passes, products) = if backward { (2, 5) } else { (1, 2) };
        let elements = self.tokens() * (passes * (shape.packed() + shape.out()) + shape.heads);
        cost(elements, 2 * products * pairs * shape.out() as u64)
    }

    /// A product of a layer: its output is read too where it is added to.
    pub(super) fn product_cost(&self, l: &Linear, adds: bool, output: usize) -> Cost {
        let (t, n, k) = (self.tokens(), l.outputs, l.inputs);
        let again = if adds { output } else { 0 };
        cost(t * k + n * k + t * n + again, 2 * (t * n) as u64 * k as u64)
    }

    /// The weight is read for the lengths of its rows, and the output and its gradient are scaled.
    pub(super) fn magnitude_cost(&self, l: &Linear, backward: bool) -> Cost {
        let (t, n, k) = (self.tokens(), l.outputs, l.inputs);
        if backward {
            cost(3 * t * n, 3 * (t * n) as u64)
        } else {
            cost(n * k + 2 * t * n, (2 * n * k + t * n) as u64)
        }
    }

    /// Two products of each adapter, four on the way back.
    pub(super) fn adapter_cost(&self, l: &Linear, ad: &Adapter, backward: bool) -> Cost {
        let (t, s, n, d) = (self.tokens(), ad.ranks(), l.outputs, l.inputs);
        let parameters = ad.a.value.len + ad.b.value.len;
        let forward = 2 * t as u64 * parameters as u64;
        if backward {
            cost(t * (3 * d + s + n) + 3 * parameters, 2 * forward)
        } else {
            cost(t * (d + s + 2 * n) + parameters, forward)
        }
    }

    /// A product over the rows with a loss, three with gradients.
    pub(super) fn loss_cost(&self, backward: bool, trains_head: bool) -> Cost {
        let (d, v) = (self.dims.hidden, self.dims.vocab);
        let rows = self.batch.labels.iter().filter(|y| **y != IGNORE_INDEX).count();
        let one = 2 * (rows * d) as u64 * v as u64;
        let products = 1 + u64::from(backward) + u64::from(backward && trains_head);
        let passes = if backward { 2 } else { 1 };
        let of_head = if trains_head && backward { 3 } else { 1 };
        cost(passes * self.tokens() * d + of_head * v * d, products * one)
    }

    /// The norm reads the gradients; the update reads them again, and reads and writes parameters and moments.
    pub(super) fn update_cost(&self, parameters: usize) -> Cost {
        // The gradient, for the norm and for the update; parameter and moments, read and written.
        let moments = if self.formats.eight_bit { codes::bytes(parameters) } else { 4 * parameters };
        Cost::bytes((2 * 4 * parameters + 2 * (4 * parameters + 2 * moments)) as u64)
    }
}
