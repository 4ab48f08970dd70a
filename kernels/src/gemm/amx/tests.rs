use super::*;
use crate::{
    cases::values,
    gemm::{MatMut, MatRef, checked, reference},
    testing::*,
};

/// Off every strip and step; more terms than are summed at a time; more rows, or columns, than are packed at a time.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (33, 31, 65), (64, 96, 128), (70, 45, 2000), (2100, 40, 50), (20, 2085, 33)];

fn run(alpha: f32, a: MatRef, b: MatRef, beta: f32, c: &mut [f32], dims: Dims) {
    let c = MatMut::rows(c, dims.n);
    product(checked(alpha, a, b, beta, c, dims).unwrap(), true);
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..x.len()).map(|e| x[e % rows * columns + e / rows]).collect()
}

/// Every orientation of the operands, whatever their size.
#[test]
fn products_agree_with_f64() {
    if !is_available() {
        return;
    }
    for (m, n, k) in SHAPES {
        let (dims, a, b) = (Dims { m, n, k }, values(1, m * k), values(2, k * n));
        let (at, bt, prior) = (transposed(&a, m, k), transposed(&b, k, n), values(3, m * n));
        for (alpha, beta) in [(1.0, 0.0), (0.3, 1.0), (1.0, 0.5)] {
            let want =
                reference::gemm(f64::from(alpha), &wide(&a), &wide(&b), beta.into(), &wide(&prior), dims);
            for (of_a, of_b) in [(false, false), (false, true), (true, false), (true, true)] {
                let a = if of_a { MatRef::rows(&at, m).t() } else { MatRef::rows(&a, k) };
                let b = if of_b { MatRef::rows(&bt, k).t() } else { MatRef::rows(&b, n) };
                let mut c = if beta == 0.0 { poisoned(m * n) } else { prior.clone() };
                run(alpha, a, b, beta, &mut c, dims);
                let what = format!("{dims:?} {of_a} {of_b} {beta}");
                assert_close(&what, &c, &want, 1e-6 * (1.0 + k as f64).sqrt());
            }
        }
    }
}

/// Largest error and mean error of products, of the sum of their terms' magnitudes, in units of half a place of f32.
fn errors(got: &[f32], want: &[f64], terms: &[f64]) -> [f64; 2] {
    let unit = f64::from(f32::EPSILON) / 2.0;
    let each = || got.iter().zip(want).zip(terms).map(|((c, want), all)| (f64::from(*c) - want) / all / unit);
    [each().fold(0.0, |most, e| f64::max(most, e.abs())), each().sum::<f64>() / got.len() as f64]
}

/// Operands of all magnitudes: errors are no larger than those of f32 that is summed term by term, and have no side in the mean.
#[test]
fn errors_are_those_of_f32() {
    if !is_available() {
        return;
    }
    let dims @ Dims { m, n, k } = Dims { m: 64, n: 64, k: 512 };
    for exponent in [0.0, 16.0] {
        let spread = |seed, len| -> Vec<f32> {
            let scales = values(seed + 10, len).into_iter().map(|e| (exponent * e).exp2());
            values(seed, len).into_iter().zip(scales).map(|(x, scale)| x * scale).collect()
        };
        let (a, b, mut c) = (spread(1, m * k), spread(2, k * n), poisoned(m * n));
        run(1.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, &mut c, dims);
        let term = |e: usize, l: usize| (a[e / n * k + l], b[l * n + e % n]);
        let by_term = |e| (0..k).map(|l| term(e, l)).fold(0.0f32, |sum, (a, b)| a.mul_add(b, sum));
        let plain: Vec<f32> = (0..m * n).map(by_term).collect();
        let want = reference::gemm(1.0, &wide(&a), &wide(&b), 0.0, &[], dims);
        let size = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(x.abs())).collect() };
        let terms = reference::gemm(1.0, &size(&a), &size(&b), 0.0, &[], dims);
        let ([largest, mean], [of_f32, _]) = (errors(&c, &want, &terms), errors(&plain, &want, &terms));
        assert!(largest <= of_f32, "spread 2^{exponent}: {largest} units, {of_f32} by terms");
        assert!(mean.abs() < 0.1, "spread 2^{exponent}: {mean} units in the mean");
    }
}

/// An f32 of bits that need all three parts, against powers of two: to the bit.
#[test]
fn single_terms_are_exact() {
    if !is_available() {
        return;
    }
    let dims @ Dims { m, n, k } = Dims { m: 32, n: 32, k: 32 };
    let a: Vec<f32> = (0..m * k).map(|i| f32::from_bits(0x3f80_0001 + 8_191 * i as u32)).collect();
    let b: Vec<f32> = (0..k * n).map(|e| if e / n == e % n { 0.5 } else { 0.0 }).collect();
    let mut c = poisoned(m * n);
    run(1.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, &mut c, dims);
    assert!(c.iter().zip(&a).all(|(c, a)| *c == a / 2.0));
}

#[test]
fn what_is_not_finite_stays_so() {
    if !is_available() {
        return;
    }
    let dims @ Dims { m, n, k } = Dims { m: 40, n: 40, k: 40 };
    for bad in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7fff_ffff), f32::from_bits(0x7f80_0001)]
    {
        let (mut a, b, mut c) = (vec![1.0; m * k], vec![1.0; k * n], poisoned(m * n));
        a[35 * k + 7] = bad;
        run(1.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, &mut c, dims);
        for (i, row) in c.chunks(n).enumerate() {
            assert!(row.iter().all(|c| c.is_finite() == (i != 35)), "row {i} of {bad}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    if !is_available() {
        return;
    }
    let dims @ Dims { m, n, k } = Dims { m: 500, n: 300, k: 900 };
    let (a, b) = (values(1, m * k), values(2, k * n));
    assert_same_for_any_threads(|| {
        let mut c = poisoned(m * n);
        run(1.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, &mut c, dims);
        c
    });
}
