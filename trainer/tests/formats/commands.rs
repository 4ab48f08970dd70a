//! `import`, `export`, `merge` and `evaluate` as a person types them.

use assert_cmd::Command;

use super::{assert_same, golden, llama, open};

fn chronicals(dir: &tempfile::TempDir, args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronicals"));
    command.current_dir(dir).args(args).output().unwrap()
}

fn ok(dir: &tempfile::TempDir, args: &[&str]) -> String {
    let output = chronicals(dir, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &text
}

/// What `evaluate` prints for the loss.
fn loss(text: &str) -> f64 {
    let rest = text.split("loss ").nth(1).unwrap_or_else(|| panic!("no loss in: {text}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// A tokenizer of the vocabulary of the goldens: a token for each of the 96 characters from the space on, but for the one that ends.
fn tokenizer() -> String {
    let vocab: serde_json::Map<String, serde_json::Value> = (0..96u8)
        .map(|i| (if i == 3 { "<3>".into() } else { char::from(32 + i).to_string() }, i.into()))
        .collect();
    let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": "!"});
    let split = serde_json::json!({"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false});
    serde_json::json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model})
        .to_string()
}

#[test]
fn an_adapter_beside_the_model_and_merged_into_it_say_the_same() {
    let dir = llama();
    std::fs::write(dir.path().join("model/tokenizer.json"), tokenizer()).unwrap();
    let settings = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<3>"}"#;
    std::fs::write(dir.path().join("model/tokenizer_config.json"), settings).unwrap();
    let text = ["--text", "The capital of France is Paris."];
    let merged = ["merge", "--model", "model", "--adapter", "adapter", "merged", "--dtype", "f32"];
    assert!(ok(&dir, &merged).contains("wrote merged:"));
    ok(&dir, &["export", "merged", "exported", "--dtype", "f32", "--max-shard-gb", "0.00002"]);
    assert_same(&*open(&dir.path().join("merged")), &*open(&dir.path().join("exported")));
    assert!(dir.path().join("exported/model.safetensors.index.json").exists());
    assert!(dir.path().join("exported/tokenizer_config.json").exists());
    let of = |args: &[&str]| loss(&ok(&dir, &[&["evaluate"], args, &text].concat()));
    let plain = of(&["--model", "model"]);
    let beside = of(&["--model", "model", "--adapter", "adapter"]);
    let merged = of(&["--model", "exported"]);
    assert!((beside - merged).abs() < 2e-4, "{beside} and {merged}");
    assert!((beside - plain).abs() > 1e-2, "the adapter changes nothing: {plain}");
}

#[test]
fn gguf_is_imported_and_can_be_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer()).unwrap();
    let gguf = golden("gguf/llama.gguf");
    let gguf = gguf.to_str().unwrap();
    ok(&dir, &["import", gguf, "model", "--tokenizer", "tokenizer.json"]);
    let text = ok(&dir, &["evaluate", "--model", "model", "--text", "Berlin"]);
    assert!(loss(&text) > 1.0 && text.contains("over 5 tokens"), "{text}");
}

#[test]
fn mistakes_are_told_with_the_exit_code_of_usage() {
    let dir = llama();
    std::fs::write(dir.path().join("junk.gguf"), b"GGUF\x01\0\0\0").unwrap();
    for (args, expected) in [
        (&["import", "junk.gguf", "out"][..], "version 1 is not supported"),
        (&["import", "no.gguf", "out"], "no.gguf"),
        (&["import", "model", "adapter"], "something here already"),
        (&["export", "model", "out", "--max-shard-gb", "0"], "must be above 0"),
        (&["merge", "--model", "model", "--adapter", "model", "out"], "adapter_config.json"),
        (&["evaluate", "--model", "model", "--text", "a"], "tokenizer"),
        (&["evaluate", "--model", "model"], "--text"),
    ] {
        let output = chronicals(&dir, args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        assert!(!dir.path().join("out").exists(), "{args:?}");
    }
}

#[test]
fn every_token_is_told_with_its_probability() {
    let dir = llama();
    std::fs::write(dir.path().join("model/tokenizer.json"), tokenizer()).unwrap();
    let settings = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<3>"}"#;
    std::fs::write(dir.path().join("model/tokenizer_config.json"), settings).unwrap();
    let records = "{\"prompt\": \"The sky is\", \"completion\": \" blue.\"}\n{\"prompt\": \"Two\", \"completion\": \" and two\"}\n";
    std::fs::write(dir.path().join("data.jsonl"), records).unwrap();
    let data =
        ["evaluate", "--model", "model", "--data", "data.jsonl", "--completion-only-loss", "--per-token"];
    let output = chronicals(&dir, &data);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let tokens: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |sample: u64| tokens.iter().filter(move |t| t["sample"] == sample);
    let text = |sample| of(sample).map(|t| t["token"].as_str().unwrap()).collect::<String>();
    assert_eq!((text(0), text(1)), ("The sky is blue.<3>".into(), "Two and two<3>".into()));
    for sample in [0, 1] {
        assert!(of(sample).next().unwrap()["log_probability"].is_null(), "nothing comes before the first");
        assert!(of(sample).skip(1).all(|t| t["log_probability"].as_f64().unwrap() < 0.0));
    }
    let learned: Vec<f64> = tokens
        .iter()
        .filter(|t| t["learned"] == true)
        .map(|t| t["log_probability"].as_f64().unwrap())
        .collect();
    assert_eq!(learned.len(), 7 + 9, "completions and what ends them");
    let mean = -learned.iter().sum::<f64>() / learned.len() as f64;
    let told = loss(&String::from_utf8_lossy(&output.stderr));
    assert!((mean - told).abs() < 1e-4, "{mean} and {told}");
}
