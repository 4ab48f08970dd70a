//! Bias, QK-norm and rotation against the f64 equations, whoever runs them.

use chronicals_kernels::{
    cases::values,
    gpu::{Elem, le_bytes},
    qk_rope::{Shape, Tables, cuda, reference},
};

use crate::machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide};

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

fn each(machine: &dyn Machine, mut check: impl FnMut(Shape, Elem, (bool, bool), String)) {
    let shapes = cases(machine, &SHAPES, &[1, 7]);
    for ((tokens, heads, kv_heads, head_dim), elem) in
        shapes.into_iter().flat_map(|s| Elem::ALL.map(|e| (s, e)))
    {
        let shape = Shape { tokens, heads, kv_heads, head_dim };
        for parts in PARTS {
            check(shape, elem, parts, format!("{shape:?} {} bias {} norm {}", elem.name(), parts.0, parts.1));
        }
    }
}

/// Rounding of the element type, and of an f32 sum over a head.
fn tolerance(elem: Elem) -> f64 {
    match elem {
        Elem::Bf16 => 6e-3,
        Elem::F32 => 2e-6,
    }
}

/// Angles of one case, here and on the machine.
struct Angles {
    frequencies: Vec<f64>,
    positions: Vec<u32>,
    memory: [Memory; 3],
}

impl Angles {
    /// Documents of 7 tokens, the last position of the tables among them.
    fn new(machine: &dyn Machine, shape: Shape) -> Self {
        let frequencies = Tables::inverse_frequencies(1e4, shape.head_dim);
        let tables = Tables::new(&frequencies, POSITIONS);
        let mut positions: Vec<u32> = (0..shape.tokens as u32).map(|t| t % 7 + 100 * (t % 3)).collect();
        *positions.last_mut().unwrap() = POSITIONS as u32 - 1;
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
    each(machine, |shape, elem, (with_bias, with_norm), what| {
        let (n, k) = (shape.tokens * shape.packed(), shape.head_dim);
        let on = Operands { machine, elem };
        let qkv = rounded(elem, values(1, n));
        let bias = rounded(elem, values(2, shape.packed()));
        let weights = [3, 4].map(|seed| rounded(elem, values(seed, k)));
        let angles = Angles::new(machine, shape);
        let (in_place, bias_in) = (on.input(&qkv), on.input(&bias));
        let weights_in = weights.each_ref().map(|w| on.input(w));
        let saved = on.output(shape.tokens * shape.rotated());
        let rstd = on.f32().output(shape.tokens * shape.rotated_heads());
        let [q_weight_K, k_weight_K] = weights_in.each_ref().map(Memory::ptr);
        let norm =
            cuda::NormForward { q_weight_K, k_weight_K, eps: EPS, pre_norm: saved.ptr(), rstd: rstd.ptr() };
        let (b, norm) = (with_bias.then(|| bias_in.ptr()), with_norm.then_some(norm));
        // SAFETY: every operand has the length that its name says, and the positions are the tables'.
        unsafe {
            cuda::forward(machine.launcher(), elem, in_place.ptr(), b, norm, angles.rotation(), shape)
                .unwrap();
        }
        // The norm is of the sum as it is stored.
        let bias_of = |i: usize| if with_bias { bias[i % shape.packed()] } else { 0.0 };
        let sum: Vec<f32> = qkv.iter().enumerate().map(|(i, x)| x + bias_of(i)).collect();
        let sum = if with_norm { rounded(elem, sum) } else { sum };
        let wide_weights = weights.each_ref().map(|w| wide(w));
        let norm_ref = with_norm.then(|| (&*wide_weights[0], &*wide_weights[1], f64::from(EPS)));
        let expected =
            reference::forward(&wide(&sum), None, norm_ref, &angles.frequencies, &angles.positions, shape);
        let got = on.read(&in_place);
        assert_close(&format!("qkv {what}"), &got, &expected, tolerance(elem));
        let stored = rounded(elem, sum.clone());
        for (t, (got, expected)) in got.chunks(shape.packed()).zip(stored.chunks(shape.packed())).enumerate()
        {
            assert_eq!(got[shape.rotated()..], expected[shape.rotated()..], "v of token {t} {what}");
        }
        if with_norm {
            assert_eq!(on.read(&saved), rotated_part(&sum, shape), "saved {what}");
            assert_close(
                &format!("rstd {what}"),
                &on.f32().read(&rstd),
                &inverse_roots(&wide(&sum), shape),
                1e-5,
            );
        }
    });
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
    on: Operands<'a>,
    shape: Shape,
    angles: Angles,
    dqkv: Vec<f32>,
    saved: Vec<f32>,
    rstd: Vec<f32>,
    weights: [Vec<f32>; 2],
    old: [Vec<f32>; 3],
}

impl<'a> Backward<'a> {
    fn new(machine: &'a dyn Machine, elem: Elem, shape: Shape) -> Self {
        let (n, k) = (shape.tokens * shape.packed(), shape.head_dim);
        let qkv = rounded(elem, values(6, n));
        Self {
            on: Operands { machine, elem },
            shape,
            angles: Angles::new(machine, shape),
            dqkv: rounded(elem, values(5, n)),
            saved: rotated_part(&qkv, shape),
            rstd: inverse_roots(&wide(&qkv), shape).into_iter().map(|r| r as f32).collect(),
            weights: [7, 8].map(|seed| rounded(elem, values(seed, k))),
            old: [(9, shape.packed()), (10, k), (11, k)].map(|(seed, len)| values(seed, len)),
        }
    }

