//! AdamW against the f64 equations, whoever runs them.

use chronicals_kernels::{
    Variant,
    adamw::{
        Hyper, codes,
        cuda::{self, Codes, Grads, Group, State},
        cuda_eager, eight_bit, reference,
    },
    cases::values,
    gpu::{Elem, GpuError, Ptr},
};

use crate::machine::{self, EagerMemory, Machine, Memory, Operands, assert_close, cases, wide};

/// One pack; a warp's chunk but for a pack; a chunk and a pack; several blocks; a ragged end.
pub(crate) const LENGTHS: [usize; 5] = [8, 248, 264, 4096, 10_008];

const SEED: u32 = 7;

pub(crate) fn grads(of_elem: bool, at: Ptr) -> Grads {
    if of_elem { Grads::Elem(at) } else { Grads::F32(at) }
}

/// Three ranges of one arena with their own rates, at step `step`.
fn groups(n: usize, step: u32) -> Vec<Group> {
    let base = Hyper { lr: 0.02, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step };
    let ends = [n / 3 / 8 * 8, n / 2 / 8 * 8, n];
    let hypers = [
        base,
        Hyper { lr: 0.005, weight_decay: 0.0, ..base },
        Hyper { lr: 0.0, ..base }, // frozen: its parameters stay
    ];
    let all = ends.into_iter().zip(hypers).map(|(end, hyper)| Group { end, hyper });
    let mut begin = 0;
    all.filter(|g| std::mem::replace(&mut begin, g.end) < g.end).collect()
}

fn hyper_of(groups: &[Group], i: usize) -> Hyper {
    groups.iter().find(|g| i < g.end).unwrap().hyper
}

/// How parameters and moments are held, as the `State` of this name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Master,
    Rounded,
    MasterQuantised,
}

/// Parameters and moments on a machine, and how they read as f32.
struct Arena<'a> {
    on: Operands<'a>,
    variant: Variant,
    n: usize,
    form: Form,
    p: Memory,
    copy: Memory,
    m: Memory,
    v: Memory,
    scales: [Memory; 2],
}

impl<'a> Arena<'a> {
    fn new(machine: &'a dyn Machine, elem: Elem, variant: Variant, n: usize, form: Form) -> Self {
        let on = Operands { machine, elem };
        let p: Vec<f32> = values(1, n).into_iter().map(|v| 0.1 * v).collect();
        let zeros = vec![0.0; n];
        let scale = || on.f32().input(&vec![0.0; codes::scales(n)]);
        let moment = || match form {
            Form::MasterQuantised => machine.upload(&vec![0; n]),
            Form::Master => on.f32().input(&zeros),
            Form::Rounded => on.input(&zeros),
        };
        let p_in =
            if form != Form::Rounded { on.f32().input(&p) } else { on.input(&machine::rounded(elem, p)) };
        let (m, v, copy, scales) = (moment(), moment(), on.output(n), [scale(), scale()]);
        Self { on, variant, n, form, p: p_in, copy, m, v, scales }
    }

    fn state(&self) -> State {
        let [p, copy, m, v] = [&self.p, &self.copy, &self.m, &self.v].map(Memory::ptr);
        let codes = |at, scales: &Memory| Codes { codes: at, scales: scales.ptr() };
        let [ms, vs] = &self.scales;
        match self.form {
            Form::Master => State::Master { p, copy, m, v },
            Form::Rounded => State::Rounded { p, m, v },
            Form::MasterQuantised => State::MasterQuantised { p, copy, m: codes(m, ms), v: codes(v, vs) },
        }
    }

    /// Parameters are f32, with a copy in the element type.
    fn masters(&self) -> bool {
        self.form != Form::Rounded
    }

    fn parameters(&self) -> Vec<f32> {
        if self.masters() { self.on.f32().read(&self.p) } else { self.on.read(&self.p) }
    }

    fn scale(&self, which: usize) -> Vec<f32> {
        self.on.f32().read(&self.scales[which])
    }

    /// First (0) or second (1) moments.
    fn moments(&self, which: usize) -> Vec<f32> {
        let memory = [&self.m, &self.v][which];
        match self.form {
            Form::Master => return self.on.f32().read(memory),
            Form::Rounded => return self.on.read(memory),
            Form::MasterQuantised => {}
        }
        let (codes, scales) = (self.on.machine.download(memory), self.scale(which));
        let decode = [codes::decode_first, codes::decode_second][which];
        codes.iter().enumerate().map(|(i, &code)| decode(code, scales[i / codes::BLOCK])).collect()
    }

    fn update(&self, g: &[f32], of_elem: bool, groups: &[Group], seed: u32, factor: Option<f32>) {
        self.try_update(g, of_elem, groups, seed, factor).unwrap();
    }

