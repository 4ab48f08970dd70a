//! Which samples each step trains on.
//!
//! An epoch is one seeded shuffle of all samples, packed into rows as asked. Rows follow each other, epoch after epoch,
//! as one endless stream; a step takes the next `gradient_accumulation_steps × per_device_train_batch_size` of them.
//! The stream does not stop at the end of an epoch: a batch that an epoch cannot fill continues with the next epoch's
//! rows, so every micro-batch has the same number of rows and no sample is left out.
//!
//! Epoch `e` draws from ChaCha8 seeded with the run's seed, on stream `e`: first the permutation of the samples
//! (Fisher–Yates), then that of its bins. Nothing else is drawn, so step `n` depends on data, arguments, seed and `n`
//! only: a plan with more steps begins with the plan of fewer, and a resumed run takes up the plan where it stopped.

use chronibench_protocol::{
    BatchPlan,
    plan::{MicroBatch, StepPlan},
    record::{BatchArgs, Packing},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::packing::{self, PackError};

/// Rows of all steps together: every one is in memory. A hundred times the longest fine-tunings.
const MAX_ROWS: u64 = 100_000_000;

/// Why a plan cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to train on.
    #[error("the data set has no samples; check its path and the tokenisation report")]
    NoSamples,
    /// A count that must be positive is 0.
    #[error("{field} is 0; set it to 1 or more")]
    Zero {
        /// Name of the setting.
        field: &'static str,
    },
    /// A sample without a token.
    #[error("sample {index} has no tokens; leave it out of the token store")]
    EmptySample {
        /// Index into the token store.
        index: usize,
    },
    /// More samples than 32-bit indices can name.
    #[error("{samples} samples are more than a batch plan can name ({}); split the data set", u32::MAX)]
    TooManySamples {
        /// Samples in the data set.
        samples: usize,
    },
    /// A longer run than a plan is made for.
    #[error(
        "{steps} steps of {rows} rows are more than a batch plan holds ({MAX_ROWS} rows); train fewer steps"
    )]
    TooLong {
        /// Optimizer steps.
        steps: u32,
        /// Rows of each.
        rows: u64,
    },
    /// A sample that no row can hold.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Plans `total_steps` optimizer steps over samples of `lengths` tokens.
///
/// `max_length` is the capacity of a packed row, tokens. Every micro-batch has `per_device_train_batch_size` rows, each as
/// long as its longest row, or one row of as many samples where packing is `padding_free`. In every epoch each sample comes exactly once.
///
/// - `none`: one sample a row, in shuffled order.
/// - `padding_free`: the same samples, and those of a micro-batch in one row.
/// - `bfd`, `ff`: the whole epoch is packed in shuffled order and the bins are shuffled again, because both strategies
///   leave them sorted by how they came about (best-fit decreasing: longest samples first).
///
/// # Errors
/// See [`PlanError`].
pub fn build_plan(
    lengths: &[usize],
    args: &BatchArgs,
    max_length: u32,
    pad_token_id: u32,
    seed: u64,
    total_steps: u32,
) -> Result<BatchPlan, PlanError> {
    check(lengths, args, max_length, total_steps)?;
    let mut rows =
        Rows { lengths, packing: args.packing, max_length, seed, epoch: 0, queue: Vec::new().into_iter() };
    let mut steps = Vec::with_capacity(total_steps as usize);
    for _ in 0..total_steps {
        let micro_batches = (0..args.gradient_accumulation_steps)
            .map(|_| rows.micro_batch(args.per_device_train_batch_size))
            .collect::<Result<_, _>>()?;
        steps.push(StepPlan { micro_batches });
    }
    Ok(BatchPlan { packing: args.packing.name().into(), max_length, pad_token_id, steps })
}

