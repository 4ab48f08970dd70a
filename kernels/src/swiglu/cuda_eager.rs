//! SwiGLU as PyTorch eager runs Hugging Face's `act_fn(gate) * up`: launches of `eager.cu`, one kernel for each operator and for
//! each of its autograd backward pass. The contract is that of [`super::cuda`] but for [`Memory`]. Gate and up are read where
//! they lie in the packed projection, in as many bytes as if they were two.
//!
//! Autograd keeps `silu(gate)` besides the projection: [`saved_bytes`].
//!
//! # Forward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `swiglu_eager_silu` | silu(gate) | TF elem | TF elem | |
//! | `swiglu_eager_mul` | · up | TF elem + TF elem | TF elem | |
//!
//! # Backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `swiglu_eager_mul` | dact · up | TF elem + TF elem | TF elem | |
//! | `swiglu_eager_mul` | dact · silu(gate), which is dup | TF elem + TF elem | TF elem | |
//! | `swiglu_eager_silu_backward` | dgate | TF elem + TF elem | TF elem | |

use crate::gpu::{
    Elem, GpuError, Launcher, Needs, Ptr, Unit,
    eager::{Memory, Operators, Pass, View},
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "swiglu_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"swiglu/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &["swiglu_eager_silu", "swiglu_eager_mul", "swiglu_eager_silu_backward"],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT];

/// Bytes of [`Memory::saved`].
pub fn saved_bytes(elem: Elem, tokens: usize, ffn: usize) -> usize {
    tokens * ffn * elem.bytes()
}

/// Bytes of [`Memory::scratch`] for either pass.
pub fn scratch_bytes(elem: Elem, tokens: usize, ffn: usize) -> usize {
    account(elem, tokens, ffn, gradient).1
}

/// The passes of [`forward`].
pub fn forward_passes(elem: Elem, tokens: usize, ffn: usize) -> Vec<Pass> {
    account(elem, tokens, ffn, activation).0
}

/// The passes of [`backward`].
pub fn backward_passes(elem: Elem, tokens: usize, ffn: usize) -> Vec<Pass> {
    account(elem, tokens, ffn, gradient).0
}

/// Operands of either pass.
struct Operands {
    gate_up_T2F: Ptr,
    act_TF: Ptr,
    silu_TF: Ptr,
}

/// The operators of a pass.
type List = unsafe fn(&mut Operators, Elem, Operands, usize, usize) -> Result<(), GpuError>;

fn account(elem: Elem, tokens: usize, ffn: usize, list: List) -> (Vec<Pass>, usize) {
    let mut ops = Operators::new(None, UNITS, elem, Ptr::NULL);
    let none = Operands { gate_up_T2F: Ptr::NULL, act_TF: Ptr::NULL, silu_TF: Ptr::NULL };
    // SAFETY: nothing is launched.
    unsafe { list(&mut ops, elem, none, tokens, ffn).expect("counted only") };
    ops.account()
}

/// As [`super::cuda::forward`].
///
/// # Safety
/// As [`super::cuda::forward`]; `memory` has [`saved_bytes`] and [`scratch_bytes`].
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
    memory: Memory,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    check(ffn);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    // SAFETY: the caller's promise is the same.
    unsafe {
        activation(&mut ops, elem, Operands { gate_up_T2F, act_TF, silu_TF: memory.saved }, tokens, ffn)
    }
}

/// As [`super::cuda::backward`], after [`forward`] with the same `saved`.
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
    memory: Memory,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    check(ffn);
    let mut ops = Operators::new(Some(on), UNITS, elem, memory.scratch);
    let operands = Operands { gate_up_T2F, act_TF: dact_TF, silu_TF: memory.saved };
    // SAFETY: the caller's promise is the same.
    unsafe { gradient(&mut ops, elem, operands, tokens, ffn) }
}

fn check(ffn: usize) {
    assert!(ffn > 0 && ffn.is_multiple_of(8), "rows of {ffn} are no multiple of 8");
}

/// Gate and up in the packed projection.
fn halves(gate_up_T2F: Ptr, elem: Elem, ffn: usize) -> [View; 2] {
    let gate = View::rows(gate_up_T2F, elem, ffn, 2 * ffn);
    [gate, gate.from(ffn)]
}

/// # Safety
/// As [`forward`].
unsafe fn activation(
    ops: &mut Operators,
    elem: Elem,
    at: Operands,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    let [gate, up] = halves(at.gate_up_T2F, elem, ffn);
    let [silu, act] = [at.silu_TF, at.act_TF].map(|at| View::dense(at, elem));
    // SAFETY: the caller's promise is the same.
    unsafe {
        ops.map("swiglu_eager_silu", silu, &[gate], tokens * ffn)?;
        ops.map("swiglu_eager_mul", act, &[silu, up], tokens * ffn)
    }
}

/// # Safety
/// As [`forward`].
unsafe fn gradient(
    ops: &mut Operators,
    elem: Elem,
    at: Operands,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    let [gate, up] = halves(at.gate_up_T2F, elem, ffn);
    let [silu, dact] = [at.silu_TF, at.act_TF].map(|at| View::dense(at, elem));
    let dsilu = ops.temporary(elem, tokens * ffn);
    // SAFETY: the caller's promise is the same; what is overwritten is not read behind it.
    unsafe {
        ops.map("swiglu_eager_mul", dsilu, &[dact, up], tokens * ffn)?;
        ops.map("swiglu_eager_mul", up, &[dact, silu], tokens * ffn)?;
        ops.map("swiglu_eager_silu_backward", gate, &[dsilu, gate], tokens * ffn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::eager::documented;

    #[test]
    fn passes_are_those_of_the_tables() {
        let (tokens, ffn) = (57, 72);
        for elem in Elem::ALL {
            let extent = |name: &str| if name == "TF" { tokens * ffn } else { panic!("no extent '{name}'") };
            let table = |heading| documented(include_str!("cuda_eager.rs"), heading, elem, extent, |_| false);
            assert_eq!(forward_passes(elem, tokens, ffn), table("Forward"));
            assert_eq!(backward_passes(elem, tokens, ffn), table("Backward"));
        }
    }
}
