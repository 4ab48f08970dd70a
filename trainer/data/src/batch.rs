//! One micro-batch as the model reads it.

use chronibench_protocol::{
    BatchDigest, TokenStore,
    event::TokenCounts,
    plan::{MicroBatch, StepPlan},
};

/// Label of a position that does not enter the loss (`ignore_index` of PyTorch and Hugging Face).
pub const IGNORE_INDEX: i32 = -100;

/// A rectangle of `T = rows × row_slots` positions, row-major.
///
/// Labels are already shifted: the model compares its output at position `i` with `labels[i]` and shifts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Id of the *next* token of the same document where that token is a target, else [`IGNORE_INDEX`]; `[T]`.
    pub labels: Vec<i32>,
    /// Position inside the document, from 0; `[T]`.
    pub positions: Vec<u32>,
    /// Document `d` is `cu_seqlens[d]..cu_seqlens[d + 1]` of the `T` positions; `[documents + 1]`, from 0 to `T`,
    /// strictly rising. The padding behind a row's last sample is a document of its own, so no document crosses a row
    /// and attention needs no other mask.
    pub cu_seqlens: Vec<u32>,
    /// Rows.
    pub rows: usize,
    /// Positions of every row.
    pub row_slots: usize,
    /// Slots, real tokens and loss tokens.
    pub counts: TokenCounts,
}

/// What decides which work a micro-batch is, besides the model: known of a plan before anything is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Geometry {
    /// Positions.
    pub slots: usize,
    /// Positions of every row.
    pub row_slots: usize,
    /// Positions with a label.
    pub loss_tokens: usize,
}

impl Geometry {
    /// Of what [`collate`] would lay out.
    ///
    /// # Errors
    /// The plan names a sample that the store does not have.
    pub fn of(micro: &MicroBatch, tokens: &TokenStore) -> Result<Self, BatchError> {
        let learned = |&sample: &u32| {
            if sample as usize >= tokens.len() {
                return Err(BatchError::NoSuchSample { sample, samples: tokens.len() });
            }
            let (_, loss_mask) = tokens.sample(sample as usize);
            Ok(loss_mask.iter().skip(1).filter(|learned| **learned != 0).count())
        };
        let loss_tokens = micro.rows.iter().flatten().map(learned).sum::<Result<_, _>>()?;
        let row_slots = micro.row_slots as usize;
        Ok(Self { slots: micro.rows.len() * row_slots, row_slots, loss_tokens })
    }
}

/// The micro-batches of one optimizer step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBatches {
    /// In the plan's order; their gradients add up.
    pub micro_batches: Vec<Batch>,
    /// Sum over the micro-batches; its `loss` is what the step's loss and gradient are divided by.
    pub counts: TokenCounts,
    /// [`BatchDigest`] of the ids, hexadecimal.
    pub digest: String,
    /// Samples of the rows, row after row.
    pub samples: Vec<u32>,
}

/// Why a micro-batch of a plan cannot be laid out. Each of them means that plan and token store do not belong together
/// or that one of the two is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The plan names a sample that the store does not have.
    #[error(
        "the batch plan names sample {sample}, the token store has {samples}; make the plan again from this store"
    )]
    NoSuchSample {
        /// Sample named.
        sample: u32,
        /// Samples in the store.
        samples: usize,
    },
    /// The samples of a row need more slots than the plan gives it.
    #[error(
        "row {row} holds {tokens} tokens, the batch plan gives it {row_slots} slots; make the plan again from this store"
    )]
    RowTooLong {
        /// Row inside the micro-batch, from 0.
        row: usize,
        /// Tokens of its samples.
        tokens: usize,
        /// Slots of the row.
        row_slots: usize,
    },
    /// A micro-batch without positions.
    #[error("a micro-batch of the batch plan has {rows} rows of {row_slots} slots; both must be at least 1")]
    NoPositions {
        /// Rows.
        rows: usize,
        /// Slots of a row.
        row_slots: usize,
    },
    /// More positions than 32-bit offsets can count.
    #[error(
        "a micro-batch of {rows} rows of {row_slots} slots is too large for 32-bit offsets; use smaller batches"
    )]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Slots of a row.
        row_slots: usize,
    },
    /// A token id that no label can hold.
    #[error(
        "sample {sample} holds token id {id}, which is no id of any vocabulary; make the token store again"
    )]
    TokenId {
        /// Sample.
        sample: u32,
        /// Id.
        id: u32,
    },
}

impl Batch {
    /// What decides which work it is.
    pub fn geometry(&self) -> Geometry {
        let loss_tokens = self.labels.iter().filter(|label| **label != IGNORE_INDEX).count();
        Geometry { slots: self.ids.len(), row_slots: self.row_slots, loss_tokens }
    }

    /// Adds the rows, padding included, to the digest of the step.
    pub fn feed(&self, digest: &mut BatchDigest) {
        self.ids.chunks(self.row_slots.max(1)).for_each(|row| digest.row(row));
    }

    fn with_capacity(micro: &MicroBatch) -> Result<Self, BatchError> {
        let (rows, row_slots) = (micro.rows.len(), micro.row_slots as usize);
        if rows == 0 || row_slots == 0 {
            return Err(BatchError::NoPositions { rows, row_slots });
        }
        let slots = rows
            .checked_mul(row_slots)
            .filter(|&t| t <= i32::MAX as usize)
            .ok_or(BatchError::TooLarge { rows, row_slots })?;
        Ok(Self {
            ids: Vec::with_capacity(slots),
            labels: Vec::with_capacity(slots),
            positions: Vec::with_capacity(slots),
            cu_seqlens: vec![0],
            rows,
            row_slots,
            counts: TokenCounts { slots: slots as u64, ..TokenCounts::default() },
        })
    }

