//! 131,072 tokens in one launch: of wide operands, of which some have more than 2³¹ bytes, rows that are looked at and sums over all
//! of them; of narrow ones every row.

use chronicals_kernels::{
    Variant,
    attention::cuda::Path,
    cases::values,
    gpu::{Elem, le_bytes},
    linear_ce,
    lora::Segment,
    qk_rope::{self, Tables},
    rmsnorm, swiglu,
};

use crate::{
    attention, embedding,
    lora::{self, segment},
    machine::{Machine, Memory, Operands, assert_close, rounded, wide},
};

const TOKENS: usize = 128 << 10;

/// First and last, about the middle, and some between.
const ROWS: [usize; 8] = [0, 1, 4_099, 65_535, 65_536, 77_777, TOKENS - 2, TOKENS - 1];

/// Of bf16, rounded once.
const TOLERANCE: f64 = 6e-3;

/// A sum of as many terms in f32, of which each thread adds up a few hundred.
const SUM_TOLERANCE: f64 = 2e-5;

fn bf16(seed: u64, len: usize) -> Vec<f32> {
    rounded(Elem::Bf16, values(seed, len))
}

fn picked(v: &[f32], width: usize) -> Vec<f32> {
    ROWS.iter().flat_map(|t| &v[t * width..][..width]).copied().collect()
}

fn on(machine: &dyn Machine) -> Operands<'_> {
    Operands { machine, elem: Elem::Bf16 }
}

/// With the residual added, and its gradient.
pub fn rmsnorm_residual(machine: &dyn Machine) {
    let shape = rmsnorm::Shape { tokens: TOKENS, hidden: 64 };
    for variant in Variant::ALL {
        crate::rmsnorm::forward_of(&crate::rmsnorm::Op::new(machine, Elem::Bf16, variant, shape), 1.0);
        crate::rmsnorm::backward_of(machine, Elem::Bf16, variant, shape);
    }
}

/// Heads that are normalised before they are rotated, with a bias.
pub fn qk_norm(machine: &dyn Machine) {
    let shape = qk_rope::Shape { tokens: TOKENS, heads: 2, kv_heads: 1, head_dim: 64 };
    for variant in Variant::ALL {
        let case =
            crate::qk_rope::Case { variant, elem: Elem::Bf16, shape, with_bias: true, with_norm: true };
        crate::qk_rope::forward_of(machine, case);
        crate::qk_rope::backward_of(machine, case);
    }
}

/// Gather and scatter, most ids in many pieces.
pub fn embedding(machine: &dyn Machine) {
    let shapes = [(TOKENS, 4_001, 64)];
    embedding::forward_of(machine, &shapes);
    embedding::backward_of(machine, &shapes);
}

/// Adapters of q, k and v.
pub fn lora(machine: &dyn Machine) {
    const QKV: &[Segment] = &[segment(0, 64, 16), segment(64, 32, 8), segment(96, 32, 8)];
    lora::in_bf16(machine, (TOKENS, 64, 128, QKV));
}

/// SwiGLU that adds the updates of adapters.
pub fn swiglu_adapted(machine: &dyn Machine) {
    use crate::swiglu_adapted::{Case, backward_of, forward_of};
    let case = [Case { tokens: TOKENS, ffn: 136, ranks: [32, 32, 16] }];
    forward_of(machine, &case);
    backward_of(machine, &case);
}

/// All tokens' loss and gradients, in chunks of which the last is ragged.
pub fn linear_ce_rows(machine: &dyn Machine) {
    crate::linear_ce::in_bf16(machine, (TOKENS, 16, 501), 12_345);
}

/// RMSNorm forward, then its backward, with the sum for the weight's gradient over all rows.
pub fn rmsnorm(machine: &dyn Machine) {
    Variant::ALL.into_iter().for_each(|variant| rmsnorm_of(machine, variant));
}

