//! SwiGLU on a GPU, for [`crate::gpu::bench`].

use super::cuda;
use crate::gpu::{
    Elem, Gpu, GpuError,
    bench::{Bench, Taker, matrix},
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["swiglu_forward", "swiglu_backward"];

/// Tokens; the width is Qwen2.5-0.5B's.
const TOKENS: [usize; 2] = [16_384, 65_536];
const FFN: usize = 4864;

/// Calls `f` with the benches of every shape, one shape's operands at a time.
pub fn each(on: &Gpu, f: &mut Taker) -> Result<(), GpuError> {
    for tokens in TOKENS {
        let (gate_up, act) = (matrix(on, tokens, 2 * FFN)?, matrix(on, tokens, FFN)?);
        let (x, y) = (gate_up.ptr(), act.ptr());
        let bench = |op, tensors: u64, run| Bench {
            op,
            case: format!("{tokens}x{FFN}"),
            bytes: tensors * 2 * (tokens * FFN) as u64,
            flops: 0,
            run,
        };
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        let forward = || unsafe { cuda::forward(on, Elem::Bf16, x, y, tokens, FFN) };
        f(bench("swiglu_forward", 3, Box::new(forward)))?;
        // SAFETY: as above. It works in place, so that its input changes from run to run; its time does not.
        let backward = || unsafe { cuda::backward(on, Elem::Bf16, x, y, tokens, FFN) };
        f(bench("swiglu_backward", 5, Box::new(backward)))?;
    }
    Ok(())
}
