//! Goldens of `tests/goldens`, and trainers set up on them.

use std::path::PathBuf;

use chronibench_protocol::{
    BatchPlan, TokenStore,
    plan::{MicroBatch, StepPlan},
    spec::{LoraArgs, Method, PrecisionArgs, Scheduler, TrainArgs},
};
use chronicals::{
    KernelPlan, Trainer,
    backend::{
        Backend,
        cpu::CpuBackend,
        cuda::{Buckets, CudaBackend, Options},
    },
    config::ModelConfig,
    fit::Batches,
    formats::peft::AdapterConfig,
    model::{Level, Setup},
};
use chronicals_kernels::{gpu::Machine, linear_ce};
use safetensors::{Dtype, SafeTensors};

/// The three families with goldens.
pub const FAMILIES: [&str; 3] = ["qwen2", "llama", "qwen3"];

/// Documents in every golden.
pub const DOCUMENTS: usize = 3;

/// The files of a family, inside the test binary: it runs where there is no source.
macro_rules! files {
    ($($family:literal),*) => {
        [$(($family, [
            ("config.json", include_bytes!(concat!("../goldens/", $family, "/config.json")).as_slice()),
            ("model.safetensors", include_bytes!(concat!("../goldens/", $family, "/model.safetensors"))),
            ("adapter.safetensors", include_bytes!(concat!("../goldens/", $family, "/adapter.safetensors"))),
            ("golden.safetensors", include_bytes!(concat!("../goldens/", $family, "/golden.safetensors"))),
        ])),*]
    };
}

/// A name, and what is in it.
type File = (&'static str, &'static [u8]);

const FILES: [(&str, [File; 4]); 3] = files!("qwen2", "llama", "qwen3");

/// Variants of LoRA with goldens, on [`VARIANT_FAMILY`].
pub const VARIANTS: [&str; 3] = ["patterns", "dora", "dora_patterns"];

/// The family that has them.
pub const VARIANT_FAMILY: &str = "qwen3";

macro_rules! variants {
    ($($variant:literal),*) => {
        [$(($variant, [
            ("adapter_config.json", include_bytes!(concat!("../goldens/lora/", $variant, "/adapter_config.json")).as_slice()),
            ("adapter.safetensors", include_bytes!(concat!("../goldens/lora/", $variant, "/adapter_model.safetensors"))),
            ("golden.safetensors", include_bytes!(concat!("../goldens/lora/", $variant, "/golden.safetensors"))),
        ])),*]
    };
}

const VARIANT_FILES: [(&str, [File; 3]); VARIANTS.len()] = variants!("patterns", "dora", "dora_patterns");

const PISSA: &[u8] = include_bytes!("../goldens/lora/pissa/golden.safetensors");

/// What Hugging Face computed for one family.
pub struct Golden {
    dir: tempfile::TempDir,
    bytes: &'static [u8],
    /// The architecture.
    pub config: ModelConfig,
}

/// How the documents are laid out in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Geometry {
    /// All in one row.
    Packed,
    /// One row each, padded to the longest.
    Padded,
    /// One micro-batch each, gradients accumulated.
    Accumulated,
}

impl Golden {
    /// A family's goldens.
    pub fn load(family: &str) -> Self {
        let (_, files) = FILES.iter().find(|(name, _)| *name == family).expect("a family with goldens");
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let config = ModelConfig::load(&dir.path().join("config.json")).unwrap();
        Self { dir, bytes: files[3].1, config }
    }

    /// The goldens of a variant of LoRA, and the case that it is, trained as LoRA+ as the others are.
    pub fn variant(name: &str) -> (Self, Case) {
        let family = Self::load(VARIANT_FAMILY);
        let (_, files) = VARIANT_FILES.iter().find(|(n, _)| *n == name).expect("a variant with goldens");
        for (name, bytes) in files {
            std::fs::write(family.file(name), bytes).unwrap();
        }
        let folder = family.dir.path();
        let lora = AdapterConfig::load(folder).unwrap().lora(folder).unwrap();
        let lora = LoraArgs { loraplus_lr_ratio: 16.0, ..lora };
        (Self { bytes: files[2].1, ..family }, Case { method: Method::Lora(lora), ..Case::lora() })
    }

