//! Tiles and online softmax: memory linear in the number of tokens.
//!
//! A task is one key/value head of one document, with all its query heads: keys and values are packed once, and their
//! gradients are complete inside the task, so nothing is added across tasks and results do not depend on scheduling.

pub(super) mod backward;
pub(super) mod forward;

/// Rows of a query block, a whole number of strips.
const QUERY_BLOCK: usize = 96;

/// Columns of a key block, a whole number of strips and of panels.
const KEY_BLOCK: usize = 96;
