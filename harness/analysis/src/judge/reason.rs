//! Why a trial is not VALID: what was expected, and what was seen.

use super::audit::Audit;
use chronibench_protocol::{
    event::{Phase, TokenCounts},
    record::Verdict,
};

use super::{
    faults::Peak,
    words::{counts, divergence, in_use, named, phase, rates, short, some, steps_at},
};

/// A proof of training that did not hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Reason {
    /// The log has no first line.
    #[error("expected the trial's header as first stored line, saw none: the log cannot be attributed")]
    NoHeader,
    /// The log ends before the line that says how the process ended.
    #[error("expected a line on how the process ended, saw the log end before it: the run was interrupted")]
    NoExit,
    /// The harness killed the arm at its time limit.
    #[error("expected {expected} steps within {after_s} s, saw {steps} when the time limit struck")]
    TimedOut {
        /// Limit in seconds.
        after_s: f64,
        /// Steps seen.
        steps: usize,
        /// Steps asked for.
        expected: u32,
    },
    /// The arm said why it failed.
    #[error("the arm gave up: {what} (at {at}); hint: {hint}")]
    ArmError {
        /// What went wrong.
        what: String,
        /// Where.
        at: String,
        /// How to mend it.
        hint: String,
    },
    /// The process ended otherwise than with exit code 0.
    #[error("expected exit code 0, saw {how} after {steps} steps; stderr: {stderr}")]
    Crashed {
        /// `exit code 3`, `signal 9`.
        how: String,
        /// Steps seen.
        steps: usize,
        /// Last line of standard error.
        stderr: String,
    },
    /// The harness ended the arm before its time.
    #[error("expected {why}: ended after {steps} steps")]
    Ended {
        /// What was expected, and what was seen.
        why: String,
        /// Steps seen.
        steps: usize,
    },
    /// Memory ran out.
    #[error("out of memory after {steps} steps: {how}{}", in_use(.peak))]
    OutOfMemory {
        /// How that is known.
        how: String,
        /// Steps seen.
        steps: usize,
        /// The most that was seen in use.
        peak: Option<Peak>,
    },
    /// Exit code 0 without `done`: the arm did not finish, whatever it says.
    #[error("expected `done` before exit code 0, saw {last} last")]
    NoDone {
        /// The last event, if any.
        last: String,
    },
    /// The event file holds lines that are no events.
    #[error("expected nothing but events, saw {lines} other line(s), first: {first}{}", divergence(.first))]
    Garbage {
        /// How many.
        lines: usize,
        /// The first.
        first: String,
    },
    /// The arm speaks another protocol.
    #[error("expected protocol {expected}, saw {seen}")]
    Protocol {
        /// Version of the harness.
        expected: String,
        /// Version of the arm.
        seen: String,
    },
    /// Events came in another order.
    #[error("expected {expected}, saw {seen}")]
    Order {
        /// What had to come.
        expected: String,
        /// What came.
        seen: String,
    },
    /// More or fewer steps than asked for.
    #[error("expected {expected} steps, saw {seen} step events and {done} in `done`")]
    StepCount {
        /// Asked for.
        expected: u32,
        /// Seen.
        seen: usize,
        /// As `done` has it.
        done: u32,
    },
    /// A step on the wrong side of the timed region.
    #[error("expected step {step} to be {}, saw it {}", phase(.expected), phase(.seen))]
    StepPhase {
        /// Step.
        step: u32,
        /// By the specification.
        expected: Phase,
        /// By the arm.
        seen: Phase,
    },
    /// More or fewer windows than asked for.
    #[error("expected {expected} windows, saw {seen}")]
    WindowCount {
        /// Asked for.
        expected: u32,
        /// Seen.
        seen: usize,
    },
    /// A window that does not hold its steps.
    #[error("expected window {index} to hold steps {}..={}, saw {}..={}", .expected.0, .expected.1, .seen.0, .seen.1)]
    WindowSteps {
        /// Window.
        index: u32,
        /// First and last step by the specification.
        expected: (u32, u32),
        /// By the arm.
        seen: (u32, u32),
    },
    /// A window that ends before it begins, overlaps its predecessor, or does not enclose its steps.
    #[error("expected window {index} to enclose its steps and follow its predecessor, saw {what}")]
    WindowTimes {
        /// Window.
        index: u32,
        /// What is wrong.
        what: String,
    },
    /// Time between the windows that belongs to no window.
    #[error(
        "expected at most {allowed_s:.3} s outside the windows between the first edge and the last, saw windows of {windows_s:.3} s in a span of {span_s:.3} s"
    )]
    TimeOutsideWindows {
        /// First edge to last edge, seconds.
        span_s: f64,
        /// Sum of the windows, seconds.
        windows_s: f64,
        /// Largest sum of gaps that is let pass, seconds.
        allowed_s: f64,
    },
    /// The arm's clock and the harness's disagree on the length of the timed region.
    #[error(
        "expected the arm's clock to agree with the harness's on the timed region, saw {arm_s:.3} s against {harness_s:.3} s"
    )]
    Clock {
        /// By the arm, seconds.
        arm_s: f64,
        /// By the harness, seconds.
        harness_s: f64,
    },
    /// A setting in force is not the one asked for.
    #[error("expected {name} = {expected}, saw {seen} in force")]
    Setting {
        /// Name.
        name: String,
        /// Asked for.
        expected: String,
        /// In force.
        seen: String,
    },
    /// A step ran at another learning rate than the schedule has.
    #[error("expected learning rate {expected:e} at step {step}, saw {}", rates(.seen))]
    LearningRate {
        /// Step.
        step: u32,
        /// By the schedule.
        expected: f64,
        /// By the arm, all groups.
        seen: Vec<f64>,
    },
    /// Another kernel variant than asked for.
    #[error("expected kernel {seam} = {expected}, saw {seen}")]
    Kernel {
        /// Seam.
        seam: String,
        /// Asked for.
        expected: String,
        /// In force.
        seen: String,
    },
    /// The kernels that were launched are not those of the arm's own plan.
    #[error("expected launches of {seam}.{expected} and of no other variant, saw {seen}")]
    Launches {
        /// Seam.
        seam: String,
        /// Planned variant.
        expected: String,
        /// Launches of that seam by name, or `none`.
        seen: String,
    },
    /// The arm read other tokens.
    #[error("expected the token store {}, saw {}", short(.expected), short(.seen))]
    Tokens {
        /// Hash of the harness's token store.
        expected: String,
        /// Hash the arm reports.
        seen: String,
    },
    /// The trainable set is not the scenario's.
    #[error("expected {expected} trainable elements in the scenario's tensors, saw {seen}{}{}{}", named("; missing: ", .missing), named("; unexpected: ", .unexpected), named("; other shape: ", .reshaped))]
    TrainableSet {
        /// Expected and not there.
        missing: Vec<String>,
        /// There and not expected.
        unexpected: Vec<String>,
        /// There with another shape.
        reshaped: Vec<String>,
        /// Elements expected.
        expected: u64,
        /// Elements seen.
        seen: u64,
    },
    /// The model has another size.
    #[error("expected {expected} parameters, saw {seen}")]
    ParameterCount {
        /// All elements expected, adapters included.
        expected: u64,
        /// As the arm reports.
        seen: u64,
    },
    /// The harness counted other steps than the arm ran.
    #[error("expected a ledger of the arm's {expected} steps, saw {seen}")]
    LedgerSteps {
        /// Steps of the arm.
        expected: usize,
        /// Steps of the ledger.
        seen: usize,
    },
    /// Batches that are not the harness's.
    #[error("expected the digests of the harness's batches, saw others at {}", steps_at(.step, .steps))]
    Digest {
        /// First step concerned.
        step: u32,
        /// Steps concerned.
        steps: usize,
    },
    /// Samples that are not the planned ones, or in another order.
    #[error("expected the samples of the harness's batches, saw others at {}", steps_at(.step, .steps))]
    Samples {
        /// First step concerned.
        step: u32,
        /// Steps concerned.
        steps: usize,
    },
    /// Token counts that are not the harness's.
    #[error("expected {} at {}, saw {}", counts(.expected), steps_at(.step, .steps), counts(.seen))]
    Counts {
        /// First step concerned.
        step: u32,
        /// Steps concerned.
        steps: usize,
        /// By the harness.
        expected: TokenCounts,
        /// By the arm.
        seen: TokenCounts,
    },
    /// A gradient norm that is zero, negative or not finite.
    #[error("expected a finite gradient norm above 0, saw {seen} at {}", steps_at(.step, .steps))]
    GradNorm {
        /// First step concerned.
        step: u32,
        /// Steps concerned.
        steps: usize,
        /// Its value there.
        seen: f64,
    },
    /// Gradient norms of parameter groups that cannot be.
    #[error(
        "expected gradient norms of every parameter group, above 0, that add up to the global one, saw {what} at step {step}"
    )]
    GroupNorms {
        /// Step.
        step: u32,
        /// What is wrong there.
        what: String,
    },
    /// A loss that is not finite.
    #[error("expected a finite loss, saw {seen} at {}", steps_at(.step, .steps))]
    LossNotFinite {
        /// First step concerned.
        step: u32,
        /// Steps concerned.
        steps: usize,
        /// Its value there.
        seen: f64,
    },
    /// Too few steps to tell a fall from noise.
    #[error("expected at least {expected} steps to tell a falling loss from noise, saw {seen}")]
    TooFewSteps {
        /// Needed.
        expected: usize,
        /// Seen.
        seen: usize,
    },
    /// The loss does not fall by more than its noise.
    #[error(
        "expected the loss to fall by {min_z} standard errors, saw {first:.4} in the first third and {last:.4} in the last with a standard error of {std_error:.4}"
    )]
    LossDoesNotFall {
        /// Mean of the first third.
        first: f64,
        /// Mean of the last third.
        last: f64,
        /// Standard error of their difference.
        std_error: f64,
        /// Standard errors asked for.
        min_z: f64,
    },
    /// The harness could not compare the weights.
    #[error("expected a comparison of the weights before and after, saw none")]
    NoWeights,
    /// Trainable tensors absent from the weights, or of another shape there.
    #[error("expected every trainable tensor in the weights with its shape, saw it missing or reshaped: {}", some(.0))]
    TrainedMissing(Vec<String>),
    /// Trainable tensors that did not move.
    #[error("expected every trainable tensor to change, saw no change in {}", some(.0))]
    Unchanged(Vec<String>),
    /// Tensors with NaN or infinity after training.
    #[error("expected finite weights after training, saw NaN or infinity in {}", some(.0))]
    WeightsNotFinite(Vec<String>),
    /// Frozen tensors that moved.
    #[error("expected frozen tensors to keep their bits, saw changes in {}", some(.0))]
    FrozenChanged(Vec<String>),
    /// Tensors that were there before training and are not any more.
    #[error("expected every tensor to survive training, saw none after it for {}", some(.0))]
    Lost(Vec<String>),
    /// Tensors that were not there before training.
    #[error("expected no new tensor, saw {}", some(.0))]
    Appeared(Vec<String>),
    /// What the harness looked up by itself does not agree.
    #[error("{}: {what}", .audit.name())]
    Audit {
        /// Which audit.
        audit: Audit,
        /// Expected and seen.
        what: String,
    },
    /// The case has no audit trial.
    #[error("expected an audit trial of the case, as the scenario asks for, saw none stored")]
    NoAuditTrial,
    /// The audit trial of the case failed: the arm does not do what it says.
    #[error("audit trial: {what}")]
    AuditTrial {
        /// Which audit.
        audit: Audit,
        /// Its own reason.
        what: String,
    },
}

impl Reason {
    /// The verdict that this reason alone leads to.
    pub fn verdict(&self) -> Verdict {
        match self {
            Reason::TimedOut { .. } => Verdict::Timeout,
            Reason::NoHeader
            | Reason::NoExit
            | Reason::ArmError { .. }
            | Reason::Crashed { .. }
            | Reason::Ended { .. }
            | Reason::OutOfMemory { .. }
            | Reason::NoDone { .. } => Verdict::Error,
            _ => Verdict::Invalid,
        }
    }
}
