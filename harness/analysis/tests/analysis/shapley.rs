//! Shapley values against the definition, worked out order by order.

use std::collections::BTreeMap;

use chronibench_analysis::shapley::{coalitions, divide, interaction, sampled_orders, shapley};
use proptest::prelude::*;

/// All orders of `n` players.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(n - 1);
    shorter
        .iter()
        .flat_map(|o| {
            (0..n).map(move |at| {
                let mut order = o.clone();
                order.insert(at, n - 1);
                order
            })
        })
        .collect()
}

fn game(values: &[f64]) -> BTreeMap<u32, f64> {
    values.iter().enumerate().map(|(s, v)| (s as u32, *v)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_values_are_the_mean_over_all_orders_and_add_up(
        (n, values) in (1usize..6).prop_flat_map(|n| (Just(n), prop::collection::vec(-2.0..2.0f64, 1 << n)))
    ) {
        let value = game(&values);
        let exact = shapley(n, &value, &[]).unwrap();
        let by_orders = shapley(n, &value, &orders(n)).unwrap();
        for (a, b) in exact.iter().zip(&by_orders) {
            prop_assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
        let total = values[(1 << n) - 1] - values[0];
        prop_assert!((exact.iter().sum::<f64>() - total).abs() < 1e-9);
        let sampled = shapley(n, &value, &sampled_orders(n, 4, 1)).unwrap();
        prop_assert!((sampled.iter().sum::<f64>() - total).abs() < 1e-9, "any set of orders adds up");
    }

    #[test]
    fn players_that_do_not_meet_do_not_interact(gains in prop::collection::vec(-1.0..1.0f64, 2..6)) {
        let n = gains.len();
        let of = |s: u32| (0..n).filter(|i| s >> i & 1 == 1).map(|i| gains[i]).sum();
        let value: BTreeMap<u32, f64> = (0..1u32 << n).map(|s| (s, of(s))).collect();
        for (a, b) in shapley(n, &value, &[]).unwrap().iter().zip(&gains) {
            prop_assert!((a - b).abs() < 1e-12);
        }
        for (i, j) in (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))) {
            prop_assert!(interaction(n, &value, i, j).unwrap().abs() < 1e-12);
        }
    }
}

#[test]
fn two_that_only_work_together_share_alike() {
    let value = game(&[0.0, 0.0, 0.0, 1.0]);
    assert_eq!(shapley(2, &value, &[]).unwrap(), [0.5, 0.5]);
    assert_eq!(interaction(2, &value, 0, 1), Some(1.0));
}

#[test]
fn designs_measure_what_they_need() {
    assert_eq!(coalitions(3, &[]).len(), 8);
    let orders = sampled_orders(6, 4, 0);
    assert_eq!(orders[0], [0, 1, 2, 3, 4, 5]);
    assert_eq!(orders[1], [5, 4, 3, 2, 1, 0]);
    let measured = coalitions(6, &orders);
    assert!(measured.contains(&0) && measured.contains(&63) && measured.len() < 64);
    let value: BTreeMap<u32, f64> = measured.iter().map(|s| (*s, f64::from(s.count_ones()))).collect();
    assert!(shapley(6, &value, &orders).is_some());
    assert_eq!(shapley(6, &value, &[]), None, "not every coalition was measured");
}

#[test]
fn factors_multiply_to_the_total_and_cover_the_truth() {
    // 1.5 × 1.2, and 1.1 more together.
    let players: Vec<String> = ["a", "b"].map(String::from).into();
    let round = |wobble: f64| {
        let speed = [1.0, 1.5, 1.2, 1.5 * 1.2 * 1.1].map(|v| 100.0 * v * wobble);
        speed.iter().enumerate().map(|(s, v)| (s as u32, *v)).collect::<BTreeMap<_, _>>()
    };
    let rounds: Vec<_> = [0.99, 1.0, 1.02, 0.98, 1.01].map(round).into();
    let d = divide(&players, &[], &rounds).unwrap();
    let product: f64 = d.factors.iter().map(|f| f.factor).product();
    assert!((product / d.total.factor - 1.0).abs() < 1e-12);
    assert!((d.factors[0].factor - 1.5 * 1.1f64.sqrt()).abs() < 1e-9);
    assert!((d.interactions[0].2.factor - 1.1).abs() < 1e-9);
    let (low, high) = d.factors[0].interval.unwrap();
    assert!(low <= d.factors[0].factor && d.factors[0].factor <= high);
    assert!((d.cumulative[1] - 1.5).abs() < 1e-9 && (d.cumulative[2] - 1.98).abs() < 1e-9);
    // A round without one of the coalitions is left out; with none left there is no division.
    let mut partial = round(1.0);
    partial.remove(&3);
    assert_eq!(divide(&players, &[], &[partial]), None);
}
