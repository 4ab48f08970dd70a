//! Named shapes for tests and benches.

use crate::cases::Workload;

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
        bytes("swiglu_forward", self.tokens, self.ffn, 4)
    }

    /// Bytes that a one-pass backward reads and writes: gate, up, dact, dgate, dup.
    pub fn backward_bytes(&self) -> u64 {
        bytes("swiglu_backward", self.tokens, self.ffn, 4)
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

/// Operations, with the tensors of T × F that one pass reads and writes.
const TENSORS: [(&str, u64); 2] = [
    ("swiglu_forward", 3),  // gate, up, act
    ("swiglu_backward", 5), // gate, up, dact, dgate, dup
];

/// Bytes that one pass reads and writes, by the size of an element.
///
/// # Panics
/// When the operation is none of this kernel.
pub fn bytes(op: &str, tokens: usize, ffn: usize, element: u64) -> u64 {
    let (_, tensors) = TENSORS.iter().find(|(name, _)| *name == op).expect("an operation of this kernel");
    tensors * element * (tokens * ffn) as u64
}

/// For GPU benches: tokens and F of Qwen2.5-0.5B.
pub const GPU: [(usize, usize); 2] = [(16_384, 4864), (65_536, 4864)];

/// An operation on bf16 at a shape.
pub fn workload(op: &'static str, (tokens, ffn): (usize, usize)) -> Workload {
    Workload {
        op,
        case: format!("{tokens}x{ffn}"),
        dims: vec![("tokens", tokens), ("ffn", ffn)],
        documents: Vec::new(),
        bytes: bytes(op, tokens, ffn, 2),
        flops: 0,
    }
}

/// A shape between projections with adapters of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Adapted {
    /// Rows `T`.
    pub tokens: usize,
    /// Activations `F` of a row.
    pub ffn: usize,
    /// Rank of the adapters of gate, up and the projection behind.
    pub r: usize,
}

/// For GPU benches: Qwen2.5-0.5B with adapters.
pub const ADAPTED: [Adapted; 2] =
    [Adapted { tokens: 16_384, ffn: 4864, r: 16 }, Adapted { tokens: 16_384, ffn: 4864, r: 32 }];

/// An operation on bf16 with adapters: the same tensors, and the factors of two or three updates.
pub fn adapted_workload(op: &'static str, Adapted { tokens, ffn, r }: Adapted) -> Workload {
    let (of, updates) = match op {
        "swiglu_adapted_forward" => ("swiglu_forward", 2),
        _ => ("swiglu_backward", 3),
    };
    Workload {
        op,
        case: format!("{tokens}x{ffn} r{r}"),
        dims: vec![("tokens", tokens), ("ffn", ffn), ("rank", r)],
        documents: Vec::new(),
        bytes: bytes(of, tokens, ffn, 2) + (2 * updates * r * (tokens + ffn)) as u64,
        flops: (2 * updates * r * tokens * ffn) as u64,
    }
}

/// Every operation at every shape of [`GPU`] and [`ADAPTED`].
pub fn workloads() -> Vec<Workload> {
    let plain = GPU.iter().flat_map(|shape| TENSORS.map(|(op, _)| workload(op, *shape)));
    let ops = ["swiglu_adapted_forward", "swiglu_adapted_backward"];
    plain.chain(ADAPTED.iter().flat_map(|shape| ops.map(|op| adapted_workload(op, *shape)))).collect()
}
