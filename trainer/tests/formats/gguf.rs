//! GGUF against llama.cpp's own package (`tests/goldens/make_gguf.py`).

use chronicals::{
    data::tokenizer::{TextTokenizer, TokenizerArgs},
    formats::{
        folder::Source,
        gguf::{Kind, Model},
    },
};
use safetensors::SafeTensors;

use super::{
    assert_same, golden, open,
    written::{Gguf, number, text, texts, truth},
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
