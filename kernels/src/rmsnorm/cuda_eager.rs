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

use super::Shape;
use crate::gpu::{
    Arg, Elem, GpuError, Launcher, Needs, Ptr, Unit,
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

/// What autograd keeps: `x` in f32, which is `x_TD` itself where the element type is, and the normalised `x`.
struct Saved {
    x_f32: View,
    normed: View,
}

impl Saved {
    fn new(at: Ptr, elem: Elem, x_TD: Ptr, shape: Shape) -> Self {
        let (x_f32, behind) = match elem {
            Elem::F32 => (x_TD, at),
            Elem::Bf16 => (at, at.offset(4 * shape.elements())),
        };
        Self { x_f32: View::dense(x_f32, Elem::F32), normed: View::dense(behind, elem) }
    }
}

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

fn forward_account(elem: Elem, residual: bool, shape: Shape) -> (Vec<Pass>, usize) {
    let none = Ptr::NULL;
    let mut ops = Operators::new(None, &UNIT, elem, none);
    let (x, memory) = (View::dense(none, elem), Memory::NONE);
    // SAFETY: nothing is launched.
    unsafe {
        if residual {
            add(&mut ops, x, x, x, shape).expect("counted only");
        }
        norm(&mut ops, elem, none, none, 0.0, none, none, memory, shape).expect("counted only");
    }
    ops.account()
}

fn backward_account(elem: Elem, accumulate: bool, weight: bool, shape: Shape) -> (Vec<Pass>, usize) {
    let mut ops = Operators::new(None, &UNIT, elem, Ptr::NULL);
    let gradients = Gradients { dx_TD: Ptr::NULL, accumulate, dweight_D: weight.then_some(Ptr::NULL) };
    let inputs = [Ptr::NULL; 4];
    // SAFETY: nothing is launched.
    unsafe { gradient(&mut ops, elem, inputs, gradients, Memory::NONE, shape).expect("counted only") };
    ops.account()
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
    let mut ops = Operators::new(Some(on), &UNIT, elem, memory.scratch);
    // SAFETY: the caller's promise is the same.
    unsafe { norm(&mut ops, elem, x_TD, weight_D, eps, y_TD, rstd_T, memory, shape) }
}

/// As [`super::cuda::add_forward`].
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
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
    let mut ops = Operators::new(Some(on), &UNIT, elem, memory.scratch);
    let [residual, delta, sum] = [residual_TD, delta_TD, sum_TD].map(|at| View::dense(at, elem));
    // SAFETY: the caller's promise is the same; the sum may take the place of what it is of.
    unsafe {
        add(&mut ops, sum, residual, delta, shape)?;
        norm(&mut ops, elem, sum_TD, weight_D, eps, y_TD, rstd_T, memory, shape)
    }
}

/// # Safety
/// As [`forward`].
unsafe fn add(ops: &mut Operators, sum: View, a: View, b: View, shape: Shape) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { ops.map("rmsnorm_eager_add", sum, &[a, b], shape.elements()) }
}

/// # Safety
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
unsafe fn norm(
    ops: &mut Operators,
    elem: Elem,
    x_TD: Ptr,
    weight_D: Ptr,
    eps: f32,
    y_TD: Ptr,
    rstd_T: Ptr,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    let (n, t, d) = (shape.elements(), shape.tokens, shape.hidden);
    let saved = Saved::new(memory.saved, elem, x_TD, shape);
    let [x, y] = [x_TD, y_TD].map(|at| View::dense(at, elem));
    let rstd = View::per_row(rstd_T, d, 1, 1);
    let product = ops.temporary(Elem::F32, n);
    let [mean, sum] = [ops.take(4 * t), ops.take(4 * t)].map(|at| View::per_row(at, d, 1, 1));
    // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
    unsafe {
        if elem == Elem::Bf16 {
            ops.map("rmsnorm_eager_float", saved.x_f32, &[x], n)?;
        }
        ops.map("rmsnorm_eager_square", product, &[saved.x_f32], n)?;
        ops.row_sum("rmsnorm_eager_mean", mean, product, (t, d), 1.0 / d as f32)?;
        ops.per_row("rmsnorm_eager_add_eps", sum, &[mean], t, eps)?;
        ops.per_row("rmsnorm_eager_rsqrt", rstd, &[sum], t, 0.0)?;
        let scaled = if elem == Elem::Bf16 { product } else { saved.normed };
        ops.map("rmsnorm_eager_mul_rows", scaled, &[saved.x_f32, rstd], n)?;
        if elem == Elem::Bf16 {
            ops.map("rmsnorm_eager_to", saved.normed, &[scaled], n)?;
        }
        let weight = View::shared(weight_D, elem, d);
        ops.map("rmsnorm_eager_mul_weight", y, &[saved.normed, weight], n)
    }
}

