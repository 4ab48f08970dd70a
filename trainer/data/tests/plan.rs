//! Properties of batch plans and of the batches laid out from them.

use std::collections::BTreeMap;

use chronibench_protocol::{
    BatchPlan, TokenStore,
    record::{BatchArgs, Packing},
};
use chronicals_data::{
    batch::{Batch, IGNORE_INDEX, collate_step},
    packing::PackError,
    plan::{PlanError, build_plan},
};
use proptest::prelude::*;

const PAD: u32 = 7;
const MAX_LENGTH: u32 = 24;

fn args(packing: Packing, rows: u32, accumulation: u32) -> BatchArgs {
    BatchArgs { packing, per_device_train_batch_size: rows, gradient_accumulation_steps: accumulation }
}

fn any_args() -> impl Strategy<Value = BatchArgs> {
    let packing = prop::sample::select(vec![Packing::None, Packing::Bfd, Packing::Ff, Packing::PaddingFree]);
    (packing, 1u32..=5, 1u32..=3).prop_map(|(p, rows, accumulation)| args(p, rows, accumulation))
}

/// Samples with ids of their own: token `i` of sample `s` is `1000 · (s + 1) + i`.
fn any_store() -> impl Strategy<Value = TokenStore> {
    prop::collection::vec(prop::collection::vec(0u8..=1, 1..=MAX_LENGTH as usize), 1..40).prop_map(|masks| {
        let mut store = TokenStore::new();
        for (s, mask) in masks.iter().enumerate() {
            let first = 1000 * (s as u32 + 1);
            store.push(&(first..first + mask.len() as u32).collect::<Vec<_>>(), mask);
        }
        store
    })
}

fn plan(store: &TokenStore, args: &BatchArgs, seed: u64, steps: u32) -> BatchPlan {
    build_plan(&store.lengths(), args, MAX_LENGTH, PAD, seed, steps).unwrap()
}

fn rows(plan: &BatchPlan) -> Vec<Vec<u32>> {
    plan.steps.iter().flat_map(|s| &s.micro_batches).flat_map(|m| m.rows.clone()).collect()
}

proptest! {
    #[test]
    fn every_sample_once_an_epoch_and_full_shapes(store in any_store(), args in any_args(), seed: u64) {
        let lengths = store.lengths();
        let plan = plan(&store, &args, seed, 60);
        let samples: Vec<u32> = rows(&plan).concat();
        for epoch in samples.chunks_exact(lengths.len()) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..lengths.len() as u32).collect::<Vec<_>>());
        }
        prop_assert_eq!(plan.steps.len(), 60);
        for step in &plan.steps {
            prop_assert_eq!(step.micro_batches.len(), args.gradient_accumulation_steps as usize);
            for micro in &step.micro_batches {
                let samples = args.per_device_train_batch_size;
                let joined = args.packing == Packing::PaddingFree;
                prop_assert_eq!(micro.rows.len(), if joined { 1 } else { samples as usize });
                prop_assert!(!joined || micro.rows[0].len() == samples as usize);
                let used = micro.rows.iter().map(|r| r.iter().map(|&s| lengths[s as usize]).sum::<usize>());
                prop_assert_eq!(used.max(), Some(micro.row_slots as usize));
                let longest = if joined { samples * MAX_LENGTH } else { MAX_LENGTH };
                prop_assert!(micro.row_slots <= longest);
                prop_assert!(args.packing != Packing::None || micro.rows.iter().all(|r| r.len() == 1));
            }
        }
    }

    #[test]
    fn a_longer_plan_begins_with_the_shorter(store in any_store(), args in any_args(), seed: u64, steps in 1u32..20) {
        let (short, long) = (plan(&store, &args, seed, steps), plan(&store, &args, seed, 30));
        prop_assert_eq!(&short.steps[..], &long.steps[..steps as usize]);
    }

    #[test]
    fn batches_agree_with_the_ledger(store in any_store(), args in any_args(), seed: u64) {
        for step in &plan(&store, &args, seed, 12).steps {
            let batches = collate_step(step, &store, PAD).unwrap();
            let (digest, counts) = step.ledger(&store, PAD);
            prop_assert_eq!(&batches.digest, &digest);
            prop_assert_eq!(batches.counts, counts);
            let learned = |b: &Batch| b.labels.iter().filter(|&&l| l != IGNORE_INDEX).count() as u64;
            prop_assert_eq!(batches.micro_batches.iter().map(learned).sum::<u64>(), counts.loss);
        }
    }

    #[test]
    fn documents_are_whole_and_apart(store in any_store(), args in any_args(), seed: u64) {
        for step in &plan(&store, &args, seed, 12).steps {
            let batches = collate_step(step, &store, PAD).unwrap().micro_batches;
            for (batch, micro) in batches.iter().zip(&step.micro_batches) {
                check_documents(batch, &micro.rows, &store)?;
            }
        }
    }
}

