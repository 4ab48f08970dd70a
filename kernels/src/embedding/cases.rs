//! Named shapes for tests and benches.

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
        (4 * self.tokens + 8 * self.tokens * self.hidden) as u64
    }

    /// Bytes that `backward` reads and writes: ids, dx, rows of the table twice.
    pub fn backward_bytes(&self) -> u64 {
        (4 * self.tokens + 12 * self.tokens * self.hidden) as u64
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
