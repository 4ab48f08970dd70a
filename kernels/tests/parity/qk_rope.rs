//! Bias, QK-norm and rotation against the f64 equations, whoever runs them.

use chronicals_kernels::{
    Variant,
    cases::values,
    gpu::{Elem, Ptr, le_bytes},
    qk_rope::{Shape, Tables, cuda, cuda_eager, reference},
};

use crate::machine::{EagerMemory, Machine, Memory, Operands, assert_close, cases, rounded, wide};

const EPS: f32 = 1e-6;

/// Positions of the tables.
const POSITIONS: usize = 600;

/// Tokens, query heads, key heads and head dimension: one token; the smallest head; odd numbers of heads; heads whose lanes
/// are no power of two; a head of a whole warp; the heads of Qwen2.5-0.5B and of larger models; a token that several
/// blocks share; many tokens.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (1, 2, 1, 64),
    (5, 3, 1, 16),
    (6, 5, 3, 80),
    (9, 4, 2, 48),
    (3, 3, 1, 512),
    (37, 14, 2, 64),
    (11, 32, 8, 128),
    (3, 64, 8, 128),
    (500, 2, 1, 32),
];

/// What takes part: bias, norm.
const PARTS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// What is computed, by whom, and which parts take part.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub variant: Variant,
    pub elem: Elem,
    pub shape: Shape,
    pub with_bias: bool,
    pub with_norm: bool,
}

fn each(machine: &dyn Machine, check: fn(&dyn Machine, Case)) {
    let shapes = cases(machine, &SHAPES, &[1, 7]);
    for (variant, elem) in Variant::ALL.into_iter().flat_map(|v| Elem::ALL.map(|e| (v, e))) {
        for ((tokens, heads, kv_heads, head_dim), parts) in shapes.iter().flat_map(|s| PARTS.map(|p| (*s, p)))
        {
            let shape = Shape { tokens, heads, kv_heads, head_dim };
            let (with_bias, with_norm) = parts;
            check(machine, Case { variant, elem, shape, with_bias, with_norm });
        }
    }
}

/// Rounding of the element type, by 2⁻⁸ at most in bf16, and of an f32 sum over a head. Eager rounds up to five times: what is
/// normalised, its product with the weight, those with cosine and sine, and their sum.
pub fn tolerance(elem: Elem, variant: Variant) -> f64 {
    match (elem, variant) {
        (Elem::Bf16, Variant::Fused) => 6e-3,
        (Elem::Bf16, Variant::Eager) => 2e-2,
        (Elem::F32, _) => 2e-6,
    }
}

/// Of the gradients of bias and weights: f32 throughout where it is fused; eager sums what was rounded as above, and rounds the
/// sum.
fn sum_tolerance(elem: Elem, variant: Variant) -> f64 {
    match (elem, variant) {
        (Elem::Bf16, Variant::Eager) => 2e-2,
        _ => 1e-5,
    }
}

/// Either variant on one shape, with the memory that it needs.
pub struct Op<'a> {
    on: Operands<'a>,
    variant: Variant,
    shape: Shape,
    angles: Angles,
    eager: EagerMemory<'a>,
}

impl<'a> Op<'a> {
    pub fn new(machine: &'a dyn Machine, elem: Elem, variant: Variant, shape: Shape) -> Self {
        Self::with_angles(machine, elem, variant, shape, Angles::new(machine, shape))
    }

    pub fn with_angles(
        machine: &'a dyn Machine,
        elem: Elem,
        variant: Variant,
        shape: Shape,
        angles: Angles,
    ) -> Self {
        let saved = cuda_eager::saved_bytes(elem, true, shape);
        let scratch = cuda_eager::scratch_bytes(elem, true, true, shape);
        let eager = EagerMemory::new(machine, saved, scratch);
        Self { on: Operands { machine, elem }, variant, shape, angles, eager }
    }

    pub fn forward(&self, qkv: &Memory, bias: Option<Ptr>, norm: Option<cuda::NormForward>) {
        let (on, elem, shape) = (self.on.machine.launcher(), self.on.elem, self.shape);
        let (qkv, rotation) = (qkv.ptr(), self.angles.rotation());
        // SAFETY: every operand has the length that its name says, and the positions are the tables'.
        unsafe {
            match self.variant {
                Variant::Fused => cuda::forward(on, elem, qkv, bias, norm, rotation, shape),
                Variant::Eager => {
                    cuda_eager::forward(on, elem, qkv, bias, norm, rotation, self.eager.ptrs(), shape)
                }
            }
            .unwrap();
        }
    }

