//! Bias, QK-norm and rotation as PyTorch eager runs Hugging Face's attention module: launches of `eager.cu`, one kernel for each
//! operator of `q * cos + rotate_half(q) * sin`, of Qwen3's `q_norm` (those of [`crate::rmsnorm::cuda_eager`]), and of their
//! autograd backward passes; for queries, then for keys. The contract is that of [`super::cuda`] but for [`Memory`], and for
//! `pre_norm`, which is neither written nor read and may be null.
//!
//! * Autograd keeps, of QK-norm, the f32 copies of q and k and the normalised ones: [`saved_bytes`].
//! * PyTorch adds the bias where its product ends: a caller whose product does ([`Product::bias`](crate::gpu::Product::bias))
//!   gives none here. Where it is given, it is an operator of its own, on q, k and v.
//! * Cosines and sines come from the f32 tables by position, in as many bytes as a row of the bf16 ones that PyTorch makes of
//!   them once a step. A: that row, K/2 and the position, for each token; the heads share it.
//! * In f32, `to` copies nothing, and rows marked bf16 fall away. q and k are copied even so: their place is overwritten.
//!
//! S: elements of the side, `T·N`, N of them in a token; H: half of them; R: heads of all tokens; G: partial sums of columns.
//!
//! # Bias
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `qk_rope_eager_add_bias` | + bias | S elem + N elem | S elem | |
//!
//! # Forward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `rmsnorm_eager_float` | to(float32) | S elem | S f32 | norm |
//! | `rmsnorm_eager_square` | pow(2) | S f32 | S f32 | norm |
//! | `rmsnorm_eager_mean` | mean(-1) | S f32 | R f32 | norm |
//! | `rmsnorm_eager_add_eps` | + eps | R f32 | R f32 | norm |
//! | `rmsnorm_eager_rsqrt` | rsqrt | R f32 | R f32 | norm |
//! | `rmsnorm_eager_mul_rows` | q · rsqrt | S f32 + R f32 | S f32 | norm |
//! | `rmsnorm_eager_to` | to(bf16) | S f32 | S elem | norm bf16 |
//! | `rmsnorm_eager_mul_weight` | weight · | S elem + K elem | S elem | norm |
//! | `qk_rope_eager_mul_angle` | q · cos | S elem + A f32 | S elem | |
//! | `qk_rope_eager_neg` | -q2 | H elem | H elem | |
//! | `qk_rope_eager_cat` | cat(-q2, q1) | H elem + H elem | S elem | |
//! | `qk_rope_eager_mul_angle` | · sin | S elem + A f32 | S elem | |
//! | `qk_rope_eager_add` | + | S elem + S elem | S elem | |
//!
//! # Backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `qk_rope_eager_mul_angle` | d · sin | S elem + A f32 | S elem | |
//! | `qk_rope_eager_neg` | -q2's | H elem | H elem | |
//! | `qk_rope_eager_zeros` | the slice q2's | | S elem | |
//! | `qk_rope_eager_copy` | into it | H elem | H elem | |
//! | `qk_rope_eager_zeros` | the slice q1's | | S elem | |
//! | `qk_rope_eager_copy` | into it | H elem | H elem | |
//! | `qk_rope_eager_add` | both slices' | S elem + S elem | S elem | |
//! | `qk_rope_eager_mul_angle` | d · cos | S elem + A f32 | S elem | |
//! | `qk_rope_eager_add` | all gradients of q | S elem + S elem | S elem | |
//! | `rmsnorm_eager_mul` | d · normed | S elem + S elem | S elem | norm weight |
//! | `rmsnorm_eager_sum_rows` | sum over rows | S elem | GK f32 | norm weight |
//! | `rmsnorm_eager_sum_rows_end` | the same | GK f32 | K elem | norm weight |
//! | `rmsnorm_eager_accumulate` | grad += | K f32 + K elem | K f32 | norm weight |
//! | `rmsnorm_eager_mul_weight` | d · weight | S elem + K elem | S elem | norm |
//! | `rmsnorm_eager_float` | to(bf16)'s | S elem | S f32 | norm bf16 |
//! | `rmsnorm_eager_mul_rows` | d · rsqrt | S f32 + R f32 | S f32 | norm |
//! | `rmsnorm_eager_mul_f32` | d · q | S f32 + S f32 | S f32 | norm |
//! | `rmsnorm_eager_mean` | its sum(-1) | S f32 | R f32 | norm |
//! | `rmsnorm_eager_scale_rows` | rsqrt's: -0.5 · d | R f32 | R f32 | norm |
//! | `rmsnorm_eager_cube` | rsqrt.pow(3) | R f32 | R f32 | norm |
//! | `rmsnorm_eager_mul_of_rows` | · | R f32 + R f32 | R f32 | norm |
//! | `rmsnorm_eager_expand` | mean's: expand / K | R f32 | S f32 | norm |
//! | `rmsnorm_eager_copy` | pow's: q.pow(1) | S f32 | S f32 | norm |
//! | `rmsnorm_eager_scale` | 2 · | S f32 | S f32 | norm |
//! | `rmsnorm_eager_mul_f32` | d · | S f32 + S f32 | S f32 | norm |
//! | `rmsnorm_eager_add_f32` | both gradients of q | S f32 + S f32 | S f32 | norm |
//! | `rmsnorm_eager_to` | to(float32)'s | S f32 | S elem | norm bf16 |
//!
//! # Bias, backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `qk_rope_eager_sum_rows` | sum over rows | S elem | GN f32 | |
//! | `qk_rope_eager_sum_rows_end` | the same | GN f32 | N elem | |
//! | `qk_rope_eager_accumulate` | grad += | N f32 + N elem | N f32 | |

