//! Backward pass: probabilities are recomputed from the saved logarithm of the softmax denominator.

use rayon::prelude::*;

use super::{
    super::{
        Layout, Saved, Shape,
        tile::{self, Lane, PANEL, STRIP, Tile},
    },
    KEY_BLOCK, QUERY_BLOCK,
};
use crate::{
    passes::vectorised,
    simd::{self, dot},
};

/// One key/value head of one document.
struct Task<'a> {
    start: usize,
    kv_head: usize,
    /// Columns of its query heads, its key head and its value head, of every row.
    rows: Vec<[&'a mut [f32]; 3]>,
}

/// Buffers that a thread uses for one task after another.
#[derive(Default)]
struct Scratch {
    /// Keys and values of the document: transposed for scores, keys also straight for the gradient of queries.
    keys_transposed: Vec<Lane>,
    values_transposed: Vec<Lane>,
    keys: Vec<Lane>,
    /// Queries and output gradients of a query block.
    queries: Vec<Lane>,
    dout: Vec<Lane>,
    /// `dout·out` of a query block's rows.
    delta: Vec<f32>,
    /// Probabilities and their scores' gradients, `QUERY_BLOCK × KEY_BLOCK`.
    probs: Vec<Lane>,
    dscores: Vec<Lane>,
    /// Gradients: of a query block, and of all keys and values of the document. Rows of `⌈K/16⌉` lanes.
    dquery: Vec<Lane>,
    dkey: Vec<Lane>,
    dvalue: Vec<Lane>,
}

/// What a task reads.
#[derive(Clone, Copy)]
struct Operands<'a> {
    dout_T: &'a [f32],
    saved: Saved<'a>,
    shape: Shape,
    tokens: usize,
    /// First token and number of tokens of the document.
    start: usize,
    n: usize,
    /// Query head.
    head: usize,
}

impl<'a> Operands<'a> {
    /// `K` elements at `offset` of the document's token `i` in a matrix with rows of `width`.
    #[inline(always)]
    fn columns(&self, matrix: &'a [f32], width: usize, i: usize, offset: usize) -> &'a [f32] {
        &matrix[(self.start + i) * width + offset..][..self.shape.head_dim]
    }

    #[inline(always)]
    fn packed(&self, i: usize, offset: usize) -> &'a [f32] {
        self.columns(self.saved.qkv_TQ, self.shape.packed(), i, offset)
    }

    #[inline(always)]
    fn query(&self, i: usize) -> &'a [f32] {
        self.packed(i, self.head * self.shape.head_dim)
    }

    #[inline(always)]
    fn dout(&self, i: usize) -> &'a [f32] {
        self.columns(self.dout_T, self.shape.out(), i, self.head * self.shape.head_dim)
    }

    #[inline(always)]
    fn out(&self, i: usize) -> &'a [f32] {
        self.columns(self.saved.out_T, self.shape.out(), i, self.head * self.shape.head_dim)
    }

    #[inline(always)]
    fn lse(&self, i: usize) -> f32 {
        self.saved.lse_HT[self.head * self.tokens + self.start + i]
    }
}

pub(in super::super) fn run(dout_T: &[f32], saved: Saved, layout: Layout, shape: Shape, dqkv_TQ: &mut [f32]) {
    let mut tasks = split(layout, shape, dqkv_TQ);
    // The longest first, so that no thread is left alone with a long one; threads take the next as they finish.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.rows.len()));
    let tokens = layout.tokens();
    tasks.into_iter().par_bridge().for_each_init(Scratch::default, |scratch, mut task| {
        let (start, n, head) = (task.start, task.rows.len(), task.kv_head * shape.group());
        let operands = Operands { dout_T, saved, shape, tokens, start, n, head };
        vectorised(
            #[inline(always)]
            || document(operands, &mut task, scratch),
        );
    });
}

