//! Forward pass.

use rayon::prelude::*;

use super::{
    super::{
        Layout, Shape,
        tile::{self, Lane, PANEL, STRIP},
    },
    KEY_BLOCK, QUERY_BLOCK,
};
use crate::{passes::vectorised, simd};

/// One key/value head of one document.
struct Task<'a> {
    start: usize,
    kv_head: usize,
    /// Its query heads' columns of every row of the output.
    out: Vec<&'a mut [f32]>,
    /// Its tokens' part of every query head's row.
    lse: Vec<&'a mut [f32]>,
}

/// Buffers that a thread uses for one task after another.
#[derive(Default)]
struct Scratch {
    /// Keys, transposed.
    keys: Vec<Lane>,
    values: Vec<Lane>,
    /// `exp(score − maximum)` of a strip of queries and a key block.
    probs: Vec<f32>,
    /// Sum of a query block's rows so far, `QUERY_BLOCK × ⌈K/16⌉` lanes.
    out: Vec<Lane>,
    /// Maximum of the scaled scores of a row so far.
    maximum: Vec<f32>,
    /// Sum of a row's `exp(score − maximum)` so far.
    sum: Vec<f32>,
}

pub(in super::super) fn run(
    qkv_TQ: &[f32],
    layout: Layout,
    shape: Shape,
    out_T: &mut [f32],
    lse_HT: &mut [f32],
) {
    let mut tasks = split(layout, shape, out_T, lse_HT);
    // The longest first, so that no thread is left alone with a long one; threads take the next as they finish.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.out.len()));
    tasks.into_iter().par_bridge().for_each_init(Scratch::default, |scratch, mut task| {
        vectorised(
            #[inline(always)]
            || document(qkv_TQ, shape, &mut task, scratch),
        );
    });
}

fn split<'a>(layout: Layout, shape: Shape, out_T: &'a mut [f32], lse_HT: &'a mut [f32]) -> Vec<Task<'a>> {
    let mut out_rows = out_T.chunks_exact_mut(shape.out());
    let mut lse_rows: Vec<&mut [f32]> = lse_HT.chunks_exact_mut(layout.tokens()).collect();
    let mut tasks = Vec::new();
    for (start, len) in layout.documents() {
        let first = tasks.len();
        for (kv_head, heads) in lse_rows.chunks_exact_mut(shape.group()).enumerate() {
            let lse = heads.iter_mut().map(|row| row.split_off_mut(..len).expect("T slots a head")).collect();
            tasks.push(Task { start, kv_head, out: Vec::with_capacity(len), lse });
        }
        for row in out_rows.by_ref().take(len) {
            let heads = row.chunks_exact_mut(shape.group() * shape.head_dim);
            tasks[first..].iter_mut().zip(heads).for_each(|(task, heads)| task.out.push(heads));
        }
    }
    tasks
}

#[inline(always)]
fn document(qkv_TQ: &[f32], shape: Shape, task: &mut Task, scratch: &mut Scratch) {
    let (start, q, k, n) = (task.start, shape.packed(), shape.head_dim, task.out.len());
    let column = |offset: usize| (0..n).map(move |i| &qkv_TQ[(start + i) * q + offset..][..k]);
    tile::pack_transposed(&mut scratch.keys, column(shape.key(task.kv_head)), k);
    tile::pack(&mut scratch.values, column(shape.value(task.kv_head)), k);
    for (h, lse) in task.lse.iter_mut().enumerate() {
        let head = (task.kv_head * shape.group() + h) * k;
        let query = |i: usize| &qkv_TQ[(start + i.min(n - 1)) * q + head..][..k];
        for first in (0..n).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(n - first);
            query_block(query, first, rows, n, shape, scratch);
            let panels = k.div_ceil(PANEL);
            for i in 0..rows {
                lse[first + i] = scratch.maximum[i] + scratch.sum[i].ln();
                let (norm, out) = (1.0 / scratch.sum[i], &mut task.out[first + i][h * k..][..k]);
                let sums = scratch.out[i * panels..][..panels].as_flattened();
                for (o, &s) in out.iter_mut().zip(sums) {
                    *o = s * norm;
                }
            }
        }
    }
}

