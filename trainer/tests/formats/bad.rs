//! Files that are damaged, foreign or made to do harm: one clear error each, and no memory asked for in vain.

use std::path::{Path, PathBuf};

use chronicals::formats::{
    folder::{Adapter, Source},
    gguf::{Header, Model},
    peft::AdapterConfig,
};
use proptest::prelude::*;

use super::{
    ADAPTER, golden, llama,
    written::{Gguf, array, number, text},
};

fn refusal(file: &Gguf) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let opened = Model::open(&path).and_then(|m| m.config().map(drop));
    opened.expect_err("a mistake in it").to_string()
}

#[test]
fn gguf_says_what_is_not_supported() {
    let small = || Gguf::small("llama");
    for (file, expected) in [
        (small().tensor("blk.0.ffn_up.weight", &[256, 1], 13, 176), "type Q5_K is not supported (F32, F16"),
        (small().tensor("blk.0.ffn_up.weight", &[256, 1], 99, 4), "type 99 is not supported"),
        (small().tensor("blk.0.ffn_up.weight", &[33, 1], 8, 34), "extents [33, 1] of Q8_0"),
        (
            small().tensor("blk.0.attn_norm_2.weight", &[32], 0, 128),
            "'blk.0.attn_norm_2.weight' belongs to no",
        ),
        (
            small().tensor("token_embd.weight", &[32, 8], 0, 1024).tensor("rope_freqs.weight", &[32], 0, 128),
            "'rope_freqs.weight' has 32 factors for heads of 16",
        ),
        (small().tensor("blk.0.attn_q.weight", &[32, 30], 0, 3840), "has 30 rows for 2 heads"),
        (small(), "no 'token_embd.weight'"),
        (Gguf::small("gemma3"), "architecture 'gemma3' is not supported"),
        (Gguf::default(), "architecture 'nothing' is not supported"),
        (
            Gguf::default().value("general.architecture", text("llama")),
            "its metadata has no 'attention.head_count'",
        ),
        (small().value("llama.rope.scaling.type", text("yarn")), "rotary scaling 'yarn' is not supported"),
        (small().value("general.alignment", number(24)), "an alignment of 24"),
    ] {
        let e = refusal(&file);
        assert!(e.contains(expected) && e.contains("mend:"), "{expected:?} is not in:\n{e}");
    }
}

#[test]
fn gguf_lengths_are_checked_before_anything_is_taken_for_them() {
    let huge = u64::MAX;
    let mut nested = array(4, 1, &7u32.to_le_bytes());
    for _ in 0..2000 {
        let (super::written::Value(_, inner), mut all) = (nested, Vec::new());
        all.extend(inner);
        nested = array(9, 1, &all);
    }
    for (file, expected) in [
        (Gguf::default().value("a", array(4, huge, &[])), "claims 18446744073709551615 values"),
        (Gguf::default().value("a", array(0, 1 << 40, &[])), "claims 1099511627776 values"),
        (Gguf::default().value("a", nested), "arrays within arrays"),
        (Gguf::small("llama").tensor("output.weight", &[1 << 40, 1 << 40], 0, 4), "extents"),
        (Gguf::small("llama").tensor("output.weight", &[1 << 20, 1 << 20], 0, 4), "ends behind the file"),
    ] {
        let e = refusal(&file);
        assert!(e.contains(expected), "{expected:?} is not in:\n{e}");
    }
    // Counts of the header itself.
    for at in [8, 16] {
        let mut bytes = Gguf::small("llama").bytes();
        bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
        let e = Header::read(&bytes[..], bytes.len() as u64).unwrap_err();
        assert!(e.contains("claims"), "{e}");
    }
}

#[test]
fn a_gguf_file_cut_anywhere_is_an_error() {
    let whole = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(Model::open(&path).is_err(), "{length} of {} bytes", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the header: an error or a header, and no panic.
    #[test]
    fn damaged_gguf_headers_do_not_panic(flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..8)) {
        let mut bytes = std::fs::read(golden("gguf/llama.gguf")).unwrap();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        let _ = Header::read(&bytes[..], bytes.len() as u64);
    }

    #[test]
    fn noise_behind_the_magic_does_not_panic(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        let _ = Header::read(&bytes[..], bytes.len() as u64);
    }

    #[test]
    fn damaged_safetensors_headers_do_not_panic(flips in prop::collection::vec((0usize..2000, any::<u8>()), 1..8)) {
        let mut bytes = std::fs::read(golden("llama/model.safetensors")).unwrap();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(file) = chronicals::formats::open(&path) {
            file.names().iter().for_each(|name| drop(file.read(name)));
        }
    }
}

