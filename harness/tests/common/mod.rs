//! A folder with a tiny model, a tiny data set and scenarios of mock arms.
#![allow(dead_code)] // every test file uses another part

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use chronibench::scenario::{Filter, Raw, Scenario, Setup, Source, resolve::resolve};
use tempfile::TempDir;

/// The head of every scenario here; arms follow.
pub const HEAD: &str = "\
schema: chronibench.scenario/1
name: tiny
title: Mock arms
model: { config: config.json }
data: { path: data.jsonl, tokenizer: tokenizer.json, template: alpaca, max_length: 64 }
measure: { untimed_steps: 2, timed_steps: 8, window_steps: 4 }
trials: 2
timeout_s: 20
matrix:
  method:
    full: { type: full, learning_rate: 1.0e-3 }
    lora: { type: lora, r: 2, lora_alpha: 4, learning_rate: 1.0e-3 }
  packing:
    on: { packing: bfd, per_device_train_batch_size: 2 }
    off: { packing: none, per_device_train_batch_size: 2 }
";

/// One honest arm, one cell.
pub const HONEST: &str = "\
arms:
  steady: { runner: mock, mock: { step_ms: 20 } }
only: [{ method: full, packing: on }]
";

const CONFIG: &str = r#"{"model_type": "qwen2", "vocab_size": 4096, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true}"#;

/// A fresh folder with everything but a scenario.
pub fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::copy(repository.join("data/chat-instruct/tokenizer.json"), dir.path().join("tokenizer.json"))
        .unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let line = |i: usize| {
        let words = "and more ".repeat(i % 5);
        format!("{{\"instruction\": \"Count to {i}\", \"output\": \"one {words}two\"}}\n")
    };
    std::fs::write(dir.path().join("data.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
    dir
}

/// Writes a scenario into the folder.
pub fn scenario(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("scenario.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Reads and resolves a scenario text as `scenario.yaml` of a fresh folder; errors come as the user sees them.
pub fn resolved(text: &str) -> Result<Setup, String> {
    let dir = folder();
    let source = Source { name: "scenario.yaml".into(), text: text.into() };
    let path = dir.path().join("scenario.yaml");
    let load = || {
        let raw: Raw = source.parse()?;
        let scenario = Scenario { path, source: source.clone(), original: text.into(), raw };
        resolve(&scenario, &chronibench::worker::offer(), &Filter::default())
    };
    load().map_err(|e| {
        format!("[exit {}] {e}", e.exit as u8).replace(&dir.path().display().to_string(), "FOLDER")
    })
}

/// The program under test.
pub fn chronibench() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("chronibench"))
}

/// Runs a scenario text to its end: exit code, standard output and error, run folder.
pub struct Ran {
    /// Keeps the folder alive.
    pub dir: TempDir,
    /// Exit code.
    pub code: i32,
    /// Standard output, then standard error.
    pub output: String,
}

impl Ran {
    /// Runs `text` with further arguments.
    pub fn new(text: &str, args: &[&str]) -> Self {
        let dir = folder();
        let file = scenario(dir.path(), text);
        let out = dir.path().join("out");
        let ran = chronibench().arg("run").arg(file).arg("--out").arg(&out).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: ran.status.code().unwrap_or(-1), output: text(&ran.stdout) + &text(&ran.stderr), dir }
    }

    /// A path in the run folder.
    pub fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join("out").join(sub)
    }

    /// A file of the run folder.
    pub fn read(&self, sub: &str) -> String {
        std::fs::read_to_string(self.path(sub)).unwrap_or_else(|e| panic!("{sub}: {e}\n{}", self.output))
    }

    /// `results.json`.
    pub fn results(&self) -> serde_json::Value {
        serde_json::from_str(&self.read("results.json")).unwrap()
    }

    /// Verdicts of a case's trials.
    pub fn verdicts(&self, case: &str) -> Vec<String> {
        let results = self.results();
        let found = results["cases"].as_array().unwrap().iter().find(|c| c["id"] == case).unwrap().clone();
        let trials = found["trials"].as_array().unwrap();
        trials.iter().map(|t| t["verdict"].as_str().unwrap().to_string()).collect()
    }

    /// Names in a folder, sorted.
    pub fn names(&self, sub: &str) -> Vec<String> {
        names(&self.path(sub))
    }
}

/// Names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// As `gzip FILE` does.
pub fn compress(file: &Path) {
    let to = std::fs::File::create(file.with_extension("jsonl.gz")).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::best());
    encoder.write_all(&std::fs::read(file).unwrap()).unwrap();
    encoder.finish().unwrap();
    std::fs::remove_file(file).unwrap();
}

/// Takes a trial out of a folder, and out of its evidence.
pub fn take_out(dir: &Path, id: &str) {
    std::fs::remove_file(dir.join(format!("events/{id}.jsonl"))).unwrap();
    let path = dir.join("evidence.json");
    let mut evidence: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    evidence["trials"].as_array_mut().unwrap().retain(|t| t["id"] != id);
    std::fs::write(&path, evidence.to_string()).unwrap();
}
