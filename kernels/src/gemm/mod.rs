//! Matrix products in f32: `C = α·A·B + β·C`.
//!
//! | function | product | of a linear layer `y = x·Wᵀ` |
//! |---|---|---|
//! | [`linear_forward`] | `y_TN = x_TK · w_NKᵀ + β·y_TN` | output |
//! | [`linear_dgrad`] | `dx_TK = dy_TN · w_NK + β·dx_TK` | gradient of the input |
//! | [`linear_wgrad`] | `dw_NK = dy_TNᵀ · x_TK + β·dw_NK` | gradient of the weight |
//! | [`gemm()`] | any strides, so slices of a packed buffer, transposed or not | |
//! | [`gemm_single`] | the same on the calling thread, not accounted for | tiles inside other kernels |
//!
//! * dtypes: f32 operands, products and sums; large products on a matrix unit where there is one, [`unit()`], are as exact.
//! * `β = 0` overwrites: C is not read, so NaN in it does not survive. Otherwise C is accumulated into.
//! * Threads: the *current* rayon pool. Blocks of C are split over them, never the sum over k; every element is summed
//!   in the same order whatever the number of threads, so the bits do not depend on it.
//! * Nothing is saved for a backward pass; the products allocate only their packing buffers.
//! * [`stats`] accounts for wall time and operations of every product but [`gemm_single`].
#![allow(non_snake_case)] // x_TK is tokens × input features; see the legend in the crate documentation

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod bench;
pub mod cases;
mod engine;
pub mod reference;
mod stats;
#[cfg(test)]
mod tests;

pub use stats::{GemmStats, reset_stats, stats};

use std::mem::MaybeUninit;

use engine::Raw;

/// What large products run on, for records: `amx`, six products of bf16, or `f32`, vectors.
pub fn unit() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if amx::is_available() {
        return "amx";
    }
    "f32"
}

/// Extents of a product: C is m × n, A is m × k and B is k × n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A and rows of B.
    pub k: usize,
}

impl Dims {
    /// Floating-point operations: a multiplication and an addition for each of m·n·k terms.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64
    }
}

/// A matrix to read: element (i, j) is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// From element (0, 0) on.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// Row-major; row i starts at `data[i·ld]`. Columns may be fewer than `ld`: a slice of a packed buffer.
    pub fn rows(data: &'a [f32], ld: usize) -> Self {
        Self { data, row_stride: ld, col_stride: 1 }
    }

    /// The transpose; costs nothing.
    pub fn t(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A matrix to write, as [`MatRef`].
#[derive(Debug)]
pub struct MatMut<'a> {
    /// From element (0, 0) on.
    pub data: &'a mut [f32],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Row-major; row i starts at `data[i·ld]`.
    pub fn rows(data: &'a mut [f32], ld: usize) -> Self {
        Self { data, row_stride: ld, col_stride: 1 }
    }
}

/// `y_TN = x_TK · w_NKᵀ + β·y_TN`, all row-major and dense.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn linear_forward(y_TN: &mut [f32], x_TK: &[f32], w_NK: &[f32], t: usize, n: usize, k: usize, beta: f32) {
    let dims = Dims { m: t, n, k };
    gemm(1.0, MatRef::rows(x_TK, k), MatRef::rows(w_NK, k).t(), beta, MatMut::rows(y_TN, n), dims);
}

/// `y_TN = x_TK · w_NKᵀ` in place of whatever `y_TN` holds, growing it where needed. The buffer is not filled first, as
/// PyTorch's `empty` is not: for logits that would be one pass over memory more.
pub(crate) fn linear_forward_into(
    y_TN: &mut Vec<f32>,
    x_TK: &[f32],
    w_NK: &[f32],
    t: usize,
    n: usize,
    k: usize,
) {
    y_TN.clear();
    y_TN.reserve(t * n);
    let (a, b) = (MatRef::rows(x_TK, k), MatRef::rows(w_NK, k).t());
    let dims = Dims { m: t, n, k };
    let product = checked_inputs(1.0, a, b, 0.0, dims);
    if let Some(product) = product {
        let c = y_TN.spare_capacity_mut().as_mut_ptr().cast();
        stats::counted(dims.flops(), || Raw { c, c_strides: (n as isize, 1), ..product }.parallel());
    }
    // SAFETY: the capacity is at least t·n, and a product with β = 0 writes every element and reads none.
    unsafe { y_TN.set_len(t * n) };
}

