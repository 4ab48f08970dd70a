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
    let mut numbers = text.split("loss ").filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
    numbers.next().unwrap_or_else(|| panic!("no loss in: {text}"))
}

/// The model of the goldens with that tokenizer, and with a token that begins every text where `begins`.
fn with_tokenizer(begins: bool) -> tempfile::TempDir {
    let dir = llama();
    let mut made: serde_json::Value = serde_json::from_str(&tokenizer()).unwrap();
    if begins {
        made["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "~", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"~": {"id": "~", "ids": [94], "tokens": ["~"]}},
        });
    }
    let settings = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<3>"}"#;
    for (name, text) in [("tokenizer.json", made.to_string()), ("tokenizer_config.json", settings.into())] {
        std::fs::write(dir.path().join("model").join(name), text).unwrap();
    }
    dir
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
    let dir = with_tokenizer(false);
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
    let dir = with_tokenizer(false);
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

#[test]
fn a_text_begins_as_samples_do_and_is_as_long_as_they_may_be() {
    let evaluate = ["evaluate", "--model", "model"];
    let of = |dir: &_, more: &[&str]| ok(dir, &[&evaluate, more].concat());
    let (plain, begun) = (with_tokenizer(false), with_tokenizer(true));
    assert!(of(&plain, &["--text", "Berlin"]).contains("over 5 tokens"));
    let text = of(&begun, &["--text", "Berlin", "--per-token"]);
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(first["id"] == 94 && text.contains("over 6 tokens"), "{text}");
    std::fs::write(begun.path().join("data.jsonl"), "{\"text\": \"Berlin\"}").unwrap();
    let same = of(&begun, &["--data", "data.jsonl", "--max-length", "7"]);
    assert_eq!(loss(&same), loss(&text));
    let cut = of(&begun, &["--text", "Berlin", "--max-length", "4"]);
    assert!(cut.contains("over 3 tokens") && cut.contains("cut from 7 tokens"), "{cut}");

    let long = "a".repeat(1100);
    std::fs::write(begun.path().join("data.jsonl"), format!("{{\"text\": \"{long}\"}}")).unwrap();
    for (from, samples) in [(["--text", long.as_str()], 1101), (["--data", "data.jsonl"], 1102)] {
        let args = [&evaluate[..], &from, &["--max-length", "2000"]].concat();
        let output = chronicals(&begun, &args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let said = format!("{samples} tokens, the model has 1024 positions");
        assert!(text.contains(&said) && text.contains("--max-length 1024"), "{text}");
        assert!(of(&begun, &from).contains("over 1023 tokens"));
    }
}

#[test]
fn data_are_evaluated_as_they_were_learned() {
    let dir = with_tokenizer(false);
    let records = "{\"question\": \"The sky is\", \"completion\": \" blue.\"}\n";
    std::fs::write(dir.path().join("data.jsonl"), records).unwrap();
    std::fs::write(dir.path().join("turns.jinja"), "{% for m in messages %}[{{ m.content }}]{% endfor %}")
        .unwrap();
    let data = ["evaluate", "--model", "model", "--data", "data.jsonl", "--column", "prompt=question"];
    for (more, tokens) in [
        (&[][..], 7),
        (&["--completion-only-loss"], 7),
        (&["--completion-only-loss", "false"], 16),
        // The turn in brackets; the prompt's is not learned.
        (&["--template", "chat", "--chat-template-path", "turns.jinja"], 8),
    ] {
        let text = ok(&dir, &[&data, more].concat());
        assert!(text.contains(&format!("over {tokens} tokens")), "{more:?}: {text}");
    }
    let output = chronicals(&dir, &["evaluate", "--model", "model", "--text", "a", "--template", "chat"]);
    assert_eq!(output.status.code(), Some(2));
    let help = ok(&dir, &["evaluate", "--help"]);
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("id, token, log_probability"), "{help}");
}

#[test]
fn a_chat_template_that_is_not_used_is_told() {
    let dir = with_tokenizer(false);
    let records = "{\"prompt\": \"The sky is\", \"completion\": \" blue.\"}\n";
    std::fs::write(dir.path().join("data.jsonl"), records).unwrap();
    let show = ["data", "show", "data.jsonl", "--tokenizer", "model"];
    let of = |more: &[&str]| ok(&dir, &[&show, more].concat()).contains("is not used");
    assert!(!of(&[]), "there is none");
    let turns = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    std::fs::write(dir.path().join("model/chat_template.jinja"), turns).unwrap();
    assert!(of(&[]));
    assert!(!of(&["--template", "chat"]) && !of(&["--template", "plain"]));
}
