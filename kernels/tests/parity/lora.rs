//! LoRA against the f64 equations, whoever runs it.

use chronicals_kernels::{
    Variant,
    cases::values,
    gpu::{Elem, GpuError, Ptr, le_bytes},
    lora::{
        Segment, Shape, b_len,
        cuda::{self, Gradients, Group, Operands as Inputs},
        cuda_eager, reference, stacked_rank,
    },
};

use crate::machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide};

const SCALE: f32 = 1.5;

/// Tokens, inputs, outputs and adapters.
pub type Extents = (usize, usize, usize, &'static [Segment]);

pub const fn segment(offset: usize, width: usize, r: usize) -> Segment {
    Segment { offset, width, r }
}

/// One of all columns and one token; q, k and v, of several ranks, one of them odd;
/// columns that no adapter has; the last alone; q, k and v with columns between them, all in multiples of 8; ranks that are no
/// whole packs, together and alone; gate and up, alike, and all but alike.
const CASES: [Extents; 10] = [
    (1, 8, 16, &[segment(0, 16, 8)]),
    (37, 40, 64, &[segment(0, 32, 8), segment(32, 16, 5), segment(48, 16, 3)]),
    (50, 24, 80, &[segment(8, 30, 4), segment(48, 24, 12)]),
    (130, 72, 48, &[segment(40, 8, 16)]),
    (41, 48, 96, &[segment(0, 40, 16), segment(48, 16, 8), segment(64, 24, 8)]),
    (21, 24, 32, &[segment(0, 16, 4), segment(16, 8, 4), segment(24, 8, 4)]),
    (9, 16, 24, &[segment(0, 24, 1)]),
    (53, 40, 96, &[segment(0, 48, 16), segment(48, 48, 16)]),
    (30, 32, 64, &[segment(0, 32, 8), segment(32, 32, 16)]),
    (30, 32, 64, &[segment(0, 24, 8), segment(24, 24, 8)]),
];

/// x·Aᵀ, s·B and what is added to are rounded to bf16 before they meet; sums in f32. Unfused, the output of B is rounded before
/// and after it is scaled, and a sum after every adapter.
fn tolerance(elem: Elem) -> f64 {
    match elem {
        Elem::Bf16 => 1.5e-2,
        Elem::F32 => 1e-5,
    }
}

/// x·Aᵀ before it is computed: zeros beyond the ranks, as the contract wants, and NaN elsewhere.
fn xa(tokens: usize, ranks: usize, s: usize) -> Vec<f32> {
    (0..tokens * s).map(|i| if i % s < ranks { f32::NAN } else { 0.0 }).collect()
}

/// A group on a machine.
struct Case<'a> {
    on: Operands<'a>,
    variant: Variant,
    group: Group,
    segments: &'static [Segment],
    x: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    memory: [Memory; 6],
}

impl<'a> Case<'a> {
    fn new(
        machine: &'a dyn Machine,
        variant: Variant,
        elem: Elem,
        (tokens, inputs, outputs, segments): Extents,
        magnitude_of_b: f32,
    ) -> Self {
        let on = Operands { machine, elem };
        let s = stacked_rank(segments);
        let group = Group::new(segments, Shape { tokens, inputs, outputs }, elem, SCALE);
        let [x, a] = [(1, tokens * inputs), (2, s * inputs)].map(|(seed, n)| rounded(elem, values(seed, n)));
        let b = values(3, b_len(segments)).into_iter().map(|v| v * magnitude_of_b).collect();
        let b = rounded(elem, b);
        let scratch_bytes = match variant {
            Variant::Fused => group.scratch_bytes(),
            Variant::Eager => cuda_eager::scratch_bytes(&group, segments).unwrap_or(0),
        };
        let memory = [
            on.input(&x),
            on.input(&a),
            on.input(&b),
            on.input(&xa(tokens, s, group.s)),
            machine.upload(&le_bytes(&cuda::table(segments), i32::to_le_bytes)),
            machine.upload(&vec![0xff; scratch_bytes]),
        ];
        Self { on, variant, group, segments, x, a, b, memory }
    }

    fn inputs(&self) -> Inputs {
        let [x_TD, a_SD, b, xa_TS, table, scratch] = self.memory.each_ref().map(Memory::ptr);
        Inputs { x_TD, a_SD, b, xa_TS, table, scratch }
    }

