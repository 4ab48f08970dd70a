//! Launches of `plain.cu`: f32, a warp a token.

use super::{Documents, Kernel};
use crate::{
    attention::Shape,
    gpu::{Arg, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit},
};

/// `plain.cu`.
pub static UNIT: Unit = Unit {
    name: "attention_plain",
    source: include_str!("../plain.cu"),
    entries: &["attention_plain_forward", "attention_plain_dq", "attention_plain_dkv"],
    elems: &[Elem::F32],
    needs: Needs::Ampere,
};

const THREADS: u32 = 128;

/// Tokens of a block: a warp each.
const TOKENS: usize = THREADS as usize / 32;

/// # Safety
/// As [`forward`].
unsafe fn launch(
    on: &dyn Launcher,
    name: &'static str,
    heads: usize,
    operands: &[Ptr],
    documents: &Documents,
    shape: Shape,
) -> Result<(), GpuError> {
    let blocks = documents.tokens.div_ceil(TOKENS) * heads;
    let grid = Grid { blocks: (blocks as u32, 1), threads: THREADS, shared: 0 };
    let extents = [documents.tokens, shape.heads, shape.kv_heads, shape.head_dim];
    let mut args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).collect();
    args.extend(extents.map(|n| Arg::I32(n as i32)));
    args.push(Arg::F32(shape.scale()));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, Elem::F32), grid, &args) }
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
    let operands = [qkv_TQ, documents.begin(), out_T, lse_HT];
    on.costs(Kernel::Forward.cost(Elem::F32, documents, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, "attention_plain_forward", shape.heads, &operands, documents, shape) }
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
    let super::Backward { dout_T, qkv_TQ, out_T, lse_HT, delta_HT, .. } = *from;
    let operands = [dout_T, qkv_TQ, out_T, lse_HT, documents.begin(), delta_HT, dqkv_TQ];
    on.costs(Kernel::ByQueries.cost(Elem::F32, documents, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, "attention_plain_dq", shape.heads, &operands, documents, shape)? };
    let operands = [dout_T, qkv_TQ, lse_HT, delta_HT, documents.end(), dqkv_TQ];
    on.costs(Kernel::ByKeys.cost(Elem::F32, documents, shape));
    // SAFETY: as above; delta is what the launch before left.
    unsafe { launch(on, "attention_plain_dkv", shape.kv_heads, &operands, documents, shape) }
}
