//! One test for each known defect of instruction-data pipelines. Each would fail on the defect it is named after.

mod common;

use chronibench_protocol::{
    TokenStore,
    plan::MicroBatch,
    record::{BatchArgs, Packing},
};
use chronicals_data::{
    batch::{Batch, IGNORE_INDEX, collate},
    packing::pack,
    plan::build_plan,
    records::Record,
    template::{Loss, Template},
    tokenize::{Overlong, TokenizeArgs, tokenize},
    tokenizer::{TextTokenizer, TokenizerArgs},
};

/// Two samples in one row with two slots to spare.
fn packed(pad_token_id: u32) -> Batch {
    let mut store = TokenStore::new();
    store.push(&[1, 2, 3, 4], &[1; 4]);
    store.push(&[5, 6, 7], &[1; 3]);
    collate(&MicroBatch { row_slots: 9, rows: vec![vec![0, 1]] }, &store, pad_token_id).unwrap()
}

#[test]
fn labels_are_shifted_once() {
    let batch = packed(0);
    // Unshifted, the first label would be 1; shifted twice, 3.
    assert_eq!(batch.labels[..3], [2, 3, 4]);
    assert_eq!(batch.labels[4..6], [6, 7]);
}

#[test]
fn no_label_reaches_into_the_next_document() {
    let batch = packed(0);
    assert_eq!(
        batch.labels[3], IGNORE_INDEX,
        "the first sample's end would be taught the second's beginning"
    );
    assert_eq!(batch.labels[6], IGNORE_INDEX, "the last sample's end would be taught padding");
}

#[test]
fn packed_documents_have_their_own_positions_and_bounds() {
    let batch = packed(0);
    assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1, 2, 0, 1]);
    assert_eq!(batch.cu_seqlens, [0, 4, 7, 9]);
}

#[test]
fn padding_has_no_labels() {
    let batch = packed(0);
    assert_eq!(batch.labels[7..], [IGNORE_INDEX; 2]);
    assert_eq!(batch.counts.loss, 5);
}

#[test]
fn padding_is_not_counted_as_tokens() {
    let counts = packed(0).counts;
    assert_eq!((counts.slots, counts.real), (9, 7));
}

#[test]
fn eos_is_learned_where_it_is_the_padding_token_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = common::save(&common::bytes(&["<|endoftext|>"]), dir.path());
    let names = TokenizerArgs { pad_token: Some("<|endoftext|>".into()), ..Default::default() };
    let tokenizer = TextTokenizer::load(&path, &names).unwrap();
    let (eos, pad) = (tokenizer.eos().id, tokenizer.pad().id);
    assert_eq!(eos, pad);
    let args = TokenizeArgs {
        template: Template::Text,
        max_length: 16,
        overlong: Overlong::Refuse,
        loss: Loss { completion_only: Some(true), assistant_only: false },
    };
    let (store, _) = tokenize([Ok(Record::Text { text: "ab".into() })], &tokenizer, &args).unwrap();
    let batch = collate(&MicroBatch { row_slots: 5, rows: vec![vec![0]] }, &store, pad).unwrap();
    assert_eq!(batch.ids[2..], [eos, pad, pad]);
    assert_eq!(batch.labels[1..], [eos as i32, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]);
}

#[test]
fn the_packer_keeps_every_bin() {
    for strategy in [Packing::None, Packing::Bfd, Packing::Ff] {
        let bins = pack(&[5; 12], 10, strategy).unwrap();
        assert_eq!(bins.concat().len(), 12);
        assert_eq!(bins.len(), if strategy == Packing::None { 12 } else { 6 });
    }
    let args =
        BatchArgs { packing: Packing::Bfd, per_device_train_batch_size: 1, gradient_accumulation_steps: 1 };
    let plan = build_plan(&[5; 12], &args, 10, 0, 1, 6).unwrap();
    let mut samples: Vec<u32> = plan.steps.iter().flat_map(|s| s.micro_batches[0].rows.concat()).collect();
    samples.sort_unstable();
    assert_eq!(samples, (0..12).collect::<Vec<_>>());
}

#[test]
fn the_packer_drops_no_overlong_sample() {
    for strategy in [Packing::None, Packing::Bfd, Packing::Ff] {
        let e = pack(&[4, 11], 10, strategy).unwrap_err();
        assert_eq!((e.index, e.length, e.capacity), (1, 11, 10));
    }
}

#[test]
fn resuming_goes_on_with_unseen_samples() {
    let args =
        BatchArgs { packing: Packing::Ff, per_device_train_batch_size: 2, gradient_accumulation_steps: 2 };
    let lengths: Vec<usize> = (0..50).map(|i| 1 + i * 7 % 20).collect();
    let whole = build_plan(&lengths, &args, 20, 0, 5, 12).unwrap();
    // Stopped after step 4 and resumed with more steps to go: step 4 is what it would have been, none of the first.
    let resumed = build_plan(&lengths, &args, 20, 0, 5, 30).unwrap();
    assert_eq!(resumed.steps[4..12], whole.steps[4..]);
    assert!(whole.steps[..4].iter().all(|step| *step != resumed.steps[4]));
    let seen: Vec<u32> =
        whole.steps[..5].iter().flat_map(|s| &s.micro_batches).flat_map(|m| m.rows.concat()).collect();
    let mut unique = seen.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), seen.len(), "an epoch has more than five steps here, so nothing repeats yet");
}