/// What a backward pass leaves.
struct Gradients {
    dx_TD: Ptr,
    accumulate: bool,
    dweight_D: Option<Ptr>,
}

/// As [`super::cuda::backward`], after [`forward`] with the same `saved`; the sum for the weight's gradient is rounded to the
/// element type before it is added, as PyTorch's is.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
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
    let mut ops = Operators::new(Some(on), &UNIT, elem, memory.scratch);
    let (inputs, gradients) = ([dy_TD, x_TD, rstd_T, weight_D], Gradients { dx_TD, accumulate, dweight_D });
    // SAFETY: the caller's promise is the same.
    unsafe { gradient(&mut ops, elem, inputs, gradients, memory, shape) }
}

/// # Safety
/// As [`forward`].
unsafe fn gradient(
    ops: &mut Operators,
    elem: Elem,
    [dy_TD, x_TD, rstd_T, weight_D]: [Ptr; 4],
    to: Gradients,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    let (n, t, d) = (shape.elements(), shape.tokens, shape.hidden);
    let saved = Saved::new(memory.saved, elem, x_TD, shape);
    let [dy, dx] = [dy_TD, to.dx_TD].map(|at| View::dense(at, elem));
    let rstd = View::per_row(rstd_T, d, 1, 1);
    let product = ops.temporary(elem, n);
    // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
    unsafe {
        if let Some(dweight) = to.dweight_D {
            ops.map("rmsnorm_eager_mul", product, &[dy, saved.normed], n)?;
            let sum = ops.temporary(elem, d);
            let kernels = ["rmsnorm_eager_sum_rows", "rmsnorm_eager_sum_rows_end"];
            ops.column_sum(kernels, sum, product, (t, d, d))?;
            let dweight = View::dense(dweight, Elem::F32);
            ops.map("rmsnorm_eager_accumulate", dweight, &[dweight, sum], d)?;
        }
        ops.map("rmsnorm_eager_mul_weight", product, &[dy, View::shared(weight_D, elem, d)], n)?;
        let wide = match elem {
            Elem::F32 => product,
            Elem::Bf16 => {
                let wide = ops.temporary(Elem::F32, n);
                ops.map("rmsnorm_eager_float", wide, &[product], n)?;
                wide
            }
        };
        let [straight, through, free] = both_ways(ops, saved.x_f32, wide, rstd, shape)?;
        // dx itself, if nothing stands between.
        let sum = if elem == Elem::F32 && !to.accumulate { dx } else { free };
        ops.map("rmsnorm_eager_add_f32", sum, &[straight, through], n)?;
        let narrow = match (elem, to.accumulate) {
            (Elem::F32, _) => sum,
            (Elem::Bf16, true) => product,
            (Elem::Bf16, false) => dx,
        };
        if elem == Elem::Bf16 {
            ops.map("rmsnorm_eager_to", narrow, &[sum], n)?;
        }
        if to.accumulate { add(ops, dx, dx, narrow, shape) } else { Ok(()) }
    }
}

/// The gradient of f32 `x` from `d_TD`, that of `x · rsqrt(…)`: straight, through the root, and a temporary that is free.
/// `d_TD` is overwritten.
///
/// # Safety
/// As [`forward`].
unsafe fn both_ways(
    ops: &mut Operators,
    x: View,
    d_TD: View,
    rstd: View,
    shape: Shape,
) -> Result<[View; 3], GpuError> {
    let (n, t, d) = (shape.elements(), shape.tokens, shape.hidden);
    let [straight, product, free] = [(); 3].map(|()| ops.temporary(Elem::F32, n));
    let [dot, scaled, cube, dmean] = [(); 4].map(|()| View::per_row(ops.take(4 * t), d, 1, 1));
    // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
    unsafe {
        ops.map("rmsnorm_eager_mul_rows", straight, &[d_TD, rstd], n)?;
        ops.map("rmsnorm_eager_mul_f32", product, &[d_TD, x], n)?;
        ops.row_sum("rmsnorm_eager_mean", dot, product, (t, d), 1.0)?;
        ops.per_row("rmsnorm_eager_scale_rows", scaled, &[dot], t, -0.5)?;
        ops.per_row("rmsnorm_eager_cube", cube, &[rstd], t, 0.0)?;
        ops.per_row("rmsnorm_eager_mul_of_rows", dmean, &[scaled, cube], t, 0.0)?;
        ops.map_with("rmsnorm_eager_expand", product, &[dmean], n, &[Arg::F32(d as f32)])?;
        ops.map("rmsnorm_eager_copy", d_TD, &[x], n)?;
        ops.map_with("rmsnorm_eager_scale", free, &[d_TD], n, &[Arg::F32(2.0)])?;
        ops.map("rmsnorm_eager_mul_f32", d_TD, &[product, free], n)?;
    }
    Ok([straight, d_TD, free])
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