    /// # Safety
    /// As the functions that it calls.
    unsafe fn call_forward(&self, y_TN: Ptr) -> Result<(), GpuError> {
        let (launcher, products) = (self.on.machine.launcher(), self.on.machine.products());
        let (group, inputs) = (&self.group, &self.inputs());
        // SAFETY: the caller's promise is the same.
        unsafe {
            match self.variant {
                Variant::Fused => {
                    cuda::forward(launcher, products, group, inputs, Some(y_TN), &mut || Ok(()))
                }
                Variant::Eager => cuda_eager::forward(launcher, products, group, self.segments, inputs, y_TN),
            }
        }
    }

    /// # Safety
    /// As the functions that it calls.
    unsafe fn call_backward(&self, gradients: &Gradients) -> Result<(), GpuError> {
        let (launcher, products) = (self.on.machine.launcher(), self.on.machine.products());
        let (group, inputs) = (&self.group, &self.inputs());
        // SAFETY: the caller's promise is the same.
        unsafe {
            match self.variant {
                Variant::Fused => {
                    cuda::backward(launcher, products, group, inputs, gradients, &mut || Ok(()))
                }
                Variant::Eager => {
                    cuda_eager::backward(launcher, products, group, self.segments, inputs, gradients)
                }
            }
        }
    }

    /// y after the adapters have added to `old`.
    fn forward(&self, old: &[f32]) -> Vec<f32> {
        let y = self.on.input(old);
        // SAFETY: every operand has the length that its docs say.
        unsafe { self.call_forward(y.ptr()).unwrap() };
        self.on.read(&y)
    }

    /// da, db and dx after the gradients were added to `old`; without dx, what was there.
    fn backward(&self, dy: &[f32], old: &[Vec<f32>; 3], with_dx: bool) -> [Vec<f32>; 3] {
        let f32s = self.on.f32();
        let (dy, dxa) = (self.on.input(dy), self.on.output(self.group.shape.tokens * self.group.s));
        let [da, db, dx] = [f32s.input(&old[0]), f32s.input(&old[1]), self.on.input(&old[2])];
        let gradients = Gradients {
            dy_TN: dy.ptr(),
            dxa_TS: dxa.ptr(),
            da_SD: da.ptr(),
            db: db.ptr(),
            dx_TD: with_dx.then(|| dx.ptr()),
        };
        // SAFETY: as above; the forward pass left x·Aᵀ.
        unsafe { self.call_backward(&gradients).unwrap() };
        [f32s.read(&da), f32s.read(&db), self.on.read(&dx)]
    }

    /// The equations of the contract.
    fn expected(&self, dy: &[f32]) -> [Vec<f64>; 3] {
        let Shape { inputs: d, outputs: n, .. } = self.group.shape;
        let (x, a, b, dy) = (wide(&self.x), wide(&self.a), wide(&self.b), wide(dy));
        let mut out = [vec![0.0; a.len()], vec![0.0; b.len()], vec![0.0; x.len()]];
        let places: Vec<Vec<i32>> = cuda::table(self.segments).chunks(5).map(<[i32]>::to_vec).collect();
        for (t, (x, dy)) in x.chunks(d).zip(dy.chunks(n)).enumerate() {
            for place in &places {
                let [offset, width, r, s, first] = [0, 1, 2, 3, 4].map(|i: usize| place[i] as usize);
                for k in 0..r {
                    let row = &a[(s + k) * d..][..d];
                    let xa: f64 = row.iter().zip(x).map(|(a, x)| a * x).sum();
                    let mut dxa = 0.0;
                    for j in 0..width {
                        let dy = f64::from(SCALE) * dy[offset + j];
                        dxa += dy * b[first + j * r + k];
                        out[1][first + j * r + k] += dy * xa;
                    }
                    for c in 0..d {
                        out[0][(s + k) * d + c] += dxa * x[c];
                        out[2][t * d + c] += dxa * row[c];
                    }
                }
            }
        }
        out
    }
}

/// Whether unfused products have the rows that they want.
fn is_even(segments: &[Segment]) -> bool {
    segments.iter().all(|s| [s.offset, s.width, s.r].iter().all(|n| n.is_multiple_of(8)))
}

