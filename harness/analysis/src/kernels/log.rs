//! A stored trial of kernels, sorted by kind.

use chronibench_protocol::{
    event::{Event, Failure, Hello},
    kernels::{Ceiling, KernelHeader, KernelRow, Side},
    record::{Exit, GpuSample, Line, Skipped},
};

/// Everything that is known of one trial. Each part may be missing: a trial that crashed leaves a log that ends anywhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelLog {
    /// What was asked.
    pub header: Option<Box<KernelHeader>>,
    /// Who ran.
    pub hello: Option<Hello>,
    /// Rates of the machine.
    pub ceilings: Vec<Ceiling>,
    /// Kernels in order of arrival.
    pub rows: Vec<KernelRow>,
    /// What did not run.
    pub skipped: Vec<Skipped>,
    /// The arm finished.
    pub done: bool,
    /// The arm gave up.
    pub error: Option<Failure>,
    /// Lines that were no events of such a trial.
    pub garbage: Vec<String>,
    /// Looks at the GPU while it ran.
    pub gpu: Vec<GpuSample>,
    /// How the process ended.
    pub exit: Option<Exit>,
}

impl KernelLog {
    /// Sorts the lines of one stored trial; what is missing is judged, not guessed.
    pub fn from_lines(lines: Vec<Line>) -> Self {
        let mut log = Self::default();
        for line in lines {
            match line {
                Line::Kernels(header) => log.header = Some(header),
                Line::Event { event, .. } => log.push(event),
                Line::Garbage { text, .. } => log.garbage.push(text),
                Line::Sample(sample) => log.gpu.extend(sample.gpu),
                Line::Exit(exit) => log.exit = Some(exit),
                Line::Trial(_) | Line::Ledger { .. } | Line::Weights { .. } | Line::Audit(_) => {
                    log.garbage.push("a line of a trial of training".into());
                }
            }
        }
        log
    }

    fn push(&mut self, event: Event) {
        match event {
            Event::Hello(hello) => self.hello = Some(hello),
            Event::Ceiling(ceiling) => self.ceilings.push(ceiling),
            Event::Kernel(row) => self.rows.push(*row),
            Event::Skipped(skipped) => self.skipped.push(skipped),
            Event::Done(_) => self.done = true,
            Event::Error(failure) => self.error = Some(failure),
            Event::Ready(_) | Event::Step(_) | Event::Window(_) => {
                self.garbage.push("an event of a trial of training".into());
            }
        }
    }

    /// Trial id; empty when the log has no header.
    pub fn id(&self) -> &str {
        self.header.as_ref().map_or("", |h| &h.spec.trial_id)
    }

    /// Who ran, where the log has a header.
    pub fn side(&self) -> Option<Side> {
        self.header.as_ref().map(|h| h.side)
    }

    /// Why the trial as a whole did not end well, if it did not.
    pub fn failure(&self) -> Option<String> {
        if let Some(f) = &self.error {
            return Some(format!("{} ({}); {}", f.what, f.at, f.hint));
        }
        match &self.exit {
            None => Some("the record ends before the process did".into()),
            Some(Exit { timed_out_after_s: Some(s), .. }) => Some(format!("ended at its limit of {s} s")),
            Some(e) if e.code != Some(0) => {
                let how = match (e.code, e.signal) {
                    (Some(code), _) => format!("exit code {code}"),
                    (None, signal) => format!("signal {}", signal.unwrap_or_default()),
                };
                Some(format!("ended with {how}: {}", e.stderr_tail))
            }
            Some(_) if !self.done => Some("it said no `done`".into()),
            Some(_) => None,
        }
    }
}
