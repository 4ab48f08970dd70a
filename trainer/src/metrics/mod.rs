//! What a training writes down of itself: JSON Lines, CSV, TensorBoard's event files.
//!
//! Every file is written line by line as the training goes, and holds the steps of this training and of those that it goes on
//! from, each once.

mod flops;
mod tensorboard;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use chronibench_protocol::event::TokenCounts;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{flops::Flops, tensorboard::EventWriter};
use crate::{error::Error, fit::Evaluation, trainer::StepReport};

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// `metrics.csv`.
    Csv,
    /// `runs/events.out.tfevents.*`.
    Tensorboard,
}

impl Report {
    /// Every kind besides `metrics.jsonl`, which is always written.
    pub const ALL: [Self; 2] = [Self::Csv, Self::Tensorboard];
}

/// What is written, and how often.
#[derive(Clone, Debug)]
pub struct Options {
    /// Steps that a line is of.
    pub every: u32,
    /// Files besides `metrics.jsonl`.
    pub reports: Vec<Report>,
    /// FLOP/s that the device can do at most, where that is known.
    pub peak: Option<f64>,
}

/// The steps of one line.
#[derive(Default)]
struct Gathered {
    steps: u32,
    /// The last of them, its gradient's norm and rates.
    last: u32,
    grad_norm: f64,
    lr: BTreeMap<String, f64>,
    loss: f64,
    tokens: TokenCounts,
    flops: f64,
}

/// Totals of a training in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Steps.
    pub steps: u32,
    /// Tokens of them.
    pub tokens: TokenCounts,
    /// Seconds that they took, without evaluations and checkpoints.
    pub seconds: f64,
    /// Floating-point operations of the model.
    pub flops: f64,
}

/// Writes metrics.
pub struct Metrics {
    options: Options,
    jsonl: Lines,
    csv: Option<Lines>,
    events: Option<(PathBuf, EventWriter<BufWriter<File>>)>,
    gathered: Gathered,
    totals: Totals,
    last: Instant,
}

const COLUMNS: &str = "step,loss,grad_norm,lr,slots,real_tokens,loss_tokens,seconds,tokens_per_second,mfu,eval_loss,eval_perplexity";

