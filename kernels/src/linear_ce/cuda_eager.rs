//! Launches of `eager.cu`: the passes that PyTorch makes for `lm_head` and HF's `ForCausalLMLoss`, over the logits of all
//! tokens. The operands and the contract are those of [`cuda`](super::cuda); an index that leaves rows out is read, but no
//! row is left out of a pass.
//!
//! `e` is the element type, R the rows of the plan, V is rounded up to a multiple of 8. The forward pass:
//!
//! | operator | launch | when | reads | writes |
//! |---|---|---|---|---|
//! | `lm_head(x)` | product | | | |
//! | `.float()` | `cast_to_f32` | bf16 | T·V e | T·V f32 |
//! | `log_softmax` | `linear_ce_eager_log_softmax` | | T·V f32 | T·V f32 |
//! | `log_p.sum(-1)` | `linear_ce_eager_sum` | ε > 0 | T·V f32 | T f32 |
//! | `logsumexp` | `linear_ce_eager_logsumexp` | c > 0 | T·V f32 | T f32 |
//! | `nll_loss`, summed | `linear_ce_eager_nll` | | T f32 + T i32 + R i32 | |
//! | and smoothing | | ε > 0 | T f32 | |
//! | and `lse²` | | c > 0 | T f32 | |
//!
//! And the backward pass, as autograd makes it:
//!
//! | operator | launch | when | reads | writes |
//! |---|---|---|---|---|
//! | zeros for `nll_loss` | `linear_ce_eager_zeros` | | | T·V f32 |
//! | of `nll_loss` | `linear_ce_eager_nll_backward` | | T i32 + R i32 | R f32 |
//! | of the sum, added | `linear_ce_eager_mean_backward` | ε > 0 | T·V f32 + T i32 + R i32 | T·V f32 |
//! | of `log_softmax` | `linear_ce_eager_log_softmax_backward` | | 2·T·V f32 | T·V f32 |
//! | of `logsumexp`, added | `linear_ce_eager_z_backward` | c > 0 | 2·T·V f32 + T f32 + T i32 + R i32 | T·V f32 |
//! | of `.float()` | `cast_to_elem` | bf16 | T·V f32 | T·V e |
//! | of x | product | | | |
//! | of W | product | dW | | |
//!
//! * An operand counts once, though the rows of `log_softmax` and of its gradient are looked at twice, as PyTorch's are.
//! * A z-loss is no operator of HF's; PyTorch's own `logsumexp` and its gradient take more passes than the one each here.
//! * The gradient of W is added to in f32 by the product, as everywhere in the step.

use super::{
    Options,
    cuda::{Gradients, Operands, Plan, stride},
};
use crate::gpu::{
    Arg, Elem, GpuError, Grid, Launcher, Needs, Product, Products, Ptr, Unit,
    cast::{self, each_pack},
    product::Matrix,
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "linear_ce_eager",
    source: concat!(
        "#line 1 \"floats.cuh\"\n",
        include_str!("../gpu/floats.cuh"),
        "#line 1 \"linear_ce/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &[
        "linear_ce_eager_log_softmax",
        "linear_ce_eager_logsumexp",
        "linear_ce_eager_sum",
        "linear_ce_eager_nll",
        "linear_ce_eager_zeros",
        "linear_ce_eager_nll_backward",
        "linear_ce_eager_mean_backward",
        "linear_ce_eager_log_softmax_backward",
        "linear_ce_eager_z_backward",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Bytes of scratch: what PyTorch's allocator holds at most. Logits, which the model's output keeps, log-probabilities, their
/// gradient and that of the logits; the f32 copy of the logits and the bf16 copy of their gradient come and go in the place
/// of the third, but a z-loss keeps the f32 copy.
pub fn scratch_bytes(plan: &Plan, opts: Options) -> usize {
    Scratch::new(Ptr(0), plan, opts).end.0 as usize
}

/// Bytes that the two passes move outside of products: the sums of the tables. Scalars are not counted.
pub fn bytes(plan: &Plan, opts: Options) -> [u64; 2] {
    let (t, r) = (plan.shape.tokens as u64, plan.rows as u64);
    let (v, labels) = (t * stride(plan.shape.vocab) as u64, 4 * (t + r));
    let when = |condition: bool, bytes: u64| if condition { bytes } else { 0 };
    let (smooth, z) = (opts.label_smoothing > 0.0, opts.z_loss > 0.0);
    let cast = when(plan.elem == Elem::Bf16, 6 * v);
    let nll = 4 * t + labels + when(smooth, 4 * v + 8 * t) + when(z, 4 * v + 8 * t);
    let backward = 4 * v + labels + 4 * r + when(smooth, 8 * v + labels) + when(z, 12 * v + 4 * t + labels);
    [cast + 8 * v + nll, backward + 12 * v + cast]
}

/// A call's places in its scratch.
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
    end: Ptr,
}

impl Scratch {
    fn new(scratch: Ptr, plan: &Plan, opts: Options) -> Self {
        let mut end = scratch;
        let mut take = |elements: usize, bytes: usize| {
            let at = end;
            end = at.offset((elements * bytes).next_multiple_of(256));
            at
        };
        let (t, bf16) = (plan.shape.tokens, plan.elem == Elem::Bf16);
        let n = t * stride(plan.shape.vocab);
        let logits = take(n, plan.elem.bytes());
        let [log_p, dlog_p, dz] = [n, n, n].map(|n| take(n, 4));
        let float = match (bf16, opts.z_loss > 0.0) {
            (false, _) => logits,
            (true, false) => dlog_p,
            (true, true) => take(n, 4),
        };
        let dlogits = if bf16 { dlog_p } else { dz };
        let [sums, lse] = [t, t].map(|n| take(n, 4));
        Self { logits, float, log_p, dlog_p, dz, dlogits, sums, lse, end }
    }
}

/// What a pass works with.
struct Call<'a> {
    on: &'a dyn Launcher,
    products: &'a dyn Products,
    operands: &'a Operands,
    plan: &'a Plan,
    opts: Options,
    scratch: Scratch,
}

