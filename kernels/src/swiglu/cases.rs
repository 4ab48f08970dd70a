//! Named shapes for tests and benches.

/// A named shape.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// Rows `T`.
    pub tokens: usize,
    /// Activations `F` of a row.
    pub ffn: usize,
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Bytes that a one-pass forward reads and writes: gate, up, act.
    pub fn forward_bytes(&self) -> u64 {
        12 * (self.tokens * self.ffn) as u64
    }

    /// Bytes that a one-pass backward reads and writes: gate, up, dact, dgate, dup.
    pub fn backward_bytes(&self) -> u64 {
        20 * (self.tokens * self.ffn) as u64
    }
}

const fn case(name: &'static str, tokens: usize, ffn: usize, seed: u64) -> Case {
    Case { name, tokens, ffn, seed }
}

/// Small and odd, for tests against the oracle.
pub const TESTS: [Case; 5] = [
    case("one_token", 1, 512, 1),
    case("one_column", 3, 1, 2),
    case("odd", 7, 37, 3),
    case("vector_multiple", 4, 64, 4),
    case("many_tasks", 1200, 45, 5),
];

/// For benches: the repository's tiny model and a Qwen2.5-0.5B row length.
pub const BENCHES: [Case; 2] = [case("1024x512", 1024, 512, 1), case("2048x4864", 2048, 4864, 2)];
