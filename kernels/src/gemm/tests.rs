use super::{cases::TESTS, *};
use crate::{cases::values, testing::*};

/// Errors of f32 sums of k products grow at most so.
fn tolerance(dims: Dims) -> f64 {
    1e-6 * (1.0 + dims.k as f64).sqrt()
}

fn operands(dims: Dims) -> [Vec<f32>; 3] {
    let Dims { m, n, k } = dims;
    [values(1, m * k), values(2, k * n), values(3, m * n)]
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..x.len()).map(|e| x[e % rows * columns + e / rows]).collect()
}

#[test]
fn products_of_a_linear_layer_agree_with_f64() {
    for dims @ Dims { m, n, k } in TESTS {
        let [a, b, prior] = operands(dims);
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        for beta in [0.0, 1.0, 0.5] {
            let start = || if beta == 0.0 { poisoned(m * n) } else { prior.clone() };
            let want = reference::gemm(1.0, &wide(&a), &wide(&b), f64::from(beta), &wide(&prior), dims);
            let (mut y, mut dx, mut dw) = (start(), start(), start());
            linear_forward(&mut y, &a, &bt, m, n, k, beta);
            linear_dgrad(&mut dx, &a, &b, m, k, n, beta);
            linear_wgrad(&mut dw, &at, &b, k, m, n, beta);
            for (name, got) in [("forward", y), ("dgrad", dx), ("wgrad", dw)] {
                assert_close(&format!("{name} {dims:?} beta {beta}"), &got, &want, tolerance(dims));
            }
        }
    }
}

#[test]
fn slices_of_packed_buffers_leave_the_rest_alone() {
    let dims @ Dims { m, n, k } = Dims { m: 130, n: 70, k: 40 };
    let (lda, ldb, ldc, offset) = (k + 3, k + 5, n + 7, 2);
    let (a, b) = (values(1, m * lda), values(2, n * ldb));
    let prior = values(3, m * ldc);
    let mut c = prior.clone();
    let (a_view, b_view) = (MatRef::rows(&a[offset..], lda), MatRef::rows(&b[offset..], ldb).t());
    gemm(0.3, a_view, b_view, 1.0, MatMut::rows(&mut c[offset..], ldc), dims);
    let dense = |x: &[f32], rows: usize, columns: usize, ld: usize| -> Vec<f32> {
        (0..rows).flat_map(|i| x[i * ld + offset..][..columns].to_vec()).collect()
    };
    let bt = transposed(&dense(&b, n, k, ldb), n, k);
    let want = reference::gemm(
        f64::from(0.3f32),
        &wide(&dense(&a, m, k, lda)),
        &wide(&bt),
        1.0,
        &wide(&dense(&prior, m, n, ldc)),
        dims,
    );
    assert_close("slice", &dense(&c, m, n, ldc), &want, tolerance(dims));
    for (i, (c, prior)) in c.iter().zip(&prior).enumerate() {
        let column = i % ldc;
        assert!((offset..offset + n).contains(&column) || c == prior, "element {i} outside the slice");
    }
}

#[test]
fn column_major_result() {
    let dims @ Dims { m, n, k } = Dims { m: 150, n: 61, k: 20 };
    let [a, b, _] = operands(dims);
    let mut ct = poisoned(m * n);
    let c = MatMut { data: &mut ct, row_stride: 1, col_stride: m };
    gemm(1.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, c, dims);
    let want = reference::gemm(1.0, &wide(&a), &wide(&b), 0.0, &[], dims);
    assert_close("transposed result", &transposed(&ct, n, m), &want, tolerance(dims));
}

#[test]
fn no_terms_leave_beta_times_c() {
    let dims = Dims { m: 2, n: 3, k: 0 };
    let product = |beta, mut c: Vec<f32>| {
        gemm(1.0, MatRef::rows(&[], 0), MatRef::rows(&[], 3), beta, MatMut::rows(&mut c, 3), dims);
        c
    };
    assert_eq!(product(0.0, poisoned(6)), [0.0; 6]);
    assert_eq!(product(0.5, vec![2.0; 6]), [1.0; 6]);
    linear_forward(&mut [], &[], &[1.0, 2.0], 0, 1, 2, 0.0);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for dims @ Dims { m, n, k } in TESTS {
        let [a, b, prior] = operands(dims);
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        assert_same_for_any_threads(|| {
            let mut c = [prior.clone(), prior.clone(), prior.clone()];
            linear_forward(&mut c[0], &a, &bt, m, n, k, 1.0);
            linear_dgrad(&mut c[1], &a, &b, m, k, n, 0.5);
            linear_wgrad(&mut c[2], &at, &b, k, m, n, 0.0);
            c.concat()
        });
    }
}

#[test]
fn one_thread_gives_the_same_bits() {
    for dims @ Dims { m, n, k } in TESTS {
        let [a, b, _] = operands(dims);
        let (mut single, mut parallel) = (poisoned(m * n), poisoned(m * n));
        gemm_single(2.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, MatMut::rows(&mut single, n), dims);
        gemm(2.0, MatRef::rows(&a, k), MatRef::rows(&b, n), 0.0, MatMut::rows(&mut parallel, n), dims);
        assert_eq!(single, parallel, "{dims:?}");
    }
}

#[test]
#[should_panic(expected = "B of 3×4 (strides 4, 1) needs 12 elements, has 11")]
fn short_operand() {
    let (a, b, mut c) = ([0.0; 6], [0.0; 11], [0.0; 8]);
    gemm(
        1.0,
        MatRef::rows(&a, 3),
        MatRef::rows(&b, 4),
        0.0,
        MatMut::rows(&mut c, 4),
        Dims { m: 2, n: 4, k: 3 },
    );
}

#[test]
#[should_panic(expected = "elements of C overlap")]
fn overlapping_result() {
    let (a, b, mut c) = ([0.0; 6], [0.0; 12], [0.0; 8]);
    gemm(
        1.0,
        MatRef::rows(&a, 3),
        MatRef::rows(&b, 4),
        0.0,
        MatMut::rows(&mut c, 3),
        Dims { m: 2, n: 4, k: 3 },
    );
}
