//! The scenarios of this repository: all are planned, those that need no GPU to be understood are rehearsed by mocks, and the run
//! without gradients is caught.

mod common;

use std::path::{Path, PathBuf};

use common::{Ran, chronibench};
use serde_json::{Value, json};

fn scenarios() -> Vec<PathBuf> {
    fn below(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            let read =
                |p: &Path| std::fs::read_to_string(p).unwrap().contains("schema: chronibench.scenario/1");
            if entry.is_dir() {
                below(&entry, found);
            } else if entry.extension().is_some_and(|e| e == "yaml") && read(&entry) {
                found.push(entry);
            }
        }
    }
    let mut found = Vec::new();
    below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios"), &mut found);
    found.sort();
    found
}

/// The scenario's file, or one in `dir` that asks for no weights where its own are not part of the repository: a model of the
/// same architecture and tokenizer stands for them.
fn without_download(file: &Path, dir: &Path) -> PathBuf {
    let mut scenario: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    if scenario["model"]["weights"].is_null() {
        return file.to_owned();
    }
    let root = file.parent().unwrap();
    scenario["model"].as_object_mut().unwrap().remove("weights");
    scenario["model"]["config"] = json!(root.join("models/smollm2-135m.json"));
    scenario["data"]["tokenizer"] = json!(root.join("../data/chat-instruct/tokenizer.json"));
    let train = root.join(scenario["data"]["path"].as_str().unwrap());
    scenario["data"]["path"] = json!(train);
    let copy = dir.join(file.file_name().unwrap());
    std::fs::write(&copy, serde_json::to_string_pretty(&scenario).unwrap()).unwrap();
    copy
}

#[test]
fn every_scenario_is_planned() {
    let dir = tempfile::tempdir().unwrap();
    let all = scenarios();
    assert!(all.len() >= 15, "{all:?}");
    for file in all {
        let planned = without_download(&file, dir.path());
        let output = chronibench().arg("plan").arg(&planned).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains(" trials, about "), "{}: {text}", file.display());
    }
}

/// 357,898,112 of 494,032,768 parameters trainable, gradient norm 0.
#[test]
fn the_run_without_gradients_is_caught() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/unsloth-zero-gradients.yaml");
    let dir = tempfile::tempdir().unwrap();
    let output =
        chronibench().arg("run").arg(file).arg("--out").arg(dir.path().join("out")).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    let report = std::fs::read_to_string(dir.path().join("out/report.md")).unwrap();
    for words in [
        "expected 494032768 trainable elements in the scenario's tensors, saw 357898112",
        "missing: model.embed\\_tokens.weight",
        "expected a finite gradient norm above 0, saw 0",
        "expected every trainable tensor to change",
        "expected the loss to fall",
    ] {
        assert!(report.contains(words), "{words}: {report}");
    }
}

/// Length of a mock's step, by the names that stand for it in the scenario: the first of an arm is its fastest.
const SPEEDS: [(&str, &[&str]); 6] = [
    ("chronicals", &[]),
    ("chronicals-bf16-states", &[]),
    ("unsloth", &["none", "unsloth"]),
    ("liger", &["plain-flash", "plain", "trainer"]),
    ("trl", &["sft-padding-free", "plain-compiled", "sft-flash", "sft"]),
    ("llmq", &["chunks", "kept", "chunks-recompute"]),
];

/// A scenario for mocks in place of its programs: on a tiny model, with all that decides which cells there are and what is compared.
fn rehearsal(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios").join(name);
    let mut scenario: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    scenario["device"].take();
    scenario["model"] = json!({"config": "config.json"});
    for (key, value) in [("path", json!("data.jsonl")), ("tokenizer", json!("tokenizer.json"))] {
        scenario["data"][key] = value;
    }
    scenario["data"]["max_length"] = json!(32);
    scenario["measure"] = json!({"untimed_steps": 2, "timed_steps": 8, "window_steps": 4});
    scenario["audit"] = json!({"steps": 0});
    for (arm, def) in scenario["arms"].as_object_mut().unwrap() {
        let (_, fast_first) = SPEEDS.iter().find(|(name, _)| name == arm).unwrap_or_else(|| panic!("{arm}"));
        let mut swept = def["sweep"].take();
        for (value, cell) in
            swept.as_object_mut().into_iter().flatten().flat_map(|(_, axis)| axis.as_object_mut().unwrap())
        {
            let cell = cell.as_object_mut().unwrap();
            let of_rival = cell.remove("options");
            if let Some(place) = fast_first.iter().position(|known| known == value) {
                cell.insert("mock".into(), json!({"step_ms": 6 + 3 * place, "noise": 0.01}));
            } else if value == "plain" {
                assert!(of_rival.is_some());
                cell.insert("mock".into(), json!({"step_ms": 1, "behaviour": "out_of_memory"}));
            }
        }
        *def = json!({"runner": "mock", "mock": {"step_ms": 4, "noise": 0.01}});
        if !swept.is_null() {
            def["sweep"] = swept;
        }
    }
    scenario
}

/// The whole way of the comparison for 40 GB: every cell once, the best of an arm again, and that is what is compared.
#[test]
fn the_comparison_within_40_gb_is_rehearsed() {
    let scenario = rehearsal("a100.yaml");
    let ran = Ran::new(&serde_json::to_string_pretty(&scenario).unwrap(), &["--trials", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    let (results, report) = (ran.results(), ran.read("report.md"));
    assert_eq!(results["verdict"], "VALID", "{}", ran.output);
    let sweeps = results["sweeps"].as_array().unwrap();
    assert_eq!(sweeps.len(), 5 + 5 + 5 + 3, "of unsloth, liger, trl, and llmq, which has no LoRA");
    for sweep in sweeps {
        let cells = sweep["cells"].as_array().unwrap();
        let speed = |cell: &&Value| cell["real_tokens_per_s"].as_f64().unwrap_or(0.0);
        let fastest = cells.iter().max_by(|a, b| speed(a).total_cmp(&speed(b))).unwrap();
        assert_eq!(sweep["best"], fastest["case"], "{sweep}");
        // The one that was made the fastest of those that this cell of the matrix has.
        let (arm, place) = sweep["id"].as_str().unwrap().split_once('/').unwrap();
        let (_, fast_first) = SPEEDS.iter().find(|(name, _)| *name == arm).unwrap();
        let is = |cell: &Value, value: &str| {
            let id = cell["case"].as_str().unwrap();
            id.starts_with(&format!("{arm}@{value},")) || id == format!("{arm}@{value}/{place}")
        };
        let expected = fast_first.iter().find(|value| cells.iter().any(|cell| is(cell, value))).unwrap();
        assert!(is(fastest, expected), "{expected}: {sweep}");
        let best = fastest["case"].as_str().unwrap();
        assert_eq!(ran.verdicts(best), ["VALID"; 2], "{best}");
        let row = |line: &str| line.starts_with(&format!("| `{best}` |")) && line.contains("**best**");
        assert!(report.lines().any(row), "{best}: {report}");
    }
    assert_eq!(ran.verdicts("unsloth@none,plain/full/16x2048"), ["ERROR"]);
    let compared = results["comparisons"].as_array().unwrap();
    let written = scenario["comparisons"].as_array().unwrap();
    assert_eq!((compared.len(), written.len()), (19, 19));
    for (compared, written) in compared.iter().zip(written) {
        assert_eq!(compared["verdict"], "VALID", "{compared}");
        let best = sweeps.iter().find(|sweep| sweep["id"] == written["against"]);
        assert_eq!(compared["against"], *best.map_or(&written["against"], |sweep| &sweep["best"]));
    }
}
