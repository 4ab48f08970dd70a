//! QK-RoPE on a GPU, for [`crate::gpu::bench`].

use super::{
    Shape, Tables,
    cuda::{self, Rotation},
};
use crate::gpu::{
    Elem, Gpu, GpuError, Launcher,
    bench::{Bench, Taker, matrix},
    le_bytes,
};

/// Operations that [`each`] times.
pub const OPS: &[&str] =
    &["qk_rope_forward", "qk_rope_backward", "qk_rope_bias_forward", "qk_rope_bias_backward"];

/// Tokens and heads: Qwen2.5-0.5B's and those of a 7B model with grouped keys.
const SHAPES: [Shape; 3] = [
    Shape { tokens: 16_384, heads: 14, kv_heads: 2, head_dim: 64 },
    Shape { tokens: 65_536, heads: 14, kv_heads: 2, head_dim: 64 },
    Shape { tokens: 65_536, heads: 32, kv_heads: 8, head_dim: 128 },
];

/// Tokens of a document.
const POSITIONS: usize = 2048;

/// Calls `f` with the benches of every shape, one shape's operands at a time: rotation alone, and with the bias.
pub fn each(on: &Gpu, f: &mut Taker) -> Result<(), GpuError> {
    for shape in SHAPES {
        let Shape { tokens, heads, kv_heads, head_dim } = shape;
        let tables = Tables::new(&Tables::inverse_frequencies(1e6, head_dim), POSITIONS);
        let positions: Vec<u32> = (0..tokens).map(|t| (t % POSITIONS) as u32).collect();
        let (cos, sin) =
            (on.upload(&Elem::F32.encode(tables.cos()))?, on.upload(&Elem::F32.encode(tables.sin()))?);
        let positions = on.upload(&le_bytes(&positions, u32::to_le_bytes))?;
        let rotation = Rotation { cos: cos.ptr(), sin: sin.ptr(), positions: positions.ptr() };
        let (qkv, bias) = (matrix(on, tokens, shape.packed())?, matrix(on, 1, shape.packed())?);
        let dbias = on.upload(&vec![0; 4 * shape.packed()])?;
        let scratch = on.alloc(4 * cuda::scratch_floats(on.processors(), shape, true, false))?;
        let (x, b, db, s) = (qkv.ptr(), bias.ptr(), dbias.ptr(), scratch.ptr());
        let bench = |op, elements: usize, run| Bench {
            op,
            case: format!("{tokens}x{heads}/{kv_heads}x{head_dim}"),
            bytes: 4 * (tokens * elements) as u64,
            flops: 0,
            run,
        };
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        let rotate = || unsafe { cuda::forward(on, Elem::Bf16, x, None, None, rotation, shape) };
        f(bench("qk_rope_forward", shape.rotated(), Box::new(rotate)))?;
        // SAFETY: as above.
        let back = || unsafe { cuda::backward(on, Elem::Bf16, x, None, None, rotation, s, shape) };
        f(bench("qk_rope_backward", shape.rotated(), Box::new(back)))?;
        // SAFETY: as above.
        let with_bias = || unsafe { cuda::forward(on, Elem::Bf16, x, Some(b), None, rotation, shape) };
        f(bench("qk_rope_bias_forward", shape.packed(), Box::new(with_bias)))?;
        // SAFETY: as above. Values are read for the bias alone, and written by nobody.
        let back = || unsafe { cuda::backward(on, Elem::Bf16, x, Some(db), None, rotation, s, shape) };
        let moved = (2 * shape.rotated() + kv_heads * head_dim).div_ceil(2);
        f(bench("qk_rope_bias_backward", moved, Box::new(back)))?;
    }
    Ok(())
}
