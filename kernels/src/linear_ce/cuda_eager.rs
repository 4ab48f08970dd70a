//! Linear cross-entropy as PyTorch eager runs `lm_head` and HF's `ForCausalLMLoss`: launches of `eager.cu` over the logits of
//! all tokens. The operands and the contract are those of [`super::cuda`], but for the scratch; an index that leaves rows out
//! is read, but no row is left out of a pass.
//!
//! R: rows of the plan. V is rounded up to a multiple of 8. The products, which move what they must, are left out of the tables:
//! the logits before the first row, the gradients of x and W behind the last. W's is added to in f32, as everywhere in the step.
//!
//! # Forward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `linear_ce_eager_float` | float() | TV elem | TV f32 | bf16 |
//! | `linear_ce_eager_log_softmax` | log_softmax | TV f32 | TV f32 | |
//! | `linear_ce_eager_sum` | smoothing's sum(-1) | TV f32 | T f32 | smoothing |
//! | `linear_ce_eager_logsumexp` | logsumexp | TV f32 | T f32 | z_loss |
//! | `linear_ce_eager_nll` | nll_loss | T f32 + T i32 + R i32 | | |
//!
//! # Backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `linear_ce_eager_zeros` | nll_loss's zeros | | TV f32 | |
//! | `linear_ce_eager_nll_backward` | nll_loss's | T i32 + R i32 | R f32 | |
//! | `linear_ce_eager_mean_backward` | with the sum's | TV f32 + T i32 + R i32 | TV f32 | smoothing |
//! | `linear_ce_eager_dlog_softmax` | log_softmax's | TV f32 + TV f32 | TV f32 | |
//! | `linear_ce_eager_z_backward` | with logsumexp's | TV f32 + TV f32 + T f32 + T i32 + R i32 | TV f32 | z_loss |
//! | `linear_ce_eager_to` | float()'s | TV f32 | TV elem | bf16 |
//!
//! * An operand counts once, though `log_softmax` and its gradient look at a row twice, as PyTorch's kernels do. Scalars, and
//!   what nll_loss reads of an option, do not count.
//! * A z-loss is no operator of HF's; PyTorch's own `logsumexp` and its gradient take more passes than the one each here.

use super::{
    Options,
    cuda::{Gradients, Operands, Plan, stride},
};
use crate::gpu::{
    Arg, Elem, GpuError, Grid, Launcher, Needs, Product, Products, Ptr, Unit,
    eager::{Operators, Pass, View},
    product::Matrix,
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "linear_ce_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"floats.cuh\"\n",
        include_str!("../gpu/floats.cuh"),
        "#line 1 \"linear_ce/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &[
        "linear_ce_eager_float",
        "linear_ce_eager_to",
        "linear_ce_eager_log_softmax",
        "linear_ce_eager_logsumexp",
        "linear_ce_eager_sum",
        "linear_ce_eager_nll",
        "linear_ce_eager_zeros",
        "linear_ce_eager_nll_backward",
        "linear_ce_eager_mean_backward",
        "linear_ce_eager_dlog_softmax",
        "linear_ce_eager_z_backward",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT];

/// Bytes of scratch: what PyTorch's allocator holds at most. Logits, which the model's output keeps, log-probabilities, their
/// gradient and that of the logits; the f32 copy of the logits and the bf16 copy of their gradient come and go in the place
/// of the third, but a z-loss keeps the f32 copy.
pub fn scratch_bytes(plan: &Plan, opts: Options) -> usize {
    Call::counted(plan, opts).ops.account().1
}

/// The passes of [`forward`].
pub fn forward_passes(plan: &Plan, opts: Options) -> Vec<Pass> {
    let mut call = Call::counted(plan, opts);
    // SAFETY: nothing is launched.
    unsafe { call.forward().expect("counted only") };
    call.ops.account().0
}

/// The passes of the backward half of [`forward_backward`].
pub fn backward_passes(plan: &Plan, opts: Options) -> Vec<Pass> {
    let mut call = Call::counted(plan, opts);
    let gradients = Gradients { scale: Ptr::NULL, dx_TD: Ptr::NULL, dw_VD: None, dw_is_new: false };
    // SAFETY: nothing is launched.
    unsafe { call.backward(&gradients).expect("counted only") };
    call.ops.account().0
}

