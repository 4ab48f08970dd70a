//! Projections and their adapters: products, and the calls of LoRA's kernels. What `seams` relies on holds here.

use chronicals_kernels::{
    Seam,
    gpu::{GpuError, Machine, Product, Products, Ptr},
    lora::{cuda as lora, cuda_eager as lora_eager},
};

use super::{CudaBackend, submit::Logged};
use crate::backend::{Linear, View};

impl<D: Machine> CudaBackend<D> {
    /// A projection's adapters and their operands.
    fn adapters(&self, l: &Linear, x: View) -> Option<(lora::Group, lora::Operands)> {
        let (ad, group) = (l.adapter.as_ref()?, self.extents.lora(l, self.shape.tokens)?);
        let mut tables = self.own().segments.iter();
        let (_, table) = tables.find(|(list, _)| *list == ad.segments).expect("every list has its table");
        let operands = lora::Operands {
            x_TD: self.at(x),
            a_SD: self.at(ad.a.value),
            b: self.at(ad.b.value),
            xa_TS: self.at(ad.xa),
            table: self.ptr(table, 0),
            scratch: self.scratch(),
        };
        Some((group, operands))
    }

    /// `y = x·Wᵀ`, plus adapters unless SwiGLU adds them.
    pub(super) fn project(&self, on: &Logged<'_>, l: &Linear, x: View, y: View) -> Result<(), GpuError> {
        let p = Product::linear_forward(self.shape.tokens, l.outputs, l.inputs, self.elem());
        // SAFETY: see `seams`.
        unsafe { on.product(&p, self.at(x), self.at(l.weight.value), Ptr::NULL, self.at(y))? };
        let Some(((group, operands), ad)) = self.adapters(l, x).zip(l.adapter.as_ref()) else {
            return Ok(());
        };
        on.within(Seam::Lora);
        // SAFETY: see `seams`.
        unsafe {
            if self.is_eager(Seam::Lora) {
                return lora_eager::forward(on, on, &group, &ad.segments, &operands, self.at(y));
            }
            let y = (!self.leaves_output(l)).then(|| self.at(y));
            lora::forward(on, on, &group, &operands, y)
        }
    }

    /// Gradients of [`project`](Self::project).
    pub(super) fn project_back(
        &self,
        on: &Logged<'_>,
        l: &Linear,
        dy: View,
        x: View,
        dx: Option<View>,
    ) -> Result<(), GpuError> {
        let (t, n, k, elem) = (self.shape.tokens, l.outputs, l.inputs, self.elem());
        let dx_TD = dx.map(|v| self.at(v));
        if let Some(dx) = dx_TD {
            let p = Product::linear_dgrad(t, n, k, elem);
            // SAFETY: see `seams`.
            unsafe { on.product(&p, self.at(dy), self.at(l.weight.value), Ptr::NULL, dx)? };
        }
        if let Some(dw) = l.weight.grad {
            let p = Product { accumulate: !self.first, ..Product::linear_wgrad(t, n, k, elem) };
            // SAFETY: see `seams`.
            unsafe { on.product(&p, self.at(dy), self.at(x), Ptr::NULL, self.at(dw))? };
        }
        let Some(((group, operands), ad)) = self.adapters(l, x).zip(l.adapter.as_ref()) else {
            return Ok(());
        };
        let [da_SD, db] = [&ad.a, &ad.b].map(|p| self.at(p.grad.expect("adapters train")));
        let dx_TD = dx_TD.filter(|_| !self.leaves_gradient(l));
        let gradients = lora::Gradients { dy_TN: self.at(dy), dxa_TS: self.at(ad.dxa), da_SD, db, dx_TD };
        on.within(Seam::Lora);
        // SAFETY: see `seams`; the forward pass left x·Aᵀ.
        unsafe {
            if self.is_eager(Seam::Lora) {
                return lora_eager::backward(on, on, &group, &ad.segments, &operands, &gradients);
            }
            lora::backward(on, on, &group, &operands, &gradients)
        }
    }
}