fn split<'a>(layout: Layout, shape: Shape, dqkv_TQ: &'a mut [f32]) -> Vec<Task<'a>> {
    let (k, mut rows, mut tasks) = (shape.head_dim, dqkv_TQ.chunks_exact_mut(shape.packed()), Vec::new());
    for (start, len) in layout.documents() {
        let first = tasks.len();
        tasks.extend((0..shape.kv_heads).map(|kv_head| Task {
            start,
            kv_head,
            rows: Vec::with_capacity(len),
        }));
        for row in rows.by_ref().take(len) {
            let (dq, dkv) = row.split_at_mut(shape.out());
            let (dk, dv) = dkv.split_at_mut(shape.kv_heads * k);
            let heads = dq
                .chunks_exact_mut(shape.group() * k)
                .zip(dk.chunks_exact_mut(k))
                .zip(dv.chunks_exact_mut(k));
            for (task, ((dq, dk), dv)) in tasks[first..].iter_mut().zip(heads) {
                task.rows.push([dq, dk, dv]);
            }
        }
    }
    tasks
}

#[inline(always)]
fn document(mut op: Operands, task: &mut Task, scratch: &mut Scratch) {
    let (shape, k, n) = (op.shape, op.shape.head_dim, op.n);
    let (key, value) = (shape.key(task.kv_head), shape.value(task.kv_head));
    tile::pack_transposed(&mut scratch.keys_transposed, (0..n).map(|j| op.packed(j, key)), k);
    tile::pack_transposed(&mut scratch.values_transposed, (0..n).map(|j| op.packed(j, value)), k);
    tile::pack(&mut scratch.keys, (0..n).map(|j| op.packed(j, key)), k);
    let panels = k.div_ceil(PANEL);
    tile::reset(&mut scratch.dkey, n.next_multiple_of(STRIP) * panels);
    tile::reset(&mut scratch.dvalue, n.next_multiple_of(STRIP) * panels);
    let first_head = op.head;
    for h in 0..shape.group() {
        op.head = first_head + h;
        for first in (0..n).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(n - first);
            query_block(op, first, rows, scratch);
            for i in 0..rows {
                write_row(
                    &mut task.rows[first + i][0][h * k..][..k],
                    &scratch.dquery[i * panels..][..panels],
                );
            }
        }
    }
    for (j, [_, dkey, dvalue]) in task.rows.iter_mut().enumerate() {
        write_row(dkey, &scratch.dkey[j * panels..][..panels]);
        write_row(dvalue, &scratch.dvalue[j * panels..][..panels]);
    }
}

#[inline(always)]
fn write_row(row: &mut [f32], lanes: &[Lane]) {
    row.copy_from_slice(&lanes.as_flattened()[..row.len()]);
}

/// Leaves the gradient of queries `first..first + rows` in `scratch.dquery`; adds to the gradients of keys and values.
#[inline(always)]
fn query_block(op: Operands, first: usize, rows: usize, scratch: &mut Scratch) {
    let (k, padded) = (op.shape.head_dim, rows.next_multiple_of(STRIP));
    let block = first..first + rows;
    tile::pack(&mut scratch.queries, block.clone().map(|i| op.query(i)), k);
    tile::pack(&mut scratch.dout, block.clone().map(|i| op.dout(i)), k);
    tile::reset(&mut scratch.dquery, padded * k.div_ceil(PANEL));
    scratch.delta.clear();
    for i in block {
        scratch.delta.push(dot(op.dout(i), op.out(i)));
    }
    scratch.probs.resize(QUERY_BLOCK * KEY_BLOCK / PANEL, [0.0; PANEL]);
    scratch.dscores.resize(QUERY_BLOCK * KEY_BLOCK / PANEL, [0.0; PANEL]);
    for key in (0..first + rows).step_by(KEY_BLOCK) {
        for strip in (0..rows).step_by(STRIP) {
            // keys of this block that the last query of the strip sees
            let end = (first + strip + STRIP).min(op.n).min(key + KEY_BLOCK);
            if key < end {
                score_gradients(op, first, strip, rows, key, end, scratch);
                query_gradients(op, strip, key, end, scratch);
            }
        }
        key_value_gradients(op, first, rows, key, scratch);
    }
}

