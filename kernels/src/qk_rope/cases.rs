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
    /// Bytes that one pass in place reads and writes, without QK-norm.
    pub fn bytes(&self) -> u64 {
        8 * (self.shape.tokens * self.shape.packed()) as u64
    }
}

const fn case(
    name: &'static str,
    (tokens, heads, kv_heads, head_dim): (usize, usize, usize, usize),
    seed: u64,
) -> Case {
    Case { name, shape: Shape { tokens, heads, kv_heads, head_dim }, seed }
}

/// Small and odd, for tests against the oracle.
pub const TESTS: [Case; 5] = [
    case("one_token", (1, 6, 2, 32), 1),
    case("one_frequency", (3, 2, 1, 2), 2),
    case("odd", (5, 3, 1, 6), 3),
    case("equal_heads", (7, 2, 2, 10), 4),
    case("many_tasks", (700, 2, 1, 34), 5),
];

/// For benches: the repository's tiny model and the heads of Qwen2.5-0.5B.
pub const BENCHES: [Case; 2] =
    [case("1024x6/2x32", (1024, 6, 2, 32), 1), case("4096x14/2x64", (4096, 14, 2, 64), 2)];
