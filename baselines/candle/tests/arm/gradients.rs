//! Gradients reach everything that trains, and they are right.

use crate::fixture::{Fixture, config, micro};
use candle_core::{Tensor, Var};
use chronibench_candle::{trainer::Trainer, weights::Parameters};
use chronibench_protocol::spec::Method;
use serde_json::json;

/// One config for each way in which the families differ.
fn families() -> Vec<(&'static str, serde_json::Value)> {
    vec![
        ("qwen2 tied", config("qwen2", json!({"tie_word_embeddings": true}))),
        (
            "llama untied, llama3 rope",
            config(
                "llama",
                json!({"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
            ),
        ),
        ("qwen3, wide heads", config("qwen3", json!({"head_dim": 6, "tie_word_embeddings": true}))),
    ]
}

fn norm(t: &Tensor) -> f32 {
    t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
}

fn assert_all_flow(what: &str, trainer: &Trainer) {
    let grads = trainer.gradients(0).unwrap().grads;
    let trainable = trainer.model.parameters.trainable();
    assert_eq!(grads.len(), trainable.len());
    for ((name, var), grad) in trainable.iter().zip(&grads) {
        assert_eq!(grad.dims(), var.dims());
        assert!(norm(grad).is_finite() && norm(grad) > 1e-5, "{what}: {name} has norm {}", norm(grad));
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for (what, config) in families() {
        let trainer = Fixture::packed(&config).trainer();
        let count =
            trainer.model.parameters.trainable().iter().map(|(_, v)| v.elem_count() as u64).sum::<u64>();
        assert_eq!(count, trainer.model.parameters.numel(), "{what}: full fine-tuning trains everything");
        assert_all_flow(what, &trainer);
    }
}

#[test]
fn every_adapter_gets_a_gradient() {
    for (what, config) in families() {
        let trainer = Fixture::packed(&config).lora(1.0).trainer();
        let names: Vec<_> = trainer.model.parameters.trainable().iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names.len(), 2 * 7 * 2, "{what}");
        assert!(names.contains(&"base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"), "{names:?}");
        assert_all_flow(what, &trainer);
    }
}

#[test]
fn with_b_at_zero_only_b_moves_and_the_base_model_is_unchanged() {
    let config = config("qwen2", json!({}));
    let base = Fixture::packed(&config).trainer();
    let lora = Fixture::packed(&config).lora(0.0).trainer();
    let g = lora.gradients(0).unwrap();
    assert_eq!(g.loss, base.gradients(0).unwrap().loss);
    for ((name, _), grad) in lora.model.parameters.trainable().iter().zip(&g.grads) {
        assert_eq!(norm(grad) > 0.0, name.contains("lora_B"), "{name}");
    }
}

/// The frozen layers' own backward must agree with candle's: adapters on a frozen base get the gradients that they
/// would get with everything trainable, here through dL/dW = Σ x·dyᵀ of the merged weight.
#[test]
fn adapter_gradients_follow_from_those_of_the_merged_weight() {
    let config = config("llama", json!({}));
    let lora = Fixture::packed(&config).lora(0.7);
    let Method::Lora(args) = &lora.spec.method else { unreachable!() };
    let scaling = chronibench_candle::lora::scaling(args);
    let trainer = lora.trainer();
    let merged = Fixture::packed(&config).trainer();
    let get = |p: &Parameters, name: &str| p.get(name).unwrap().detach();
    for (name, var) in merged.model.parameters.trainable() {
        let (a, b) = chronibench_candle::lora::names(name.strip_suffix(".weight").unwrap());
        if trainer.model.parameters.find(&a).is_some() {
            let (a, b) = (get(&trainer.model.parameters, &a), get(&trainer.model.parameters, &b));
            var.set(&(var.detach() + (b.matmul(&a).unwrap() * scaling).unwrap()).unwrap()).unwrap();
        }
    }
    let (g, m) = (trainer.gradients(0).unwrap(), merged.gradients(0).unwrap());
    assert!((g.loss - m.loss).abs() < 1e-5, "{} {}", g.loss, m.loss);
    let full: std::collections::HashMap<_, _> =
        merged.model.parameters.trainable().iter().map(|(n, _)| n.as_str()).zip(&m.grads).collect();
    for ((name, _), grad) in trainer.model.parameters.trainable().iter().zip(&g.grads) {
        let projection = name.strip_prefix("base_model.model.").unwrap().rsplit_once(".lora_").unwrap().0;
        let dw = full[format!("{projection}.weight").as_str()];
        let (a, b) = chronibench_candle::lora::names(projection);
        let expected = if name.contains("lora_A") {
            get(&trainer.model.parameters, &b).t().unwrap().matmul(dw)
        } else {
            dw.matmul(&get(&trainer.model.parameters, &a).t().unwrap())
        };
        let expected = (expected.unwrap() * scaling).unwrap();
        let error = norm(&(grad - &expected).unwrap()) / norm(&expected);
        assert!(error < 1e-4, "{name}: relative error {error}");
    }
}

/// Loss of step 0 after adding `eps · direction` to `var`.
fn shifted_loss(trainer: &Trainer, var: &Var, direction: &Tensor, eps: f64) -> f64 {
    let original = var.as_tensor().detach().copy().unwrap();
    var.set(&(&original + (direction * eps).unwrap()).unwrap()).unwrap();
    let loss = trainer.gradients(0).unwrap().loss;
    var.set(&original).unwrap();
    loss
}

/// Directional derivative along the gradient of each tensor: as large as a derivative of that tensor gets, so rounding
/// of the f32 loss hides least.
#[test]
fn gradients_agree_with_central_finite_differences() {
    for (what, config) in families() {
        for lora in [false, true] {
            let mut fixture = Fixture::packed(&config);
            if lora {
                fixture = fixture.lora(1.0);
            }
            fixture.spec.train.label_smoothing_factor = 0.1;
            fixture.spec.train.z_loss = 1e-2;
            let trainer = fixture.trainer();
            let grads = trainer.gradients(0).unwrap().grads;
            for ((name, var), grad) in trainer.model.parameters.trainable().iter().zip(&grads) {
                let length = f64::from(norm(grad));
                let direction = (grad / length).unwrap();
                let eps = 3e-3;
                let up = shifted_loss(&trainer, var, &direction, eps);
                let down = shifted_loss(&trainer, var, &direction, -eps);
                let numeric = (up - down) / (2.0 * eps);
                let tolerance = 5e-3 * length + 5e-4;
                assert!((numeric - length).abs() < tolerance, "{what}: {name}: {numeric} against {length}");
            }
        }
    }
}

/// The same samples, one a row in a single micro-batch, packed into rows with a padding tail, and spread over
/// micro-batches, are the same step.
#[test]
fn packing_and_accumulation_change_nothing() {
    for (what, config) in families() {
        let lengths = [7, 4, 9, 5];
        let unpacked = vec![micro(9, &[&[0], &[1], &[2], &[3]])];
        let others = [
            vec![micro(25, &[&[0, 1, 2, 3]])],
            vec![micro(14, &[&[2, 1], &[3, 0]])],
            vec![micro(9, &[&[2], &[0]]), micro(10, &[&[3, 1]])],
        ];
        let expected = Fixture::new(&config, &lengths, &[unpacked]).trainer().gradients(0).unwrap();
        for plan in others {
            let g = Fixture::new(&config, &lengths, &[plan]).trainer().gradients(0).unwrap();
            assert_eq!((g.tokens.real, g.tokens.loss), (25, 17));
            assert!((g.loss - expected.loss).abs() < 2e-6, "{what}: {} {}", g.loss, expected.loss);
            for (a, b) in g.grads.iter().zip(&expected.grads) {
                let error = norm(&(a - b).unwrap()) / norm(b);
                assert!(error < 1e-4, "{what}: relative error {error}");
            }
        }
    }
}
