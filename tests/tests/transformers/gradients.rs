//! First-step loss and every gradient of a model of two blocks.

use std::collections::BTreeMap;

use chronibench_protocol::spec::{Dtype, LoraArgs, Method, PrecisionArgs, TrainArgs};
use chronicals::{Trainer, backend::Backend};
use serde_json::json;

use crate::side::{Answer, Geometry, Place, Side, dtype_name};

/// In f32, over the largest of a tensor.
const F32: f64 = 1e-4;

/// Error in bf16 over that of Transformers in bf16, both against Transformers in f32, in the norm of a tensor.
const BF16: f64 = 1.5;

fn lora() -> Method {
    Method::Lora(serde_json::from_str::<LoraArgs>(r#"{"r": 32, "lora_alpha": 64}"#).unwrap())
}

fn side(place: Place, method: Method) -> Side {
    let args = TrainArgs { learning_rate: 1e-2, ..TrainArgs::default() };
    let side = Side::new(Geometry { place, layers: 2 }, method, args, 1, 4, 0);
    if matches!(side.method, Method::Lora(_)) {
        // A fresh B is zero, and with it the gradient of A: one step of training moves it.
        let mut trainer = side.on_cpu();
        trainer.train_step(&side.batches.step(0).unwrap()).unwrap();
        trainer.save_trainable(&side.file("adapters.safetensors")).unwrap();
    }
    side
}

fn asked(side: &Side, dtype: Dtype) -> Answer {
    side.ask(json!({"task": "gradients", "dtype": dtype_name(dtype)}))
}

fn ours<B: Backend>(mut trainer: Trainer<B>, side: &Side) -> (f64, BTreeMap<String, Vec<f32>>) {
    trainer.gradients(&side.batches.step(0).unwrap().micro_batches).unwrap()
}

/// Largest difference over the largest value.
fn worst(got: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0.0_f64, |m, (g, e)| m.max((f64::from(*g) - e).abs())) / largest
}

/// ‖got − expected‖ / ‖expected‖.
fn distance(got: impl Iterator<Item = f64>, expected: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = got.zip(expected).map(|(g, e)| square(g - e)).sum();
    (off / expected.iter().map(|e| square(*e)).sum::<f64>()).sqrt()
}

fn agree_in_f32((loss, grads): &(f64, BTreeMap<String, Vec<f32>>), expected: &Answer) {
    let off = (loss / expected.get("loss")[0] - 1.0).abs();
    let mut all: Vec<(f64, &str)> =
        grads.iter().map(|(name, g)| (worst(g, expected.get(name)), name.as_str())).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!(
        "f32: loss off by {off:.1e}; {} gradients, the worst {:.1e} ({})",
        all.len(),
        all[0].0,
        all[0].1
    );
    assert!(off < F32 && all[0].0 < F32, "loss off by {off:e}, gradients {:?}", &all[..all.len().min(5)]);
}

fn on_gpu(method: Method) {
    let _alone = crate::alone();
    let side = side(Place::Gpu, method);
    let exact = asked(&side, Dtype::F32);
    let precision = |dtype| PrecisionArgs { dtype: Some(dtype), ..PrecisionArgs::default() };
    agree_in_f32(&ours(side.on_gpu(precision(Dtype::F32)), &side), &exact);

    let (loss, grads) = ours(side.on_gpu(precision(Dtype::Bf16)), &side);
    let theirs = asked(&side, Dtype::Bf16);
    let (exact_loss, their_loss) = (exact.get("loss")[0], theirs.get("loss")[0]);
    println!("bf16: loss off by {:.1e}, theirs by {:.1e}", loss - exact_loss, their_loss - exact_loss);
    let mut all: Vec<(f64, f64, f64, &str)> = grads
        .iter()
        .map(|(name, g)| {
            let e = exact.get(name);
            let (our, their) =
                (distance(g.iter().map(|x| f64::from(*x)), e), distance(theirs.get(name).iter().copied(), e));
            (our / their, our, their, name.as_str())
        })
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (ratio, our, their, name) in all.iter().take(5) {
        println!("bf16: {name}: {our:.2e}, theirs {their:.2e}: {ratio:.2} times");
    }
    println!("bf16: the median of {} is {:.2} times", all.len(), all[all.len() / 2].0);
    assert!(all[0].0 <= BF16, "{:?}", all[0]);
}

#[test]
#[ignore = "needs a GPU and Transformers"]
fn full_on_a_gpu() {
    on_gpu(Method::Full {});
}

#[test]
#[ignore = "needs a GPU and Transformers"]
fn lora_on_a_gpu() {
    on_gpu(lora());
}

#[test]
#[ignore = "needs Transformers"]
fn on_the_processor() {
    for method in [Method::Full {}, lora()] {
        let side = side(Place::Processor, method);
        agree_in_f32(&ours(side.on_cpu(), &side), &asked(&side, Dtype::F32));
    }
}
