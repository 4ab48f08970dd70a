//! RMSNorm on a GPU, for [`crate::gpu::bench`].

use super::{Shape, cuda};
use crate::{
    cases::values,
    gpu::{
        Buffer, Elem, Gpu, GpuError, Launcher,
        bench::{Bench, Taker, matrix},
    },
};

/// Operations that [`each`] times.
pub const OPS: &[&str] =
    &["rmsnorm_forward", "rmsnorm_add_forward", "rmsnorm_backward", "rmsnorm_add_backward"];

/// Tokens and hidden sizes of the benches: Qwen2.5-0.5B's and a 7B model's rows.
const SHAPES: [(usize, usize); 4] = [(16_384, 896), (65_536, 896), (16_384, 4096), (65_536, 4096)];

const EPS: f32 = 1e-6;

/// Operands of one shape, bf16.
struct Operands {
    matrices: [Buffer; 4],
    weight: Buffer,
    rstd: Buffer,
    dweight: Buffer,
    scratch: Buffer,
}

impl Operands {
    fn new(on: &Gpu, shape: Shape) -> Result<Self, GpuError> {
        let matrix = || matrix(on, shape.tokens, shape.hidden);
        Ok(Self {
            matrices: [matrix()?, matrix()?, matrix()?, matrix()?],
            weight: on.upload(&Elem::Bf16.encode(&values(2, shape.hidden)))?,
            rstd: on.upload(&1.7f32.to_le_bytes().repeat(shape.tokens))?,
            dweight: on.upload(&vec![0; 4 * shape.hidden])?,
            scratch: on.alloc(4 * cuda::scratch_floats(on.processors(), shape))?,
        })
    }
}

/// Calls `f` with the benches of every shape, one shape's operands at a time.
pub fn each(on: &Gpu, f: &mut Taker) -> Result<(), GpuError> {
    for (tokens, hidden) in SHAPES {
        let shape = Shape { tokens, hidden };
        let operands = Operands::new(on, shape)?;
        let [a, b, c, d] = operands.matrices.each_ref().map(Buffer::ptr);
        let (w, r) = (operands.weight.ptr(), operands.rstd.ptr());
        let dw = Some((operands.dweight.ptr(), operands.scratch.ptr()));
        let bench = |op, tensors: u64, run| Bench {
            op,
            case: format!("{tokens}x{hidden}"),
            bytes: tensors * 2 * shape.elements() as u64,
            flops: 0,
            run,
        };
        f(bench(
            "rmsnorm_forward",
            2,
            // SAFETY: the operands have the lengths that their names say and outlive the measurement.
            Box::new(|| unsafe { cuda::forward(on, Elem::Bf16, a, w, EPS, b, r, shape) }),
        ))?;
        f(bench(
            "rmsnorm_add_forward",
            4,
            // SAFETY: as above.
            Box::new(|| unsafe { cuda::add_forward(on, Elem::Bf16, a, b, c, w, EPS, d, r, shape) }),
        ))?;
        f(bench(
            "rmsnorm_backward",
            3,
            // SAFETY: as above.
            Box::new(|| unsafe { cuda::backward(on, Elem::Bf16, a, b, r, w, c, false, dw, shape) }),
        ))?;
        f(bench(
            "rmsnorm_add_backward",
            4,
            // SAFETY: as above.
            Box::new(|| unsafe { cuda::backward(on, Elem::Bf16, a, b, r, w, d, true, dw, shape) }),
        ))?;
    }
    Ok(())
}
