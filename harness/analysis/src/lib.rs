//! Statistics, verdicts and reports: pure functions from records to values.
//!
//! Nothing here reads a file, a clock or the environment, so that a report rebuilt from stored lines is the same to the
//! last byte. The way of a trial: stored lines → [`TrialLog`] → [`mod@metrics`] and [`mod@judge`] → [`summary::RunSummary`] →
//! [`report`]. A trial of kernels goes through [`kernels`].

pub mod across;
pub mod agreement;
pub mod asked;
pub mod changepoint;
pub mod claims;
pub mod compare;
mod comparisons;
mod division;
pub mod efficiency;
mod format;
pub mod gate;
pub mod history;
pub mod html;
pub mod join;
pub mod judge;
pub mod kernels;
pub mod metrics;
pub mod report;
mod rounding;
mod rounds;
pub mod sequential;
pub mod shapley;
pub mod skipped;
pub mod slow;
pub mod stats;
pub mod summary;
pub mod sweep;
pub mod table;
pub mod trial;

pub use format::times;
pub use judge::{Judgement, Reason, judge};
pub use metrics::TrialMetrics;
pub use summary::{RunSummary, summarise};
pub use trial::TrialLog;
