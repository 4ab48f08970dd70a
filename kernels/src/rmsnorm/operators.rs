//! The operators of RMSNorm over rows that may lie anywhere: those of [`super::cuda_eager`], and of QK-norm.

use crate::gpu::{
    Arg, Elem, GpuError, Ptr,
    eager::{Operators, View},
};

/// Rows that are normalised, and what is kept of them.
pub(crate) struct Norm {
    /// Of input and output.
    pub(crate) elem: Elem,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Input that is copied to `x_f32` first; none where that is the input itself.
    pub(crate) x: Option<View>,
    /// Input in f32, in order; kept.
    pub(crate) x_f32: View,
    /// Normalised, before the weight, in order; kept.
    pub(crate) normed: View,
    /// Inverse roots; kept.
    pub(crate) rstd: View,
    pub(crate) weight: Ptr,
}

impl Norm {
    fn elements(&self) -> usize {
        self.rows * self.columns
    }

    fn weight(&self) -> View {
        View::shared(self.weight, self.elem, self.columns)
    }

    /// Room for a float of each row.
    fn per_row(&self, ops: &mut Operators) -> View {
        View::per_row(ops.take(4 * self.rows), self.columns, 1, 1)
    }

    /// `y = weight · (x_f32 · rsqrt(mean(x_f32²) + eps)).to(elem)`
    ///
    /// # Safety
    /// As [`Operators::map_with`].
    pub(crate) unsafe fn forward(&self, ops: &mut Operators, eps: f32, y: View) -> Result<(), GpuError> {
        let (n, rows, columns) = (self.elements(), self.rows, self.columns);
        let product = ops.temporary(Elem::F32, n);
        let [mean, sum] = [self.per_row(ops), self.per_row(ops)];
        let scaled = if self.elem == Elem::F32 { self.normed } else { product };
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            if let Some(x) = self.x {
                ops.map("rmsnorm_eager_float", self.x_f32, &[x], n)?;
            }
            ops.map("rmsnorm_eager_square", product, &[self.x_f32], n)?;
            ops.row_sum("rmsnorm_eager_mean", mean, product, (rows, columns), 1.0 / columns as f32)?;
            ops.per_row("rmsnorm_eager_add_eps", sum, &[mean], rows, eps)?;
            ops.per_row("rmsnorm_eager_rsqrt", self.rstd, &[sum], rows, 0.0)?;
            ops.map("rmsnorm_eager_mul_rows", scaled, &[self.x_f32, self.rstd], n)?;
            if self.elem == Elem::Bf16 {
                ops.map("rmsnorm_eager_to", self.normed, &[scaled], n)?;
            }
            ops.map("rmsnorm_eager_mul_weight", y, &[self.normed, self.weight()], n)
        }
    }

    /// `dx`, overwritten or added to, and `dweight` (f32), added to, from `dy`.
    ///
    /// # Safety
    /// As [`Operators::map_with`].
    pub(crate) unsafe fn backward(
        &self,
        ops: &mut Operators,
        dy: View,
        dx: View,
        accumulate: bool,
        dweight: Option<Ptr>,
    ) -> Result<(), GpuError> {
        let n = self.elements();
        let product = ops.temporary(self.elem, n);
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            if let Some(dweight) = dweight {
                ops.map("rmsnorm_eager_mul", product, &[dy, self.normed], n)?;
                let sum = ops.temporary(self.elem, self.columns);
                let kernels = ["rmsnorm_eager_sum_rows", "rmsnorm_eager_sum_rows_end"];
                ops.column_sum(kernels, sum, product, (self.rows, self.columns, self.columns))?;
                let dweight = View::dense(dweight, Elem::F32);
                ops.map("rmsnorm_eager_accumulate", dweight, &[dweight, sum], self.columns)?;
            }
            ops.map("rmsnorm_eager_mul_weight", product, &[dy, self.weight()], n)?;
            let wide = match self.elem {
                Elem::F32 => product,
                Elem::Bf16 => {
                    let wide = ops.temporary(Elem::F32, n);
                    ops.map("rmsnorm_eager_float", wide, &[product], n)?;
                    wide
                }
            };
            let [straight, through, free] = self.both_ways(ops, wide)?;
            // dx itself, if nothing stands between.
            let sum = if self.elem == Elem::F32 && !accumulate { dx } else { free };
            ops.map("rmsnorm_eager_add_f32", sum, &[straight, through], n)?;
            let narrow = match (self.elem, accumulate) {
                (Elem::F32, _) => sum,
                (Elem::Bf16, true) => product,
                (Elem::Bf16, false) => dx,
            };
            if self.elem == Elem::Bf16 {
                ops.map("rmsnorm_eager_to", narrow, &[sum], n)?;
            }
            if accumulate { ops.map("rmsnorm_eager_add", dx, &[dx, narrow], n) } else { Ok(()) }
        }
    }

    /// The gradient of `x_f32` from `d`, that of `x_f32 · rsqrt(…)`: straight, through the root, and a temporary that is free.
    /// `d` is overwritten.
    ///
    /// # Safety
    /// As [`Operators::map_with`].
    unsafe fn both_ways(&self, ops: &mut Operators, d: View) -> Result<[View; 3], GpuError> {
        let (n, rows, columns) = (self.elements(), self.rows, self.columns);
        let [straight, product, free] = [(); 3].map(|()| ops.temporary(Elem::F32, n));
        let [dot, scaled, cube, dmean] = [(); 4].map(|()| self.per_row(ops));
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            ops.map("rmsnorm_eager_mul_rows", straight, &[d, self.rstd], n)?;
            ops.map("rmsnorm_eager_mul_f32", product, &[d, self.x_f32], n)?;
            ops.row_sum("rmsnorm_eager_mean", dot, product, (rows, columns), 1.0)?;
            ops.per_row("rmsnorm_eager_scale_rows", scaled, &[dot], rows, -0.5)?;
            ops.per_row("rmsnorm_eager_cube", cube, &[self.rstd], rows, 0.0)?;
            ops.per_row("rmsnorm_eager_mul_of_rows", dmean, &[scaled, cube], rows, 0.0)?;
            ops.map_with("rmsnorm_eager_expand", product, &[dmean], n, &[Arg::F32(columns as f32)])?;
            ops.map("rmsnorm_eager_copy", d, &[self.x_f32], n)?;
            ops.map_with("rmsnorm_eager_scale", free, &[d], n, &[Arg::F32(2.0)])?;
            ops.map("rmsnorm_eager_mul_f32", d, &[product, free], n)?;
        }
        Ok([straight, d, free])
    }
}
