//! The split of a product over threads, around the kernel of the `gemm` crate (AVX2 or AVX-512, chosen when it runs).
//!
//! The crate splits most products well: its threads share the packed operands. Where the sum is longer than C is wide,
//! bands of C that each thread multiplies alone are up to 1.4× as fast. The sum over k is never split over threads, which
//! keeps the bits independent of their number.

use rayon::prelude::*;

use super::Dims;
#[cfg(target_arch = "x86_64")]
use super::amx;

/// Rows (columns) of a block of C are multiples of this, a multiple of every register tile's sides.
const ALIGN: usize = 48;

/// Elements that a block of C has at least: the kernel sums smaller ones in another order.
const MIN_BLOCK_ELEMENTS: usize = 512;

/// Rows that are multiplied at a time: few enough for their packed copy to stay in cache, where the kernel would pack all.
const ROW_BLOCK: usize = 1024;

/// Operations that a task has at least: fewer cost more to hand over than they take.
const MIN_TASK_FLOPS: u64 = 1 << 20;

/// Terms that are summed in registers before they are added to C: at most what the kernel would choose for any shape,
/// so that its choice, which depends on the block, does not show in the bits.
const K_BLOCK: usize = 512;

/// Operands of a product, already checked to lie inside their slices.
#[derive(Clone, Copy)]
pub(super) struct Raw {
    pub a: *const f32,
    pub b: *const f32,
    pub c: *mut f32,
    /// Row and column stride of A.
    pub a_strides: (isize, isize),
    /// Of B.
    pub b_strides: (isize, isize),
    /// Of C.
    pub c_strides: (isize, isize),
    pub alpha: f32,
    pub beta: f32,
    pub dims: Dims,
}

// SAFETY: the pointers come from a shared borrow of A and B and an exclusive borrow of C that outlive the product, and
// the tasks of a product write disjoint blocks of C.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    /// The product on the threads of the current pool.
    pub(super) fn parallel(self) {
        #[cfg(target_arch = "x86_64")]
        if amx::takes(&self) {
            return amx::product(self, true);
        }
        let Dims { m, n, k } = self.dims;
        let worth = (self.dims.flops() / MIN_TASK_FLOPS) as usize;
        let by_rows = match k > K_BLOCK {
            // A weight's gradient, or the loss's: a block of k at a time, each thread has its rows.
            true if m >= n => true,
            // Every thread packs its own part of the weight, which costs as much as a short product with it.
            false if k > n => false,
            _ if worth >= 2 => return self.band(gemm::Parallelism::Rayon(0)),
            _ => return self.single(),
        };
        let bands = self.bands(by_rows, rayon::current_num_threads().min(worth));
        if bands.len() == 1 {
            return self.single();
        }
        bands.into_par_iter().for_each(Raw::single);
    }

    /// The product on this thread.
    pub(super) fn single(self) {
        #[cfg(target_arch = "x86_64")]
        if amx::takes(&self) {
            return amx::product(self, false);
        }
        let rows = self.bands(true, self.dims.m.div_ceil(ROW_BLOCK));
        rows.into_iter().for_each(|band| band.band(gemm::Parallelism::None));
    }

    /// The product cut into at most `count` bands of rows or of columns of C.
    fn bands(self, by_rows: bool, count: usize) -> Vec<Raw> {
        let Dims { m, n, .. } = self.dims;
        let (side, other) = if by_rows { (m, n) } else { (n, m) };
        let unit = MIN_BLOCK_ELEMENTS.div_ceil(other).next_multiple_of(ALIGN);
        // Whole units only: what is left over goes to the last band, which never gets less than a unit.
        let count = count.min(side / unit).max(1);
        let edge = |i: usize| if i == count { side } else { side / unit * i / count * unit };
        (0..count).map(|i| self.restricted(by_rows, edge(i), edge(i + 1))).collect()
    }

    /// The same product for a range of rows or of columns of C.
    pub(super) fn restricted(mut self, by_rows: bool, start: usize, end: usize) -> Self {
        let (a, b, c) = (self.a_strides, self.b_strides, self.c_strides);
        let at = |stride: isize| start as isize * stride;
        // SAFETY: `start` is below the number of rows (columns), so the offsets stay inside the operands.
        unsafe {
            if by_rows {
                (self.a, self.c, self.dims.m) = (self.a.offset(at(a.0)), self.c.offset(at(c.0)), end - start);
            } else {
                (self.b, self.c, self.dims.n) = (self.b.offset(at(b.1)), self.c.offset(at(c.1)), end - start);
            }
        }
        self
    }

    /// The product, one block of k after another.
    fn band(self, threads: gemm::Parallelism) {
        let Dims { m, n, k } = self.dims;
        let (a, b, c) = (self.a_strides, self.b_strides, self.c_strides);
        for start in (0..k.max(1)).step_by(K_BLOCK) {
            let (at, beta) = (start as isize, if start == 0 { self.beta } else { 1.0 });
            // SAFETY: every index below m, n, k lies inside the operand's slice, which `checked` asserted.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    K_BLOCK.min(k - start),
                    self.c,
                    c.1,
                    c.0,
                    beta != 0.0,
                    self.a.offset(at * a.1),
                    a.1,
                    a.0,
                    self.b.offset(at * b.0),
                    b.1,
                    b.0,
                    beta,
                    self.alpha,
                    false,
                    false,
                    false,
                    threads,
                );
            }
        }
    }
}
