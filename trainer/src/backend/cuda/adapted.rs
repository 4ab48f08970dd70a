//! SwiGLU that adds the updates of the adapters next to it: what a projection left to it.

use chronicals_kernels::{
    Seam,
    gpu::{Elem, GpuError, Machine, Ptr},
    lora::cuda::{Group, Operands as LoraOperands},
    swiglu::cuda_adapted::{self as swiglu, Behind, Layer, MOST_RANKS},
};

use super::{CudaBackend, submit::Logged};
use crate::backend::{Adapter, Beside, Linear, View};

/// A projection's adapters with their operands.
type Adapted<'l> = (&'l Adapter, Group, LoraOperands);

impl<D: Machine> CudaBackend<D> {
    /// Whether what lies between a projection and SwiGLU is short of the adapters' part. Eager seams are whole by themselves.
    pub(super) fn leaves_update(&self, l: &Linear) -> bool {
        let fused = !self.is_eager(Seam::Lora) && !self.is_eager(Seam::Mlp);
        let narrow = |a: &Adapter| a.segments.iter().all(|s| s.r <= MOST_RANKS);
        l.beside != Beside::Nothing
            && fused
            && self.elem() == Elem::Bf16
            && l.adapter.as_ref().is_some_and(narrow)
    }

    /// What a projection left to SwiGLU.
    fn left<'l>(&self, l: &'l Linear) -> Option<Adapted<'l>> {
        let adapter = l.adapter.as_ref().filter(|_| self.leaves_update(l))?;
        // Its input is of no interest here.
        let (group, operands) = self.adapters(l, adapter.xa)?;
        Some((adapter, group, operands))
    }

    fn layer(&self, before: Option<&Adapted<'_>>, gate_up: View) -> (Layer, swiglu::Operands) {
        let gate_up_T2F = self.at(gate_up);
        match before {
            Some((adapter, group, o)) => {
                let operands = swiglu::Operands { gate_up_T2F, xa_TS: o.xa_TS, b: o.b };
                (Layer::new(&adapter.segments, group), operands)
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
        let (layer, operands) = self.layer(self.left(before).as_ref(), gate_up);
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
        let (layer, operands) = self.layer(self.left(before).as_ref(), gate_up);
        let dact_TF = self.at(dact);
        let (behind, gradient) = match self.left(behind) {
            Some((adapter, group, o)) => (
                Behind { ranks: group.ranks, s: group.s },
                swiglu::Gradient { dact_TF, dxa_TS: self.at(adapter.dxa), a_RF: o.a_SD },
            ),
            None => {
                (Behind { ranks: 0, s: 0 }, swiglu::Gradient { dact_TF, dxa_TS: Ptr::NULL, a_RF: Ptr::NULL })
            }
        };
        let (t, ffn) = (self.shape.tokens, self.extents.dims.ffn);
        // SAFETY: see `seams`; the projections left x·Aᵀ and s·dy·B.
        unsafe { swiglu::backward(on, &layer, &behind, &operands, &gradient, t, ffn) }
    }
}