fn rmsnorm_of(machine: &dyn Machine, variant: Variant) {
    const EPS: f64 = 1e-6;
    let (shape, on, d) = (rmsnorm::Shape { tokens: TOKENS, hidden: 896 }, on(machine), 896);
    let op = crate::rmsnorm::Op::new(machine, Elem::Bf16, variant, shape);
    let tolerance = crate::rmsnorm::tolerance(Elem::Bf16, variant);
    let (x, dy, w) = (bf16(1, TOKENS * d), bf16(2, TOKENS * d), bf16(3, d));
    let [xm, dym, wm] = [&x, &dy, &w].map(|v| on.input(v));
    let (y, rstd) = (on.output(TOKENS * d), on.f32().output(TOKENS));
    op.forward(xm.ptr(), None, wm.ptr(), &y, &rstd);
    let rows = rmsnorm::Shape { tokens: ROWS.len(), hidden: d };
    let (y_ref, _) = rmsnorm::reference::forward(&wide(&picked(&x, d)), &wide(&w), EPS, rows);
    assert_close("y", &picked(&on.read(&y), d), &y_ref, tolerance);
    let (dx, dw) = (on.output(TOKENS * d), on.f32().input(&vec![0.0; d]));
    op.backward([&dym, &xm, &rstd, &wm].map(Memory::ptr), &dx, false, Some(dw.ptr()));
    let rstd = on.f32().read(&rstd);
    let mut dw_ref = vec![0.0; d];
    for ((dy, x), r) in dy.chunks(d).zip(x.chunks(d)).zip(&rstd) {
        for (sum, (dy, x)) in dw_ref.iter_mut().zip(dy.iter().zip(x)) {
            *sum += f64::from(*dy) * f64::from(*x) * f64::from(*r);
        }
    }
    let weight_tolerance = crate::rmsnorm::weight_tolerance(Elem::Bf16, variant).max(SUM_TOLERANCE);
    assert_close("dw", &on.f32().read(&dw), &dw_ref, weight_tolerance);
    let dx_ref = ROWS.iter().flat_map(|&t| {
        let r = f64::from(rstd[t]);
        let (dy, x) = (wide(&dy[t * d..][..d]), wide(&x[t * d..][..d]));
        let w = wide(&w);
        let dot: f64 = (0..d).map(|j| dy[j] * w[j] * x[j]).sum();
        (0..d).map(move |j| r * dy[j] * w[j] - x[j] * r.powi(3) / d as f64 * dot)
    });
    assert_close("dx", &picked(&on.read(&dx), d), &dx_ref.collect::<Vec<_>>(), tolerance);
}

/// SwiGLU forward, then its backward in place.
pub fn swiglu(machine: &dyn Machine) {
    Variant::ALL.into_iter().for_each(|variant| swiglu_of(machine, variant));
}

fn swiglu_of(machine: &dyn Machine, variant: Variant) {
    let (ffn, on) = (4864, on(machine));
    let op = crate::swiglu::Op::new(machine, Elem::Bf16, variant, (TOKENS, ffn));
    let tolerance = crate::swiglu::tolerance(Elem::Bf16, variant).max(TOLERANCE);
    // The operands are a block of random rows again and again: what matters is where they lie.
    let again = |seed, width: usize| -> Vec<f32> {
        bf16(seed, 1024 * width).into_iter().cycle().take(TOKENS * width).collect()
    };
    let (gate_up, dact) = (again(1, 2 * ffn), again(2, ffn));
    let (input, act) = (on.input(&gate_up), on.output(TOKENS * ffn));
    op.forward(&input, &act);
    let rows = wide(&picked(&gate_up, 2 * ffn));
    assert_close("act", &picked(&on.read(&act), ffn), &swiglu::reference::forward(&rows, ffn), tolerance);
    let dact_in = on.input(&dact);
    op.backward(&input, &dact_in);
    let expected = crate::swiglu::gradients(&rows, &wide(&picked(&dact, ffn)), ffn);
    assert_close("d(gate, up)", &picked(&on.read(&input), 2 * ffn), &expected, tolerance);
}

/// Rotation with a bias, and its backward: the rotated rows, and the bias' gradient of v, a sum over all rows.
pub fn qk_rope(machine: &dyn Machine) {
    Variant::ALL.into_iter().for_each(|variant| qk_rope_of(machine, variant));
}

