//! A small training, as files and a command. Each test binary uses a part of it.
#![allow(dead_code)]

use assert_cmd::Command;

const CONFIG: &str = r#"{"model_type":"qwen2","vocab_size":4096,"hidden_size":16,"intermediate_size":64,
    "num_hidden_layers":3,"num_attention_heads":2,"num_key_value_heads":1,"tie_word_embeddings":true,
    "max_position_embeddings":2048}"#;

pub fn chronicals() -> Command {
    Command::new(env!("CARGO_BIN_EXE_chronicals"))
}

pub fn data(name: &str) -> String {
    format!("{}/../data/chat-instruct/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder with a config and a job; `method` and `extra` are YAML lines.
pub fn job(method: &str, extra: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let job = format!(
        "model: {{config: config.json}}\n\
         data: {{path: {}, tokenizer: {}, max_length: 128}}\n\
         method: {method}\n\
         batch: {{packing: bfd, per_device_train_batch_size: 1, gradient_accumulation_steps: 2}}\n\
         train: {{learning_rate: 5e-3}}\n\
         max_steps: 6\n\
         output_dir: out\n{extra}",
        data("train.jsonl"),
        data("tokenizer.json")
    );
    std::fs::write(dir.path().join("job.yaml"), job).unwrap();
    dir
}

/// Gives the model of a job heads that a GPU has kernels for.
pub fn for_gpu(dir: &tempfile::TempDir) {
    let heads = r#""head_dim":64,"num_attention_heads""#;
    let config = CONFIG.replace(r#""num_attention_heads""#, heads);
    std::fs::write(dir.path().join("config.json"), config).unwrap();
}

pub fn stderr(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// Both kinds of training.
pub const METHODS: [&str; 2] = ["{type: full}", "{type: lora, r: 4, lora_alpha: 8, loraplus_lr_ratio: 4}"];

/// What a training leaves, but for its times.
pub fn outcome(dir: &tempfile::TempDir) -> (Vec<u8>, Vec<serde_json::Value>) {
    let out = dir.path().join("out");
    let weights = ["model.safetensors", "adapter_model.safetensors"].map(|name| out.join(name));
    let weights = weights.iter().find(|path| path.exists()).expect("weights were saved");
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let timed = ["seconds", "tokens_per_second"];
        timed.iter().for_each(|name| drop(line.as_object_mut().unwrap().remove(*name)));
        line
    });
    (std::fs::read(weights).unwrap(), lines.collect())
}
