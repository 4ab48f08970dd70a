//! Products of linear layers on a GPU, for [`crate::gpu::bench`].

use super::cases::{Layer, Pass};
use crate::gpu::{
    Elem, Gpu, GpuError, Product, Products, Ptr,
    bench::{Bench, Taker, matrix},
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["gemm_forward", "gemm_dgrad", "gemm_wgrad"];

const fn layer(name: &'static str, outputs: usize, inputs: usize) -> Layer {
    Layer { name, outputs, inputs }
}

/// Tokens and layers of Qwen2.5-0.5B: a batch, and a chunk of it before the vocabulary.
const LAYERS: [(usize, Layer); 4] = [
    (16_384, layer("qkv", 1152, 896)),
    (16_384, layer("gate_up", 9728, 896)),
    (16_384, layer("down", 896, 4864)),
    (4096, layer("lm_head", 151_936, 896)),
];

const ELEM: Elem = Elem::Bf16;

/// Calls `f` with the three products of every layer, one layer's operands at a time; the weight's gradient is f32 and added to.
pub fn each(on: &Gpu, products: &dyn Products, f: &mut Taker) -> Result<(), GpuError> {
    for (t, Layer { name, outputs: n, inputs: k }) in LAYERS {
        let (x, w, dy) = (matrix(on, t, k)?, matrix(on, n, k)?, matrix(on, t, n)?);
        for pass in Pass::ALL {
            let (op, product, a, b) = match pass {
                Pass::Forward => ("gemm_forward", Product::linear_forward(t, n, k, ELEM), &x, &w),
                Pass::Dgrad => ("gemm_dgrad", Product::linear_dgrad(t, n, k, ELEM), &dy, &w),
                Pass::Wgrad => ("gemm_wgrad", Product::linear_wgrad(t, n, k, ELEM), &dy, &x),
            };
            let c = on.repeat(&[0; 4], product.m * product.n * product.out.bytes())?;
            // What is added to is read too.
            let moved = c.bytes() * if product.accumulate { 2 } else { 1 };
            f(Bench {
                op,
                case: format!("{name} {}x{}x{}", product.m, product.n, product.k),
                bytes: (a.bytes() + b.bytes() + moved) as u64,
                flops: product.flops(),
                // SAFETY: the operands have the extents of the product and outlive the measurement.
                run: Box::new(|| unsafe { products.product(&product, a.ptr(), b.ptr(), Ptr::NULL, c.ptr()) }),
            })?;
        }
    }
    Ok(())
}
