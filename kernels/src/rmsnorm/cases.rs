//! Named shapes for tests and benches.

use super::Shape;

/// A named shape.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// Extent.
    pub shape: Shape,
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Bytes that a one-pass `add_forward` reads and writes: residual, delta, sum, y.
    pub fn forward_bytes(&self) -> u64 {
        16 * self.shape.elements() as u64
    }

    /// Bytes that a one-pass `backward` (overwriting) reads and writes: dy, x, dx.
    pub fn backward_bytes(&self) -> u64 {
        12 * self.shape.elements() as u64
    }
}

const fn case(name: &'static str, tokens: usize, hidden: usize, seed: u64) -> Case {
    Case { name, shape: Shape { tokens, hidden }, seed }
}

/// Small and odd, for tests against the oracle: one token, one column, lengths off every vector width, more rows
/// than a task has.
pub const TESTS: [Case; 6] = [
    case("one_token", 1, 192, 1),
    case("one_column", 3, 1, 2),
    case("odd", 7, 37, 3),
    case("vector_multiple", 5, 64, 4),
    case("wide", 3, 1027, 5),
    case("many_tasks", 2500, 33, 6),
];

/// For benches: the repository's tiny model and a Qwen2.5-0.5B row length.
pub const BENCHES: [Case; 2] = [case("1024x192", 1024, 192, 1), case("4096x896", 4096, 896, 2)];