/// Leaves sums, maxima and unnormalised outputs of queries `first..first + rows` in `scratch`.
#[inline(always)]
fn query_block<'a>(
    query: impl Fn(usize) -> &'a [f32],
    first: usize,
    rows: usize,
    n: usize,
    shape: Shape,
    scratch: &mut Scratch,
) {
    let padded = rows.next_multiple_of(STRIP);
    tile::reset(&mut scratch.out, padded * shape.head_dim.div_ceil(PANEL));
    tile::reset(&mut scratch.sum, padded);
    tile::reset(&mut scratch.maximum, padded);
    scratch.maximum.fill(f32::NEG_INFINITY);
    scratch.probs.resize(STRIP * KEY_BLOCK, 0.0);
    for key in (0..first + rows).step_by(KEY_BLOCK) {
        for strip in (0..rows).step_by(STRIP) {
            // keys of this block that the last query of the strip sees
            let end = (first + strip + STRIP).min(n).min(key + KEY_BLOCK);
            if key < end {
                scores(&query, first + strip, key, end, shape, scratch);
                softmax(first + strip, strip, key, end, shape, scratch);
                add_values(strip, key, end, n, shape, scratch);
            }
        }
    }
}

/// `q·k` of a strip of queries and keys `key..end`, into `scratch.probs`.
#[inline(always)]
fn scores<'a>(
    query: &impl Fn(usize) -> &'a [f32],
    first: usize,
    key: usize,
    end: usize,
    shape: Shape,
    scratch: &mut Scratch,
) {
    let k = shape.head_dim;
    let mut queries = [&[][..]; STRIP];
    for (r, row) in queries.iter_mut().enumerate() {
        *row = query(first + r);
    }
    for panel in key / PANEL..end.div_ceil(PANEL) {
        let tile = tile::rows_by_panel(queries, &scratch.keys[panel * k..][..k]);
        for (r, lane) in tile.iter().enumerate() {
            scratch.probs[r * KEY_BLOCK + panel * PANEL - key..][..PANEL].copy_from_slice(lane);
        }
    }
}

/// Turns scores into `exp(score − maximum)`, zero where a query does not see a key; moves the maxima and rescales what
/// was summed under the old ones.
#[inline(always)]
fn softmax(query: usize, strip: usize, key: usize, end: usize, shape: Shape, scratch: &mut Scratch) {
    let (scale, panels) = (shape.scale(), shape.head_dim.div_ceil(PANEL));
    for r in 0..STRIP {
        let row = &mut scratch.probs[r * KEY_BLOCK..][..(end - key).next_multiple_of(PANEL)];
        let seen = (query + r + 1).saturating_sub(key).min(end - key);
        row[seen..].fill(f32::NEG_INFINITY);
        let (old, block) = (scratch.maximum[strip + r], maximum(row) * scale);
        if block > old {
            let rescale = simd::exp(old - block);
            scratch.maximum[strip + r] = block;
            scratch.sum[strip + r] *= rescale;
            let out = &mut scratch.out[(strip + r) * panels..][..panels];
            for o in out.as_flattened_mut() {
                *o *= rescale;
            }
        }
        scratch.sum[strip + r] += exponentials(row, scale, scratch.maximum[strip + r]);
    }
}

/// Largest element of whole lanes; NaN is passed over.
#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; PANEL];
    for lane in row.as_chunks::<PANEL>().0 {
        for (m, &x) in max.iter_mut().zip(lane) {
            *m = if x > *m { x } else { *m };
        }
    }
    tile::fold(max, |a, b| if a > b { a } else { b })
}

/// `row = exp(row·scale − maximum)` of whole lanes; returns its sum.
#[inline(always)]
fn exponentials(row: &mut [f32], scale: f32, maximum: f32) -> f32 {
    let mut sum = [0.0; PANEL];
    for lane in row.as_chunks_mut::<PANEL>().0 {
        for (x, s) in lane.iter_mut().zip(&mut sum) {
            *x = simd::exp(x.mul_add(scale, -maximum));
            *s += *x;
        }
    }
    tile::fold(sum, |a, b| a + b)
}

/// Adds `probs · values[key..end]` to the strip's output.
#[inline(always)]
fn add_values(strip: usize, key: usize, end: usize, n: usize, shape: Shape, scratch: &mut Scratch) {
    let panels = shape.head_dim.div_ceil(PANEL);
    let probs = tile::strip(&scratch.probs, KEY_BLOCK);
    for panel in 0..panels {
        let tile = tile::rows_by_panel(probs, &scratch.values[panel * n + key..][..end - key]);
        for (r, lane) in tile.iter().enumerate() {
            let out = &mut scratch.out[(strip + r) * panels + panel];
            for (o, &x) in out.iter_mut().zip(lane) {
                *o += x;
            }
        }
    }
}