    /// The goldens of PiSSA, which begin with no adapter.
    pub fn pissa() -> Self {
        Self { bytes: PISSA, ..Self::load(VARIANT_FAMILY) }
    }

    /// A file that the goldens are of.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A tensor as f64.
    pub fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(self.bytes).unwrap();
        let t = file.tensor(name).unwrap_or_else(|_| panic!("{name} is in the golden"));
        let data = t.data();
        match t.dtype() {
            Dtype::F64 => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::I64 => data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// A tensor of one element.
    pub fn scalar(&self, name: &str) -> f64 {
        self.get(name)[0]
    }

    /// The documents as tokens.
    pub fn tokens(&self) -> TokenStore {
        let mut store = TokenStore::new();
        for d in 0..DOCUMENTS {
            let ids: Vec<u32> = self.get(&format!("doc{d}.input_ids")).iter().map(|&v| v as u32).collect();
            let mask: Vec<u8> =
                self.get(&format!("doc{d}.labels")).iter().map(|&v| u8::from(v >= 0.0)).collect();
            store.push(&ids, &mask);
        }
        store
    }

    /// `steps` times the same batch of all documents.
    pub fn batches(&self, geometry: Geometry, steps: usize) -> Batches {
        let tokens = self.tokens();
        let lengths: Vec<u32> = tokens.lengths().iter().map(|&n| n as u32).collect();
        let micro = |row_slots, rows| MicroBatch { row_slots, rows };
        let alone = |d: u32| vec![d];
        let documents = 0..DOCUMENTS as u32;
        let micro_batches = match geometry {
            // One slot more than needed, so that packing meets padding as well.
            Geometry::Packed => vec![micro(lengths.iter().sum::<u32>() + 1, vec![documents.collect()])],
            Geometry::Padded => vec![micro(*lengths.iter().max().unwrap(), documents.map(alone).collect())],
            Geometry::Accumulated => documents.map(|d| micro(lengths[d as usize], vec![alone(d)])).collect(),
        };
        let plan = BatchPlan {
            packing: "none".into(),
            max_length: 64,
            pad_token_id: 0,
            steps: vec![StepPlan { micro_batches }; steps],
        };
        Batches::new(tokens, plan, &self.config, "golden").unwrap()
    }

    /// A trainer on the golden's weights and, under LoRA, its adapters.
    pub fn trainer(&self, case: &Case, batches: &Batches) -> Trainer<CpuBackend> {
        self.trainer_on(case, batches, self.cpu(case, batches))
    }

    /// The same on any backend.
    pub fn trainer_on<B: Backend>(&self, case: &Case, batches: &Batches, backend: B) -> Trainer<B> {
        let mut trainer = self.base(case, batches, backend);
        if matches!(case.method, Method::Lora(_)) {
            trainer.load_adapters(&self.file("adapter.safetensors")).unwrap();
        }
        trainer
    }

    /// A trainer on the golden's weights with freshly drawn adapters, of any rank.
    pub fn fresh_adapters(&self, case: &Case, batches: &Batches, seed: u64) -> Trainer<CpuBackend> {
        let mut trainer = self.base(case, batches, self.cpu(case, batches));
        trainer.init_adapters(&self.config, seed).unwrap();
        trainer
    }

    fn cpu(&self, case: &Case, batches: &Batches) -> CpuBackend {
        CpuBackend::new(&self.config, batches.capacity(), case.kernels, case.loss)
    }

    fn base<B: Backend>(&self, case: &Case, batches: &Batches, backend: B) -> Trainer<B> {
        let setup = case.setup(&self.config, batches);
        let mut trainer = Trainer::new(backend, &setup, &case.args, batches.steps()).unwrap();
        trainer.load_weights(&self.file("model.safetensors")).unwrap();
        trainer
    }
}

/// Settings of one comparison with a golden.
#[derive(Clone, Debug)]
pub struct Case {
    /// What trains.
    pub method: Method,
    /// Optimizer.
    pub args: TrainArgs,
    /// Variants.
    pub kernels: KernelPlan,
    /// Smoothing and z-loss.
    pub loss: linear_ce::Options,
    /// Number formats on a GPU.
    pub precision: PrecisionArgs,
    /// What the backward pass makes again.
    pub recompute: Level,
    /// Blocks' entries wait on the host.
    pub offload: bool,
    /// Extents that occur on a GPU.
    pub buckets: Option<Buckets>,
}

impl Case {
    /// Full fine-tuning as the goldens were made.
    pub fn full() -> Self {
        let args = TrainArgs {
            learning_rate: 1e-2,
            lr_scheduler_type: Scheduler::Linear,
            weight_decay: 0.1,
            ..TrainArgs::default()
        };
        Self {
            method: Method::Full {},
            args,
            kernels: KernelPlan::default(),
            loss: Default::default(),
            precision: PrecisionArgs::default(),
            recompute: Level::None,
            offload: false,
            buckets: None,
        }
    }

