//! SwiGLU that adds the updates of the adapters next to it: what a projection left to it.

use chronicals_kernels::{
    Seam,
    gpu::{Elem, GpuError, Machine, Ptr},
    lora::cuda::Group,
    swiglu::cuda_adapted::{self as swiglu, Behind, Layer},
};

use super::{CudaBackend, submit::Logged};
use crate::backend::{Adapter, Beside, Linear, View};

impl<D: Machine> CudaBackend<D> {
    /// A projection's adapters, if it is on that side of SwiGLU, which can add their updates where they are one batch. Eager seams are
    /// whole by themselves.
    fn adapted<'l>(&self, l: &'l Linear, side: Beside) -> Option<(&'l Adapter, Group)> {
        let fused = !self.is_eager(Seam::Lora) && !self.is_eager(Seam::Mlp);
        let usable = l.beside == side && fused && self.elem() == Elem::Bf16;
        match l.adapters.as_slice() {
            [adapter] if usable => Some((adapter, self.extents.lora(l, adapter, self.shape.tokens))),
            _ => None,
        }
    }

    /// What the projection to gate and up leaves to SwiGLU.
    fn before<'l>(&self, l: &'l Linear) -> Option<(&'l Adapter, Layer)> {
        let (adapter, group) = self.adapted(l, Beside::ReaderOfOutput)?;
        Some((adapter, Layer::new(self.device.launcher(), &adapter.segments, &group)?))
    }

    /// What the gradient of the activation's reader leaves to it.
    fn behind<'l>(&self, l: &'l Linear) -> Option<(&'l Adapter, Behind)> {
        let (adapter, group) = self.adapted(l, Beside::WriterOfInput)?;
        Some((adapter, Behind::new(self.device.launcher(), &group)?))
    }

    /// Whether a projection's output is short of the adapters' part.
    pub(super) fn leaves_output(&self, l: &Linear) -> bool {
        self.before(l).is_some()
    }

    /// Whether the gradient of its input is.
    pub(super) fn leaves_gradient(&self, l: &Linear) -> bool {
        self.behind(l).is_some()
    }

    fn layer(&self, before: &Linear, gate_up: View) -> (Layer, swiglu::Operands) {
        let gate_up_T2F = self.at(gate_up);
        match self.before(before) {
            Some((a, layer)) => {
                (layer, swiglu::Operands { gate_up_T2F, xa_TS: self.at(a.xa), b: self.at(a.b.value) })
            }
            None => (Layer::NONE, swiglu::Operands { gate_up_T2F, xa_TS: Ptr::NULL, b: Ptr::NULL }),
        }
    }

    pub(super) fn adapted_swiglu(
        &self,
        on: &Logged<'_>,
        before: &Linear,
        gate_up: View,
        act: View,
    ) -> Result<(), GpuError> {
        let (layer, operands) = self.layer(before, gate_up);
        let (t, ffn) = (self.shape.tokens, self.extents.dims.ffn);
        // SAFETY: see `seams`; the projection left x·Aᵀ.
        unsafe { swiglu::forward(on, &layer, &operands, self.at(act), t, ffn) }
    }

    pub(super) fn adapted_swiglu_backward(
        &self,
        on: &Logged<'_>,
        before: &Linear,
        behind: &Linear,
        gate_up: View,
        dact: View,
    ) -> Result<(), GpuError> {
        let (layer, operands) = self.layer(before, gate_up);
        let dact_TF = self.at(dact);
        let (behind, gradient) = match self.behind(behind) {
            Some((a, behind)) => {
                let [dxa_TS, a_RF] = [a.dxa, a.a.value].map(|v| self.at(v));
                (behind, swiglu::Gradient { dact_TF, dxa_TS, a_RF })
            }
            None => (Behind::NONE, swiglu::Gradient { dact_TF, dxa_TS: Ptr::NULL, a_RF: Ptr::NULL }),
        };
        let (t, ffn) = (self.shape.tokens, self.extents.dims.ffn);
        // SAFETY: see `seams`; the projections left x·Aᵀ and s·dy·B.
        unsafe { swiglu::backward(on, &layer, &behind, &operands, &gradient, t, ffn) }
    }
}
