//! What is done with bytes that somebody else wrote: one function for each kind of file, from bytes to the end of what reads them.
//!
//! A function may refuse its bytes and must do nothing else that is bad: no panic, no overflow, no memory beyond a small multiple of
//! the bytes, no end that never comes. What it accepts must hold together. Fuzz targets call these functions, and so does a test of
//! the main workspace, which replays the seeds.

use std::{
    cell::LazyCell,
    path::{Path, PathBuf},
    sync::Once,
};

use chronibench::{
    scenario::{Scenario, resolve},
    worker::offer,
};
use chronicals::{
    config::ModelConfig,
    data::{
        chat::ChatTemplate,
        plan::build_plan,
        records::{Conversation, Message, ReadArgs, Record, Records},
        tokenizer::{TextTokenizer, TokenizerArgs},
    },
    device::Device,
    formats::{Tensors, folder::Source, gguf, peft::AdapterConfig, safetensors::Shards},
    job::Job,
    params::Layout,
};
use tempfile::TempDir;

/// A target's name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them; seeds lie in folders of these names.
pub const TARGETS: [Target; 10] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("shards", shards),
    ("adapter_config", adapter_config),
    ("model_config", model_config),
    ("scenario", scenario),
    ("job", job),
    ("records", records),
    ("parquet", parquet),
    ("chat_template", chat_template),
];

thread_local! {
    static FOLDER: LazyCell<TempDir> = LazyCell::new(|| tempfile::tempdir().expect("a folder for the bytes"));
}

/// The bytes as a file, in a folder that lasts as long as the thread.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.with(|folder| folder.path().join(name));
    std::fs::write(&path, bytes).expect("room for the bytes");
    path
}

/// Refusals say where.
fn refused(e: impl std::fmt::Display, at: &Path) {
    let name = at.file_name().expect("a file").to_string_lossy();
    let text = e.to_string();
    assert!(text.contains(&*name), "an error that does not name {name}: {text}");
}

/// Everything that a file of tensors says of itself is so.
fn read_all(file: &dyn Tensors) {
    for name in file.names() {
        let shape = file.shape(name).expect("it is in the file");
        if let Ok(values) = file.read(name) {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        }
    }
}

/// A GGUF file: header, tensors, and the config and the tokenizer that are made of its metadata.
pub fn gguf(bytes: &[u8]) {
    let path = file("model.gguf", bytes);
    match gguf::Model::open(&path) {
        Err(e) => return refused(e, &path),
        Ok(model) => {
            read_all(&model);
            model.tokenizer_config();
            if let Ok(json) = model.tokenizer() {
                let _ =
                    TextTokenizer::load(&file("tokenizer.json", json.to_string().as_bytes()), &no_choice());
            }
        }
    }
    if let Err(e) = Source::open(&path, None) {
        refused(e, &path);
    }
}

fn no_choice() -> TokenizerArgs {
    TokenizerArgs::default()
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    let path = file("model.safetensors", bytes);
    match Shards::of_one(&path) {
        Ok(shards) => read_all(&shards),
        Err(e) => refused(e, &path),
    }
}

/// An index of shards, beside two shards that are whole: `a.safetensors` with `x`, `b.safetensors` with `y`.
pub fn shards(bytes: &[u8]) {
    for (shard, tensor) in [("a", "x"), ("b", "y")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
        let length = (header.len() as u64).to_le_bytes();
        file(&format!("{shard}.safetensors"), &[&length, header.as_bytes(), &[0; 8]].concat());
    }
    if let Ok(shards) = Shards::open(&file("model.safetensors.index.json", bytes)) {
        read_all(&shards);
    }
}

/// A model as small as they come.
fn tiny() -> ModelConfig {
    let text = r#"{"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                  "num_attention_heads": 2}"#;
    ModelConfig::parse(text, Path::new("config.json")).expect("a config")
}

/// `adapter_config.json`, and what it makes of a model.
pub fn adapter_config(bytes: &[u8]) {
    let path = file("adapter_config.json", bytes);
    let folder = path.parent().expect("a folder");
    match AdapterConfig::load(folder).and_then(|config| config.lora(folder)) {
        Ok(lora) => drop(Layout::adapters(&tiny(), &lora)),
        Err(e) => refused(e, &path),
    }
}

