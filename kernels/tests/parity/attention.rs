//! Attention against the f64 equations, whoever runs it.

use chronicals_kernels::{
    attention::{
        Shape, cu_seqlens,
        cuda::{self, Documents},
    },
    cases::values,
    gpu::{Elem, le_bytes},
};

use crate::machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide};

/// Heads, key/value heads, head dimension.
pub type Heads = (usize, usize, usize);

/// Lengths of the documents: one token; the edges of steps, of a warp's rows and
/// of blocks; no tokens; many small documents; groups of one, of several, and one for all; either head dimension.
const CASES: [(Heads, &[u32]); 7] = [
    ((1, 1, 64), &[1]),
    ((2, 1, 64), &[31, 32, 33, 0, 63, 64, 65]),
    ((2, 2, 64), &[127, 128, 129]),
    ((7, 1, 64), &[1, 2, 3, 5, 8, 13, 1, 1, 21]),
    ((1, 1, 128), &[15, 16, 17, 1, 0, 31]),
    ((4, 2, 128), &[127, 130]),
    ((2, 1, 64), &[300]),
];

/// Rounding of probabilities and outputs to bf16, or sums in f32.
fn tolerance(elem: Elem) -> f64 {
    match elem {
        Elem::Bf16 => 1e-2,
        Elem::F32 => 5e-6,
    }
}

/// A batch of documents.
pub struct Batch {
    pub shape: Shape,
    pub cu_seqlens: Vec<u32>,
    pub elem: Elem,
    pub qkv: Vec<f32>,
    pub dout: Vec<f32>,
}

impl Batch {
    /// Queries and keys have about the size of `magnitude`.
    pub fn new((heads, kv_heads, head_dim): Heads, lengths: &[u32], elem: Elem, magnitude: f32) -> Self {
        let shape = Shape { heads, kv_heads, head_dim };
        let cu_seqlens = cu_seqlens(lengths);
        let tokens = *cu_seqlens.last().unwrap() as usize;
        let scaled = (heads + kv_heads) * head_dim;
        let qkv = values(1, tokens * shape.packed()).into_iter().enumerate();
        let qkv = qkv.map(|(i, v)| if i % shape.packed() < scaled { v * magnitude } else { v }).collect();
        let dout = rounded(elem, values(2, tokens * shape.out()));
        Self { shape, cu_seqlens, elem, qkv: rounded(elem, qkv), dout }
    }

    pub fn tokens(&self) -> usize {
        *self.cu_seqlens.last().unwrap() as usize
    }

    /// First token of a token's document.
    fn begin(&self, t: usize) -> usize {
        self.cu_seqlens.iter().rev().map(|b| *b as usize).find(|b| *b <= t).unwrap()
    }
}

/// What a call leaves: out, lse, dqkv.
#[derive(PartialEq)]
pub struct Left {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub dqkv: Vec<f32>,
}

/// Forward and backward, with `padding` more tiles than there are blocks.
pub fn run(machine: &dyn Machine, batch: &Batch, padding: usize) -> Left {
    let (on, shape, t) = (Operands { machine, elem: batch.elem }, batch.shape, batch.tokens());
    let count = cuda::most_tiles(t, batch.cu_seqlens.len() - 1) + padding;
    let tiles = cuda::tiles(&batch.cu_seqlens, count);
    assert_eq!(tiles.len(), cuda::tiles_len(count));
    let tiles = machine.upload(&le_bytes(&tiles, u32::to_le_bytes));
    let documents = Documents { tiles: tiles.ptr(), count, tokens: t };
    let (qkv, dout) = (on.input(&batch.qkv), on.input(&batch.dout));
    let (out, lse) = (on.output(t * shape.out()), on.f32().output(t * shape.heads));
    let (dqkv, scratch) = (on.output(batch.qkv.len()), on.f32().output(cuda::scratch_floats(t, shape)));
    let (launcher, elem) = (machine.launcher(), batch.elem);
    let [q, d, o, l, s, dq] = [&qkv, &dout, &out, &lse, &scratch, &dqkv].map(Memory::ptr);
    // SAFETY: every operand has the length that its name says, and the tiles are those of its documents.
    unsafe {
        cuda::forward(launcher, elem, q, &documents, o, l, shape).unwrap();
        cuda::backward(launcher, elem, d, q, o, l, &documents, s, dq, shape).unwrap();
    }
    Left { out: on.read(&out), lse: on.f32().read(&lse), dqkv: on.read(&dqkv) }
}

/// out and lse of a query, and its probabilities, by the equations of the contract.
pub fn query(batch: &Batch, qkv: &[f64], t: usize, h: usize) -> (Vec<f64>, f64, Vec<f64>) {
    let (s, k) = (batch.shape, batch.shape.head_dim);
    let row = |t: usize, head: usize| &qkv[t * s.packed() + head * k..][..k];
    let g = h / s.group();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> =
        (batch.begin(t)..=t).map(|j| dot(row(t, h), row(j, s.heads + g)) / (k as f64).sqrt()).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + scores.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    let p: Vec<f64> = scores.iter().map(|x| (x - lse).exp()).collect();
    let mut out = vec![0.0; k];
    for (j, p) in (batch.begin(t)..).zip(&p) {
        out.iter_mut().zip(row(j, s.heads + s.kv_heads + g)).for_each(|(o, v)| *o += p * v);
    }
    (out, lse, p)
}

