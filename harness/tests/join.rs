//! Runs joined through an anchor.

mod common;

use std::path::Path;

use common::{HEAD, Ran, chronibench};

fn sitting(other: &str, ms: u32) -> Ran {
    let text = format!(
        "{HEAD}arms:\n  anchor: {{ runner: mock, mock: {{ step_ms: 20 }} }}\n  {other}: {{ runner: mock, mock: {{ step_ms: {ms} }} }}\n\
         only: [{{ method: full, packing: on }}]\n"
    );
    Ran::new(&text, &[])
}

fn joined(runs: &[&Ran], out: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = chronibench();
    command
        .arg("join")
        .args(runs.iter().map(|r| r.path("")))
        .args(["--anchor", "anchor", "--out"])
        .arg(out)
        .args(more);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn arms_of_two_sittings_stand_beside_one_anchor() {
    let (a, b) = (sitting("slow", 40), sitting("fast", 10));
    let out = tempfile::tempdir().unwrap();
    let (code, text) = joined(&[&a, &b], out.path(), &[]);
    assert_eq!(code, Some(0), "{text}");
    let joined: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.path().join("joined.json")).unwrap()).unwrap();
    let ratios: Vec<f64> =
        joined["rows"].as_array().unwrap().iter().map(|r| r["ratio"]["median"].as_f64().unwrap()).collect();
    assert!((ratios[0] - 0.5).abs() < 1e-6 && (ratios[1] - 2.0).abs() < 1e-6, "{ratios:?}");
    let drift = joined["drift"][0]["ratios"][1]["median"].as_f64().unwrap();
    assert!((drift - 1.0).abs() < 1e-6, "{drift}");
    let report = std::fs::read_to_string(out.path().join("report.md")).unwrap();
    assert!(report.contains("Drift of the anchor") && report.contains("fast/full/on"), "{report}");
}

#[test]
fn a_join_is_verified_by_the_sittings_beside_it() {
    let (a, b) = (sitting("slow", 40), sitting("fast", 10));
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    for (ran, name) in [(&a, "monday"), (&b, "tuesday")] {
        let copied = std::process::Command::new("cp").arg("-r").args([ran.path(""), path(name)]).status();
        assert!(copied.unwrap().success());
    }
    let dirs = [path("monday"), path("tuesday")];
    chronibench()
        .arg("join")
        .args(dirs)
        .args(["--anchor", "anchor", "--out"])
        .arg(path("joined"))
        .assert()
        .success();
    let verify = |more: &[&str]| {
        let output = chronibench().arg("verify").arg(path("joined")).args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = verify(&["--require-chain"]);
    assert!(code == Some(0) && text.contains("VERIFIED") && text.contains("8 trials"), "{text}");
    let json = path("joined").join("joined.json");
    let honest = std::fs::read_to_string(&json).unwrap();
    let mut better: serde_json::Value = serde_json::from_str(&honest).unwrap();
    better["rows"][0]["ratio"]["median"] = 9.0.into();
    std::fs::write(&json, better.to_string()).unwrap();
    let (code, text) = verify(&[]);
    assert!(code == Some(8) && text.contains("joined.json"), "{text}");
    chronibench().arg("report").arg(path("joined")).assert().success();
    assert_eq!(std::fs::read_to_string(&json).unwrap(), honest);
    std::fs::rename(path("tuesday"), path("wednesday")).unwrap();
    let (code, text) = verify(&[]);
    assert!(
        code == Some(0) && text.contains("NO_CHAIN") && text.contains("beside it is no tuesday"),
        "{text}"
    );
    assert_eq!(verify(&["--require-chain"]).0, Some(8));
}

#[test]
fn other_machines_and_other_work_are_refused() {
    let (a, b) = (sitting("slow", 40), sitting("fast", 10));
    let out = tempfile::tempdir().unwrap();
    let path = b.path("environment.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut environment: serde_json::Value = serde_json::from_str(&text).unwrap();
    environment["program"]["binary_sha256"] = "another".into();
    std::fs::write(&path, environment.to_string()).unwrap();
    let (code, text) = joined(&[&a, &b], out.path(), &[]);
    assert!(code == Some(3) && text.contains("binary differs between the sittings"), "{text}");
    let (code, text) = joined(&[&a, &b], out.path(), &["--declare", "binary"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(std::fs::read_to_string(out.path().join("report.md")).unwrap().contains("declared difference"));
    let (code, text) = joined(&[&a, &b], out.path(), &["--declare", "weather"]);
    assert!(code == Some(3) && text.contains("'weather' cannot be declared"), "{text}");

    let resolved = b.path("resolved.yaml");
    let text = std::fs::read_to_string(&resolved).unwrap();
    std::fs::write(&resolved, text.replace("learning_rate: 0.001", "learning_rate: 0.002")).unwrap();
    let (code, text) = joined(&[&a, &b], out.path(), &["--declare", "binary"]);
    assert!(code == Some(3) && text.contains("is not the same work"), "{text}");
}