/// Walks the documents by `cu_seqlens` and compares each with the sample it should be, or with padding.
fn check_documents(batch: &Batch, rows: &[Vec<u32>], store: &TokenStore) -> Result<(), TestCaseError> {
    let slots = batch.rows * batch.row_slots;
    for len in [batch.ids.len(), batch.labels.len(), batch.positions.len()] {
        prop_assert_eq!(len, slots);
    }
    let cu: Vec<usize> = batch.cu_seqlens.iter().map(|&c| c as usize).collect();
    prop_assert_eq!((cu[0], cu[cu.len() - 1]), (0, slots));
    let mut samples =
        rows.iter().enumerate().flat_map(|(row, samples)| samples.iter().map(move |&s| (row, s)));
    for span in cu.windows(2) {
        let (start, end) = (span[0], span[1]);
        prop_assert!(start < end);
        prop_assert_eq!(start / batch.row_slots, (end - 1) / batch.row_slots, "a document crosses a row");
        prop_assert_eq!(&batch.positions[start..end], &(0..(end - start) as u32).collect::<Vec<_>>()[..]);
        prop_assert_eq!(batch.labels[end - 1], IGNORE_INDEX);
        if batch.ids[start] == PAD {
            prop_assert!(batch.ids[start..end].iter().all(|&id| id == PAD));
            prop_assert!(batch.labels[start..end].iter().all(|&label| label == IGNORE_INDEX));
            prop_assert_eq!(end % batch.row_slots, 0, "padding is only behind a row");
        } else {
            let (row, sample) = samples.next().unwrap();
            let (ids, mask) = store.sample(sample as usize);
            prop_assert_eq!(row, start / batch.row_slots);
            prop_assert_eq!(&batch.ids[start..end], ids);
            for i in 1..ids.len() {
                let expected = if mask[i] == 1 { ids[i] as i32 } else { IGNORE_INDEX };
                prop_assert_eq!(batch.labels[start + i - 1], expected);
            }
        }
    }
    prop_assert!(samples.next().is_none());
    Ok(())
}

#[test]
fn epochs_and_seeds_differ_and_repeat_exactly() {
    let lengths = vec![1; 32];
    let epochs = |seed| {
        let plan = build_plan(&lengths, &args(Packing::None, 32, 1), 8, PAD, seed, 3).unwrap();
        plan.steps.iter().map(|s| s.micro_batches[0].rows.concat()).collect::<Vec<_>>()
    };
    let first = epochs(1);
    assert_ne!(first[0], first[1]);
    assert_ne!(first[1], first[2]);
    assert_ne!(first[0], (0..32).collect::<Vec<_>>());
    assert_ne!(first[0], epochs(2)[0]);
    assert_eq!(first, epochs(1));
}

#[test]
fn the_order_of_a_seed_does_not_change_between_versions() {
    let plan = build_plan(&[3, 1, 4, 1, 5, 2], &args(Packing::Bfd, 2, 1), 6, PAD, 42, 3).unwrap();
    assert_eq!(rows(&plan), GOLDEN);
}

const GOLDEN: [&[u32]; 6] = [&[4, 1], &[2, 5], &[0, 3], &[0, 1], &[4, 3], &[2, 5]];

#[test]
fn packing_is_drawn_anew_every_epoch() {
    // Equal halves: which two share a row is the shuffle's choice.
    let plan = build_plan(&[4; 8], &args(Packing::Bfd, 4, 1), 8, PAD, 3, 20).unwrap();
    let mut partners: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for row in rows(&plan) {
        partners.entry(row[0]).or_default().push(row[1]);
        partners.entry(row[1]).or_default().push(row[0]);
    }
    for (sample, mut others) in partners {
        others.sort_unstable();
        others.dedup();
        assert!(others.len() > 2, "sample {sample} only ever shares a row with {others:?}");
    }
}

#[test]
fn impossible_plans_are_errors() {
    let build = |lengths: &[usize], rows, accumulation, max_length, steps| {
        build_plan(lengths, &args(Packing::None, rows, accumulation), max_length, PAD, 0, steps).unwrap_err()
    };
    assert_eq!(build(&[], 1, 1, 8, 1), PlanError::NoSamples);
    assert_eq!(build(&[1], 0, 1, 8, 1), PlanError::Zero { field: "per_device_train_batch_size" });
    assert_eq!(build(&[1], 1, 0, 8, 1), PlanError::Zero { field: "gradient_accumulation_steps" });
    assert_eq!(build(&[1], 1, 1, 0, 1), PlanError::Zero { field: "max_length" });
    assert_eq!(build(&[1], 1, 1, 8, 0), PlanError::Zero { field: "the number of steps" });
    let too_long = PlanError::TooLong { steps: u32::MAX, rows: 6 };
    assert_eq!(build(&[1], 2, 3, 8, u32::MAX), too_long);
    assert_eq!(build(&[2, 0], 1, 1, 8, 1), PlanError::EmptySample { index: 1 });
    let too_long = PackError { index: 2, length: 9, capacity: 8 };
    assert_eq!(build(&[1, 8, 9], 1, 1, 8, 1), PlanError::Pack(too_long));
}
