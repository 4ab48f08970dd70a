//! Building blocks of the unfused variants: whole passes over memory, each vectorised and on every thread, as the
//! element-wise operators of PyTorch eager are; and the row split that fused kernels share.
//!
//! Closures given to these functions are marked `#[inline(always)]`, and loops in them are `for` loops: a function that
//! stays out of line is compiled for the baseline processor, where a fused multiply-add is a library call.

use std::mem::{self, MaybeUninit};

use rayon::prelude::*;

use crate::simd;

/// Elements that one task handles: 128 KiB, large against the cost of a task and small against a core's L2 cache.
const TASK_ELEMENTS: usize = 32 * 1024;

/// At most this many partial sums are kept by a reduction over rows.
const MAX_PARTIALS: usize = 64;

/// Runs `body` compiled for the widest instruction set that this processor has. Mark it `#[inline(always)]`.
///
/// A plain closure given to `pulp` is called through a `FnOnce` shim, which is not inlined into the function that has
/// the instruction set and so keeps the baseline's; `FnMut` has no shim.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnMut() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnMut() -> R> pulp::WithSimd for Body<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(body))
}

/// Rows of a task over rows of `columns` elements. Depends on the shape only, so results do not depend on the number
/// of threads.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (TASK_ELEMENTS / columns.max(1)).max(1)
}

/// Rows of a task that also keeps a partial sum of its rows: as [`rows_per_task`], and few enough tasks that adding
/// their partial sums costs little.
pub(crate) fn rows_per_partial(rows: usize, columns: usize) -> usize {
    rows_per_task(columns).max(rows.div_ceil(MAX_PARTIALS))
}

/// Calls `f(row, elements)` for every row of `dst`.
pub(crate) fn rows(dst: &mut [f32], columns: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let per_task = rows_per_task(columns);
    dst.par_chunks_mut(per_task * columns).enumerate().for_each(|(task, dst)| {
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in dst.chunks_exact_mut(columns).enumerate() {
                    f(task * per_task + i, row);
                }
            },
        );
    });
}

/// A row of a temporary while it is written.
pub(crate) struct Row<'a> {
    unwritten: &'a mut [MaybeUninit<f32>],
}

impl Row<'_> {
    /// Writes the next elements of the row.
    #[inline(always)]
    pub(crate) fn extend(&mut self, values: impl Iterator<Item = f32>) {
        // As wide as an element: a wider counter would halve the vectors that the loop is compiled to.
        let mut written = 0u32;
        for (slot, value) in self.unwritten.iter_mut().zip(values) {
            slot.write(value);
            written += 1;
        }
        self.unwritten = &mut mem::take(&mut self.unwritten)[written as usize..];
    }
}

/// A new temporary of `rows × columns`, written in one pass: `f(r, row)` extends row `r` until it is whole.
///
/// It is not filled before it is written, as PyTorch's `empty` is not: that would be a pass that eager does not make. Its
/// memory comes from the process's allocator on every call, again as in PyTorch on a CPU: an allocator that hands large
/// blocks back to the system makes every pass over a large temporary pay for page faults too.
pub(crate) fn temporary_rows(rows: usize, columns: usize, f: impl Fn(usize, &mut Row) + Sync) -> Vec<f32> {
    let (len, per_task) = (rows * columns, rows_per_task(columns));
    let mut out = Vec::with_capacity(len);
    out.spare_capacity_mut()[..len].par_chunks_mut(per_task * columns).enumerate().for_each(
        |(task, block)| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, unwritten) in block.chunks_exact_mut(columns).enumerate() {
                        let mut row = Row { unwritten };
                        f(task * per_task + i, &mut row);
                        assert!(row.unwritten.is_empty(), "a row of a temporary is written whole");
                    }
                },
            );
        },
    );
    // SAFETY: the capacity is at least `len`, and every element of every row was written, as asserted: a row's unwritten
    // part shrinks only past what was written.
    unsafe { out.set_len(len) };
    out
}

/// A new temporary of `rows × columns`, written in one pass: row `r` is what `f(r)` yields.
pub(crate) fn temporary<I: Iterator<Item = f32>>(
    rows: usize,
    columns: usize,
    f: impl Fn(usize) -> I + Sync,
) -> Vec<f32> {
    temporary_rows(
        rows,
        columns,
        #[inline(always)]
        |r, row| row.extend(f(r)),
    )
}

/// `dst = f(a)`, element by element.
pub(crate) fn unary(dst: &mut [f32], a: &[f32], f: impl Fn(f32) -> f32 + Sync) {
    assert_eq!(dst.len(), a.len());
    dst.par_chunks_mut(TASK_ELEMENTS).zip(a.par_chunks(TASK_ELEMENTS)).for_each(|(dst, a)| {
        vectorised(
            #[inline(always)]
            || {
                for (d, &a) in dst.iter_mut().zip(a) {
                    *d = f(a);
                }
            },
        );
    });
}

/// `sums[row] = Σ over columns` of `src`.
pub(crate) fn row_sums(sums: &mut [f32], src: &[f32], columns: usize) {
    let per_task = rows_per_task(columns);
    sums.par_chunks_mut(per_task).zip(src.par_chunks(per_task * columns)).for_each(|(sums, src)| {
        vectorised(
            #[inline(always)]
            || {
                for (sum, row) in sums.iter_mut().zip(src.chunks_exact(columns)) {
                    *sum = simd::sum(row);
                }
            },
        );
    });
}

/// `dst += src`, element by element, as one pass.
pub(crate) fn add_assign(dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len());
    dst.par_chunks_mut(TASK_ELEMENTS).zip(src.par_chunks(TASK_ELEMENTS)).for_each(|(dst, src)| {
        vectorised(
            #[inline(always)]
            || add(dst, src),
        );
    });
}

/// `sums[column] += Σ over rows` of `src`, rows in order within fixed blocks and blocks in order.
pub(crate) fn add_column_sums(sums: &mut [f32], src: &[f32]) {
    let columns = sums.len();
    let per_task = rows_per_partial(src.len() / columns, columns);
    let partials: Vec<Vec<f32>> = src
        .par_chunks(per_task * columns)
        .map(|block| {
            let mut partial = vec![0.0; columns];
            vectorised(
                #[inline(always)]
                || {
                    for row in block.chunks_exact(columns) {
                        add(&mut partial, row);
                    }
                },
            );
            partial
        })
        .collect();
    partials.iter().for_each(|partial| add(sums, partial));
}

/// `dst += src`, element by element, on this thread.
#[inline(always)]
pub(crate) fn add(dst: &mut [f32], src: &[f32]) {
    for (d, &s) in dst.iter_mut().zip(src) {
        *d += s;
    }
}
