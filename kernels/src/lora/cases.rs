//! Named groups for tests and benches.

use super::{Segment, Shape, b_len, stacked_rank};
use crate::cases::Workload;

/// A named group.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name in test messages and bench ids.
    pub name: &'static str,
    /// Extents.
    pub shape: Shape,
    /// Adapters.
    pub segments: &'static [Segment],
    /// Seed of its random operands.
    pub seed: u64,
}

impl Case {
    /// Floating-point operations of `forward`: two products.
    pub fn forward_flops(&self) -> u64 {
        2 * self.shape.tokens as u64 * self.parameters()
    }

    /// Floating-point operations of `backward`: four products.
    pub fn backward_flops(&self) -> u64 {
        2 * self.forward_flops()
    }

    /// Bytes that `forward` must move: x, the adapters, xa, and y twice.
    pub fn forward_bytes(&self) -> u64 {
        let (t, s) = (self.shape.tokens, stacked_rank(self.segments));
        4 * (t * (self.shape.inputs + s + 2 * self.shape.outputs)) as u64 + 4 * self.parameters()
    }

    fn parameters(&self) -> u64 {
        (stacked_rank(self.segments) * self.shape.inputs + b_len(self.segments)) as u64
    }
}

const fn segment(offset: usize, width: usize, r: usize) -> Segment {
    Segment { offset, width, r }
}

const fn case(
    name: &'static str,
    tokens: usize,
    inputs: usize,
    outputs: usize,
    segments: &'static [Segment],
    seed: u64,
) -> Case {
    Case { name, shape: Shape { tokens, inputs, outputs }, segments, seed }
}

/// Small and odd, for tests: q/k/v of different widths, different ranks, a segment in the middle only, one token.
pub const TESTS: [Case; 5] = [
    case("qkv", 9, 24, 48, &[segment(0, 24, 4), segment(24, 12, 4), segment(36, 12, 4)], 1),
    case("unequal_ranks", 13, 17, 31, &[segment(0, 19, 3), segment(19, 12, 5)], 2),
    case("middle_only", 7, 11, 30, &[segment(10, 9, 2)], 3),
    case("one_token", 1, 5, 6, &[segment(0, 6, 1)], 4),
    case("many_tasks", 600, 33, 65, &[segment(0, 40, 8), segment(40, 25, 8)], 5),
];

/// For benches: rank 16 on q/k/v and gate/up of the repository's tiny model.
pub const BENCHES: [Case; 2] = [
    case("qkv_1024", 1024, 192, 320, &[segment(0, 192, 16), segment(192, 64, 16), segment(256, 64, 16)], 1),
    case("gate_up_1024", 1024, 192, 1024, &[segment(0, 512, 16), segment(512, 512, 16)], 2),
];

/// For GPU benches: rank 16 on a batch of Qwen2.5-0.5B.
pub const GPU: [Case; 2] = [
    case("qkv", 16_384, 896, 1152, &[segment(0, 896, 16), segment(896, 128, 16), segment(1024, 128, 16)], 1),
    case("gate_up", 16_384, 896, 9728, &[segment(0, 4864, 16), segment(4864, 4864, 16)], 2),
];

/// An operation on bf16; FLOPs are those without the zeros of batched adapters.
pub fn workload(op: &'static str, case: &Case) -> Workload {
    let Case { name, shape: Shape { tokens: t, inputs: d, outputs: n }, segments, .. } = *case;
    let (s, parameters) = (stacked_rank(segments), case.parameters() as usize);
    let (bytes, flops) = match op {
        "lora_forward" => (2 * (t * (d + s + 2 * n) + parameters), case.forward_flops()),
        // x, xa, dy, and dx read and written; the gradients of the parameters, f32, too.
        _ => (2 * t * (3 * d + s + n) + (2 + 8) * parameters, case.backward_flops()),
    };
    Workload {
        op,
        case: format!("{name} {t}x{d}x{n} r16"),
        dims: vec![("tokens", t), ("inputs", d), ("outputs", n), ("rank", s)],
        documents: Vec::new(),
        bytes: bytes as u64,
        flops,
    }
}

/// Both passes of every case of [`GPU`].
pub fn workloads() -> Vec<Workload> {
    GPU.iter().flat_map(|case| ["lora_forward", "lora_backward"].map(|op| workload(op, case))).collect()
}
