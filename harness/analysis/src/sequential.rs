//! Is the candidate slower? A test of paired log ratios that may stop early.
//!
//! The unit is a pair: one process of the baseline and one of the candidate, run one after the other, every second pair in
//! the other order. After some numbers of pairs ([`Design::looks`]) the mean log ratio is looked at with a bound of Student's t.
//! Each look spends its part of α, in proportion to the pairs that it adds, so that all looks together err no more often than
//! one would. The bound counts on no correlation between looks (the union bound): it is right for few degrees of freedom,
//! where the usual normal approximation is not. From [`FLIP_FROM`] pairs on a loss must also be rare among all assignments of
//! signs, which needs no distribution. A look that has too few pairs for that is put off ([`Design::for_cases`]).

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::stats::{Estimate, mean, ratio_estimate};

/// Numbers of pairs after which a gate looks: each is a number of whole ABBA blocks.
pub const LOOKS: [u32; 4] = [4, 6, 8, 12];

/// Fewest pairs whose signs can be flipped in enough ways: with fewer, no p-value reaches 1 %.
pub const FLIP_FROM: usize = 8;

/// Most pairs that a design is given: 2²⁰ assignments of signs are counted in some milliseconds, and reach a level of 10⁻⁶.
pub const MOST_PAIRS: u32 = 20;

/// What a gate is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Design {
    /// Probability of an alarm where nothing has changed, over all looks.
    pub alpha: f64,
    /// Least loss that matters, as a share: 0.015 is 1.5 %.
    pub min_effect: f64,
    /// Numbers of pairs after which is looked, increasing.
    pub looks: Vec<u32>,
}

impl Default for Design {
    fn default() -> Self {
        Self { alpha: 0.01, min_effect: 0.015, looks: LOOKS.to_vec() }
    }
}

/// What a look, or a gate, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GateVerdict {
    /// No loss of [`Design::min_effect`] or more, at the level of the look.
    Pass,
    /// Neither a loss nor its absence could be shown.
    Inconclusive,
    /// Slower: the whole bound lies below no change, and the loss is one that matters.
    Fail,
    /// A trial is not valid, or the sides are not comparable: the figures say nothing.
    Invalid,
}

impl GateVerdict {
    /// The name, as stored.
    pub fn name(self) -> &'static str {
        match self {
            GateVerdict::Pass => "PASS",
            GateVerdict::Inconclusive => "INCONCLUSIVE",
            GateVerdict::Fail => "FAIL",
            GateVerdict::Invalid => "INVALID",
        }
    }
}

/// The state after some pairs. Changes are shares: −0.03 is 3 % slower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Pairs seen.
    pub pairs: u32,
    /// One-sided level that this look spends, for each of the two bounds.
    pub level: f64,
    /// Change of speed: exp of the mean log ratio, minus 1.
    pub change: f64,
    /// One-sided lower bound of the change.
    pub lower: f64,
    /// One-sided upper bound of the change.
    pub upper: f64,
    /// Share of sign assignments whose mean is as low: from [`FLIP_FROM`] pairs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip_p: Option<f64>,
    /// `Inconclusive` before the last look means: go on.
    pub verdict: GateVerdict,
}

impl Design {
    /// The same, fit for a gate of so many cases, which share α. Of n pairs no p-value is below 2⁻ⁿ: a look of [`FLIP_FROM`]
    /// pairs or more that could never call a loss at a case's part of α is put off to the first whole block that can.
    /// `None` where even [`MOST_PAIRS`] pairs are too few.
    #[must_use]
    pub fn for_cases(mut self, cases: usize) -> Option<Self> {
        let alpha = self.alpha / cases.max(1) as f64;
        let least = (2..=MOST_PAIRS).step_by(2).find(|n| 0.5f64.powi(*n as i32) <= alpha)?;
        self.looks.iter_mut().filter(|n| **n as usize >= FLIP_FROM).for_each(|n| *n = (*n).max(least));
        self.looks.dedup();
        Some(self)
    }

    /// One-sided level of the look at index `i`: its pairs' part of α.
    pub fn level(&self, i: usize) -> f64 {
        let before = if i == 0 { 0 } else { self.looks[i - 1] };
        let last = *self.looks.last().expect("a design has looks");
        self.alpha * f64::from(self.looks[i] - before) / f64::from(last)
    }

