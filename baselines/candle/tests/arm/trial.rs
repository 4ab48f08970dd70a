//! Whole trials through the protocol.

use std::path::Path;

use crate::fixture::{Fixture, PAD, config};
use candle_core::{Device, safetensors};
use chronibench_candle::{ArmError, run};
use chronibench_protocol::{
    Event, Spec, TokenStore,
    event::{Done, Failure, Hello, Phase, Ready, Step, Window},
    plan::BatchPlan,
};
use serde_json::json;

fn events(spec: &Spec) -> (Vec<Event>, Result<(), ArmError>) {
    let mut all = Vec::new();
    let outcome = run(spec, &mut |event| {
        all.push(event);
        Ok(())
    });
    (all, outcome)
}

struct Trial {
    hello: Hello,
    ready: Ready,
    steps: Vec<Step>,
    windows: Vec<Window>,
    done: Done,
}

fn kind(event: &Event) -> String {
    serde_json::to_value(event).unwrap()["event"].as_str().unwrap().into()
}

fn trial(spec: &Spec) -> Trial {
    let (all, outcome) = events(spec);
    outcome.unwrap();
    let order: Vec<_> = all.iter().map(kind).collect();
    let expected = "hello ready step step step step window step step window done";
    assert_eq!(order.join(" "), expected);
    let (mut steps, mut windows, mut ends) = (Vec::new(), Vec::new(), (None, None, None));
    for event in all {
        match event {
            Event::Hello(e) => ends.0 = Some(e),
            Event::Ready(e) => ends.1 = Some(e),
            Event::Step(e) => steps.push(e),
            Event::Window(e) => windows.push(e),
            Event::Done(e) => ends.2 = Some(e),
            other => panic!("{other:?}"),
        }
    }
    let (Some(hello), Some(ready), Some(done)) = ends else { unreachable!() };
    Trial { hello, ready, steps, windows, done }
}

fn data(spec: &Spec) -> (TokenStore, BatchPlan) {
    let plan = serde_json::from_slice(&std::fs::read(&spec.data.plan).unwrap()).unwrap();
    (TokenStore::load(&spec.data.tokens).unwrap(), plan)
}

#[test]
fn a_full_trial_tells_the_truth_and_learns() {
    let mut fixture = Fixture::packed(&config("qwen2", json!({"tie_word_embeddings": true})));
    let saved = fixture.dir.path().join("after.safetensors");
    fixture.spec.save_weights = Some(saved.clone());
    fixture.spec.train.warmup_steps = 1;
    let spec = &fixture.spec;
    let t = trial(spec);
    assert!(t.hello.kernel_plan.is_empty() && t.hello.threads > 0);
    assert_eq!(t.hello.settings["learning_rate"], json!(0.01));
    assert_eq!(t.hello.settings["method"], json!("full"));
    let trainable: u64 = t.ready.trainable.iter().map(|i| i.numel()).sum();
    assert_eq!(trainable, t.ready.total_params);
    let (tokens, plan) = data(spec);
    assert_eq!(t.ready.tokens_sha256, tokens.sha256());
    for (step, planned) in t.steps.iter().zip(&plan.steps) {
        assert_eq!((step.digest.clone(), step.tokens), planned.ledger(&tokens, PAD));
        let rate = 0.01 * spec.train.lr_factor(step.step, 6);
        assert_eq!(step.lr.iter().collect::<Vec<_>>(), [(&"all".to_string(), &rate)]);
    }
    assert!(
        t.steps[5].loss < t.steps[0].loss - 0.5,
        "{:?}",
        t.steps.iter().map(|s| s.loss).collect::<Vec<_>>()
    );
    check_clock(&t);
    check_gemm(&t);
    check_saved(&saved, &spec.model.weights, |_| true);
}

/// A window spans its steps, and nothing overlaps.
fn check_clock(t: &Trial) {
    assert!(t.steps.iter().all(|s| s.start_ns < s.end_ns));
    assert!(t.steps.windows(2).all(|w| w[0].end_ns <= w[1].start_ns));
    for (i, w) in t.windows.iter().enumerate() {
        let (first, last) = (&t.steps[w.first_step as usize], &t.steps[w.last_step as usize]);
        assert_eq!(
            (w.index as usize, w.first_step as usize, w.last_step as usize),
            (i, 2 + 2 * i, 3 + 2 * i)
        );
        assert_eq!((w.start_ns, w.end_ns), (first.start_ns, last.end_ns));
    }
    assert!(t.steps.iter().all(|s| (s.phase == Phase::Timed) == (s.step >= 2)));
}

