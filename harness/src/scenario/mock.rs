//! What a scripted arm plays.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a mock arm plays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MockScript {
    /// Length of a step, milliseconds: slept, and reported exactly.
    pub step_ms: f64,
    /// Standard deviation of a trial's speed, as a share: drawn from the trial's own id, so that it is the same again.
    #[serde(skip_serializing_if = "is_zero")]
    pub noise: f64,
    /// How it (mis)behaves.
    pub behaviour: Behaviour,
    /// Step at which the misbehaviour begins.
    pub at_step: u32,
}

fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

impl Default for MockScript {
    fn default() -> Self {
        Self { step_ms: 2.0, noise: 0.0, behaviour: Behaviour::Honest, at_step: 2 }
    }
}

/// Ways in which an arm can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// Does what it should.
    Honest,
    /// Aborts.
    Crash,
    /// Reports an error, as an arm should when it fails.
    Error,
    /// Stops making progress.
    Hang,
    /// Writes a line that is no event.
    Garbage,
    /// Loss becomes NaN.
    Nan,
    /// Claims other tokens than it was given.
    WrongDigest,
    /// Names other samples than it was given.
    WrongSamples,
    /// Claims to have counted more tokens than it was given.
    WrongCounts,
    /// Ends in the middle of a line, with success.
    PartialLine,
    /// Prints without end.
    HugeOutput,
    /// Writes lines without end that are no events.
    Flood,
    /// Leaves a process behind, in a session of its own.
    Grandchild,
    /// Dies of what PyTorch says when a GPU's memory is full.
    OutOfMemory,
    /// Is killed as the kernel kills when memory is full.
    Killed,
    /// The first attempt finds the GPU held by somebody else.
    BusyOnce,
    /// Trains without the tied embedding, and has no gradient (a run that was once published as a rival's).
    ZeroGradients,
    /// Exits with success but never says `done`.
    NoDone,
    /// Saves the weights it started from.
    Frozen,
}
