//! What each of several changes brings, when what one brings depends on the others.
//!
//! Turned on one after the other, every change gets the gain of its place in the order, and another order tells another
//! story. Shapley's value is the mean over all orders: it is the only division of the total that treats equals alike, gives
//! nothing to what does nothing, and adds up. Values here are logarithms of speed, so that shares multiply.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::stats::{CONFIDENCE, quantile};

/// Which players are on: bit `i` for player `i`.
pub type Coalition = u32;

/// Most players: 2ⁿ coalitions are measured.
pub const MAX_PLAYERS: usize = 12;

/// The values of the players, whose sum is the value of all less the value of none.
///
/// `value` has every coalition of `n` players, or, with `orders`, those that the orders pass through. `None` where one is
/// missing.
pub fn shapley(n: usize, value: &BTreeMap<Coalition, f64>, orders: &[Vec<usize>]) -> Option<Vec<f64>> {
    let mut sums = vec![0.0; n];
    if orders.is_empty() {
        for (player, sum) in sums.iter_mut().enumerate() {
            for without in (0..1u32 << n).filter(|s| s >> player & 1 == 0) {
                let gain = value.get(&(without | 1 << player))? - value.get(&without)?;
                *sum += gain * weight(n, without.count_ones() as usize);
            }
        }
        return Some(sums);
    }
    for order in orders {
        let mut on = 0;
        for &player in order {
            let with = on | 1 << player;
            sums[player] += (value.get(&with)? - value.get(&on)?) / orders.len() as f64;
            on = with;
        }
    }
    Some(sums)
}

/// Share of the orders in which exactly the `before` players of a coalition come first: before! (n − 1 − before)! / n!.
fn weight(n: usize, before: usize) -> f64 {
    let factorial = |k: usize| (1..=k).map(|i| i as f64).product::<f64>();
    factorial(before) * factorial(n - 1 - before) / factorial(n)
}

/// Shapley's interaction index of two players (Grabisch and Roubens 1999): the mean of what they bring together beyond what
/// each brings alone. Above 0 they help each other. Needs every coalition.
pub fn interaction(n: usize, value: &BTreeMap<Coalition, f64>, i: usize, j: usize) -> Option<f64> {
    let (a, b) = (1u32 << i, 1u32 << j);
    let mut sum = 0.0;
    for without in (0..1u32 << n).filter(|s| s & (a | b) == 0) {
        let v = |s: Coalition| value.get(&s).copied();
        let beyond = v(without | a | b)? - v(without | a)? - v(without | b)? + v(without)?;
        sum += beyond * weight(n - 1, without.count_ones() as usize);
    }
    Some(sum)
}

/// Orders to measure when there are too many: each drawn one is followed by its reverse, which cancels what the place in the
/// order alone brings. The first is the players' own.
pub fn sampled_orders(n: usize, count: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut orders: Vec<Vec<usize>> = Vec::with_capacity(count);
    while orders.len() < count {
        let order: Vec<usize> = if orders.len().is_multiple_of(2) {
            let mut order: Vec<usize> = (0..n).collect();
            if !orders.is_empty() {
                (1..n).rev().for_each(|i| order.swap(i, rng.random_range(0..=i)));
            }
            order
        } else {
            orders[orders.len() - 1].iter().rev().copied().collect()
        };
        orders.push(order);
    }
    orders
}

/// The coalitions that a design measures, each once: every one without orders, else those that the orders pass through.
pub fn coalitions(n: usize, orders: &[Vec<usize>]) -> Vec<Coalition> {
    if orders.is_empty() {
        return (0..1u32 << n).collect();
    }
    let passed = orders.iter().flat_map(|order| {
        let mut on = 0;
        let steps = order.iter().map(move |player| {
            on |= 1 << player;
            on
        });
        std::iter::once(0).chain(steps).collect::<Vec<_>>()
    });
    passed.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// A share of the total, as a factor of speed, with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Factor {
    /// exp of the value over the medians of all rounds.
    pub factor: f64,
    /// Ends of the bootstrap interval over rounds; `None` with a single round.
    pub interval: Option<(f64, f64)>,
}

