//! The operators of [`super::cuda_eager`], of queries, keys and values.

use super::{
    Shape,
    cuda::{NormBackward, NormForward, Rotation},
};
use crate::{
    gpu::{
        Arg, Elem, GpuError, Ptr,
        eager::{Operators, View},
    },
    rmsnorm::operators::Norm,
};

/// Packed rows, or their gradients, and what else either pass reads.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    pub(super) at: Ptr,
    pub(super) saved: Ptr,
    pub(super) elem: Elem,
    pub(super) rotation: Rotation,
    pub(super) shape: Shape,
}

impl Packed {
    /// Queries, keys and values.
    fn sides(self) -> [Side; 3] {
        let (h, g) = (self.shape.heads, self.shape.kv_heads);
        [(0, h), (h, g), (h + g, g)].map(|(first, heads)| Side { of: self, first, heads })
    }

    /// # Safety
    /// As [`super::cuda_eager::forward`].
    pub(super) unsafe fn forward(
        self,
        ops: &mut Operators,
        bias_Q: Option<Ptr>,
        norm: Option<NormForward>,
    ) -> Result<(), GpuError> {
        if let Some(bias) = bias_Q {
            for side in self.sides() {
                let (x, bias) = (side.packed(), View::shared(bias, self.elem, side.columns()));
                let bias = bias.from(side.column());
                // SAFETY: the caller's promise is the same.
                unsafe { ops.map("qk_rope_eager_add_bias", x, &[x, bias], side.elements())? };
            }
        }
        let [q, k, _] = self.sides();
        for (side, is_q) in [(q, true), (k, false)] {
            ops.free();
            let mut x = side.packed();
            if let Some(n) = norm {
                let weight = if is_q { n.q_weight_K } else { n.k_weight_K };
                let normed = ops.temporary(self.elem, side.elements());
                // SAFETY: the caller's promise is the same.
                unsafe { side.norm(Some(x), weight, n.rstd).forward(ops, n.eps, normed)? };
                x = normed;
            }
            // SAFETY: as above.
            unsafe { side.rotate(ops, x)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`super::cuda_eager::backward`].
    pub(super) unsafe fn backward(
        self,
        ops: &mut Operators,
        dbias_Q: Option<Ptr>,
        norm: Option<NormBackward>,
    ) -> Result<(), GpuError> {
        let [q, k, _] = self.sides();
        for (side, is_q) in [(q, true), (k, false)] {
            ops.free();
            let Some(n) = norm else {
                // SAFETY: the caller's promise is the same.
                unsafe { side.rotate_backward(ops, side.packed())? };
                continue;
            };
            let (weight, dweight) =
                if is_q { (n.q_weight_K, n.dq_weight_K) } else { (n.k_weight_K, n.dk_weight_K) };
            let d = ops.temporary(self.elem, side.elements());
            // SAFETY: as above.
            unsafe {
                side.rotate_backward(ops, d)?;
                side.norm(None, weight, n.rstd).backward(ops, d, side.packed(), false, dweight)?;
            }
        }
        let Some(dbias) = dbias_Q else { return Ok(()) };
        for side in self.sides() {
            ops.free();
            // SAFETY: as above.
            unsafe { side.bias_backward(ops, dbias)? };
        }
        Ok(())
    }
}

/// The query, key or value heads of packed rows. A temporary has them one behind another, token by token.
#[derive(Clone, Copy)]
struct Side {
    of: Packed,
    first: usize,
    heads: usize,
}

impl Side {
    fn columns(self) -> usize {
        self.heads * self.of.shape.head_dim
    }

    /// The first of its columns in a packed row.
    fn column(self) -> usize {
        self.first * self.of.shape.head_dim
    }

    fn elements(self) -> usize {
        self.of.shape.tokens * self.columns()
    }

    /// Where it lies in the packed rows.
    fn packed(self) -> View {
        View::rows(self.of.at, self.of.elem, self.columns(), self.of.shape.packed()).from(self.column())
    }

    /// The first or second halves of its heads.
    fn half(self, of: View, second: bool) -> View {
        let k = self.of.shape.head_dim;
        of.parts(k / 2, (self.heads, k), self.columns()).from(if second { k / 2 } else { 0 })
    }

    /// Its part of QK-norm. What is kept, in f32 and normalised, is that of queries first.
    fn norm(self, x: Option<View>, weight: Ptr, rstd: Ptr) -> Norm {
        let (shape, elem) = (self.of.shape, self.of.elem);
        let before = shape.tokens * self.column();
        let normed = self.of.saved.offset(4 * shape.tokens * shape.rotated());
        Norm {
            elem,
            rows: shape.tokens * self.heads,
            columns: shape.head_dim,
            x,
            x_f32: View::dense(self.of.saved, Elem::F32).from(before),
            normed: View::dense(normed, elem).from(before),
            rstd: View::per_row(rstd, shape.head_dim, self.heads, shape.rotated_heads()).from(self.first),
            weight,
        }
    }

    /// `dst = x · table[positions]`
    ///
    /// # Safety
    /// As [`Operators::map_with`].
    unsafe fn mul_angle(self, ops: &mut Operators, dst: View, x: View, table: Ptr) -> Result<(), GpuError> {
        let (shape, width) = (self.of.shape, 16 / self.of.elem.bytes());
        let [token, head, half] =
            [self.columns() / width, shape.head_dim / width, shape.head_dim / 2].map(|n| Arg::U32(n as u32));
        let more = [Arg::Ptr(table), Arg::Ptr(self.of.rotation.positions), token, head, half];
        // SAFETY: the caller's promise is the same.
        unsafe { ops.map_with("qk_rope_eager_mul_angle", dst, &[x], self.elements(), &more)? };
        let angles = 4 * shape.tokens * (shape.head_dim / 2 + 1);
        ops.recount_reads(|read| read + angles as u64);
        Ok(())
    }

    /// The rotation of `x` into the packed rows.
    ///
    /// # Safety
    /// As [`Operators::map_with`].
    unsafe fn rotate(self, ops: &mut Operators, x: View) -> Result<(), GpuError> {
        let (n, rotation) = (self.elements(), self.of.rotation);
        let [by_cos, turned, by_sin] = [(); 3].map(|()| ops.temporary(self.of.elem, n));
        let negated = ops.temporary(self.of.elem, n / 2);
        let half = Arg::U32((self.of.shape.head_dim / 2 * self.of.elem.bytes() / 16) as u32);
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            self.mul_angle(ops, by_cos, x, rotation.cos)?;
            ops.map("qk_rope_eager_neg", negated, &[self.half(x, true)], n / 2)?;
            ops.map_with("qk_rope_eager_cat", turned, &[negated, self.half(x, false)], n, &[half])?;
            ops.recount_reads(|read| read / 2); // either has half of the elements
            self.mul_angle(ops, by_sin, turned, rotation.sin)?;
            ops.map("qk_rope_eager_add", self.packed(), &[by_cos, by_sin], n)
        }
    }

    /// The gradient of what was rotated, from that in the packed rows.
    ///
    /// # Safety
    /// As [`Operators::map_with`].
    unsafe fn rotate_backward(self, ops: &mut Operators, dx: View) -> Result<(), GpuError> {
        let (n, d, rotation) = (self.elements(), self.packed(), self.of.rotation);
        let [turned, second, first, sum] = [(); 4].map(|()| ops.temporary(self.of.elem, n));
        let negated = ops.temporary(self.of.elem, n / 2);
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at, and dx is not read behind it.
        unsafe {
            self.mul_angle(ops, turned, d, rotation.sin)?;
            ops.map("qk_rope_eager_neg", negated, &[self.half(turned, false)], n / 2)?;
            ops.map("qk_rope_eager_zeros", second, &[], n)?;
            ops.map("qk_rope_eager_copy", self.half(second, true), &[negated], n / 2)?;
            ops.map("qk_rope_eager_zeros", first, &[], n)?;
            ops.map("qk_rope_eager_copy", self.half(first, false), &[self.half(turned, true)], n / 2)?;
            ops.map("qk_rope_eager_add", sum, &[second, first], n)?;
            let by_cos = turned;
            self.mul_angle(ops, by_cos, d, rotation.cos)?;
            ops.map("qk_rope_eager_add", dx, &[by_cos, sum], n)
        }
    }

    /// # Safety
    /// As [`Operators::map_with`].
    unsafe fn bias_backward(self, ops: &mut Operators, dbias_Q: Ptr) -> Result<(), GpuError> {
        let (shape, columns) = (self.of.shape, self.columns());
        let sum = ops.temporary(self.of.elem, columns);
        let dbias = View::dense(dbias_Q, Elem::F32).from(self.column());
        let kernels = ["qk_rope_eager_sum_rows", "qk_rope_eager_sum_rows_end"];
        // SAFETY: the caller's promise is the same.
        unsafe {
            ops.column_sum(kernels, sum, self.packed(), (shape.tokens, columns, shape.packed()))?;
            ops.map("qk_rope_eager_accumulate", dbias, &[dbias, sum], columns)
        }
    }
}
