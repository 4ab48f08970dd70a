//! Defects that fine-tuning programs have really shipped, each with a test that this trainer does not have it.
//!
//! Those of packing and labels are in `trainer/data/tests/regressions.rs`, those of single kernels beside the kernels.

use chronibench_protocol::spec::Method;
use chronicals::{Trainer, backend::Backend, backend::cpu::CpuBackend};
use chronicals_tests::golden::{Case, Geometry, Golden};

fn values(trainer: &Trainer<CpuBackend>) -> Vec<f32> {
    let m = trainer.model();
    trainer.backend().read(m.adapters.unwrap_or(m.weights)).unwrap()
}

/// LoRA+ wants the higher rate on B. A name test that never matches, or A and B swapped, gives it to nobody or to A.
#[test]
fn lora_plus_raises_the_rate_of_b_and_not_of_a() {
    let golden = Golden::load("qwen2");
    let batches = golden.batches(Geometry::Packed, 1);
    let mut case = Case::lora();
    case.args.learning_rate = 1e-4;
    case.args.max_grad_norm = 0.0;
    let mut trainer = golden.trainer(&case, &batches);
    let before = values(&trainer);
    let report = trainer.train_step(&batches.step(0).unwrap()).unwrap();
    assert_eq!(report.lr["lora_B"], 16.0 * report.lr["lora_A"]);
    let after = values(&trainer);
    for t in &trainer.trainable().tensors {
        let span = t.offset..t.offset + t.len();
        let moved = before[span.clone()].iter().zip(&after[span]).map(|(a, b)| (a - b).abs());
        let largest = moved.fold(0.0_f32, f32::max);
        // AdamW's first update is the rate times the sign of the gradient.
        let rate = report.lr[t.group] as f32;
        assert!((largest / rate - 1.0).abs() < 0.02, "{}: moved {largest}, rate {rate}", t.name);
    }
}

/// With B = 0, A has no gradient: only B moves at step one, and A from step two on.
#[test]
fn a_moves_once_b_has() {
    let golden = Golden::load("llama");
    let batches = golden.batches(Geometry::Packed, 2);
    let mut trainer = golden.fresh_adapters(&Case::lora(), &batches, 3);
    let start = values(&trainer);
    let snapshots: Vec<Vec<f32>> = (0..2)
        .map(|s| {
            trainer.train_step(&batches.step(s).unwrap()).unwrap();
            values(&trainer)
        })
        .collect();
    for t in &trainer.trainable().tensors {
        let span = t.offset..t.offset + t.len();
        let first = start[span.clone()] != snapshots[0][span.clone()];
        assert_eq!(first, t.group == "lora_B", "{} at step one", t.name);
        assert_ne!(snapshots[0][span.clone()], snapshots[1][span], "{} at step two", t.name);
    }
}

/// Clipping scales all gradients by one factor. Per-group clipping would turn the gradient's direction.
#[test]
fn clipping_is_global() {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 1);
    let step = batches.step(0).unwrap();
    for mut case in [Case::full(), Case::lora()] {
        case.args.max_grad_norm = 0.05;
        let mut trainer = golden.trainer(&case, &batches);
        let (_, grads) = trainer.gradients(&step.micro_batches).unwrap();
        let norm = trainer.train_step(&step).unwrap().grad_norm;
        assert!(norm > 0.05, "the case clips");
        let squares = grads.values().flatten().map(|&g| f64::from(g).powi(2));
        assert!((squares.sum::<f64>().sqrt() / norm - 1.0).abs() < 1e-6);
        let expected = 0.05 / norm;
        for g in trainer.model().groups.clone() {
            // After one step the first moment is (1 − β₁) times the clipped gradient.
            let m = trainer.backend().read(g.m).unwrap();
            let raw = trainer.backend().read(g.grad).unwrap();
            for (m, raw) in m.iter().zip(&raw).filter(|(_, raw)| raw.abs() > 1e-4) {
                let factor = f64::from(*m) / 0.1 / f64::from(*raw);
                assert!((factor / expected - 1.0).abs() < 1e-3, "{}: {factor} is not {expected}", g.name);
            }
        }
    }
}

