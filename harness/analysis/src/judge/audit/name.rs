//! Names of the audits, and what each reason belongs to.

use serde::{Deserialize, Serialize};

use crate::judge::Reason;

/// Which audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Audit {
    /// Rates inferred from the weights.
    Update,
    /// The same steps by the reference.
    Replay,
    /// Loss of unseen samples under the saved weights.
    Probe,
    /// Documents of one row do not see each other.
    Isolation,
    /// No faster than the machine multiplies.
    SpeedOfLight,
    /// Clocks, throttling, other programs.
    Surroundings,
    /// Events complete and in order, process ended well.
    Protocol,
    /// Windows and steps against the harness's clock.
    TimedRegion,
    /// Settings, schedule and kernels in force.
    Settings,
    /// Tensors that train.
    TrainableSet,
    /// Digest and samples of every batch.
    BatchDigest,
    /// Slots, real and loss tokens.
    TokenLedger,
    /// Gradient norm and loss of every step.
    Training,
    /// Every tensor before and after.
    Weights,
}

impl Audit {
    /// All of them: those of events first, then those that the harness looks up by itself.
    pub const ALL: [Audit; 14] = [
        Audit::Protocol,
        Audit::TimedRegion,
        Audit::Settings,
        Audit::TrainableSet,
        Audit::BatchDigest,
        Audit::TokenLedger,
        Audit::Training,
        Audit::Weights,
        Audit::Update,
        Audit::Replay,
        Audit::Probe,
        Audit::Isolation,
        Audit::SpeedOfLight,
        Audit::Surroundings,
    ];

    /// Whether the stored events of a finished trial are all that it needs: it is made of every such trial.
    pub fn is_of_events(self) -> bool {
        !matches!(
            self,
            Audit::Update
                | Audit::Replay
                | Audit::Probe
                | Audit::Isolation
                | Audit::SpeedOfLight
                | Audit::Surroundings
        )
    }

    /// Name in records and reports.
    pub fn name(self) -> &'static str {
        match self {
            Audit::Update => "update",
            Audit::Replay => "replay",
            Audit::Probe => "probe",
            Audit::Isolation => "isolation",
            Audit::SpeedOfLight => "speed of light",
            Audit::Surroundings => "surroundings",
            Audit::Protocol => "protocol",
            Audit::TimedRegion => "timed region",
            Audit::Settings => "settings",
            Audit::TrainableSet => "trainable set",
            Audit::BatchDigest => "batch digest",
            Audit::TokenLedger => "token ledger",
            Audit::Training => "training",
            Audit::Weights => "weights",
        }
    }
}

impl Reason {
    /// The audit that it is of.
    pub fn audit(&self) -> Audit {
        match self {
            Reason::Audit { audit, .. } | Reason::AuditTrial { audit, .. } => *audit,
            Reason::WindowSteps { .. }
            | Reason::WindowTimes { .. }
            | Reason::TimeOutsideWindows { .. }
            | Reason::Clock { .. } => Audit::TimedRegion,
            Reason::Setting { .. }
            | Reason::LearningRate { .. }
            | Reason::Kernel { .. }
            | Reason::Launches { .. } => Audit::Settings,
            Reason::TrainableSet { .. } | Reason::ParameterCount { .. } => Audit::TrainableSet,
            Reason::Tokens { .. } | Reason::Digest { .. } | Reason::Samples { .. } => Audit::BatchDigest,
            Reason::LedgerSteps { .. } | Reason::Counts { .. } => Audit::TokenLedger,
            Reason::GradNorm { .. }
            | Reason::GroupNorms { .. }
            | Reason::LossNotFinite { .. }
            | Reason::TooFewSteps { .. }
            | Reason::LossDoesNotFall { .. } => Audit::Training,
            Reason::NoWeights
            | Reason::TrainedMissing(_)
            | Reason::Unchanged(_)
            | Reason::WeightsNotFinite(_)
            | Reason::FrozenChanged(_)
            | Reason::Lost(_)
            | Reason::Appeared(_) => Audit::Weights,
            _ => Audit::Protocol,
        }
    }
}
