//! 131,072 tokens in one launch, more than 2³¹ bytes of some operands: rows that are looked at, sums over all of them.

use chronicals_kernels::{
    cases::values,
    gpu::Elem,
    qk_rope::{self, Tables},
    rmsnorm, swiglu,
};

use crate::machine::{Machine, Memory, Operands, assert_close, rounded};

const TOKENS: usize = 128 << 10;

/// First and last, about the middle, and some between.
const ROWS: [usize; 8] = [0, 1, 4_099, 65_535, 65_536, 77_777, TOKENS - 2, TOKENS - 1];

/// As in the modules of the kernels, for bf16.
const TOLERANCE: f64 = 6e-3;

/// A sum of as many terms in f32, of which each thread adds up a few hundred.
const SUM_TOLERANCE: f64 = 2e-5;

fn bf16(seed: u64, len: usize) -> Vec<f32> {
    rounded(Elem::Bf16, values(seed, len))
}

fn picked(v: &[f32], width: usize) -> Vec<f32> {
    ROWS.iter().flat_map(|t| &v[t * width..][..width]).copied().collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

fn on(machine: &dyn Machine) -> Operands<'_> {
    Operands { machine, elem: Elem::Bf16 }
}

/// RMSNorm forward, then its backward, with the sum for the weight's gradient over all rows.
pub fn rmsnorm(machine: &dyn Machine) {
    const EPS: f32 = 1e-6;
    let (shape, on, d) = (rmsnorm::Shape { tokens: TOKENS, hidden: 896 }, on(machine), 896);
    let (x, dy, w) = (bf16(1, TOKENS * d), bf16(2, TOKENS * d), bf16(3, d));
    let [xm, dym, wm] = [&x, &dy, &w].map(|v| on.input(v));
    let (y, rstd) = (on.output(TOKENS * d), on.f32().output(TOKENS));
    let (launcher, elem) = (machine.launcher(), Elem::Bf16);
    // SAFETY: every operand has the length that its name says.
    unsafe {
        rmsnorm::cuda::forward(launcher, elem, xm.ptr(), wm.ptr(), EPS, y.ptr(), rstd.ptr(), shape).unwrap();
    }
    let rows = rmsnorm::Shape { tokens: ROWS.len(), hidden: d };
    let (y_ref, _) = rmsnorm::reference::forward(&wide(&picked(&x, d)), &wide(&w), f64::from(EPS), rows);
    assert_close("y", &picked(&on.read(&y), d), &y_ref, TOLERANCE);
    let (dx, dw) = (on.output(TOKENS * d), on.f32().input(&vec![0.0; d]));
    let scratch = on.f32().output(rmsnorm::cuda::scratch_floats(launcher.processors(), shape));
    let operands = [&dym, &xm, &rstd, &wm, &dx].map(Memory::ptr);
    let [dyp, xp, rp, wp, dxp] = operands;
    let weight = Some((dw.ptr(), scratch.ptr()));
    // SAFETY: as above.
    unsafe { rmsnorm::cuda::backward(launcher, elem, dyp, xp, rp, wp, dxp, false, weight, shape).unwrap() };
    let rstd = on.f32().read(&rstd);
    let mut dw_ref = vec![0.0; d];
    for ((dy, x), r) in dy.chunks(d).zip(x.chunks(d)).zip(&rstd) {
        for (sum, (dy, x)) in dw_ref.iter_mut().zip(dy.iter().zip(x)) {
            *sum += f64::from(*dy) * f64::from(*x) * f64::from(*r);
        }
    }
    assert_close("dw", &on.f32().read(&dw), &dw_ref, SUM_TOLERANCE);
    let dx_ref = ROWS.iter().flat_map(|&t| {
        let r = f64::from(rstd[t]);
        let (dy, x) = (wide(&dy[t * d..][..d]), wide(&x[t * d..][..d]));
        let w = wide(&w);
        let dot: f64 = (0..d).map(|j| dy[j] * w[j] * x[j]).sum();
        (0..d).map(move |j| r * dy[j] * w[j] - x[j] * r.powi(3) / d as f64 * dot)
    });
    assert_close("dx", &picked(&on.read(&dx), d), &dx_ref.collect::<Vec<_>>(), TOLERANCE);
}

