//! Settings that are checked against each other, and what follows from them.

use std::path::Path;

use chronibench_protocol::{event::Precision, peak::peak_gflops};

use super::Job;
use crate::{error::Error, metrics::Options};

impl Job {
    /// What is written does not go over what is read.
    pub(super) fn check_places(&self) -> Result<(), Error> {
        let Some(weights) = &self.model.weights else { return Ok(()) };
        let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(Path::new("")) };
        let whole = |path: &Path| path.canonicalize().ok();
        if whole(&self.output_dir).is_some_and(|out| whole(folder) == Some(out)) {
            return Err(Error::new(
                "the folder holds the model that is trained",
                format!("output_dir, {}", self.output_dir.display()),
            )
            .hint("give a folder of its own: what is written would go over the model's files"));
        }
        Ok(())
    }

    /// Numbers of steps between things, and of things, of which 0 says nothing.
    fn check_counts(&self) -> Result<(), Error> {
        let counts = [
            ("logging_steps", Some(self.logging_steps), "give 1 for a line of every step"),
            ("save_steps", self.save_steps, "leave it out for no checkpoints"),
            ("save_total_limit", self.save_total_limit, "leave it out to keep all checkpoints"),
            ("eval_steps", self.eval_steps, "leave it out to evaluate after the last step alone"),
        ];
        match counts.iter().find(|(_, n, _)| *n == Some(0)) {
            Some((name, _, hint)) => Err(Error::new("it is 0", *name).hint(*hint)),
            None => Ok(()),
        }
    }

    /// What stops early or looks for the best has evaluations to go by.
    pub(super) fn check_stopping(&self, evaluates: bool) -> Result<(), Error> {
        let refuse = |what: &str, at: &str, hint: &str| Err(Error::new(what, at).hint(hint));
        self.check_counts()?;
        let in_range = |x: f64| x >= 0.0 && x.is_finite();
        let without_data = [("eval_steps", self.eval_steps.is_some()), ("eval_on_start", self.eval_on_start)];
        if let Some((name, _)) = without_data.iter().find(|(_, on)| *on && !evaluates) {
            return refuse("nothing is held out", name, "set data.validation_split or data.validation_path");
        }
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
        let known = || peak_gflops(device).filter(|_| precision.weights == "bf16").map(|g| g * 1e9);
        Options {
            every: self.logging_steps,
            reports: self.report_to.clone(),
            peak: self.peak_tflops.map(|t| t * 1e12).or_else(known),
        }
    }
}
