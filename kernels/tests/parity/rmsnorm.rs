//! RMSNorm against the f64 equations, whoever runs it.

use chronicals_kernels::{
    Variant,
    cases::values,
    gpu::{Elem, Ptr},
    rmsnorm::{Shape, cuda, cuda_eager, reference},
};

use crate::machine::{EagerMemory, Machine, Memory, Operands, assert_close, cases, rounded, wide};

const EPS: f32 = 1e-6;

/// One token; rows of one pack; a ragged last warp; a row of one warp's most; rows of several warps, more of them than
/// blocks; many rows.
const SHAPES: [(usize, usize); 7] = [(1, 896), (3, 8), (5, 200), (9, 1024), (60, 1032), (3, 4096), (700, 64)];

fn shapes(machine: &dyn Machine) -> impl Iterator<Item = Shape> {
    cases(machine, &SHAPES, &[2, 4]).into_iter().map(|(tokens, hidden)| Shape { tokens, hidden })
}

/// Rounding of the element type, and of an f32 sum over a row. Where it is fused a value is rounded to bf16 once, by 2⁻⁸ at
/// most; in eager three times: as normalised or multiplied by the weight, as the result, and as added to the residual's gradient.
pub fn tolerance(elem: Elem, variant: Variant) -> f64 {
    match (elem, variant) {
        (Elem::Bf16, Variant::Fused) => 6e-3,
        (Elem::Bf16, Variant::Eager) => 1.2e-2,
        (Elem::F32, _) => 2e-6,
    }
}

/// Of the weight's gradient: f32 throughout where it is fused; eager rounds each term, and their sum, to the element type.
pub fn weight_tolerance(elem: Elem, variant: Variant) -> f64 {
    match (elem, variant) {
        (Elem::Bf16, Variant::Eager) => 8e-3,
        _ => 1e-5,
    }
}

/// Either variant on one shape, with the memory that it needs.
pub struct Op<'a> {
    on: Operands<'a>,
    variant: Variant,
    shape: Shape,
    eager: EagerMemory<'a>,
    fused_scratch: Memory,
}

impl<'a> Op<'a> {
    pub fn new(machine: &'a dyn Machine, elem: Elem, variant: Variant, shape: Shape) -> Self {
        let on = Operands { machine, elem };
        let (saved, scratch) = (cuda_eager::saved_bytes(elem, shape), cuda_eager::scratch_bytes(elem, shape));
        let floats = cuda::scratch_floats(machine.launcher().processors(), shape);
        let (eager, fused_scratch) = (EagerMemory::new(machine, saved, scratch), on.f32().output(floats));
        Self { on, variant, shape, eager, fused_scratch }
    }

    /// y and rstd of x, or of the sum of x and delta, which goes to the second of `sum`.
    pub fn forward(&self, x: Ptr, sum: Option<[Ptr; 2]>, w: Ptr, y: &Memory, rstd: &Memory) {
        let (on, elem, shape) = (self.on.machine.launcher(), self.on.elem, self.shape);
        let (y, rstd) = (y.ptr(), rstd.ptr());
        // SAFETY: every operand has the length that its name says.
        unsafe {
            match (self.variant, sum) {
                (Variant::Fused, None) => cuda::forward(on, elem, x, w, EPS, y, rstd, shape),
                (Variant::Fused, Some([delta, sum])) => {
                    cuda::add_forward(on, elem, x, delta, sum, w, EPS, y, rstd, shape)
                }
                (Variant::Eager, None) => {
                    cuda_eager::forward(on, elem, x, w, EPS, y, rstd, self.eager.ptrs(), shape)
                }
                (Variant::Eager, Some([delta, sum])) => {
                    let memory = self.eager.ptrs();
                    cuda_eager::add_forward(on, elem, x, delta, sum, w, EPS, y, rstd, memory, shape)
                }
            }
            .unwrap();
        }
    }

    /// dx, and dw where it is wanted. Eager's own forward pass leaves what its backward pass reads.
    pub fn backward(&self, [dy, x, rstd, w]: [Ptr; 4], dx: &Memory, accumulate: bool, dw: Option<Ptr>) {
        let (on, elem, shape) = (self.on.machine.launcher(), self.on.elem, self.shape);
        // SAFETY: every operand has the length that its name says.
        unsafe {
            match self.variant {
                Variant::Fused => {
                    let dw = dw.map(|dw| (dw, self.fused_scratch.ptr()));
                    cuda::backward(on, elem, dy, x, rstd, w, dx.ptr(), accumulate, dw, shape)
                }
                Variant::Eager => {
                    let (y, own) = (self.on.output(shape.elements()), self.on.f32().output(shape.tokens));
                    self.forward(x, None, w, &y, &own);
                    let memory = self.eager.ptrs();
                    let done = cuda_eager::backward(
                        on,
                        elem,
                        dy,
                        x,
                        rstd,
                        w,
                        dx.ptr(),
                        accumulate,
                        dw,
                        memory,
                        shape,
                    );
                    // The launches are over before their operands are dropped.
                    self.on.read(&y);
                    done
                }
            }
            .unwrap();
        }
    }
}

