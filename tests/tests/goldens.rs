//! The model step against what Hugging Face Transformers and PEFT compute, in f64, for tiny models.
//!
//! Tolerances are about ten times what Transformers itself is off in f32 (see `goldens/README.md`).

use chronicals::{KernelPlan, Target, Variant, data::batch::Batch, model::Level};
use chronicals_tests::golden::{Case, DOCUMENTS, FAMILIES, Geometry, Golden, VARIANTS, assert_close, wide};

const LOGITS: f64 = 2e-5;
const LOSS: f64 = 2e-6;
const GRADIENT: f64 = 5e-5;
/// Ten steps multiply the first step's rounding; LoRA+ at this rate more so (Transformers itself: 2e-5 and 1e-3).
const TEN_LOSSES: [f64; 2] = [2e-5, 2e-4];
const TEN_NORMS: [f64; 2] = [1e-4, 1e-2];

/// `y · headᵀ` in f64 from the normalised residual stream of one document.
fn logits(golden: &Golden, case: &Case, document: usize) -> Vec<f64> {
    let batches = golden.batches(Geometry::Accumulated, 1);
    let batch: Batch = batches.step(0).unwrap().micro_batches.swap_remove(document);
    let mut trainer = golden.trainer(case, &batches);
    trainer.evaluate(std::slice::from_ref(&batch)).unwrap();
    let (b, m) = (trainer.backend(), trainer.model());
    use chronicals::backend::Backend;
    let (y, head) = (wide(&b.read(m.y).unwrap()), wide(&b.read(m.head.value).unwrap()));
    let d = golden.config.hidden_size;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let rows = y.chunks(d).take(batch.ids.len());
    rows.flat_map(|row| head.chunks(d).map(|w| dot(row, w)).collect::<Vec<_>>()).collect()
}

#[test]
fn logits_match() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        for case in [Case::full(), Case::lora()] {
            for kernels in Variant::ALL.map(KernelPlan::uniform) {
                let case = case.clone().with(kernels);
                for document in 0..DOCUMENTS {
                    let name = format!("{}doc{document}.logits", case.prefix());
                    let got = logits(&golden, &case, document);
                    assert_close(&format!("{family} {name}"), &got, &golden.get(&name), LOGITS);
                }
            }
        }
    }
}

#[test]
fn loss_and_every_gradient_match_packed_padded_and_accumulated() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        for case in [Case::full(), Case::lora()] {
            for kernels in Variant::ALL.map(KernelPlan::uniform) {
                for geometry in [Geometry::Packed, Geometry::Padded, Geometry::Accumulated] {
                    let case = case.clone().with(kernels);
                    check_gradients(family, &golden, &case, geometry);
                }
            }
        }
    }
}

/// LoRA as PEFT's settings vary it: each of a folder that PEFT wrote.
#[test]
fn variants_of_lora_match() {
    for name in VARIANTS {
        let (golden, case) = Golden::variant(name);
        for kernels in Variant::ALL.map(KernelPlan::uniform) {
            let case = case.clone().with(kernels);
            for document in 0..DOCUMENTS {
                let logits_of = format!("lora.doc{document}.logits");
                let got = logits(&golden, &case, document);
                assert_close(&format!("{name} {logits_of}"), &got, &golden.get(&logits_of), LOGITS);
            }
            for geometry in [Geometry::Packed, Geometry::Padded, Geometry::Accumulated] {
                check_gradients(name, &golden, &case, geometry);
            }
            for recompute in Level::ALL {
                let case = Case { recompute, ..case.clone() };
                let (losses, norms) = ten_steps(&golden, &case, Geometry::Packed);
                let expected = |n: &str| golden.get(&format!("lora.train.{n}"));
                assert_close(
                    &format!("{name} {recompute} losses"),
                    &losses,
                    &expected("losses"),
                    TEN_LOSSES[1],
                );
                assert_close(
                    &format!("{name} {recompute} norms"),
                    &norms,
                    &expected("grad_norms"),
                    TEN_NORMS[1],
                );
            }
        }
    }
}

fn check_gradients(family: &str, golden: &Golden, case: &Case, geometry: Geometry) {
    let batches = golden.batches(geometry, 1);
    let step = batches.step(0).unwrap();
    assert_eq!(step.counts.loss as f64, golden.scalar("valid_tokens"));
    let mut trainer = golden.trainer(case, &batches);
    let (loss, grads) = trainer.gradients(&step.micro_batches).unwrap();
    let prefix = case.prefix();
    let what = |name: &str| format!("{family} {geometry:?} {prefix}{name}");
    assert_close(&what("loss"), &[loss], &golden.get(&format!("{prefix}loss")), LOSS);
    assert_eq!(grads.len(), trainer.trainable().tensors.len());
    for (name, grad) in &grads {
        let expected = golden.get(&format!("{prefix}grad.{name}"));
        assert_close(&what(name), &wide(grad), &expected, GRADIENT);
    }
}

#[test]
fn label_smoothing_and_z_loss_match() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        for (name, smoothing, z_loss) in [("smooth", 0.1, 0.0), ("z", 0.0, 1e-3)] {
            for kernels in Variant::ALL.map(KernelPlan::uniform) {
                let mut case = Case::full().with(kernels);
                case.loss.label_smoothing = smoothing;
                case.loss.z_loss = z_loss;
                let batches = golden.batches(Geometry::Packed, 1);
                let step = batches.step(0).unwrap();
                let (loss, grads) = golden.trainer(&case, &batches).gradients(&step.micro_batches).unwrap();
                assert_close(name, &[loss], &golden.get(&format!("{name}.loss")), LOSS);
                let embed = "model.embed_tokens.weight";
                let expected = golden.get(&format!("{name}.grad.{embed}"));
                assert_close(&format!("{family} {name} {embed}"), &wide(&grads[embed]), &expected, GRADIENT);
            }
        }
    }
}

