//! Launches of `kernel.cu`. The same contract as the CPU's functions: the backward pass is in place, and reads what the
//! forward read. A pass moves each operand once: `3·T·F` elements forward, `5·T·F` backward.

use super::cases::bytes;
use crate::gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "swiglu",
    source: include_str!("kernel.cu"),
    entries: &["swiglu_forward", "swiglu_backward"],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Threads of a block.
const THREADS: u32 = 256;

/// Packs of 8 activations of a thread, as `PACKS` in the kernel.
const PACKS: u32 = 2;

/// `act_TF` of `gate_up_T2F`; overwritten.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their names say, in `elem`, 16-byte aligned, and overlap nothing.
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// When `ffn` is no multiple of 8.
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    gate_up_T2F: Ptr,
    act_TF: Ptr,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, "swiglu_forward", elem, gate_up_T2F, act_TF, tokens, ffn) }
}

/// Replaces `gate_up_T2F` by its gradient, given the gradient of the activation.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// As [`forward`].
pub unsafe fn backward(
    on: &dyn Launcher,
    elem: Elem,
    gate_up_T2F: Ptr,
    dact_TF: Ptr,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, "swiglu_backward", elem, gate_up_T2F, dact_TF, tokens, ffn) }
}

/// # Safety
/// As [`forward`].
unsafe fn launch(
    on: &dyn Launcher,
    name: &'static str,
    elem: Elem,
    gate_up_T2F: Ptr,
    act_TF: Ptr,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    assert!(ffn > 0 && ffn.is_multiple_of(8), "rows of {ffn} are no multiple of 8");
    let row = ffn / 8;
    // A little below u32's end, which the indices of the last block's idle threads may pass.
    assert!(
        tokens * row <= u32::MAX as usize - (PACKS * THREADS) as usize,
        "{tokens}×{ffn} activations are too many"
    );
    let packs = (tokens * row) as u32;
    let grid = Grid { blocks: (packs.div_ceil(PACKS * THREADS), 1), threads: THREADS, shared: 0 };
    let args = [Arg::Ptr(gate_up_T2F), Arg::Ptr(act_TF), Arg::U32(packs), Arg::U32(row as u32)];
    on.costs(Cost::bytes(bytes(name, tokens, ffn, elem.bytes() as u64)));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, elem), grid, &args) }
}
