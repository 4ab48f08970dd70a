//! Linear cross-entropy on a GPU, for [`crate::gpu::bench`], beside its three products alone.

use super::{
    Options, Shape,
    cuda::{self, Gradients, Operands, Plan},
};
use crate::gpu::{
    Elem, Gpu, GpuError, Product, Products, Ptr,
    bench::{Bench, Taker, matrix},
    le_bytes,
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["linear_ce_products", "linear_ce_rows", "linear_ce"];

/// Qwen2.5-0.5B's head over 16k tokens.
const SHAPE: Shape = Shape { tokens: 16_384, hidden: 896, vocab: 151_936 };

/// Rows of logits at a time.
const CHUNKS: [usize; 3] = [2048, 4096, 8192];

const ELEM: Elem = Elem::Bf16;

/// Calls `f` with forward and backward in chunks of several sizes, and with the products on the whole batch: logits, and the
/// gradients of x and W (f32).
pub fn each(on: &Gpu, products: &dyn Products, f: &mut Taker) -> Result<(), GpuError> {
    let Shape { tokens: t, hidden: d, vocab: v } = SHAPE;
    let (x, dx, w) = (matrix(on, t, d)?, matrix(on, t, d)?, matrix(on, v, d)?);
    let dw = on.repeat(&[0; 4], 4 * v * d)?;
    let flops = 6 * (t * d * v) as u64;
    // x and dx, W, and its gradient read and written.
    let bytes = (2 * 2 * t * d + 2 * v * d + 8 * v * d) as u64;
    {
        let logits = on.alloc(2 * t * v)?;
        let all = [
            (Product::linear_forward(t, v, d, ELEM), &x, &w, &logits),
            (Product::linear_dgrad(t, v, d, ELEM), &logits, &w, &dx),
            (Product::linear_wgrad(t, v, d, ELEM), &logits, &x, &dw),
        ];
        f(Bench {
            op: "linear_ce_products",
            case: format!("{t}x{d}x{v}"),
            bytes,
            flops,
            run: Box::new(|| {
                for (product, a, b, c) in &all {
                    // SAFETY: the operands have the extents of the products and outlive the measurement.
                    unsafe { products.product(product, a.ptr(), b.ptr(), Ptr::NULL, c.ptr())? };
                }
                Ok(())
            }),
        })?;
    }
    let labels: Vec<i32> = (0..t).map(|i| (i * 7919 % v) as i32).collect();
    for chunk in CHUNKS {
        let plan = Plan { chunk, ..Plan::new(SHAPE, ELEM, t) };
        let index = le_bytes(&cuda::index(&labels, &plan), i32::to_le_bytes);
        let held = [
            on.upload(&index)?,
            on.upload(&0f64.to_le_bytes())?,
            on.alloc(plan.scratch_bytes())?,
            on.upload(&(1.0 / t as f32).to_le_bytes())?,
        ];
        let [index, loss, scratch, scale] = held.each_ref().map(|b| b.ptr());
        let operands = Operands { x_TD: x.ptr(), w_VD: w.ptr(), index, loss, scratch };
        let gradients = Gradients { scale, dx_TD: dx.ptr(), dw_VD: Some(dw.ptr()) };
        f(Bench {
            op: "linear_ce_rows",
            case: format!("{chunk}x{v}"),
            bytes: (4 * chunk * v) as u64,
            flops: 0,
            // SAFETY: as above; the scratch begins with the logits of a chunk. They are gradients after the first time.
            run: Box::new(|| unsafe {
                let losses = scratch.offset(plan.chunk_bytes());
                let (extents, opts) = ((chunk, v), Options::default());
                cuda::rows(on, ELEM, scratch, index, Some(scale), losses, extents, opts)
            }),
        })?;
        f(Bench {
            op: "linear_ce",
            case: format!("{t}x{d}x{v} by {chunk}"),
            bytes,
            flops,
            // SAFETY: as above.
            run: Box::new(|| unsafe {
                cuda::forward_backward(on, products, &operands, &gradients, &plan, Options::default())
            }),
        })?;
    }
    Ok(())
}
