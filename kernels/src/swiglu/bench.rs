//! SwiGLU on a GPU, for [`crate::gpu::bench`].

use super::{cases::workload, cuda, reference};
use crate::gpu::{
    Elem, GpuError,
    bench::{Compared, FUSED, Look, Operand, Subject, Taker, Testbed, sample},
};

const ELEM: Elem = Elem::Bf16;

/// Rounding of the element type, and of the device's exponential.
const TOLERANCE: f64 = 4e-3;

/// Calls `f` with the benches of every shape, one shape's operands at a time.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, shapes: &[(usize, usize)], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for &shape in shapes {
        let (tokens, ffn) = shape;
        let gate_up = Operand::normal(on, ELEM, 1, 2 * tokens * ffn, 1.0)?;
        let dact = Operand::normal(on, ELEM, 2, tokens * ffn, 1.0)?;
        let act = Operand::output(on, ELEM, tokens * ffn)?;
        let forward = Subject {
            on,
            work: workload("swiglu_forward", shape),
            changes: vec![vec![("act", &act)]],
            memory_bytes: 0,
            compare: Box::new(|slack| {
                rows(on, &act, ("act", ffn), tokens, slack, |t| {
                    reference::forward(&gate_up.values().row(t, 2 * ffn), ffn)
                })
            }),
        };
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        forward.variant(f, FUSED, |_| unsafe {
            cuda::forward(on.launcher(), ELEM, gate_up.ptr(on), act.ptr(on), tokens, ffn)
        })?;
        let backward = Subject {
            on,
            work: workload("swiglu_backward", shape),
            changes: vec![vec![("dgate_up", &gate_up)]],
            memory_bytes: 0,
            compare: Box::new(|slack| {
                rows(on, &gate_up, ("dgate_up", 2 * ffn), tokens, slack, |t| {
                    reference::backward(&gate_up.values().row(t, 2 * ffn), &dact.values().row(t, ffn), ffn)
                })
            }),
        };
        // SAFETY: as above; it works in place.
        backward.variant(f, FUSED, |_| unsafe {
            cuda::backward(on.launcher(), ELEM, gate_up.ptr(on), dact.ptr(on), tokens, ffn)
        })?;
    }
    Ok(())
}

/// Sampled rows of an output.
fn rows<B: Testbed>(
    on: &B,
    output: &Operand<B::Memory>,
    (name, width): (&str, usize),
    tokens: usize,
    slack: f64,
    want: impl Fn(usize) -> Vec<f64>,
) -> Result<Vec<Compared>, GpuError> {
    let mut look = Look::default();
    for t in sample(tokens, 6) {
        look.add(t * width, output.now(on, t * width, width)?, want(t));
    }
    Ok(vec![look.against_largest(name, slack * TOLERANCE)])
}
