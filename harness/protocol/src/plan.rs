//! Which samples each step trains on, and in what geometry.

use serde::{Deserialize, Serialize};

use crate::{digest::BatchDigest, event::TokenCounts, tokens::TokenStore};

/// The batches of a whole trial, decided before it starts and equal for every arm that follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchPlan {
    /// How rows were filled: `none` (one sample a row), `bfd`, `ff`, or `padding_free` (a micro-batch is one row).
    pub packing: String,
    /// No sample is longer than this and, unless `padding_free`, no row.
    pub max_length: u32,
    /// Id that fills the slots behind a row's last sample.
    pub pad_token_id: u32,
    /// One entry an optimizer step.
    pub steps: Vec<StepPlan>,
}

/// One optimizer step: its micro-batches, whose gradients add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepPlan {
    /// At least one.
    pub micro_batches: Vec<MicroBatch>,
}

/// A rectangle of `rows.len() × row_slots` positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MicroBatch {
    /// Slots of every row: the length of the longest.
    pub row_slots: u32,
    /// Sample indices into the [`TokenStore`], row by row. Samples of one row follow each other without separators and
    /// do not see each other; what remains of the row is padding.
    pub rows: Vec<Vec<u32>>,
}

impl MicroBatch {
    /// The ids of one row as they enter the model, padding included.
    pub fn row_ids(&self, row: usize, tokens: &TokenStore, pad_token_id: u32) -> Vec<u32> {
        let mut ids: Vec<u32> =
            self.rows[row].iter().flat_map(|&s| tokens.sample(s as usize).0).copied().collect();
        ids.resize(ids.len().max(self.row_slots as usize), pad_token_id);
        ids
    }
}

impl StepPlan {
    /// Samples of this step, row after row.
    pub fn samples(&self) -> Vec<u32> {
        self.micro_batches.iter().flat_map(|micro| micro.rows.iter().flatten().copied()).collect()
    }

    /// Digest and counts of this step, computed from the token store alone.
    pub fn ledger(&self, tokens: &TokenStore, pad_token_id: u32) -> (String, TokenCounts) {
        let mut digest = BatchDigest::new();
        let mut counts = TokenCounts::default();
        for micro in &self.micro_batches {
            for row in 0..micro.rows.len() {
                digest.row(&micro.row_ids(row, tokens, pad_token_id));
                counts.slots += u64::from(micro.row_slots);
                for &s in &micro.rows[row] {
                    let (ids, mask) = tokens.sample(s as usize);
                    counts.real += ids.len() as u64;
                    counts.loss += mask.iter().skip(1).filter(|&&m| m != 0).count() as u64;
                }
            }
        }
        (digest.finish(), counts)
    }
}
