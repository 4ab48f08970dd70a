//! Attention against the f64 equations, whoever runs it.

use chronicals_kernels::{
    attention::{
        Shape, cu_seqlens,
        cuda::{self, Documents, Path},
    },
    cases::values,
    gpu::{Elem, le_bytes},
};

use crate::{
    attention_eager,
    machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide},
};

/// Heads, key/value heads, head dimension.
pub type Heads = (usize, usize, usize);

/// Lengths of the documents: one token; the edges of steps, of a warp's rows and of tiles, at the beginning of a tile and
/// within it; no tokens; many small documents in one tile and in several; a long one behind short ones, over tiles that it
/// does not begin; batches that fill their last tile and those that do not; groups of one, of several, and one for all;
/// either head dimension.
pub const CASES: [(Heads, &[u32]); 12] = [
    ((1, 1, 64), &[1]),
    ((2, 1, 64), &[31, 32, 33, 0, 63, 64, 65]),
    ((2, 2, 64), &[127, 128, 129]),
    ((7, 1, 64), &[1, 2, 3, 5, 8, 13, 1, 1, 21]),
    ((1, 1, 128), &[15, 16, 17, 1, 0, 31]),
    ((4, 2, 128), &[127, 130]),
    ((2, 1, 64), &[300]),
    ((2, 1, 64), &[63, 1, 1, 62, 1, 1, 63, 7]),
    ((1, 1, 128), &[65, 62, 2, 62, 2, 63]),
    ((2, 1, 64), &[1; 300]),
    ((1, 1, 64), &[5, 20, 1, 400, 9]),
    ((1, 1, 128), &[3, 0, 37, 400]),
];

/// The paths that a machine can run.
pub fn paths(machine: &dyn Machine) -> Vec<Path> {
    Path::ALL.into_iter().filter(|path| machine.meets(path.needs())).collect()
}

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
    pub path: Path,
    pub qkv: Vec<f32>,
    pub dout: Vec<f32>,
    /// Rows that the eager variant takes it to be, in the type of the path; otherwise it is the path that runs.
    pub eager: Option<usize>,
}

impl Batch {
    /// Queries and keys have about the size of `magnitude`.
    pub fn new((heads, kv_heads, head_dim): Heads, lengths: &[u32], path: Path, magnitude: f32) -> Self {
        let elem = path.elem();
        let shape = Shape { heads, kv_heads, head_dim };
        let cu_seqlens = cu_seqlens(lengths);
        let tokens = *cu_seqlens.last().unwrap() as usize;
        let scaled = (heads + kv_heads) * head_dim;
        let qkv = values(1, tokens * shape.packed()).into_iter().enumerate();
        let qkv = qkv.map(|(i, v)| if i % shape.packed() < scaled { v * magnitude } else { v }).collect();
        let dout = rounded(elem, values(2, tokens * shape.out()));
        Self { shape, cu_seqlens, path, qkv: rounded(elem, qkv), dout, eager: None }
    }

    pub fn tokens(&self) -> usize {
        *self.cu_seqlens.last().unwrap() as usize
    }

    /// Name in messages.
    pub fn name(&self) -> String {
        self.eager.map_or(self.path.name().into(), |rows| {
            format!("eager in {}, {rows} rows", self.path.elem().name())
        })
    }

    /// A score from its sum. Eager rounds it to the element type before and after it is scaled, and so must who checks what
    /// becomes of it.
    fn score(&self, sum: f64) -> f64 {
        let scale = 1.0 / (self.shape.head_dim as f64).sqrt();
        if self.eager.is_none() {
            return sum * scale;
        }
        let round = |x: f32| rounded(self.path.elem(), vec![x])[0];
        f64::from(round(round(sum as f32) * scale as f32))
    }

    /// First token of a token's document.
    pub fn begin(&self, t: usize) -> usize {
        self.cu_seqlens.iter().rev().map(|b| *b as usize).find(|b| *b <= t).unwrap()
    }
}

/// What a call leaves: out, lse, which eager has none of, dqkv.
pub struct Left {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub dqkv: Vec<f32>,
}

