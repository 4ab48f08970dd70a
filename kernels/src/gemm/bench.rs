//! Products of linear layers on a GPU, for [`crate::gpu::bench`].

use rayon::prelude::*;

use super::cases::{Layer, Pass, product, workload};
use crate::gpu::{
    Elem, GpuError, Product, Ptr,
    bench::{Compared, FUSED, Look, Operand, Subject, Taker, Testbed, Values, sample},
};

const ELEM: Elem = Elem::Bf16;

/// Rounding of the result to bf16, or sums in f32 on tensor cores.
fn tolerance(out: Elem) -> f64 {
    match out {
        Elem::Bf16 => 6e-3,
        Elem::F32 => 1e-3,
    }
}

/// Calls `f` with the three products of every layer, one layer's operands at a time.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, layers: &[(usize, Layer)], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for &(t, layer) in layers {
        let Layer { outputs: n, inputs: k, .. } = layer;
        let x = Operand::normal(on, ELEM, 1, t * k, 1.0)?;
        let w = Operand::normal(on, ELEM, 2, n * k, 0.02)?;
        let dy = Operand::normal(on, ELEM, 3, t * n, 1.0)?;
        for pass in Pass::ALL {
            let p = product(pass, t, layer);
            let (a, b) = match pass {
                Pass::Forward => (&x, &w),
                Pass::Dgrad => (&dy, &w),
                Pass::Wgrad => (&dy, &x),
            };
            let c = match p.accumulate {
                true => Operand::of(on, p.out, p.m * p.n, &[0.0])?,
                false => Operand::output(on, p.out, p.m * p.n)?,
            };
            let subject = Subject {
                on,
                work: workload(pass, t, layer),
                changes: vec![vec![("c", &c)]],
                memory_bytes: 0,
                compare: Box::new(|by| rows(on, &p, [a.values(), b.values()], &c, by.slack)),
            };
            // SAFETY: the operands have the extents of the product and outlive the measurement.
            subject.variant(f, FUSED, |_| unsafe {
                on.products()?.product(&p, a.ptr(on), b.ptr(on), Ptr::NULL, c.ptr(on))
            })?;
        }
    }
    Ok(())
}

/// Sampled rows of a product.
fn rows<B: Testbed>(
    on: &B,
    p: &Product,
    [a, b]: [&Values; 2],
    c: &Operand<B::Memory>,
    slack: f64,
) -> Result<Vec<Compared>, GpuError> {
    let mut look = Look::default();
    for i in sample(p.m, 2) {
        let left: Vec<f64> = (0..p.k).map(|l| a.at(p.a.at(i, l))).collect();
        let element = |j: usize| (0..p.k).map(|l| left[l] * b.at(p.b.at(l, j))).sum();
        let want = (0..p.n).into_par_iter().map(element).collect();
        look.add(i * p.n, c.now(on, i * p.n, p.n)?, want);
    }
    Ok(vec![look.against_largest("c", slack * tolerance(p.out))])
}
