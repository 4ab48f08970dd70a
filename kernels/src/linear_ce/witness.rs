//! What linear cross-entropy should leave at a shape whose logits nobody wants to compute twice: the loss of every row in f32
//! by the CPU's own product, sampled rows of the gradients in f64.

use rayon::prelude::*;

use super::{Shape, reference};
use crate::{
    gemm::linear_forward,
    gpu::{
        GpuError,
        bench::{Compared, Look, Operand, Testbed, sample},
    },
};

/// Rows of logits at a time.
const ROWS: usize = 256;

/// Rounding of logits, of their gradients and of the result to bf16.
const TOLERANCE: f64 = 1.2e-2;

/// A mean over all rows, of logits that are rounded to bf16.
const LOSS_TOLERANCE: f64 = 1e-4;

/// lse of every row, and their labels.
pub(super) struct Witness {
    shape: Shape,
    labels: Vec<usize>,
    lse: Vec<f64>,
    /// Sum of all losses.
    loss: f64,
}

impl Witness {
    /// Computes all logits once, a few rows at a time.
    pub(super) fn new<M>(x: &Operand<M>, w: &Operand<M>, labels: &[usize], shape: Shape) -> Self {
        let Shape { tokens, hidden: d, vocab: v } = shape;
        let (x, head) = (x.values(), w.values().narrow(0, v * d));
        let (mut lse, mut loss) = (Vec::with_capacity(tokens), 0.0);
        let mut logits = vec![0.0f32; ROWS.min(tokens) * v];
        for first in (0..tokens).step_by(ROWS) {
            let rows = ROWS.min(tokens - first);
            let z = &mut logits[..rows * v];
            linear_forward(z, &x.narrow(first * d, rows * d), &head, rows, v, d, 0.0);
            let of_row = |z: &[f32]| {
                let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                f64::from(max) + z.iter().map(|z| f64::from((z - max).exp())).sum::<f64>().ln()
            };
            lse.extend(z.par_chunks(v).map(of_row).collect::<Vec<_>>());
            let terms = z.chunks(v).enumerate();
            loss += terms.map(|(r, z)| lse[first + r] - f64::from(z[labels[first + r]])).sum::<f64>();
        }
        Self { shape, labels: labels.to_vec(), lse, loss }
    }

    /// Labels of all rows.
    pub(super) fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// One over the number of rows.
    pub(super) fn scale(&self) -> f32 {
        1.0 / self.labels.len() as f32
    }

    /// The loss, sampled rows of dx, and rows of dW of labels that occur and of one that does not, over all tokens.
    pub(super) fn compare<B: Testbed>(
        &self,
        on: &B,
        [x, w, dx, dw]: [&Operand<B::Memory>; 4],
        loss: &Operand<B::Memory>,
        slack: f64,
    ) -> Result<Vec<Compared>, GpuError> {
        let Shape { tokens, hidden: d, vocab: v } = self.shape;
        let scale = f64::from(self.scale());
        let (x, w) = (x.values(), w.values());
        let [mut sum, mut of_x, mut of_w] = [0; 3].map(|_| Look::default());
        let bytes = loss.bytes_now(on, 0, 8)?.try_into().expect("8 bytes");
        sum.add(0, vec![f64::from_le_bytes(bytes) as f32], vec![self.loss]);
        for t in sample(tokens, 3) {
            let row = x.row(t, d);
            let z: Vec<f64> = (0..v).into_par_iter().map(|j| w.dot(j * d, &row)).collect();
            let (_, dz) = reference::row(&z, self.labels[t], scale);
            of_x.add(t * d, dx.now(on, t * d, d)?, w.combine(&dz, d));
        }
        let unused = (0..v).rev().find(|j| !self.labels.contains(j));
        let occurring = sample(tokens, 3).into_iter().map(|t| self.labels[t]);
        for j in occurring.chain(unused) {
            let row = w.row(j, d);
            let dz = |t: usize| {
                let p = (x.dot(t * d, &row) - self.lse[t]).exp();
                scale * (p - if self.labels[t] == j { 1.0 } else { 0.0 })
            };
            let dz: Vec<f64> = (0..tokens).into_par_iter().map(dz).collect();
            of_w.add(j * d, dw.now(on, j * d, d)?, x.combine(&dz, d));
        }
        Ok(vec![
            sum.against_largest("loss", slack * LOSS_TOLERANCE),
            of_x.against_largest("dx", slack * TOLERANCE),
            of_w.against_largest("dw", slack * TOLERANCE),
        ])
    }
}
