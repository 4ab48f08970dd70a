//! What a machine's own noise looks like to a gate: comparisons of a program with itself.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::percent;
use crate::{
    sequential::{Design, GateVerdict, LOOKS},
    stats::quantile,
};

/// Version of [`Certificate`].
pub const CERTIFICATE_SCHEMA: &str = "chronibench.noise/1";

/// Fewest comparisons of a program with itself that certify a machine.
pub const MIN_COMPARISONS: usize = 20;

/// Gates that are played again with pairs drawn from the recorded ones.
const RESAMPLES: usize = 2000;

/// Pairs that are drawn together: an ABBA block, so that what neighbours have in common stays.
const BLOCK: usize = 2;

/// What comparisons of a program with itself have shown of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Case of the scenario.
    pub case: String,
    /// Comparisons of a program with itself.
    pub comparisons: usize,
    /// Those that the test called a loss.
    pub alarms: usize,
    /// Those that passed.
    pub passed: usize,
    /// Pairs in all.
    pub pairs: usize,
    /// Standard deviation of a pair's log ratio.
    pub pair_sd: f64,
    /// Half of the comparisons changed by no more than this.
    pub p50_change: f64,
    /// 95 of 100 comparisons changed by no more than this: the least effect that a gate here can be trusted with.
    pub p95_change: f64,
    /// The largest change.
    pub max_change: f64,
    /// Share of alarms among 2,000 gates with pairs drawn from these, in blocks and with random sign.
    pub resampled_alarms: f64,
}

/// The result of `chronibench noise`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// [`CERTIFICATE_SCHEMA`].
    pub schema: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Hash of what must be the same for the certificate to hold: scenario with its changes and files, steps, machine.
    pub key: String,
    /// The machine in words.
    pub machine: String,
    /// When, RFC 3339.
    pub made_at: String,
    /// α of the gates that it certifies.
    pub alpha: f64,
    /// Least effect of those gates, as asked for. One without it was made with the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_effect: Option<f64>,
    /// After how many pairs those gates looked. One without it was made with the default, for as many cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks: Option<Vec<u32>>,
    /// Case by case.
    pub cases: Vec<Noise>,
    /// What is missing; empty on a certified machine.
    pub why_not: Vec<String>,
}

impl Certificate {
    /// The noise of a case.
    pub fn noise_of(&self, case: &str) -> Option<&Noise> {
        self.cases.iter().find(|n| n.case == case)
    }

    /// The design of the gates that were played.
    pub fn design(&self) -> Design {
        let default = Design { alpha: self.alpha, ..Design::default() };
        let looks = match &self.looks {
            Some(looks) => looks.clone(),
            None => default.clone().for_cases(self.cases.len()).map_or(default.looks.clone(), |d| d.looks),
        };
        Design { looks, min_effect: self.min_effect.unwrap_or(default.min_effect), ..default }
    }

    /// Why it says nothing of a gate of this design, for so many cases: one that is stricter, or looks at other times, was never played
    /// here. Fewer alarms or a larger least effect than asked for are no reason.
    pub fn other_design(&self, gate: &Design, cases: usize) -> Vec<String> {
        let own = self.design();
        let mut why = Vec::new();
        if own.alpha > gate.alpha {
            why.push(format!("the certificate is for α = {}, the gate asks for {}", own.alpha, gate.alpha));
        }
        if own.min_effect > gate.min_effect {
            why.push(format!(
                "the certificate is for losses of {} and more, the gate asks for {}",
                percent(own.min_effect),
                percent(gate.min_effect)
            ));
        }
        if !same_looks(&own, self.cases.len(), gate, cases) {
            why.push(format!(
                "the certificate is for looks after {} pairs, the gate looks after {}",
                counts(&own.looks),
                counts(&gate.looks)
            ));
        }
        why
    }

    /// It may take the place of `old`: it certifies as many cases, and gates that are no weaker.
    pub fn replaces(&self, old: &Certificate) -> bool {
        let covered = old.cases.iter().all(|n| self.noise_of(&n.case).is_some());
        let (new, before) = (self.design(), old.design());
        let weaker = new.alpha > before.alpha
            || new.min_effect > before.min_effect
            || new.looks.last() < before.looks.last();
        !old.is_certified() || (self.is_certified() && covered && !weaker)
    }