fn each(machine: &dyn Machine, mut check: impl FnMut(&Case, String)) {
    for (case, elem) in cases(machine, &CASES, &[1, 4]).into_iter().flat_map(|c| Elem::ALL.map(|e| (c, e))) {
        // At the first step B is nothing.
        for (variant, magnitude) in Variant::ALL.into_iter().flat_map(|v| [0.0, 1.0].map(|m| (v, m))) {
            if variant == Variant::Fused || is_even(case.3) {
                let what = format!("{variant} {case:?} {} ×{magnitude}", elem.name());
                check(&Case::new(machine, variant, elem, case, magnitude), what);
            }
        }
    }
}

/// What unfused products cannot do is an error, and nothing is launched.
pub fn refusal(machine: &dyn Machine) {
    let mut refused = 0;
    for case in CASES.into_iter().filter(|case| !is_even(case.3)) {
        let case = Case::new(machine, Variant::Eager, Elem::Bf16, case, 1.0);
        let nowhere = Ptr::NULL;
        let gradients =
            Gradients { dy_TN: nowhere, dxa_TS: nowhere, da_SD: nowhere, db: nowhere, dx_TD: None };
        let scratch = cuda_eager::scratch_bytes(&case.group, case.segments).map(drop);
        // SAFETY: nothing runs.
        let errors = unsafe { [scratch, case.call_forward(nowhere), case.call_backward(&gradients)] };
        for error in errors.map(Result::unwrap_err) {
            assert!(error.what.contains("rank") && error.hint.contains("multiples of 8"), "{error:?}");
            refused += 1;
        }
    }
    assert_eq!(refused, 12, "cases with odd extents");
}

/// Forward; columns without an adapter keep their bits.
pub fn forward(machine: &dyn Machine) {
    each(machine, forward_of);
}

fn forward_of(case: &Case, what: String) {
    let Shape { tokens, outputs: n, .. } = case.group.shape;
    let old = rounded(case.on.elem, values(4, tokens * n));
    let got = case.forward(&old);
    let scale = f64::from(SCALE);
    let (x, a, b) = (wide(&case.x), wide(&case.a), wide(&case.b));
    let exact = reference::forward(&x, &a, &b, scale, case.segments, &wide(&old), case.group.shape);
    assert_close(&format!("y {what}"), &got, &exact, tolerance(case.on.elem));
    let of_none = |j: usize| !case.segments.iter().any(|s| (s.offset..s.offset + s.width).contains(&j));
    for (i, y) in got.iter().enumerate().filter(|(i, _)| of_none(i % n)) {
        assert_eq!(*y, old[i], "{what}: column {} has no adapter", i % n);
    }
    assert_eq!(case.forward(&old), got, "{what}: another run, other bits");
}

/// Gradients onto what is there, with and without dx.
pub fn backward(machine: &dyn Machine) {
    each(machine, backward_of);
}

fn backward_of(case: &Case, what: String) {
    let Shape { tokens, inputs, outputs } = case.group.shape;
    case.forward(&vec![0.0; tokens * outputs]);
    let dy = rounded(case.on.elem, values(5, tokens * outputs));
    let lengths = [case.a.len(), case.b.len(), tokens * inputs];
    let old = [6, 7, 8].map(|seed| rounded(case.on.elem, values(seed, lengths[seed as usize - 6])));
    let exact = case.expected(&dy);
    let got = case.backward(&dy, &old, true);
    for (i, name) in ["da", "db", "dx"].into_iter().enumerate() {
        let sum: Vec<f64> = exact[i].iter().zip(&old[i]).map(|(e, o)| e + f64::from(*o)).collect();
        assert_close(&format!("{name} {what}"), &got[i], &sum, tolerance(case.on.elem));
    }
    assert!(case.backward(&dy, &old, true) == got, "{what}: another run, other bits");
    let without = case.backward(&dy, &old, false);
    assert!(without[..2] == got[..2] && without[2] == old[2], "{what}: without dx");
}

/// Both passes of one group in bf16.
pub fn in_bf16(machine: &dyn Machine, extents: Extents) {
    for variant in Variant::ALL {
        let case = Case::new(machine, variant, Elem::Bf16, extents, 1.0);
        let what = format!("{variant} {extents:?}");
        forward_of(&case, what.clone());
        backward_of(&case, what);
    }
}
