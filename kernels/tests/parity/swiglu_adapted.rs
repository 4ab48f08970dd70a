//! SwiGLU that adds the updates of adapters itself, against the f64 equations.

use chronicals_kernels::{
    cases::values,
    gpu::{Elem, Launcher},
    lora::{Segment, Shape, b_len, cuda::Group},
    swiglu::{
        cuda_adapted::{self as cuda, Behind, Gradient, Layer},
        reference,
    },
};

use crate::{
    machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide},
    swiglu::gradients,
};

const ELEM: Elem = Elem::Bf16;

/// s, with which a rounded s·B is no power of two away from B.
const SCALE: f32 = 1.7;

/// Rounding of the results, by 2⁻⁸ at most, and of the device's exponential.
const TOLERANCE: f64 = 4e-3;

/// Tokens and F, ranks of gate, up, and the adapter behind.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub tokens: usize,
    pub ffn: usize,
    pub ranks: [usize; 3],
}

/// One pack; a rank alone; ranks that begin inside a pack; more than a block of products; tokens and columns beyond a tile, a
/// strip and the tiles of a block; no adapter on one side, or on any.
const CASES: [Case; 8] = [
    Case { tokens: 1, ffn: 8, ranks: [8, 8, 8] },
    Case { tokens: 17, ffn: 136, ranks: [32, 32, 32] },
    Case { tokens: 40, ffn: 72, ranks: [17, 5, 1] },
    Case { tokens: 129, ffn: 24, ranks: [24, 64, 33] },
    Case { tokens: 530, ffn: 16, ranks: [0, 16, 16] },
    Case { tokens: 9, ffn: 520, ranks: [1, 0, 0] },
    Case { tokens: 33, ffn: 128, ranks: [0, 0, 4] },
    Case { tokens: 20, ffn: 40, ranks: [0, 0, 0] },
];

/// Operands of a case, rounded.
struct Inputs {
    case: Case,
    layer: Layer,
    behind: Behind,
    /// S of gate and up, and of the adapter behind.
    s: usize,
    s_behind: usize,
    gate_up: Vec<f32>,
    xa: Vec<f32>,
    b: Vec<f32>,
    dact: Vec<f32>,
    dxa: Vec<f32>,
    a: Vec<f32>,
}

impl Inputs {
    fn new(on: &dyn Launcher, case: Case) -> Self {
        let Case { tokens, ffn, ranks: [gate, up, down] } = case;
        let halves = [(0, gate), (ffn, up)].into_iter().filter(|(_, r)| *r > 0);
        let segments: Vec<Segment> = halves.map(|(offset, r)| Segment { offset, width: ffn, r }).collect();
        let shape = Shape { tokens, inputs: 8, outputs: 2 * ffn };
        let group = (!segments.is_empty()).then(|| Group::new(&segments, shape, ELEM, SCALE));
        let s = group.as_ref().map_or(0, |g| g.s);
        let one = [Segment { offset: 0, width: 8, r: down }];
        let behind_group = (down > 0).then(|| Group::new(&one, Shape { outputs: 8, ..shape }, ELEM, SCALE));
        let s_behind = behind_group.map_or(0, |g| g.s);
        let behind = behind_group.map_or(Behind::NONE, |g| Behind::new(on, &g).unwrap());
        let random =
            |seed, n: usize, by: f32| rounded(ELEM, values(seed, n).into_iter().map(|x| by * x).collect());
        // What is beyond the ranks counts for nothing, whatever it is.
        Self {
            case,
            layer: group.map_or(Layer::NONE, |g| Layer::new(on, &segments, &g).unwrap()),
            behind,
            s,
            s_behind,
            gate_up: random(1, tokens * 2 * ffn, 1.0),
            xa: random(2, (tokens * s).max(8), 1.0),
            b: random(3, b_len(&segments).max(8), 0.4),
            dact: random(4, tokens * ffn, 1.0),
            dxa: random(5, (tokens * s_behind).max(8), 1.0),
            a: random(6, (down * ffn).max(8), 0.4),
        }
    }