/// SwiGLU forward, then its backward in place.
pub fn swiglu(machine: &dyn Machine) {
    let (ffn, on) = (4864, on(machine));
    // The operands are a block of random rows again and again: what matters is where they lie.
    let again = |seed, width: usize| -> Vec<f32> {
        bf16(seed, 1024 * width).into_iter().cycle().take(TOKENS * width).collect()
    };
    let (gate_up, dact) = (again(1, 2 * ffn), again(2, ffn));
    let (input, act) = (on.input(&gate_up), on.output(TOKENS * ffn));
    // SAFETY: every operand has the length that its name says.
    unsafe {
        swiglu::cuda::forward(machine.launcher(), Elem::Bf16, input.ptr(), act.ptr(), TOKENS, ffn).unwrap();
    }
    let rows = wide(&picked(&gate_up, 2 * ffn));
    assert_close("act", &picked(&on.read(&act), ffn), &swiglu::reference::forward(&rows, ffn), TOLERANCE);
    let dact_in = on.input(&dact);
    // SAFETY: as above.
    unsafe {
        let (p, q) = (input.ptr(), dact_in.ptr());
        swiglu::cuda::backward(machine.launcher(), Elem::Bf16, p, q, TOKENS, ffn).unwrap();
    }
    let expected = crate::swiglu::gradients(&rows, &wide(&picked(&dact, ffn)), ffn);
    assert_close("d(gate, up)", &picked(&on.read(&input), 2 * ffn), &expected, TOLERANCE);
}

/// Rotation with a bias, and its backward: the rotated rows, and the bias' gradient of v, a sum over all rows.
pub fn qk_rope(machine: &dyn Machine) {
    let shape = qk_rope::Shape { tokens: TOKENS, heads: 14, kv_heads: 2, head_dim: 64 };
    let (on, q) = (on(machine), shape.packed());
    let (qkv, bias) = (bf16(1, TOKENS * q), bf16(2, q));
    let frequencies = Tables::inverse_frequencies(1e6, 64);
    let tables = Tables::new(&frequencies, TOKENS);
    let positions: Vec<u8> = (0..TOKENS as u32).flat_map(u32::to_le_bytes).collect();
    let angles = [on.f32().input(tables.cos()), on.f32().input(tables.sin()), machine.upload(&positions)];
    let [cos, sin, positions] = angles.each_ref().map(Memory::ptr);
    let rotation = qk_rope::cuda::Rotation { cos, sin, positions };
    let (in_place, bias_in) = (on.input(&qkv), on.input(&bias));
    let (launcher, elem, at) = (machine.launcher(), Elem::Bf16, in_place.ptr());
    let b = Some(bias_in.ptr());
    // SAFETY: every operand has the length that its name says, and the positions are the tables'.
    unsafe { qk_rope::cuda::forward(launcher, elem, at, b, None, rotation, shape).unwrap() };
    let sums: Vec<f64> =
        picked(&qkv, q).iter().zip(bias.iter().cycle()).map(|(x, b)| f64::from(x + b)).collect();
    let rows = qk_rope::Shape { tokens: ROWS.len(), ..shape };
    let places = ROWS.map(|t| t as u32);
    let expected = qk_rope::reference::forward(&sums, None, None, &frequencies, &places, rows);
    let rotated = on.read(&in_place);
    assert_close("qkv", &picked(&rotated, q), &expected, TOLERANCE);
    let dbias = on.f32().input(&vec![0.0; q]);
    let floats = qk_rope::cuda::scratch_floats(launcher.processors(), shape, true, false);
    let (scratch, db) = (on.f32().output(floats), Some(dbias.ptr()));
    // SAFETY: as above.
    unsafe {
        qk_rope::cuda::backward(launcher, elem, at, db, None, rotation, scratch.ptr(), shape).unwrap();
    }
    // Turned back by as much.
    assert_close("dqkv", &picked(&on.read(&in_place), q), &sums, 2.0 * TOLERANCE);
    let v = shape.rotated();
    let mut sums = vec![0.0; q - v];
    for row in rotated.chunks(q) {
        sums.iter_mut().zip(&row[v..]).for_each(|(sum, d)| *sum += f64::from(*d));
    }
    assert_close("dbias of v", &on.f32().read(&dbias)[v..], &sums, SUM_TOLERANCE);
}
