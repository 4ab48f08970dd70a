//! Linear cross-entropy against the f64 equations, whoever runs it.

use chronicals_kernels::{
    Variant,
    cases::values,
    gpu::{Elem, le_bytes},
    linear_ce::{
        IGNORE_INDEX, Options, Shape,
        cuda::{self, Gradients, Operands as Inputs, Plan},
        cuda_eager,
    },
};

use crate::machine::{Machine, Memory, Operands, assert_close, cases, rounded, wide};

/// Tokens, width, vocabulary, and which labels are ignored: every n-th, none (0) or all (1). One token; a vocabulary of
/// one; odd ones; nothing but ignored rows; several warps a row; more columns than registers hold, and shared memory.
const CASES: [(usize, usize, usize, usize); 8] = [
    (1, 8, 11, 0),
    (3, 8, 1, 0),
    (9, 16, 13, 3),
    (4, 8, 9, 1),
    (300, 24, 1003, 2),
    (20, 8, 4500, 0),
    (2, 8, 70_001, 0),
    (1, 8, 210_003, 0),
];

const SCALE: f32 = 0.037;

const OPTIONS: [Options; 3] = [
    Options { label_smoothing: 0.0, z_loss: 0.0, chunk_rows: None },
    Options { label_smoothing: 0.1, z_loss: 0.0, chunk_rows: None },
    Options { label_smoothing: 0.2, z_loss: 1e-3, chunk_rows: None },
];

/// A batch of one case: x, W, labels.
struct Batch {
    shape: Shape,
    elem: Elem,
    x: Vec<f32>,
    w: Vec<f32>,
    labels: Vec<i32>,
}

impl Batch {
    /// Logits have about the size of `magnitude`.
    fn new(
        (tokens, hidden, vocab, ignore): (usize, usize, usize, usize),
        elem: Elem,
        magnitude: f32,
    ) -> Self {
        let label = |t: usize| match ignore {
            n if n > 0 && t.is_multiple_of(n) => IGNORE_INDEX,
            // The last column among them.
            _ => {
                if t == 1 {
                    vocab as i32 - 1
                } else {
                    (t * 7919 % vocab) as i32
                }
            }
        };
        let x = values(1, tokens * hidden).into_iter().map(|v| v * magnitude).collect();
        Self {
            shape: Shape { tokens, hidden, vocab },
            elem,
            x: rounded(elem, x),
            w: rounded(elem, values(2, vocab * hidden)),
            labels: (0..tokens).map(label).collect(),
        }
    }

    fn rows(&self) -> usize {
        self.labels.iter().filter(|y| **y != IGNORE_INDEX).count()
    }
}

/// Loss, dx and dW.
struct Expected {
    loss: f64,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

/// The equations of the contract, from the logits as the element type holds them.
fn expected(batch: &Batch, opts: Options) -> Expected {
    let (d, v) = (batch.shape.hidden, batch.shape.vocab);
    let (x, w) = (wide(&batch.x), wide(&batch.w));
    let [smoothing, c, scale] = [opts.label_smoothing, opts.z_loss, SCALE].map(f64::from);
    let mut out = Expected { loss: 0.0, dx: vec![0.0; x.len()], dw: vec![0.0; w.len()] };
    for (t, x) in x.chunks(d).enumerate().filter(|(t, _)| batch.labels[*t] >= 0) {
        let z = w.chunks(d).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() as f32).collect();
        let z = wide(&rounded(batch.elem, z));
        let y = batch.labels[t] as usize;
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let mean = z.iter().sum::<f64>() / v as f64;
        out.loss += (1.0 - smoothing) * (lse - z[y]) + smoothing * (lse - mean) + c * lse * lse;
        for j in 0..v {
            let target = if j == y { 1.0 - smoothing } else { 0.0 };
            let dz = scale * ((1.0 + 2.0 * c * lse) * (z[j] - lse).exp() - smoothing / v as f64 - target);
            for i in 0..d {
                out.dx[t * d + i] += dz * w[j * d + i];
                out.dw[j * d + i] += dz * x[i];
            }
        }
    }
    out
}

/// What a call leaves: loss, dx, dW.
type Left = (f64, Vec<f32>, Vec<f32>);

/// How a check runs: the variant, and what it is told.
#[derive(Clone, Copy, Debug)]
struct Way<'a> {
    variant: Variant,
    plan: &'a Plan,
    opts: Options,
}

impl Way<'_> {
    fn scratch_bytes(self) -> usize {
        match self.variant {
            Variant::Fused => self.plan.scratch_bytes(),
            Variant::Eager => cuda_eager::scratch_bytes(self.plan, self.opts),
        }
    }

    /// # Safety
    /// As the functions that it calls; without gradients, the loss alone.
    unsafe fn call(self, on: &dyn Machine, inputs: &Inputs, gradients: Option<&Gradients>) {
        let (launcher, products, Self { plan, opts, .. }) = (on.launcher(), on.products(), self);
        // SAFETY: the caller's promise is the same.
        let done = unsafe {
            match (self.variant, gradients) {
                (Variant::Fused, Some(g)) => {
                    cuda::forward_backward(launcher, products, inputs, g, plan, opts)
                }
                (Variant::Fused, None) => cuda::forward(launcher, products, inputs, plan, opts),
                (Variant::Eager, Some(g)) => {
                    cuda_eager::forward_backward(launcher, products, inputs, g, plan, opts)
                }
                (Variant::Eager, None) => cuda_eager::forward(launcher, products, inputs, plan, opts),
            }
        };
        done.unwrap();
    }
}

