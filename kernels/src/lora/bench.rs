//! LoRA on a GPU, for [`crate::gpu::bench`].

use super::{
    Segment, Shape, b_len,
    cases::Case,
    cuda::{self, Gradients, Group, Operands},
};
use crate::gpu::{
    Buffer, Elem, Gpu, GpuError, Products,
    bench::{Bench, Taker, matrix},
    le_bytes,
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["lora_forward", "lora_backward"];

const ELEM: Elem = Elem::Bf16;

const fn segment(offset: usize, width: usize) -> Segment {
    Segment { offset, width, r: 16 }
}

/// Rank 16 on a batch of Qwen2.5-0.5B.
const CASES: [Case; 2] = [
    Case {
        name: "qkv",
        shape: Shape { tokens: 16_384, inputs: 896, outputs: 1152 },
        segments: &[segment(0, 896), segment(896, 128), segment(1024, 128)],
        seed: 1,
    },
    Case {
        name: "gate_up",
        shape: Shape { tokens: 16_384, inputs: 896, outputs: 9728 },
        segments: &[segment(0, 4864), segment(4864, 4864)],
        seed: 2,
    },
];

/// Calls `f` with both passes of every case, one case's operands at a time. FLOPs are those without the zeros.
pub fn each(on: &Gpu, products: &dyn Products, f: &mut Taker) -> Result<(), GpuError> {
    for case in CASES {
        let Case { name, shape: shape @ Shape { tokens: t, inputs: d, outputs: n }, segments, .. } = case;
        let group = Group::new(segments, shape, ELEM, 2.0);
        let (s, b_len) = (group.s, b_len(segments));
        let held = [
            matrix(on, t, d)?,
            matrix(on, s, d)?,
            matrix(on, 1, b_len)?,
            matrix(on, t, s)?,
            on.upload(&le_bytes(&cuda::table(segments), i32::to_le_bytes))?,
            on.alloc(group.scratch_bytes())?,
        ];
        let [x_TD, a_SD, b, xa_TS, table, scratch] = held.each_ref().map(Buffer::ptr);
        let operands = Operands { x_TD, a_SD, b, xa_TS, table, scratch };
        let (y, dy, dx, dxa) =
            (matrix(on, t, n)?, matrix(on, t, n)?, matrix(on, t, d)?, on.alloc(2 * t * s)?);
        let (da, db) = (on.repeat(&[0; 4], 4 * s * d)?, on.repeat(&[0; 4], 4 * b_len)?);
        let gradients = Gradients {
            dy_TN: dy.ptr(),
            dxa_TS: dxa.ptr(),
            da_SD: da.ptr(),
            db: db.ptr(),
            dx_TD: Some(dx.ptr()),
        };
        let parameters = s * d + b_len;
        let bench = |op, bytes: usize, flops, run| Bench {
            op,
            case: format!("{name} {t}x{d}x{n} r16"),
            bytes: bytes as u64,
            flops,
            run,
        };
        f(bench(
            "lora_forward",
            2 * (t * (d + s + 2 * n) + parameters),
            case.forward_flops(),
            // SAFETY: the operands have the lengths that their docs say and outlive the measurement.
            Box::new(|| unsafe { cuda::forward(on, products, &group, &operands, y.ptr()) }),
        ))?;
        f(bench(
            "lora_backward",
            // x, xa, dy, and dx read and written; the gradients of the parameters, f32, too.
            2 * t * (3 * d + s + n) + (2 + 8) * parameters,
            case.backward_flops(),
            // SAFETY: as above.
            Box::new(|| unsafe { cuda::backward(on, products, &group, &operands, &gradients) }),
        ))?;
    }
    Ok(())
}