/// The whole batch in f64: out, lse, dqkv. The output's gradient meets the output as the element type holds it.
fn expected(batch: &Batch) -> [Vec<f64>; 3] {
    let (s, k, tokens) = (batch.shape, batch.shape.head_dim, batch.tokens());
    let (qkv, dout) = (wide(&batch.qkv), wide(&batch.dout));
    let mut all = [vec![0.0; tokens * s.out()], vec![0.0; tokens * s.heads], vec![0.0; qkv.len()]];
    let scale = 1.0 / (k as f64).sqrt();
    for (t, h) in (0..tokens).flat_map(|t| (0..s.heads).map(move |h| (t, h))) {
        let (out, lse, p) = query(batch, &qkv, t, h);
        let d = &dout[t * s.out() + h * k..][..k];
        let delta: f64 = d.iter().zip(&out).map(|(a, b)| a * b).sum();
        all[0][t * s.out() + h * k..][..k].copy_from_slice(&out);
        all[1][h * tokens + t] = lse;
        let g = h / s.group();
        let at = |t: usize, head: usize| t * s.packed() + head * k;
        for (j, p) in (batch.begin(t)..).zip(p) {
            let (kj, vj) = (at(j, s.heads + g), at(j, s.heads + s.kv_heads + g));
            let dp: f64 = (0..k).map(|c| d[c] * qkv[vj + c]).sum();
            let ds = p * (dp - delta) * scale;
            for c in 0..k {
                all[2][at(t, h) + c] += ds * qkv[kj + c];
                all[2][kj + c] += ds * qkv[at(t, h) + c];
                all[2][vj + c] += p * d[c];
            }
        }
    }
    all
}

/// Columns of packed rows.
fn columns(v: &[f32], shape: Shape, from: usize, to: usize) -> Vec<f32> {
    v.chunks(shape.packed()).flat_map(|row| &row[from..to]).copied().collect()
}

fn check(batch: &Batch, left: &Left, what: &str) {
    let [out, lse, dqkv] = expected(batch);
    let (s, tolerance) = (batch.shape, tolerance(batch.elem));
    assert_close(&format!("out {what}"), &left.out, &out, tolerance);
    assert_close(&format!("lse {what}"), &left.lse, &lse, 5e-6);
    let (q, k) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    for (name, from, to) in [("dq", 0, q), ("dk", q, q + k), ("dv", q + k, q + 2 * k)] {
        let exact: Vec<f64> = dqkv.chunks(s.packed()).flat_map(|row| &row[from..to]).copied().collect();
        let got = columns(&left.dqkv, s, from, to);
        // Of one token dq and dk cancel to nothing, as far as rounding lets them.
        let cancelled = exact.iter().all(|x| x.abs() < 1e-6);
        if cancelled {
            assert!(got.iter().all(|x| x.abs() < 1e-6), "{name} {what} is not nothing");
        } else {
            assert_close(&format!("{name} {what}"), &got, &exact, tolerance);
        }
    }
}

/// Every case, twice to the same bits, with padded tiles.
pub fn forward_backward(machine: &dyn Machine) {
    let cases = cases(machine, &CASES, &[1, 4]);
    for ((heads, lengths), elem) in cases.into_iter().flat_map(|c| Elem::ALL.map(|e| (c, e))) {
        let batch = Batch::new(heads, lengths, elem, 1.0);
        let what = format!("{heads:?} {lengths:?} {}", elem.name());
        let left = run(machine, &batch, 0);
        check(&batch, &left, &what);
        assert!(run(machine, &batch, 3) == left, "{what}: another run, other bits");
    }
}

/// Scores of thousands, of which one key takes all, and of nothing.
pub fn magnitudes(machine: &dyn Machine) {
    for (elem, magnitude) in Elem::ALL.into_iter().flat_map(|e| [1e-3, 60.0].map(|m| (e, m))) {
        for head_dim in [64, 128] {
            let batch = Batch::new((2, 1, head_dim), &[40, 70], elem, magnitude);
            let left = run(machine, &batch, 0);
            let what = format!("{head_dim} {} ×{magnitude}", elem.name());
            if magnitude < 1.0 {
                check(&batch, &left, &what);
                continue;
            }
            // Gradients of a softmax that is all one key's cancel to nothing; what may be asked of them is that they are
            // numbers. Outputs are that key's values.
            let [out, lse, _] = expected(&batch);
            assert_close(&format!("out {what}"), &left.out, &out, 4.0 * tolerance(elem).max(1e-3));
            assert_close(&format!("lse {what}"), &left.lse, &lse, 5e-6);
            assert!(left.dqkv.iter().all(|x| x.is_finite()), "dqkv {what}");
        }
    }
}

/// A document's results do not change with another's tokens.
pub fn isolation(machine: &dyn Machine) {
    for elem in Elem::ALL {
        let batch = Batch::new((2, 1, 64), &[50, 90, 20], elem, 1.0);
        let before = run(machine, &batch, 0);
        let (packed, out) = (batch.shape.packed(), batch.shape.out());
        let mut other = Batch::new((2, 1, 64), &[50, 90, 20], elem, 1.0);
        let middle = 50 * packed..140 * packed;
        other.qkv[middle.clone()].fill(f32::NAN);
        let after = run(machine, &other, 0);
        for (what, a, b, width) in
            [("out", &before.out, &after.out, out), ("dqkv", &before.dqkv, &after.dqkv, packed)]
        {
            assert_eq!(a[..50 * width], b[..50 * width], "{what} of the first document, {}", elem.name());
            assert_eq!(a[140 * width..], b[140 * width..], "{what} of the last document, {}", elem.name());
            assert!(b[50 * width..140 * width].iter().any(|x| x.is_nan()), "{what}: the NaN went nowhere");
        }
    }
}
