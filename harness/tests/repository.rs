//! The scenarios of this repository: all are planned, those that need no GPU to be understood are rehearsed by mocks, and the run
//! without gradients is caught.

use std::path::{Path, PathBuf};

use assert_cmd::Command;

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

fn chronibench() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("chronibench"))
}

#[test]
fn every_scenario_is_planned() {
    let dir = tempfile::tempdir().unwrap();
    let all = scenarios();
    assert!(all.len() >= 15, "{all:?}");
    for file in all {
        let output = chronibench().arg("plan").arg(&file).current_dir(dir.path()).output().unwrap();
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
