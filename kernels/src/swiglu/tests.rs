use super::{cases, *};
use crate::{cases::values, testing::*};

fn operands(case: cases::Case) -> (Vec<f32>, Vec<f32>) {
    let n = case.tokens * case.ffn;
    (values(case.seed, 2 * n).iter().map(|x| 4.0 * x).collect(), values(case.seed + 100, n))
}

fn gradient(variant: Variant, case: cases::Case) -> Vec<f32> {
    let (mut gate_up, dact) = operands(case);
    backward(variant, &mut gate_up, &dact, case.tokens, case.ffn);
    gate_up
}

#[test]
fn forward_agrees_with_f64() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        let (gate_up, _) = operands(case);
        let mut act = poisoned(case.tokens * case.ffn);
        forward(variant, &gate_up, &mut act, case.tokens, case.ffn);
        let want = reference::forward(&wide(&gate_up), case.ffn);
        assert_close(&format!("{variant} {}", case.name), &act, &want, 1e-6);
    }
}

#[test]
fn backward_agrees_with_finite_differences() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        let (gate_up, dact) = operands(case);
        let loss = |x: &[f64]| dot(&reference::forward(x, case.ffn), &wide(&dact));
        assert_gradient(&format!("{variant} {}", case.name), loss, &gate_up, &gradient(variant, case));
    }
}

#[test]
fn extremes_saturate_without_overflow() {
    let gate = [-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 1e30];
    let gate_up: Vec<f32> = gate.iter().copied().chain([2.0; 9]).collect();
    let want = reference::forward(&wide(&gate_up), 9);
    for variant in Variant::ALL {
        let mut act = poisoned(9);
        forward(variant, &gate_up, &mut act, 1, 9);
        assert_close(&format!("{variant} act"), &act, &want, 1e-6);
        let mut grad = gate_up.clone();
        backward(variant, &mut grad, &[1.0; 9], 1, 9);
        let dgate = [0.0, 0.0, 0.0, -2.0 * 19.0 * (-20f64).exp(), 1.0, 2.0, 2.0, 2.0, 2.0];
        assert_close(&format!("{variant} dgate"), &grad[..9], &dgate, 1e-6);
        let silu: Vec<f64> = want.iter().map(|act| act / 2.0).collect();
        assert_close(&format!("{variant} dup"), &grad[9..], &silu, 1e-6);
    }
}

#[test]
fn not_a_number_is_not_hidden() {
    for variant in Variant::ALL {
        let mut act = vec![0.0; 2];
        forward(variant, &[f32::NAN, 1.0, 1.0, f32::NAN], &mut act, 1, 2);
        assert!(act.iter().all(|a| a.is_nan()), "{variant}");
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    for variant in Variant::ALL {
        assert_same_for_any_threads(|| gradient(variant, cases::TESTS[4]));
    }
}
