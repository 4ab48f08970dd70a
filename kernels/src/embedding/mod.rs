//! Token embedding: `x_TD[t] = table_VD[ids[t]]` and its gradient.
//!
//! * Shapes: `ids` T token ids below V, `table_VD` V × D, `x_TD` T × D; f32.
//! * [`forward`] overwrites (`=`); [`backward`] accumulates (`+=`): `dtable_VD[ids[t]] += dx_TD[t]`.
//! * Nothing is saved but the ids. There is one variant: each element is touched once already.
//! * Deterministic for any number of threads: every row of the table belongs to one thread, which adds its tokens in
//!   the order of the batch.
#![allow(non_snake_case)] // x_TD is tokens × hidden; see the legend in the crate documentation

pub mod bench;
pub mod cases;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

/// Elements that a task copies: large against the cost of a task.
const TASK_ELEMENTS: usize = 32 * 1024;

/// `x_TD[t] = table_VD[ids[t]]`.
///
/// # Panics
/// If a length does not fit the others, or an id is not below V.
pub fn forward(ids: &[u32], table_VD: &[f32], x_TD: &mut [f32], d: usize) {
    check(ids, x_TD.len(), table_VD.len(), d);
    let rows = (TASK_ELEMENTS / d).max(1);
    ids.par_chunks(rows).zip(x_TD.par_chunks_mut(rows * d)).for_each(|(ids, x)| {
        for (&id, x) in ids.iter().zip(x.chunks_exact_mut(d)) {
            x.copy_from_slice(&table_VD[id as usize * d..][..d]);
        }
    });
}

/// `dtable_VD[ids[t]] += dx_TD[t]`, for every t in order.
///
/// # Panics
/// As [`forward`].
pub fn backward(ids: &[u32], dx_TD: &[f32], dtable_VD: &mut [f32], d: usize) {
    check(ids, dx_TD.len(), dtable_VD.len(), d);
    let vocabulary = dtable_VD.len() / d;
    assert!(ids.iter().all(|&id| (id as usize) < vocabulary), "a token id is not below {vocabulary}");
    // Each thread owns a band of the table and looks for its ids among all of them: reading T ids again costs less
    // than sorting them, and no band is ever written by two threads.
    let band = vocabulary.div_ceil(rayon::current_num_threads());
    dtable_VD.par_chunks_mut(band * d).enumerate().for_each(|(i, dtable)| {
        for (&id, dx) in ids.iter().zip(dx_TD.chunks_exact(d)) {
            if let Some(row) = (id as usize).checked_sub(i * band).filter(|&row| row < dtable.len() / d) {
                dtable[row * d..][..d].iter_mut().zip(dx).for_each(|(g, &dx)| *g += dx);
            }
        }
    });
}

fn check(ids: &[u32], x: usize, table: usize, d: usize) {
    assert!(d > 0, "a token has at least one feature");
    assert_eq!(x, ids.len() * d, "x is not one row of {d} for each of {} ids", ids.len());
    assert!(table > 0 && table.is_multiple_of(d), "{table} elements of the table are not rows of {d}");
}
