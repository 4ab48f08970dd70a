//! The eager variant of attention: the checks of the fused one, with rows of the batch besides.

use chronicals_kernels::{
    attention::{
        cuda::{self, Documents, Path},
        cuda_eager,
    },
    cases::values,
    gpu::{Arg, Elem, Grid, Ptr, le_bytes},
};

use crate::{
    attention::{Batch, CASES, Heads, Left, SHARED, check, expected, isolated, twice},
    machine::{EagerMemory, Machine, Memory, Operands, assert_close, cases, wide},
};

/// Several rows, whose scores are those of a row: rows of odd lengths, of documents and padding; heads of
/// their own keys and values; a small head dimension.
const ROWS: [(Heads, usize, &[u32]); 4] = [
    ((4, 2, 64), 3, &[20, 11, 31, 1, 0, 30]),
    ((2, 2, 64), 2, &[7, 9, 16]),
    ((2, 1, 128), 4, &[1, 1, 1, 1]),
    ((3, 1, 8), 2, &[90, 43, 133]),
];

/// Forward and backward of a batch of so many rows.
pub fn run(machine: &dyn Machine, batch: &Batch, rows: usize) -> Left {
    let (on, shape, t) = (Operands { machine, elem: batch.path.elem() }, batch.shape, batch.tokens());
    let extents = cuda_eager::Batch::new(on.elem, shape, rows, t / rows);
    let list = machine.upload(&le_bytes(&cuda::documents(&batch.cu_seqlens), u32::to_le_bytes));
    let documents = Documents { list: list.ptr(), tokens: t };
    let mask = machine.upload(&vec![0xff; extents.mask_bytes()]);
    let memory = EagerMemory::new(machine, extents.saved_bytes(), extents.scratch_bytes());
    let operands =
        [on.input(&batch.qkv), on.input(&batch.dout), on.output(t * shape.out()), on.output(batch.qkv.len())];
    let [q, d, o, dq] = operands.each_ref().map(Memory::ptr);
    let (launcher, products, m) = (machine.launcher(), machine.products(), mask.ptr());
    // SAFETY: every operand has the length that its name says, and the documents are the batch's.
    unsafe {
        cuda_eager::mask(launcher, &extents, &documents, m).unwrap();
        cuda_eager::forward(launcher, products, &extents, q, m, o, memory.ptrs()).unwrap();
        cuda_eager::backward(launcher, products, &extents, d, q, dq, memory.ptrs()).unwrap();
    }
    let [_, _, out, dqkv] = &operands;
    Left { out: on.read(out), lse: Vec::new(), dqkv: on.read(dqkv) }
}

/// A batch of the eager variant, in an element type.
fn eager(heads: Heads, rows: usize, lengths: &[u32], elem: Elem, magnitude: f32) -> Batch {
    let path = if elem == Elem::F32 { Path::Plain } else { Path::Mma };
    Batch { eager: Some(rows), ..Batch::new(heads, lengths, path, magnitude) }
}

/// The eager variant, on the same cases as one row, and on several rows; twice to the same bits.
pub fn forward_backward(machine: &dyn Machine) {
    let one_row = cases(machine, &CASES, &[1]).into_iter().map(|(heads, lengths)| (heads, 1, lengths));
    let all = one_row.chain(cases(machine, &ROWS, &[0]));
    for ((heads, rows, lengths), elem) in all.flat_map(|c| Elem::ALL.map(|e| (c, e))) {
        twice(machine, &eager(heads, rows, lengths, elem, 1.0), lengths);
    }
}

/// Scores of thousands and of nothing. In bf16, scores of thousands are rounded by as much as may part the two largest, so that
/// sums that round otherwise give other outputs: they are means of values, and no more can be asked.
pub fn magnitudes(machine: &dyn Machine) {
    for (elem, magnitude) in Elem::ALL.into_iter().flat_map(|e| [1e-3, 60.0].map(|m| (e, m))) {
        let batch = eager((2, 1, 64), 1, &[40, 70], elem, magnitude);
        let (left, what) = (run(machine, &batch, 1), format!("{} ×{magnitude}", batch.name()));
        if magnitude < 1.0 {
            check(&batch, &left, &what);
            continue;
        }
        if elem == Elem::F32 {
            assert_close(&format!("out {what}"), &left.out, &expected(&batch)[0], 4e-3);
        }
        let (k, packed) = (64, batch.shape.packed());
        for (i, out) in left.out.iter().enumerate() {
            let (t, c) = (i / batch.shape.out(), i % k);
            let seen = (batch.begin(t)..=t).map(|j| batch.qkv[j * packed + 3 * k + c]);
            let (low, high) = seen.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)));
            assert!((low - 1e-2..=high + 1e-2).contains(out), "out {what}[{i}]: {out} of {low}..{high}");
        }
        assert!(left.dqkv.iter().all(|x| x.is_finite()), "dqkv {what}");
    }
}

/// Rows of scores that are longer than what a block keeps of them, in a block of one warp: a softmax, and its gradient.
pub fn long_rows(machine: &dyn Machine) {
    const ROWS: usize = 3;
    for columns in [1023usize, 1025, 2500] {
        let stride = columns.next_multiple_of(8);
        let on = Operands { machine, elem: Elem::F32 };
        let padded = |seed: u64, factor: f32| -> Vec<f32> {
            let inside = |i: usize| i % stride < columns;
            let all = values(seed, ROWS * stride).into_iter().enumerate();
            all.map(|(i, v)| if inside(i) { v * factor } else { f32::NAN }).collect()
        };
        let (x, d) = (padded(1, 8.0), padded(2, 1.0));
        let held = [on.input(&x), on.output(x.len()), on.input(&d), on.output(x.len())];
        let [x_at, p_at, d_at, dx_at] = held.each_ref().map(Memory::ptr);
        let grid = Grid { blocks: (ROWS as u32, 1), threads: 32, shared: 0 };
        let launch = |name, operands: &[Ptr]| {
            let mut args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).collect();
            args.extend([columns, stride].map(|n| Arg::I32(n as i32)));
            // SAFETY: operands have that many rows of that many elements.
            unsafe {
                machine.launcher().launch(cuda_eager::UNIT.entry(name, Elem::F32), grid, &args).unwrap()
            };
        };
        launch("attention_eager_softmax", &[x_at, p_at]);
        launch("attention_eager_dsoftmax", &[d_at, p_at, dx_at]);
        let [_, p, _, dx] = held.each_ref().map(|m| on.read(m));
        for row in (0..ROWS).map(|row| row * stride..(row + 1) * stride) {
            let inside = |v: &[f32]| wide(&v[row.clone()][..columns]);
            let (x, d) = (inside(&x), inside(&d));
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            let exact: Vec<f64> = x.iter().map(|x| x.exp() / sum).collect();
            let dot: f64 = exact.iter().zip(&d).map(|(p, d)| p * d).sum();
            let gradient: Vec<f64> = exact.iter().zip(&d).map(|(p, d)| p * (d - dot)).collect();
            for (what, got, exact) in [("p", &p, exact), ("dx", &dx, gradient)] {
                let (what, got) = (format!("{what} of {columns}"), &got[row.clone()]);
                assert_close(&what, &got[..columns], &exact, 5e-6);
                assert!(got[columns..].iter().all(|x| *x == 0.0), "{what}: what lies between rows");
            }
        }
    }
}

/// Scores of all documents are computed, and the mask added to those that are not seen: they must be finite.
pub fn isolation(machine: &dyn Machine) {
    for elem in Elem::ALL {
        isolated(machine, || eager((2, 1, 64), 1, &SHARED, elem, 1.0), 1e3);
    }
}