/// The schedule counts optimizer steps, not micro-batches.
#[test]
fn the_schedule_does_not_run_faster_under_accumulation() {
    let golden = Golden::load("llama");
    for geometry in [Geometry::Accumulated, Geometry::Packed] {
        let batches = golden.batches(geometry, 10);
        let mut trainer = golden.trainer(&Case::full(), &batches);
        for s in 0..10 {
            let lr = trainer.train_step(&batches.step(s).unwrap()).unwrap().lr["all"];
            assert!((lr - 1e-2 * (1.0 - f64::from(s) / 10.0)).abs() < 1e-12, "{geometry:?} step {s}: {lr}");
        }
    }
}

/// Softmax minus one-hot sums to zero over the vocabulary; a backward that forgets the one-hot, also only in rows
/// beside masked ones, leaves the loss tokens' states behind.
#[test]
fn the_one_hot_is_subtracted_beside_masked_rows() {
    let golden = Golden::load("llama");
    let batches = golden.batches(Geometry::Padded, 1);
    let mut trainer = golden.trainer(&Case::full(), &batches);
    let (_, grads) = trainer.gradients(&batches.step(0).unwrap().micro_batches).unwrap();
    let head = &grads["lm_head.weight"];
    let d = golden.config.hidden_size;
    let largest = head.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    for k in 0..d {
        let column: f32 = head.iter().skip(k).step_by(d).sum();
        assert!(
            column.abs() < 1e-5 * largest * golden.config.vocab_size as f32,
            "column {k} sums to {column}"
        );
    }
}

/// No rank is cut off at a tile's edge: every row of A and every column of B learns, whatever the rank.
#[test]
fn ranks_beyond_a_tile_are_whole() {
    let golden = Golden::load("qwen2");
    let batches = golden.batches(Geometry::Packed, 2);
    for rank in [1, 17, 33] {
        let mut case = Case::lora();
        let Method::Lora(args) = &mut case.method else { unreachable!("the case is LoRA") };
        args.r = rank;
        args.lora_alpha = rank as f64;
        let mut trainer = golden.fresh_adapters(&case, &batches, 5);
        trainer.train_step(&batches.step(0).unwrap()).unwrap();
        let (_, grads) = trainer.gradients(&batches.step(1).unwrap().micro_batches).unwrap();
        for t in &trainer.trainable().tensors {
            let g = &grads[&t.name];
            let vectors: Vec<bool> = (0..rank)
                .map(|r| match t.group {
                    "lora_A" => g[r * t.shape[1]..][..t.shape[1]].iter().any(|&v| v != 0.0),
                    _ => g.iter().skip(r).step_by(rank).any(|&v| v != 0.0),
                })
                .collect();
            assert!(vectors.iter().all(|&learns| learns), "{} of rank {rank}: {vectors:?}", t.name);
        }
    }
}

/// A batch that masks everything has no mean loss.
#[test]
fn a_step_without_a_loss_token_is_refused_not_divided_by_zero() {
    let golden = Golden::load("qwen2");
    let batches = golden.batches(Geometry::Packed, 1);
    let mut step = batches.step(0).unwrap();
    step.micro_batches[0].labels.fill(-100);
    step.micro_batches[0].counts.loss = 0;
    step.counts.loss = 0;
    let error = golden.trainer(&Case::full(), &batches).train_step(&step).unwrap_err();
    assert!(error.to_string().contains("no token to learn"), "{error}");
}

/// NaN in a weight ends the run at that step with a message, instead of training on.
#[test]
fn divergence_is_an_error_at_its_step() {
    let golden = Golden::load("qwen2");
    let batches = golden.batches(Geometry::Packed, 10);
    let mut case = Case::full();
    case.args.learning_rate = 1e30;
    case.args.max_grad_norm = 0.0;
    let mut trainer = golden.trainer(&case, &batches);
    let error =
        (0..10).find_map(|s| trainer.train_step(&batches.step(s).unwrap()).err()).expect("1e30 diverges");
    assert!(error.to_string().contains("diverged"), "{error}");
}