/// What becomes of the gradient of W.
#[derive(Clone, Copy, Debug)]
enum Head<'a> {
    /// The head does not train.
    Frozen,
    /// It is added to this.
    Adds(&'a [f32]),
    /// It is written.
    New,
}

/// A call.
fn run(machine: &dyn Machine, batch: &Batch, way: Way, head: Head) -> Left {
    let plan = way.plan;
    let on = Operands { machine, elem: batch.elem };
    let (x, w) = (on.input(&batch.x), on.input(&batch.w));
    let index = cuda::index(&batch.labels, plan);
    assert_eq!(index.len(), plan.index_len());
    let index = machine.upload(&le_bytes(&index, i32::to_le_bytes));
    let loss = machine.upload(&1000f64.to_le_bytes());
    let scratch = machine.upload(&vec![0xff; way.scratch_bytes()]);
    let (dx, scale) = (on.output(batch.x.len()), on.f32().input(&[SCALE]));
    let dw = match head {
        Head::Frozen => on.f32().input(&[0.0]),
        Head::Adds(old) => on.f32().input(old),
        Head::New => on.f32().output(batch.w.len()),
    };
    let [x_TD, w_VD, index, loss_at, scratch] = [&x, &w, &index, &loss, &scratch].map(Memory::ptr);
    let inputs = Inputs { x_TD, w_VD, index, loss: loss_at, scratch };
    let gradients = Gradients {
        scale: scale.ptr(),
        dx_TD: dx.ptr(),
        dw_VD: (!matches!(head, Head::Frozen)).then(|| dw.ptr()),
        dw_is_new: matches!(head, Head::New),
    };
    // SAFETY: every operand has the length that its docs say.
    unsafe { way.call(machine, &inputs, Some(&gradients)) };
    let read = |loss: &Memory| f64::from_le_bytes(machine.download(loss).try_into().unwrap()) - 1000.0;
    let left = (read(&loss), on.read(&dx), on.f32().read(&dw));
    // The loss alone is the same.
    let again = machine.upload(&1000f64.to_le_bytes());
    // SAFETY: as above.
    unsafe { way.call(machine, &Inputs { loss: again.ptr(), ..inputs }, None) };
    assert_eq!(read(&again), left.0, "the loss alone");
    left
}

/// Of the largest: rounding of logits' gradients and of dx to the element type; sums of a few hundred f32 products. Of bf16
/// logits a unit in the last place of the product may fall either way, which moves their exponentials by 2⁻⁸ of them.
fn tolerances(elem: Elem) -> (f64, f64) {
    match elem {
        Elem::Bf16 => (2e-3, 1.2e-2),
        Elem::F32 => (2e-6, 2e-5),
    }
}

fn check(machine: &dyn Machine, batch: &Batch, way: Way, what: &str) -> Left {
    let (old, what) = (values(4, batch.w.len()), format!("{} {what}", way.variant));
    let exact = expected(batch, way.opts);
    let (loss_tolerance, tolerance) = tolerances(batch.elem);
    let left = run(machine, batch, way, Head::Adds(&old));
    let (loss, dx, dw) = &left;
    let off = (loss - exact.loss).abs();
    // A row's loss is a difference of f32.
    let rounding = 1e-6 * batch.rows() as f64;
    assert!(
        off <= loss_tolerance * exact.loss.abs() + rounding,
        "loss {what}: {loss}, exactly {}",
        exact.loss
    );
    assert_close(&format!("dx {what}"), dx, &exact.dx, tolerance);
    let added: Vec<f32> = dw.iter().zip(&old).map(|(a, b)| a - b).collect();
    // What is added to values near 1 is known to 2⁻²⁴.
    let largest = exact.dw.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    assert_close(&format!("dw {what}"), &added, &exact.dw, tolerance + 1.2e-7 / largest);
    for (t, dx) in dx.chunks(batch.shape.hidden).enumerate().filter(|(t, _)| batch.labels[*t] < 0) {
        assert!(dx.iter().all(|d| *d == 0.0), "dx {what}: row {t}, which has no loss");
    }
    left
}

