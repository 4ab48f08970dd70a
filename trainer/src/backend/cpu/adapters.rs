//! Adapters on the CPU, and parts of the gradients.

use std::ops::Range;

use chronicals_kernels::{Seam, gemm, lora};

use super::CpuBackend;
use crate::backend::{Adapter, Dora, Linear, Param, View};

/// The parts of a locked gradient buffer.
pub(super) fn split<'a, const N: usize>(
    buffer: &'a mut [f32],
    ranges: &[Range<usize>; N],
) -> [&'a mut [f32]; N] {
    buffer.get_disjoint_mut(ranges.clone()).expect("parameters do not overlap")
}

impl CpuBackend {
    /// Lengths of the rows of `W + s·B·A`, and the output scaled by what makes them the magnitudes.
    pub(super) fn magnitudes_forward(&mut self, l: &Linear, d: &Dora, y: View) {
        self.launch(Seam::Lora, "magnitude_forward", |b| b.magnitude_cost(l, false));
        let weight = self.get(l.weight.value);
        let (mut gain, mut norms) = (self.get_mut(d.gain), self.get_mut(d.norms));
        gain.fill(1.0);
        for ad in &l.adapters {
            let (a, b) = (self.get(ad.a.value), self.get(ad.b.value));
            let (mut of_a, mut of_b) = (&a[..], &b[..]);
            for s in &ad.segments {
                let (a, b);
                (a, of_a) = of_a.split_at(s.r * l.inputs);
                (b, of_b) = of_b.split_at(s.width * s.r);
                let rows = s.offset..s.offset + s.width;
                let w = &weight[rows.start * l.inputs..rows.end * l.inputs];
                lora::magnitude::norms(w, a, b, ad.scale, l.inputs, &mut norms[rows]);
            }
        }
        let magnitude = self.get(d.magnitude.value);
        for (j, m) in d.columns.iter().cloned().flatten().zip(magnitude.iter()) {
            gain[j] = m / norms[j];
        }
        lora::magnitude::scale(&mut self.act_mut(y), &gain);
    }

    /// Gradient of the magnitudes (`+=`), and of the output before it was scaled, which is what everything else of the projection
    /// goes by. That output is made again.
    pub(super) fn magnitudes_backward(&mut self, l: &Linear, d: &Dora, dy: View, x: View) {
        self.product(l, x, d.scaled);
        self.launch(Seam::Lora, "magnitude_backward", |b| b.magnitude_cost(l, true));
        let mut sums = vec![0.0; l.outputs];
        lora::magnitude::backward(&self.act(dy), &mut self.act_mut(d.scaled), &self.get(d.gain), &mut sums);
        let norms = self.get(d.norms);
        let mut gradient = self.get_mut(d.magnitude.grad.expect("magnitudes train"));
        for (j, dm) in d.columns.iter().cloned().flatten().zip(gradient.iter_mut()) {
            *dm += (sums[j] / f64::from(norms[j])) as f32;
        }
    }

    /// The part in use of an adapter's `[T, S]`, rows without the room at their ends.
    fn ranks(&self, ad: &Adapter, v: View) -> View {
        v.slice(0, self.tokens() * ad.ranks())
    }

    /// `y = x·(W + s·B·A)ᵀ`: one product, and two for each batch of adapters.
    pub(super) fn product(&mut self, l: &Linear, x: View, y: View) {
        self.lap("gemm", "library", "forward", self.product_cost(l, false, 0));
        gemm::linear_forward(
            &mut self.act_mut(y),
            &self.act(x),
            &self.get(l.weight.value),
            self.tokens(),
            l.outputs,
            l.inputs,
            0.0,
        );
        for adapter in &l.adapters {
            self.adapter_forward(l, adapter, x, y);
        }
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
