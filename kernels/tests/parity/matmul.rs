//! Matrix products against f64 sums, whoever runs them: what the launch code of kernels relies on.

use chronicals_kernels::{
    cases::values,
    gpu::{Elem, Product, product::Matrix},
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
                check(machine, &Product { m, n, k, a, b, ldc: n + 8, out, elem, bias, accumulate });
            }
        }
    }
}

fn check(machine: &dyn Machine, p: &Product) {
    let [a_len, b_len, c_len] = p.spans();
    // Whole packs, of which the library may read the end.
    let [a, b] =
        [(1, a_len), (2, b_len)].map(|(seed, len)| rounded(p.elem, values(seed, len.next_multiple_of(8))));
    let (old, bias) = (rounded(p.out, values(3, c_len)), rounded(p.out, values(4, p.n)));
    let (on, to) = (Operands { machine, elem: p.elem }, Operands { machine, elem: p.out });
    // What lies between the rows of C stays; without accumulation C itself is not read.
    let mut before = old.clone();
    let places: Vec<(usize, usize)> = (0..p.m).flat_map(|i| (0..p.n).map(move |j| (i, j))).collect();
    if !p.accumulate {
        places.iter().for_each(|(i, j)| before[i * p.ldc + j] = f32::NAN);
    }
    let (am, bm, cm, biasm) = (on.input(&a), on.input(&b), to.input(&before), to.input(&bias));
    // SAFETY: every operand has the length that the product says.
    unsafe { machine.products().product(p, am.ptr(), bm.ptr(), biasm.ptr(), cm.ptr()).unwrap() };
    let expected = places.iter().map(|&(i, j)| {
        let sum: f64 = (0..p.k).map(|l| f64::from(a[p.a.at(i, l)]) * f64::from(b[p.b.at(l, j)])).sum();
        sum + f64::from(u8::from(p.bias)) * f64::from(bias[j])
            + f64::from(u8::from(p.accumulate)) * f64::from(old[i * p.ldc + j])
    });
    let expected: Vec<f64> = expected.collect();
    let after = to.read(&cm);
    let got: Vec<f32> = places.iter().map(|(i, j)| after[i * p.ldc + j]).collect();
    // Half a unit of bf16 is 2⁻⁹, and 2⁻⁸ of the largest just above a power of two. Some of cuBLASLt's algorithms round to
    // bf16 before they add C, and then again. f32 products pass through TF32 nowhere.
    let tolerance = match (p.out, p.accumulate) {
        (Elem::Bf16, true) => 8e-3,
        (Elem::Bf16, false) => 4e-3,
        (Elem::F32, _) => 2e-5,
    };
    assert_close(&format!("{p:?}"), &got, &expected, tolerance);
    for (at, value) in after.iter().enumerate().filter(|(at, _)| at % p.ldc >= p.n) {
        assert_eq!(*value, old[at], "{p:?} wrote between its rows, at {at}");
    }
}
