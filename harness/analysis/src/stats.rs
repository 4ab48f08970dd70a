//! Medians, intervals and the test of a falling loss.
//!
//! The unit of every interval is the trial (a process), never the step: steps of one process are not independent, and
//! an interval over them is far too narrow.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Coverage asked of every interval.
pub const CONFIDENCE: f64 = 0.95;

/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 2000;

/// Fewest trials of a side, or pairs, whose interval a claim may rest on: a bootstrap's interval is no wider than the range of
/// the values, and of fewer than six the range holds the true median less often than [`CONFIDENCE`] ([`range_coverage`]).
pub const FEWEST_FOR_A_CLAIM: usize = 6;

/// Fewest pairs that may say that a target is reached, or missed. A target is one-sided: that all of n pairs pass a ratio which the true
/// median misses has a probability of at most 2⁻ⁿ, and of five pairs that is 3.1 %.
pub const FEWEST_FOR_A_TARGET: usize = 5;

/// One seed for all bootstraps, so that a rebuilt report is byte-identical.
const SEED: u64 = 0x5eed;

/// Standard errors by which the mean loss of the last third must lie below that of the first third. A flat loss passes
/// by luck in about one trial of 44 (normal approximation, one-sided).
pub const LOSS_FALL_MIN_Z: f64 = 2.0;

/// Fewest steps on which [`loss_fall`] says anything: three in each third.
pub const LOSS_FALL_MIN_STEPS: usize = 9;

/// A median over trials with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Median over trials.
    pub median: f64,
    /// Ends of the [`CONFIDENCE`] interval; `None` with a single trial.
    pub interval: Option<(f64, f64)>,
    /// Trials.
    pub n: usize,
}

/// Quantile `q` in `[0, 1]` by linear interpolation between order statistics (type 7 of Hyndman and Fan 1996); `None`
/// for an empty slice. Values that are not finite must be removed before.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_sorted(&sorted, q)
}

fn quantile_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    // The two ends meet exactly when the position is a whole number or the values are equal.
    Some(if low == high { low } else { low + (high - low) * position.fract() })
}

/// Median; `None` for an empty slice.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Arithmetic mean; `None` for an empty slice.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Median over trials with a seeded percentile-bootstrap interval; `None` without a finite value.
///
/// With few trials the interval is no wider than their range, which holds the true median with probability
/// 1 − 2^(1−n) only (75 % for three trials): see [`range_coverage`].
pub fn median_estimate(values: &[f64]) -> Option<Estimate> {
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let centre = median(&values)?;
    let n = values.len();
    if n < 2 {
        return Some(Estimate { median: centre, interval: None, n });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = vec![0.0; n];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            draw.iter_mut().for_each(|d| *d = values[rng.random_range(0..n)]);
            draw.sort_by(f64::total_cmp);
            quantile_sorted(&draw, 0.5).expect("at least two values")
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let end = |q| quantile_sorted(&medians, q).expect("RESAMPLES > 0");
    Some(Estimate { median: centre, interval: Some((end(tail).min(centre), end(1.0 - tail).max(centre))), n })
}

/// Ratio of two cases from pairs `(numerator, denominator)` measured in the same round: exp of the median log ratio with
/// its bootstrap interval over rounds. Pairs that are not both positive and finite are left out.
pub fn ratio_estimate(pairs: &[(f64, f64)]) -> Option<Estimate> {
    let good = |v: f64| v.is_finite() && v > 0.0;
    let logs: Vec<f64> =
        pairs.iter().filter(|(a, b)| good(*a) && good(*b)).map(|(a, b)| (a / b).ln()).collect();
    let e = median_estimate(&logs)?;
    Some(Estimate {
        median: e.median.exp(),
        interval: e.interval.map(|(low, high)| (low.exp(), high.exp())),
        n: e.n,
    })
}

/// Ratio of the medians of two independent series, with its bootstrap interval: each is resampled by itself. `None` unless
/// both have a positive, finite value; others are left out.
pub fn median_ratio(numerator: &[f64], denominator: &[f64]) -> Option<Estimate> {
    let good = |v: &[f64]| -> Vec<f64> { v.iter().copied().filter(|x| x.is_finite() && *x > 0.0).collect() };
    let (a, b) = (good(numerator), good(denominator));
    let centre = median(&a)? / median(&b)?;
    let n = a.len().min(b.len());
    if n < 2 {
        return Some(Estimate { median: centre, interval: None, n });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = |v: &[f64]| {
        let drawn: Vec<f64> = v.iter().map(|_| v[rng.random_range(0..v.len())]).collect();
        median(&drawn).expect("a value")
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| draw(&a) / draw(&b)).collect();
    ratios.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let end = |q| quantile_sorted(&ratios, q).expect("RESAMPLES > 0");
    Some(Estimate { median: centre, interval: Some((end(tail).min(centre), end(1.0 - tail).max(centre))), n })
}

/// Probability that the range of `n` independent values holds their true median: 1 − 2^(1−n).
pub fn range_coverage(n: usize) -> f64 {
    if n == 0 { 0.0 } else { 1.0 - 2f64.powi(1 - n as i32) }
}

/// Comparison of the first and the last third of a loss curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossFall {
    /// Mean loss of the first third.
    pub first: f64,
    /// Mean loss of the last third.
    pub last: f64,
    /// Standard error of the difference (Welch: from the spread of each third).
    pub std_error: f64,
}

impl LossFall {
    /// Standard errors by which the loss fell; infinite for a fall without any spread.
    pub fn z(&self) -> f64 {
        let fall = self.first - self.last;
        if fall == 0.0 { 0.0 } else { fall / self.std_error }
    }

    /// The fall is at least [`LOSS_FALL_MIN_Z`] standard errors.
    pub fn falls(&self) -> bool {
        self.z() >= LOSS_FALL_MIN_Z
    }
}

/// Mean of the last third against the mean of the first third; `None` under [`LOSS_FALL_MIN_STEPS`] steps or with a loss
/// that is not finite.
///
/// Thirds are used and not a fitted line because a loss curve bends: it falls steeply, then slowly, and the residuals of a
/// line would count the bend as noise.
pub fn loss_fall(losses: &[f64]) -> Option<LossFall> {
    if losses.len() < LOSS_FALL_MIN_STEPS || losses.iter().any(|l| !l.is_finite()) {
        return None;
    }
    let third = losses.len() / 3;
    let (first, last) = (&losses[..third], &losses[losses.len() - third..]);
    let moments = |part: &[f64]| {
        let m = part.iter().sum::<f64>() / third as f64;
        let var = part.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (third - 1) as f64;
        (m, var / third as f64)
    };
    let ((m1, v1), (m2, v2)) = (moments(first), moments(last));
    Some(LossFall { first: m1, last: m2, std_error: (v1 + v2).sqrt() })
}