    pub fn backward(
        &self,
        dqkv: &Memory,
        dbias: Option<Ptr>,
        norm: Option<cuda::NormBackward>,
        scratch: Ptr,
    ) {
        let (on, elem, shape) = (self.on.machine.launcher(), self.on.elem, self.shape);
        let (dqkv, rotation) = (dqkv.ptr(), self.angles.rotation());
        // SAFETY: as above.
        unsafe {
            match self.variant {
                Variant::Fused => cuda::backward(on, elem, dqkv, dbias, norm, rotation, scratch, shape),
                Variant::Eager => {
                    cuda_eager::backward(on, elem, dqkv, dbias, norm, rotation, self.eager.ptrs(), shape)
                }
            }
            .unwrap();
        }
    }
}

/// Angles of one case, here and on the machine.
pub struct Angles {
    pub frequencies: Vec<f64>,
    positions: Vec<u32>,
    memory: [Memory; 3],
}

impl Angles {
    /// Documents of 7 tokens, the last position of the tables among them.
    fn new(machine: &dyn Machine, shape: Shape) -> Self {
        let mut positions: Vec<u32> = (0..shape.tokens as u32).map(|t| t % 7 + 100 * (t % 3)).collect();
        *positions.last_mut().unwrap() = POSITIONS as u32 - 1;
        Self::of(machine, Tables::inverse_frequencies(1e4, shape.head_dim), positions, POSITIONS)
    }

    /// Of these positions, which tables of so many have.
    pub fn of(machine: &dyn Machine, frequencies: Vec<f64>, positions: Vec<u32>, count: usize) -> Self {
        let tables = Tables::new(&frequencies, count);
        let f32s = Operands { machine, elem: Elem::F32 };
        let positions_in = machine.upload(&le_bytes(&positions, u32::to_le_bytes));
        let memory = [f32s.input(tables.cos()), f32s.input(tables.sin()), positions_in];
        Self { frequencies, positions, memory }
    }

    fn rotation(&self) -> cuda::Rotation {
        let [cos, sin, positions] = self.memory.each_ref().map(Memory::ptr);
        cuda::Rotation { cos, sin, positions }
    }
}

/// Mean squares' inverse roots of the rotated heads of packed rows.
fn inverse_roots(qkv: &[f64], shape: Shape) -> Vec<f64> {
    let heads = qkv.chunks(shape.packed()).flat_map(|row| row[..shape.rotated()].chunks(shape.head_dim));
    let mean = |head: &[f64]| head.iter().map(|x| x * x).sum::<f64>() / shape.head_dim as f64;
    heads.map(|head| 1.0 / (mean(head) + f64::from(EPS)).sqrt()).collect()
}

/// Leading elements of packed rows that are rotated.
fn rotated_part(qkv: &[f32], shape: Shape) -> Vec<f32> {
    qkv.chunks(shape.packed()).flat_map(|row| &row[..shape.rotated()]).copied().collect()
}

/// Forward, with and without bias and norm, and what the norm saves.
pub fn forward(machine: &dyn Machine) {
    each(machine, forward_of);
}

pub fn forward_of(machine: &dyn Machine, case: Case) {
    let (Case { variant, elem, shape, with_bias, with_norm }, what) = (case, format!("{case:?}"));
    let (n, k) = (shape.tokens * shape.packed(), shape.head_dim);
    let op = Op::new(machine, elem, variant, shape);
    let (on, angles) = (&op.on, &op.angles);
    let qkv = rounded(elem, values(1, n));
    let bias = rounded(elem, values(2, shape.packed()));
    let weights = [3, 4].map(|seed| rounded(elem, values(seed, k)));
    let (in_place, bias_in) = (on.input(&qkv), on.input(&bias));
    let weights_in = weights.each_ref().map(|w| on.input(w));
    let saved = on.output(shape.tokens * shape.rotated());
    let rstd = on.f32().output(shape.tokens * shape.rotated_heads());
    let [q_weight_K, k_weight_K] = weights_in.each_ref().map(Memory::ptr);
    let norm =
        cuda::NormForward { q_weight_K, k_weight_K, eps: EPS, pre_norm: saved.ptr(), rstd: rstd.ptr() };
    op.forward(&in_place, with_bias.then(|| bias_in.ptr()), with_norm.then_some(norm));
    // The norm is of the sum as it is stored.
    let bias_of = |i: usize| if with_bias { bias[i % shape.packed()] } else { 0.0 };
    let sum: Vec<f32> = qkv.iter().enumerate().map(|(i, x)| x + bias_of(i)).collect();
    let sum = if with_norm { rounded(elem, sum) } else { sum };
    let wide_weights = weights.each_ref().map(|w| wide(w));
    let norm_ref = with_norm.then(|| (&*wide_weights[0], &*wide_weights[1], f64::from(EPS)));
    let expected =
        reference::forward(&wide(&sum), None, norm_ref, &angles.frequencies, &angles.positions, shape);
    let got = on.read(&in_place);
    assert_close(&format!("qkv {what}"), &got, &expected, tolerance(elem, variant));
    let stored = rounded(elem, sum.clone());
    for (t, (got, expected)) in got.chunks(shape.packed()).zip(stored.chunks(shape.packed())).enumerate() {
        assert_eq!(got[shape.rotated()..], expected[shape.rotated()..], "v of token {t} {what}");
    }
    if with_norm {
        if variant == Variant::Fused {
            assert_eq!(on.read(&saved), rotated_part(&sum, shape), "saved {what}");
        }
        assert_close(
            &format!("rstd {what}"),
            &on.f32().read(&rstd),
            &inverse_roots(&wide(&sum), shape),
            1e-5,
        );
    }
}

