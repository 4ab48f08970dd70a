//! Products on the matrix unit of Intel's processors (AMX-BF16), exact to f32.
//!
//! The unit multiplies bf16 and sums in f32, sixteen times as fast as vectors of f32. An f32 is the sum of three bf16, exactly
//! ([`pack`]); of the nine products of two such sums the six that count are computed (Henry, Tang and Heinecke, arXiv
//! 1904.06376). What is left out is at most 2⁻²³ of a term, two roundings of f32, and of either sign; sums are rounded less often
//! than one by one. That leaves 2.7 times the speed of vectors, of which a product of a linear layer reaches about half, as its
//! operands are packed first.
//!
//! * Values below 2⁻¹¹⁰ lose their lower parts, as the unit takes subnormal numbers for zero; infinity gives NaN.
//! * Every element of C is summed in the same order whatever the number of threads.
//! * Where the unit is not there, a product is small, or an operand is contiguous along neither side, [`super::engine`] takes the
//!   crate's kernel; `CHRONICALS_AMX=off` in the environment has it take that always.

mod pack;
#[cfg(test)]
mod tests;
mod tile;

use std::{
    arch::x86_64::*,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use pack::{Side, Source, first, is_dense, strip_bytes};
use rayon::prelude::*;
pub(super) use tile::is_available;
use tile::{Block, STRIP, Unit};

use super::{Dims, engine::Raw};

/// Terms that are summed before they are added to C, at most.
const MAX_TERMS: usize = 768;

/// Rows of A, and columns of B, that are packed at a time: 9 MB each at most.
const MAX_SIDE: usize = 2048;

/// Bytes of the strips of A, and of those of B, that a task multiplies: both fit in a second-level cache of 2 MB.
const TASK_BYTES: usize = 768 << 10;

/// Multiplications that an element of A, B and C costs besides: packed, or added to.
const COST_OF_ELEMENT: u64 = 140;

/// Packed operands of products that are over, for the next ones: as many as there were at a time.
static BUFFERS: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Memory as the unit reads it best.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers alone")] [u8; 64]);

/// Calls `f` with memory that no other product has meanwhile.
fn with_buffer<R>(bytes: usize, f: impl FnOnce(&mut [Line]) -> R) -> R {
    let buffers = || BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lines = buffers().pop().unwrap_or_default();
    let count = bytes.div_ceil(size_of::<Line>());
    if lines.len() < count {
        lines = vec![Line([0; 64]); count];
    }
    let result = f(&mut lines[..count]);
    buffers().push(lines);
    result
}

/// Whether a product is one for the unit.
pub(super) fn takes(p: &Raw) -> bool {
    let Dims { m, n, k } = p.dims;
    let dense = |(a, b): (isize, isize)| is_dense(a as usize, b as usize);
    let elements = [m * k, k * n, m * n].into_iter().sum::<usize>() as u64;
    let large = p.dims.flops() / 2 >= COST_OF_ELEMENT * elements;
    large && dense(p.a_strides) && dense(p.b_strides) && is_available()
}

/// `C = α·A·B + β·C` on the threads of the current pool, or on this one.
pub(super) fn product(p: Raw, parallel: bool) {
    let Dims { m, n, k } = p.dims;
    let terms = k.div_ceil(k.div_ceil(MAX_TERMS)).next_multiple_of(tile::STEP);
    for (row, column) in (0..m).step_by(MAX_SIDE).flat_map(|i| (0..n).step_by(MAX_SIDE).map(move |j| (i, j)))
    {
        let rows = p.restricted(true, row, (row + MAX_SIDE).min(m));
        let block = rows.restricted(false, column, (column + MAX_SIDE).min(n));
        for start in (0..k).step_by(terms) {
            let beta = if start == 0 { p.beta } else { 1.0 };
            Panel { p: Raw { beta, ..block }, start, terms: terms.min(k - start) }.run(parallel);
        }
    }
}

/// Some terms of a product, both of whose operands are packed as a whole.
#[derive(Clone, Copy)]
struct Panel {
    p: Raw,
    start: usize,
    terms: usize,
}

impl Panel {
    fn run(self, parallel: bool) {
        let Dims { m, n, .. } = self.p.dims;
        let bytes = strip_bytes(self.terms);
        let lines = bytes / size_of::<Line>();
        let [of_a, of_b] = [m, n].map(|side| side.div_ceil(STRIP));
        with_buffer((of_a + of_b) * bytes, |packed| {
            let pack = |(i, strip): (usize, &mut [Line])| match i.checked_sub(of_a) {
                None => self.pack(Side::A, i * STRIP, strip),
                Some(j) => self.pack(Side::B, j * STRIP, strip),
            };
            match parallel {
                true => packed.par_chunks_mut(lines).enumerate().for_each(pack),
                false => packed.chunks_mut(lines).enumerate().for_each(pack),
            }
            let (a, b) = packed.split_at(of_a * lines);
            let group = (TASK_BYTES / bytes).max(1);
            let (down, across) = (of_a.div_ceil(group), of_b.div_ceil(group));
            let task = |t: usize| {
                let (i, j) = (t / across * group, t % across * group);
                self.multiply(a, b, i..(i + group).min(of_a), j..(j + group).min(of_b), lines);
            };
            match parallel {
                true => (0..down * across).into_par_iter().for_each(task),
                false => (0..down * across).for_each(task),
            }
        });
    }

    /// The blocks of C of some strips of A and some of B.
    fn multiply(&self, a: &[Line], b: &[Line], rows: Range<usize>, columns: Range<usize>, lines: usize) {
        let Dims { m, n, .. } = self.p.dims;
        let steps = self.terms.div_ceil(tile::STEP);
        let mut sums = Block([0.0; STRIP * STRIP]);
        // SAFETY: a product is here only if the unit is available.
        let unit = unsafe { Unit::configure() };
        for j in columns {
            for i in rows.clone() {
                let (row, column) = (i * STRIP, j * STRIP);
                let (height, width) = ((m - row).min(STRIP), (n - column).min(STRIP));
                let [a, b] = [&a[i * lines..][..lines], &b[j * lines..][..lines]];
                // SAFETY: strips of as many steps; AVX-512 is there; the block lies inside of C, and is no other task's.
                unsafe {
                    unit.multiply(a.as_ptr().cast(), b.as_ptr().cast(), steps, &mut sums);
                    self.write(&sums, row, column, height, width);
                }
            }
        }
    }

    /// Packs the strip of A from row `x`, or of B from column `x`.
    fn pack(&self, side: Side, x: usize, strip: &mut [Line]) {
        let Dims { m, n, .. } = self.p.dims;
        let (at, (x_stride, k_stride), all) = match side {
            Side::A => (self.p.a, self.p.a_strides, m),
            Side::B => (self.p.b, (self.p.b_strides.1, self.p.b_strides.0), n),
        };
        let (x_stride, k_stride) = (x_stride as usize, k_stride as usize);
        let source = Source {
            at: at.wrapping_add(x * x_stride + self.start * k_stride),
            x_stride,
            k_stride,
            xs: (all - x).min(STRIP),
            ks: self.terms,
        };
        // SAFETY: the unit is there, and AVX-512 with it; the strip's elements are the operand's; the lines are those of a strip.
        unsafe { pack::strip(source, side, strip.as_mut_ptr().cast()) }
    }

    /// `C = α·sums + β·C` for a block of C.
    ///
    /// # Safety
    /// The processor has AVX-512 F. The block lies inside of C, and no other thread has it.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, sums: &Block, row: usize, column: usize, height: usize, width: usize) {
        let ((rows, columns), Raw { alpha, beta, .. }) = (self.p.c_strides, self.p);
        for i in 0..height {
            let sums = &sums.0[i * STRIP..(i + 1) * STRIP];
            // SAFETY: the caller's promise.
            unsafe {
                let at = self.p.c.offset((row + i) as isize * rows + column as isize * columns);
                if columns == 1 {
                    let (left, right) = (first(width), first(width.saturating_sub(16)));
                    add_scaled(alpha, sums.as_ptr(), beta, at, left);
                    add_scaled(alpha, sums.as_ptr().add(16), beta, at.wrapping_add(16), right);
                    continue;
                }
                for (j, sum) in sums[..width].iter().enumerate() {
                    let c = at.offset(j as isize * columns);
                    c.write(if beta == 0.0 { alpha * sum } else { alpha.mul_add(*sum, beta * *c) });
                }
            }
        }
    }
}

/// `c = α·sums + β·c` for the elements of a mask; c is not read if β is 0.
///
/// # Safety
/// The processor has AVX-512 F; `sums` has 16 elements, and `c` those of the mask.
#[target_feature(enable = "avx512f")]
unsafe fn add_scaled(alpha: f32, sums: *const f32, beta: f32, c: *mut f32, mask: __mmask16) {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = _mm512_loadu_ps(sums);
        let alpha = _mm512_set1_ps(alpha);
        let new = if beta == 0.0 {
            _mm512_mul_ps(alpha, sums)
        } else {
            let old = _mm512_mul_ps(_mm512_set1_ps(beta), _mm512_maskz_loadu_ps(mask, c));
            _mm512_fmadd_ps(alpha, sums, old)
        };
        _mm512_mask_storeu_ps(c, mask, new);
    }
}
