//! Where a series changes its level: the end of a warm-up, and steps in a history.
//!
//! Pettitt's test (1979) compares ranks before and after every place, so that outliers and the shape of the noise do not matter.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// Level of one test for a change; a series of noise is split about this often.
pub const ALPHA: f64 = 0.01;

/// Least relative change of the medians that is called one: less is real perhaps, and of no consequence.
pub const MIN_CHANGE: f64 = 0.02;

/// Relative error of sums over a series.
const ROUNDING: f64 = 1e-10;

/// A change of level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// First index of the new level.
    pub at: usize,
    /// Median before.
    pub before: f64,
    /// Median after.
    pub after: f64,
    /// Approximate p-value.
    pub p: f64,
}

/// The one most likely change of `values`, if there is any at [`ALPHA`] that comes to [`MIN_CHANGE`]. In n log n: a trial may have a
/// hundred thousand steps.
pub fn change(values: &[f64]) -> Option<Change> {
    let k = rank_sums(values).into_iter().map(f64::abs).fold(0.0, f64::max);
    let size = values.len() as f64;
    let p = (2.0 * (-6.0 * k * k / (size.powi(3) + size.powi(2))).exp()).min(1.0);
    if p > ALPHA {
        return None;
    }
    // The sum says whether there is a change, but leans to the middle of the series: the place is the best fit of two levels.
    let backward: Vec<f64> = values.iter().rev().copied().collect();
    let (before, after) = (distances(values), distances(&backward));
    let misfits: Vec<f64> = (0..=values.len()).map(|at| before[at] + after[values.len() - at]).collect();
    // The first of those that differ by rounding alone.
    let least = misfits[1..values.len()].iter().copied().fold(f64::INFINITY, f64::min) * (1.0 + ROUNDING);
    let at = (1..values.len()).find(|at| misfits[*at] <= least)?;
    let before = crate::stats::median(&values[..at])?;
    let after = crate::stats::median(&values[at..])?;
    let relevant = (after - before).abs() >= MIN_CHANGE * before.abs().min(after.abs());
    relevant.then_some(Change { at, before, after, p })
}

/// At every place, how many pairs across it fall less how many rise. What a value adds is what it does against all others, as pairs on one
/// side of a place cancel.
fn rank_sums(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let against_all = |v: &f64| {
        let (below, above) = (sorted.partition_point(|x| x < v), sorted.partition_point(|x| x <= v));
        below as f64 - (sorted.len() - above) as f64
    };
    let mut sum = 0.0;
    values
        .iter()
        .map(|v| {
            sum += against_all(v);
            sum
        })
        .collect()
}

/// Sums of the distances from the median, of the first 0, 1, 2, … values.
fn distances(values: &[f64]) -> Vec<f64> {
    // The lower half by its largest, the upper by its smallest; and their sums.
    let (mut low, mut high) = (BinaryHeap::new(), BinaryHeap::new());
    let (mut below, mut above) = (0.0, 0.0);
    let mut all = vec![0.0];
    for v in values {
        // By way of the lower half, whose largest then goes up.
        low.push(Key(*v));
        below += v;
        let Key(largest) = low.pop().expect("it was put in");
        (below, above) = (below - largest, above + largest);
        high.push(Reverse(Key(largest)));
        if high.len() > low.len() + 1 {
            let Reverse(Key(smallest)) = high.pop().expect("it has two");
            (below, above) = (below + smallest, above - smallest);
            low.push(Key(smallest));
        }
        let Reverse(Key(median)) = high.peek().expect("it is never the shorter");
        all.push(median * low.len() as f64 - below + above - median * high.len() as f64);
    }
    all
}

/// A number by its size.
struct Key(f64);

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

/// All changes of `values`, in order: the series is split at its most likely change, and both parts again.
pub fn changes(values: &[f64]) -> Vec<Change> {
    let Some(found) = change(values) else { return Vec::new() };
    let (left, right) = values.split_at(found.at);
    let later = |c: Change| Change { at: c.at + found.at, ..c };
    changes(left).into_iter().chain([found]).chain(changes(right).into_iter().map(later)).collect()
}

/// Steps that belong to the warm-up: those before the last change to a faster level, given the time of every step for the
/// same amount of work. A later slow-down is no warm-up, and stays in.
pub fn warmup_steps(times: &[f64]) -> usize {
    let faster = changes(times).into_iter().take_while(|c| c.after < c.before);
    faster.last().map_or(0, |c| c.at)
}
