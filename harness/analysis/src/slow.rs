//! Steps that are slow again and again, at the same place in most trials of a case: a program that compiles or tunes itself for a new
//! shape inside the timed steps. Such a step is work that was timed, so every figure has it; what the figures would be without is said
//! beside them.

use std::collections::BTreeMap;

use chronibench_protocol::event::Phase;
use serde::{Deserialize, Serialize};

use crate::{
    metrics::TrialMetrics,
    stats::{Estimate, median, median_estimate},
    trial::TrialLog,
};

/// A step is slow whose slots take more than this many times as long as those of the trial's median timed step.
pub const SLOW: f64 = 3.0;

/// Fewest trials in which a step must be slow: one alone cannot tell a neighbour's disturbance from the program's own doing.
const FEWEST: usize = 2;

/// A step that is slow in most trials of a case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlowStep {
    /// Index of the step.
    pub step: u32,
    /// VALID trials in which it is slow.
    pub trials: usize,
    /// Seconds that it takes in these, least and most.
    pub seconds: (f64, f64),
    /// Seconds that as many slots take in the median timed step, median over the same trials.
    pub usual_s: f64,
}

/// The steps of a case that are slow in most of its trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlowSteps {
    /// The steps, in order.
    pub steps: Vec<SlowStep>,
    /// VALID trials of the case.
    pub of: usize,
    /// Share of the timed time that they take together, least and most over the trials that have one.
    pub share: (f64, f64),
    /// Real tokens/s if the slots of these steps took as long as those of the median timed step.
    pub real_tokens_per_s_without: Option<Estimate>,
}

/// Times of a trial's timed steps.
struct Times {
    /// Step → seconds, slots.
    steps: BTreeMap<u32, (f64, f64)>,
    /// Seconds of a slot in the median step.
    slot_s: f64,
}

impl Times {
    fn of(log: &TrialLog) -> Option<Self> {
        let counted = log.counted();
        let timed = log.steps.iter().map(|s| &s.event).filter(|s| s.phase == Phase::Timed);
        let steps: BTreeMap<u32, (f64, f64)> = timed
            .filter_map(|s| {
                let slots = counted.get(&s.step)?.slots as f64;
                let seconds = s.end_ns.saturating_sub(s.start_ns) as f64 * 1e-9;
                (slots > 0.0).then_some((s.step, (seconds, slots)))
            })
            .collect();
        let slot_s = median(&steps.values().map(|(s, slots)| s / slots).collect::<Vec<_>>())?;
        (slot_s > 0.0).then_some(Self { steps, slot_s })
    }

    /// The step where it is slow: its seconds, and those that it would take at the median.
    fn slow(&self, step: u32) -> Option<(f64, f64)> {
        let (seconds, slots) = *self.steps.get(&step)?;
        let usual = self.slot_s * slots;
        (seconds > SLOW * usual).then_some((seconds, usual))
    }

    /// Of these steps the seconds of those that are slow here, and what of it is beyond the median.
    fn all(&self, steps: &[SlowStep]) -> (f64, f64) {
        let slow = steps.iter().filter_map(|s| self.slow(s.step));
        slow.fold((0.0, 0.0), |(all, beyond), (s, usual)| (all + s, beyond + s - usual))
    }
}

/// The steps that are slow in more than half of a case's VALID trials, and in two at least; `None` where there is none.
pub(crate) fn slow_steps(valid: &[(&TrialLog, &TrialMetrics)]) -> Option<SlowSteps> {
    let times: Vec<Times> = valid.iter().filter_map(|(log, _)| Times::of(log)).collect();
    let mut seen: BTreeMap<u32, Vec<(f64, f64)>> = BTreeMap::new();
    for trial in &times {
        for step in trial.steps.keys() {
            seen.entry(*step).or_default().extend(trial.slow(*step));
        }
    }
    let recurs = |slow: &Vec<(f64, f64)>| slow.len() >= FEWEST && 2 * slow.len() > valid.len();
    let steps: Vec<SlowStep> = seen
        .into_iter()
        .filter(|(_, slow)| recurs(slow))
        .filter_map(|(step, slow)| {
            let usual: Vec<f64> = slow.iter().map(|s| s.1).collect();
            let seconds = range(slow.iter().map(|s| s.0))?;
            Some(SlowStep { step, trials: slow.len(), seconds, usual_s: median(&usual)? })
        })
        .collect();
    let shares = valid.iter().filter_map(|(log, m)| {
        let (slow, _) = Times::of(log)?.all(&steps);
        (slow > 0.0 && m.timed_s > 0.0).then(|| slow / m.timed_s)
    });
    let share = range(shares)?;
    let rates: Vec<f64> = valid.iter().filter_map(|trial| rate_without(*trial, &steps)).collect();
    Some(SlowSteps { steps, of: valid.len(), share, real_tokens_per_s_without: median_estimate(&rates) })
}

/// Real tokens/s of a trial if those of `steps` that are slow in it took as long as the median timed step, slot by slot.
pub(crate) fn rate_without((log, m): (&TrialLog, &TrialMetrics), steps: &[SlowStep]) -> Option<f64> {
    let beyond = Times::of(log).map_or(0.0, |t| t.all(steps).1);
    let seconds = m.timed_s - beyond;
    // A step that is longer than its window has other clocks than the windows: nothing follows from it.
    (seconds > 0.0).then_some(())?;
    m.real_tokens_per_s.map(|rate| rate * m.timed_s / seconds)
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, x| match ends {
        None => Some((x, x)),
        Some((least, most)) => Some((f64::min(least, x), f64::max(most, x))),
    })
}
