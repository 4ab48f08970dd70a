//! What can go wrong in this arm.

use std::{io, path::PathBuf};

use chronibench_protocol::{event::Failure, tokens::TokenStoreError};

/// Why a trial of this arm failed. [`Failure::from`] turns it into the body of an `error` event.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// The specification, or a file it names, asks for something that cannot be done.
    #[error("{what} ({at}); {hint}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// Field or file.
        at: String,
        /// How to mend it.
        hint: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// File in question.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The token store could not be read.
    #[error(transparent)]
    Tokens(#[from] TokenStoreError),
    /// Loss or gradient norm is no longer a finite number.
    #[error("diverged at step {step}: loss {loss}, gradient norm {grad_norm}")]
    Diverged {
        /// Optimizer step, from 0.
        step: u32,
        /// Loss of that step.
        loss: f64,
        /// Global gradient norm of that step.
        grad_norm: f64,
    },
    /// A trainable tensor got no gradient: the graph between it and the loss is cut.
    #[error("no gradient reaches {name}")]
    NoGradient {
        /// Hugging Face or PEFT name.
        name: String,
    },
    /// candle refused an operation.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
    /// An event could not be delivered.
    #[error("events cannot be written: {0}")]
    Events(#[source] io::Error),
}

impl ArmError {
    pub(crate) fn invalid(what: impl Into<String>, at: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), at: at.into(), hint: hint.into() }
    }

    fn place_and_hint(&self) -> (String, &str) {
        match self {
            Self::Invalid { at, hint, .. } => (at.clone(), hint),
            Self::Io { path, .. } => {
                (path.display().to_string(), "check the path, permissions and disk space")
            }
            Self::Tokens(_) => {
                ("data.tokens".into(), "delete the token store, it is made again from the data set")
            }
            Self::Diverged { step, .. } => {
                (format!("step {step}"), "lower learning_rate, add warmup_steps, or set max_grad_norm")
            }
            Self::NoGradient { name } => (name.clone(), "use operations with a backward in the model"),
            Self::Candle(_) => {
                ("candle-core".into(), "check the model's config against its weights, and free memory")
            }
            Self::Events(_) => {
                ("events".into(), "check the path, permissions and disk space of the event file")
            }
        }
    }
}

impl From<&ArmError> for Failure {
    fn from(e: &ArmError) -> Self {
        let (at, hint) = e.place_and_hint();
        let what = match e {
            ArmError::Invalid { what, .. } => what.clone(),
            other => other.to_string(),
        };
        Failure { what, at, hint: hint.into() }
    }
}
