//! Launches of `mma/`: bf16 by mma.sync.

use super::{BLOCK, Documents, Kernel, parts::KEYS};
use crate::{
    attention::Shape,
    gpu::{Arg, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit},
};

/// `mma/`.
pub static UNIT: Unit = Unit {
    name: "attention",
    source: concat!(
        "#line 1 \"mma.cuh\"\n",
        include_str!("../../gpu/mma.cuh"),
        "#line 1 \"attention/common.cuh\"\n",
        include_str!("../common.cuh"),
        "#line 1 \"attention/mma/tile.cuh\"\n",
        include_str!("../mma/tile.cuh"),
        "#line 1 \"attention/mma/forward.cu\"\n",
        include_str!("../mma/forward.cu"),
        "#line 1 \"attention/mma/backward.cu\"\n",
        include_str!("../mma/backward.cu"),
    ),
    entries: &[
        "attention_forward_64",
        "attention_forward_128",
        "attention_dq_64",
        "attention_dq_128",
        "attention_dkv_64",
        "attention_dkv_128",
    ],
    elems: &[Elem::Bf16],
    needs: Needs::Ampere,
};

/// Threads of a block, as `THREADS` in `mma/`.
const THREADS: u32 = 128;

/// Rows of a step, as `STREAM` in `mma/`. A block keeps two steps, each of two tiles.
const STREAM: usize = 64;

/// A kernel at a head dimension.
#[derive(Clone, Copy)]
struct Tiling {
    name: &'static str,
    /// Tokens of a block: a tile, or half of one.
    rows: usize,
    /// How many rows of K elements it keeps of each, besides the steps.
    kept: usize,
    /// f32 that it keeps besides.
    floats: usize,
}

/// At head dimensions of 64 and 128.
const FORWARD: [Tiling; 2] = [
    Tiling { name: "attention_forward_64", rows: 128, kept: 1, floats: 0 },
    Tiling { name: "attention_forward_128", rows: 128, kept: 1, floats: 0 },
];

const DQ: [Tiling; 2] = [
    Tiling { name: "attention_dq_64", rows: 128, kept: 2, floats: 0 },
    Tiling { name: "attention_dq_128", rows: 64, kept: 2, floats: 0 },
];

const DKV: [Tiling; 2] = [
    Tiling { name: "attention_dkv_64", rows: KEYS, kept: 2, floats: 4 * STREAM },
    Tiling { name: "attention_dkv_128", rows: KEYS, kept: 2, floats: 4 * STREAM },
];

/// # Safety
/// As [`forward`].
unsafe fn launch(
    on: &dyn Launcher,
    pass: &[Tiling; 2],
    heads: usize,
    operands: &[Ptr],
    documents: &Documents,
    shape: Shape,
) -> Result<(), GpuError> {
    let Tiling { name, rows, kept, floats } = pass[usize::from(shape.head_dim == 128)];
    let shared = Elem::Bf16.bytes() * (rows * kept + 4 * STREAM) * shape.head_dim + 4 * floats;
    let blocks = (heads as u32, (documents.tiles() * (BLOCK / rows)) as u32);
    let grid = Grid { blocks, threads: THREADS, shared: shared as u32 };
    let extents = [documents.tokens, shape.heads, shape.kv_heads].map(|n| Arg::I32(n as i32));
    let args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).chain(extents).collect();
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, Elem::Bf16), grid, &args) }
}

/// # Safety
/// As [`super::forward`].
pub(super) unsafe fn forward(
    on: &dyn Launcher,
    qkv_TQ: Ptr,
    documents: &Documents,
    out_T: Ptr,
    lse_HT: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    let operands = [qkv_TQ, documents.by_queries(), documents.begin(), out_T, lse_HT];
    on.costs(Kernel::Forward.cost(Elem::Bf16, documents, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, &FORWARD, shape.heads, &operands, documents, shape) }
}

/// # Safety
/// As [`super::backward`].
pub(super) unsafe fn backward(
    on: &dyn Launcher,
    from: &super::Backward,
    documents: &Documents,
    dqkv_TQ: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    let super::Backward { dout_T, qkv_TQ, out_T, lse_HT, delta_HT, parts_at, parts } = *from;
    let operands =
        [dout_T, qkv_TQ, out_T, lse_HT, documents.by_queries(), documents.begin(), delta_HT, dqkv_TQ];
    on.costs(Kernel::ByQueries.cost(Elem::Bf16, documents, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, &DQ, shape.heads, &operands, documents, shape)? };
    let operands =
        [dout_T, qkv_TQ, lse_HT, delta_HT, documents.by_keys(), documents.end(), dqkv_TQ, parts_at];
    on.costs(Kernel::ByKeys.cost(Elem::Bf16, documents, shape));
    // SAFETY: as above; delta is what the launch before left.
    unsafe { launch(on, &DKV, shape.kv_heads * parts, &operands, documents, shape) }
}
