use proptest::prelude::*;

use super::{cases::*, *};
use crate::{cases::values, testing::*};

const PLAIN: Options = Options { label_smoothing: 0.0, z_loss: 0.0, chunk_rows: None };
const ALL_TERMS: Options = Options { label_smoothing: 0.1, z_loss: 1e-2, chunk_rows: Some(3) };
const SCALE: f32 = 0.25;

struct Operands {
    x: Vec<f32>,
    w: Vec<f32>,
    labels: Vec<i32>,
}

fn operands(case: Case) -> Operands {
    let Shape { tokens, hidden, vocab } = case.shape;
    let scaled = |seed, n, by: f32| values(seed, n).iter().map(|x| by * x).collect();
    Operands {
        x: scaled(case.seed, tokens * hidden, 2.0),
        w: scaled(case.seed + 100, vocab * hidden, 1.5),
        labels: case.labels(),
    }
}

fn each(f: impl Fn(&str, Variant, Case, Operands, Options)) {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| TESTS.map(|c| (v, c))) {
        for (terms, opts) in [("plain", PLAIN), ("all terms", ALL_TERMS)] {
            f(&format!("{variant} {} {terms}", case.name), variant, case, operands(case), opts);
        }
    }
}

/// `(sums, dx, dw)` with `dw` starting from `prior`.
fn run(
    variant: Variant,
    op: &Operands,
    prior: Vec<f32>,
    shape: Shape,
    opts: Options,
) -> (Sums, Vec<f32>, Vec<f32>) {
    let (mut dx, mut dw) = (poisoned(op.x.len()), prior);
    let sums =
        forward_backward(variant, &op.x, &op.w, &op.labels, SCALE, &mut dx, Some(&mut dw), shape, opts);
    (sums, dx, dw)
}

fn assert_loss(what: &str, got: Sums, (loss, tokens): (f64, u64)) {
    assert_eq!(got.tokens, tokens, "{what}");
    assert!((got.loss - loss).abs() <= 2e-6 * (1.0 + loss.abs()), "{what}: {} {loss}", got.loss);
}

#[test]
fn loss_agrees_with_f64() {
    each(|what, variant, case, op, opts| {
        let want = reference::forward(&wide(&op.x), &wide(&op.w), &op.labels, case.shape, opts);
        assert_loss(what, forward(variant, &op.x, &op.w, &op.labels, case.shape, opts), want);
        assert_loss(what, run(variant, &op, vec![0.0; op.w.len()], case.shape, opts).0, want);
    });
}

#[test]
fn gradients_agree_with_finite_differences() {
    each(|what, variant, case, op, opts| {
        let (_, dx, dw) = run(variant, &op, vec![0.0; op.w.len()], case.shape, opts);
        // The loss of nothing, and of the only token there is, does not depend on anything.
        if case.name == "all_ignored" || (case.name == "one_token_of_vocabulary" && opts == PLAIN) {
            assert!(dx.iter().chain(&dw).all(|g| g.abs() < 1e-6), "{what}");
            return;
        }
        let loss = |x: &[f64], w: &[f64]| {
            f64::from(SCALE) * reference::forward(x, w, &op.labels, case.shape, opts).0
        };
        assert_gradient(&format!("{what} dx"), |x| loss(x, &wide(&op.w)), &op.x, &dx);
        assert_gradient(&format!("{what} dw"), |w| loss(&wide(&op.x), w), &op.w, &dw);
    });
}

#[test]
fn ignored_rows_have_no_gradient() {
    each(|what, variant, case, op, opts| {
        let (_, dx, _) = run(variant, &op, vec![0.0; op.w.len()], case.shape, opts);
        let rows = dx.chunks(case.shape.hidden).zip(&op.labels);
        for (t, (dx, _)) in rows.enumerate().filter(|(_, (_, y))| **y == IGNORE_INDEX) {
            assert!(dx.iter().all(|g| *g == 0.0), "{what} row {t}");
        }
    });
}

