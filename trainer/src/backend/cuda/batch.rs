//! A micro-batch as the kernels read it.

use chronicals_data::batch::{Batch, Geometry, IGNORE_INDEX};
use chronicals_kernels::{
    Seam, attention::cuda as attention, embedding::cuda as embedding, gpu::le_bytes,
    linear_ce::cuda as linear_ce,
};

use super::extents::{BatchLayout, Extents};

/// Extents of the current batch, as its launches have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub tokens: usize,
    /// Rows with a loss, padded.
    pub rows: usize,
    /// Slots of a row of eager attention; 0 where nothing depends on it.
    pub row_slots: usize,
    /// Rows with a loss.
    pub loss_tokens: usize,
    /// Pairs of a query and a key that attention's mask leaves: half of each document's square.
    pub pairs: u64,
}

/// Extents of a batch of such a geometry, whatever its documents.
pub(super) fn extents(of: Geometry, e: &Extents) -> Shape {
    let (tokens, rows) = e.bucketed(of.slots, of.loss_tokens);
    let row_slots = if e.is_eager(Seam::Attention) { of.row_slots } else { 0 };
    Shape { tokens, rows, row_slots, loss_tokens: of.loss_tokens, pairs: 0 }
}

/// Extents of a batch.
pub(super) fn shape(batch: &Batch, e: &Extents) -> Shape {
    let shape = extents(batch.geometry(), e);
    let padding = (shape.tokens - batch.ids.len()) as u64;
    let lengths = batch.cu_seqlens.array_windows().map(|[a, b]| u64::from(b - a));
    let pairs = lengths.chain([padding]).map(|n| n * n / 2).sum();
    Shape { pairs, ..shape }
}

/// A batch of extents [`shape`], to the beginning of a block that is laid out as `layout`. Tokens are padded by a document of their own, without a loss.
pub(super) fn encode(
    batch: &Batch,
    Shape { tokens, rows, .. }: Shape,
    e: &Extents,
    layout: &BatchLayout,
    trains_table: bool,
    block: &mut [u8],
) {
    let padded = padded(batch, tokens);
    let bytes = &mut block[..layout.bytes];
    bytes.fill(0);
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(layout.ids, &le_bytes(&embedding::checked(&padded.ids, e.dims.vocab), i32::to_le_bytes));
    put(layout.positions, &le_bytes(&padded.positions, u32::to_le_bytes));
    let labels = linear_ce::index(&padded.labels, &e.loss_plan(tokens, rows));
    put(layout.labels, &le_bytes(&labels, i32::to_le_bytes));
    put(layout.documents, &le_bytes(&attention::documents(&padded.cu_seqlens), u32::to_le_bytes));
    if trains_table {
        put(layout.order, &le_bytes(&embedding::index(&padded.ids, e.dims.vocab), i32::to_le_bytes));
    }
}

fn padded(batch: &Batch, tokens: usize) -> Batch {
    let mut b = batch.clone();
    if b.ids.len() < tokens {
        b.ids.resize(tokens, 0);
        b.labels.resize(tokens, IGNORE_INDEX);
        // Nobody reads what is computed there; any position inside the tables will do.
        b.positions.resize(tokens, 0);
        b.cu_seqlens.push(tokens as u32);
    }
    b
}