    /// A gate may enforce here.
    pub fn is_certified(&self) -> bool {
        self.why_not.is_empty() && !self.cases.is_empty()
    }
}

/// Looks that were asked for alike, though more cases put some of them off ([`Design::for_cases`]).
fn same_looks(a: &Design, cases_a: usize, b: &Design, cases_b: usize) -> bool {
    let planned = |k: usize, of: &Design, cases: usize| {
        let asked = Design { looks: LOOKS[..k].to_vec(), ..of.clone() };
        asked.for_cases(cases).is_some_and(|d| d.looks == of.looks)
    };
    a.looks == b.looks || (1..=LOOKS.len()).any(|k| planned(k, a, cases_a) && planned(k, b, cases_b))
}

fn counts(looks: &[u32]) -> String {
    looks.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// The noise of a case from the ratios of its comparisons, and what forbids to trust it.
pub fn certify(design: &Design, case: &str, comparisons: &[Vec<f64>]) -> (Noise, Vec<String>) {
    let logs: Vec<Vec<f64>> = comparisons.iter().map(|c| c.iter().map(|r| r.ln()).collect()).collect();
    let all: Vec<f64> = logs.iter().flatten().copied().collect();
    let last = |c: &Vec<f64>| design.looks(c).last().map(|l| l.change.abs());
    let changes: Vec<f64> = comparisons.iter().filter_map(last).collect();
    let verdicts: Vec<GateVerdict> = comparisons.iter().map(|c| design.verdict(c).0).collect();
    let count = |v: GateVerdict| verdicts.iter().filter(|x| **x == v).count();
    let at = |q| quantile(&changes, q).unwrap_or(0.0);
    let noise = Noise {
        case: case.into(),
        comparisons: changes.len(),
        alarms: count(GateVerdict::Fail),
        passed: count(GateVerdict::Pass),
        pairs: all.len(),
        // Around 0, and not around the mean: both sides are the same program.
        pair_sd: (all.iter().map(|x| x * x).sum::<f64>() / all.len().max(1) as f64).sqrt(),
        p50_change: at(0.5),
        p95_change: at(0.95),
        max_change: at(1.0),
        resampled_alarms: resampled_alarms(design, &logs),
    };
    let mut why_not = Vec::new();
    if noise.comparisons < MIN_COMPARISONS {
        why_not.push(format!("{case} has {} comparisons of {MIN_COMPARISONS}", noise.comparisons));
    }
    if noise.alarms > 0 {
        why_not.push(format!("{case} raised {} false alarms in {}", noise.alarms, noise.comparisons));
    }
    if noise.resampled_alarms > design.alpha {
        why_not.push(format!(
            "{case} raises false alarms in {:.1} % of resampled gates",
            100.0 * noise.resampled_alarms
        ));
    }
    (noise, why_not)
}

/// Share of alarms among gates whose pairs are drawn, block by block, from those of a program with itself. A block's sign is
/// random, since either side could have been called the baseline.
fn resampled_alarms(design: &Design, comparisons: &[Vec<f64>]) -> f64 {
    let blocks: Vec<&[f64]> = comparisons.iter().flat_map(|c| c.chunks_exact(BLOCK)).collect();
    let pairs = design.looks.last().copied().unwrap_or(0) as usize;
    if blocks.is_empty() {
        return 0.0;
    }
    // Every loss counts here: the level of the test is in question, and not the shelter of the least effect.
    let design = Design { min_effect: 0.0, ..design.clone() };
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut gate = || {
        let mut ratios = Vec::with_capacity(pairs);
        while ratios.len() < pairs {
            let block = blocks[rng.random_range(0..blocks.len())];
            let sign = if rng.random::<bool>() { 1.0 } else { -1.0 };
            ratios.extend(block.iter().map(|log| (sign * log).exp()));
        }
        design.verdict(&ratios).0 == GateVerdict::Fail
    };
    (0..RESAMPLES).filter(|_| gate()).count() as f64 / RESAMPLES as f64
}