    /// Appends one document: ids, their labels shifted inside it, positions from 0, and its end.
    fn document(&mut self, sample: u32, ids: &[u32], loss_mask: &[u8]) -> Result<(), BatchError> {
        if ids.is_empty() {
            return Ok(());
        }
        for (&next, &learned) in ids.iter().zip(loss_mask).skip(1) {
            let id = i32::try_from(next).map_err(|_| BatchError::TokenId { sample, id: next })?;
            self.labels.push(if learned != 0 { id } else { IGNORE_INDEX });
            self.counts.loss += u64::from(learned != 0);
        }
        // The token after the last one belongs to nobody, or to a stranger in the same row.
        self.labels.push(IGNORE_INDEX);
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len() as u32);
        self.cu_seqlens.push(self.ids.len() as u32);
        self.counts.real += ids.len() as u64;
        Ok(())
    }

    /// Fills the row up to `end` with padding.
    fn pad_to(&mut self, end: usize, pad_token_id: u32) {
        let tail = end - self.ids.len();
        if tail > 0 {
            self.ids.resize(end, pad_token_id);
            self.labels.resize(end, IGNORE_INDEX);
            self.positions.extend(0..tail as u32);
            self.cu_seqlens.push(end as u32);
        }
    }
}

/// Lays out one micro-batch of a plan.
///
/// # Errors
/// When the plan does not fit the token store.
pub fn collate(micro: &MicroBatch, tokens: &TokenStore, pad_token_id: u32) -> Result<Batch, BatchError> {
    let mut batch = Batch::with_capacity(micro)?;
    for (row, samples) in micro.rows.iter().enumerate() {
        let start = batch.ids.len();
        for &sample in samples {
            if sample as usize >= tokens.len() {
                return Err(BatchError::NoSuchSample { sample, samples: tokens.len() });
            }
            let (ids, loss_mask) = tokens.sample(sample as usize);
            batch.document(sample, ids, loss_mask)?;
        }
        let used = batch.ids.len() - start;
        if used > batch.row_slots {
            return Err(BatchError::RowTooLong { row, tokens: used, row_slots: batch.row_slots });
        }
        batch.pad_to(start + batch.row_slots, pad_token_id);
    }
    Ok(batch)
}

/// Lays out every micro-batch of one optimizer step.
///
/// Counts and digest come from the laid-out ids, not from the plan, so that they can be checked against
/// [`StepPlan::ledger`].
///
/// # Errors
/// When the plan does not fit the token store.
pub fn collate_step(
    step: &StepPlan,
    tokens: &TokenStore,
    pad_token_id: u32,
) -> Result<StepBatches, BatchError> {
    let micro_batches = step
        .micro_batches
        .iter()
        .map(|micro| collate(micro, tokens, pad_token_id))
        .collect::<Result<Vec<_>, _>>()?;
    let mut counts = TokenCounts::default();
    let mut digest = BatchDigest::new();
    for batch in &micro_batches {
        counts += batch.counts;
        batch.feed(&mut digest);
    }
    Ok(StepBatches { micro_batches, counts, digest: digest.finish(), samples: step.samples() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> TokenStore {
        let mut store = TokenStore::new();
        store.push(&[10, 11, 12], &[0, 1, 1]);
        store.push(&[20, 21], &[0, 1]);
        store.push(&[30], &[1]);
        store
    }

    #[test]
    fn a_packed_row_by_hand() {
        let micro = MicroBatch { row_slots: 6, rows: vec![vec![0, 1], vec![2]] };
        let batch = collate(&micro, &store(), 9).unwrap();
        assert_eq!(batch.ids, [10, 11, 12, 20, 21, 9, 30, 9, 9, 9, 9, 9]);
        let i = IGNORE_INDEX;
        assert_eq!(batch.labels, [11, 12, i, 21, i, i, i, i, i, i, i, i]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(batch.cu_seqlens, [0, 3, 5, 6, 7, 12]);
        assert_eq!((batch.rows, batch.row_slots), (2, 6));
        assert_eq!(batch.counts, TokenCounts { slots: 12, real: 6, loss: 3 });
        assert_eq!(batch.geometry(), Geometry { slots: 12, row_slots: 6, loss_tokens: 3 });
        assert_eq!(Geometry::of(&micro, &store()).unwrap(), batch.geometry(), "without laying it out");
    }

    #[test]
    fn a_plan_that_does_not_fit_is_an_error() {
        let lay = |row_slots, rows| collate(&MicroBatch { row_slots, rows }, &store(), 9).unwrap_err();
        assert_eq!(lay(6, vec![vec![3]]), BatchError::NoSuchSample { sample: 3, samples: 3 });
        let micro = MicroBatch { row_slots: 6, rows: vec![vec![3]] };
        assert_eq!(Geometry::of(&micro, &store()), Err(BatchError::NoSuchSample { sample: 3, samples: 3 }));
        assert_eq!(
            lay(4, vec![vec![2], vec![0, 1]]),
            BatchError::RowTooLong { row: 1, tokens: 5, row_slots: 4 }
        );
        assert_eq!(lay(0, vec![vec![]]), BatchError::NoPositions { rows: 1, row_slots: 0 });
        assert_eq!(lay(4, vec![]), BatchError::NoPositions { rows: 0, row_slots: 4 });
        assert!(matches!(lay(u32::MAX, vec![vec![0]]), BatchError::TooLarge { .. }));
        let mut odd = TokenStore::new();
        odd.push(&[1, u32::MAX], &[1, 1]);
        let micro = MicroBatch { row_slots: 2, rows: vec![vec![0]] };
        assert_eq!(collate(&micro, &odd, 9).unwrap_err(), BatchError::TokenId { sample: 0, id: u32::MAX });
    }
}
