//! Named shapes for tests and benches.

use super::Shape;
use crate::cases::Workload;

/// A named shape.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// Extents.
    pub shape: Shape,
    /// Every n-th label is ignored; 0 for none.
    pub ignore_every: usize,
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Labels: reproducible, all over the vocabulary, with the case's share of ignored rows.
    pub fn labels(&self) -> Vec<i32> {
        let label = |t: usize| match self.ignore_every {
            n if n > 0 && t.is_multiple_of(n) => super::IGNORE_INDEX,
            _ => ((t * 7919 + self.seed as usize) % self.shape.vocab) as i32,
        };
        (0..self.shape.tokens).map(label).collect()
    }

    /// Floating-point operations of the three products over the rows with a loss.
    pub fn flops(&self) -> u64 {
        let rows = self.labels().iter().filter(|y| **y != super::IGNORE_INDEX).count();
        6 * (rows * self.shape.hidden * self.shape.vocab) as u64
    }

    /// Bytes that must move whatever the algorithm: x, W and both gradients.
    pub fn bytes(&self) -> u64 {
        8 * ((self.shape.tokens + self.shape.vocab) * self.shape.hidden) as u64
    }
}

const fn case(
    name: &'static str,
    [tokens, hidden, vocab]: [usize; 3],
    ignore_every: usize,
    seed: u64,
) -> Case {
    Case { name, shape: Shape { tokens, hidden, vocab }, ignore_every, seed }
}

/// Small and odd, for tests: one row, nothing but ignored rows, one token of vocabulary, several blocks of logits and
/// several chunks of rows.
pub const TESTS: [Case; 6] = [
    case("one_row", [1, 5, 11], 0, 1),
    case("odd", [9, 7, 13], 3, 2),
    case("all_ignored", [4, 6, 9], 1, 3),
    case("one_token_of_vocabulary", [3, 4, 1], 0, 4),
    case("blocks", [5, 3, 4500], 2, 5),
    case("chunks", [400, 4, 9000], 4, 6),
];

/// For benches: the repository's tiny model, every row with a loss and a quarter without.
pub const BENCHES: [Case; 2] =
    [case("1024x192x4096", [1024, 192, 4096], 0, 1), case("2048x192x4096_ignored", [2048, 192, 4096], 4, 2)];

/// x and dx, W, and its f32 gradient read and written.
fn gpu_bytes(shape: Shape) -> u64 {
    let Shape { tokens, hidden, vocab } = shape;
    (2 * 2 * tokens * hidden + 2 * vocab * hidden + 8 * vocab * hidden) as u64
}

/// For GPU benches: Qwen2.5-0.5B's head over 16k tokens.
pub const GPU: [Shape; 1] = [Shape { tokens: 16_384, hidden: 896, vocab: 151_936 }];

/// Rows of logits at a time in the GPU benches.
pub const CHUNKS: [usize; 3] = [2048, 4096, 8192];

fn dims(shape: Shape) -> Vec<(&'static str, usize)> {
    vec![("tokens", shape.tokens), ("hidden", shape.hidden), ("vocab", shape.vocab)]
}

/// The three products of bf16 alone, on the whole batch.
pub fn products(shape: Shape) -> Workload {
    let Shape { tokens, hidden, vocab } = shape;
    Workload {
        op: "linear_ce_products",
        case: format!("{tokens}x{hidden}x{vocab}"),
        dims: dims(shape),
        documents: Vec::new(),
        bytes: gpu_bytes(shape),
        flops: 6 * (tokens * hidden * vocab) as u64,
    }
}

/// The pass between the products, over a chunk's logits, which it reads and writes.
pub fn rows(shape: Shape, chunk: usize) -> Workload {
    let vocab = shape.vocab;
    Workload {
        op: "linear_ce_rows",
        case: format!("{chunk}x{vocab}"),
        dims: vec![("rows", chunk), ("vocab", vocab)],
        documents: Vec::new(),
        bytes: (4 * chunk * vocab) as u64,
        flops: 0,
    }
}

/// Loss and gradients, in chunks of so many rows.
pub fn whole(shape: Shape, chunk: usize) -> Workload {
    let products = products(shape);
    let mut dims = dims(shape);
    dims.push(("chunk", chunk));
    Workload { op: "linear_ce", case: format!("{} by {chunk}", products.case), dims, ..products }
}

/// Loss and gradients on the logits of all rows at once.
pub fn unchunked(shape: Shape) -> Workload {
    Workload { op: "linear_ce", ..products(shape) }
}

/// Every operation at every shape of [`GPU`] and every chunk.
pub fn workloads() -> Vec<Workload> {
    let of_shape = |s: &Shape| {
        let s = *s;
        let chunked = CHUNKS.into_iter().flat_map(move |c| [rows(s, c), whole(s, c)]);
        std::iter::once(products(s)).chain(chunked).chain([unchunked(s)])
    };
    GPU.iter().flat_map(of_shape).collect()
}
