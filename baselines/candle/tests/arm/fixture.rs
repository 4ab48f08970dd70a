//! Tiny models, data and plans on disk.

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Tensor, safetensors};
use chronibench_candle::{config::Config, lora, trainer::Trainer, weights};
use chronibench_protocol::{
    BatchPlan, Spec, TokenStore,
    event::TensorInfo,
    plan::{MicroBatch, StepPlan},
    spec::{DataSpec, LoraArgs, Measure, Method, ModelSpec, PROTOCOL, TrainArgs},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

pub const VOCAB: u32 = 40;
pub const PAD: u32 = 0;

/// A folder with everything a trial reads.
pub struct Fixture {
    pub dir: TempDir,
    pub spec: Spec,
}

/// Config of a two-block model of the given family.
pub fn config(model_type: &str, extra: serde_json::Value) -> serde_json::Value {
    let mut c = serde_json::json!({
        "model_type": model_type, "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 100.0,
    });
    c.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    c
}

/// Samples of the lengths given, whose first two tokens are a prompt.
pub fn tokens(lengths: &[usize]) -> TokenStore {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut store = TokenStore::new();
    for &n in lengths {
        let ids: Vec<u32> = (0..n).map(|_| rng.random_range(1..VOCAB)).collect();
        let mask: Vec<u8> = (0..n).map(|i| u8::from(i >= 2)).collect();
        store.push(&ids, &mask);
    }
    store
}

pub fn micro(row_slots: u32, rows: &[&[u32]]) -> MicroBatch {
    MicroBatch { row_slots, rows: rows.iter().map(|r| r.to_vec()).collect() }
}

impl Fixture {
    /// `steps` is repeated until the six steps of the trial are filled.
    pub fn new(config: &serde_json::Value, lengths: &[usize], steps: &[Vec<MicroBatch>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("config.json"), config.to_string()).unwrap();
        let parsed = Config::load(&at("config.json")).unwrap();
        write_random(&at("model.safetensors"), &weights::model_tensors(&parsed), 1);
        tokens(lengths).save(&at("tokens.safetensors")).unwrap();
        let steps = steps.iter().cycle().take(6).map(|m| StepPlan { micro_batches: m.clone() }).collect();
        let plan = BatchPlan { packing: "bfd".into(), max_length: 64, pad_token_id: PAD, steps };
        std::fs::write(at("plan.json"), serde_json::to_vec(&plan).unwrap()).unwrap();
        let spec = Spec {
            protocol: PROTOCOL.into(),
            trial_id: "t".into(),
            arm: "candle".into(),
            model: ModelSpec { config: at("config.json"), weights: at("model.safetensors") },
            data: DataSpec { tokens: at("tokens.safetensors"), plan: at("plan.json") },
            method: Method::Full {},
            train: TrainArgs { learning_rate: 1e-2, ..TrainArgs::default() },
            measure: Measure { untimed_steps: 2, timed_steps: 4, window_steps: 2 },
            kernels: Default::default(),
            threads: None,
            device: "cpu".into(),
            options: Default::default(),
            precision: Default::default(),
            recompute: Default::default(),
            offload: false,
            memory_limit_gb: None,
            save_weights: None,
            audit: None,
        };
        Self { dir, spec }
    }

    /// A packed batch with padding and a second, narrower micro-batch.
    pub fn packed(config: &serde_json::Value) -> Self {
        Self::new(
            config,
            &[7, 4, 9, 5],
            &[vec![micro(12, &[&[0, 1], &[2]]), micro(5, &[&[3]]), micro(7, &[&[0]])]],
        )
    }

    /// Adapters on every projection; `b` scales the random values of B.
    pub fn lora(mut self, b: f32) -> Self {
        let path = self.dir.path().join("adapters.safetensors");
        let mut args: LoraArgs =
            serde_json::from_str(r#"{"r":3,"lora_alpha":6.0,"use_rslora":true,"loraplus_lr_ratio":4.0}"#)
                .unwrap();
        args.adapter_weights = Some(path.clone());
        let config = Config::load(&self.spec.model.config).unwrap();
        write_random(&path, &lora::adapter_tensors(&config, &args).unwrap(), 2);
        let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
            *tensor = (tensor.clone() * f64::from(b)).unwrap();
        }
        safetensors::save(&tensors, &path).unwrap();
        self.spec.method = Method::Lora(args);
        self
    }

    pub fn trainer(&self) -> Trainer {
        Trainer::load(&self.spec).unwrap()
    }
}

/// Gains near one, everything else small: values at which every gradient is well away from zero.
fn write_random(path: &Path, tensors: &[TensorInfo], seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = HashMap::new();
    for t in tensors {
        let (centre, spread) = if t.name.contains("norm") { (1.0, 0.3) } else { (0.0, 0.4) };
        let values: Vec<f32> = (0..t.numel()).map(|_| centre + rng.random_range(-spread..spread)).collect();
        all.insert(t.name.clone(), Tensor::from_vec(values, t.shape.clone(), &Device::Cpu).unwrap());
    }
    safetensors::save(&all, path).unwrap();
}