fn qk_rope_of(machine: &dyn Machine, variant: Variant) {
    let shape = qk_rope::Shape { tokens: TOKENS, heads: 14, kv_heads: 2, head_dim: 64 };
    let (on, q) = (on(machine), shape.packed());
    let (qkv, bias) = (bf16(1, TOKENS * q), bf16(2, q));
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let angles = crate::qk_rope::Angles::of(machine, Tables::inverse_frequencies(1e6, 64), positions, TOKENS);
    let frequencies = angles.frequencies.clone();
    let op = crate::qk_rope::Op::with_angles(machine, Elem::Bf16, variant, shape, angles);
    let tolerance = crate::qk_rope::tolerance(Elem::Bf16, variant);
    let (in_place, bias_in) = (on.input(&qkv), on.input(&bias));
    op.forward(&in_place, Some(bias_in.ptr()), None);
    let sums: Vec<f64> =
        picked(&qkv, q).iter().zip(bias.iter().cycle()).map(|(x, b)| f64::from(x + b)).collect();
    let rows = qk_rope::Shape { tokens: ROWS.len(), ..shape };
    let places = ROWS.map(|t| t as u32);
    let expected = qk_rope::reference::forward(&sums, None, None, &frequencies, &places, rows);
    let rotated = on.read(&in_place);
    assert_close("qkv", &picked(&rotated, q), &expected, tolerance);
    let dbias = on.f32().input(&vec![0.0; q]);
    let floats = qk_rope::cuda::scratch_floats(machine.launcher().processors(), shape, true, false);
    let scratch = on.f32().output(floats);
    op.backward(&in_place, Some(dbias.ptr()), None, scratch.ptr());
    // Turned back by as much.
    assert_close("dqkv", &picked(&on.read(&in_place), q), &sums, 2.0 * tolerance);
    let v = shape.rotated();
    let mut sums = vec![0.0; q - v];
    for row in rotated.chunks(q) {
        sums.iter_mut().zip(&row[v..]).for_each(|(sum, d)| *sum += f64::from(*d));
    }
    // v is exact; eager rounds its sum.
    let sum_tolerance = if variant == Variant::Eager { 4e-3 } else { SUM_TOLERANCE };
    assert_close("dbias of v", &on.f32().read(&dbias)[v..], &sums, sum_tolerance);
}

/// One document, on the paths of tensor cores.
pub fn attention(machine: &dyn Machine) {
    for path in attention::paths(machine).into_iter().filter(|path| path.elem() == Elem::Bf16) {
        attention_on(machine, path);
    }
}

