//! RMSNorm as PyTorch eager runs Hugging Face's module: launches of `eager.cu`, one kernel for each operator of
//! `weight * (x.float() * rsqrt(x.float().pow(2).mean(-1) + eps)).to(x.dtype)`, and for each of its autograd backward pass. The
//! contract is that of [`super::cuda`] but for [`Memory`].
//!
//! Autograd keeps the f32 copy of `x` and the normalised `x` before the weight: [`saved_bytes`]. Where the element type is f32,
//! `to` copies nothing, and rows marked bf16 fall away. G: partial sums of the columns.
//!
//! # Forward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `rmsnorm_eager_add` | residual + delta | TD elem + TD elem | TD elem | residual |
//! | `rmsnorm_eager_float` | to(float32) | TD elem | TD f32 | bf16 |
//! | `rmsnorm_eager_square` | pow(2) | TD f32 | TD f32 | |
//! | `rmsnorm_eager_mean` | mean(-1) | TD f32 | T f32 | |
//! | `rmsnorm_eager_add_eps` | + eps | T f32 | T f32 | |
//! | `rmsnorm_eager_rsqrt` | rsqrt | T f32 | T f32 | |
//! | `rmsnorm_eager_mul_rows` | x · rsqrt | TD f32 + T f32 | TD f32 | |
//! | `rmsnorm_eager_to` | to(bf16) | TD f32 | TD elem | bf16 |
//! | `rmsnorm_eager_mul_weight` | weight · | TD elem + D elem | TD elem | |
//!
//! # Backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `rmsnorm_eager_mul` | dy · normed | TD elem + TD elem | TD elem | weight |
//! | `rmsnorm_eager_sum_rows` | sum over rows | TD elem | GD f32 | weight |
//! | `rmsnorm_eager_sum_rows_end` | the same | GD f32 | D elem | weight |
//! | `rmsnorm_eager_accumulate` | grad += | D f32 + D elem | D f32 | weight |
//! | `rmsnorm_eager_mul_weight` | dy · weight | TD elem + D elem | TD elem | |
//! | `rmsnorm_eager_float` | to(bf16)'s | TD elem | TD f32 | bf16 |
//! | `rmsnorm_eager_mul_rows` | d · rsqrt | TD f32 + T f32 | TD f32 | |
//! | `rmsnorm_eager_mul_f32` | d · x | TD f32 + TD f32 | TD f32 | |
//! | `rmsnorm_eager_mean` | its sum(-1) | TD f32 | T f32 | |
//! | `rmsnorm_eager_scale_rows` | rsqrt's: -0.5 · d | T f32 | T f32 | |
//! | `rmsnorm_eager_cube` | rsqrt.pow(3) | T f32 | T f32 | |
//! | `rmsnorm_eager_mul_of_rows` | · | T f32 + T f32 | T f32 | |
//! | `rmsnorm_eager_expand` | mean's: expand / D | T f32 | TD f32 | |
//! | `rmsnorm_eager_copy` | pow's: x.pow(1) | TD f32 | TD f32 | |
//! | `rmsnorm_eager_scale` | 2 · | TD f32 | TD f32 | |
//! | `rmsnorm_eager_mul_f32` | d · | TD f32 + TD f32 | TD f32 | |
//! | `rmsnorm_eager_add_f32` | both gradients of x | TD f32 + TD f32 | TD f32 | |
//! | `rmsnorm_eager_to` | to(float32)'s | TD f32 | TD elem | bf16 |
//! | `rmsnorm_eager_add` | with the residual's | TD elem + TD elem | TD elem | accumulate |