    /// The looks that `ratios` (candidate over baseline, one a pair, in order) are enough for, up to the one that decides.
    pub fn looks(&self, ratios: &[f64]) -> Vec<Look> {
        let logs: Vec<f64> = ratios.iter().map(|r| r.ln()).collect();
        let mut looks = Vec::new();
        for (i, &pairs) in self.looks.iter().enumerate() {
            let Some(seen) = logs.get(..pairs as usize) else { break };
            let look = self.look(seen, self.level(i));
            let decided = look.verdict != GateVerdict::Inconclusive;
            looks.push(look);
            if decided {
                break;
            }
        }
        looks
    }

    /// The verdict on `ratios`, and whether it is final: decided, or no look left.
    pub fn verdict(&self, ratios: &[f64]) -> (GateVerdict, bool) {
        let looks = self.looks(ratios);
        let verdict = looks.last().map_or(GateVerdict::Inconclusive, |l| l.verdict);
        (verdict, verdict != GateVerdict::Inconclusive || looks.len() == self.looks.len())
    }

    /// Pairs to be run before the look after one at `pairs`; `None` after the last.
    pub fn next(&self, pairs: u32) -> Option<u32> {
        self.looks.iter().copied().find(|&n| n > pairs)
    }

    fn look(&self, logs: &[f64], level: f64) -> Look {
        let n = logs.len() as f64;
        let centre = mean(logs).expect("a look has pairs");
        let apart: Vec<f64> = logs.iter().map(|x| x - centre).collect();
        let variance = apart.iter().map(|x| x * x).sum::<f64>() / (n - 1.0);
        let reach = t_quantile(1.0 - level, n - 1.0) * (variance * memory(&apart) / n).sqrt();
        let share = |log: f64| log.exp() - 1.0;
        let (change, lower, upper) = (share(centre), share(centre - reach), share(centre + reach));
        let flip_p = (logs.len() >= FLIP_FROM).then(|| sign_flip_p(logs));
        let slower = upper < 0.0 && -change >= self.min_effect && flip_p.is_none_or(|p| p <= self.alpha);
        let verdict = match slower {
            true => GateVerdict::Fail,
            false if lower > -self.min_effect => GateVerdict::Pass,
            false => GateVerdict::Inconclusive,
        };
        Look { pairs: logs.len() as u32, level, change, lower, upper, flip_p, verdict }
    }
}

/// By how much neighbouring pairs that resemble each other widen the variance of a mean: 1 + 2 r₁ for the first
/// autocorrelation r₁ of the deviations, where it is positive. Never narrower than independence makes it.
fn memory(apart: &[f64]) -> f64 {
    let all: f64 = apart.iter().map(|x| x * x).sum();
    let neighbours: f64 = apart.windows(2).map(|w| w[0] * w[1]).sum();
    if neighbours > 0.0 { 1.0 + 2.0 * neighbours / all } else { 1.0 }
}

/// Median ratio with its bootstrap interval over pairs, for the reader; the verdict is [`Design::looks`]'s.
pub fn median_ratio_of(ratios: &[f64]) -> Option<Estimate> {
    ratio_estimate(&ratios.iter().map(|&r| (r, 1.0)).collect::<Vec<_>>())
}

/// Quantile of Student's t with `df` ≥ 1 degrees of freedom.
pub fn t_quantile(p: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).expect("positive degrees of freedom").inverse_cdf(p)
}

/// One-sided p-value of a mean below 0: the share of all 2ⁿ assignments of signs whose sum is no greater than the one
/// seen, which is one of them. Exact where a pair's two orders are exchangeable. `n` is at most 24 here.
pub fn sign_flip_p(values: &[f64]) -> f64 {
    assert!(values.len() <= 24, "2^{} assignments are too many", values.len());
    let seen: f64 = values.iter().sum();
    // Equal sums may differ in their last bits, by the order of additions.
    let slack = 1e-12 * values.iter().map(|v| v.abs()).sum::<f64>();
    let flipped = |signs: u32| -> f64 {
        values.iter().enumerate().map(|(i, v)| if signs >> i & 1 == 1 { -v } else { *v }).sum()
    };
    let all = 1u32 << values.len();
    (0..all).filter(|&signs| flipped(signs) <= seen + slack).count() as f64 / f64::from(all)
}
