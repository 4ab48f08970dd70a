//! Named shapes for tests and benches.

use super::Dims;
use crate::{
    cases::Workload,
    gpu::{Elem, Product},
};

/// The linear layer of a product: `w_NK`.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Name in bench ids.
    pub name: &'static str,
    /// N: output features.
    pub outputs: usize,
    /// K: input features.
    pub inputs: usize,
}

/// One of the three products of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`super::linear_forward`]
    Forward,
    /// [`super::linear_dgrad`]
    Dgrad,
    /// [`super::linear_wgrad`]
    Wgrad,
}

impl Pass {
    /// Every pass.
    pub const ALL: [Pass; 3] = [Pass::Forward, Pass::Dgrad, Pass::Wgrad];

    /// Name in bench ids.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Dgrad => "dgrad",
            Pass::Wgrad => "wgrad",
        }
    }

    /// Extents for `tokens` rows.
    pub fn dims(self, layer: Layer, tokens: usize) -> Dims {
        let Layer { outputs, inputs, .. } = layer;
        match self {
            Pass::Forward => Dims { m: tokens, n: outputs, k: inputs },
            Pass::Dgrad => Dims { m: tokens, n: inputs, k: outputs },
            Pass::Wgrad => Dims { m: outputs, n: inputs, k: tokens },
        }
    }
}

/// For tests: single elements, vectors, off every register tile, longer than a block of k or of rows, and large
/// enough for several tasks.
pub const TESTS: [Dims; 11] = [
    dims(1, 1, 1),
    dims(3, 5, 7),
    dims(1, 37, 29),
    dims(41, 1, 30),
    dims(17, 15, 600),
    dims(129, 97, 33),
    dims(2, 700, 513),
    dims(700, 3, 1030),
    dims(401, 203, 64),
    dims(301, 302, 515),
    dims(2051, 13, 30),
];

const fn dims(m: usize, n: usize, k: usize) -> Dims {
    Dims { m, n, k }
}

/// For benches: the linear layers of the repository's tiny model.
pub const BENCH_LAYERS: [Layer; 5] = [
    layer("qkv", 320, 192),
    layer("o", 192, 192),
    layer("gate_up", 1024, 192),
    layer("down", 192, 512),
    layer("lm_head", 4096, 192),
];

/// For benches: linear layers of SmolLM2-135M, large enough for a matrix unit, at 2,048 tokens.
pub const BENCH_LARGE: [(Layer, usize); 3] = [
    (layer("smollm2_qkv", 960, 576), 2048),
    (layer("smollm2_gate_up", 3072, 576), 2048),
    (layer("smollm2_down", 576, 1536), 2048),
];

/// For benches: tokens of a micro-batch.
pub const BENCH_TOKENS: [usize; 4] = [512, 1024, 2048, 4096];

const fn layer(name: &'static str, outputs: usize, inputs: usize) -> Layer {
    Layer { name, outputs, inputs }
}

/// For GPU benches: tokens and layers of Qwen2.5-0.5B, a batch, and a chunk of it before the vocabulary.
pub const GPU: [(usize, Layer); 4] = [
    (16_384, layer("qkv", 1152, 896)),
    (16_384, layer("gate_up", 9728, 896)),
    (16_384, layer("down", 896, 4864)),
    (4096, layer("lm_head", 151_936, 896)),
];

/// A product on bf16; the weight's gradient is f32 and added to.
pub fn product(pass: Pass, tokens: usize, layer: Layer) -> Product {
    let Layer { outputs: n, inputs: k, .. } = layer;
    match pass {
        Pass::Forward => Product::linear_forward(tokens, n, k, Elem::Bf16),
        Pass::Dgrad => Product::linear_dgrad(tokens, n, k, Elem::Bf16),
        Pass::Wgrad => Product::linear_wgrad(tokens, n, k, Elem::Bf16),
    }
}

/// A product of a layer.
pub fn workload(pass: Pass, tokens: usize, layer: Layer) -> Workload {
    let p = product(pass, tokens, layer);
    let op = match pass {
        Pass::Forward => "gemm_forward",
        Pass::Dgrad => "gemm_dgrad",
        Pass::Wgrad => "gemm_wgrad",
    };
    // What is added to is read too.
    let written = p.m * p.n * p.out.bytes() * if p.accumulate { 2 } else { 1 };
    Workload {
        op,
        case: format!("{} {}x{}x{}", layer.name, p.m, p.n, p.k),
        dims: vec![("m", p.m), ("n", p.n), ("k", p.k)],
        documents: Vec::new(),
        bytes: (p.elem.bytes() * p.k * (p.m + p.n) + written) as u64,
        flops: p.flops(),
    }
}

/// The three products of every layer of [`GPU`].
pub fn workloads() -> Vec<Workload> {
    GPU.iter().flat_map(|(t, layer)| Pass::ALL.map(|pass| workload(pass, *t, *layer))).collect()
}