/// Every case with every option, its rows compacted exactly, with padding, and not at all.
pub fn forward_backward(machine: &dyn Machine) {
    let cases = cases(machine, &CASES, &[2, 6]);
    for (case, elem) in cases.into_iter().flat_map(|c| Elem::ALL.map(|e| (c, e))) {
        let batch = Batch::new(case, elem, 1.0);
        let plans = [batch.rows(), (batch.rows() + 3).min(batch.shape.tokens), batch.shape.tokens]
            .map(|rows| Plan::new(batch.shape, elem, rows, None));
        // Large vocabularies are slow to emulate, and the options are the same code.
        let few = batch.shape.vocab > 10_000;
        for opts in OPTIONS.into_iter().skip(if few { 2 } else { 0 }) {
            // All of such a gradient but the z-loss cancels, down to the last places.
            if batch.shape.vocab == 1 && opts.z_loss > 0.0 {
                continue;
            }
            let plans = &plans[if few { 2 } else { 0 }..];
            for (plan, variant) in plans.iter().flat_map(|p| Variant::ALL.map(|v| (p, v))) {
                let what = format!("{case:?} {} {opts:?} {} rows", elem.name(), plan.rows);
                let way = Way { variant, plan, opts };
                let left = check(machine, &batch, way, &what);
                let old = values(4, batch.w.len());
                assert!(run(machine, &batch, way, Head::Adds(&old)) == left, "{variant} {what}: other bits");
                let (loss, dx, _) = run(machine, &batch, way, Head::Frozen);
                assert!((loss, dx) == (left.0, left.1), "{variant} {what}: a head that does not train");
                let zeros = vec![0.0; batch.w.len()];
                let added = run(machine, &batch, way, Head::Adds(&zeros));
                let new = run(machine, &batch, way, Head::New);
                assert!((new.0, &new.1) == (added.0, &added.1), "{variant} {what}: a head that is written");
                // Products that write and products that add are tuned apart, and may sum in another order.
                let largest = added.2.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let apart = new.2.iter().zip(&added.2).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(
                    batch.rows() == 0 || apart <= 1e-5 * largest,
                    "{variant} {what}: written, not added: {apart} of {largest}"
                );
            }
        }
    }
}

/// Chunks smaller than the batch, the last one ragged, with and without compaction; unfused there are no chunks.
pub fn chunks(machine: &dyn Machine) {
    for elem in Elem::ALL {
        let batch = Batch::new((45, 16, 203, 4), elem, 2.0);
        for rows in [batch.rows(), batch.shape.tokens] {
            for chunk in [1, 7, 16] {
                let plan = Plan::new(batch.shape, elem, rows, Some(chunk));
                let way = Way { variant: Variant::Fused, plan: &plan, opts: OPTIONS[2] };
                check(machine, &batch, way, &format!("{} {rows} by {chunk}", elem.name()));
            }
        }
    }
}

/// Both variants in bf16, the fused one in chunks of `chunk` rows; every third row has no loss.
pub fn in_bf16(machine: &dyn Machine, (tokens, hidden, vocab): (usize, usize, usize), chunk: usize) {
    let batch = Batch::new((tokens, hidden, vocab, 3), Elem::Bf16, 1.0);
    for (variant, chunk) in [(Variant::Fused, Some(chunk)), (Variant::Eager, None)] {
        let plan = Plan::new(batch.shape, batch.elem, batch.rows(), chunk);
        let way = Way { variant, plan: &plan, opts: OPTIONS[2] };
        check(machine, &batch, way, &format!("{tokens} tokens"));
    }
}

/// Logits of hundreds, of which one exponential is all of the sum, and of nothing.
pub fn magnitudes(machine: &dyn Machine) {
    for (elem, magnitude) in Elem::ALL.into_iter().flat_map(|e| [1e-6, 300.0, 1e4].map(|m| (e, m))) {
        let batch = Batch::new((12, 8, 517, 5), elem, magnitude);
        let plan = Plan::new(batch.shape, elem, batch.rows(), None);
        for variant in Variant::ALL {
            let way = Way { variant, plan: &plan, opts: OPTIONS[0] };
            check(machine, &batch, way, &format!("{} ×{magnitude}", elem.name()));
        }
    }
}

/// Blocks that go from row to row: labels are in registers, in shared memory and in what is read again, some rows between others
/// have no loss, and none has the magnitude of the one before.
pub fn turns(machine: &dyn Machine) {
    let vocabularies = cases(machine, &[100_003, 240_001], &[0]);
    for (vocab, elem) in vocabularies.into_iter().flat_map(|v| Elem::ALL.map(|e| (v, e))) {
        let mut batch = Batch::new((8, 8, vocab, 4), elem, 1.0);
        for (t, x) in batch.x.chunks_mut(8).enumerate() {
            x.iter_mut().for_each(|x| *x *= [0.5, 64.0, 4.0, 0.0625, 16.0][t % 5]);
        }
        for (t, label) in batch.labels.iter_mut().enumerate().filter(|(t, y)| *t > 1 && **y >= 0) {
            *label = (t * vocab / 8 + 3) as i32;
        }
        let plan = Plan::new(batch.shape, elem, batch.shape.tokens, None);
        for opts in [OPTIONS[0], OPTIONS[2]] {
            let way = Way { variant: Variant::Fused, plan: &plan, opts };
            check(machine, &batch, way, &format!("{} {vocab} {opts:?}", elem.name()));
        }
    }
}
