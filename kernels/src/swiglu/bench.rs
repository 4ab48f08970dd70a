//! SwiGLU on a GPU, for [`crate::gpu::bench`].

use super::{cases::workload, cuda, cuda_eager, reference};
use crate::gpu::{
    Elem, GpuError,
    bench::{Compared, EAGER, FUSED, Look, Operand, Room, Subject, Taker, Testbed, sample},
    eager::{Memory, traffic},
};

const ELEM: Elem = Elem::Bf16;

/// Rounding of the element type, and of the device's exponential.
const TOLERANCE: f64 = 4e-3;

/// Calls `f` with the benches of every shape, one shape's operands at a time.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, shapes: &[(usize, usize)], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for &(tokens, ffn) in shapes {
        let operands = Operands {
            on,
            shape: (tokens, ffn),
            gate_up: Operand::normal(on, ELEM, 1, 2 * tokens * ffn, 1.0)?,
            dact: Operand::normal(on, ELEM, 2, tokens * ffn, 1.0)?,
            act: Operand::output(on, ELEM, tokens * ffn)?,
        };
        operands.forward(f)?;
        operands.backward(f)?;
    }
    Ok(())
}

/// Operands of one shape, tokens and F.
struct Operands<'a, B: Testbed> {
    on: &'a B,
    shape: (usize, usize),
    gate_up: Operand<B::Memory>,
    dact: Operand<B::Memory>,
    act: Operand<B::Memory>,
}

impl<B: Testbed> Operands<'_, B> {
    fn room(&self) -> Room<B::Memory> {
        let (tokens, ffn) = self.shape;
        let saved = cuda_eager::saved_bytes(ELEM, tokens, ffn);
        Room::new(self.on, saved, cuda_eager::scratch_bytes(ELEM, tokens, ffn))
    }

    fn eager_forward(&self, memory: Memory) -> Result<(), GpuError> {
        let (on, (tokens, ffn)) = (self.on, self.shape);
        let [gate_up, act] = [&self.gate_up, &self.act].map(|m| m.ptr(on));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe { cuda_eager::forward(on.launcher(), ELEM, gate_up, act, memory, tokens, ffn) }
    }

    fn forward(&self, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
        let (on, (tokens, ffn), Self { gate_up, act, .. }) = (self.on, self.shape, self);
        let subject = Subject {
            on,
            work: workload("swiglu_forward", self.shape),
            changes: vec![vec![("act", act)]],
            memory_bytes: 0,
            compare: Box::new(|by| {
                rows(on, act, ("act", ffn), tokens, by.slack, |t| {
                    reference::forward(&gate_up.values().row(t, 2 * ffn), ffn)
                })
            }),
        };
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        subject.counted(f, FUSED, subject.work.bytes, |_| unsafe {
            cuda::forward(on.launcher(), ELEM, gate_up.ptr(on), act.ptr(on), tokens, ffn)
        })?;
        let (room, moved) = (self.room(), traffic(&cuda_eager::forward_passes(ELEM, tokens, ffn)));
        subject.counted(f, EAGER, moved, |_| self.eager_forward(room.at(on)?))
    }

    /// In place.
    fn backward(&self, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
        let (on, (tokens, ffn), Self { gate_up, dact, .. }) = (self.on, self.shape, self);
        let subject = Subject {
            on,
            work: workload("swiglu_backward", self.shape),
            changes: vec![vec![("dgate_up", gate_up)]],
            memory_bytes: 0,
            compare: Box::new(|by| {
                rows(on, gate_up, ("dgate_up", 2 * ffn), tokens, by.slack, |t| {
                    reference::backward(&gate_up.values().row(t, 2 * ffn), &dact.values().row(t, ffn), ffn)
                })
            }),
        };
        let [x, d] = [gate_up, dact].map(|m| m.ptr(on));
        // SAFETY: as above.
        subject.counted(f, FUSED, subject.work.bytes, |_| unsafe {
            cuda::backward(on.launcher(), ELEM, x, d, tokens, ffn)
        })?;
        let (room, moved) = (self.room(), traffic(&cuda_eager::backward_passes(ELEM, tokens, ffn)));
        // It reads what its forward pass saves of the projection.
        gate_up.restore(on)?;
        room.fill(on, |memory| self.eager_forward(memory))?;
        // SAFETY: as above.
        subject.counted(f, EAGER, moved, |_| unsafe {
            cuda_eager::backward(on.launcher(), ELEM, x, d, room.at(on)?, tokens, ffn)
        })
    }
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