/// `dx_TK = dy_TN · w_NK + β·dx_TK`, all row-major and dense.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn linear_dgrad(dx_TK: &mut [f32], dy_TN: &[f32], w_NK: &[f32], t: usize, n: usize, k: usize, beta: f32) {
    let dims = Dims { m: t, n: k, k: n };
    gemm(1.0, MatRef::rows(dy_TN, n), MatRef::rows(w_NK, k), beta, MatMut::rows(dx_TK, k), dims);
}

/// `dw_NK = dy_TNᵀ · x_TK + β·dw_NK`, all row-major and dense.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn linear_wgrad(dw_NK: &mut [f32], dy_TN: &[f32], x_TK: &[f32], t: usize, n: usize, k: usize, beta: f32) {
    let dims = Dims { m: n, n: k, k: t };
    gemm(1.0, MatRef::rows(dy_TN, n).t(), MatRef::rows(x_TK, k), beta, MatMut::rows(dw_NK, k), dims);
}

/// `C = α·A·B + β·C` on the threads of the current pool.
///
/// # Panics
/// If an operand's slice is too short for its extents and strides, or elements of C overlap.
pub fn gemm(alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut, dims: Dims) {
    if let Some(product) = checked(alpha, a, b, beta, c, dims) {
        stats::counted(dims.flops(), || product.parallel());
    }
}

/// `C = α·A·B + β·C` on the calling thread, left out of [`stats`].
///
/// # Panics
/// As [`gemm()`].
pub fn gemm_single(alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut, dims: Dims) {
    if let Some(product) = checked(alpha, a, b, beta, c, dims) {
        product.single();
    }
}

/// `C = A·B`, row-major and dense, on the calling thread, into memory that holds nothing yet; left out of [`stats`].
pub(crate) fn gemm_single_into(c: &mut [MaybeUninit<f32>], a: MatRef, b: MatRef, dims: Dims) {
    assert_fits("C", c.len(), (dims.m, dims.n), (dims.n, 1));
    if let Some(product) = checked_inputs(1.0, a, b, 0.0, dims) {
        Raw { c: c.as_mut_ptr().cast(), c_strides: (dims.n as isize, 1), ..product }.single();
    }
}

/// Asserts that every element lies inside its slice; `None` if C has no elements.
fn checked(alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut, dims: Dims) -> Option<Raw> {
    let Dims { m, n, .. } = dims;
    let MatMut { data, row_stride, col_stride } = c;
    assert_fits("C", data.len(), (m, n), (row_stride, col_stride));
    let disjoint = row_stride >= n * col_stride || col_stride >= m * row_stride;
    assert!(disjoint && (n < 2 || col_stride > 0) && (m < 2 || row_stride > 0), "elements of C overlap");
    checked_inputs(alpha, a, b, beta, dims).map(|product| Raw {
        c: data.as_mut_ptr(),
        c_strides: (row_stride as isize, col_stride as isize),
        ..product
    })
}

/// The product of A and B without a place for C yet.
fn checked_inputs(alpha: f32, a: MatRef, b: MatRef, beta: f32, dims: Dims) -> Option<Raw> {
    let Dims { m, n, k } = dims;
    assert_fits("A", a.data.len(), (m, k), (a.row_stride, a.col_stride));
    assert_fits("B", b.data.len(), (k, n), (b.row_stride, b.col_stride));
    let strides = |x: MatRef| (x.row_stride as isize, x.col_stride as isize);
    (m > 0 && n > 0).then(|| Raw {
        a: a.data.as_ptr(),
        b: b.data.as_ptr(),
        c: std::ptr::null_mut(),
        a_strides: strides(a),
        b_strides: strides(b),
        c_strides: (0, 0),
        alpha,
        beta,
        dims,
    })
}

fn assert_fits(name: &str, len: usize, (rows, cols): (usize, usize), (rs, cs): (usize, usize)) {
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * rs + (cols - 1) * cs + 1 };
    assert!(needed <= len, "{name} of {rows}×{cols} (strides {rs}, {cs}) needs {needed} elements, has {len}");
}
