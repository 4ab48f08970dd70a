//! GGUF against llama.cpp's own package (`tests/goldens/make_gguf.py`).

use chronicals::{
    config::ModelConfig,
    data::tokenizer::{TextTokenizer, TokenizerArgs},
    formats::{
        folder::Source,
        gguf::{Kind, Model},
    },
};
use safetensors::SafeTensors;

use super::{
    assert_same, golden, open,
    written::{Gguf, float, number, text, texts, truth},
};

#[test]
fn blocks_of_every_type_are_what_llama_cpp_makes_of_them() {
    let bytes = std::fs::read(golden("gguf/blocks.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let types = [
        (Kind::F32, "F32"),
        (Kind::F16, "F16"),
        (Kind::Bf16, "BF16"),
        (Kind::Q4_0, "Q4_0"),
        (Kind::Q4_1, "Q4_1"),
        (Kind::Q8_0, "Q8_0"),
        (Kind::Q4K, "Q4_K"),
        (Kind::Q6K, "Q6_K"),
    ];
    assert_eq!(file.len(), 2 * types.len());
    for (kind, name) in types {
        let got = kind.decode(file.tensor(&format!("{name}.bytes")).unwrap().data());
        let expected = file.tensor(&format!("{name}.values")).unwrap();
        let expected = expected.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        assert_eq!(got.len(), expected.len(), "{name}");
        assert!(got.len() >= 1024);
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "{name}, value {i}: {got} for {expected}");
        }
    }
}

#[test]
fn a_model_that_llama_cpp_wrote_has_the_tensors_it_was_made_of() {
    let file = Model::open(&golden("gguf/llama.gguf")).unwrap();
    assert_same(&file, &*open(&golden("gguf/llama.safetensors")));
    let config = file.config().unwrap();
    let expected: [(&str, serde_json::Value); 7] = [
        ("model_type", "llama".into()),
        ("hidden_size", 32.into()),
        ("num_key_value_heads", 2.into()),
        ("vocab_size", 96.into()),
        ("rms_norm_eps", 1e-5.into()),
        ("tie_word_embeddings", false.into()),
        ("eos_token_id", 3.into()),
    ];
    for (key, value) in expected {
        assert_eq!(config[key], value, "{key}");
    }
}

