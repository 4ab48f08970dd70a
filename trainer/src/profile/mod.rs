//! Where a few steps of a training go: when every kernel ran, what it moved and computed, and how near that is to what the
//! device can do.
//!
//! | module | what |
//! |---|---|
//! | `matching` | what a device did, to what was asked of it |
//! | `table` | sums by seam and kernel, and the time in which nothing ran |
//! | `write` | `trace.json`, `profile.md`, `profile.csv`, `profile.json` |
//!
//! A backend keeps the calls of the steps that [`Options`] name, each with its [`Cost`], and when they ran.

mod matching;
mod table;
mod write;

use std::{fmt, ops::Range, str::FromStr};

use chronicals_kernels::gpu::{Activity, Cost, Limits, trace::Kind};

pub use self::{
    matching::attribute,
    table::{Row, Table},
};
use crate::error::Error;

/// What the times are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Of kernels, by CUPTI, in the very steps that are trained.
    Cupti,
    /// Between device events around each launch.
    Events,
    /// Of the processor's calls, by its clock.
    Wall,
}

impl By {
    /// Name in settings and records.
    pub fn name(self) -> &'static str {
        match self {
            By::Cupti => "cupti",
            By::Events => "events",
            By::Wall => "wall",
        }
    }

    /// What to know of such times.
    pub fn meaning(self) -> &'static str {
        match self {
            By::Cupti => {
                "times of kernels, copies and fills as the device ran them, in graphs where they are replayed"
            }
            By::Events => {
                "times between device events around each launch: a launch's own overhead is in them, and the steps were \
                 launched one by one, not replayed, so that they take longer than those of the rest of the training"
            }
            By::Wall => "wall time from one call's beginning to the next one's",
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "cupti" => Ok(By::Cupti),
            "events" => Ok(By::Events),
            _ => Err("use cupti or events".into()),
        }
    }
}

/// Which steps, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The step that this process begins with: later than the training's first where it goes on with one.
    pub first: u32,
    /// Steps of this process that come before those of the profile.
    pub warmup: u32,
    /// Steps, at least 1.
    pub steps: u32,
    /// None for the best that the device has.
    pub by: Option<By>,
}

impl Options {
    /// Steps of warm-up where a training has enough: shapes that come again are captured by then.
    pub const WARMUP: u32 = 10;

    /// Of a process that takes those steps of a training.
    ///
    /// # Errors
    /// They are too few, or no step is asked for.
    pub fn fit(warmup: Option<u32>, steps: u32, by: Option<By>, taken: Range<u32>) -> Result<Self, Error> {
        if steps == 0 {
            return Err(Error::new("a profile of no steps", "--profile-steps").hint("give 1 or more"));
        }
        let total = taken.end.saturating_sub(taken.start);
        let most = total.saturating_sub(steps);
        let warmup = warmup.unwrap_or(Self::WARMUP.min(most));
        if u64::from(warmup) + u64::from(steps) > u64::from(total) {
            let of = if taken.start == 0 { "a training of" } else { "what is left of a training," };
            let what = format!("{warmup} steps of warm-up and {steps} of profile in {of} {total}");
            return Err(Error::new(what, "--profile-steps").hint("raise max_steps, or profile fewer steps"));
        }
        Ok(Self { first: taken.start, warmup, steps, by })
    }

    /// The first step of the profile.
    pub fn begin(&self) -> u32 {
        self.first + self.warmup
    }

    /// The step before that, which tells when it begins.
    pub fn lead(&self) -> u32 {
        self.first + self.warmup.saturating_sub(1)
    }

    /// One past the last step.
    pub fn end(&self) -> u32 {
        self.begin() + self.steps
    }

    /// Whether calls of a step are kept.
    pub fn keeps(&self, step: u32) -> bool {
        (self.lead()..self.end()).contains(&step)
    }
}

/// Something that was asked of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What the device was asked for.
    pub kind: CallKind,
    /// Seam, or what stands for it.
    pub seam: &'static str,
    /// Variant of the seam.
    pub variant: String,
    /// The kernel, the product with its extents, or the operation.
    pub name: String,
    /// What it moves and computes; None where nobody says.
    pub cost: Option<Cost>,
    /// Step of the training.
    pub step: u32,
}

/// What a device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A kernel of ours, by its own name.
    Kernel,
    /// A product, by one or more kernels of a library.
    Product,
    /// A fill of memory.
    Fill,
}

