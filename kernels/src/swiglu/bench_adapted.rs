//! SwiGLU that adds the updates of adapters, for [`crate::gpu::bench`]. No variant is beside it: what it replaces is SwiGLU and the
//! products of [`crate::lora`] that write updates by themselves.

use super::{
    cases::{Adapted, adapted_workload},
    cuda_adapted::{self as cuda, Behind, Gradient, Layer},
    reference,
};
use crate::{
    gpu::{
        Elem, GpuError,
        bench::{Compared, FUSED, Look, Operand, Subject, Taker, Testbed, sample},
    },
    lora::{Segment, Shape, cuda::Group},
};

const ELEM: Elem = Elem::Bf16;

/// α/r, a power of two: a scaled B is exact.
const SCALE: f32 = 2.0;

/// Rounding of the results, and of the device's exponential.
const TOLERANCE: f64 = 4e-3;

/// Calls `f` with both passes of every shape of the list.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, shapes: &[Adapted], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for shape in shapes {
        let operands = Operands::new(on, *shape)?;
        operands.forward(f)?;
        operands.backward(f)?;
    }
    Ok(())
}

/// Operands of one shape: adapters of one rank on gate, up and what reads the activation.
struct Operands<'a, B: Testbed> {
    on: &'a B,
    shape: Adapted,
    layer: Layer,
    behind: Behind,
    gate_up: Operand<B::Memory>,
    act: Operand<B::Memory>,
    xa: Operand<B::Memory>,
    b: Operand<B::Memory>,
    dact: Operand<B::Memory>,
    dxa: Operand<B::Memory>,
    a: Operand<B::Memory>,
}

impl<'a, B: Testbed> Operands<'a, B> {
    fn new(on: &'a B, shape: Adapted) -> Result<Self, GpuError> {
        let Adapted { tokens: t, ffn, r } = shape;
        let normal = |seed, len, scale| Operand::normal(on, ELEM, seed, len, scale);
        let halves = [0, ffn].map(|offset| Segment { offset, width: ffn, r });
        let group = |segments: &[Segment], outputs| {
            Group::new(segments, Shape { tokens: t, inputs: 8, outputs }, ELEM, SCALE)
        };
        let behind = group(&[Segment { offset: 0, width: 8, r }], 8);
        let too_large = || {
            GpuError::new(format!("adapters of rank {r}"), "SwiGLU with adapters", "choose a smaller rank")
        };
        Ok(Self {
            on,
            shape,
            layer: Layer::new(on.launcher(), &halves, &group(&halves, 2 * ffn)).ok_or_else(too_large)?,
            behind: Behind::new(on.launcher(), &behind).ok_or_else(too_large)?,
            gate_up: normal(1, t * 2 * ffn, 1.0)?,
            act: Operand::output(on, ELEM, t * ffn)?,
            xa: normal(2, t * 2 * r, 1.0)?,
            b: normal(3, 2 * ffn * r, 0.05)?,
            dact: normal(4, t * ffn, 1.0)?,
            dxa: normal(5, t * r, 1.0)?,
            a: normal(6, r * ffn, 0.05)?,
        })
    }

    fn inputs(&self) -> cuda::Operands {
        let [gate_up_T2F, xa_TS, b] = [&self.gate_up, &self.xa, &self.b].map(|m| m.ptr(self.on));
        cuda::Operands { gate_up_T2F, xa_TS, b }
    }

    /// Gate and up of token `t`, updated.
    fn updated(&self, t: usize) -> Vec<f64> {
        let Adapted { ffn, r, .. } = self.shape;
        let (xa, b) = (self.xa.values().row(t, 2 * r), self.b.values());
        let mut row = self.gate_up.values().row(t, 2 * ffn);
        for (n, value) in row.iter_mut().enumerate() {
            let first = if n < ffn { 0 } else { r };
            let term = |k| xa[first + k] * b.at(n * r + k);
            *value += f64::from(SCALE) * (0..r).map(term).sum::<f64>();
        }
        row
    }

    /// The gradient of the activation of token `t`, updated.
    fn updated_gradient(&self, t: usize) -> Vec<f64> {
        let Adapted { ffn, r, .. } = self.shape;
        let mut row = self.dact.values().row(t, ffn);
        let update = self.a.values().combine(&self.dxa.values().row(t, r), ffn);
        row.iter_mut().zip(update).for_each(|(d, u)| *d += u);
        row
    }

    fn forward(&self, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
        let (on, Adapted { tokens, ffn, .. }) = (self.on, self.shape);
        let subject = Subject {
            on,
            work: adapted_workload("swiglu_adapted_forward", self.shape),
            changes: vec![vec![("act", &self.act)]],
            memory_bytes: 0,
            compare: Box::new(|by| {
                let want = |t| reference::forward(&self.updated(t), ffn);
                self.rows(&self.act, ("act", ffn), by.slack, want)
            }),
        };
        let (inputs, act) = (self.inputs(), self.act.ptr(on));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        subject.counted(f, FUSED, subject.work.bytes, |_| unsafe {
            cuda::forward(on.launcher(), &self.layer, &inputs, act, tokens, ffn)
        })
    }

    /// In place.
    fn backward(&self, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
        let (on, Adapted { tokens, ffn, .. }) = (self.on, self.shape);
        let subject = Subject {
            on,
            work: adapted_workload("swiglu_adapted_backward", self.shape),
            changes: vec![vec![("dgate_up", &self.gate_up)]],
            memory_bytes: 0,
            compare: Box::new(|by| {
                let want = |t| reference::backward(&self.updated(t), &self.updated_gradient(t), ffn);
                self.rows(&self.gate_up, ("dgate_up", 2 * ffn), by.slack, want)
            }),
        };
        let inputs = self.inputs();
        let [dact_TF, dxa_TS, a_RF] = [&self.dact, &self.dxa, &self.a].map(|m| m.ptr(on));
        let gradient = Gradient { dact_TF, dxa_TS, a_RF };
        // SAFETY: as above.
        subject.counted(f, FUSED, subject.work.bytes, |_| unsafe {
            cuda::backward(on.launcher(), &self.layer, &self.behind, &inputs, &gradient, tokens, ffn)
        })
    }

    /// Sampled rows of an output.
    fn rows(
        &self,
        output: &Operand<B::Memory>,
        (name, width): (&str, usize),
        slack: f64,
        want: impl Fn(usize) -> Vec<f64>,
    ) -> Result<Vec<Compared>, GpuError> {
        let mut look = Look::default();
        for t in sample(self.shape.tokens, 4) {
            look.add(t * width, output.now(self.on, t * width, width)?, want(t));
        }
        Ok(vec![look.against_largest(name, slack * TOLERANCE)])
    }
}