use super::{Shape, operators::Norm};
use crate::gpu::{
    Elem, GpuError, Launcher, Needs, Ptr, Unit,
    eager::{Memory, Operators, Pass, View},
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "rmsnorm_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"rmsnorm/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &[
        "rmsnorm_eager_add",
        "rmsnorm_eager_float",
        "rmsnorm_eager_square",
        "rmsnorm_eager_mean",
        "rmsnorm_eager_add_eps",
        "rmsnorm_eager_rsqrt",
        "rmsnorm_eager_mul_rows",
        "rmsnorm_eager_to",
        "rmsnorm_eager_mul_weight",
        "rmsnorm_eager_mul",
        "rmsnorm_eager_sum_rows",
        "rmsnorm_eager_sum_rows_end",
        "rmsnorm_eager_accumulate",
        "rmsnorm_eager_mul_f32",
        "rmsnorm_eager_scale_rows",
        "rmsnorm_eager_cube",
        "rmsnorm_eager_mul_of_rows",
        "rmsnorm_eager_expand",
        "rmsnorm_eager_copy",
        "rmsnorm_eager_scale",
        "rmsnorm_eager_add_f32",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT];

/// Bytes of [`Memory::saved`]. PyTorch frees the normalised `x`, `T·D` elements of it, where the weight is frozen; here it stays.
pub fn saved_bytes(elem: Elem, shape: Shape) -> usize {
    let f32_copy = if elem == Elem::F32 { 0 } else { 4 };
    shape.elements() * (f32_copy + elem.bytes())
}

/// Bytes of [`Memory::scratch`] for either pass.
pub fn scratch_bytes(elem: Elem, shape: Shape) -> usize {
    forward_account(elem, true, shape).1.max(backward_account(elem, true, true, shape).1)
}

/// The passes of [`forward`], or of [`add_forward`] where the `residual` is added.
pub fn forward_passes(elem: Elem, residual: bool, shape: Shape) -> Vec<Pass> {
    forward_account(elem, residual, shape).0
}

/// The passes of [`backward`], with the gradient of the `weight` or without.
pub fn backward_passes(elem: Elem, accumulate: bool, weight: bool, shape: Shape) -> Vec<Pass> {
    backward_account(elem, accumulate, weight, shape).0
}

/// Nowhere: of lists that are only counted.
const NOWHERE: Operands =
    Operands { x_TD: Ptr::NULL, weight_D: Ptr::NULL, rstd_T: Ptr::NULL, saved: Ptr::NULL };

fn forward_account(elem: Elem, residual: bool, shape: Shape) -> (Vec<Pass>, usize) {
    let (mut ops, x) = (Operators::new(None, UNITS, elem, Ptr::NULL), View::dense(Ptr::NULL, elem));
    // SAFETY: nothing is launched.
    unsafe {
        if residual {
            add(&mut ops, x, x, x, shape).expect("counted only");
        }
        NOWHERE.norm(elem, shape).forward(&mut ops, 0.0, x).expect("counted only");
    }
    ops.account()
}

fn backward_account(elem: Elem, accumulate: bool, weight: bool, shape: Shape) -> (Vec<Pass>, usize) {
    let (mut ops, x) = (Operators::new(None, UNITS, elem, Ptr::NULL), View::dense(Ptr::NULL, elem));
    let (norm, dweight) = (NOWHERE.norm(elem, shape), weight.then_some(Ptr::NULL));
    // SAFETY: nothing is launched.
    unsafe { norm.backward(&mut ops, x, x, accumulate, dweight).expect("counted only") };
    ops.account()
}

/// What both passes read.
struct Operands {
    x_TD: Ptr,
    weight_D: Ptr,
    rstd_T: Ptr,
    saved: Ptr,
}

impl Operands {
    /// Saved is `x` in f32, which is `x_TD` itself where the element type is, and then the normalised `x`.
    fn norm(&self, elem: Elem, shape: Shape) -> Norm {
        let x = View::dense(self.x_TD, elem);
        let (x, x_f32, normed) = match elem {
            Elem::F32 => (None, x, self.saved),
            Elem::Bf16 => {
                (Some(x), View::dense(self.saved, Elem::F32), self.saved.offset(4 * shape.elements()))
            }
        };
        Norm {
            elem,
            rows: shape.tokens,
            columns: shape.hidden,
            x,
            x_f32,
            normed: View::dense(normed, elem),
            rstd: View::per_row(self.rstd_T, shape.hidden, 1, 1),
            weight: self.weight_D,
        }
    }
}

fn check(shape: Shape) {
    let d = shape.hidden;
    assert!(d > 0 && d.is_multiple_of(8), "rows of {d} are no multiple of 8");
}

/// As [`super::cuda::forward`].
///
/// # Safety
/// As [`super::cuda::forward`]; `memory` has [`saved_bytes`] and [`scratch_bytes`].
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// When rows are no multiple of 8.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    x_TD: Ptr,
    weight_D: Ptr,
    eps: f32,
    y_TD: Ptr,
    rstd_T: Ptr,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    let norm = Operands { x_TD, weight_D, rstd_T, saved: memory.saved }.norm(elem, shape);
    // SAFETY: the caller's promise is the same.
    unsafe { norm.forward(&mut ops, eps, View::dense(y_TD, elem)) }
}