/// Gradients in f64, from what the kernel reads.
struct Gradients {
    dqkv: Vec<f64>,
    dbias: Vec<f64>,
    dweights: [Vec<f64>; 2],
}

/// Operands of the norm's backward pass: what was normalised, its rstd, and the weights.
type Normed<'a> = (&'a [f64], &'a [f64], [&'a [f64]; 2]);

/// The equations of the contract.
fn gradients(dqkv: &[f64], norm: Option<Normed>, angles: &Angles, shape: Shape) -> Gradients {
    let (k, half) = (shape.head_dim, shape.head_dim / 2);
    let mut all = Gradients {
        dqkv: dqkv.to_vec(),
        dbias: vec![0.0; shape.packed()],
        dweights: [vec![0.0; k], vec![0.0; k]],
    };
    for (t, row) in all.dqkv.chunks_mut(shape.packed()).enumerate() {
        for h in 0..shape.rotated_heads() {
            let d = &mut row[h * k..][..k];
            for i in 0..half {
                let (sin, cos) = (f64::from(angles.positions[t]) * angles.frequencies[i]).sin_cos();
                (d[i], d[half + i]) = (d[i] * cos + d[half + i] * sin, d[half + i] * cos - d[i] * sin);
            }
            let Some((saved, rstd, weights)) = norm else { continue };
            let (r, side) = (rstd[t * shape.rotated_heads() + h], usize::from(h >= shape.heads));
            let u = &saved[t * shape.rotated() + h * k..][..k];
            let dot: f64 = (0..k).map(|j| d[j] * weights[side][j] * u[j]).sum();
            for j in 0..k {
                all.dweights[side][j] += d[j] * u[j] * r;
                d[j] = r * d[j] * weights[side][j] - u[j] * r.powi(3) / k as f64 * dot;
            }
        }
        all.dbias.iter_mut().zip(row).for_each(|(sum, d)| *sum += *d);
    }
    all
}

/// What a backward pass left: dqkv, dbias and the weights' gradients.
type Left = (Vec<f32>, Vec<f32>, [Vec<f32>; 2]);

/// Operands of a backward pass.
struct Backward<'a> {
    op: Op<'a>,
    qkv: Vec<f32>,
    dqkv: Vec<f32>,
    saved: Vec<f32>,
    rstd: Vec<f32>,
    weights: [Vec<f32>; 2],
    old: [Vec<f32>; 3],
}

impl<'a> Backward<'a> {
    fn new(machine: &'a dyn Machine, elem: Elem, variant: Variant, shape: Shape) -> Self {
        let (n, k) = (shape.tokens * shape.packed(), shape.head_dim);
        let qkv = rounded(elem, values(6, n));
        Self {
            op: Op::new(machine, elem, variant, shape),
            dqkv: rounded(elem, values(5, n)),
            saved: rotated_part(&qkv, shape),
            rstd: inverse_roots(&wide(&qkv), shape).into_iter().map(|r| r as f32).collect(),
            weights: [7, 8].map(|seed| rounded(elem, values(seed, k))),
            old: [(9, shape.packed()), (10, k), (11, k)].map(|(seed, len)| values(seed, len)),
            qkv,
        }
    }

