use super::{cases, *};
use crate::{cases::values, testing::*};

const EPS: f32 = 1e-5;

struct Operands {
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
}

fn operands(case: cases::Case) -> Operands {
    let n = case.shape.elements();
    Operands {
        x: values(case.seed, n).iter().map(|x| 2.0 * x + 0.3).collect(),
        w: values(case.seed + 100, case.shape.hidden).iter().map(|w| w + 1.5).collect(),
        dy: values(case.seed + 200, n),
    }
}

#[test]
fn forward_agrees_with_f64() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        let (Operands { x, w, .. }, shape) = (operands(case), case.shape);
        let (mut y, mut rstd) = (poisoned(shape.elements()), poisoned(shape.tokens));
        forward(variant, &x, &w, EPS, &mut y, &mut rstd, shape);
        let (want_y, want_rstd) = reference::forward(&wide(&x), &wide(&w), f64::from(EPS), shape);
        assert_close(&format!("{variant} {} y", case.name), &y, &want_y, 2e-6);
        assert_close(&format!("{variant} {} rstd", case.name), &rstd, &want_rstd, 2e-6);
    }
}

#[test]
fn add_forward_is_the_forward_of_the_sum() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        let (Operands { x, w, dy: delta }, shape) = (operands(case), case.shape);
        let (mut sum, mut y, mut rstd) =
            (poisoned(shape.elements()), poisoned(shape.elements()), poisoned(shape.tokens));
        add_forward(variant, &x, &delta, &mut sum, &w, EPS, &mut y, &mut rstd, shape);
        let want_sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
        assert_eq!(sum, want_sum, "{variant} {}", case.name);
        let (mut want_y, mut want_rstd) = (poisoned(shape.elements()), poisoned(shape.tokens));
        forward(variant, &sum, &w, EPS, &mut want_y, &mut want_rstd, shape);
        assert_eq!((y, rstd), (want_y, want_rstd), "{variant} {}", case.name);
    }
}

/// `(dx, dw)` of an overwriting backward whose weight gradient starts at zero.
fn gradients(variant: Variant, op: &Operands, shape: Shape) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut rstd) = (poisoned(shape.elements()), poisoned(shape.tokens));
    forward(variant, &op.x, &op.w, EPS, &mut y, &mut rstd, shape);
    let (mut dx, mut dw) = (poisoned(shape.elements()), vec![0.0; shape.hidden]);
    backward(variant, &op.dy, &op.x, &rstd, &op.w, &mut dx, false, Some(&mut dw), shape);
    (dx, dw)
}

#[test]
fn backward_agrees_with_finite_differences() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        let (op, shape) = (operands(case), case.shape);
        let (dx, dw) = gradients(variant, &op, shape);
        let loss =
            |x: &[f64], w: &[f64]| dot(&reference::forward(x, w, f64::from(EPS), shape).0, &wide(&op.dy));
        let name = |of: &str| format!("{variant} {} {of}", case.name);
        if shape.hidden > 1 {
            // one column normalises to a sign: its gradient is eps-sized, below what f32 resolves
            assert_gradient(&name("dx"), |x| loss(x, &wide(&op.w)), &op.x, &dx);
        }
        assert_gradient(&name("dweight"), |w| loss(&wide(&op.x), w), &op.w, &dw);
    }
}

#[test]
fn backward_adds_where_it_says_so() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        let (op, shape) = (operands(case), case.shape);
        let (dx, dw) = gradients(variant, &op, shape);
        let (mut y, mut rstd) = (poisoned(shape.elements()), poisoned(shape.tokens));
        forward(variant, &op.x, &op.w, EPS, &mut y, &mut rstd, shape);
        let (before_x, before_w) = (values(7, shape.elements()), values(8, shape.hidden));
        let (mut sum_x, mut sum_w) = (before_x.clone(), before_w.clone());
        backward(variant, &op.dy, &op.x, &rstd, &op.w, &mut sum_x, true, Some(&mut sum_w), shape);
        let want = |before: &[f32], g: &[f32]| -> Vec<f64> {
            before.iter().zip(g).map(|(&b, &g)| f64::from(b) + f64::from(g)).collect()
        };
        assert_close(&format!("{variant} {} dx", case.name), &sum_x, &want(&before_x, &dx), 1e-5);
        assert_close(&format!("{variant} {} dweight", case.name), &sum_w, &want(&before_w, &dw), 1e-5);
        let mut without = before_x.clone();
        backward(variant, &op.dy, &op.x, &rstd, &op.w, &mut without, true, None, shape);
        assert_eq!(without, sum_x, "{variant} {}: dx depends on whether dweight is wanted", case.name);
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let case = cases::TESTS[5];
    for variant in Variant::ALL {
        assert_same_for_any_threads(|| {
            let (dx, dw) = gradients(variant, &operands(case), case.shape);
            [dx, dw].concat()
        });
    }
}

#[test]
fn zero_rows_stay_finite() {
    let shape = Shape { tokens: 2, hidden: 40 };
    let (x, w) = (vec![0.0; 80], vec![1.0; 40]);
    for variant in Variant::ALL {
        let (dx, dw) = gradients(variant, &Operands { x: x.clone(), w: w.clone(), dy: values(1, 80) }, shape);
        assert!(dx.iter().chain(&dw).all(|g| g.is_finite()), "{variant}");
    }
}
