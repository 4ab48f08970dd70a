//! RMSNorm against the f64 equations, whoever runs it.

use chronicals_kernels::{
    cases::values,
    gpu::{Elem, Ptr},
    rmsnorm::{Shape, cuda, reference},
};

use crate::machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide};

const EPS: f32 = 1e-6;

/// One token; rows of one pack; a ragged last warp; a row of one warp's most; rows of several warps, more of them than
/// blocks; many rows.
const SHAPES: [(usize, usize); 7] = [(1, 896), (3, 8), (5, 200), (9, 1024), (60, 1032), (3, 4096), (700, 64)];

fn shapes(machine: &dyn Machine) -> impl Iterator<Item = Shape> {
    cases(machine, &SHAPES, &[2, 4]).into_iter().map(|(tokens, hidden)| Shape { tokens, hidden })
}

/// Rounding of the element type, and of an f32 sum over a row.
fn tolerance(elem: Elem) -> f64 {
    match elem {
        Elem::Bf16 => 6e-3,
        Elem::F32 => 2e-6,
    }
}

/// Forward, with and without the residual, at magnitudes from tiny to large.
pub fn forward(machine: &dyn Machine) {
    for (shape, elem, magnitude) in shapes(machine)
        .flat_map(|s| Elem::ALL.map(|e| (s, e)))
        .flat_map(|(s, e)| [1e-4f32, 1.0, 1e4].map(|m| (s, e, m)))
    {
        let (n, d) = (shape.elements(), shape.hidden);
        let what = format!("{shape:?} {} ×{magnitude}", elem.name());
        let scaled = |seed| rounded(elem, values(seed, n).into_iter().map(|v| v * magnitude).collect());
        let (x, delta, w) = (scaled(1), scaled(2), rounded(elem, values(3, d)));
        let on = Operands { machine, elem };
        let (xm, dm, wm) = (on.input(&x), on.input(&delta), on.input(&w));
        let (y, sum, rstd) = (on.output(n), on.output(n), on.f32().output(shape.tokens));
        // SAFETY: every operand has the length that its name says.
        unsafe {
            cuda::forward(machine.launcher(), elem, xm.ptr(), wm.ptr(), EPS, y.ptr(), rstd.ptr(), shape)
                .unwrap();
        }
        let (y_ref, rstd_ref) = reference::forward(&wide(&x), &wide(&w), f64::from(EPS), shape);
        assert_close(&format!("y {what}"), &on.read(&y), &y_ref, tolerance(elem));
        assert_close(&format!("rstd {what}"), &on.f32().read(&rstd), &rstd_ref, 1e-5);
        let (y, rstd) = (on.output(n), on.f32().output(shape.tokens));
        // SAFETY: as above.
        unsafe {
            let (p, q) = (xm.ptr(), dm.ptr());
            let out = (sum.ptr(), y.ptr(), rstd.ptr());
            cuda::add_forward(machine.launcher(), elem, p, q, out.0, wm.ptr(), EPS, out.1, out.2, shape)
                .unwrap();
        }
        let sum_ref = rounded(elem, x.iter().zip(&delta).map(|(a, b)| a + b).collect());
        assert_eq!(on.read(&sum), sum_ref, "sum {what}");
        let (y_ref, _) = reference::forward(&wide(&sum_ref), &wide(&w), f64::from(EPS), shape);
        assert_close(&format!("y of the sum {what}"), &on.read(&y), &y_ref, tolerance(elem));
        // In place of the residual: the same bits.
        let again = on.output(n);
        // SAFETY: as above; the sum may take the residual's place.
        unsafe {
            let (p, q) = (xm.ptr(), dm.ptr());
            cuda::add_forward(
                machine.launcher(),
                elem,
                p,
                q,
                p,
                wm.ptr(),
                EPS,
                again.ptr(),
                rstd.ptr(),
                shape,
            )
            .unwrap();
        }
        assert_eq!((on.read(&xm), on.read(&again)), (sum_ref, on.read(&y)), "in place {what}");
    }
}

/// The equations of the contract.
fn gradients(dy: &[f64], x: &[f64], w: &[f64], rstd: &[f64], shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let d = shape.hidden;
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; d]);
    for ((dy, x), r) in dy.chunks(d).zip(x.chunks(d)).zip(rstd) {
        let dot: f64 = (0..d).map(|j| dy[j] * w[j] * x[j]).sum();
        for j in 0..d {
            dx.push(r * dy[j] * w[j] - x[j] * r.powi(3) / d as f64 * dot);
            dw[j] += dy[j] * x[j] * r;
        }
    }
    (dx, dw)
}

/// Backward, overwriting and accumulating, with and without the weight's gradient; twice, to the same bits.
pub fn backward(machine: &dyn Machine) {
    for (shape, elem) in shapes(machine).flat_map(|s| Elem::ALL.map(|e| (s, e))) {
        let (n, d) = (shape.elements(), shape.hidden);
        let on = Operands { machine, elem };
        let [dy, x, old] = [4, 5, 6].map(|seed| rounded(elem, values(seed, n)));
        let (w, dw_old) = (rounded(elem, values(7, d)), values(8, d));
        let (_, rstd) = reference::forward(&wide(&x), &wide(&w), f64::from(EPS), shape);
        let rstd: Vec<f32> = rstd.iter().map(|r| *r as f32).collect();
        let (dx_ref, dw_ref) = gradients(&wide(&dy), &wide(&x), &wide(&w), &wide(&rstd), shape);
        let inputs = [on.input(&dy), on.input(&x), on.f32().input(&rstd), on.input(&w)];
        let run = |accumulate: bool, with_weight: bool| -> (Vec<f32>, Vec<f32>) {
            let dx: Memory = if accumulate { on.input(&old) } else { on.output(n) };
            let dw = on.f32().input(&dw_old);
            let scratch = on.f32().output(cuda::scratch_floats(machine.launcher().processors(), shape));
            let weight: Option<(Ptr, Ptr)> = with_weight.then(|| (dw.ptr(), scratch.ptr()));
            let [dy, x, rstd, w] = inputs.each_ref().map(Memory::ptr);
            // SAFETY: every operand has the length that its name says.
            unsafe {
                cuda::backward(machine.launcher(), elem, dy, x, rstd, w, dx.ptr(), accumulate, weight, shape)
                    .unwrap()
            };
            (on.read(&dx), on.f32().read(&dw))
        };
        let what = format!("{shape:?} {}", elem.name());
        let (dx, dw) = run(false, true);
        assert_close(&format!("dx {what}"), &dx, &dx_ref, tolerance(elem));
        let dw_sum: Vec<f64> = dw_ref.iter().zip(&dw_old).map(|(a, b)| a + f64::from(*b)).collect();
        assert_close(&format!("dw {what}"), &dw, &dw_sum, 1e-5);
        assert_eq!(run(false, true), (dx, dw), "{what}: another run, other bits");
        let (dx, dw) = run(true, false);
        let sum: Vec<f64> = dx_ref.iter().zip(&old).map(|(a, b)| a + f64::from(*b)).collect();
        assert_close(&format!("dx added {what}"), &dx, &sum, tolerance(elem));
        assert_eq!(dw, dw_old, "{what}: a gradient that nobody asked for");
    }
}
