//! The equation in f64: the oracle of the tests.

use super::{Segment, Shape, placed};

/// `y` after the adapters of a group have added to it.
pub fn forward(
    x_TD: &[f64],
    a_SD: &[f64],
    b: &[f64],
    scale: f64,
    segments: &[Segment],
    y_TN: &[f64],
    shape: Shape,
) -> Vec<f64> {
    let (d, n) = (shape.inputs, shape.outputs);
    let mut y = y_TN.to_vec();
    for (t, x) in x_TD.chunks_exact(d).enumerate() {
        for p in placed(segments) {
            let Segment { offset, width, r } = p.segment;
            let row = |i: usize| &a_SD[(p.s + i) * d..][..d];
            let xa: Vec<f64> = (0..r).map(|i| row(i).iter().zip(x).map(|(a, x)| a * x).sum()).collect();
            for j in 0..width {
                let b = &b[p.b + j * r..][..r];
                y[t * n + offset + j] += scale * b.iter().zip(&xa).map(|(b, h)| b * h).sum::<f64>();
            }
        }
    }
    y
}
