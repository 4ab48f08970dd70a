//! Projections and their adapters: products, and the calls of LoRA's kernels. What `seams` relies on holds here.

use chronicals_kernels::{
    Seam,
    gpu::{GpuError, Machine, Product, Products, Ptr},
    lora::{cuda as lora, cuda_eager as lora_eager},
};

use super::{CudaBackend, submit::Logged};
use crate::backend::{Adapter, Linear, View};

impl<D: Machine> CudaBackend<D> {
    /// Adapters on a projection and their operands.
    fn adapters(&self, l: &Linear, ad: &Adapter, x: View) -> (lora::Group, lora::Operands) {
        let group = self.extents.lora(l, ad, self.shape.tokens);
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
        (group, operands)
    }

    /// `y = x·Wᵀ`, plus adapters unless SwiGLU adds them.
    pub(super) fn project(&self, on: &Logged<'_>, l: &Linear, x: View, y: View) -> Result<(), GpuError> {
        let p = Product::linear_forward(self.shape.tokens, l.outputs, l.inputs, self.elem());
        // SAFETY: see `seams`.
        let own = || unsafe { on.product(&p, self.at(x), self.at(l.weight.value), Ptr::NULL, self.at(y)) };
        let [first, more @ ..] = l.adapters.as_slice() else { return own() };
        self.adapt(on, l, first, [x, y], &mut || on.without(own))?;
        more.iter().try_for_each(|ad| self.adapt(on, l, ad, [x, y], &mut || Ok(())))
    }

    /// Adds an adapter's part to what `own` writes.
    fn adapt(
        &self,
        on: &Logged<'_>,
        l: &Linear,
        ad: &Adapter,
        [x, y]: [View; 2],
        own: &mut dyn FnMut() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let (group, operands) = self.adapters(l, ad, x);
        on.within(Seam::Lora);
        // SAFETY: see `seams`.
        unsafe {
            if self.is_eager(Seam::Lora) {
                own()?;
                return lora_eager::forward(on, on, &group, &ad.segments, &operands, self.at(y));
            }
            let y = (!self.leaves_output(l)).then(|| self.at(y));
            lora::forward(on, on, &group, &operands, y, own)
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
        let own = || {
            if let Some(dx) = dx {
                let p = Product::linear_dgrad(t, n, k, elem);
                // SAFETY: see `seams`.
                unsafe { on.product(&p, self.at(dy), self.at(l.weight.value), Ptr::NULL, self.at(dx))? };
            }
            if let Some(dw) = l.weight.grad {
                let p = Product { accumulate: !self.first, ..Product::linear_wgrad(t, n, k, elem) };
                // SAFETY: see `seams`.
                unsafe { on.product(&p, self.at(dy), self.at(x), Ptr::NULL, self.at(dw))? };
            }
            Ok(())
        };
        let [first, more @ ..] = l.adapters.as_slice() else { return own() };
        self.adapt_back(on, l, first, [dy, x], dx, &mut || on.without(own))?;
        more.iter().try_for_each(|ad| self.adapt_back(on, l, ad, [dy, x], dx, &mut || Ok(())))
    }

    /// Gradients of an adapter, which adds to that of x what `own` leaves there.
    fn adapt_back(
        &self,
        on: &Logged<'_>,
        l: &Linear,
        ad: &Adapter,
        [dy, x]: [View; 2],
        dx: Option<View>,
        own: &mut dyn FnMut() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let (group, operands) = self.adapters(l, ad, x);
        let [da_SD, db] = [&ad.a, &ad.b].map(|p| self.at(p.grad.expect("adapters train")));
        let dx_TD = dx.filter(|_| !self.leaves_gradient(l)).map(|v| self.at(v));
        let gradients = lora::Gradients { dy_TN: self.at(dy), dxa_TS: self.at(ad.dxa), da_SD, db, dx_TD };
        on.within(Seam::Lora);
        // SAFETY: see `seams`; the forward pass left x·Aᵀ.
        unsafe {
            if self.is_eager(Seam::Lora) {
                own()?;
                return lora_eager::backward(on, on, &group, &ad.segments, &operands, &gradients);
            }
            lora::backward(on, on, &group, &operands, &gradients, own)
        }
    }
}
