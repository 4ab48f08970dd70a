//! What the user sees while trials run: a bar on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use chronibench_analysis::{
    RunSummary,
    judge::audit::{Check, Outcome},
};
use chronibench_protocol::{Event, record::Resolved};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Time after which audits are told again.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// Progress over all steps of all trials.
pub struct Progress {
    bar: Option<ProgressBar>,
    trials: usize,
    steps: u64,
    /// Title of the running trial, the time that was thought to be left when it began, and when that was.
    now: (String, Option<Duration>, Instant),
    /// When audits were told last.
    told: Instant,
}

impl Progress {
    /// Progress of a run.
    pub fn new(resolved: &Resolved) -> Self {
        let (trials, steps) = (resolved.order.len(), u64::from(resolved.measure.total_steps()));
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {msg}");
            ProgressBar::new(trials as u64 * steps).with_style(style.expect("a valid template"))
        });
        Self { bar, trials, steps, now: (String::new(), None, Instant::now()), told: Instant::now() }
    }

    /// A line of text.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// The audit trial of a case begins. Where there is no bar, long audits are told from time to time.
    pub fn audit(&mut self, position: usize, cases: usize, case: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("audit of {case}")),
            None if position == 0 => eprintln!("auditing every case"),
            None if self.told.elapsed() > TOLD_EVERY => {
                eprintln!("{position} of {cases} cases audited");
                self.told = Instant::now();
            }
            None => {}
        }
    }

    /// All audit trials have ended; those that failed are told.
    pub fn audited(&self, summary: &RunSummary) {
        let failed = |c: &&Check| c.outcome == Outcome::Failed;
        for case in &summary.cases {
            for check in case.audits.iter().filter(failed) {
                self.say(&format!("audit of {}: {} FAILED: {}", case.id, check.audit.name(), check.figure));
            }
        }
    }

    /// A trial begins; `left` is the estimate for it and all after it.
    pub fn begin(&mut self, position: usize, case: &str, left: Option<Duration>) {
        let title = format!("trial {}/{} {case}", position + 1, self.trials);
        self.now = (title, left, Instant::now());
        if let Some(bar) = &self.bar {
            bar.set_position(position as u64 * self.steps);
        }
        self.show("starting");
    }

    /// The running trial said something.
    pub fn event(&mut self, event: &Event) {
        if let Event::Step(step) = event {
            if let Some(bar) = &self.bar {
                bar.inc(1);
            }
            self.show(&format!("step {}/{} loss {:.3}", step.step + 1, self.steps, step.loss));
        }
    }

    /// A trial has ended and is judged.
    pub fn end(&self, position: usize, summary: &RunSummary, trial_id: &str) {
        let trials = || summary.cases.iter().flat_map(|c| c.trials.iter().map(move |t| (c, t)));
        let Some((case, trial)) = trials().find(|(_, t)| t.id == trial_id) else { return };
        let speed =
            trial.metrics.real_tokens_per_s.map(|v| format!("{v:>8.0} real tok/s")).unwrap_or_default();
        let left = self.now.1.map(|d| d.saturating_sub(self.now.2.elapsed()));
        let left = left.map(|d| format!(", {} left", HumanDuration(d))).unwrap_or_default();
        let verdict = serde_json::to_value(trial.verdict).expect("plain data");
        let verdict = verdict.as_str().unwrap_or_default();
        let took = self.now.2.elapsed().as_secs_f64();
        let head = format!("[{:>2}/{}] {:<36}", position + 1, self.trials, case.id);
        self.say(&format!("{head} {verdict} {speed} ({took:.1} s{left})"));
        for reason in &trial.reasons {
            self.say(&format!("        {reason}"));
        }
    }

    /// The last trial has ended.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&self, state: &str) {
        let Some(bar) = &self.bar else { return };
        let (title, left, began) = &self.now;
        let left = left.map(|d| d.saturating_sub(began.elapsed()));
        let left = left.map(|d| format!(" · {} left", HumanDuration(d))).unwrap_or_default();
        bar.set_message(format!("{title} · {state}{left}"));
    }
}