    fn try_update(
        &self,
        g: &[f32],
        of_elem: bool,
        groups: &[Group],
        seed: u32,
        factor: Option<f32>,
    ) -> Result<(), GpuError> {
        let (on, elem, n) = (&self.on, self.on.elem, self.n);
        let typed = Operands { machine: on.machine, elem: if of_elem { elem } else { Elem::F32 } };
        let g_in = typed.input(g);
        let hyper = on.machine.upload(&cuda::hyper_bytes(groups, seed));
        let clip = factor.map(|f| on.f32().input(&[1.0, f]));
        let layout = cuda_eager::Layout {
            master: self.masters(),
            of_elem,
            copy: self.masters(),
            clip: clip.is_some(),
        };
        let memory = EagerMemory::new(on.machine, 0, cuda_eager::scratch_bytes(elem, layout, n));
        let (launcher, clip) = (on.machine.launcher(), clip.as_ref().map_or(Ptr::NULL, Memory::ptr));
        let (state, g_at, hyper_at) = (self.state(), grads(of_elem, g_in.ptr()), hyper.ptr());
        // SAFETY: every operand has `n` elements, and the groups end there.
        let done = unsafe {
            match self.variant {
                Variant::Fused => cuda::update(launcher, elem, state, g_at, n, hyper_at, groups.len(), clip),
                Variant::Eager => {
                    let scratch = memory.ptrs().scratch;
                    cuda_eager::update(launcher, elem, state, g_at, n, hyper_at, groups.len(), clip, scratch)
                }
            }
        };
        // The launches are over before their operands are dropped.
        on.machine.download(&self.p);
        done
    }
}

/// What exact arithmetic makes of the state before: p, m, v.
fn expected(before: [&[f32]; 3], g: &[f32], groups: &[Group], factor: f32) -> [Vec<f64>; 3] {
    let mut out = [0; 3].map(|_| Vec::with_capacity(g.len()));
    for i in 0..g.len() {
        let [p, m, v] = before.map(|x| f64::from(x[i]));
        let (p, m, v) = reference::update(p, f64::from(g[i]), m, v, hyper_of(groups, i), f64::from(factor));
        out.iter_mut().zip([p, m, v]).for_each(|(out, x)| out.push(x));
    }
    out
}

/// Parameters, first and second moments.
type Before<'a> = [&'a [f32]; 3];

/// Three steps of every state, whose p, m and v are compared after each with what follows exactly from those before; and, to the
/// bit, with those of another run.
fn steps(
    machine: &dyn Machine,
    variants: &[Variant],
    form: Form,
    check: impl Fn(&Arena, Before, &[Vec<f64>; 3], &str),
) {
    for (n, elem) in cases(machine, &LENGTHS, &[2]).into_iter().flat_map(|n| Elem::ALL.map(|e| (n, e))) {
        for (variant, (of_elem, factor)) in variants
            .iter()
            .flat_map(|v| [(false, Some(0.25)), (true, None), (true, Some(0.5))].map(|o| (*v, o)))
        {
            let [arena, again] = [(); 2].map(|()| Arena::new(machine, elem, variant, n, form));
            for step in 1..=3 {
                let what = format!("{variant} {n} {} of elem {of_elem} step {step}", elem.name());
                let groups = groups(n, step);
                // From gradients of nothing to large ones, also within a block of 8-bit moments.
                let g: Vec<f32> = values(10 + u64::from(step), n)
                    .into_iter()
                    .enumerate()
                    .map(|(i, v)| v * [1.0, 1e-4, 0.0, 30.0][i / 8 % 4])
                    .collect();
                let g = if of_elem { machine::rounded(elem, g) } else { g };
                let before = [arena.parameters(), arena.moments(0), arena.moments(1)];
                arena.update(&g, of_elem, &groups, SEED, factor);
                again.update(&g, of_elem, &groups, SEED, factor);
                let same = |a: &Arena| [&a.p, &a.m, &a.v].map(|x| machine.download(x));
                assert_eq!(same(&arena), same(&again), "{what}: another run, other bits");
                let before = before.each_ref().map(Vec::as_slice);
                check(&arena, before, &expected(before, &g, &groups, factor.unwrap_or(1.0)), &what);
            }
        }
    }
}

/// All f32: a few roundings each, and a root and a quotient of two units in the last place.
pub fn master(machine: &dyn Machine) {
    steps(machine, &Variant::ALL, Form::Master, |arena, _, [p, m, v], what| {
        assert_close(&format!("p {what}"), &arena.parameters(), p, 1e-6);
        assert_close(&format!("m {what}"), &arena.moments(0), m, 1e-6);
        assert_close(&format!("v {what}"), &arena.moments(1), v, 1e-6);
        let copy = machine::rounded(arena.on.elem, arena.parameters());
        assert_eq!(arena.on.read(&arena.copy), copy, "copy {what}");
    });
}