    /// LoRA+ as the goldens were made.
    pub fn lora() -> Self {
        let lora: LoraArgs =
            serde_json::from_str(r#"{"r": 4, "lora_alpha": 8, "loraplus_lr_ratio": 16}"#).unwrap();
        let full = Self::full();
        Self { method: Method::Lora(lora), args: TrainArgs { weight_decay: 0.0, ..full.args }, ..full }
    }

    /// LoRA+ of another rank, on the same projections.
    pub fn adapters(r: usize) -> Self {
        let mut case = Self::lora();
        if let Method::Lora(lora) = &mut case.method {
            (lora.r, lora.lora_alpha) = (r, 2.0 * r as f64);
        }
        case
    }

    /// The same with other kernels.
    pub fn with(self, kernels: KernelPlan) -> Self {
        Self { kernels, ..self }
    }

    /// Layout of a model for this case.
    pub fn setup<'a>(&'a self, config: &'a ModelConfig, batches: &Batches) -> Setup<'a> {
        let (method, capacity) = (&self.method, batches.capacity());
        Setup {
            config,
            method,
            capacity,
            plan: self.kernels,
            recompute: self.recompute,
            offload: self.offload,
        }
    }

    /// A GPU's backend on a machine.
    pub fn on<D: Machine>(&self, machine: D, config: &ModelConfig, batches: &Batches) -> CudaBackend<D> {
        let options = Options {
            config,
            capacity: batches.capacity(),
            plan: self.kernels,
            loss: self.loss,
            precision: self.precision,
            seed: 0,
        };
        let backend = CudaBackend::new(machine, &options).unwrap();
        match self.buckets {
            Some(buckets) => backend.with_buckets(buckets),
            None => backend,
        }
    }

    /// Prefix of this case's names in a golden.
    pub fn prefix(&self) -> &'static str {
        match self.method {
            Method::Full {} => "",
            Method::Lora(_) => "lora.",
        }
    }
}

/// As f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Asserts |a − b| ≤ tolerance · max|b| for all elements and says where it failed worst.
#[track_caller]
pub fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1e-12_f64, |m, v| m.max(v.abs()));
    let off = |i: usize| {
        let e = (got[i] - expected[i]).abs();
        if e.is_nan() { f64::INFINITY } else { e }
    };
    if let Some(worst) = (0..got.len()).max_by(|&a, &b| off(a).total_cmp(&off(b))) {
        assert!(
            off(worst) <= tolerance * scale,
            "{what}[{worst}]: {} is not {} (off by {:.2e} of the largest, {tolerance:.0e} allowed)",
            got[worst],
            expected[worst],
            off(worst) / scale
        );
    }
}