#[test]
fn weight_gradients_are_added_and_optional() {
    each(|what, variant, case, op, opts| {
        let prior = values(7, op.w.len());
        let (sums, dx, dw) = run(variant, &op, vec![0.0; op.w.len()], case.shape, opts);
        let (_, _, added) = run(variant, &op, prior.clone(), case.shape, opts);
        let want: Vec<f64> = dw.iter().zip(&prior).map(|(g, p)| f64::from(*g) + f64::from(*p)).collect();
        assert_close(what, &added, &want, 1e-6);
        let mut alone = poisoned(op.x.len());
        let same =
            forward_backward(variant, &op.x, &op.w, &op.labels, SCALE, &mut alone, None, case.shape, opts);
        assert_eq!((same, alone), (sums, dx), "{what}");
    });
}

#[test]
fn large_logits_neither_overflow_nor_vanish() {
    let shape = Shape { tokens: 2, hidden: 1, vocab: 3 };
    for variant in Variant::ALL {
        let op = Operands { x: vec![1.0, -1.0], w: vec![300.0, -300.0, 0.0], labels: vec![1, 0] };
        let (sums, dx, dw) = run(variant, &op, vec![0.0; 3], shape, PLAIN);
        assert_loss(&variant.to_string(), sums, (1200.0, 2));
        assert_close("dx", &dx, &[f64::from(SCALE) * 600.0, f64::from(SCALE) * -600.0], 1e-6);
        // p − y is (1, −1, 0) for the first row and (−1, 1, 0) for the second, whose x is −1.
        assert_close("dw", &dw, &[2.0 * f64::from(SCALE), -2.0 * f64::from(SCALE), 0.0], 1e-6);
    }
}

#[test]
fn not_a_number_reaches_the_loss() {
    let shape = Shape { tokens: 1, hidden: 1, vocab: 3 };
    for variant in Variant::ALL {
        let sums = forward(variant, &[1.0], &[0.0, f32::NAN, 0.0], &[0], shape, PLAIN);
        assert!(sums.loss.is_nan(), "{variant}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    each(|_, variant, case, op, opts| {
        assert_same_for_any_threads(|| {
            let (sums, dx, dw) = run(variant, &op, vec![0.0; op.w.len()], case.shape, opts);
            [vec![sums.loss as f32], dx, dw].concat()
        });
    });
}

#[test]
fn fused_holds_a_chunk_where_eager_holds_everything() {
    let shape = Shape { tokens: 16_384, hidden: 896, vocab: 151_936 };
    let [fused, eager] = Variant::ALL.map(|v| workspace_bytes(v, shape, PLAIN));
    assert!(fused * 200 < eager, "{fused} {eager}");
    let logits = 4 * (chunk_rows(shape, PLAIN) * shape.vocab) as u64;
    assert!((logits..logits + (4 << 20)).contains(&fused), "{fused} for {logits} of logits");
}

#[test]
#[should_panic(expected = "a label is neither -100 nor in 0..3")]
fn unknown_label() {
    let shape = Shape { tokens: 1, hidden: 1, vocab: 3 };
    forward(Variant::Fused, &[1.0], &[0.0; 3], &[3], shape, PLAIN);
}

proptest! {
    #[test]
    fn any_split_of_the_logits_has_the_same_lse(
        logits in prop::collection::vec(-90f32..90.0, 1..200),
        cuts in prop::collection::vec(0usize..200, 0..8),
    ) {
        let part = |z: &[f32]| match z {
            [] => MaxSum::EMPTY,
            z => {
                let max = crate::simd::max(z);
                MaxSum { max, sum: crate::simd::sum_exp(z, max) }
            }
        };
        let mut edges: Vec<usize> = cuts.into_iter().map(|c| c.min(logits.len())).collect();
        edges.extend([0, logits.len()]);
        edges.sort_unstable();
        let parts: Vec<MaxSum> = edges.windows(2).map(|e| part(&logits[e[0]..e[1]])).collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&z| f64::from(z - max).exp()).sum();
        let want = f64::from(max) + sum.ln();
        let forwards = parts.iter().fold(MaxSum::EMPTY, |acc, &p| acc.combine(p));
        let backwards = parts.iter().rev().fold(MaxSum::EMPTY, |acc, &p| p.combine(acc));
        for combined in [forwards, backwards] {
            prop_assert_eq!(combined.max, max);
            let error = (f64::from(combined.lse()) - want).abs();
            prop_assert!(error <= 1e-6 * (1.0 + want.abs()), "{} {}", combined.lse(), want);
        }
    }
}