/// Forward and backward.
pub fn run(machine: &dyn Machine, batch: &Batch) -> Left {
    if let Some(rows) = batch.eager {
        return attention_eager::run(machine, batch, rows);
    }
    let (on, shape, t) = (Operands { machine, elem: batch.path.elem() }, batch.shape, batch.tokens());
    let list = machine.upload(&le_bytes(&cuda::documents(&batch.cu_seqlens), u32::to_le_bytes));
    let documents = Documents { list: list.ptr(), tokens: t };
    let (qkv, dout) = (on.input(&batch.qkv), on.input(&batch.dout));
    let (out, lse) = (on.output(t * shape.out()), on.f32().output(t * shape.heads));
    let (dqkv, scratch) = (
        on.output(batch.qkv.len()),
        on.f32().output(cuda::scratch_floats(machine.launcher().processors(), t, shape)),
    );
    let (launcher, path) = (machine.launcher(), batch.path);
    let [q, d, o, l, s, dq] = [&qkv, &dout, &out, &lse, &scratch, &dqkv].map(Memory::ptr);
    // SAFETY: every operand has the length that its name says, and the documents are the batch's.
    unsafe {
        cuda::forward(launcher, path, q, &documents, o, l, shape).unwrap();
        cuda::backward(launcher, path, d, q, o, l, &documents, s, dq, shape).unwrap();
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
        (batch.begin(t)..=t).map(|j| batch.score(dot(row(t, h), row(j, s.heads + g)))).collect();
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
pub fn expected(batch: &Batch) -> [Vec<f64>; 3] {
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

pub fn check(batch: &Batch, left: &Left, what: &str) {
    let [out, lse, dqkv] = expected(batch);
    let (s, tolerance) = (batch.shape, tolerance(batch.path.elem()));
    assert_close(&format!("out {what}"), &left.out, &out, tolerance);
    if batch.eager.is_none() {
        assert_close(&format!("lse {what}"), &left.lse, &lse, 5e-6);
    }
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

/// Every case, twice to the same bits.
pub fn forward_backward(machine: &dyn Machine) {
    let cases = cases(machine, &CASES, &[1, 4]);
    for ((heads, lengths), path) in
        cases.into_iter().flat_map(|c| paths(machine).into_iter().map(move |p| (c, p)))
    {
        twice(machine, &Batch::new(heads, lengths, path, 1.0), lengths);
    }
}

pub fn twice(machine: &dyn Machine, batch: &Batch, lengths: &[u32]) {
    let what = format!("{:?} {lengths:?} {}", batch.shape, batch.name());
    let left = run(machine, batch);
    check(batch, &left, &what);
    let again = run(machine, batch);
    for (name, a, b) in
        [("out", &left.out, &again.out), ("lse", &left.lse, &again.lse), ("dqkv", &left.dqkv, &again.dqkv)]
    {
        let differ: Vec<usize> = (0..a.len()).filter(|i| a[*i].to_bits() != b[*i].to_bits()).collect();
        let first = differ.first().map(|i| (i, a[*i], b[*i]));
        assert!(
            first.is_none(),
            "{name} {what}: {} other bits in another run, first {first:?}",
            differ.len()
        );
    }
}

/// Scores of thousands, of which one key takes all, and of nothing.
pub fn magnitudes(machine: &dyn Machine) {
    for (path, magnitude) in paths(machine).into_iter().flat_map(|p| [1e-3, 60.0].map(|m| (p, m))) {
        for head_dim in [64, 128] {
            let batch = Batch::new((2, 1, head_dim), &[40, 70], path, magnitude);
            let left = run(machine, &batch);
            let what = format!("{head_dim} {} ×{magnitude}", path.name());
            if magnitude < 1.0 {
                check(&batch, &left, &what);
                continue;
            }
            // Gradients of a softmax that is all one key's cancel to nothing; what may be asked of them is that they are
            // numbers. Outputs are that key's values.
            let [out, lse, _] = expected(&batch);
            let allowed = 4.0 * tolerance(path.elem()).max(1e-3);
            assert_close(&format!("out {what}"), &left.out, &out, allowed);
            assert_close(&format!("lse {what}"), &left.lse, &lse, 5e-6);
            assert!(left.dqkv.iter().all(|x| x.is_finite()), "dqkv {what}");
        }
    }
}

/// Out, lse and dqkv of some tokens, as bits.
fn bits(batch: &Batch, left: &Left, tokens: std::ops::Range<usize>) -> Vec<u32> {
    let (out, packed) = (batch.shape.out(), batch.shape.packed());
    let lse = left.lse.chunks(batch.tokens()).flat_map(|head| &head[tokens.clone()]);
    let out = left.out[tokens.start * out..tokens.end * out].iter();
    let dqkv = left.dqkv[tokens.start * packed..tokens.end * packed].iter();
    out.chain(lse).chain(dqkv).map(|x| x.to_bits()).collect()
}

/// Lengths of documents that share tiles and steps.
pub const SHARED: [u32; 5] = [50, 90, 20, 1, 100];

/// Whatever finite values some documents' tokens have, not a bit of the others changes. Products of 1e30 are infinite: one that
/// were weighed by 0 would show.
pub fn isolation(machine: &dyn Machine) {
    for (path, head_dim) in paths(machine).into_iter().flat_map(|p| [64, 128].map(|k| (p, k))) {
        isolated(machine, || Batch::new((2, 1, head_dim), &SHARED, path, 1.0), 1e30);
    }
}

/// Every other document becomes huge: those of either parity.
pub fn isolated(machine: &dyn Machine, new: impl Fn() -> Batch, huge: f32) {
    let batch = new();
    let before = run(machine, &batch);
    let documents: Vec<_> =
        batch.cu_seqlens.windows(2).map(|d| d[0] as usize..d[1] as usize).enumerate().collect();
    for parity in [0, 1] {
        let mut other = new();
        let changed = documents.iter().filter(|(i, _)| i % 2 == parity);
        changed.for_each(|(_, tokens)| enlarge(&mut other, tokens.clone(), huge));
        let after = run(machine, &other);
        for (i, tokens) in &documents {
            let same = bits(&batch, &before, tokens.clone()) == bits(&batch, &after, tokens.clone());
            let what = format!("document {i}, {} {}", batch.name(), batch.shape.head_dim);
            assert_eq!(same, i % 2 != parity, "{what}: whether it is left as it was");
        }
    }
}

/// Sets all that some tokens have to a huge number or its negative.
fn enlarge(batch: &mut Batch, tokens: std::ops::Range<usize>, huge: f32) {
    let (packed, out) = (batch.shape.packed(), batch.shape.out());
    let huge: Vec<f32> = (0..tokens.len() * packed).map(|i| if i % 3 == 0 { -huge } else { huge }).collect();
    let huge = rounded(batch.path.elem(), huge);
    batch.qkv[tokens.start * packed..tokens.end * packed].copy_from_slice(&huge);
    batch.dout[tokens.start * out..tokens.end * out].copy_from_slice(&huge[..tokens.len() * out]);
}