/// Operations counted by hand for the two-block model: 2·N·in·out for each projection and the head, 4·R·H·S²·K for
/// attention, three times for forward and both gradients.
fn check_gemm(t: &Trial) {
    let (d, f, h, g, k, v, layers) = (16, 24, 4, 2, 4, 40, 2);
    let per_slot = layers * (d * (2 * h * k + 2 * g * k) + 3 * d * f) + d * v;
    let flops = |rows: u64, s: u64| 3 * (2 * rows * s * per_slot + layers * 4 * rows * h * s * s * k);
    let gemm = t.done.gemm.as_ref().unwrap();
    assert_eq!(gemm.flops, 4 * (flops(2, 12) + flops(1, 5) + flops(1, 7)));
    let spent: u64 = t.steps.iter().filter(|s| s.phase == Phase::Timed).map(|s| s.end_ns - s.start_ns).sum();
    assert!(gemm.ns > 0 && gemm.method == "replayed" && spent > 0);
    assert!(t.done.peak_rss_bytes.unwrap() > 1 << 20);
}

/// The file holds the tensors of `before`, those that train changed and the others bit for bit.
fn check_saved(after: &Path, before: &Path, trains: impl Fn(&str) -> bool) {
    let after = safetensors::load(after, &Device::Cpu).unwrap();
    for (name, old) in safetensors::load(before, &Device::Cpu).unwrap() {
        let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&after[&name]) != flat(&old), trains(&name), "{name}");
    }
}

#[test]
fn a_lora_trial_moves_the_adapters_only() {
    let mut fixture = Fixture::packed(&config("qwen3", json!({}))).lora(0.5);
    let saved = fixture.dir.path().join("after.safetensors");
    fixture.spec.save_weights = Some(saved.clone());
    let t = trial(&fixture.spec);
    let rates = &t.steps[0].lr;
    assert_eq!((rates["lora_A"], rates["lora_B"]), (0.01, 0.04));
    assert_eq!(t.hello.settings["r"], json!(3));
    assert!(t.steps[5].loss < t.steps[0].loss - 0.1, "{} {}", t.steps[0].loss, t.steps[5].loss);
    check_saved(&saved, &fixture.spec.model.weights, |_| false);
    check_saved(&saved, &fixture.dir.path().join("adapters.safetensors"), |_| true);
}

/// With a vanishing gradient only the decay is left: matrices shrink by `lr·λ`, vectors stay.
#[test]
fn weight_decay_acts_on_matrices_only() {
    let mut fixture = Fixture::packed(&config("qwen2", json!({})));
    fixture.spec.train.weight_decay = 0.5;
    fixture.spec.train.adam_epsilon = 1e12;
    let mut trainer = fixture.trainer();
    let read = |t: &chronibench_candle::trainer::Trainer, name: &str| {
        t.model.parameters.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let names = ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"];
    let before = names.map(|n| read(&trainer, n));
    let grad_norm = trainer.step(0).unwrap().grad_norm;
    assert!(grad_norm > 1.0, "clipping is on in this test");
    for ((name, old), factor) in names.iter().zip(before).zip([1.0 - 0.01 * 0.5, 1.0, 1.0]) {
        for (new, old) in read(&trainer, name).iter().zip(old) {
            assert!((new - old * factor).abs() <= 1e-6 * old.abs(), "{name}: {old} became {new}");
        }
    }
}

#[test]
fn divergence_is_an_error_at_its_step() {
    let mut fixture = Fixture::packed(&config("llama", json!({})));
    fixture.spec.train.learning_rate = 1e30;
    fixture.spec.train.max_grad_norm = 0.0;
    let (all, outcome) = events(&fixture.spec);
    let error = outcome.unwrap_err();
    assert!(matches!(error, ArmError::Diverged { step: 1, .. }), "{error}");
    assert_eq!(all.iter().map(kind).collect::<Vec<_>>(), ["hello", "ready", "step"]);
    let failure = Failure::from(&error);
    assert_eq!(failure.at, "step 1");
    assert!(failure.what.contains("diverged") && failure.hint.contains("learning_rate"), "{failure:?}");
}

/// A change to a specification that makes it impossible.
type Spoil = fn(&mut Spec);

#[test]
fn what_cannot_be_run_is_refused_with_place_and_hint() {
    let cases: [(Spoil, &str); 9] = [
        (|s| s.protocol = "chronibench.protocol/0".into(), "protocol"),
        (|s| s.device = "cuda:0".into(), "device"),
        (|s| s.threads = Some(100_000), "threads"),
        (|s| drop(s.kernels.insert("rmsnorm".into(), "fused".into())), "kernels"),
        (|s| s.measure.window_steps = 3, "window_steps"),
        (|s| s.measure.timed_steps = 40, "data.plan"),
        (|s| s.train.adam_beta2 = 1.0, "adam_beta2"),
        (|s| s.model.weights = s.data.tokens.clone(), "tokens.safetensors"),
        (|s| s.model.config = "nowhere.json".into(), "nowhere.json"),
    ];
    for (spoil, place) in cases {
        let mut fixture = Fixture::packed(&config("llama", json!({})));
        spoil(&mut fixture.spec);
        let failure = Failure::from(&events(&fixture.spec).1.unwrap_err());
        assert!(failure.at.contains(place), "{failure:?}");
        assert!(!failure.what.is_empty() && !failure.hint.is_empty(), "{failure:?}");
    }
}
