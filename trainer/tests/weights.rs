//! Damaged and foreign weight files are refused with the tensor's name, and nothing is loaded past them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use chronibench_protocol::spec::{Method, TrainArgs};
use chronicals::{
    KernelPlan, Trainer,
    backend::{Backend, cpu::CpuBackend},
    config::ModelConfig,
    init,
    model::{Capacity, Setup},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const CONFIG: &str = r#"{"model_type":"qwen2","vocab_size":11,"hidden_size":8,"intermediate_size":6,
    "num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"tie_word_embeddings":true}"#;

/// Type, extents and bytes of a tensor.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

struct Files {
    dir: tempfile::TempDir,
    config: ModelConfig,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, CONFIG).unwrap();
        init::write_initial_weights(&path, 1, false, &dir.path().join("model.safetensors")).unwrap();
        Self { config: ModelConfig::load(&path).unwrap(), dir }
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model.safetensors")
    }

    fn trainer(&self) -> Trainer<CpuBackend> {
        let capacity = Capacity { tokens: 4, row_slots: 4 };
        let plan = KernelPlan::default();
        let setup = Setup {
            config: &self.config,
            method: &Method::Full {},
            capacity,
            plan,
            recompute: Default::default(),
            offload: false,
        };
        let backend = CpuBackend::new(&self.config, capacity, plan, Default::default());
        Trainer::new(backend, &setup, &TrainArgs::default(), 1).unwrap()
    }

    /// Writes the model again after `change` has been at its tensors.
    fn rewrite(&self, change: impl FnOnce(&mut BTreeMap<String, Stored>)) -> PathBuf {
        let bytes = std::fs::read(self.model()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: BTreeMap<_, _> = file
            .tensors()
            .into_iter()
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
        let path = self.dir.path().join("changed.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn refusal(&self, path: &Path) -> String {
        self.trainer().load_weights(path).unwrap_err().to_string()
    }
}

#[test]
fn what_was_saved_loads_again_to_the_bit() {
    let files = Files::new();
    let mut trainer = files.trainer();
    trainer.load_weights(&files.model()).unwrap();
    let copy = files.dir.path().join("copy.safetensors");
    trainer.save(&copy).unwrap();
    assert_eq!(std::fs::read(files.model()).unwrap(), std::fs::read(copy).unwrap());
}

#[test]
fn bf16_is_widened() {
    let files = Files::new();
    let name = "model.norm.weight";
    let path = files.rewrite(|t| {
        let bf16 = [1.5f32, -2.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0].map(|v| (v.to_bits() >> 16) as u16);
        t.insert(name.into(), (Dtype::BF16, vec![8], bf16.iter().flat_map(|v| v.to_le_bytes()).collect()));
    });
    let mut trainer = files.trainer();
    trainer.load_weights(&path).unwrap();
    let t = trainer.trainable().get(name).unwrap().clone();
    let values = trainer.backend().read(trainer.model().weights.slice(t.offset, t.len())).unwrap();
    assert_eq!(values, [1.5, -2.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn a_tied_head_that_is_stored_is_the_embedding() {
    let files = Files::new();
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    let path = files.rewrite(|t| drop(t.insert(head.into(), t[embedding].clone())));
    files.trainer().load_weights(&path).unwrap();

    let cut = |bytes: &[u8]| bytes.chunks(4).flat_map(|v| [v[2], v[3]]).collect::<Vec<u8>>();
    // The same numbers in another format.
    let path = files.rewrite(|t| {
        let (_, shape, bytes) = t[embedding].clone();
        t.insert(head.into(), (Dtype::BF16, shape.clone(), cut(&bytes)));
        let widened = cut(&bytes).chunks(2).flat_map(|v| [0, 0, v[0], v[1]]).collect();
        t.insert(embedding.into(), (Dtype::F32, shape, widened));
    });
    files.trainer().load_weights(&path).unwrap();

    let changes: [fn(&mut Stored); 3] = [
        |(_, _, bytes)| *bytes.last_mut().unwrap() ^= 1,
        |(_, shape, bytes)| (shape[0], *bytes) = (10, bytes[..320].to_vec()),
        |(dtype, _, bytes)| (*dtype, *bytes) = (Dtype::F16, vec![0; 176]),
    ];
    for change in changes {
        let path = files.rewrite(|t| {
            let mut tensor = t[embedding].clone();
            change(&mut tensor);
            t.insert(head.into(), tensor);
        });
        let e = files.refusal(&path);
        assert!(e.contains(head) && e.contains("tie_word_embeddings: false"), "{e}");
    }
}

#[test]
fn missing_extra_misshapen_and_foreign_tensors_are_named() {
    let files = Files::new();
    let name = "model.layers.0.mlp.up_proj.weight";
    let path = files.rewrite(|t| drop(t.remove(name)));
    assert!(files.refusal(&path).contains(name));

    let path = files.rewrite(|t| {
        let tensor = t[name].clone();
        t.insert("model.layers.9.mlp.up_proj.weight".into(), tensor);
    });
    assert!(files.refusal(&path).contains("model.layers.9"));

    let path = files.rewrite(|t| t.get_mut(name).unwrap().1 = vec![8, 6]);
    let refusal = files.refusal(&path);
    assert!(refusal.contains("[8, 6]") && refusal.contains("[6, 8]"), "{refusal}");

    let path = files.rewrite(|t| t.get_mut(name).unwrap().0 = Dtype::I32);
    assert!(files.refusal(&path).contains("I32"));
}

#[test]
fn damaged_files_are_refused_before_memory_is_asked_for() {
    let files = Files::new();
    let whole = std::fs::read(files.model()).unwrap();
    let damaged = files.dir.path().join("damaged.safetensors");
    for length in [0, 7, 8, 60, whole.len() - 1] {
        std::fs::write(&damaged, &whole[..length]).unwrap();
        let refusal = files.refusal(&damaged);
        assert!(refusal.contains("not a whole safetensors file"), "{length} bytes: {refusal}");
    }
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend_from_slice(b"{}");
    std::fs::write(&damaged, huge).unwrap();
    assert!(files.refusal(&damaged).contains("claims a header"));
}

#[test]
fn the_same_seed_draws_the_same_weights() {
    let files = Files::new();
    let config = files.dir.path().join("config.json");
    let again = files.dir.path().join("again.safetensors");
    init::write_initial_weights(&config, 1, false, &again).unwrap();
    assert_eq!(std::fs::read(files.model()).unwrap(), std::fs::read(&again).unwrap());
    init::write_initial_weights(&config, 2, false, &again).unwrap();
    assert_ne!(std::fs::read(files.model()).unwrap(), std::fs::read(&again).unwrap());
}
