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

/// An arena with 8-bit moments.
#[derive(Clone, PartialEq, Debug)]
struct Arena {
    p: Vec<f32>,
    m: (Vec<u8>, Vec<f32>),
    v: (Vec<u8>, Vec<f32>),
}

impl Arena {
    fn new(p: Vec<f32>) -> Self {
        let moments = (vec![0; p.len()], vec![0.0; codes::scales(p.len())]);
        Self { p, m: moments.clone(), v: moments }
    }

    fn update(&mut self, g: &[f32], groups: &[Group], seed: u32, grad_scale: f32) {
        let Self { p, m, v } = self;
        let [m, v] = [m, v].map(|(codes, scales)| eight_bit::Moments { codes, scales });
        eight_bit::update(p, g, m, v, groups, seed, grad_scale);
    }

    fn moments(&self, which: usize) -> Vec<f32> {
        let (of, decode): (_, fn(u8, f32) -> f32) =
            [(&self.m, codes::decode_first as _), (&self.v, codes::decode_second as _)][which];
        of.0.iter().enumerate().map(|(i, code)| decode(*code, of.1[i / codes::BLOCK])).collect()
    }
}

/// Two ranges with their own rates, which part anywhere in a block.
fn groups(n: usize, step: u32) -> Vec<Group> {
    let slow = Hyper { lr: 1e-3, weight_decay: 0.0, step, ..HYPER };
    vec![Group { end: n / 3, hyper: Hyper { step, ..HYPER } }, Group { end: n, hyper: slow }]
}

/// Each step from the state that the one before left: parameters exactly, moments within what codes can hold.
#[test]
fn eight_bit_updates_agree_with_f64() {
    for case in TESTS {
        let n = case.elements;
        let mut arena = Arena::new(values(case.seed, n));
        for step in 1..=5 {
            let (before, groups) = (arena.clone(), groups(n, step));
            let (m, v) = (before.moments(0), before.moments(1));
            let g = values(case.seed + u64::from(step), n);
            arena.update(&g, &groups, 7, 0.25);
            let each = (0..n).map(|i| {
                let hyper = groups.iter().find(|g| i < g.end).unwrap().hyper;
                let [p, g, m, v] = [before.p[i], g[i], m[i], v[i]].map(f64::from);
                reference::update(p, g, m, v, hyper, 0.25)
            });
            let want: Vec<(f64, f64, f64)> = each.collect();
            let p: Vec<f64> = want.iter().map(|w| w.0).collect();
            assert_close(&format!("{} p", case.name), &arena.p, &p, 1e-6);
            for (which, floor) in [(0, 2f64.powi(-17)), (1, 2f64.powi(-33))] {
                let scales = [&arena.m.1, &arena.v.1][which];
                for (i, (got, want)) in arena.moments(which).iter().zip(&want).enumerate() {
                    let want = [want.1, want.2][which];
                    let bound = (want.abs() / 8.0).max(floor * f64::from(scales[i / codes::BLOCK]));
                    let off = (f64::from(*got) - want).abs();
                    assert!(off <= bound * 1.001, "{} {which} [{i}]: {got}, exactly {want}", case.name);
                    assert!(which == 0 || want == 0.0 || *got > 0.0, "{}: {want} became 0", case.name);
                }
            }
        }
    }
}

#[test]
fn eight_bit_updates_are_the_same_for_any_threads() {
    assert_same_for_any_threads(|| {
        let mut arena = Arena::new(values(1, 100_003));
        (1..=3).for_each(|step| arena.update(&values(9, 100_003), &groups(100_003, step), 7, 1.0));
        [arena.p.clone(), arena.moments(0), arena.moments(1)].concat()
    });
}

/// The bits that round are of the seed, the step and the place: none repeats another's.
#[test]
fn eight_bit_moments_round_anew_each_time() {
    let run = |seed, step| {
        let mut arena = Arena::new(vec![0.0; 1024]);
        arena.update(&values(3, 512).repeat(2), &groups(1024, step)[1..], seed, 1.0);
        arena.m.0
    };
    let first = run(1, 1);
    assert_eq!(first, run(1, 1));
    assert_ne!(first, run(2, 1), "another seed");
    assert_ne!(first, run(1, 2), "another step");
    assert_ne!(first[..512], first[512..], "another place");
}

/// A second moment that a step moves by less than half a code still moves, on the average.
#[test]
fn eight_bit_moments_are_unbiased() {
    let (n, steps) = (256, 400);
    let mut sum = 0.0;
    for seed in 0..steps {
        let mut arena = Arena::new(vec![0.0; n]);
        let g: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / n as f32).collect();
        arena.update(&g, &groups(n, 1)[1..], seed, 1.0);
        let exact = g.iter().map(|g| f64::from(1.0 - HYPER.beta2) * f64::from(g * g));
        sum += arena.moments(1).iter().zip(exact).map(|(got, e)| f64::from(*got) / e - 1.0).sum::<f64>();
    }
    let bias = sum / f64::from(steps) / n as f64;
    // Six deviations of a mean of 10⁵ roundings, each of an eighth at most.
    assert!(bias.abs() < 6.0 / 16.0 / (f64::from(steps) * n as f64).sqrt(), "a bias of {bias}");
}

#[test]
fn what_is_not_a_number_spreads_to_its_block_alone() {
    let mut arena = Arena::new(vec![1.0; 512]);
    let mut g = vec![1.0; 512];
    g[300] = f32::NAN;
    arena.update(&g, &groups(512, 1)[1..], 7, 1.0);
    for which in 0..2 {
        let moments = arena.moments(which);
        assert!(moments[..256].iter().all(|x| x.is_finite()) && moments[256..].iter().all(|x| x.is_nan()));
    }
}
