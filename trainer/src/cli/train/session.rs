//! The steps of a training, with evaluations and checkpoints between them, until the last or until something ends it.

use std::{io::IsTerminal, path::Path};

use chronibench_protocol::{init::InitLora, spec::Method};
use chronicals::{
    Error, Trainer,
    backend::Backend,
    checkpoint::{self, Identity, Keep},
    fit,
    formats::folder,
    job::{Inputs, Job},
    metrics::{Flops, Metrics, Options},
    progress::Progress,
    trainer::StepReport,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{Exit, interrupt};

/// A training between its first step and its last.
pub struct Session<'a> {
    job: &'a Job,
    inputs: &'a Inputs,
    identity: Identity,
    progress: Progress,
    /// The step of the checkpoint that was written last.
    saved: Option<u32>,
    metrics: Metrics,
    flops: Flops,
    bar: ProgressBar,
}

impl<'a> Session<'a> {
    /// Readies the folder for what is written, `step` steps into the training.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(
        job: &'a Job,
        inputs: &'a Inputs,
        identity: Identity,
        progress: Progress,
        metrics: Options,
        step: u32,
    ) -> Result<Self, Error> {
        let flops = Flops::of(&inputs.config, &job.method)?;
        // A training that goes on behind no step may have been evaluated all the same.
        let done = (step > 0 || progress.is_evaluated()).then_some(step);
        let metrics = Metrics::open(&job.output_dir, done, metrics)?;
        let bar = progress_bar(inputs.batches.steps().into());
        bar.set_position(step.into());
        Ok(Self { job, inputs, identity, progress, saved: None, metrics, flops, bar })
    }

    /// Trains to the end, and puts the best parameters in place where that is asked for.
    ///
    /// # Errors
    /// A step, an evaluation or a checkpoint fails, the training diverges, or a signal ends it.
    pub fn run<B: Backend>(&mut self, trainer: &mut Trainer<B>) -> Result<(), Exit> {
        interrupt::install();
        self.steps(trainer).map_err(|e| Exit::failed(self.with_last_good(e)))?;
        if interrupt::requested() && trainer.step() < self.inputs.batches.steps() {
            let saved = self.flush_and_save(trainer).map_err(Exit::failed)?;
            return Err(Exit::interrupted(
                Error::new("interrupted", format!("after step {}", trainer.step()))
                    .hint(format!("{saved} has all of it: go on with --resume")),
            ));
        }
        if self.metrics.totals().steps > 0 {
            eprintln!("{}", self.metrics.summary());
        }
        self.take_best(trainer).map_err(Exit::failed)
    }

    fn steps<B: Backend>(&mut self, trainer: &mut Trainer<B>) -> Result<(), Error> {
        let all = self.inputs.batches.steps();
        // Once: the same loss again would count as an evaluation without improvement.
        if self.job.eval_on_start && trainer.step() == 0 && !self.progress.is_evaluated() {
            self.evaluate(trainer)?;
            if self.job.load_best_model_at_end {
                self.save(trainer)?;
            }
        }
        while trainer.step() < all && !interrupt::requested() && !self.is_exhausted() {
            let next = |every: Option<u32>| {
                let every = every.unwrap_or(all);
                (trainer.step() / every + 1).saturating_mul(every).min(all)
            };
            let to = next(self.job.save_steps).min(next(self.job.eval_steps));
            let batches = &self.inputs.batches;
            self.metrics.start();
            fit::fit_until(trainer, batches, to, interrupt::requested, |step, r| {
                let flops = self.flops.of_step(&batches.plan().steps[step as usize], batches.tokens());
                self.metrics.step(step, &r, flops, step + 1 == to)?;
                show(&self.bar, step, all, &r);
                self.progress.stepped(step, r.loss, self.job.max_loss_rise)
            })?;
            // Short of it, a signal has come.
            if trainer.step() == to {
                self.between(trainer, to == all)?;
            }
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    /// What is due behind a step.
    fn between<B: Backend>(&mut self, trainer: &mut Trainer<B>, last: bool) -> Result<(), Error> {
        let step = trainer.step();
        let is_due = |every: Option<u32>| every.is_some_and(|n| step.is_multiple_of(n) || last);
        let best = (last || is_due(self.job.eval_steps)) && self.evaluate(trainer)?;
        let ends = self.is_exhausted() && self.job.save_steps.is_some();
        if is_due(self.job.save_steps) || ends || (best && self.job.load_best_model_at_end) {
            self.save(trainer)?;
        }
        Ok(())
    }

    /// Evaluates what is held out, and says whether it is the best so far.
    fn evaluate<B: Backend>(&mut self, trainer: &mut Trainer<B>) -> Result<bool, Error> {
        let Some((held_out, _)) = &self.inputs.evaluation else { return Ok(false) };
        let e = fit::evaluate(trainer, held_out)?;
        let step = trainer.step();
        let best = self.progress.evaluated(step, e.loss(), self.job.early_stopping_threshold);
        let told = if best { ", the best so far" } else { "" };
        self.tell(&format!(
            "after step {step}: held-out loss {:.4}, perplexity {:.3}{told}",
            e.loss(),
            e.perplexity()
        ));
        self.metrics.evaluation(step, &e)?;
        if self.is_exhausted() {
            let patience = self.job.early_stopping_patience.unwrap_or_default();
            self.tell(&format!("early stop after step {step}: no improvement in {patience} evaluations"));
        }
        Ok(best)
    }

    /// Saves where a signal ended the steps.
    fn flush_and_save<B: Backend>(&mut self, trainer: &Trainer<B>) -> Result<String, Error> {
        self.metrics.flush()?;
        let there = checkpoint::place(&self.job.output_dir, trainer.step());
        if self.saved == Some(trainer.step()) { Ok(there.display().to_string()) } else { self.save(trainer) }
    }

    fn save<B: Backend>(&mut self, trainer: &Trainer<B>) -> Result<String, Error> {
        let job = self.job;
        let best = self.progress.best().filter(|_| job.load_best_model_at_end).map(|b| b.step);
        let keep = Keep { newest: job.save_total_limit, best };
        // A checkpoint is a model or an adapter too; under PiSSA it is none, as the weights below are not those of the model.
        let lora = match &job.method {
            Method::Full {} => Some(None),
            Method::Lora(lora) if lora.init_lora_weights == InitLora::default() => Some(Some(lora)),
            Method::Lora(_) => None,
        };
        let beside = |at: &Path| match lora {
            Some(lora) => folder::finish(&job.model.config, &self.inputs.beside, lora, at),
            None => Ok(()),
        };
        let saved = checkpoint::save(trainer, &job.output_dir, &self.identity, &self.progress, keep, beside)?;
        self.saved = Some(trainer.step());
        Ok(saved.display().to_string())
    }

    fn take_best<B: Backend>(&self, trainer: &mut Trainer<B>) -> Result<(), Error> {
        let Some(best) = self.progress.best().filter(|_| self.job.load_best_model_at_end) else {
            return Ok(());
        };
        if best.step != trainer.step() {
            let file = checkpoint::place(&self.job.output_dir, best.step).join(trainer.trainable_file());
            if !file.exists() {
                // Hours of training are not given up for a folder that somebody took away.
                self.tell(&format!(
                    "warning: the best was that after step {}, whose checkpoint {} is gone: the last is kept",
                    best.step,
                    file.display()
                ));
                return Ok(());
            }
            trainer.load_trainable(&file)?;
        }
        self.tell(&format!("the best is that after step {}: held-out loss {:.4}", best.step, best.loss));
        Ok(())
    }

    fn is_exhausted(&self) -> bool {
        self.progress.is_exhausted(self.job.early_stopping_patience)
    }

    /// A training that failed may go on from what was good.
    fn with_last_good(&self, e: Error) -> Error {
        self.bar.finish_and_clear();
        match checkpoint::newest(&self.job.output_dir, &self.identity) {
            Ok(Some(last)) => e.hinted(format!("the last checkpoint is {}", last.display())),
            _ => e,
        }
    }

    fn tell(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

/// A bar on a terminal; elsewhere `show` prints lines.
fn progress_bar(steps: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {eta} left");
    ProgressBar::new(steps).with_style(style.expect("the template is well-formed"))
}

fn show(bar: &ProgressBar, step: u32, steps: u32, r: &StepReport) {
    let text = format!("loss {:.4}  norm {:.3}", r.loss, r.grad_norm);
    if bar.is_hidden() {
        // Every tenth of the way, and the first and last step.
        if step == 0 || step + 1 == steps || (step + 1).is_multiple_of((steps / 10).max(1)) {
            eprintln!("step {}/{steps}  {text}", step + 1);
        }
    } else {
        bar.set_message(text);
        bar.inc(1);
    }
}
