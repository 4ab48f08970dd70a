//! Named lengths for tests and benches.

/// A named length.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// Parameters of the segment.
    pub elements: usize,
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Bytes that a one-pass update reads and writes: p, m and v twice, g once.
    pub fn update_bytes(&self) -> u64 {
        28 * self.elements as u64
    }

    /// Bytes that the norm reads.
    pub fn norm_bytes(&self) -> u64 {
        4 * self.elements as u64
    }
}

const fn case(name: &'static str, elements: usize, seed: u64) -> Case {
    Case { name, elements, seed }
}

/// Small and odd, for tests: nothing, one element, off every vector width, more than one task.
pub const TESTS: [Case; 4] =
    [case("nothing", 0, 1), case("one", 1, 2), case("odd", 1027, 3), case("many_tasks", 100_003, 4)];

/// For benches: the repository's tiny model, and an array larger than any cache.
pub const BENCHES: [Case; 2] = [case("2M", 2_000_000, 1), case("32M", 32_000_000, 2)];