/// A model's `config.json`, and the tensors that it stands for.
pub fn model_config(bytes: &[u8]) {
    let path = file("config.json", bytes);
    match ModelConfig::load(&path) {
        Ok(config) => drop(Layout::model(&config)),
        Err(e) => refused(e, &path),
    }
}

/// A scenario: read, checked against what there is, expanded and ordered. `config.json`, `data.jsonl` and `tokenizer.json` are there.
pub fn scenario(bytes: &[u8]) {
    for name in ["config.json", "data.jsonl", "tokenizer.json"] {
        file(name, b"{}");
    }
    let path = file("scenario.yaml", bytes);
    let all = resolve::Filter::default();
    let resolved = Scenario::load(&path, &[]).and_then(|s| resolve::resolve(&s, &offer(), &all));
    if let Ok(setup) = resolved {
        let resolved = setup.resolved;
        assert_eq!(resolved.order.len(), resolved.cases.len() * resolved.trials as usize);
    }
}

/// A job: read, its settings checked, its batches planned for samples of a few lengths.
pub fn job(bytes: &[u8]) {
    stay_offline();
    let path = file("train.yaml", bytes);
    let Ok(job) = Job::load(&path) else { return };
    let _ = job.data.tokenize_args();
    if let Ok(device) = job.device.parse::<Device>() {
        let _ = device.kernels(&job.kernels, "kernels");
    }
    // A plan has an entry for every row of every step: a long training is no crash.
    let rows = u64::from(job.max_steps)
        .saturating_mul(job.batch.per_device_train_batch_size.into())
        .saturating_mul(job.batch.gradient_accumulation_steps.into());
    if rows < 10_000 {
        let _ = build_plan(
            &[3, 1, 4, 1, 5, 9, 2, 6],
            &job.batch,
            job.data.max_length,
            0,
            job.seed,
            job.max_steps,
        );
    }
}

/// A model's name must not have a network looked at.
fn stay_offline() {
    static ONCE: Once = Once::new();
    // SAFETY: nothing in these processes reads the environment but Rust's standard library, which locks it.
    ONCE.call_once(|| unsafe { std::env::set_var("HF_HUB_OFFLINE", "1") });
}

/// JSON Lines, JSON, CSV or TSV, by the first byte; the second chooses a format. Parquet, which is known by what it begins with, has a
/// target of its own.
pub fn records(bytes: &[u8]) {
    let [ending, format, content @ ..] = bytes else { return };
    if content.starts_with(b"PAR1") {
        return;
    }
    let name = ["data.jsonl", "data.json", "data.csv", "data.tsv", "data"][usize::from(*ending) % 5];
    let format = [None, Some("messages"), Some("text"), Some("alpaca")][usize::from(*format) % 4];
    read_records(&file(name, content), format);
}

/// A Parquet file.
pub fn parquet(bytes: &[u8]) {
    read_records(&file("data.parquet", bytes), None);
}

fn read_records(path: &Path, format: Option<&str>) {
    let args = ReadArgs { format: format.map(String::from), ..ReadArgs::default() };
    let read = Records::open(path, &args);
    if let Err(e) = read.and_then(|records| records.take(10_000).try_for_each(|r| r.map(drop))) {
        refused(e, path);
    }
}

/// A chat template, a line of `=====`, and a conversation as a line of JSON Lines has it; without it, a greeting.
pub fn chat_template(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (template, conversation) = text.split_once("\n=====\n").unwrap_or((&text, ""));
    let Ok(template) = ChatTemplate::new(template, "fuzzed", serde_json::Map::new()) else { return };
    let conversation = told(conversation).unwrap_or_else(|| Conversation {
        messages: vec![Message::new("user", "Hello"), Message::new("assistant", "Hi")],
        tools: None,
        prompt: None,
    });
    let Ok(chat) = template.conversation(&conversation) else { return };
    for span in chat.generated.iter().flatten() {
        assert!(chat.text.get(span.clone()).is_some(), "{span:?} of {} bytes", chat.text.len());
    }
}

fn told(line: &str) -> Option<Conversation> {
    let args = ReadArgs { format: Some("messages".into()), ..ReadArgs::default() };
    let mut records = Records::open(&file("conversation.jsonl", line.as_bytes()), &args).ok()?;
    match records.next()?.ok()?.record {
        Record::Conversation(conversation) => Some(conversation),
        _ => None,
    }
}
