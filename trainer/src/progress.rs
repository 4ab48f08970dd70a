//! What the losses so far say: which evaluation was the best, whether to stop early, and whether the training has diverged.
//!
//! All of it is kept in checkpoints, so that a training that goes on decides as if it had never stopped.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Weight of the newest loss in the running mean: a mean over about the last ten steps.
const NEWEST: f64 = 0.1;
/// Steps before the running mean is trusted.
const SETTLED: u32 = 5;

/// An evaluation that none has beaten.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps taken before it.
    pub step: u32,
    /// Held-out loss.
    pub loss: f64,
}

/// Running mean of the training loss, and the lowest that it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Trend {
    steps: u32,
    sum: f64,
    lowest: Option<f64>,
}

impl Trend {
    /// The mean, weighted so that the first losses count no more than later ones.
    fn mean(&self) -> f64 {
        self.sum / (1.0 - (1.0 - NEWEST).powi(self.steps.min(10_000) as i32))
    }
}

/// State of the decisions that are taken by loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    best: Option<Best>,
    /// Evaluations since the last that was better than the threshold asks for.
    without_improvement: u32,
    trend: Trend,
}

impl Default for Progress {
    fn default() -> Self {
        Self { best: None, without_improvement: 0, trend: Trend { steps: 0, sum: 0.0, lowest: None } }
    }
}

impl Progress {
    /// The best evaluation so far.
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// Whether there was an evaluation.
    pub fn is_evaluated(&self) -> bool {
        self.best.is_some() || self.without_improvement > 0
    }

    /// Takes note of an evaluation behind `step` steps, and says whether it is the best.
    ///
    /// As in Transformers, any lower loss is the new best, but only one lower by more than `threshold` makes patience begin anew.
    pub fn evaluated(&mut self, step: u32, loss: f64, threshold: f64) -> bool {
        // A loss that is no number is no gain.
        let over = self.best.map_or(f64::INFINITY, |b| b.loss - loss);
        let gain = if loss.is_finite() { over } else { 0.0 };
        self.without_improvement =
            if gain > 0.0 && gain > threshold { 0 } else { self.without_improvement + 1 };
        if gain > 0.0 {
            self.best = Some(Best { step, loss });
        }
        gain > 0.0
    }

    /// Whether so many evaluations in a row brought no improvement.
    pub fn is_exhausted(&self, patience: Option<u32>) -> bool {
        patience.is_some_and(|n| self.without_improvement >= n)
    }

    /// Takes note of the loss of a step.
    ///
    /// # Errors
    /// The running mean has risen by more than `rise` nats above its lowest: the training has diverged.
    pub fn stepped(&mut self, step: u32, loss: f64, rise: f64) -> Result<(), Error> {
        let t = &mut self.trend;
        t.steps = t.steps.saturating_add(1);
        t.sum = (1.0 - NEWEST) * t.sum + NEWEST * loss;
        let mean = t.mean();
        let lowest = t.lowest.map_or(mean, |l| l.min(mean));
        t.lowest = Some(lowest);
        if rise > 0.0 && mean > lowest + rise && t.steps >= SETTLED {
            let what =
                format!("training diverged: the running mean of the loss rose from {lowest:.3} to {mean:.3}");
            return Err(Error::new(what, format!("step {step}")).hint(
                "lower learning_rate or add warmup_steps; max_loss_rise sets how many nats are too many, 0 turns this guard off",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_as_transformers_does() {
        let mut p = Progress::default();
        assert!(!p.is_evaluated() && p.evaluated(1, 3.0, 0.1) && p.is_evaluated());
        assert!(p.evaluated(2, 2.95, 0.1), "a little better is the best all the same");
        assert!(!p.is_exhausted(Some(2)) && p.is_exhausted(Some(1)));
        assert!(!p.evaluated(3, 2.95, 0.1));
        assert!(p.is_exhausted(Some(2)) && !p.is_exhausted(None));
        assert!(p.evaluated(4, 2.0, 0.1));
        assert!(!p.is_exhausted(Some(1)));
        assert_eq!(p.best(), Some(Best { step: 4, loss: 2.0 }));
        let mut p = Progress::default();
        assert!(!p.evaluated(1, f64::NAN, 0.0) && p.is_evaluated(), "what is no number is never the best");
    }

    #[test]
    fn a_loss_that_explodes_is_found_and_noise_is_not() {
        let mut p = Progress::default();
        let noisy = |step: u32| 2.0 + if step.is_multiple_of(7) { 6.0 } else { 0.0 };
        for step in 0..200 {
            p.stepped(step, noisy(step), 3.0).unwrap();
        }
        let mut blown = p;
        let error = (200..300).find_map(|step| blown.stepped(step, 11.0, 3.0).err()).unwrap().to_string();
        assert!(error.contains("diverged") && error.contains("where: step 20"), "{error}");
        assert!((200..300).all(|step| p.stepped(step, 11.0, 0.0).is_ok()), "0 turns it off");
    }

    #[test]
    fn a_constant_loss_has_itself_for_a_mean() {
        let mut p = Progress::default();
        for step in 0..50_000 {
            p.stepped(step, 1.5, 1e-6).unwrap();
        }
        assert!((p.trend.mean() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn it_survives_a_checkpoint_to_the_bit() {
        let mut p = Progress::default();
        for step in 0..9 {
            p.stepped(step, 1.0 / f64::from(step + 3), 3.0).unwrap();
        }
        p.evaluated(9, 0.1 + 0.2, 0.0);
        let read: Progress = serde_json::from_str(&serde_json::to_string(&p).unwrap()).unwrap();
        assert_eq!(read, p);
    }
}