/// A stretch of a device's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Seam, `gemm`, `embedding`, or `memory` for copies and fills.
    pub seam: String,
    /// Variant of the seam; `library`, or `device`.
    pub variant: String,
    /// The kernel, the product with its extents, or the operation.
    pub name: String,
    /// The device's own name of it.
    pub kernel: String,
    /// What it moved and computed; None where nobody says, or where it is a part.
    pub cost: Option<Cost>,
    /// Whether it belongs to the call before it: a product's second kernel.
    pub part: bool,
    /// Step of the training.
    pub step: u32,
    /// When it began and ended, ns.
    pub start_ns: u64,
    /// See `start_ns`.
    pub end_ns: u64,
    /// Stream of the device.
    pub stream: u32,
    /// Whether a graph had it run.
    pub in_graph: bool,
    /// Whether it keeps the launches from running: copies beside them do not.
    pub occupies: bool,
}

impl Span {
    /// A call that ran from one time to another.
    pub fn of(call: &Call, (start_ns, end_ns): (u64, u64)) -> Self {
        Self {
            seam: call.seam.into(),
            variant: call.variant.clone(),
            name: call.name.clone(),
            kernel: call.name.clone(),
            cost: call.cost,
            part: false,
            step: call.step,
            start_ns,
            end_ns,
            stream: 0,
            in_graph: false,
            occupies: true,
        }
    }

    /// The same as the device saw it.
    fn seen(self, a: &Activity) -> Self {
        let occupies = !(a.kind == Kind::Copy && a.name.contains("host"));
        Self { kernel: a.name.clone(), stream: a.stream, in_graph: a.node.is_some(), occupies, ..self }
    }

    /// Its length.
    pub fn ns(&self) -> u64 {
        self.end_ns - self.start_ns
    }
}

/// A step begins where the one before it ended: with whatever made it wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number in the training, from 0.
    pub step: u32,
    /// When the step before it ended, ns.
    pub start_ns: u64,
    /// When its last kernel ended, ns.
    pub end_ns: u64,
}

/// Where some steps went.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the times are.
    pub by: By,
    /// What took them, e.g. `CUPTI 13.0`.
    pub clock: String,
    /// The device.
    pub device: String,
    /// What it can do at best, measured in this process.
    pub limits: Limits,
    /// The steps, in order and without a gap.
    pub steps: Vec<Step>,
    /// What ran in them, in the order of starts.
    pub spans: Vec<Span>,
    /// What to know besides.
    pub notes: Vec<String>,
}

/// What a profile is made of.
pub struct Parts {
    /// See [`Profile`].
    pub by: By,
    /// See [`Profile`].
    pub clock: String,
    /// See [`Profile`].
    pub device: String,
    /// See [`Profile`].
    pub limits: Limits,
    /// See [`Profile`].
    pub notes: Vec<String>,
    /// What ran, from the [lead](Options::lead) on, but for copies, whose step is not known.
    pub spans: Vec<Span>,
    /// Copies; those outside of the steps are left out.
    pub copies: Vec<Activity>,
}

impl Profile {
    /// Of what ran in the steps of `options` and their lead.
    ///
    /// # Errors
    /// A step has nothing.
    pub fn new(options: &Options, parts: Parts) -> Result<Self, Error> {
        let Parts { by, clock, device, limits, mut notes, mut spans, copies } = parts;
        let bounds = |step: u32| {
            let of_step = || spans.iter().filter(|s| s.step == step);
            let end = of_step().map(|s| s.end_ns).max();
            of_step().map(|s| s.start_ns).min().zip(end).ok_or_else(|| {
                Error::new("nothing was seen of it", format!("profile of step {step}"))
                    .hint("take --profile-by events, or another step")
            })
        };
        let mut before = if options.warmup > 0 { Some(bounds(options.lead())?.1) } else { None };
        let mut steps = Vec::new();
        for step in options.begin()..options.end() {
            let (first, end_ns) = bounds(step)?;
            steps.push(Step { step, start_ns: before.unwrap_or(first), end_ns });
            before = Some(end_ns);
        }
        spans.retain(|s| s.step >= options.begin());
        spans.extend(copies.iter().filter_map(|a| {
            let step = steps.iter().find(|s| (s.start_ns..s.end_ns).contains(&a.start_ns))?;
            // Bytes are read on one side and written on the other; across the bus, the device does one of both.
            let bytes = if a.name.contains("host") { a.bytes } else { 2 * a.bytes };
            let call = Call {
                kind: CallKind::Fill,
                seam: "memory",
                variant: "device".into(),
                name: a.name.clone(),
                cost: Some(Cost::bytes(bytes)),
                step: step.step,
            };
            Some(Span::of(&call, (a.start_ns, a.end_ns)).seen(a))
        }));
        spans.sort_by_key(|s| (s.start_ns, s.end_ns));
        let launched = spans.iter().filter(|s| by == By::Cupti && s.seam != "memory" && !s.in_graph).count();
        if launched > 0 && launched < spans.len() {
            notes.push(format!(
                "{launched} of {} kernels were launched one by one: graphs are off, or the batch had a new shape",
                spans.len()
            ));
        }
        Ok(Self { by, clock, device, limits, steps, spans, notes })
    }
}

#[cfg(test)]
mod tests;
