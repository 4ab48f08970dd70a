//! Matrix products against f64 sums, whoever runs them: what the launch code of kernels relies on.

use chronicals_kernels::{
    cases::values,
    gpu::{
        Elem, Product,
        product::{Batch, Factor, Matrix},
    },
};

use crate::machine::{Machine, Operands, assert_close, rounded};

/// One row; odd extents in multiples of 8; more than a tile of any algorithm.
const SHAPES: [(usize, usize, usize); 4] = [(8, 8, 8), (1, 896, 64), (40, 72, 104), (264, 136, 200)];

/// Every transposition, with padding between rows, each epilogue and both types of C.
pub fn products(machine: &dyn Machine) {
    for (m, n, k) in SHAPES {
        for code in 0..32 {
            let [ta, tb, bias, accumulate, wide] = [1, 2, 4, 8, 16].map(|bit| code & bit != 0);
            for elem in Elem::ALL {
                // A transposed A has a row for each term, of m elements, which cuBLASLt wants in multiples of 8.
                if ta && !m.is_multiple_of(8) {
                    continue;
                }
                let out = if wide { Elem::F32 } else { elem };
                let a = Matrix { ld: if ta { m } else { k } + 8, transposed: ta };
                let b = Matrix { ld: if tb { k } else { n } + 16, transposed: tb };
                // cuBLASLt's bias has the type of C.
                let (batch, factor) = (Batch::ONE, Factor::new(if ta == tb { 1.0 } else { -1.5 }));
                let one = Product { m, n, k, a, b, ldc: n + 8, out, elem, bias, accumulate, batch, factor };
                check(machine, &one);
            }
        }
    }
}

/// Several products at once, in each transposition: one behind another with room between them; side by side in the columns
/// of wider rows, as heads are; one A for all.
pub fn batches(machine: &dyn Machine) {
    let (m, n, k) = (24, 40, 16);
    for (code, elem) in (0..16).flat_map(|code| Elem::ALL.map(|e| (code, e))) {
        let [ta, tb, wide, accumulate] = [1, 2, 4, 8].map(|bit| code & bit != 0);
        let out = if wide { Elem::F32 } else { elem };
        let rows = |t: bool, rows: usize, columns: usize| if t { (columns, rows) } else { (rows, columns) };
        let (a, b) = (rows(ta, m, k), rows(tb, k, n));
        let matrix = |ld, transposed| Matrix { ld, transposed };
        let apart = |(rows, columns): (usize, usize)| rows * columns + 8;
        let product = |a: Matrix, b: Matrix, ldc, count, strides| {
            let batch = Batch { count, strides };
            let factor = Factor::new(if ta == tb { 1.0 } else { 0.75 });
            Product { m, n, k, a, b, ldc, out, elem, bias: false, accumulate, batch, factor }
        };
        let (dense_a, dense_b) = (matrix(a.1, ta), matrix(b.1, tb));
        check(machine, &product(dense_a, dense_b, n, 5, [apart(a), apart(b), apart((m, n))]));
        check(machine, &product(dense_a, dense_b, n, 3, [0, apart(b), m * n]));
        let (side_a, side_b) = (matrix(3 * a.1, ta), matrix(3 * b.1, tb));
        check(machine, &product(side_a, side_b, 3 * n, 3, [a.1, b.1, n]));
    }
}

/// Matrix, row and column of every element of C.
fn places(p: &Product) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let Product { m, n, batch, .. } = *p;
    (0..batch.count).flat_map(move |b| (0..m).flat_map(move |i| (0..n).map(move |j| (b, i, j))))
}

/// Where it lies.
fn place(p: &Product, (b, i, j): (usize, usize, usize)) -> usize {
    b * p.batch.strides[2] + i * p.ldc + j
}

fn check(machine: &dyn Machine, p: &Product) {
    let [a_len, b_len, c_len] = p.spans();
    // Whole packs, of which the library may read the end.
    let [a, b] =
        [(1, a_len), (2, b_len)].map(|(seed, len)| rounded(p.elem, values(seed, len.next_multiple_of(8))));
    let (old, bias) = (rounded(p.out, values(3, c_len)), rounded(p.out, values(4, p.n)));
    let (on, to) = (Operands { machine, elem: p.elem }, Operands { machine, elem: p.out });
    // What lies between the rows of C stays; without accumulation C itself is not read.
    let (mut before, mut between) = (old.clone(), vec![true; c_len]);
    for at in places(p).map(|at| place(p, at)) {
        between[at] = false;
        if !p.accumulate {
            before[at] = f32::NAN;
        }
    }
    let (am, bm, cm, biasm) = (on.input(&a), on.input(&b), to.input(&before), to.input(&bias));
    // SAFETY: every operand has the length that the product says.
    unsafe { machine.products().product(p, am.ptr(), bm.ptr(), biasm.ptr(), cm.ptr()).unwrap() };
    let expected = places(p).map(|(batch, i, j)| {
        let [first_a, first_b, _] = p.batch.strides.map(|stride| batch * stride);
        let term = |l| f64::from(a[first_a + p.a.at(i, l)]) * f64::from(b[first_b + p.b.at(l, j)]);
        f64::from(p.factor.value()) * (0..p.k).map(term).sum::<f64>()
            + f64::from(u8::from(p.bias)) * f64::from(bias[j])
            + f64::from(u8::from(p.accumulate)) * f64::from(old[place(p, (batch, i, j))])
    });
    let expected: Vec<f64> = expected.collect();
    let after = to.read(&cm);
    let got: Vec<f32> = places(p).map(|at| after[place(p, at)]).collect();
    // Half a unit of bf16 is 2⁻⁹, and 2⁻⁸ of the largest just above a power of two. Some of cuBLASLt's algorithms round to
    // bf16 before they add C, and then again. f32 products pass through TF32 nowhere.
    let tolerance = match (p.out, p.accumulate) {
        (Elem::Bf16, true) => 8e-3,
        (Elem::Bf16, false) => 4e-3,
        (Elem::F32, _) => 2e-5,
    };
    assert_close(&format!("{p:?}"), &got, &expected, tolerance);
    for (at, value) in after.iter().enumerate().filter(|(at, _)| between[*at]) {
        assert_eq!(*value, old[at], "{p:?} wrote between its rows, at {at}");
    }
}