fn opened(path: &Path) -> String {
    Source::open(path, None).err().expect("a mistake").to_string()
}

#[test]
fn folders_say_what_they_lack() {
    let dir = llama();
    let model = dir.path().join("model");
    std::fs::rename(model.join("config.json"), model.join("c.json")).unwrap();
    assert!(opened(&model).contains("config.json"));
    std::fs::rename(model.join("c.json"), model.join("config.json")).unwrap();
    std::fs::rename(model.join("model.safetensors"), model.join("pytorch_model.bin")).unwrap();
    assert!(opened(&model).contains("it should have one of model.safetensors.index.json"));
    for (index, expected) in [
        ("{}", "not an index of shards"),
        (r#"{"weight_map": {"a": "../model.safetensors"}}"#, "not a file beside the index"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "not a file beside the index"),
        (r#"{"weight_map": {"a": "gone.safetensors"}}"#, "gone.safetensors"),
        (r#"{"weight_map": {"a": "here.safetensors"}}"#, "has no tensor 'a'"),
    ] {
        std::fs::copy(golden("llama/model.safetensors"), model.join("here.safetensors")).unwrap();
        std::fs::write(model.join("model.safetensors.index.json"), index).unwrap();
        let e = opened(&model);
        assert!(e.contains(expected), "{expected:?} is not in:\n{e}");
    }
    assert!(opened(&golden("llama/model.safetensors")).contains("neither a folder nor a .gguf file"));
    assert!(opened(&PathBuf::from("./no/such/folder")).contains("no such file or folder"));
}

#[test]
fn adapters_that_mean_something_else_are_refused() {
    let dir = llama();
    let model = Source::open(&dir.path().join("model"), None).unwrap();
    let folder = dir.path().join("adapter");
    let with = |from: &str, to: &str| {
        assert!(ADAPTER.contains(from), "{from}");
        std::fs::write(folder.join("adapter_config.json"), ADAPTER.replace(from, to)).unwrap();
        Adapter::open(&folder, model.model()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    for (from, to, expected) in [
        (r#""peft_type": "LORA""#, r#""peft_type": "IA3""#, "peft_type IA3"),
        (r#""bias": "none""#, r#""bias": "all""#, "biases"),
        (r#""use_dora": false"#, r#""use_dora": "yes""#, "expected a boolean"),
        (
            r#""modules_to_save": null"#,
            r#""modules_to_save": ["lm_head"]"#,
            "modules_to_save is not supported",
        ),
        (
            r#""init_lora_weights": true"#,
            r#""init_lora_weights": "pissa_niter_4""#,
            "path_initial_model_for_weight_conversion",
        ),
        (r#""use_dora": false"#, r#""use_dora": true"#, "lora_magnitude_vector"),
        (r#""rank_pattern": {}"#, r#""rank_pattern": {"q_proj": 8}"#, "expected [8, 32]"),
        (r#""rank_pattern": {}"#, r#""rank_pattern": {"(": 8}"#, "cannot be matched"),
        (r#""q_proj", "#, r#""c_attn", "#, "c_attn"),
        (r#""r": 4"#, r#""r": 8"#, "expected [8, 32]"),
        (r#""q_proj", "#, "", "q_proj"),
        (r#""r": 4,"#, "", "missing field `r`"),
    ] {
        let e = with(from, to);
        assert!(e.contains(expected), "{expected:?} is not in:\n{e}");
    }
    assert_eq!(with(r#""r": 4"#, r#""r": 4"#), "");
    // Another model's.
    let e = Adapter::open(&folder, &other()).err().unwrap().to_string();
    assert!(e.contains("lora_"), "{e}");
}

fn other() -> chronicals::config::ModelConfig {
    let text = std::fs::read_to_string(golden("llama/config.json")).unwrap();
    let text = text.replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 1"#);
    chronicals::config::ModelConfig::parse(&text, Path::new("other")).unwrap()
}

#[test]
fn adapter_settings_survive_being_written() {
    let dir = llama();
    let folder = dir.path().join("adapter");
    let config = AdapterConfig::load(&folder).unwrap();
    let lora = config.lora(&folder).unwrap();
    assert_eq!((lora.r, lora.lora_alpha, lora.target_modules.len()), (4, 8.0, 7));
    config.save(&folder).unwrap();
    assert_eq!(AdapterConfig::load(&folder).unwrap(), config);
    let all = ADAPTER.replace(
        r#"["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]"#,
        r#""all-linear""#,
    );
    std::fs::write(folder.join("adapter_config.json"), all).unwrap();
    let again = AdapterConfig::load(&folder).unwrap().lora(&folder).unwrap();
    assert_eq!(again.target_modules, lora.target_modules);
}
