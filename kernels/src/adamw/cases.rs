//! Named lengths for tests and benches.

use crate::cases::Workload;

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
        update_bytes(4 + 4 + 4, 4) * self.elements as u64
    }

    /// The same with moments of 8 bits, but for their scales.
    pub fn eight_bit_bytes(&self) -> u64 {
        update_bytes(4 + 1 + 1, 4) * self.elements as u64
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

/// Bytes of a parameter: its state read and written, and its gradient read.
const fn update_bytes(state: u64, gradient: u64) -> u64 {
    2 * state + gradient
}

/// Operations, with the bytes of a parameter, of an f32 gradient and the states of [`super::cuda::State`] in bf16.
pub const OPS: [(&str, u64); 4] = [
    ("adamw_norm", 4),
    // f32 parameter and moments; a copy of the parameter, only written.
    ("adamw_master", update_bytes(4 + 4 + 4, 4) + 2),
    ("adamw_rounded", update_bytes(2 + 2 + 2, 4)),
    // As `adamw_master`, with moments of 8 bits; besides, two f32 a block of 256.
    ("adamw_master_8bit", update_bytes(4 + 1 + 1, 4) + 2),
];

/// For GPU benches: parameters of Qwen2.5-0.5B and of Qwen2.5-1.5B.
pub const GPU: [usize; 2] = [494_032_768, 1_543_714_304];

/// An operation at a number of parameters.
pub fn workload(op: &'static str, parameters: usize) -> Workload {
    let (_, bytes) = OPS.iter().find(|(name, _)| *name == op).expect("an operation of this kernel");
    Workload {
        op,
        case: parameters.to_string(),
        dims: vec![("parameters", parameters)],
        documents: Vec::new(),
        bytes: bytes * parameters as u64,
        flops: 0,
    }
}

/// Every operation at every length of [`GPU`].
pub fn workloads() -> Vec<Workload> {
    GPU.iter().flat_map(|n| OPS.map(|(op, _)| workload(op, *n))).collect()
}