/// Forward, with and without the residual, at magnitudes from tiny to large.
pub fn forward(machine: &dyn Machine) {
    for (variant, shape) in Variant::ALL.into_iter().flat_map(|v| shapes(machine).map(move |s| (v, s))) {
        for (elem, magnitude) in Elem::ALL.into_iter().flat_map(|e| [1e-4f32, 1.0, 1e4].map(|m| (e, m))) {
            forward_of(&Op::new(machine, elem, variant, shape), magnitude);
        }
    }
}

pub fn forward_of(op: &Op, magnitude: f32) {
    let (on, variant, shape, elem) = (&op.on, op.variant, op.shape, op.on.elem);
    let n = shape.elements();
    let what = format!("{variant} {shape:?} {} ×{magnitude}", elem.name());
    let scaled = |seed| rounded(elem, values(seed, n).into_iter().map(|v| v * magnitude).collect());
    let (x, delta, w) = (scaled(1), scaled(2), rounded(elem, values(3, shape.hidden)));
    let (xm, dm, wm) = (on.input(&x), on.input(&delta), on.input(&w));
    let outputs = || (on.output(n), on.f32().output(shape.tokens));
    let (y, rstd) = outputs();
    op.forward(xm.ptr(), None, wm.ptr(), &y, &rstd);
    let (y_ref, rstd_ref) = reference::forward(&wide(&x), &wide(&w), f64::from(EPS), shape);
    assert_close(&format!("y {what}"), &on.read(&y), &y_ref, tolerance(elem, variant));
    assert_close(&format!("rstd {what}"), &on.f32().read(&rstd), &rstd_ref, 1e-5);
    let (sum, (y, rstd)) = (on.output(n), outputs());
    op.forward(xm.ptr(), Some([dm.ptr(), sum.ptr()]), wm.ptr(), &y, &rstd);
    let sum_ref = rounded(elem, x.iter().zip(&delta).map(|(a, b)| a + b).collect());
    assert_eq!(on.read(&sum), sum_ref, "sum {what}");
    let (y_ref, _) = reference::forward(&wide(&sum_ref), &wide(&w), f64::from(EPS), shape);
    assert_close(&format!("y of the sum {what}"), &on.read(&y), &y_ref, tolerance(elem, variant));
    // In place of the residual: the same bits.
    let (again, rstd) = outputs();
    op.forward(xm.ptr(), Some([dm.ptr(), xm.ptr()]), wm.ptr(), &again, &rstd);
    assert_eq!((on.read(&xm), on.read(&again)), (sum_ref, on.read(&y)), "in place {what}");
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
    for (variant, shape) in Variant::ALL.into_iter().flat_map(|v| shapes(machine).map(move |s| (v, s))) {
        for elem in Elem::ALL {
            backward_of(machine, elem, variant, shape);
        }
    }
}

pub fn backward_of(machine: &dyn Machine, elem: Elem, variant: Variant, shape: Shape) {
    let (n, d) = (shape.elements(), shape.hidden);
    let on = Operands { machine, elem };
    let [dy, x, old] = [4, 5, 6].map(|seed| rounded(elem, values(seed, n)));
    let (w, dw_old) = (rounded(elem, values(7, d)), values(8, d));
    let (_, rstd) = reference::forward(&wide(&x), &wide(&w), f64::from(EPS), shape);
    let rstd: Vec<f32> = rstd.iter().map(|r| *r as f32).collect();
    let (dx_ref, dw_ref) = gradients(&wide(&dy), &wide(&x), &wide(&w), &wide(&rstd), shape);
    let inputs = [on.input(&dy), on.input(&x), on.f32().input(&rstd), on.input(&w)];
    let run = |accumulate: bool, with_weight: bool| -> (Vec<f32>, Vec<f32>) {
        let op = Op::new(machine, elem, variant, shape);
        let dx: Memory = if accumulate { on.input(&old) } else { on.output(n) };
        let dw = on.f32().input(&dw_old);
        let weight = with_weight.then(|| dw.ptr());
        op.backward(inputs.each_ref().map(Memory::ptr), &dx, accumulate, weight);
        (on.read(&dx), on.f32().read(&dw))
    };
    let what = format!("{variant} {shape:?} {}", elem.name());
    let (dx, dw) = run(false, true);
    assert_close(&format!("dx {what}"), &dx, &dx_ref, tolerance(elem, variant));
    let dw_sum: Vec<f64> = dw_ref.iter().zip(&dw_old).map(|(a, b)| a + f64::from(*b)).collect();
    assert_close(&format!("dw {what}"), &dw, &dw_sum, weight_tolerance(elem, variant));
    assert_eq!(run(false, true), (dx, dw), "{what}: another run, other bits");
    let (dx, dw) = run(true, false);
    let sum: Vec<f64> = dx_ref.iter().zip(&old).map(|(a, b)| a + f64::from(*b)).collect();
    assert_close(&format!("dx added {what}"), &dx, &sum, tolerance(elem, variant));
    assert_eq!(dw, dw_old, "{what}: a gradient that nobody asked for");
}
