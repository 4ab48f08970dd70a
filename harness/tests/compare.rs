//! `compare` of stored runs, and `history` with its steps.

mod common;

use std::path::{Path, PathBuf};

use common::{HEAD, Ran, chronibench};
use serde_json::Value;

fn run(args: &[&str], paths: &[PathBuf]) -> (Option<i32>, String) {
    let output = chronibench().args(args).args(paths).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn arms(noise: &str, step_ms: &str) -> String {
    format!(
        "{HEAD}arms:\n  one: {{ runner: mock, mock: {{ step_ms: {step_ms}, noise: {noise} }} }}\n  two: {{ runner: mock, mock: {{ step_ms: 8, noise: {noise} }} }}\n\
         only: [{{ method: full, packing: on }}]\n"
    )
}

#[test]
fn two_runs_are_compared_unpaired_and_two_cases_of_one_run_by_round() {
    let first = Ran::new(&arms("0.005", "4"), &["--set", "trials=6"]);
    let second = Ran::new(&arms("0.005", "2"), &["--set", "trials=6"]);
    let both = [first.path(""), second.path("")];
    let (code, text) = run(&["compare", "--json"], &both);
    assert_eq!(code, Some(0), "{text}");
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["paired"], false);
    let case =
        |id: &str| found["cases"].as_array().unwrap().iter().find(|c| c["case"] == id).unwrap().clone();
    assert_eq!(case("one/full/on")["seen"], "faster");
    let ratio = case("one/full/on")["speed"]["median"].as_f64().unwrap();
    assert!((ratio - 2.0).abs() < 0.05, "{ratio}");
    // The noise of a mock is drawn from its trial's name: the same again.
    assert_eq!(case("two/full/on")["seen"], "no_difference");
    let csv = first.dir.path().join("both.csv");
    let (code, text) = run(&["compare", "-k", "two/", "--csv", &csv.display().to_string()], &both);
    assert!(code == Some(0) && text.contains("no difference seen") && text.contains("unpaired"), "{text}");
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 2);
    let turned = [second.path(""), first.path("")];
    assert_eq!(run(&["compare", "--fail-slower"], &turned).0, Some(1));
    assert_eq!(run(&["compare"], &turned).0, Some(0));
    let of = |case: &str| PathBuf::from(format!("{}::{case}", first.path("").display()));
    let (code, text) = run(&["compare"], &[of("one/full/on"), of("two/full/on")]);
    assert!(code == Some(0) && text.contains("paired by round") && text.contains("slower"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_said_with_its_reason() {
    let first = Ran::new(&arms("0.0", "2"), &["--trials", "1"]);
    let longer = Ran::new(&arms("0.0", "2"), &["--trials", "1", "--set", "measure.timed_steps=12"]);
    let (code, text) = run(&["compare"], &[first.path(""), longer.path("")]);
    assert!(code == Some(3) && text.contains("real tokens") && text.contains("not comparable"), "{text}");
    let (code, text) = run(&["compare"], &[first.path(""), first.path("")]);
    assert!(code == Some(2) && text.contains("DIR::CASE"), "{text}");
    let absent = PathBuf::from(format!("{}::nothing", first.path("").display()));
    let (code, text) = run(&["compare"], &[absent, longer.path("")]);
    assert!(code == Some(2) && text.contains("no case 'nothing'") && text.contains("one/full/on"), "{text}");
    let (code, text) = run(&["compare", "nowhere"], &[first.path("")]);
    assert!(code == Some(5) && text.contains("not a run folder"), "{text}");
    let again = Ran::new(&arms("0.0", "2"), &["--trials", "1"]);
    let (code, text) = run(&["compare"], &[first.path(""), again.path("")]);
    assert!(code == Some(0) && text.contains("too few trials"), "{text}");
}

#[test]
fn three_trials_are_too_few_for_a_verdict_however_far_apart() {
    let fast = Ran::new(&arms("0.0", "2"), &["--set", "trials=3"]);
    let slow = Ran::new(&arms("0.0", "4"), &["--set", "trials=3"]);
    let (code, text) = run(&["compare", "--fail-slower"], &[fast.path(""), slow.path("")]);
    assert!(code == Some(0) && text.contains("no verdict: too few trials"), "{text}");
    assert!(text.contains("--fail-slower says nothing on 2 of 2 cases"), "{text}");
    assert!(text.contains("3 trials of a side, and a verdict needs 6"), "{text}");
}

#[test]
fn cases_of_one_name_that_were_asked_other_things_are_told_apart() {
    let run_with = |set: &str| Ran::new(&arms("0.0", "2"), &["--trials", "1", "--set", set]);
    let full = run_with("trials=1");
    let lora = run_with("matrix.method.full={type: lora, r: 2, lora_alpha: 4, learning_rate: 1.0e-3}");
    let (code, text) = run(&["compare"], &[full.path(""), lora.path("")]);
    let said = text.contains("not comparable: method.type is \"full\" and \"lora\"");
    assert!(code == Some(3) && said, "{text}");
    let faster = run_with("matrix.method.full.learning_rate=0.002");
    let (code, text) = run(&["compare"], &[full.path(""), faster.path("")]);
    assert!(
        code == Some(0) && text.contains("train.learning_rate was asked to be 0.001 and 0.002"),
        "{text}"
    );
}

/// A history of one run, drawn out in time with a planted slow-down.
fn drawn_out(file: &Path, runs: usize, slower_from: usize) {
    let line = std::fs::read_to_string(file).unwrap().lines().next().unwrap().to_string();
    let mut text = String::new();
    for i in 0..runs {
        let mut entry: Value = serde_json::from_str(&line).unwrap();
        entry["at"] = format!("2026-01-{:02}T00:00:00Z", i + 1).into();
        entry["head"] = format!("head {i}").into();
        let noise = 1.0 + 0.004 * ((i * 7 % 5) as f64 - 2.0);
        entry["real_tokens_per_s"] = (1000.0 * noise * if i >= slower_from { 0.95 } else { 1.0 }).into();
        text += &(entry.to_string() + "\n");
    }
    std::fs::write(file, text).unwrap();
}

#[test]
fn runs_that_are_added_at_once_are_all_in_the_history() {
    let dir = common::folder();
    let name = dir.path().join("history.jsonl").display().to_string();
    let runs: Vec<Ran> =
        ["1", "2", "3"].iter().map(|ms| Ran::new(&arms("0.0", ms), &["--trials", "1"])).collect();
    std::thread::scope(|scope| {
        for ran in runs.iter().chain(&runs) {
            let name = &name;
            scope.spawn(move || {
                assert_eq!(run(&["history", "add", "--file", name], &[ran.path("")]).0, Some(0))
            });
        }
    });
    assert_eq!(std::fs::read_to_string(&name).unwrap().lines().count(), 3 * 2);
}

#[test]
fn a_history_takes_a_run_once_and_finds_where_it_became_slower() {
    let ran = Ran::new(&arms("0.0", "2"), &["--trials", "1"]);
    let file = ran.dir.path().join("history.jsonl");
    let name = file.display().to_string();
    let add = || run(&["history", "add", "--file", &name], &[ran.path("")]);
    assert!(add().1.contains("2 cases added"));
    assert!(add().1.contains("0 cases added"));
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
    let (code, text) = run(&["history", "show", "--file", &name, "--fail-slower"], &[]);
    assert!(code == Some(0) && text.contains("one/full/on"), "{text}");
    drawn_out(&file, 24, 99);
    assert_eq!(run(&["history", "show", "--file", &name, "--fail-slower"], &[]).0, Some(0));
    drawn_out(&file, 24, 14);
    let csv = ran.dir.path().join("history.csv").display().to_string();
    let (code, text) = run(&["history", "show", "--file", &name, "--fail-slower", "--csv", &csv], &[]);
    assert!(code == Some(1) && text.contains("-5.0 %"), "{text}");
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 25);
    let (_, text) = run(&["history", "show", "--file", &name, "--json"], &[]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found[0]["steps"][0]["at"], 14);
    let (code, text) = run(&["history", "show", "--file", &name, "-k", "nothing"], &[]);
    assert!(code == Some(2) && text.contains("history add"), "{text}");
    std::fs::write(&file, "{}\n").unwrap();
    let (code, text) = run(&["history", "show", "--file", &name], &[]);
    assert!(code == Some(5) && text.contains("history.jsonl:1"), "{text}");
}

#[test]
fn a_case_that_was_asked_otherwise_is_another_series() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.jsonl");
    let name = file.display().to_string();
    for set in ["trials=1", "matrix.method.full.learning_rate=0.002", "trials=1"] {
        let ran = Ran::new(&arms("0.0", "2"), &["--trials", "1", "--history", &name, "--set", set]);
        assert_eq!(ran.code, 0, "{}", ran.output);
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let line = |l: &str| serde_json::from_str::<Value>(l).unwrap()["work"].as_str().unwrap().to_string();
    let work: Vec<String> = text.lines().map(line).collect();
    assert_eq!((work[0] == work[2], work[0] == work[4]), (false, true), "{work:?}");
}

#[test]
fn a_run_that_is_valid_goes_into_the_history_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("given.jsonl").display().to_string();
    let ran = Ran::new(&arms("0.0", "2"), &["--trials", "1", "--history", &file]);
    assert!(ran.code == 0 && ran.output.contains("2 cases added"), "{}", ran.output);
}