/// Out, lse and dq of the rows that are looked at, and dk and dv of the last keys, which few queries see.
fn attention_on(machine: &dyn Machine, path: Path) {
    let batch = attention::Batch::new((2, 1, 64), &[TOKENS as u32], path, 1.0);
    let left = attention::run(machine, &batch);
    let (s, k) = (batch.shape, 64);
    let (qkv, dout) = (wide(&batch.qkv), wide(&batch.dout));
    let row = |v: &[f64], t: usize, width: usize, from: usize| v[t * width + from..][..k].to_vec();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Gradients of the scores of a query, its output and lse.
    let of_query = |t: usize, h: usize| {
        let (out, lse, p) = attention::query(&batch, &qkv, t, h);
        let d = row(&dout, t, s.out(), h * k);
        let delta = dot(&d, &out);
        let ds = |(j, p): (usize, &f64)| p * (dot(&d, &row(&qkv, j, s.packed(), 3 * k)) - delta) / 8.0;
        let ds: Vec<f64> = p.iter().enumerate().map(ds).collect();
        (out, lse, p, ds)
    };
    for (t, h) in ROWS.into_iter().flat_map(|t| [(t, 0), (t, 1)]) {
        let (out, lse, _, ds) = of_query(t, h);
        let what = format!("query {t} of head {h}, {}", path.name());
        // Means of a hundred thousand values are small; what they are rounded to is as small.
        assert_close(&format!("out {what}"), &left.out[t * s.out() + h * k..][..k], &out, 2e-2);
        assert_close(&format!("lse {what}"), &[left.lse[h * TOKENS + t]], &[lse], 5e-6);
        let mut dq = vec![0.0; k];
        for (j, ds) in ds.iter().enumerate() {
            dq.iter_mut().zip(row(&qkv, j, s.packed(), 2 * k)).for_each(|(sum, key)| *sum += ds * key);
        }
        if t > 0 {
            assert_close(&format!("dq {what}"), &left.dqkv[t * s.packed() + h * k..][..k], &dq, 2e-2);
        }
    }
    let first = TOKENS - 60;
    let (mut dk, mut dv) = (vec![0.0; 60 * k], vec![0.0; 60 * k]);
    for (t, h) in (first..TOKENS).flat_map(|t| [(t, 0), (t, 1)]) {
        let (_, _, p, ds) = of_query(t, h);
        let (q, d) = (row(&qkv, t, s.packed(), h * k), row(&dout, t, s.out(), h * k));
        for (j, c) in (first..=t).flat_map(|j| (0..k).map(move |c| (j, c))) {
            dk[(j - first) * k + c] += ds[j] * q[c];
            dv[(j - first) * k + c] += p[j] * d[c];
        }
    }
    let columns = |from: usize| -> Vec<f32> {
        let rows = left.dqkv[first * s.packed()..].chunks(s.packed());
        rows.flat_map(|row| &row[from..from + k]).copied().collect()
    };
    assert_close(&format!("dk of the last keys, {}", path.name()), &columns(2 * k), &dk, 2e-2);
    assert_close(&format!("dv of the last keys, {}", path.name()), &columns(3 * k), &dv, 2e-2);
}

/// 32,768 rows of 151,936 logits in one chunk: offsets beyond 2³². Their gradients of x, of the rows at both ends.
pub fn linear_ce(machine: &dyn Machine) {
    use linear_ce::cuda::{self, Gradients, Operands as Inputs, Plan};
    let (t, d, v) = (32 << 10, 16, 151_936);
    let shape = linear_ce::Shape { tokens: t, hidden: d, vocab: v };
    let plan = Plan::new(shape, Elem::Bf16, t, Some(t));
    let on = on(machine);
    let (x, w) = (bf16(1, t * d), bf16(2, v * d));
    let labels: Vec<i32> = (0..t).map(|i| (i * 7919 % v) as i32).collect();
    let index = le_bytes(&cuda::index(&labels, &plan), i32::to_le_bytes);
    let held = [on.input(&x), on.input(&w), machine.upload(&index), machine.upload(&[0; 8])];
    let [x_TD, w_VD, index, loss] = held.each_ref().map(Memory::ptr);
    let (scratch, dx) = (machine.upload(&vec![0xff; plan.scratch_bytes()]), on.output(t * d));
    let scale = on.f32().input(&[1.0]);
    let inputs = Inputs { x_TD, w_VD, index, loss, scratch: scratch.ptr() };
    let gradients = Gradients { scale: scale.ptr(), dx_TD: dx.ptr(), dw_VD: None, dw_is_new: false };
    // SAFETY: every operand has the length that its docs say.
    unsafe {
        let (launcher, products) = (machine.launcher(), machine.products());
        cuda::forward_backward(launcher, products, &inputs, &gradients, &plan, Default::default()).unwrap();
    }
    let dx = on.read(&dx);
    for row in [0, 14_135, t - 2, t - 1] {
        let x = wide(&x[row * d..][..d]);
        let logit = |w: &[f32]| w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        let z: Vec<f64> = w.chunks(d).map(logit).collect();
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        let mut exact = vec![0.0; d];
        for (j, (w, z)) in w.chunks(d).zip(&z).enumerate() {
            let dz = z.exp() / sum - f64::from(u8::from(j == labels[row] as usize));
            exact.iter_mut().zip(w).for_each(|(sum, w)| *sum += dz * f64::from(*w));
        }
        assert_close(&format!("dx of row {row}"), &dx[row * d..][..d], &exact, 1.2e-2);
    }
}
