//! The basic proof of training: did this trial do the work whose time it reports?
//!
//! [`judge()`] needs nothing but the stored log. Its checks, each with its [`Reason`]s: the process ended well
//! (`process`); events are complete, in order and on a believable clock (`protocol`, `windows`); the work was the one
//! asked for (`work`); every step trained (`training`); the right weights moved (`weights`); and what the harness looked up by
//! itself agrees (`audit`).

pub mod audit;
pub mod faults;
mod process;
mod protocol;
mod reason;
mod training;
mod weights;
mod windows;
mod words;
pub(crate) mod work;

use chronibench_protocol::{
    record::{TrialHeader, Verdict},
    spec::States,
};

pub use reason::Reason;
pub use weights::rounded_away;
pub(crate) use words::some;

use crate::trial::TrialLog;

/// A verdict and what led to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The gravest of the reasons' verdicts; VALID without a reason.
    pub verdict: Verdict,
    /// Every proof that failed. A trial that did not finish is judged by its end alone, because all else that it lacks
    /// follows from that.
    pub reasons: Vec<Reason>,
}

/// Judges one trial.
pub fn judge(log: &TrialLog) -> Judgement {
    let mut reasons = process::check(log);
    let finished = reasons.iter().all(|r| r.verdict() == Verdict::Invalid);
    if let Some(header) = log.header.as_deref().filter(|_| finished) {
        protocol::check(log, header, &mut reasons);
        windows::check(log, header, &mut reasons);
        work::check(log, header, &mut reasons);
        training::check(log, &mut reasons);
        weights::check(log, header, &mut reasons);
        audit::check(log, &mut reasons);
    }
    let verdict = reasons.iter().map(Reason::verdict).max().unwrap_or(Verdict::Valid);
    Judgement { verdict, reasons }
}

/// A rival keeps its weights in bf16 without masters, and rounds them to nearest: updates below half of the spacing are lost. The native
/// arm rounds stochastically.
fn rounds_updates_away(header: &TrialHeader) -> bool {
    header.rival.is_some() && header.spec.precision.states == Some(States::Bf16)
}