/// A division of the total.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Division {
    /// Names of the players.
    pub players: Vec<String>,
    /// Orders that were measured, as indices; empty where all coalitions were.
    pub orders: Vec<Vec<usize>>,
    /// One factor a player: their product is `total`.
    pub factors: Vec<Factor>,
    /// All on over all off.
    pub total: Factor,
    /// Factor by which two players bring more together than apart, where all coalitions were measured.
    pub interactions: Vec<(usize, usize, Factor)>,
    /// Speed relative to all off, as the players are turned on in their own order.
    pub cumulative: Vec<f64>,
}

/// Divides the gain among `players`. `rounds` has the speed of every coalition, round by round; rounds are resampled whole,
/// because what disturbs a round disturbs all of it. `None` where a coalition is missing.
pub fn divide(
    players: &[String],
    orders: &[Vec<usize>],
    rounds: &[BTreeMap<Coalition, f64>],
) -> Option<Division> {
    let n = players.len();
    let complete: Vec<&BTreeMap<Coalition, f64>> = {
        let needed = coalitions(n, orders);
        rounds.iter().filter(|r| needed.iter().all(|c| r.get(c).is_some_and(|v| *v > 0.0))).collect()
    };
    let pairs: Vec<(usize, usize)> = match orders.is_empty() {
        true => (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect(),
        false => Vec::new(),
    };
    let all: Coalition = (1 << n) - 1;
    // Total, then players, then pairs, as logarithms.
    let figures = |rounds: &[&BTreeMap<Coalition, f64>]| -> Option<Vec<f64>> {
        let value = medians(rounds)?;
        let mut out = vec![value.get(&all)? - value.get(&0)?];
        out.extend(shapley(n, &value, orders)?);
        for &(i, j) in &pairs {
            out.push(interaction(n, &value, i, j)?);
        }
        Some(out)
    };
    let centre = figures(&complete)?;
    let intervals = bootstrap(&complete, &figures);
    let factor = |k: usize| Factor {
        factor: centre[k].exp(),
        interval: intervals.as_ref().map(|all| {
            let draws: Vec<f64> = all.iter().map(|d| d[k]).collect();
            let end = |q| quantile(&draws, q).expect("draws");
            let tail = (1.0 - CONFIDENCE) / 2.0;
            (end(tail).min(centre[k]).exp(), end(1.0 - tail).max(centre[k]).exp())
        }),
    };
    let value = medians(&complete)?;
    let prefix = |k: usize| value.get(&((1 << k) - 1)).map(|v| (v - value[&0]).exp());
    Some(Division {
        players: players.to_vec(),
        orders: orders.to_vec(),
        factors: (1..=n).map(factor).collect(),
        total: factor(0),
        interactions: pairs.iter().enumerate().map(|(k, &(i, j))| (i, j, factor(1 + n + k))).collect(),
        cumulative: (0..=n).map(prefix).collect::<Option<_>>()?,
    })
}

/// Logarithm of every coalition's median speed.
fn medians(rounds: &[&BTreeMap<Coalition, f64>]) -> Option<BTreeMap<Coalition, f64>> {
    let first = rounds.first()?;
    let of = |c: &Coalition| {
        let speeds: Vec<f64> = rounds.iter().filter_map(|r| r.get(c).copied()).collect();
        Some((*c, crate::stats::median(&speeds)?.ln()))
    };
    first.keys().map(of).collect()
}

type Figures<'a> = dyn Fn(&[&BTreeMap<Coalition, f64>]) -> Option<Vec<f64>> + 'a;

fn bootstrap(rounds: &[&BTreeMap<Coalition, f64>], figures: &Figures<'_>) -> Option<Vec<Vec<f64>>> {
    const RESAMPLES: usize = 500;
    if rounds.len() < 2 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let mut draw = || {
        let drawn: Vec<_> = rounds.iter().map(|_| rounds[rng.random_range(0..rounds.len())]).collect();
        figures(&drawn)
    };
    (0..RESAMPLES).map(|_| draw()).collect()
}
