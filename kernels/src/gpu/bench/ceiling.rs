//! What the machine can do at best: a large copy, and a large matrix product.

use super::{Device, Operand, Testbed, measure::Copy};
use crate::gpu::{Elem, GpuError, Product, Ptr};

/// Bytes that the copy reads and writes together.
const COPY_BYTES: u64 = 4 << 30;

/// Rows, columns and terms of the product.
const SIDE: usize = 8192;

/// A rate that no kernel can exceed by much.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceiling {
    /// `copy` or `matmul`.
    pub name: &'static str,
    /// Bytes read and written; 0 for a product.
    pub bytes: u64,
    /// Floating-point operations; 0 for a copy.
    pub flops: u64,
    /// Every repetition, seconds.
    pub seconds: Vec<f64>,
}

/// Measures both: a device copy of 4 GiB, half read and half written, and a bf16 product of 8192³ on random operands, by the
/// fastest algorithm that cuBLASLt has.
///
/// # Errors
/// There is no room, or no cuBLASLt.
pub fn ceilings(on: &Device, repetitions: usize) -> Result<Vec<Ceiling>, GpuError> {
    Ok(vec![copy(on, repetitions)?, matmul(on, repetitions)?])
}

fn copy(on: &Device, repetitions: usize) -> Result<Ceiling, GpuError> {
    let copy = Copy::new(on, COPY_BYTES)?;
    let seconds = times(on, repetitions, || copy.run(on))?;
    Ok(Ceiling { name: "copy", bytes: COPY_BYTES, flops: 0, seconds })
}

fn matmul(on: &Device, repetitions: usize) -> Result<Ceiling, GpuError> {
    let product = Product::linear_forward(SIDE, SIDE, SIDE, Elem::Bf16);
    let operand = |seed| Operand::normal(on, Elem::Bf16, seed, SIDE * SIDE, 1.0);
    let (a, b, c) = (operand(1)?, operand(2)?, Operand::output(on, Elem::Bf16, SIDE * SIDE)?);
    let (products, [a, b, c]) = (on.products()?, [&a, &b, &c].map(|x| x.ptr(on)));
    // SAFETY: the operands have the extents of the product and outlive the measurement.
    let seconds = times(on, repetitions, || unsafe { products.product(&product, a, b, Ptr::NULL, c) })?;
    Ok(Ceiling { name: "matmul", bytes: 0, flops: product.flops(), seconds })
}

fn times(
    on: &Device,
    repetitions: usize,
    run: impl Fn() -> Result<(), GpuError>,
) -> Result<Vec<f64>, GpuError> {
    (0..3).try_for_each(|_| run())?;
    (0..repetitions).map(|_| on.gpu().time(&run)).collect()
}