/// A call's places in its scratch.
#[derive(Clone, Copy)]
struct Scratch {
    logits: Ptr,
    /// The logits in f32.
    float: Ptr,
    log_p: Ptr,
    dlog_p: Ptr,
    dz: Ptr,
    /// `dz` in the element type.
    dlogits: Ptr,
    sums: Ptr,
    lse: Ptr,
}

impl Scratch {
    fn new(ops: &mut Operators, plan: &Plan, opts: Options) -> Self {
        let (t, bf16) = (plan.shape.tokens, plan.elem == Elem::Bf16);
        let n = t * stride(plan.shape.vocab);
        let logits = ops.take(n * plan.elem.bytes());
        let [log_p, dlog_p, dz] = [(); 3].map(|()| ops.take(4 * n));
        let float = match (bf16, opts.z_loss > 0.0) {
            (false, _) => logits,
            (true, false) => dlog_p,
            (true, true) => ops.take(4 * n),
        };
        let dlogits = if bf16 { dlog_p } else { dz };
        let [sums, lse] = [(); 2].map(|()| ops.take(4 * t));
        Self { logits, float, log_p, dlog_p, dz, dlogits, sums, lse }
    }
}

/// What a pass works with: without a launcher and products, it is only counted.
struct Call<'a> {
    ops: Operators<'a>,
    products: Option<&'a dyn Products>,
    operands: Operands,
    plan: Plan,
    opts: Options,
    scratch: Scratch,
}

/// Loss and gradients, as [`super::cuda::forward_backward`]; the scratch has [`scratch_bytes`].
///
/// # Safety
/// As there.
///
/// # Errors
/// As [`Launcher::launch`] and [`Products::product`].
pub unsafe fn forward_backward(
    on: &dyn Launcher,
    products: &dyn Products,
    operands: &Operands,
    gradients: &Gradients,
    plan: &Plan,
    opts: Options,
) -> Result<(), GpuError> {
    let mut call = Call::new(Some((on, products)), *operands, plan, opts);
    // SAFETY: the caller's promise is the same.
    unsafe {
        call.forward()?;
        call.backward(gradients)
    }
}

/// Loss alone.
///
/// # Safety
/// As [`forward_backward`].
///
/// # Errors
/// As [`forward_backward`].
pub unsafe fn forward(
    on: &dyn Launcher,
    products: &dyn Products,
    operands: &Operands,
    plan: &Plan,
    opts: Options,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { Call::new(Some((on, products)), *operands, plan, opts).forward() }
}

/// Elements of operands that do not have T rows of V.
#[derive(Clone, Copy)]
struct Extra {
    read: usize,
    written: usize,
}

impl<'a> Call<'a> {
    fn new(
        on: Option<(&'a dyn Launcher, &'a dyn Products)>,
        operands: Operands,
        plan: &Plan,
        opts: Options,
    ) -> Self {
        let mut ops = Operators::new(on.map(|on| on.0), UNITS, plan.elem, operands.scratch);
        let scratch = Scratch::new(&mut ops, plan, opts);
        Self { ops, products: on.map(|on| on.1), operands, plan: *plan, opts, scratch }
    }

    fn counted(plan: &Plan, opts: Options) -> Self {
        let [x_TD, w_VD, index, loss, scratch] = [Ptr::NULL; 5];
        Self::new(None, Operands { x_TD, w_VD, index, loss, scratch }, plan, opts)
    }

    /// Elements of logits.
    fn len(&self) -> usize {
        self.plan.shape.tokens * stride(self.plan.shape.vocab)
    }

