//! Launches of `hopper/`: wgmma on tiles that TMA brings to shared memory.

use super::{BLOCK, Documents, Kernel, parts::KEYS};
use crate::{
    attention::Shape,
    gpu::{Arg, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit},
};

/// `hopper/`.
pub static UNIT: Unit = Unit {
    name: "attention_hopper",
    source: concat!(
        "#line 1 \"mma.cuh\"\n",
        include_str!("../../gpu/mma.cuh"),
        "#line 1 \"hopper.cuh\"\n",
        include_str!("../../gpu/hopper.cuh"),
        "#line 1 \"attention/common.cuh\"\n",
        include_str!("../common.cuh"),
        "#line 1 \"attention/hopper/forward.cu\"\n",
        include_str!("../hopper/forward.cu"),
        "#line 1 \"attention/hopper/backward.cu\"\n",
        include_str!("../hopper/backward.cu"),
    ),
    entries: &[
        "attention_hopper_forward_64",
        "attention_hopper_forward_128",
        "attention_hopper_dq_64",
        "attention_hopper_dq_128",
        "attention_hopper_dkv_64",
        "attention_hopper_dkv_128",
    ],
    elems: &[Elem::Bf16],
    needs: Needs::Hopper,
};

/// A kernel at a head dimension, with the numbers that its entry in `hopper/` has.
#[derive(Clone, Copy)]
struct Tiling {
    name: &'static str,
    threads: u32,
    /// Tokens of a block.
    rows: usize,
    /// Rows of K elements that a block keeps.
    kept: usize,
    /// Rows of each of the two tiles of a step, and steps on their way.
    step: usize,
    stages: usize,
    /// f32 that a block keeps besides.
    floats: usize,
}

const FORWARD_64: Tiling = Tiling {
    name: "attention_hopper_forward_64",
    threads: 256,
    rows: BLOCK,
    kept: BLOCK,
    step: 64,
    stages: 4,
    floats: 0,
};

const DQ_64: Tiling = Tiling { name: "attention_hopper_dq_64", kept: 2 * BLOCK, ..FORWARD_64 };

const DKV_64: Tiling = Tiling {
    name: "attention_hopper_dkv_64",
    threads: 128,
    rows: KEYS,
    kept: 2 * KEYS,
    step: 64,
    stages: 3,
    // lse and delta of a step's queries, for each warp.
    floats: 4 * 2 * 64,
};

/// At head dimensions of 64 and 128. Measured on an H200: at 64, two or three blocks of a multiprocessor hide each other's
/// softmax; at 128 there are registers for one or two.
const FORWARD: [Tiling; 2] =
    [FORWARD_64, Tiling { name: "attention_hopper_forward_128", step: 128, stages: 3, ..FORWARD_64 }];

const DQ: [Tiling; 2] = [DQ_64, Tiling { name: "attention_hopper_dq_128", ..DQ_64 }];

const DKV: [Tiling; 2] = [DKV_64, Tiling { name: "attention_hopper_dkv_128", stages: 2, ..DKV_64 }];

/// # Safety
/// As [`forward`].
unsafe fn launch(
    on: &dyn Launcher,
    pass: &[Tiling; 2],
    heads: usize,
    operands: &[Arg],
    documents: &Documents,
    shape: Shape,
) -> Result<(), GpuError> {
    let k = shape.head_dim;
    let Tiling { name, threads, rows, kept, step, stages, floats } = pass[usize::from(k == 128)];
    let tiles = Elem::Bf16.bytes() * k * (kept + stages * 2 * step);
    // A barrier of what is kept, and two of each stage.
    let shared = tiles + 4 * floats + 8 * (1 + 2 * stages);
    let blocks = (heads as u32, (documents.tiles() * (BLOCK / rows)) as u32);
    let grid = Grid { blocks, threads, shared: shared as u32 };
    let extents = [documents.tokens, shape.heads, shape.kv_heads].map(|n| Arg::I32(n as i32));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, Elem::Bf16), grid, &[operands, &extents].concat()) }
}

fn rows(at: Ptr, documents: &Documents, columns: usize) -> Arg {
    Arg::Matrix { at, rows: documents.tokens, columns }
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
    let pointers = [documents.by_queries(), documents.begin(), out_T, lse_HT].map(Arg::Ptr);
    let operands = [&[rows(qkv_TQ, documents, shape.packed())][..], &pointers].concat();
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
    let matrices = [rows(qkv_TQ, documents, shape.packed()), rows(dout_T, documents, shape.out())];
    let pointers =
        [dout_T, out_T, lse_HT, documents.by_queries(), documents.begin(), delta_HT, dqkv_TQ].map(Arg::Ptr);
    let operands = [&matrices[..], &pointers].concat();
    on.costs(Kernel::ByQueries.cost(Elem::Bf16, documents, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, &DQ, shape.heads, &operands, documents, shape)? };
    let pointers = [lse_HT, delta_HT, documents.by_keys(), documents.end(), dqkv_TQ, parts_at].map(Arg::Ptr);
    let operands = [&matrices[..], &pointers].concat();
    on.costs(Kernel::ByKeys.cost(Elem::Bf16, documents, shape));
    // SAFETY: as above; delta is what the launch before left.
    unsafe { launch(on, &DKV, shape.kv_heads * parts, &operands, documents, shape) }
}
