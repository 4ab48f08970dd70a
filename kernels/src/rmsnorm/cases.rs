//! Named shapes for tests and benches.

use super::Shape;
use crate::cases::Workload;

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
    /// Bytes that a one-pass `add_forward` reads and writes.
    pub fn forward_bytes(&self) -> u64 {
        bytes("rmsnorm_add_forward", self.shape, 4)
    }

    /// Bytes that a one-pass `backward` (overwriting) reads and writes.
    pub fn backward_bytes(&self) -> u64 {
        bytes("rmsnorm_backward", self.shape, 4)
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

/// Operations, with the tensors of T × D that one pass reads and writes.
const TENSORS: [(&str, u64); 4] = [
    ("rmsnorm_forward", 2),      // x, y
    ("rmsnorm_add_forward", 4),  // residual, delta, sum, y
    ("rmsnorm_backward", 3),     // dy, x, dx
    ("rmsnorm_add_backward", 4), // dy, x, dx twice
];

/// Bytes that one pass reads and writes, by the size of an element.
///
/// # Panics
/// When the operation is none of this kernel.
pub fn bytes(op: &str, shape: Shape, element: u64) -> u64 {
    let (_, tensors) = TENSORS.iter().find(|(name, _)| *name == op).expect("an operation of this kernel");
    tensors * element * shape.elements() as u64
}

/// For GPU benches: rows of Qwen2.5-0.5B and of a 7B model.
pub const GPU: [Shape; 4] =
    [shape(16_384, 896), shape(65_536, 896), shape(16_384, 4096), shape(65_536, 4096)];

const fn shape(tokens: usize, hidden: usize) -> Shape {
    Shape { tokens, hidden }
}

/// An operation on bf16 at a shape.
pub fn workload(op: &'static str, shape: Shape) -> Workload {
    let Shape { tokens, hidden } = shape;
    Workload {
        op,
        case: format!("{tokens}x{hidden}"),
        dims: vec![("tokens", tokens), ("hidden", hidden)],
        documents: Vec::new(),
        bytes: bytes(op, shape, 2),
        flops: 0,
    }
}

/// Every operation at every shape of [`GPU`].
pub fn workloads() -> Vec<Workload> {
    GPU.iter().flat_map(|shape| TENSORS.map(|(op, _)| workload(op, *shape))).collect()
}