    /// `gate'` and `up'`.
    fn updated(&self) -> Vec<f64> {
        let Case { ffn, ranks: [gate, up, _], .. } = self.case;
        let mut rows = wide(&self.gate_up);
        for (t, row) in rows.chunks_mut(2 * ffn).enumerate() {
            let xa = &self.xa[t * self.s..(t + 1) * self.s];
            let halves = [(0, gate, 0, 0), (ffn, up, gate, gate * ffn)];
            for (offset, r, first, at) in halves {
                for n in 0..ffn {
                    let b = rounded(ELEM, self.b[at + n * r..][..r].iter().map(|b| SCALE * b).collect());
                    row[offset + n] += dot(&xa[first..], &b);
                }
            }
        }
        rows
    }

    /// `dact'`.
    fn updated_gradient(&self) -> Vec<f64> {
        let (ffn, ranks, s) = (self.case.ffn, self.case.ranks[2], self.s_behind);
        let mut rows = wide(&self.dact);
        for (t, row) in rows.chunks_mut(ffn).enumerate() {
            for (n, d) in row.iter_mut().enumerate() {
                let column: Vec<f32> = (0..ranks).map(|k| self.a[k * ffn + n]).collect();
                *d += dot(&self.dxa[t * s..], &column);
            }
        }
        rows
    }

    fn operands(&self, on: &Operands) -> [Memory; 3] {
        [on.input(&self.gate_up), on.input(&self.xa), on.input(&self.b)]
    }
}

/// Over the shorter of the two.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn pointers([gate_up, xa, b]: &[Memory; 3]) -> cuda::Operands {
    cuda::Operands { gate_up_T2F: gate_up.ptr(), xa_TS: xa.ptr(), b: b.ptr() }
}

/// Forward; gate and up do not change.
pub fn forward(machine: &dyn Machine) {
    forward_of(machine, &cases(machine, &CASES, &[1, 2]));
}

pub fn forward_of(machine: &dyn Machine, cases: &[Case]) {
    for &case in cases {
        let (on, i) = (Operands { machine, elem: ELEM }, Inputs::new(machine.launcher(), case));
        let (inputs, act) = (i.operands(&on), on.output(case.tokens * case.ffn));
        let (o, launcher) = (pointers(&inputs), machine.launcher());
        // SAFETY: every operand has the length that its name says.
        unsafe { cuda::forward(launcher, &i.layer, &o, act.ptr(), case.tokens, case.ffn).unwrap() };
        let expected = reference::forward(&i.updated(), case.ffn);
        assert_close(&format!("act {case:?}"), &on.read(&act), &expected, TOLERANCE);
        assert_eq!(on.read(&inputs[0]), i.gate_up, "{case:?}: gate and up changed");
    }
}

/// Backward, in place; twice, to the same bits.
pub fn backward(machine: &dyn Machine) {
    backward_of(machine, &cases(machine, &CASES, &[1, 2]));
}

pub fn backward_of(machine: &dyn Machine, cases: &[Case]) {
    for &case in cases {
        let (on, i) = (Operands { machine, elem: ELEM }, Inputs::new(machine.launcher(), case));
        let run = || {
            let inputs = i.operands(&on);
            let [dact, dxa, a] = [&i.dact, &i.dxa, &i.a].map(|x| on.input(x));
            let d = Gradient { dact_TF: dact.ptr(), dxa_TS: dxa.ptr(), a_RF: a.ptr() };
            let (o, launcher) = (pointers(&inputs), machine.launcher());
            // SAFETY: as above.
            unsafe { cuda::backward(launcher, &i.layer, &i.behind, &o, &d, case.tokens, case.ffn).unwrap() };
            on.read(&inputs[0])
        };
        let expected = gradients(&i.updated(), &i.updated_gradient(), case.ffn);
        let got = run();
        assert_close(&format!("d(gate, up) {case:?}"), &got, &expected, TOLERANCE);
        assert_eq!(run(), got, "{case:?}: another run, other bits");
    }
}