/// As [`super::cuda::add_forward`].
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn add_forward(
    on: &dyn Launcher,
    elem: Elem,
    residual_TD: Ptr,
    delta_TD: Ptr,
    sum_TD: Ptr,
    weight_D: Ptr,
    eps: f32,
    y_TD: Ptr,
    rstd_T: Ptr,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    let [residual, delta, sum] = [residual_TD, delta_TD, sum_TD].map(|at| View::dense(at, elem));
    // SAFETY: the caller's promise is the same; the sum may take the place of what it is of.
    unsafe { add(&mut ops, sum, residual, delta, shape)? };
    // SAFETY: the caller's promise is the same.
    unsafe { forward(on, elem, sum_TD, weight_D, eps, y_TD, rstd_T, memory, shape) }
}

/// # Safety
/// As [`forward`].
unsafe fn add(ops: &mut Operators, sum: View, a: View, b: View, shape: Shape) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { ops.map("rmsnorm_eager_add", sum, &[a, b], shape.elements()) }
}

/// As [`super::cuda::backward`], after [`forward`] with the same `saved`; the sum for the weight's gradient is rounded to the
/// element type before it is added, as PyTorch's is.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn backward(
    on: &dyn Launcher,
    elem: Elem,
    dy_TD: Ptr,
    x_TD: Ptr,
    rstd_T: Ptr,
    weight_D: Ptr,
    dx_TD: Ptr,
    accumulate: bool,
    dweight_D: Option<Ptr>,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    let norm = Operands { x_TD, weight_D, rstd_T, saved: memory.saved }.norm(elem, shape);
    let [dy, dx] = [dy_TD, dx_TD].map(|at| View::dense(at, elem));
    // SAFETY: the caller's promise is the same.
    unsafe { norm.backward(&mut ops, dy, dx, accumulate, dweight_D) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::eager::{documented, partial_rows};

    #[test]
    fn passes_are_those_of_the_tables() {
        let shape = Shape { tokens: 700, hidden: 896 };
        for (elem, [added, weight]) in
            Elem::ALL.into_iter().flat_map(|e| [[false, false], [true, false], [true, true]].map(|o| (e, o)))
        {
            let extent = |name: &str| match name {
                "TD" => shape.elements(),
                "T" => shape.tokens,
                "D" => shape.hidden,
                "GD" => partial_rows(shape.tokens, shape.hidden, elem) * shape.hidden,
                _ => panic!("no extent '{name}'"),
            };
            let when = |condition: &str| match condition {
                "bf16" => elem == Elem::Bf16,
                "residual" | "accumulate" => added,
                "weight" => weight,
                _ => panic!("no condition '{condition}'"),
            };
            let table = |heading| documented(include_str!("cuda_eager.rs"), heading, elem, extent, when);
            assert_eq!(forward_passes(elem, added, shape), table("Forward"));
            assert_eq!(backward_passes(elem, added, weight, shape), table("Backward"));
        }
    }
}
