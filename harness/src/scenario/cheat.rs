//! Lies that the native arm can be made to tell, to test the audits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One lie. Unless it says otherwise, the log is that of an honest training, line for line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cheat {
    /// No gradient reaches the optimizer.
    ZeroGradient,
    /// One matrix gets no gradient.
    FrozenTensor,
    /// The embedding gets no gradient.
    FrozenEmbedding,
    /// Every second update is left out.
    SkippedStep,
    /// The first block has no MLP.
    SkippedLayer,
    /// Every step trains on the first batch.
    StaleBatch,
    /// A token is its own label.
    LabelsUnshifted,
    /// Documents of a row see each other.
    CrossDocument,
    /// Every position has a loss, padding and prompts too.
    LossOnPadding,
    /// The head's gradient does not reach the embedding that it is tied to.
    UntiedHead,
    /// Half of the learning rate.
    WrongLearningRate,
    /// A and B of LoRA+ train at one rate.
    DeadLoraPlus,
    /// A of LoRA+ has the rate of B, and B that of A.
    SwappedLoraPlus,
    /// Gradients are not clipped.
    NoClipping,
    /// One micro-batch a step.
    FewerMicroBatches,
    /// Half of the adapters' rank gets no gradient.
    LowerRank,
    /// Half of every sample is left out.
    TruncatedDocuments,
    /// All steps train on the samples of the first.
    DuplicatedData,
    /// Weights move at random, as far as they should.
    Noise,
    /// The saved weights are those of a longer training. Its log is its own.
    CopiedWeights,
    /// The clock runs at a tenth of its speed. The rest of the log is its own.
    EarlyClock,
    /// The clock stops while the device works. The rest of the log is its own.
    AsynchronousTimer,
    /// Padding is counted as tokens. The rest of the log is its own.
    PaddingCounted,
    /// The log is that of another run, on the same data in another order.
    ReplayedEvents,
    /// No gradient reaches the optimizer, and the saved weights are those of the reference, where they lie about.
    FoundAnswers,
    /// The weights after the first step are not saved. The rest is honest.
    KeptBack,
    /// A row of two documents is refused. The rest is honest.
    RefusedRow,
    /// None: an honest training in the place of a lie.
    OwnLog,
}