impl Metrics {
    /// Opens the files in `dir`. Of those that are there, lines of the first `done` steps are kept, and of the evaluation behind them;
    /// none where nothing was done yet.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn open(dir: &Path, done: Option<u32>, options: Options) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
        let jsonl = Lines::open(&dir.join("metrics.jsonl"), None, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(is_of(line["step"].as_u64()?, line.get("eval_loss").is_some(), done))
        })?;
        let has = |kind| options.reports.contains(&kind);
        let csv = has(Report::Csv).then(|| {
            Lines::open(&dir.join("metrics.csv"), Some(COLUMNS), |line| {
                let cells: Vec<&str> = line.split(',').collect();
                let evaluation = cells.len() == COLUMNS.split(',').count() && cells[1].is_empty();
                Some(is_of(cells[0].parse().ok()?, evaluation, done))
            })
        });
        let events = has(Report::Tensorboard).then(|| open_events(&dir.join("runs"), done));
        Ok(Self {
            options,
            jsonl,
            csv: csv.transpose()?,
            events: events.transpose()?,
            gathered: Gathered::default(),
            totals: Totals::default(),
            last: Instant::now(),
        })
    }

    /// Starts the clock: what was before it is of no step.
    pub fn start(&mut self) {
        self.last = Instant::now();
    }

    /// Takes note of a step, whose model takes so many operations; writes a line where one is due, or where it is the `last`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn step(&mut self, step: u32, r: &StepReport, flops: f64, last: bool) -> Result<(), Error> {
        let g = &mut self.gathered;
        g.steps += 1;
        g.loss += r.loss;
        g.tokens += r.tokens;
        g.flops += flops;
        (g.last, g.grad_norm, g.lr) = (step, r.grad_norm, r.lr.clone());
        if (step + 1).is_multiple_of(self.options.every.max(1)) || last { self.flush() } else { Ok(()) }
    }

    /// Writes the line of the steps since the last one, if there are any: for a training that ends here.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> Result<(), Error> {
        let g = std::mem::take(&mut self.gathered);
        if g.steps == 0 {
            return Ok(());
        }
        let step = g.last;
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.totals.steps += g.steps;
        self.totals.tokens += g.tokens;
        self.totals.seconds += seconds;
        self.totals.flops += g.flops;
        let loss = g.loss / f64::from(g.steps);
        let speed = g.tokens.real as f64 / seconds;
        let mfu = self.options.peak.map(|peak| g.flops / seconds / peak);
        let mut line = json!({
            "step": step,
            "loss": loss,
            "grad_norm": g.grad_norm,
            "lr": g.lr,
            "tokens": g.tokens,
            "seconds": seconds,
            "tokens_per_second": speed,
        });
        if let Some(mfu) = mfu {
            line["mfu"] = mfu.into();
        }
        self.jsonl.line(&line.to_string())?;
        let lr = g.lr.values().copied().next().unwrap_or_default();
        if let Some(csv) = &mut self.csv {
            let TokenCounts { slots, real, loss: learned } = g.tokens;
            let mfu = mfu.map_or(String::new(), |m| m.to_string());
            csv.line(&format!(
                "{step},{loss},{},{lr},{slots},{real},{learned},{seconds},{speed},{mfu},,",
                g.grad_norm
            ))?;
        }
        let mut scalars = vec![
            ("train/loss", loss),
            ("train/grad_norm", g.grad_norm),
            ("train/learning_rate", lr),
            ("train/tokens_per_second", speed),
        ];
        scalars.extend(mfu.map(|m| ("train/mfu", m)));
        self.scalars(step + 1, &scalars)
    }

    /// Takes note of an evaluation behind `step` steps.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn evaluation(&mut self, step: u32, e: &Evaluation) -> Result<(), Error> {
        let (loss, perplexity) = (e.loss(), e.perplexity());
        let line = json!({
            "step": step,
            "eval_loss": loss,
            "eval_perplexity": perplexity,
            "eval_tokens": e.loss_tokens,
        });
        self.jsonl.line(&line.to_string())?;
        if let Some(csv) = &mut self.csv {
            csv.line(&format!("{step},,,,,,,,,,{loss},{perplexity}"))?;
        }
        self.scalars(step, &[("eval/loss", loss), ("eval/perplexity", perplexity)])
    }

    /// What was trained since the files were opened.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// In words.
    pub fn summary(&self) -> String {
        let Totals { steps, tokens, seconds, flops } = self.totals;
        let per_second = |n: u64| n as f64 / seconds.max(f64::MIN_POSITIVE);
        let mut text = format!(
            "trained {steps} steps in {seconds:.1} s: {:.0} real tokens/s ({:.0} of them learned), {:.3} TFLOP/s",
            per_second(tokens.real),
            per_second(tokens.loss),
            flops / seconds.max(f64::MIN_POSITIVE) / 1e12,
        );
        if let Some(peak) = self.options.peak {
            let _ = write!(text, ", MFU {:.1} %", 100.0 * flops / seconds.max(f64::MIN_POSITIVE) / peak);
        }
        text
    }

    fn scalars(&mut self, step: u32, values: &[(&str, f64)]) -> Result<(), Error> {
        let Some((path, events)) = &mut self.events else { return Ok(()) };
        events.scalars(wall_time(), step.into(), values).map_err(|e| Error::io(path, &e))
    }
}

/// Whether a line is of the first `done` steps: steps count from 0, evaluations by the steps before them.
fn is_of(step: u64, evaluation: bool, done: Option<u32>) -> bool {
    done.is_some_and(|done| step < u64::from(done) + u64::from(evaluation))
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A file of events for the steps behind `done`. One that is begun anew takes the place of those before it.
fn open_events(dir: &Path, done: Option<u32>) -> Result<(PathBuf, EventWriter<BufWriter<File>>), Error> {
    let failed = |path: &Path, e: &std::io::Error| Error::io(path, e);
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
    const PREFIX: &str = "events.out.tfevents.";
    if done.is_none() {
        for entry in std::fs::read_dir(dir).map_err(|e| failed(dir, &e))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                std::fs::remove_file(entry.path()).map_err(|e| failed(&entry.path(), &e))?;
            }
        }
    }
    let host = sysinfo::System::host_name().unwrap_or_else(|_| "localhost".into());
    let now = wall_time();
    let path = dir.join(format!("{PREFIX}{:010}.{host}.{}.0", now as u64, std::process::id()));
    let out = File::create(&path).map_err(|e| failed(&path, &e))?;
    // TensorBoard's steps are those that were taken.
    let from = done.map_or(0, |done| u64::from(done) + 1);
    let writer = EventWriter::new(BufWriter::new(out), now, from).map_err(|e| failed(&path, &e))?;
    Ok((path, writer))
}

/// A file of lines.
struct Lines {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Lines {
    /// Opens a file to append to, with those of its lines that are to be kept: put in place whole, so that a kill loses none.
    fn open(path: &Path, header: Option<&str>, keep: impl Fn(&str) -> Option<bool>) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::io(path, &e);
        let before = std::fs::read_to_string(path).unwrap_or_default();
        let kept = before.lines().filter(|line| keep(line) == Some(true));
        let text: String = header.into_iter().chain(kept).flat_map(|line| [line, "\n"]).collect();
        crate::formats::write::text(path, &text)?;
        let out = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), out: BufWriter::new(out) })
    }

    fn line(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(|e| Error::io(&self.path, &e))
    }
}