/// Loss and gradients, as [`cuda::forward_backward`](super::cuda::forward_backward) but for the scratch, which has
/// [`scratch_bytes`].
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
    let call = Call::new(on, products, operands, plan, opts);
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
    unsafe { Call::new(on, products, operands, plan, opts).forward() }
}

impl<'a> Call<'a> {
    fn new(
        on: &'a dyn Launcher,
        products: &'a dyn Products,
        operands: &'a Operands,
        plan: &'a Plan,
        opts: Options,
    ) -> Self {
        Self { on, products, operands, plan, opts, scratch: Scratch::new(operands.scratch, plan, opts) }
    }

    /// Elements of logits.
    fn len(&self) -> usize {
        self.plan.shape.tokens * stride(self.plan.shape.vocab)
    }

    /// Labels and places of the index.
    fn labels(&self) -> [Ptr; 2] {
        [self.operands.index, self.operands.index.offset(8 * self.plan.rows)]
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn forward(&self) -> Result<(), GpuError> {
        let (plan, s) = (self.plan, &self.scratch);
        let (t, v) = (plan.shape.tokens, plan.shape.vocab);
        if t == 0 {
            return Ok(());
        }
        let logits =
            Product { ldc: stride(v), ..Product::linear_forward(t, v, plan.shape.hidden, plan.elem) };
        let [labels, places] = self.labels();
        // SAFETY: the caller's promise; what lies in the scratch has room in it.
        unsafe {
            self.products.product(&logits, self.operands.x_TD, self.operands.w_VD, Ptr::NULL, s.logits)?;
            if plan.elem == Elem::Bf16 {
                cast::to_f32(self.on, s.logits, s.float, self.len())?;
            }
            self.rows("linear_ce_eager_log_softmax", &[s.float, s.log_p], true, &[])?;
            if self.opts.label_smoothing > 0.0 {
                self.rows("linear_ce_eager_sum", &[s.log_p, s.sums], false, &[])?;
            }
            if self.opts.z_loss > 0.0 {
                self.rows("linear_ce_eager_logsumexp", &[s.float, s.lse], true, &[])?;
            }
            let pointers = [s.log_p, labels, places, s.sums, s.lse, self.operands.loss].map(Arg::Ptr);
            let extents = [Arg::I64(t as i64), Arg::I32(v as i32), Arg::I32(stride(v) as i32)];
            let terms = [self.opts.label_smoothing, self.opts.z_loss].map(Arg::F32);
            let grid = Grid { blocks: (1, 1), threads: 1024, shared: 0 };
            let args = [&pointers[..], &extents, &terms].concat();
            self.on.launch(UNIT.entry("linear_ce_eager_nll", plan.elem), grid, &args)
        }
    }

    /// # Safety
    /// As [`forward_backward`], after [`forward`](Self::forward).
    unsafe fn backward(&self, gradients: &Gradients) -> Result<(), GpuError> {
        let (plan, s) = (self.plan, &self.scratch);
        if plan.shape.tokens == 0 {
            return Ok(());
        }
        let [labels, places] = self.labels();
        let Options { label_smoothing, z_loss } = self.opts;
        // SAFETY: the caller's promise; what lies in the scratch has room in it.
        unsafe {
            self.nll_backward(gradients)?;
            if label_smoothing > 0.0 {
                let operands = [labels, places, gradients.scale, s.dlog_p];
                self.rows("linear_ce_eager_mean_backward", &operands, true, &[label_smoothing])?;
            }
            self.rows("linear_ce_eager_log_softmax_backward", &[s.dlog_p, s.log_p, s.dz], true, &[])?;
            if z_loss > 0.0 {
                let operands = [s.float, s.lse, labels, places, gradients.scale, s.dz];
                self.rows("linear_ce_eager_z_backward", &operands, true, &[z_loss])?;
            }
            if plan.elem == Elem::Bf16 {
                cast::to_bf16(self.on, s.dz, s.dlogits, self.len())?;
            }
            self.linear_backward(gradients)
        }
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn nll_backward(&self, gradients: &Gradients) -> Result<(), GpuError> {
        let (plan, s) = (self.plan, &self.scratch);
        let entry = |name| UNIT.entry(name, plan.elem);
        let packs = self.len() / 8;
        let zeros = [Arg::Ptr(s.dlog_p), Arg::I64(packs as i64)];
        let t = plan.shape.tokens;
        let [labels, places] = self.labels();
        let pointers = [labels, places, gradients.scale, s.dlog_p].map(Arg::Ptr);
        let extents = [Arg::I64(t as i64), Arg::I32(stride(plan.shape.vocab) as i32)];
        let args = [&pointers[..], &extents, &[Arg::F32(self.opts.label_smoothing)]].concat();
        let grid = Grid { blocks: (t.div_ceil(256) as u32, 1), threads: 256, shared: 0 };
        // SAFETY: the caller's promise.
        unsafe {
            self.on.launch(entry("linear_ce_eager_zeros"), each_pack(packs), &zeros)?;
            self.on.launch(entry("linear_ce_eager_nll_backward"), grid, &args)
        }
    }

    /// # Safety
    /// As [`forward_backward`].
    unsafe fn linear_backward(&self, gradients: &Gradients) -> Result<(), GpuError> {
        let (plan, s) = (self.plan, &self.scratch);
        let (t, v, d) = (plan.shape.tokens, plan.shape.vocab, plan.shape.hidden);
        let dz = Matrix { ld: stride(v), transposed: false };
        let dgrad = Product { a: dz, ..Product::linear_dgrad(t, v, d, plan.elem) };
        let wgrad =
            Product { a: Matrix { transposed: true, ..dz }, ..Product::linear_wgrad(t, v, d, plan.elem) };
        // SAFETY: the caller's promise.
        unsafe {
            self.products.product(&dgrad, s.dlogits, self.operands.w_VD, Ptr::NULL, gradients.dx_TD)?;
            let Some(dw) = gradients.dw_VD else { return Ok(()) };
            self.products.product(&wgrad, s.dlogits, self.operands.x_TD, Ptr::NULL, dw)
        }
    }

    /// A block for each row; after the operands V, if `vocab`, the distance between rows, and `terms`.
    ///
    /// # Safety
    /// As [`forward_backward`].
    unsafe fn rows(
        &self,
        name: &'static str,
        operands: &[Ptr],
        vocab: bool,
        terms: &[f32],
    ) -> Result<(), GpuError> {
        let v = self.plan.shape.vocab;
        let mut args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).collect();
        args.extend([v, stride(v)][usize::from(!vocab)..].iter().map(|n| Arg::I32(*n as i32)));
        args.extend(terms.iter().copied().map(Arg::F32));
        let threads = (stride(v) / 8).next_multiple_of(32).min(512) as u32;
        let grid = Grid { blocks: (self.plan.shape.tokens as u32, 1), threads, shared: 0 };
        // SAFETY: the caller's promise.
        unsafe { self.on.launch(UNIT.entry(name, self.plan.elem), grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Shape, *};
    use crate::operators::{Recorder, sum, tables};

    #[test]
    fn the_tables_are_what_is_launched_and_its_bytes() {
        let shape = Shape { tokens: 7, hidden: 16, vocab: 203 };
        let options = [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (0.1, 1e-3)];
        for (elem, (label_smoothing, z_loss)) in Elem::ALL.into_iter().flat_map(|e| options.map(|o| (e, o))) {
            let (plan, opts) = (Plan::new(shape, elem, 5), Options { label_smoothing, z_loss });
            let extent = |name: &str| match name {
                "T" => 7,
                "V" => 208,
                "R" => 5,
                _ => panic!("extent {name}"),
            };
            let tables = tables(include_str!("cuda_eager.rs"), elem, extent);
            let runs = |when: &str| match when {
                "bf16" => elem == Elem::Bf16,
                "ε > 0" => label_smoothing > 0.0,
                "c > 0" => z_loss > 0.0,
                "dW" => true,
                _ => panic!("condition {when}"),
            };
            let [forward, backward] = [0, 1].map(|i| sum(&tables[i], runs));
            assert_eq!([forward.1, backward.1], bytes(&plan, opts), "{elem:?} {opts:?}");
            let (machine, nowhere) = (Recorder::default(), Ptr(0));
            let operands =
                Operands { x_TD: nowhere, w_VD: nowhere, index: nowhere, loss: nowhere, scratch: nowhere };
            let gradients = Gradients { scale: nowhere, dx_TD: nowhere, dw_VD: Some(nowhere) };
            // SAFETY: nothing runs.
            unsafe { forward_backward(&machine, &machine, &operands, &gradients, &plan, opts).unwrap() };
            assert_eq!(machine.take(), [forward.0, backward.0].concat(), "{elem:?} {opts:?}");
        }
    }
}