/// Plans one evaluation: every sample once, in order of length so that rows need little padding; each step is one micro-batch of
/// up to `rows` rows, filled as in training.
///
/// # Errors
/// See [`PlanError`].
pub fn evaluation_plan(
    lengths: &[usize],
    packing: Packing,
    rows: u32,
    max_length: u32,
    pad_token_id: u32,
) -> Result<BatchPlan, PlanError> {
    let args = BatchArgs { packing, per_device_train_batch_size: rows, gradient_accumulation_steps: 1 };
    check(lengths, &args, max_length, 1)?;
    let mut bins = packing::pack(lengths, max_length as usize, packing)?;
    let tokens = |bin: &[usize]| bin.iter().map(|&s| lengths[s]).sum::<usize>();
    bins.sort_by_key(|bin| std::cmp::Reverse(tokens(bin)));
    let step = |bins: &[Vec<usize>]| {
        let mut rows: Vec<Vec<u32>> =
            bins.iter().map(|bin| bin.iter().map(|&s| s as u32).collect()).collect();
        let mut row_slots = bins.iter().map(|bin| tokens(bin)).max().unwrap_or(0);
        if packing == Packing::PaddingFree {
            rows = vec![rows.concat()];
            row_slots = bins.iter().map(|bin| tokens(bin)).sum();
        }
        StepPlan { micro_batches: vec![MicroBatch { row_slots: row_slots as u32, rows }] }
    };
    let steps = bins.chunks(rows as usize).map(step).collect();
    Ok(BatchPlan { packing: packing.name().into(), max_length, pad_token_id, steps })
}

fn check(lengths: &[usize], args: &BatchArgs, max_length: u32, total_steps: u32) -> Result<(), PlanError> {
    let counts = [
        ("per_device_train_batch_size", args.per_device_train_batch_size),
        ("gradient_accumulation_steps", args.gradient_accumulation_steps),
        ("max_length", max_length),
        ("the number of steps", total_steps),
    ];
    if let Some(&(field, _)) = counts.iter().find(|(_, n)| *n == 0) {
        return Err(PlanError::Zero { field });
    }
    let rows = u64::from(args.per_device_train_batch_size) * u64::from(args.gradient_accumulation_steps);
    if rows.checked_mul(total_steps.into()).is_none_or(|all| all > MAX_ROWS) {
        return Err(PlanError::TooLong { steps: total_steps, rows });
    }
    if lengths.is_empty() {
        return Err(PlanError::NoSamples);
    }
    if let Some(index) = lengths.iter().position(|&n| n == 0) {
        return Err(PlanError::EmptySample { index });
    }
    if lengths.len() > u32::MAX as usize {
        return Err(PlanError::TooManySamples { samples: lengths.len() });
    }
    // Here and not in the epochs, so that the error names the sample by its place in the token store.
    packing::pack(lengths, max_length as usize, Packing::None)?;
    Ok(())
}

/// The endless stream of rows.
struct Rows<'a> {
    lengths: &'a [usize],
    packing: Packing,
    max_length: u32,
    seed: u64,
    /// Epoch to draw when the queue is empty.
    epoch: u64,
    queue: std::vec::IntoIter<Vec<u32>>,
}

impl Rows<'_> {
    fn micro_batch(&mut self, rows: u32) -> Result<MicroBatch, PackError> {
        let mut rows = (0..rows).map(|_| self.next_row()).collect::<Result<Vec<_>, _>>()?;
        if self.packing == Packing::PaddingFree {
            rows = vec![rows.concat()];
        }
        let tokens = |row: &Vec<u32>| row.iter().map(|&s| self.lengths[s as usize]).sum::<usize>();
        let row_slots = rows.iter().map(tokens).max().unwrap_or(0) as u32;
        Ok(MicroBatch { row_slots, rows })
    }

    fn next_row(&mut self) -> Result<Vec<u32>, PackError> {
        loop {
            if let Some(row) = self.queue.next() {
                return Ok(row);
            }
            self.queue = self.draw_epoch()?.into_iter();
            self.epoch += 1;
        }
    }

    fn draw_epoch(&self) -> Result<Vec<Vec<u32>>, PackError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.epoch);
        let mut order: Vec<u32> = (0..self.lengths.len() as u32).collect();
        order.shuffle(&mut rng);
        let shuffled: Vec<usize> = order.iter().map(|&s| self.lengths[s as usize]).collect();
        let mut bins = packing::pack(&shuffled, self.max_length as usize, self.packing)?;
        if matches!(self.packing, Packing::Bfd | Packing::Ff) {
            bins.shuffle(&mut rng);
        }
        Ok(bins.into_iter().map(|bin| bin.into_iter().map(|i| order[i]).collect()).collect())
    }
}
