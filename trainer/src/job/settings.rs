//! Settings that are checked against each other, and what follows from them.

use chronibench_protocol::event::Precision;

use super::Job;
use crate::{
    error::Error,
    metrics::{Options, peak_flops},
};

impl Job {
    /// What stops early or looks for the best has evaluations to go by.
    pub(super) fn check_stopping(&self, evaluates: bool) -> Result<(), Error> {
        let refuse = |what: &str, at: &str, hint: &str| Err(Error::new(what, at).hint(hint));
        let in_range = |x: f64| x >= 0.0 && x.is_finite();
        let asked = [
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
        ];
        match asked.iter().find(|(_, on)| *on) {
            Some((name, _)) if !evaluates || self.eval_steps.is_none() => refuse(
                "there are no evaluations to go by",
                name,
                "set eval_steps, and data.validation_split or data.validation_path",
            ),
            _ if self.early_stopping_patience == Some(0) => {
                refuse("a patience of 0 ends before it begins", "early_stopping_patience", "give 1 or more")
            }
            _ if !in_range(self.early_stopping_threshold) => {
                refuse("out of range", "early_stopping_threshold", "give a number of 0 or more")
            }
            _ if !in_range(self.max_loss_rise) => {
                refuse("out of range", "max_loss_rise", "give a number of nats, or 0 for no limit")
            }
            _ if self.peak_tflops.is_some_and(|t| t <= 0.0 || !t.is_finite()) => {
                refuse("out of range", "peak_tflops", "give a number above 0, or leave it out")
            }
            _ => Ok(()),
        }
    }

    /// What is written of a training on that device.
    pub fn metrics(&self, device: &str, precision: &Precision) -> Options {
        let known = || peak_flops(device).filter(|_| precision.weights == "bf16");
        Options {
            every: self.logging_steps,
            reports: self.report_to.clone(),
            peak: self.peak_tflops.map(|t| t * 1e12).or_else(known),
        }
    }
}