/// Losses and gradient norms of the ten golden steps.
fn ten_steps(golden: &Golden, case: &Case, geometry: Geometry) -> (Vec<f64>, Vec<f64>) {
    let batches = golden.batches(geometry, 10);
    let mut trainer = golden.trainer(case, &batches);
    let reports = (0..10).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap());
    reports.map(|r| (r.loss, r.grad_norm)).unzip()
}

#[test]
fn every_variant_of_every_seam_gives_the_golden_ten_steps() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        for (i, case) in [Case::full(), Case::lora()].into_iter().enumerate() {
            let alone = Target::Cpu
                .seams()
                .iter()
                .flat_map(|&s| Variant::ALL.map(|v| KernelPlan::default().with(s, v)));
            for kernels in alone.chain([KernelPlan::uniform(Variant::Eager)]) {
                let (losses, norms) = ten_steps(&golden, &case.clone().with(kernels), Geometry::Packed);
                let what = format!("{family} {}{:?}", case.prefix(), kernels.names(Target::Cpu));
                let expected = |n: &str| golden.get(&format!("{}train.{n}", case.prefix()));
                assert_close(&format!("{what} losses"), &losses, &expected("losses"), TEN_LOSSES[i]);
                assert_close(&format!("{what} norms"), &norms, &expected("grad_norms"), TEN_NORMS[i]);
            }
        }
    }
}

#[test]
fn accumulation_gives_the_ten_steps_of_one_large_batch() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        for (i, case) in [Case::full(), Case::lora()].into_iter().enumerate() {
            for geometry in [Geometry::Accumulated, Geometry::Padded] {
                let (losses, _) = ten_steps(&golden, &case, geometry);
                let expected = golden.get(&format!("{}train.losses", case.prefix()));
                assert_close(&format!("{family} {geometry:?}"), &losses, &expected, TEN_LOSSES[i]);
            }
        }
    }
}

#[test]
fn final_weights_match() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        let batches = golden.batches(Geometry::Packed, 10);
        let mut trainer = golden.trainer(&Case::full(), &batches);
        (0..10).for_each(|s| drop(trainer.train_step(&batches.step(s).unwrap()).unwrap()));
        use chronicals::backend::Backend;
        let weights = trainer.backend().read(trainer.model().weights).unwrap();
        let layout = trainer.trainable().clone();
        for name in [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.1.mlp.down_proj.weight",
        ] {
            let t = layout.get(name).unwrap();
            let got = wide(&weights[t.offset..t.offset + t.len()]);
            assert_close(
                &format!("{family} {name}"),
                &got,
                &golden.get(&format!("train.final.{name}")),
                1e-4,
            );
        }
    }
}

#[test]
fn the_same_step_twice_is_bitwise_equal() {
    let golden = Golden::load("qwen3");
    for case in [Case::full(), Case::lora()] {
        let a = ten_steps(&golden, &case, Geometry::Packed);
        assert_eq!(a, ten_steps(&golden, &case, Geometry::Packed));
        let bits = |(l, n): &(Vec<f64>, Vec<f64>)| l.iter().chain(n).map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&a), bits(&ten_steps(&golden, &case, Geometry::Packed)));
    }
}

/// Attention in a packed row must not cross documents: changing one document leaves the others' states alone.
#[test]
fn documents_of_a_row_do_not_see_each_other() {
    let golden = Golden::load("llama");
    let batches = golden.batches(Geometry::Packed, 1);
    let batch = batches.step(0).unwrap().micro_batches.remove(0);
    let mut other = batch.clone();
    other.ids[2] = (other.ids[2] + 1) % golden.config.vocab_size as u32;
    for kernels in Variant::ALL.map(KernelPlan::uniform) {
        let mut trainer = golden.trainer(&Case::full().with(kernels), &batches);
        let mut states = |batch: &Batch| {
            trainer.evaluate(std::slice::from_ref(batch)).unwrap();
            use chronicals::backend::Backend;
            trainer.backend().read(trainer.model().y).unwrap()
        };
        let (a, b) = (states(&batch), states(&other));
        let first = batch.cu_seqlens[1] as usize * golden.config.hidden_size;
        assert_ne!(a[..first], b[..first], "the changed document differs");
        assert_eq!(a[first..], b[first..], "the others are bitwise untouched");
    }
}

/// LoRA with B = 0 computes the base model exactly, and A has no gradient at the first step.
#[test]
fn fresh_adapters_change_nothing_and_only_b_learns_first() {
    let golden = Golden::load("qwen2");
    let batches = golden.batches(Geometry::Packed, 1);
    let step_batches = batches.step(0).unwrap();
    let mut trainer = golden.trainer(&Case::lora(), &batches);
    trainer.init_adapters(&golden.config, 7).unwrap();
    let (loss, grads) = trainer.gradients(&step_batches.micro_batches).unwrap();
    assert_close("loss", &[loss], &golden.get("loss"), LOSS);
    for (name, g) in &grads {
        let zero = g.iter().all(|&v| v == 0.0);
        assert_eq!(zero, name.contains("lora_A"), "{name}");
    }
}

/// The forward alone gives the loss of the training step.
#[test]
fn evaluation_gives_the_training_loss() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        let batches = golden.batches(Geometry::Padded, 1);
        for kernels in Variant::ALL.map(KernelPlan::uniform) {
            let mut trainer = golden.trainer(&Case::full().with(kernels), &batches);
            let loss = trainer.evaluate(&batches.step(0).unwrap().micro_batches).unwrap();
            assert_close(family, &[loss], &golden.get("loss"), LOSS);
        }
    }
}
