//! Named shapes for tests and benches.

use super::{Layout, Shape};

/// A named shape.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// Extent of a packed row.
    pub shape: Shape,
    /// Lengths of the documents of every row; each row has the same number of slots.
    pub documents: &'static [&'static [u32]],
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Document boundaries.
    pub fn cu_seqlens(&self) -> Vec<u32> {
        super::cu_seqlens(&self.documents.concat())
    }

    /// The layout over [`cu_seqlens`](Self::cu_seqlens).
    pub fn layout<'a>(&self, cu_seqlens: &'a [u32]) -> Layout<'a> {
        let slots = self.documents[0].iter().sum::<u32>() as usize;
        Layout { cu_seqlens, rows: self.documents.len(), row_slots: slots }
    }

    /// Floating-point operations of the forward's two products over the scores that the mask leaves.
    pub fn forward_flops(&self) -> u64 {
        let pairs: u64 =
            self.documents.iter().copied().flatten().map(|&n| u64::from(n) * (u64::from(n) + 1) / 2).sum();
        4 * pairs * self.shape.out() as u64
    }

    /// Floating-point operations of the backward's five products.
    pub fn backward_flops(&self) -> u64 {
        self.forward_flops() / 2 * 5
    }
}

const fn case(
    name: &'static str,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    documents: &'static [&'static [u32]],
    seed: u64,
) -> Case {
    Case { name, shape: Shape { heads, kv_heads, head_dim }, documents, seed }
}

/// Small and odd, for tests against the oracle: lengths around strips, panels and blocks, single tokens, empty
/// documents.
pub const TESTS: [Case; 7] = [
    case("one_token", (6, 2, 32), &[&[1]], 1),
    case("odd", (3, 1, 5), &[&[7, 1, 3]], 2),
    case("panel_edges", (2, 2, 16), &[&[15, 16, 17, 6, 5]], 3),
    case("rows_and_padding", (4, 2, 8), &[&[9, 0, 11, 4], &[20, 4], &[24]], 4),
    case("block_edges", (2, 1, 4), &[&[95, 96, 97]], 5),
    case("many_blocks", (4, 2, 20), &[&[300, 12]], 6),
    case("head_dim_128", (2, 1, 128), &[&[40]], 7),
];

/// For benches: packed rows of the repository's tiny model, the same without packing, and the heads of Qwen2.5-0.5B.
pub const BENCHES: [Case; 3] = [
    case("1024x6/2x32/packed", (6, 2, 32), &[&[200, 130, 90, 60, 32], &[160, 150, 120, 62, 20]], 1),
    case("1024x6/2x32/one", (6, 2, 32), &[&[1024]], 2),
    case("2048x14/2x64/rows", (14, 2, 64), &[&[512], &[512], &[512], &[512]], 3),
];