    /// Labels and places of the index, and how many there are.
    fn labels(&self) -> ([Ptr; 2], usize) {
        let Plan { rows, shape, .. } = self.plan;
        ([self.operands.index, self.operands.index.offset(8 * rows)], shape.tokens + rows)
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn forward(&mut self) -> Result<(), GpuError> {
        let Plan { shape, elem, .. } = self.plan;
        let (t, v) = (shape.tokens, shape.vocab);
        if t == 0 {
            return Ok(());
        }
        let logits = Product { ldc: stride(v), ..Product::linear_forward(t, v, shape.hidden, elem) };
        let (Scratch { logits: z, float, log_p, sums, lse, .. }, n) = (self.scratch, self.len());
        let Options { label_smoothing, z_loss, .. } = self.opts;
        let per_row = Extra { read: 0, written: t };
        // SAFETY: the caller's promise; what lies in the scratch has room in it.
        unsafe {
            logits.run(self.products, self.operands.x_TD, self.operands.w_VD, z)?;
            if elem == Elem::Bf16 {
                let (to, from) = (View::dense(float, Elem::F32), View::dense(z, elem));
                self.ops.map("linear_ce_eager_float", to, &[from], n)?;
            }
            let none = Extra { read: 0, written: 0 };
            self.rows("linear_ce_eager_log_softmax", &[float, log_p], (1, 1, none), true, &[])?;
            if label_smoothing > 0.0 {
                self.rows("linear_ce_eager_sum", &[log_p, sums], (1, 0, per_row), false, &[])?;
            }
            if z_loss > 0.0 {
                self.rows("linear_ce_eager_logsumexp", &[float, lse], (1, 0, per_row), true, &[])?;
            }
            self.nll()
        }
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn nll(&mut self) -> Result<(), GpuError> {
        let (t, v) = (self.plan.shape.tokens, self.plan.shape.vocab);
        let ([labels, places], read) = self.labels();
        let Scratch { log_p, sums, lse, .. } = self.scratch;
        let pointers = [log_p, labels, places, sums, lse, self.operands.loss].map(Arg::Ptr);
        let extents = [Arg::I64(t as i64), Arg::I32(v as i32), Arg::I32(stride(v) as i32)];
        let terms = [self.opts.label_smoothing, self.opts.z_loss].map(Arg::F32);
        let (grid, args) =
            (Grid { blocks: (1, 1), threads: 1024, shared: 0 }, [&pointers[..], &extents, &terms].concat());
        // SAFETY: the caller's promise.
        unsafe { self.ops.launch("linear_ce_eager_nll", grid, &args, 4 * (t + read) as u64, 0) }
    }

    /// # Safety
    /// As [`forward_backward`], after [`forward`](Self::forward).
    unsafe fn backward(&mut self, gradients: &Gradients) -> Result<(), GpuError> {
        if self.plan.shape.tokens == 0 {
            return Ok(());
        }
        let Scratch { float, log_p, dlog_p, dz, dlogits, lse, .. } = self.scratch;
        let ([labels, places], read) = self.labels();
        let Options { label_smoothing, z_loss, .. } = self.opts;
        let (n, t, scale) = (self.len(), self.plan.shape.tokens, gradients.scale);
        let extra = |read| Extra { read, written: 0 };
        // SAFETY: the caller's promise; what lies in the scratch has room in it.
        unsafe {
            self.nll_backward(scale)?;
            if label_smoothing > 0.0 {
                let (operands, moved) = ([labels, places, scale, dlog_p], (1, 1, extra(read)));
                self.rows("linear_ce_eager_mean_backward", &operands, moved, true, &[label_smoothing])?;
            }
            let name = "linear_ce_eager_dlog_softmax";
            self.rows(name, &[dlog_p, log_p, dz], (2, 1, extra(0)), true, &[])?;
            if z_loss > 0.0 {
                let (operands, moved) = ([float, lse, labels, places, scale, dz], (2, 1, extra(t + read)));
                self.rows("linear_ce_eager_z_backward", &operands, moved, true, &[z_loss])?;
            }
            if self.plan.elem == Elem::Bf16 {
                let (to, from) = (View::dense(dlogits, Elem::Bf16), View::dense(dz, Elem::F32));
                self.ops.map("linear_ce_eager_to", to, &[from], n)?;
            }
            self.linear_backward(gradients)
        }
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn nll_backward(&mut self, scale: Ptr) -> Result<(), GpuError> {
        const THREADS: usize = 256;
        // As `ITEMS` in the kernels, of four elements.
        const ELEMENTS: usize = 2 * 4;
        let (n, t, rows) = (self.len(), self.plan.shape.tokens, self.plan.rows);
        let grid = |threads: usize| {
            let blocks = (threads.div_ceil(THREADS) as u32, 1);
            Grid { blocks, threads: THREADS as u32, shared: 0 }
        };
        let zeros = [Arg::Ptr(self.scratch.dlog_p), Arg::I64((n / 4) as i64)];
        let ([labels, places], read) = self.labels();
        let pointers = [labels, places, scale, self.scratch.dlog_p].map(Arg::Ptr);
        let extents = [Arg::I64(t as i64), Arg::I32(stride(self.plan.shape.vocab) as i32)];
        let args = [&pointers[..], &extents, &[Arg::F32(self.opts.label_smoothing)]].concat();
        let (name, moved) = ("linear_ce_eager_nll_backward", [read, rows].map(|n| 4 * n as u64));
        // SAFETY: the caller's promise.
        unsafe {
            let zeroed = 4 * n as u64;
            self.ops.launch("linear_ce_eager_zeros", grid(n.div_ceil(ELEMENTS)), &zeros, 0, zeroed)?;
            self.ops.launch(name, grid(t), &args, moved[0], moved[1])
        }
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn linear_backward(&self, gradients: &Gradients) -> Result<(), GpuError> {
        let Plan { shape, elem, .. } = self.plan;
        let (t, v, d, dlogits) = (shape.tokens, shape.vocab, shape.hidden, self.scratch.dlogits);
        let dz = Matrix { ld: stride(v), transposed: false };
        let dgrad = Product { a: dz, ..Product::linear_dgrad(t, v, d, elem) };
        let wgrad = Product {
            a: Matrix { transposed: true, ..dz },
            accumulate: !gradients.dw_is_new,
            ..Product::linear_wgrad(t, v, d, elem)
        };
        // SAFETY: the caller's promise.
        unsafe {
            dgrad.run(self.products, dlogits, self.operands.w_VD, gradients.dx_TD)?;
            gradients.dw_VD.map_or(Ok(()), |dw| wgrad.run(self.products, dlogits, self.operands.x_TD, dw))
        }
    }

    /// A block for each row; after the operands V, if `vocab`, the distance between rows, and `terms`. `moved`: how many
    /// operands of T rows of V f32 are read and written, and what else.
    ///
    /// # Safety
    /// As [`forward_backward`].
    unsafe fn rows(
        &mut self,
        name: &'static str,
        operands: &[Ptr],
        (read, written, extra): (usize, usize, Extra),
        vocab: bool,
        terms: &[f32],
    ) -> Result<(), GpuError> {
        let (n, v) = (self.len(), self.plan.shape.vocab);
        let mut args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).collect();
        args.extend([v, stride(v)][usize::from(!vocab)..].iter().map(|n| Arg::I32(*n as i32)));
        args.extend(terms.iter().copied().map(Arg::F32));
        let threads = (stride(v) / 8).next_multiple_of(32).min(512) as u32;
        let grid = Grid { blocks: (self.plan.shape.tokens as u32, 1), threads, shared: 0 };
        let bytes = |of: usize, more: usize| 4 * (of * n + more) as u64;
        let (read, written) = (bytes(read, extra.read), bytes(written, extra.written));
        // SAFETY: the caller's promise.
        unsafe { self.ops.launch(name, grid, &args, read, written) }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Shape, *};
    use crate::gpu::eager::documented;

    #[test]
    fn passes_are_those_of_the_tables() {
        let shape = Shape { tokens: 7, hidden: 16, vocab: 203 };
        let options = [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (0.1, 1e-3)];
        for (elem, (label_smoothing, z_loss)) in Elem::ALL.into_iter().flat_map(|e| options.map(|o| (e, o))) {
            let (plan, opts) =
                (Plan::new(shape, elem, 5, None), Options { label_smoothing, z_loss, chunk_rows: None });
            let extent = |name: &str| match name {
                "TV" => 7 * 208,
                "T" => 7,
                "R" => 5,
                _ => panic!("no extent '{name}'"),
            };
            let when = |condition: &str| match condition {
                "bf16" => elem == Elem::Bf16,
                "smoothing" => label_smoothing > 0.0,
                "z_loss" => z_loss > 0.0,
                _ => panic!("no condition '{condition}'"),
            };
            let table = |heading| documented(include_str!("cuda_eager.rs"), heading, elem, extent, when);
            assert_eq!(forward_passes(&plan, opts), table("Forward"), "{elem:?} {opts:?}");
            assert_eq!(backward_passes(&plan, opts), table("Backward"), "{elem:?} {opts:?}");
        }
    }
}
