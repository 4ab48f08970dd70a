//! Adapters on the CPU, and parts of the gradients.

use std::ops::Range;

use chronicals_kernels::{Seam, lora};

use super::CpuBackend;
use crate::backend::{Adapter, Linear, Param, View};

/// The parts of a locked gradient buffer.
pub(super) fn split<'a, const N: usize>(
    buffer: &'a mut [f32],
    ranges: &[Range<usize>; N],
) -> [&'a mut [f32]; N] {
    buffer.get_disjoint_mut(ranges.clone()).expect("parameters do not overlap")
}

impl CpuBackend {
    /// The part in use of an adapter's `[T, S]`, rows without the room at their ends.
    fn ranks(&self, ad: &Adapter, v: View) -> View {
        v.slice(0, self.tokens() * ad.ranks())
    }

    pub(super) fn adapter_forward(&mut self, l: &Linear, ad: &Adapter, x: View, y: View) {
        let variant = self.launch(Seam::Lora, "forward", |b| b.adapter_cost(l, ad, false));
        let shape = lora::Shape { tokens: self.tokens(), inputs: l.inputs, outputs: l.outputs };
        lora::forward(
            variant,
            &self.act(x),
            &self.get(ad.a.value),
            &self.get(ad.b.value),
            ad.scale,
            &ad.segments,
            &mut self.get_mut(self.ranks(ad, ad.xa)),
            &mut self.act_mut(y),
            shape,
        );
    }

    pub(super) fn adapter_backward(&mut self, l: &Linear, ad: &Adapter, dy: View, x: View, dx: Option<View>) {
        let variant = self.launch(Seam::Lora, "backward", |b| b.adapter_cost(l, ad, true));
        let shape = lora::Shape { tokens: self.tokens(), inputs: l.inputs, outputs: l.outputs };
        let grad = |p: &Param| p.grad.expect("adapters train");
        let (mut grads, ranges) = self.grads([grad(&ad.a), grad(&ad.b)]);
        let [da, db] = split(&mut grads, &ranges);
        let mut dx = dx.map(|v| self.act_mut(v));
        lora::backward(
            variant,
            &self.act(dy),
            &self.act(x),
            &self.get(self.ranks(ad, ad.xa)),
            &self.get(ad.a.value),
            &self.get(ad.b.value),
            ad.scale,
            &ad.segments,
            da,
            db,
            dx.as_deref_mut(),
            &mut self.get_mut(self.ranks(ad, ad.dxa)),
            shape,
        );
    }
}
