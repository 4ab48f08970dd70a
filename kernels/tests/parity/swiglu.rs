//! SwiGLU against the f64 equations, whoever runs it.

use chronicals_kernels::{
    Variant,
    cases::values,
    gpu::Elem,
    swiglu::{cuda, cuda_eager, reference},
};

use crate::machine::{EagerMemory, Machine, Memory, Operands, assert_close, cases, rounded, wide};

/// Tokens and `F`: one pack; one token; rows that end inside a block; a block's work exactly, and one pack more; Qwen's row.
const SHAPES: [(usize, usize); 7] = [(1, 8), (1, 512), (7, 40), (64, 64), (57, 72), (3, 4864), (700, 24)];

/// From where σ is linear to where its exponential overflows.
const MAGNITUDES: [f32; 4] = [1e-3, 1.0, 20.0, 1e4];

/// Rounding of the element type, by 2⁻⁸ at most, and of the device's exponential. Eager also rounds silu and its gradient.
pub fn tolerance(elem: Elem, variant: Variant) -> f64 {
    match (elem, variant) {
        (Elem::Bf16, Variant::Fused) => 4e-3,
        (Elem::Bf16, Variant::Eager) => 8e-3,
        (Elem::F32, _) => 2e-6,
    }
}

/// Either variant on one shape, with the memory that it needs.
pub struct Op<'a> {
    on: Operands<'a>,
    variant: Variant,
    shape: (usize, usize),
    eager: EagerMemory<'a>,
}

impl<'a> Op<'a> {
    pub fn new(
        machine: &'a dyn Machine,
        elem: Elem,
        variant: Variant,
        (tokens, ffn): (usize, usize),
    ) -> Self {
        let saved = cuda_eager::saved_bytes(elem, tokens, ffn);
        let scratch = cuda_eager::scratch_bytes(elem, tokens, ffn);
        let eager = EagerMemory::new(machine, saved, scratch);
        Self { on: Operands { machine, elem }, variant, shape: (tokens, ffn), eager }
    }

    pub fn forward(&self, gate_up: &Memory, act: &Memory) {
        let (on, elem, (tokens, ffn)) = (self.on.machine.launcher(), self.on.elem, self.shape);
        let (x, y) = (gate_up.ptr(), act.ptr());
        // SAFETY: every operand has the length that its name says.
        unsafe {
            match self.variant {
                Variant::Fused => cuda::forward(on, elem, x, y, tokens, ffn),
                Variant::Eager => cuda_eager::forward(on, elem, x, y, self.eager.ptrs(), tokens, ffn),
            }
            .unwrap();
        }
    }

    /// In place, behind a forward pass.
    pub fn backward(&self, gate_up: &Memory, dact: &Memory) {
        let (on, elem, (tokens, ffn)) = (self.on.machine.launcher(), self.on.elem, self.shape);
        let (x, d) = (gate_up.ptr(), dact.ptr());
        // SAFETY: as above.
        unsafe {
            match self.variant {
                Variant::Fused => cuda::backward(on, elem, x, d, tokens, ffn),
                Variant::Eager => cuda_eager::backward(on, elem, x, d, self.eager.ptrs(), tokens, ffn),
            }
            .unwrap();
        }
    }
}

/// Operands of one case: gate and up at a magnitude, with the values at which σ is at its ends.
fn gate_up(elem: Elem, magnitude: f32, (tokens, ffn): (usize, usize)) -> Vec<f32> {
    let mut gate_up: Vec<f32> = values(1, 2 * tokens * ffn).into_iter().map(|v| v * magnitude).collect();
    gate_up[..5].copy_from_slice(&[0.0, -magnitude, magnitude, 88.8, -88.8]);
    rounded(elem, gate_up)
}

fn each(machine: &dyn Machine, check: impl Fn(&Op, Vec<f32>, String)) {
    let shapes = cases(machine, &SHAPES, &[2]);
    for (variant, elem) in Variant::ALL.into_iter().flat_map(|v| Elem::ALL.map(|e| (v, e))) {
        for (shape, magnitude) in shapes.iter().flat_map(|s| MAGNITUDES.map(|m| (*s, m))) {
            let what = format!("{variant} {shape:?} {} ×{magnitude}", elem.name());
            check(&Op::new(machine, elem, variant, shape), gate_up(elem, magnitude, shape), what);
        }
    }
}

/// Forward, at magnitudes from tiny to large.
pub fn forward(machine: &dyn Machine) {
    each(machine, |op, gate_up, what| {
        let (on, (tokens, ffn)) = (&op.on, op.shape);
        let (input, act) = (on.input(&gate_up), on.output(tokens * ffn));
        op.forward(&input, &act);
        let expected = reference::forward(&wide(&gate_up), ffn);
        assert_close(&format!("act {what}"), &on.read(&act), &expected, tolerance(on.elem, op.variant));
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

/// Backward, in place; twice, to the same bits.
pub fn backward(machine: &dyn Machine) {
    each(machine, |op, gate_up, what| {
        let (on, (tokens, ffn)) = (&op.on, op.shape);
        let dact = rounded(on.elem, values(2, tokens * ffn));
        let run = || {
            let (in_place, act, dact) = (on.input(&gate_up), on.output(tokens * ffn), on.input(&dact));
            op.forward(&in_place, &act);
            op.backward(&in_place, &dact);
            on.read(&in_place)
        };
        let (got, expected) = (run(), gradients(&wide(&gate_up), &wide(&dact), ffn));
        assert_close(&format!("d(gate, up) {what}"), &got, &expected, tolerance(on.elem, op.variant));
        assert_eq!(run(), got, "{what}: another run, other bits");
    });
}
