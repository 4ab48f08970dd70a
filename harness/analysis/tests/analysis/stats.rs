//! Known answers, and properties that hold for any data.

use chronibench_analysis::stats::{
    CONFIDENCE, Estimate, FEWEST_FOR_A_CLAIM, LOSS_FALL_MIN_STEPS, loss_fall, median, median_estimate,
    median_ratio, quantile, range_coverage, ratio_estimate,
};
use proptest::prelude::*;

#[test]
fn quantiles_of_known_data() {
    let x = [4.0, 1.0, 3.0, 2.0];
    assert_eq!(median(&x), Some(2.5));
    assert_eq!(quantile(&x, 0.0), Some(1.0));
    assert_eq!(quantile(&x, 1.0), Some(4.0));
    assert_eq!(quantile(&x, 0.25), Some(1.75));
    assert_eq!(median(&[7.0]), Some(7.0));
    assert_eq!(median(&[]), None);
}

#[test]
fn small_samples_give_their_range() {
    let e = median_estimate(&[10.0, 12.0, 11.0]).unwrap();
    assert_eq!(e, Estimate { median: 11.0, interval: Some((10.0, 12.0)), n: 3 });
    assert_eq!(median_estimate(&[5.0]).unwrap().interval, None);
    assert_eq!(median_estimate(&[]), None);
    assert_eq!(median_estimate(&[f64::NAN, 3.0]).unwrap().n, 1);
    assert_eq!(range_coverage(3), 0.75);
    assert!(range_coverage(FEWEST_FOR_A_CLAIM) >= CONFIDENCE);
    assert!(range_coverage(FEWEST_FOR_A_CLAIM - 1) < CONFIDENCE);
}

/// With many trials the interval is narrower than the range. For 1..=25 the exact interval of order statistics is
/// [8, 18] (ranks of the binomial), and the bootstrap comes near it.
#[test]
fn larger_samples_give_less_than_their_range() {
    let x: Vec<f64> = (1..=25).map(f64::from).collect();
    let (low, high) = median_estimate(&x).unwrap().interval.unwrap();
    assert!((7.0..=10.0).contains(&low) && (16.0..=19.0).contains(&high), "{low} {high}");
}

#[test]
fn ratios_are_paired() {
    // Each round is slower than the one before, for both alike: the ratio is exactly 2 in every round.
    let e = ratio_estimate(&[(200.0, 100.0), (100.0, 50.0), (20.0, 10.0)]).unwrap();
    assert!((e.median - 2.0).abs() < 1e-12);
    let (low, high) = e.interval.unwrap();
    assert!((low - 2.0).abs() < 1e-12 && (high - 2.0).abs() < 1e-12);
    assert_eq!(ratio_estimate(&[(1.0, 0.0), (-1.0, 2.0)]), None);
}

#[test]
fn loss_fall_of_known_data() {
    let fall = loss_fall(&[5.0, 6.0, 7.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0]).unwrap();
    assert_eq!((fall.first, fall.last), (6.0, 2.0));
    // Each third has variance 1, so that the error of a mean of 3 is sqrt(1/3).
    assert!((fall.std_error - (2.0f64 / 3.0).sqrt()).abs() < 1e-12);
    assert!((fall.z() - 4.0 / (2.0f64 / 3.0).sqrt()).abs() < 1e-12);
    assert!(fall.falls());
    assert!(!loss_fall(&[1.0; 9]).unwrap().falls());
    assert!(loss_fall(&[9.0, 9.0, 9.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0]).unwrap().falls());
    assert_eq!(loss_fall(&[1.0; LOSS_FALL_MIN_STEPS - 1]), None);
    assert_eq!(loss_fall(&[f64::NAN; 9]), None);
}

fn values() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(1e-3..1e6f64, 1..12)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn interval_holds_the_estimate_within_the_range(x in values()) {
        let e = median_estimate(&x).unwrap();
        prop_assert_eq!(e.n, x.len());
        let (min, max) = (quantile(&x, 0.0).unwrap(), quantile(&x, 1.0).unwrap());
        let (low, high) = e.interval.unwrap_or((e.median, e.median));
        prop_assert!(min <= low && low <= e.median && e.median <= high && high <= max);
    }

    #[test]
    fn scaling_scales(x in values(), factor in 0.01..100.0f64) {
        let scaled: Vec<f64> = x.iter().map(|v| v * factor).collect();
        let (a, b) = (median_estimate(&x).unwrap(), median_estimate(&scaled).unwrap());
        prop_assert!(close(a.median * factor, b.median));
        if let (Some((l, h)), Some((sl, sh))) = (a.interval, b.interval) {
            prop_assert!(close(l * factor, sl) && close(h * factor, sh));
        }
    }

    #[test]
    fn same_data_same_interval(x in values()) {
        prop_assert_eq!(median_estimate(&x), median_estimate(&x));
    }

    #[test]
    fn swapping_the_sides_inverts_the_ratio_of_odd_rounds(
        pairs in prop::collection::vec((1.0..1e4f64, 1.0..1e4f64), 1..8)
    ) {
        let swapped: Vec<(f64, f64)> = pairs.iter().map(|&(a, b)| (b, a)).collect();
        let (r, s) = (ratio_estimate(&pairs).unwrap(), ratio_estimate(&swapped).unwrap());
        prop_assert!(close(r.median * s.median, 1.0));
    }

    #[test]
    fn quantile_is_monotone(x in values(), a in 0.0..=1.0f64, b in 0.0..=1.0f64) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(quantile(&x, low).unwrap() <= quantile(&x, high).unwrap());
    }

    #[test]
    fn a_shift_does_not_change_the_fall(x in prop::collection::vec(0.5..8.0f64, 9..60), shift in 0.0..100.0f64) {
        let moved: Vec<f64> = x.iter().map(|v| v + shift).collect();
        let (a, b) = (loss_fall(&x).unwrap(), loss_fall(&moved).unwrap());
        prop_assert!(((a.first - a.last) - (b.first - b.last)).abs() < 1e-9);
        prop_assert!((a.std_error - b.std_error).abs() < 1e-9);
    }
}

#[test]
fn a_ratio_of_medians_resamples_each_side_by_itself() {
    let a = [2.0, 2.2, 1.8, 2.1, 1.9, f64::NAN, -1.0];
    let b = [1.0, 1.1, 0.9];
    let e = median_ratio(&a, &b).unwrap();
    assert_eq!((e.median, e.n), (2.0, 3));
    let (low, high) = e.interval.unwrap();
    assert!((1.8 / 1.1..1.9).contains(&low) && (2.1..=2.2 / 0.9).contains(&high), "{low} {high}");
    assert_eq!(median_ratio(&a, &b), Some(e), "seeded");
    assert_eq!(median_ratio(&[3.0], &[2.0]).unwrap().interval, None);
    assert_eq!(median_ratio(&a, &[]), None);
}