/// Probabilities of a strip of queries and keys `key..end`, and the gradient of their scores; zero where a query does
/// not see a key.
#[inline(always)]
fn score_gradients(
    op: Operands,
    first: usize,
    strip: usize,
    rows: usize,
    key: usize,
    end: usize,
    scratch: &mut Scratch,
) {
    let (k, scale) = (op.shape.head_dim, op.shape.scale());
    // Rows behind the last query repeat it; nothing reads what they yield.
    let strip_rows: [usize; STRIP] = std::array::from_fn(|r| (strip + r).min(rows - 1));
    let (mut queries, mut douts) = ([&[][..]; STRIP], [&[][..]; STRIP]);
    for (r, &i) in strip_rows.iter().enumerate() {
        (queries[r], douts[r]) = (op.query(first + i), op.dout(first + i));
    }
    for panel in key / PANEL..end.div_ceil(PANEL) {
        let scores = tile::rows_by_panel(queries, &scratch.keys_transposed[panel * k..][..k]);
        let dprobs = tile::rows_by_panel(douts, &scratch.values_transposed[panel * k..][..k]);
        for (r, &i) in strip_rows.iter().enumerate() {
            let (lse, delta) = (op.lse(first + i), scratch.delta[i]);
            let at = (strip + r) * (KEY_BLOCK / PANEL) + panel - key / PANEL;
            let (p, ds) = (&mut scratch.probs[at], &mut scratch.dscores[at]);
            let seen = (first + strip + r + 1).saturating_sub(panel * PANEL).min(PANEL) as i32;
            for (c, column) in (0..PANEL).zip(0i32..) {
                let prob = simd::exp(scores[r][c].mul_add(scale, -lse));
                p[c] = if column < seen { prob } else { 0.0 };
                ds[c] = p[c] * (dprobs[r][c] - delta) * scale;
            }
        }
    }
}

/// Adds `dscores · keys[key..end]` to the strip's gradient.
#[inline(always)]
fn query_gradients(op: Operands, strip: usize, key: usize, end: usize, scratch: &mut Scratch) {
    let panels = op.shape.head_dim.div_ceil(PANEL);
    let dscores = scratch.dscores.as_flattened();
    let dscores = tile::strip(&dscores[strip * KEY_BLOCK..], KEY_BLOCK);
    for panel in 0..panels {
        let tile = tile::rows_by_panel(dscores, &scratch.keys[panel * op.n + key..][..end - key]);
        add_tile(&mut scratch.dquery, strip, panels, panel, &tile);
    }
}

/// Adds the block's `probsᵀ · dout` and `dscoresᵀ · queries` to the gradients of its values and keys.
#[inline(always)]
fn key_value_gradients(op: Operands, first: usize, rows: usize, key: usize, scratch: &mut Scratch) {
    let panels = op.shape.head_dim.div_ceil(PANEL);
    for column in (0..KEY_BLOCK.min(first + rows - key)).step_by(STRIP) {
        // queries of this block that see the first key of the strip
        let from = (key + column).saturating_sub(first);
        let at = from * KEY_BLOCK + column;
        for panel in 0..panels {
            let lanes = panel * rows + from..(panel + 1) * rows;
            let probs = &scratch.probs.as_flattened()[at..];
            let tile = tile::columns_by_panel(probs, KEY_BLOCK, &scratch.dout[lanes.clone()]);
            add_tile(&mut scratch.dvalue, key + column, panels, panel, &tile);
            let dscores = &scratch.dscores.as_flattened()[at..];
            let tile = tile::columns_by_panel(dscores, KEY_BLOCK, &scratch.queries[lanes]);
            add_tile(&mut scratch.dkey, key + column, panels, panel, &tile);
        }
    }
}

#[inline(always)]
fn add_tile(dst: &mut [Lane], row: usize, panels: usize, panel: usize, tile: &Tile) {
    for (r, lane) in tile.iter().enumerate() {
        let dst = &mut dst[(row + r) * panels + panel];
        for (d, &x) in dst.iter_mut().zip(lane) {
            *d += x;
        }
    }
}