#[test]
fn an_imported_folder_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let source = Source::open(&golden("gguf/llama.gguf"), None).unwrap();
    source.write(None, super::folder::F32, &out).unwrap();
    assert_same(&*open(&out), &*open(&golden("gguf/llama.safetensors")));
    let mut names: Vec<_> = out.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    let settings = std::fs::read_to_string(out.join("tokenizer_config.json")).unwrap();
    assert!(settings.contains("m.content") && settings.contains(r#""eos_token": "<3>""#), "{settings}");
    // A folder can be taken for a source as well.
    Source::open(&out, None).unwrap();
}

/// The tokenizer that ships, and as much of it as GGUF has, but for how words are split and what is put in front.
fn tokenizer() -> (serde_json::Value, Gguf) {
    let path = golden("../../data/chat-instruct/tokenizer.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![""; vocab.len()];
    vocab.iter().for_each(|(t, id)| tokens[id.as_u64().unwrap() as usize] = t);
    let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let kinds: Vec<u8> =
        (0..tokens.len() as i32).flat_map(|id| if id < 2 { 3i32 } else { 1 }.to_le_bytes()).collect();
    let file = Gguf::small("qwen2")
        .value("tokenizer.ggml.model", text("gpt2"))
        .value("tokenizer.ggml.tokens", texts(tokens.iter().copied()))
        .value("tokenizer.ggml.merges", texts(merges.iter().map(String::as_str)))
        .value("tokenizer.ggml.token_type", super::written::array(5, tokens.len() as u64, &kinds))
        .value("tokenizer.ggml.eos_token_id", number(0));
    (json, file)
}

fn opened(dir: &tempfile::TempDir, file: &Gguf) -> Model {
    let path = dir.path().join("tokenizer.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Model::open(&path).unwrap()
}

#[test]
fn a_tokenizer_survives_the_way_through_gguf() {
    let (json, file) = tokenizer();
    let dir = tempfile::tempdir().unwrap();
    let file = opened(&dir, &file.value("tokenizer.ggml.pre", text("gpt-2")));
    let made = file.tokenizer().unwrap();
    assert_eq!(file.tokenizer_config()["eos_token"], "<|endoftext|>");
    for part in ["model", "pre_tokenizer", "normalizer", "added_tokens"] {
        assert_eq!(made[part], json[part], "{part}");
    }
}

/// As llama.cpp: what the file says, else what such tokenizers do.
#[test]
fn texts_begin_with_a_token_where_the_tokenizer_puts_one() {
    let dir = tempfile::tempdir().unwrap();
    for (pre, says, expected) in [
        ("llama-bpe", None, true),
        ("llama-bpe", Some(true), true),
        ("llama-bpe", Some(false), false),
        ("gpt-2", None, false),
        ("gpt-2", Some(true), true),
        ("gpt-2", Some(false), false),
    ] {
        let (_, file) = tokenizer();
        let mut file = file.value("tokenizer.ggml.pre", text(pre));
        if let Some(says) = says {
            file = file.value("tokenizer.ggml.add_bos_token", truth(says));
        }
        let nameless = opened(&dir, &file).tokenizer();
        assert_eq!(
            nameless.is_err_and(|e| e.to_string().contains("does not name")),
            expected,
            "{pre} {says:?}"
        );

        let made = opened(&dir, &file.value("tokenizer.ggml.bos_token_id", number(1)));
        for (name, text) in [
            ("tokenizer.json", made.tokenizer().unwrap().to_string()),
            ("tokenizer_config.json", serde_json::Value::Object(made.tokenizer_config()).to_string()),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let read = TextTokenizer::load(dir.path(), &TokenizerArgs::default()).unwrap();
        assert_eq!(read.bos(), if expected { &[1][..] } else { &[] }, "{pre} {says:?}");
        let config = made.tokenizer_config();
        assert_eq!(config.get("add_bos_token").is_some_and(|v| v == true), expected, "{pre} {says:?}");
    }
}

fn merge(m: &serde_json::Value) -> String {
    format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap())
}

/// A small Llama with the factors of llama.cpp's converter (`generate_extra_tensors`) for Llama 3's scaling by `factor`.
fn llama3(factor: f64, original: f64) -> (Gguf, Vec<f64>) {
    let frequencies = (0..8).map(|i| 500_000f64.powf(-f64::from(i) / 8.0));
    let factors: Vec<f64> = frequencies
        .map(|frequency| {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let smooth = (original / wavelength - 1.0) / 3.0;
            if wavelength < original / 4.0 {
                1.0
            } else if wavelength > original {
                factor
            } else {
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect();
    let bytes = factors.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    let file = Gguf::small("llama")
        .value("llama.rope.freq_base", float(500_000.0))
        .value("llama.context_length", number(131_072))
        .tensor_of("rope_freqs.weight", &[8], 0, bytes);
    let square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let file = square
        .iter()
        .fold(file, |file, name| file.tensor(&format!("blk.0.{name}.weight"), &[32, 32], 0, 4096));
    let norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];
    let file = norms.iter().fold(file, |file, name| file.tensor(name, &[32], 0, 128));
    (file.tensor("token_embd.weight", &[32, 8], 0, 1024), factors)
}

#[test]
fn llama_3s_rotary_factors_become_its_config() {
    let dir = tempfile::tempdir().unwrap();
    for factor in [8.0, 32.0] {
        let (file, factors) = llama3(factor, 8192.0);
        assert!(factors.iter().any(|f| *f > 1.0 && *f < factor), "one is blended: {factors:?}");
        let path = dir.path().join("llama-3.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        let out = dir.path().join(format!("by-{factor}"));
        let source = Source::open(&path, Some(&golden("../../data/chat-instruct/tokenizer.json"))).unwrap();
        source.write(None, super::folder::F32, &out).unwrap();

        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let expected = serde_json::json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        assert_eq!(config["rope_scaling"], expected);
        let model = ModelConfig::load(&out.join("config.json")).unwrap();
        for (i, (got, by)) in model.inv_freq.iter().zip(&factors).enumerate() {
            let expected = 500_000f64.powf(-(i as f64) / 8.0) / by;
            assert!((got - expected).abs() <= 1e-6 * expected, "{i}: {got} for {expected}");
        }
    }
    // Factors of 1 scale nothing.
    let (file, _) = llama3(1.0, 8192.0);
    assert_eq!(opened(&dir, &file).config().unwrap().get("rope_scaling"), None);
}

#[test]
fn other_rotary_factors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, factors) = llama3(8.0, 4096.0);
    let e = opened(&dir, &file).config().unwrap_err().to_string();
    assert!(e.contains("'rope_freqs.weight' has factor 4 as") && e.contains("mend:"), "{e}\n{factors:?}");
    let with = |bytes: Vec<u8>| {
        let file = Gguf::small("llama").tensor("token_embd.weight", &[32, 8], 0, 1024);
        opened(&dir, &file.tensor_of("rope_freqs.weight", &[8], 0, bytes)).config().unwrap_err().to_string()
    };
    for odd in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        let e = with([odd; 8].iter().flat_map(|x| x.to_le_bytes()).collect());
        assert!(e.contains("has factor"), "{odd}: {e}");
    }
}