/// |got − exact| < one unit of bf16 there: a neighbour. In f32 nothing is rounded.
fn assert_neighbours(what: &str, elem: Elem, got: &[f32], exact: &[f64]) {
    if elem == Elem::F32 {
        return assert_close(what, got, exact, 1e-6);
    }
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let unit = 2f64.powi(exact.abs().log2().floor() as i32 - 7);
        let off = (f64::from(*got) - exact).abs();
        // Beside the rounding, the error of f32 arithmetic.
        assert!(off <= unit * 1.001 + 1e-37, "{what}[{i}]: {got} is no neighbour of {exact}");
    }
}

/// All of the element type, each value one of the two neighbours of the exact one.
pub fn rounded(machine: &dyn Machine) {
    steps(machine, &[Variant::Fused], Form::Rounded, |arena, _, [p, m, v], what| {
        let elem = arena.on.elem;
        assert_neighbours(&format!("p {what}"), elem, &arena.parameters(), p);
        assert_neighbours(&format!("m {what}"), elem, &arena.moments(0), m);
        assert_neighbours(&format!("v {what}"), elem, &arena.moments(1), v);
    });
}

/// The same of eager, within the roundings to nearest of what each operator writes, by `UNIT` of it at most.
pub fn rounded_to_nearest(machine: &dyn Machine) {
    const UNIT: f64 = 1.0 / 256.0;
    let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
    steps(machine, &[Variant::Eager], Form::Rounded, |arena, before, [p, m, v], what| {
        let got = [arena.parameters(), arena.moments(0), arena.moments(1)];
        if arena.on.elem == Elem::F32 {
            for (got, exact) in got.iter().zip([p, m, v]) {
                assert_close(what, got, exact, 1e-6);
            }
            return;
        }
        for i in 0..arena.n {
            let [p_old, m_old, v_old] = before.map(|x| f64::from(x[i]));
            // The result; and the gradient, cast and scaled, of which there is as much as the two moments differ by.
            let dm = (m[i].abs() + 2.0 * (m[i].abs() + m_old.abs())) * UNIT;
            // The old moment, scaled; the result; and the gradient's two roundings, squared.
            let dv = (v_old + v[i] + 4.0 * v[i]) * UNIT;
            // Parameter, decayed, and the result; and of what they change by: root, quotient, sum, and both moments.
            let change = (p[i] - p_old).abs() + 0.002 * p_old.abs();
            let relative = 3.0 * UNIT + ratio(dm, m[i].abs()) + ratio(dv, 2.0 * v[i]);
            let dp = (p_old.abs() + p[i].abs()) * UNIT + relative * change;
            for (name, exact, got, bound) in
                [("p", p[i], got[0][i], dp), ("m", m[i], got[1][i], dm), ("v", v[i], got[2][i], dv)]
            {
                let off = (f64::from(got) - exact).abs();
                assert!(
                    off <= bound + 1e-37,
                    "{name} {what}[{i}]: {got}, exactly {exact}, {bound:.1e} allowed"
                );
            }
        }
    });
}

/// Eager has no 8-bit moments, and says so.
pub fn eager_is_not_quantised(machine: &dyn Machine) {
    let arena = Arena::new(machine, Elem::Bf16, Variant::Eager, 8, Form::MasterQuantised);
    let error = arena.try_update(&[1.0; 8], true, &groups(8, 1), SEED, None).unwrap_err();
    assert!(error.what.contains("no 8-bit moments") && error.hint.contains("fused"), "{error}");
}

/// 8-bit moments within the error that `codes.rs` states, and the parameters as exact as with moments in f32.
pub fn quantised(machine: &dyn Machine) {
    steps(machine, &[Variant::Fused], Form::MasterQuantised, |arena, _, [p, m, v], what| {
        assert_close(&format!("p {what}"), &arena.parameters(), p, 1e-6);
        for (which, exact, floor) in [(0, m, 2f64.powi(-17)), (1, v, 2f64.powi(-33))] {
            let scales = arena.scale(which);
            for (block, exact) in exact.chunks(codes::BLOCK).enumerate() {
                let largest = exact.iter().fold(0.0f64, |a, x| a.max(x.abs()));
                assert_close(&format!("scale {which} {what}"), &[scales[block]], &[largest], 1e-6);
            }
            for (i, (got, exact)) in arena.moments(which).iter().zip(exact).enumerate() {
                let bound = (exact.abs() / 8.0).max(floor * f64::from(scales[i / codes::BLOCK]));
                let off = (f64::from(*got) - exact).abs();
                assert!(off <= bound * 1.001 + 1e-30, "moment {which} {what}[{i}]: {got}, exactly {exact}");
                assert!(which == 0 || *exact < 1e-30 || *got > 0.0, "{what}[{i}]: {exact} became 0");
            }
        }
    });
}

