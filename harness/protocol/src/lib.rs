//! What every arm of a comparison and the harness agree on.
//!
//! An *arm* is a child process: `ARM --spec spec.json --events events.jsonl`. It reads one [`Spec`], appends one
//! [`Event`] per line, and saves its weights when asked to. The harness owns data, seeds, order, counting and
//! verdicts; an arm translates settings and runs steps.
//!
//! Besides the types this crate holds the few definitions that both sides must share to the last bit:
//! [`digest::BatchDigest`], the [`tokens::TokenStore`] and the [`plan::BatchPlan`].

pub mod audit;
pub mod chain;
pub mod data;
pub mod digest;
pub mod event;
pub mod init;
pub mod kernels;
pub mod parity;
pub mod patterns;
pub mod peak;
pub mod plan;
pub mod record;
pub mod resolved;
pub mod sample;
pub mod spec;
pub mod tokens;

pub use chain::Record;
pub use digest::BatchDigest;
pub use event::Event;
pub use plan::BatchPlan;
pub use spec::Spec;
pub use tokens::TokenStore;
