//! Models and adapters in and out: GGUF, Hugging Face folders, PEFT adapters, and files that are none of these.

mod bad;
mod commands;
mod folder;
mod gguf;
mod hub;
mod written;

use std::path::{Path, PathBuf};

use chronicals::formats::{self, Tensors};

/// A file of `tests/goldens`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

/// Fails unless two models have the same tensors to the bit.
fn assert_same(a: &dyn Tensors, b: &dyn Tensors) {
    assert_eq!(a.names(), b.names());
    for name in a.names() {
        assert_eq!(a.shape(name), b.shape(name), "{name}");
        let bits = |t: &dyn Tensors| t.read(name).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{name} differs");
    }
}

fn open(path: &Path) -> Box<dyn Tensors> {
    formats::open(path).unwrap()
}

/// A folder with the model and the adapter of the `llama` goldens, as other tools would have left them.
fn llama() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (folder, from, to) in [
        ("model", "config.json", "config.json"),
        ("model", "model.safetensors", "model.safetensors"),
        ("adapter", "adapter.safetensors", "adapter_model.safetensors"),
    ] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        std::fs::copy(golden("llama").join(from), dir.path().join(folder).join(to)).unwrap();
    }
    std::fs::write(dir.path().join("adapter/adapter_config.json"), ADAPTER).unwrap();
    dir
}

/// As PEFT writes it.
const ADAPTER: &str = r#"{
  "alora_invocation_tokens": null, "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "model",
  "bias": "none", "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
  "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8,
  "lora_bias": false, "lora_dropout": 0.0, "modules_to_save": null, "peft_type": "LORA", "r": 4, "rank_pattern": {},
  "revision": null, "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false,
  "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
}"#;