    /// Runs it, with the gradients that are wanted.
    fn run(&self, with_norm: bool, [bias, q_weight, k_weight]: [bool; 3]) -> Left {
        let (on, f32s, shape) = (&self.on, self.on.f32(), self.shape);
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
        let (d, b, rotation) = (in_place.ptr(), bias.then(|| sums[0].ptr()), self.angles.rotation());
        // SAFETY: every operand has the length that its name says, and the positions are the tables'.
        unsafe { cuda::backward(launcher, on.elem, d, b, norm, rotation, scratch.ptr(), shape).unwrap() };
        let [dbias, dq, dk] = sums.each_ref().map(|m| f32s.read(m));
        (on.read(&in_place), dbias, [dq, dk])
    }
}

fn added(a: &[f64], b: &[f32]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + f64::from(*b)).collect()
}

/// Backward, with and without bias, norm and the gradients of their weights; twice, to the same bits.
pub fn backward(machine: &dyn Machine) {
    each(machine, |shape, elem, (bias, norm), what| {
        let case = Backward::new(machine, elem, shape);
        let (saved, rstd) = (wide(&case.saved), wide(&case.rstd));
        let weights = case.weights.each_ref().map(|w| wide(w));
        let normed = norm.then_some((&*saved, &*rstd, weights.each_ref().map(|w| &**w)));
        let expected = gradients(&wide(&case.dqkv), normed, &case.angles, shape);
        let left = case.run(norm, [bias, true, true]);
        let (dqkv, dbias, dweights) = &left;
        assert_close(&format!("dqkv {what}"), dqkv, &expected.dqkv, tolerance(elem));
        for (t, (got, dqkv)) in dqkv.chunks(shape.packed()).zip(case.dqkv.chunks(shape.packed())).enumerate()
        {
            assert_eq!(got[shape.rotated()..], dqkv[shape.rotated()..], "dv of token {t} {what}");
        }
        if bias {
            assert_close(&format!("dbias {what}"), dbias, &added(&expected.dbias, &case.old[0]), 1e-5);
        } else {
            assert_eq!(*dbias, case.old[0], "{what}: a gradient that nobody asked for");
        }
        if norm {
            for (side, old) in case.old[1..].iter().enumerate() {
                let sum = added(&expected.dweights[side], old);
                assert_close(&format!("dweight {side} {what}"), &dweights[side], &sum, 1e-5);
            }
            let (some, _, [dq, dk]) = case.run(norm, [bias, false, true]);
            assert_eq!((&some, &dq, &dk), (dqkv, &case.old[1], &dweights[1]), "{what}: keys' weight alone");
            let (none, _, unasked) = case.run(norm, [bias, false, false]);
            assert_eq!(none, *dqkv, "{what}: without weights");
            assert_eq!(unasked[..], case.old[1..], "{what}: a gradient that nobody asked for");
        }
        assert_eq!(case.run(norm, [bias, true, true]), left, "{what}: another run, other bits");
    });
}
