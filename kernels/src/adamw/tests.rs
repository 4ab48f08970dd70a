use super::{cases::*, *};
use crate::{cases::values, testing::*};

const HYPER: Hyper = Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };

/// `[p, m, v]` after `steps` updates, and the same in f64.
fn run(variant: Variant, case: Case, steps: u32, grad_scale: f32) -> ([Vec<f32>; 3], [Vec<f64>; 3]) {
    let n = case.elements;
    let mut got = [values(case.seed, n), vec![0.0; n], vec![0.0; n]];
    let mut want = [wide(&got[0]), vec![0.0; n], vec![0.0; n]];
    for step in 1..=steps {
        let hyper = Hyper { step, ..HYPER };
        let g = values(case.seed + u64::from(step), n);
        let [p, m, v] = &mut got;
        update(variant, p, &mut g.clone(), m, v, hyper, grad_scale);
        let [p, m, v] = &mut want;
        for i in 0..n {
            let scale = f64::from(grad_scale);
            (p[i], m[i], v[i]) = reference::update(p[i], f64::from(g[i]), m[i], v[i], hyper, scale);
        }
    }
    (got, want)
}

#[test]
fn updates_agree_with_f64() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| TESTS.map(|c| (v, c))) {
        for (steps, grad_scale) in [(1, 1.0), (10, 0.25)] {
            let (got, want) = run(variant, case, steps, grad_scale);
            for ((name, got), want) in ["p", "m", "v"].into_iter().zip(got).zip(want) {
                assert_close(&format!("{variant} {} {name}", case.name), &got, &want, 1e-6);
            }
        }
    }
}

#[test]
fn the_first_update_is_one_learning_rate_against_the_sign() {
    // With bias correction, m̂/√v̂ is ±1 after one step, whatever the size of the gradient.
    for variant in Variant::ALL {
        let (mut p, mut g) = ([1.0, 1.0, 1.0], [3.0, -0.01, 0.0]);
        let hyper = Hyper { weight_decay: 0.0, ..HYPER };
        update(variant, &mut p, &mut g, &mut [0.0; 3], &mut [0.0; 3], hyper, 1.0);
        assert_close(&variant.to_string(), &p, &[0.99, 1.01, 1.0], 1e-6);
    }
}

#[test]
fn weight_decay_is_decoupled_from_the_gradient() {
    for variant in Variant::ALL {
        let (mut p, mut m, mut v) = ([2.0], [0.0], [0.0]);
        update(variant, &mut p, &mut [0.0], &mut m, &mut v, HYPER, 1.0);
        assert_close(&variant.to_string(), &p, &[2.0 * (1.0 - 1e-3)], 1e-7);
        assert_eq!((m, v), ([0.0], [0.0]), "the moments do not see the decay");
    }
}

#[test]
fn norm_agrees_with_f64() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| TESTS.map(|c| (v, c))) {
        let g = values(case.seed, case.elements);
        let want: f64 = wide(&g).iter().map(|g| g * g).sum();
        let got = norm_squared(variant, &g);
        assert!((got - want).abs() <= 1e-12 * (1.0 + want), "{variant} {}: {got} {want}", case.name);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| TESTS.map(|c| (v, c))) {
        assert_same_for_any_threads(|| run(variant, case, 2, 0.5).0.concat());
        assert_same_for_any_threads(|| {
            let bits = norm_squared(variant, &values(case.seed, case.elements)).to_bits();
            vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]
        });
    }
}

#[test]
#[should_panic(expected = "steps count from 1")]
fn step_zero() {
    let hyper = Hyper { step: 0, ..HYPER };
    update(Variant::Fused, &mut [], &mut [], &mut [], &mut [], hyper, 1.0);
}
