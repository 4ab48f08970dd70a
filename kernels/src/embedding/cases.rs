//! Named shapes for tests and benches.

use super::cuda::Shape;
use crate::cases::{Workload, values};

/// A named shape.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// T.
    pub tokens: usize,
    /// V.
    pub vocabulary: usize,
    /// D.
    pub hidden: usize,
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Bytes that `forward` reads and writes: ids, rows of the table, x.
    pub fn forward_bytes(&self) -> u64 {
        forward_bytes(self.tokens, self.tokens, self.hidden, 4)
    }

    /// Bytes that `backward` reads and writes: ids, dx, rows of the table twice.
    pub fn backward_bytes(&self) -> u64 {
        backward_bytes(self.tokens, self.tokens, self.hidden, 4)
    }
}

const fn case(name: &'static str, tokens: usize, vocabulary: usize, hidden: usize, seed: u64) -> Case {
    Case { name, tokens, vocabulary, hidden, seed }
}

/// Small and odd, for tests: every token the same, more tasks than one, no vector multiple.
pub const TESTS: [Case; 4] = [
    case("one_token", 1, 7, 5, 1),
    case("one_id", 33, 1, 3, 2),
    case("odd", 101, 13, 37, 3),
    case("many_tasks", 1500, 50, 64, 4),
];

/// For benches: the repository's tiny model.
pub const BENCHES: [Case; 2] = [case("1024x192", 1024, 4096, 192, 1), case("4096x192", 4096, 4096, 192, 2)];

/// Ids, x, and each of the `distinct` rows of the table once.
pub fn forward_bytes(tokens: usize, distinct: usize, hidden: usize, element: usize) -> u64 {
    (4 * tokens + element * (tokens + distinct) * hidden) as u64
}

/// Ids, dx, and each of the `distinct` rows of the table's gradient, f32, read and written.
pub fn backward_bytes(tokens: usize, distinct: usize, hidden: usize, element: usize) -> u64 {
    (4 * tokens + (element * tokens + 8 * distinct) * hidden) as u64
}

/// For GPU benches: Qwen2.5-0.5B's vocabulary and width.
pub const GPU: [Shape; 2] = [
    Shape { tokens: 16_384, vocabulary: 151_936, hidden: 896 },
    Shape { tokens: 65_536, vocabulary: 151_936, hidden: 896 },
];

/// Ids that fall off as words do: a few are a large part of all.
pub fn ids(shape: Shape) -> Vec<u32> {
    let top = (shape.vocabulary as f32).ln();
    values(1, shape.tokens)
        .into_iter()
        .map(|v| ((v.abs() * top).exp() as u32).min(shape.vocabulary as u32) - 1)
        .collect()
}

/// An operation on bf16 at a shape, for [`ids`].
pub fn workload(op: &'static str, shape: Shape) -> Workload {
    let Shape { tokens, vocabulary, hidden } = shape;
    let mut distinct = ids(shape);
    distinct.sort_unstable();
    distinct.dedup();
    let bytes = if op == "embedding_forward" { forward_bytes } else { backward_bytes };
    Workload {
        op,
        case: format!("{tokens}x{hidden}"),
        dims: vec![("tokens", tokens), ("vocab", vocabulary), ("hidden", hidden)],
        documents: Vec::new(),
        bytes: bytes(tokens, distinct.len(), hidden, 2),
        flops: 0,
    }
}

/// Every operation at every shape of [`GPU`].
pub fn workloads() -> Vec<Workload> {
    GPU.iter().flat_map(|s| ["embedding_forward", "embedding_backward"].map(|op| workload(op, *s))).collect()
}