    /// Runs it, with the gradients that are wanted.
    fn run(&self, with_norm: bool, [bias, q_weight, k_weight]: [bool; 3]) -> Left {
        let (on, f32s, shape) = (&self.op.on, self.op.on.f32(), self.op.shape);
        let launcher = on.machine.launcher();
        let in_place = on.input(&self.dqkv);
        let sums = self.old.each_ref().map(|old| f32s.input(old));
        let operands = [
            on.input(&self.weights[0]),
            on.input(&self.weights[1]),
            on.input(&self.saved),
            f32s.input(&self.rstd),
        ];
        let [q_weight_K, k_weight_K, pre_norm, rstd] = operands.each_ref().map(Memory::ptr);
        let wants_weights = with_norm && (q_weight || k_weight);
        let floats = cuda::scratch_floats(launcher.processors(), shape, bias, wants_weights);
        let scratch = f32s.output(floats);
        let norm = with_norm.then(|| cuda::NormBackward {
            q_weight_K,
            k_weight_K,
            pre_norm,
            rstd,
            dq_weight_K: q_weight.then(|| sums[1].ptr()),
            dk_weight_K: k_weight.then(|| sums[2].ptr()),
        });
        let forward = self.forward_for_saved(norm);
        self.op.backward(&in_place, bias.then(|| sums[0].ptr()), norm, scratch.ptr());
        let [dbias, dq, dk] = sums.each_ref().map(|m| f32s.read(m));
        drop(forward); // the launches are over
        (on.read(&in_place), dbias, [dq, dk])
    }

    /// Eager's own forward pass leaves what its backward pass reads; its operands.
    fn forward_for_saved(&self, norm: Option<cuda::NormBackward>) -> Option<[Memory; 2]> {
        let n = norm.filter(|_| self.op.variant == Variant::Eager)?;
        let (on, rotated_heads) = (&self.op.on, self.op.shape.rotated_heads());
        let operands = [on.input(&self.qkv), on.f32().output(self.op.shape.tokens * rotated_heads)];
        let cuda::NormBackward { q_weight_K, k_weight_K, .. } = n;
        let rstd = operands[1].ptr();
        let norm = cuda::NormForward { q_weight_K, k_weight_K, eps: EPS, pre_norm: Ptr::NULL, rstd };
        self.op.forward(&operands[0], None, Some(norm));
        Some(operands)
    }
}

fn added(a: &[f64], b: &[f32]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + f64::from(*b)).collect()
}

/// Backward, with and without bias, norm and the gradients of their weights; twice, to the same bits.
pub fn backward(machine: &dyn Machine) {
    each(machine, backward_of);
}

pub fn backward_of(machine: &dyn Machine, case: Case) {
    let (Case { variant, elem, shape, with_bias: bias, with_norm: norm }, what) = (case, format!("{case:?}"));
    let case = Backward::new(machine, elem, variant, shape);
    let (saved, rstd) = (wide(&case.saved), wide(&case.rstd));
    let weights = case.weights.each_ref().map(|w| wide(w));
    let normed = norm.then_some((&*saved, &*rstd, weights.each_ref().map(|w| &**w)));
    let expected = gradients(&wide(&case.dqkv), normed, &case.op.angles, shape);
    let left = case.run(norm, [bias, true, true]);
    let (dqkv, dbias, dweights) = &left;
    assert_close(&format!("dqkv {what}"), dqkv, &expected.dqkv, tolerance(elem, variant));
    for (t, (got, dqkv)) in dqkv.chunks(shape.packed()).zip(case.dqkv.chunks(shape.packed())).enumerate() {
        assert_eq!(got[shape.rotated()..], dqkv[shape.rotated()..], "dv of token {t} {what}");
    }
    if bias {
        let sum = added(&expected.dbias, &case.old[0]);
        assert_close(&format!("dbias {what}"), dbias, &sum, sum_tolerance(elem, variant));
    } else {
        assert_eq!(*dbias, case.old[0], "{what}: a gradient that nobody asked for");
    }
    if norm {
        for (side, old) in case.old[1..].iter().enumerate() {
            let sum = added(&expected.dweights[side], old);
            assert_close(
                &format!("dweight {side} {what}"),
                &dweights[side],
                &sum,
                sum_tolerance(elem, variant),
            );
        }
        let (some, _, [dq, dk]) = case.run(norm, [bias, false, true]);
        assert_eq!((&some, &dq, &dk), (dqkv, &case.old[1], &dweights[1]), "{what}: keys' weight alone");
        let (none, _, unasked) = case.run(norm, [bias, false, false]);
        assert_eq!(none, *dqkv, "{what}: without weights");
        assert_eq!(unasked[..], case.old[1..], "{what}: a gradient that nobody asked for");
    }
    assert_eq!(case.run(norm, [bias, true, true]), left, "{what}: another run, other bits");
}
