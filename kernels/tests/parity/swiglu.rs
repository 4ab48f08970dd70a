//! SwiGLU against the f64 equations, whoever runs it.

use chronicals_kernels::{
    cases::values,
    gpu::Elem,
    swiglu::{cuda, reference},
};

use crate::machine::{Machine, Operands, assert_close, cases, rounded, wide};

/// Tokens and `F`: one pack; one token; rows that end inside a block; a block's work exactly, and one pack more; Qwen's row.
const SHAPES: [(usize, usize); 7] = [(1, 8), (1, 512), (7, 40), (64, 64), (57, 72), (3, 4864), (700, 24)];

/// From where σ is linear to where its exponential overflows.
const MAGNITUDES: [f32; 4] = [1e-3, 1.0, 20.0, 1e4];

/// Rounding of the element type, and of the device's exponential.
fn tolerance(elem: Elem) -> f64 {
    match elem {
        Elem::Bf16 => 4e-3,
        Elem::F32 => 2e-6,
    }
}

/// Operands of one case: gate and up at a magnitude, with the values at which σ is at its ends.
fn gate_up(elem: Elem, magnitude: f32, (tokens, ffn): (usize, usize)) -> Vec<f32> {
    let mut gate_up: Vec<f32> = values(1, 2 * tokens * ffn).into_iter().map(|v| v * magnitude).collect();
    gate_up[..5].copy_from_slice(&[0.0, -magnitude, magnitude, 88.8, -88.8]);
    rounded(elem, gate_up)
}

fn each(machine: &dyn Machine, mut check: impl FnMut(Elem, f32, (usize, usize), String)) {
    let shapes = cases(machine, &SHAPES, &[2]);
    for (elem, shape) in Elem::ALL.into_iter().flat_map(|e| shapes.iter().map(move |s| (e, *s))) {
        for magnitude in MAGNITUDES {
            check(elem, magnitude, shape, format!("{shape:?} {} ×{magnitude}", elem.name()));
        }
    }
}

/// Forward, at magnitudes from tiny to large.
pub fn forward(machine: &dyn Machine) {
    each(machine, |elem, magnitude, (tokens, ffn), what| {
        let gate_up = gate_up(elem, magnitude, (tokens, ffn));
        let on = Operands { machine, elem };
        let (input, act) = (on.input(&gate_up), on.output(tokens * ffn));
        // SAFETY: every operand has the length that its name says.
        unsafe { cuda::forward(machine.launcher(), elem, input.ptr(), act.ptr(), tokens, ffn).unwrap() };
        let expected = reference::forward(&wide(&gate_up), ffn);
        assert_close(&format!("act {what}"), &on.read(&act), &expected, tolerance(elem));
        assert_eq!(on.read(&input), gate_up, "{what}: the input changed");
    });
}

/// The equations of the contract.
pub fn gradients(gate_up: &[f64], dact: &[f64], ffn: usize) -> Vec<f64> {
    let mut all = Vec::new();
    for (row, dact) in gate_up.chunks(2 * ffn).zip(dact.chunks(ffn)) {
        let (gate, up) = row.split_at(ffn);
        let sigma = |g: f64| 1.0 / (1.0 + (-g).exp());
        all.extend((0..ffn).map(|j| {
            let s = sigma(gate[j]);
            dact[j] * up[j] * s * (1.0 + gate[j] * (1.0 - s))
        }));
        all.extend((0..ffn).map(|j| dact[j] * gate[j] * sigma(gate[j])));
    }
    all
}

/// Backward, in place.
pub fn backward(machine: &dyn Machine) {
    each(machine, |elem, magnitude, (tokens, ffn), what| {
        let gate_up = gate_up(elem, magnitude, (tokens, ffn));
        let dact = rounded(elem, values(2, tokens * ffn));
        let on = Operands { machine, elem };
        let (in_place, dact_in) = (on.input(&gate_up), on.input(&dact));
        // SAFETY: every operand has the length that its name says.
        unsafe {
            cuda::backward(machine.launcher(), elem, in_place.ptr(), dact_in.ptr(), tokens, ffn).unwrap();
        }
        let expected = gradients(&wide(&gate_up), &wide(&dact), ffn);
        assert_close(&format!("d(gate, up) {what}"), &on.read(&in_place), &expected, tolerance(elem));
    });
}
