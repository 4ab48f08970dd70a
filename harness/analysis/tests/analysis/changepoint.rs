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
