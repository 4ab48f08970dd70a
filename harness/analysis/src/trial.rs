//! A stored trial, sorted by kind.

use std::collections::BTreeMap;

use chronibench_protocol::{
    audit::Findings,
    event::{Done, Event, Failure, Hello, Ready, Step, TokenCounts, Window},
    record::{Exit, LedgerStep, Line, Sample, TensorChange, TrialHeader},
};

/// An event with the moment at which the harness saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    /// Nanoseconds since the spawn, on the harness's clock.
    pub recv_ns: u64,
    /// What the arm said.
    pub event: T,
}

/// The kind of an event, for the check of their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `hello`.
    Hello,
    /// `ready`.
    Ready,
    /// `step`, with its index.
    Step(u32),
    /// `window`, with its index.
    Window(u32),
    /// `done`.
    Done,
    /// `error`.
    Error,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Hello => f.write_str("hello"),
            Kind::Ready => f.write_str("ready"),
            Kind::Step(i) => write!(f, "step {i}"),
            Kind::Window(i) => write!(f, "window {i}"),
            Kind::Done => f.write_str("done"),
            Kind::Error => f.write_str("error"),
        }
    }
}

/// Everything that is known of one trial. Each part may be missing: a trial that crashed, or a run that was killed,
/// leaves a log that ends anywhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrialLog {
    /// What was asked.
    pub header: Option<Box<TrialHeader>>,
    /// Who ran.
    pub hello: Option<At<Hello>>,
    /// What was to be trained.
    pub ready: Option<At<Ready>>,
    /// Steps in order of arrival.
    pub steps: Vec<At<Step>>,
    /// Windows in order of arrival.
    pub windows: Vec<At<Window>>,
    /// The arm finished.
    pub done: Option<At<Done>>,
    /// The arm gave up.
    pub error: Option<At<Failure>>,
    /// Kinds of all events in order of arrival.
    pub order: Vec<Kind>,
    /// Lines of the event file that were no events.
    pub garbage: Vec<String>,
    /// Looks at the process.
    pub samples: Vec<Sample>,
    /// The harness's count of every step; `None` when the log ends before it.
    pub ledger: Option<Vec<LedgerStep>>,
    /// Real tokens of the distinct samples of the timed steps, as the harness counted them.
    pub unique: Option<u64>,
    /// The harness's comparison of the weights; `None` when the log ends before it.
    pub weights: Option<Vec<TensorChange>>,
    /// What the harness found out beside.
    pub audit: Option<Box<Findings>>,
    /// How the process ended; `None` when the log ends before it.
    pub exit: Option<Exit>,
}

impl TrialLog {
    /// Sorts the lines of one stored trial. Never fails: what is missing is judged, not guessed.
    pub fn from_lines(lines: Vec<Line>) -> TrialLog {
        let mut log = TrialLog::default();
        for line in lines {
            match line {
                Line::Trial(header) => log.header = Some(header),
                Line::Event { recv_ns, event } => log.push(recv_ns, event),
                Line::Garbage { text, .. } => log.garbage.push(text),
                Line::Kernels(_) => log.garbage.push("a head of a trial of kernels".into()),
                Line::Sample(sample) => log.samples.push(sample),
                Line::Ledger { steps, unique } => {
                    log.ledger = Some(steps);
                    log.unique = unique;
                }
                Line::Weights { tensors } => log.weights = Some(tensors),
                Line::Audit(found) => log.audit = Some(found),
                Line::Exit(exit) => log.exit = Some(exit),
            }
        }
        log
    }

    fn push(&mut self, recv_ns: u64, event: Event) {
        match event {
            Event::Hello(event) => {
                self.order.push(Kind::Hello);
                self.hello = Some(At { recv_ns, event });
            }
            Event::Ready(event) => {
                self.order.push(Kind::Ready);
                self.ready = Some(At { recv_ns, event });
            }
            Event::Step(event) => {
                self.order.push(Kind::Step(event.step));
                self.steps.push(At { recv_ns, event });
            }
            Event::Window(event) => {
                self.order.push(Kind::Window(event.index));
                self.windows.push(At { recv_ns, event });
            }
            Event::Kernel(_) | Event::Ceiling(_) | Event::Skipped(_) => {
                self.garbage.push("an event of a trial of kernels".into());
            }
            Event::Done(event) => {
                self.order.push(Kind::Done);
                self.done = Some(At { recv_ns, event });
            }
            Event::Error(event) => {
                self.order.push(Kind::Error);
                self.error = Some(At { recv_ns, event });
            }
        }
    }

    /// Case id, or the empty string when the log has no header.
    pub fn case(&self) -> &str {
        self.header.as_ref().map_or("", |h| &h.case)
    }

    /// It is no measurement, but an audit of its case.
    pub fn is_audit(&self) -> bool {
        self.header.as_ref().is_some_and(|h| h.spec.audit.is_some())
    }

    /// The harness's counts by step index; empty when the log ends before the ledger.
    pub fn counted(&self) -> BTreeMap<u32, TokenCounts> {
        self.ledger.iter().flatten().map(|l| (l.step, l.counted)).collect()
    }

    /// Loss of every step in order of arrival.
    pub fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|s| s.event.loss).collect()
    }
}