/// The processor's codes of the same arena, gradients and seed. A GPU divides within 2 units in the last place, so that a code in
/// a thousand may be its neighbour; the rest is the same to the bit.
pub fn quantised_as_on_the_processor(machine: &dyn Machine) {
    for n in cases(machine, &LENGTHS, &[2]) {
        let arena = Arena::new(machine, Elem::F32, Variant::Fused, n, Form::MasterQuantised);
        let (mut p, block_scales) = (arena.parameters(), vec![0.0; codes::scales(n)]);
        let mut moments = [(); 2].map(|()| (vec![0u8; n], block_scales.clone()));
        for step in 1..=3 {
            let (groups, g) = (groups(n, step), values(u64::from(step) + 30, n));
            arena.update(&g, false, &groups, SEED, Some(0.25));
            let [m, v] = moments.each_mut().map(|(codes, scales)| eight_bit::Moments { codes, scales });
            eight_bit::update(&mut p, &g, m, v, &groups, SEED, 0.25);
            let what = format!("{n} step {step}");
            assert_close(&format!("p {what}"), &arena.parameters(), &wide(&p), 1e-6);
            for (which, (codes, scales)) in moments.iter_mut().enumerate() {
                assert_eq!(arena.scale(which), *scales, "scales {which} {what}");
                let got = machine.download([&arena.m, &arena.v][which]);
                let others = got.iter().zip(&*codes).filter(|(a, b)| a != b).count();
                let allowed = if matches!(arena.m, Memory::Gpu(_)) { n.div_ceil(1000) } else { 0 };
                assert!(others <= allowed, "codes {which} {what}: {others} differ");
                assert!(got.iter().zip(&*codes).all(|(a, b)| a.abs_diff(*b) <= 1), "codes {which} {what}");
                *codes = got;
            }
        }
    }
}

/// The mean of stochastic roundings over many seeds is the value: of parameters, of bf16 and of 8-bit moments.
pub fn unbiased(machine: &dyn Machine) {
    // The bounds below are those of however many.
    let seeds: u32 = if machine.reduced() { 16 } else { 400 };
    let n = 256;
    for form in [Form::Rounded, Form::MasterQuantised] {
        let groups = [Group { end: n, hyper: Hyper { step: 1, ..groups(n, 1)[0].hyper } }];
        let g: Vec<f32> = values(5, n).into_iter().map(|v| v + 1.5 * v.signum()).collect();
        let mut sums = [0; 3].map(|_| vec![0.0; n]);
        let mut exact = None;
        for seed in 0..seeds {
            let arena = Arena::new(machine, Elem::Bf16, Variant::Fused, n, form);
            let before = [arena.parameters(), arena.moments(0), arena.moments(1)];
            arena.update(&g, false, &groups, seed, None);
            exact.get_or_insert_with(|| expected(before.each_ref().map(Vec::as_slice), &g, &groups, 1.0));
            for (sum, got) in sums.iter_mut().zip([arena.parameters(), arena.moments(0), arena.moments(1)]) {
                sum.iter_mut().zip(got).for_each(|(s, x)| *s += f64::from(x) / f64::from(seeds));
            }
        }
        for (which, (mean, exact)) in sums.iter().zip(exact.unwrap()).enumerate() {
            // Spread of one rounding: half a unit at most, 2⁻⁸ of the value in bf16, 2⁻⁴ in 8 bits. Six deviations of the
            // mean: all of 1,536 values lie within but once in 10⁵ tests, and the seeds are fixed.
            let unit = if form == Form::MasterQuantised && which > 0 { 2f64.powi(-3) } else { 2f64.powi(-7) };
            for (i, (mean, exact)) in mean.iter().zip(&exact).enumerate() {
                let deviation = exact.abs() * unit / 2.0 / f64::from(seeds).sqrt();
                let off = (mean - exact).abs();
                assert!(off < 6.0 * deviation, "{which} [{i}] of {form:?}: mean {mean}, exactly {exact}");
            }
            // And of all elements together the relative bias is far below a unit.
            let bias: f64 = mean.iter().zip(&exact).map(|(m, e)| (m - e) / e).sum::<f64>() / n as f64;
            let limit = 6.0 * unit / 2.0 / (f64::from(seeds) * n as f64).sqrt();
            assert!(bias.abs() < limit, "{which} of {form:?}: a bias of {bias:.1e}, {limit:.1e} allowed");
        }
    }
}