use super::{
    Shape,
    cuda::{NormBackward, NormForward, Rotation},
    operators::Packed,
};
use crate::gpu::{
    Elem, GpuError, Launcher, Needs, Ptr, Unit,
    eager::{Memory, Operators, Pass},
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "qk_rope_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"qk_rope/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &[
        "qk_rope_eager_add_bias",
        "qk_rope_eager_mul_angle",
        "qk_rope_eager_neg",
        "qk_rope_eager_cat",
        "qk_rope_eager_add",
        "qk_rope_eager_zeros",
        "qk_rope_eager_copy",
        "qk_rope_eager_sum_rows",
        "qk_rope_eager_sum_rows_end",
        "qk_rope_eager_accumulate",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT, &crate::rmsnorm::cuda_eager::UNIT];

/// Bytes of [`Memory::saved`].
pub fn saved_bytes(elem: Elem, norm: bool, shape: Shape) -> usize {
    if norm { shape.tokens * shape.rotated() * (4 + elem.bytes()) } else { 0 }
}

/// Bytes of [`Memory::scratch`] for either pass.
pub fn scratch_bytes(elem: Elem, bias: bool, norm: bool, shape: Shape) -> usize {
    forward_account(elem, bias, norm, shape).1.max(backward_account(elem, bias, norm, true, shape).1)
}

/// The passes of [`forward`].
pub fn forward_passes(elem: Elem, bias: bool, norm: bool, shape: Shape) -> Vec<Pass> {
    forward_account(elem, bias, norm, shape).0
}

/// The passes of [`backward`], with the gradients of both `weights` of the norm or of none.
pub fn backward_passes(elem: Elem, bias: bool, norm: bool, weights: bool, shape: Shape) -> Vec<Pass> {
    backward_account(elem, bias, norm, weights, shape).0
}

/// Nowhere: of lists that are only counted.
const NOWHERE: Rotation = Rotation { cos: Ptr::NULL, sin: Ptr::NULL, positions: Ptr::NULL };

fn forward_account(elem: Elem, bias: bool, norm: bool, shape: Shape) -> (Vec<Pass>, usize) {
    let at = Ptr::NULL;
    let mut ops = Operators::new(None, UNITS, elem, at);
    let norm =
        norm.then_some(NormForward { q_weight_K: at, k_weight_K: at, eps: 0.0, pre_norm: at, rstd: at });
    let packed = Packed { at, saved: at, elem, rotation: NOWHERE, shape };
    // SAFETY: nothing is launched.
    unsafe { packed.forward(&mut ops, bias.then_some(at), norm).expect("counted only") };
    ops.account()
}

fn backward_account(elem: Elem, bias: bool, norm: bool, weights: bool, shape: Shape) -> (Vec<Pass>, usize) {
    let at = Ptr::NULL;
    let mut ops = Operators::new(None, UNITS, elem, at);
    let [dq_weight_K, dk_weight_K] = [weights.then_some(at); 2];
    let norm = norm.then_some(NormBackward {
        q_weight_K: at,
        k_weight_K: at,
        pre_norm: at,
        rstd: at,
        dq_weight_K,
        dk_weight_K,
    });
    let packed = Packed { at, saved: at, elem, rotation: NOWHERE, shape };
    // SAFETY: nothing is launched.
    unsafe { packed.backward(&mut ops, bias.then_some(at), norm).expect("counted only") };
    ops.account()
}

fn check(shape: Shape) {
    let k = shape.head_dim;
    assert!(k > 0 && k.is_multiple_of(16), "heads of {k} are no multiple of 16");
    assert!(shape.heads > 0 && shape.kv_heads > 0, "{shape:?}");
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
/// When the head dimension is no multiple of 16.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    qkv_TQ: Ptr,
    bias_Q: Option<Ptr>,
    norm: Option<NormForward>,
    rotation: Rotation,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    let packed = Packed { at: qkv_TQ, saved: memory.saved, elem, rotation, shape };
    // SAFETY: the caller's promise is the same.
    unsafe { packed.forward(&mut ops, bias_Q, norm) }
}

/// As [`super::cuda::backward`], after [`forward`] with the same `saved`. Sums for the gradients of the bias and of the norm's
/// weights are rounded to the element type before they are added, as PyTorch's are.
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
    dqkv_TQ: Ptr,
    dbias_Q: Option<Ptr>,
    norm: Option<NormBackward>,
    rotation: Rotation,
    memory: Memory,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    let packed = Packed { at: dqkv_TQ, saved: memory.saved, elem, rotation, shape };
    // SAFETY: the caller's promise is the same.
    unsafe { packed.backward(&mut ops, dbias_Q, norm) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::eager::{documented, partial_rows};

    /// Of a table, for a side of so many heads.
    fn table(heading: &str, elem: Elem, heads: usize, [norm, weight]: [bool; 2], shape: Shape) -> Vec<Pass> {
        let (t, k, n) = (shape.tokens, shape.head_dim, heads * shape.head_dim);
        let extent = |name: &str| match name {
            "S" => t * n,
            "N" => n,
            "H" => t * n / 2,
            "R" => t * heads,
            "K" => k,
            "A" => t * (k / 2 + 1),
            "GK" => partial_rows(t * heads, k, elem) * k,
            "GN" => partial_rows(t, n, elem) * n,
            _ => panic!("no extent '{name}'"),
        };
        let when = |condition: &str| match condition {
            "bf16" => elem == Elem::Bf16,
            "norm" => norm,
            "weight" => weight,
            _ => panic!("no condition '{condition}'"),
        };
        documented(include_str!("cuda_eager.rs"), heading, elem, extent, when)
    }

    #[test]
    fn passes_are_those_of_the_tables() {
        let shape = Shape { tokens: 37, heads: 14, kv_heads: 2, head_dim: 80 };
        let options = [[false, false], [true, false], [true, true]];
        for (elem, [norm, weight]) in Elem::ALL.into_iter().flat_map(|e| options.map(|o| (e, o))) {
            for bias in [false, true] {
                let each = |heading: &str, heads: &[usize]| -> Vec<Pass> {
                    heads.iter().flat_map(|h| table(heading, elem, *h, [norm, weight], shape)).collect()
                };
                let biases = |heading: &str| each(heading, if bias { &[14, 2, 2] } else { &[] });
                let forward = [biases("Bias"), each("Forward", &[14, 2])].concat();
                assert_eq!(forward_passes(elem, bias, norm, shape), forward);
                let backward = [each("Backward", &[14, 2]), biases("Bias, backward")].concat();
                assert_eq!(backward_passes(elem, bias, norm, weight, shape), backward);
            }
        }
    }
}
