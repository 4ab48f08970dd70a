//! What both sides are given, and the other side's answer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use chronibench_protocol::spec::{Dtype, Method, PrecisionArgs, TrainArgs};
use chronicals::{
    KernelPlan, Trainer,
    backend::{
        Backend,
        cpu::CpuBackend,
        cuda::{CudaBackend, Options},
    },
    config::ModelConfig,
    fit::Batches,
    init,
    job::Job,
    model::Setup,
};
use chronicals_kernels::gpu::machine::Cuda;
use safetensors::{Dtype as Stored, SafeTensors};
use serde_json::{Value, json};

/// The program of the other side.
const REFERENCE: &str = include_str!("reference.py");

/// Where the two sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Both on the first GPU.
    Gpu,
    /// Both on the processor, in f32.
    Processor,
}

/// One model, batches, and starting weights.
pub struct Side {
    dir: tempfile::TempDir,
    place: Place,
    /// Architecture.
    pub config: ModelConfig,
    /// What trains.
    pub method: Method,
    /// Optimizer.
    pub train: TrainArgs,
    /// Batches of every step.
    pub batches: Batches,
}

/// A geometry, as a `config.json`.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Qwen2.5-0.5B's where on a GPU, else a small one.
    pub place: Place,
    /// Blocks.
    pub layers: usize,
}

impl Geometry {
    fn config(self) -> Value {
        let mut config = match self.place {
            Place::Gpu => {
                let text =
                    std::fs::read_to_string(root().join("scenarios/models/qwen2.5-0.5b.json")).unwrap();
                serde_json::from_str(&text).unwrap()
            }
            Place::Processor => json!({
                "model_type": "qwen2", "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96,
                "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
                "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512
            }),
        };
        config["num_hidden_layers"] = self.layers.into();
        config
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace")
}

impl Side {
    /// A model with drawn weights that are exact in bf16, and `steps` batches of packed instruction data: `rows` of 512 tokens.
    pub fn new(
        geometry: Geometry,
        method: Method,
        train: TrainArgs,
        steps: u32,
        rows: u32,
        seed: u64,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, weights) = (dir.path().join("config.json"), dir.path().join("model.safetensors"));
        std::fs::write(&config, geometry.config().to_string()).unwrap();
        init::write_initial_weights(&config, seed, true, &weights).unwrap();
        let data = root().join("data/chat-instruct");
        let job: Job = serde_json::from_value(json!({
            "model": {"config": config},
            "data": {
                "path": data.join("train.jsonl"), "tokenizer": data.join("tokenizer.json"), "max_length": 512
            },
            "batch": {
                "packing": "bfd", "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1
            },
            "max_steps": steps,
            "output_dir": dir.path(),
        }))
        .unwrap();
        let inputs = job.inputs().unwrap();
        let side = Self {
            dir,
            place: geometry.place,
            config: inputs.config,
            method,
            train,
            batches: inputs.batches,
        };
        if let Method::Lora(lora) = &side.method {
            init::write_initial_adapter(
                &side.file("config.json"),
                lora,
                seed,
                false,
                &side.file("adapters.safetensors"),
            )
            .unwrap();
        }
        side.batches.tokens().save(&side.file("tokens.safetensors")).unwrap();
        side
    }

    /// A file of this side.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Our trainer on a GPU.
    pub fn on_gpu(&self, precision: PrecisionArgs) -> Trainer<CudaBackend<Cuda>> {
        let machine = Cuda::open(0).unwrap_or_else(|e| panic!("{e}; {}", e.hint));
        let options = Options {
            config: &self.config,
            capacity: self.batches.capacity(),
            plan: KernelPlan::default(),
            loss: Default::default(),
            precision,
            seed: 0,
        };
        self.trainer(CudaBackend::new(machine, &options).unwrap())
    }

    /// Our trainer on the processor.
    pub fn on_cpu(&self) -> Trainer<CpuBackend> {
        let capacity = self.batches.capacity();
        self.trainer(CpuBackend::new(&self.config, capacity, KernelPlan::default(), Default::default()))
    }

    fn trainer<B: Backend>(&self, backend: B) -> Trainer<B> {
        let (config, method, capacity) = (&self.config, &self.method, self.batches.capacity());
        let plan = KernelPlan::default();
        let setup = Setup { config, method, capacity, plan, recompute: Default::default(), offload: false };
        let mut trainer = Trainer::new(backend, &setup, &self.train, self.batches.steps()).unwrap();
        trainer.load_weights(&self.file("model.safetensors")).unwrap();
        if matches!(self.method, Method::Lora(_)) {
            trainer.load_adapters(&self.file("adapters.safetensors")).unwrap();
        }
        trainer
    }

    /// What the reference program answers; `extra` says what to do.
    pub fn ask(&self, extra: Value) -> Answer {
        let lora = match &self.method {
            Method::Full {} => Value::Null,
            Method::Lora(lora) => json!(lora),
        };
        let documents = |step: u32| -> Vec<u32> {
            let micro = &self.batches.plan().steps[step as usize].micro_batches[0];
            micro.rows.concat()
        };
        let lr = |step: u32| self.train.learning_rate * self.train.lr_factor(step, self.batches.steps());
        let mut request = json!({
            "config": self.file("config.json"),
            "weights": self.file("model.safetensors"),
            "adapters": self.file("adapters.safetensors"),
            "lora": lora,
            "tokens": self.file("tokens.safetensors"),
            "steps": (0..self.batches.steps()).map(documents).collect::<Vec<_>>(),
            "lr": (0..self.batches.steps()).map(lr).collect::<Vec<_>>(),
            "train": self.train,
            "device": if self.place == Place::Gpu { "cuda" } else { "cpu" },
            "answer": self.file("answer.safetensors"),
        });
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (program, asked) = (self.file("reference.py"), self.file("request.json"));
        std::fs::write(&program, REFERENCE).unwrap();
        std::fs::write(&asked, request.to_string()).unwrap();
        let mut python = Command::new("python3");
        if let Some(folder) = std::env::var_os("HF_PYTHONPATH") {
            python.env("PYTHONPATH", folder);
        }
        let output = python.arg(&program).arg(&asked).output().expect("python3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Answer::read(&self.file("answer.safetensors"))
    }
}

/// Tensors by name, as f64.
pub struct Answer(BTreeMap<String, Vec<f64>>);

impl Answer {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values = |(name, t): (String, safetensors::tensor::TensorView<'_>)| {
            let wide = match t.dtype() {
                Stored::F64 => {
                    t.data().chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
                }
                Stored::F32 => {
                    t.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
                }
                other => panic!("{name} is {other:?}"),
            };
            (name, wide)
        };
        Self(file.tensors().into_iter().map(values).collect())
    }

    /// One of them.
    pub fn get(&self, name: &str) -> &[f64] {
        self.0.get(name).unwrap_or_else(|| panic!("the reference has no {name}"))
    }
}

/// bf16 or f32 on a GPU.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F32 => "float32",
    }
}
