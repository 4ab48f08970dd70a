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
    /// Bytes that one pass in place reads and writes, without QK-norm.
    pub fn bytes(&self) -> u64 {
        bytes("qk_rope_bias_forward", self.shape, 4)
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

const OPS: [&str; 4] =
    ["qk_rope_forward", "qk_rope_backward", "qk_rope_bias_forward", "qk_rope_bias_backward"];

/// Bytes of a pass, by the size of an element: rows are read and written in place. Values take part with a bias alone: forward both ways, backward they are only read.
pub fn bytes(op: &str, shape: Shape, element: u64) -> u64 {
    let values = shape.packed() - shape.rotated();
    let moved = match op {
        "qk_rope_bias_forward" => 2 * shape.packed(),
        "qk_rope_bias_backward" => 2 * shape.rotated() + values,
        _ => 2 * shape.rotated(),
    };
    element * (shape.tokens * moved) as u64
}

/// For GPU benches: tokens and heads of Qwen2.5-0.5B, and of a 7B model with grouped keys.
pub const GPU: [Shape; 3] = [shape(16_384, 14, 2, 64), shape(65_536, 14, 2, 64), shape(65_536, 32, 8, 128)];

/// Tokens of a document of the GPU benches.
pub const POSITIONS: usize = 2048;

const fn shape(tokens: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
    Shape { tokens, heads, kv_heads, head_dim }
}

/// An operation on bf16 at a shape.
pub fn workload(op: &'static str, shape: Shape) -> Workload {
    let Shape { tokens, heads, kv_heads, head_dim } = shape;
    Workload {
        op,
        case: format!("{tokens}x{heads}/{kv_heads}x{head_dim}"),
        dims: vec![
            ("tokens", tokens),
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
            ("positions", POSITIONS),
        ],
        documents: Vec::new(),
        bytes: bytes(op, shape, 2),
        flops: 0,
    }
}

/// Every operation at every shape of [`GPU`].
pub fn workloads() -> Vec<Workload> {
    GPU.iter().flat_map(|shape| OPS.map(|op| workload(op, *shape))).collect()
}
