//! Changes of level: found where they are, and not where there are none.

use chronibench_analysis::changepoint::{change, changes, warmup_steps};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| 1.0 + 0.1 * (rng.random::<f64>() - 0.5)).collect()
}

#[test]
fn noise_alone_is_rarely_split() {
    let split = (0..2000).filter(|&seed| change(&noise(seed, 40)).is_some()).count();
    assert!(split <= 20, "{split} of 2000");
}

#[test]
fn a_step_is_found_where_it_is() {
    for at in [10, 20, 30] {
        let mut values = noise(3, 40);
        values[at..].iter_mut().for_each(|v| *v *= 0.7);
        let found = change(&values).unwrap();
        assert_eq!(found.at, at);
        assert!((found.after / found.before - 0.7).abs() < 0.03, "{found:?}");
    }
}

#[test]
fn several_steps_are_found_in_order() {
    let mut values = noise(5, 60);
    values[20..].iter_mut().for_each(|v| *v *= 1.5);
    values[40..].iter_mut().for_each(|v| *v *= 0.5);
    assert_eq!(changes(&values).iter().map(|c| c.at).collect::<Vec<_>>(), [20, 40]);
}

#[test]
fn short_and_constant_series_have_none() {
    for values in [vec![], vec![1.0], vec![1.0, 2.0], vec![1.0; 50]] {
        assert_eq!(change(&values), None);
    }
}

#[test]
fn a_warm_up_ends_where_steps_stop_getting_faster() {
    let mut times = noise(9, 40);
    assert_eq!(warmup_steps(&times), 0);
    times[..8].iter_mut().for_each(|t| *t *= 3.0);
    assert_eq!(warmup_steps(&times), 8);
    // A single slow step in the middle is no warm-up.
    times[25] *= 10.0;
    assert_eq!(warmup_steps(&times), 8);
    // Nor is a machine that becomes slower.
    let mut slower = noise(9, 40);
    slower[20..].iter_mut().for_each(|t| *t *= 2.0);
    assert_eq!(warmup_steps(&slower), 0);
}

/// The same by the definitions: every pair, and every median anew.
fn by_definition(values: &[f64]) -> Option<(usize, f64)> {
    let n = values.len();
    let sign = |a: f64, b: f64| f64::from(u8::from(a > b)) - f64::from(u8::from(a < b));
    let pairs = |at: usize| -> f64 {
        values[..at].iter().flat_map(|a| values[at..].iter().map(move |b| sign(*a, *b))).sum()
    };
    let k = (1..n).map(|at| pairs(at).abs()).fold(0.0, f64::max);
    let size = n as f64;
    let p = (2.0 * (-6.0 * k * k / (size.powi(3) + size.powi(2))).exp()).min(1.0);
    let median = |part: &[f64]| {
        let mut sorted = part.to_vec();
        sorted.sort_by(f64::total_cmp);
        (sorted[(part.len() - 1) / 2] + sorted[part.len() / 2]) / 2.0
    };
    let apart = |part: &[f64]| part.iter().map(|v| (v - median(part)).abs()).sum::<f64>();
    let misfit = |at: usize| apart(&values[..at]) + apart(&values[at..]);
    let least = (1..n).map(misfit).fold(f64::INFINITY, f64::min);
    let at = (1..n).find(|at| misfit(*at) <= least * (1.0 + 1e-10))?;
    (p <= 0.01).then_some((at, p))
}

#[test]
fn a_change_is_where_the_definitions_say() {
    for seed in 0..200 {
        let n = 8 + seed as usize % 60;
        let mut values = noise(seed, n);
        let at = n / 2 + seed as usize % 3;
        values[at..].iter_mut().for_each(|v| *v *= 1.0 + 0.02 * (seed % 20) as f64);
        // Equal values, as of a coarse clock.
        values.iter_mut().for_each(|v| *v = (*v * 50.0).round() / 50.0);
        let (found, defined) = (change(&values), by_definition(&values));
        match (found, defined) {
            (Some(c), Some((at, p))) => assert_eq!((c.at, c.p), (at, p), "seed {seed}"),
            (None, Some((at, _))) => {
                let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
                let change = mean(&values[at..]) / mean(&values[..at]) - 1.0;
                assert!(change.abs() < 0.06, "seed {seed}: {change}");
            }
            (found, None) => assert_eq!(found, None, "seed {seed}"),
        }
    }
}

#[test]
fn a_long_series_takes_no_long_time() {
    let mut values = noise(1, 200_000);
    values[1000..].iter_mut().for_each(|v| *v *= 0.5);
    let begun = std::time::Instant::now();
    assert_eq!(warmup_steps(&values), 1000);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}
