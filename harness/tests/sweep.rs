//! Sweeps with mock arms, whose throughput is known.

mod common;

use common::{HEAD, Ran, chronibench, folder, resolved, scenario};

const SWEPT: &str = "\
arms:
  ours: { runner: mock, mock: { step_ms: 20 } }
  rival:
    runner: mock
    mock: { step_ms: 80 }
    sweep:
      checkpointing:
        on: { mock: { step_ms: 60 } }
        off: { mock: { step_ms: 40 } }
        broken: { mock: { step_ms: 10, behaviour: out_of_memory } }
      rows:
        two: {}
        four: { settings: { per_device_train_batch_size: 4 }, mock: { step_ms: 200 } }
only: [{ method: full, packing: on }]
comparisons: [{ label: at its best, case: ours/full/on, against: rival/full/on }]
";

#[test]
fn comparisons_take_the_best_valid_cell_and_the_report_shows_all() {
    let ran = Ran::new(&format!("{HEAD}{SWEPT}"), &["--trials", "3"]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    let results = ran.results();
    let sweep = &results["sweeps"][0];
    assert_eq!((&sweep["id"], &sweep["best"]), (&"rival/full/on".into(), &"rival@off,two/full/on".into()));
    let cells = sweep["cells"].as_array().unwrap();
    let verdicts: Vec<&str> = cells.iter().map(|c| c["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["VALID", "VALID", "VALID", "VALID", "ERROR", "VALID"], "{}", ran.output);
    // Seven cases once, then two places in each of two rounds.
    assert_eq!(ran.names("events").len(), 7 + 4);
    assert_eq!(ran.verdicts("rival@off,two/full/on"), ["VALID"; 3]);
    assert_eq!(ran.verdicts("rival@on,two/full/on"), ["VALID"]);
    let compared = &results["comparisons"][0];
    assert_eq!(compared["against"], "rival@off,two/full/on");
    assert_eq!((&compared["verdict"], &compared["speed"]["n"]), (&"VALID".into(), &3.into()), "{compared}");
    let ratio = compared["speed"]["median"].as_f64().unwrap();
    assert!((ratio - 2.0).abs() < 1e-6, "{ratio}");
    assert_eq!(results["verdict"], "VALID");
    let report = ran.read("report.md");
    for words in ["## Sweeps", "`rival@broken,four/full/on`", "**best**", "out of memory"] {
        assert!(report.contains(words), "{words}");
    }
    let before = report;
    chronibench().arg("report").arg(ran.path("")).assert().success();
    assert_eq!(ran.read("report.md"), before);
    chronibench().arg("verify").arg(ran.path("")).assert().success();
}

/// The fastest cell finds the GPU held at its first attempt: what counts is the second.
#[test]
fn a_first_trial_that_is_begun_again_does_not_cost_its_cell_the_place() {
    let text = SWEPT
        .replace("off: { mock: { step_ms: 40 } }", "off: { mock: { step_ms: 40, behaviour: busy_once } }");
    let ran = Ran::new(&format!("{HEAD}{text}"), &["--trials", "2"]);
    let sweep = &ran.results()["sweeps"][0];
    assert_eq!(sweep["best"], "rival@off,two/full/on", "{}", ran.output);
    assert_eq!(ran.results()["verdict"], "VALID", "{}", ran.output);
    chronibench().arg("verify").arg(ran.path("")).assert().success();
}

#[test]
fn one_arm_of_a_sweep_can_be_asked_for() {
    let ran =
        Ran::new(&format!("{HEAD}{SWEPT}"), &["--trials", "2", "--arm", "ours", "--arm", "rival@off,two"]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    assert_eq!(ran.verdicts("rival@off,two/full/on"), ["VALID"; 2]);
    assert_eq!(ran.names("events").len(), 4);
    let ran = Ran::new(&format!("{HEAD}{SWEPT}"), &["--arm", "rival@on,six"]);
    assert!(ran.output.contains("unknown arm 'rival@on,six'"), "{}", ran.output);
}

#[test]
fn a_sweep_without_a_valid_cell_is_not_compared() {
    let text = SWEPT.replace("rows:\n        two: {}\n        four: { settings: { per_device_train_batch_size: 4 }, mock: { step_ms: 200 } }", "all:\n        nan: { mock: { behaviour: nan } }");
    let ran = Ran::new(&format!("{HEAD}{text}"), &[]);
    assert_eq!(ran.code, 3, "{}", ran.output);
    assert!(ran.output.contains("no cell of rival/full/on is valid"), "{}", ran.output);
    let results = ran.results();
    assert_eq!(results["comparisons"][0]["speed"], serde_json::Value::Null);
    assert_eq!(results["trials_planned"], results["trials_stored"]);
}

#[test]
fn a_sweep_is_planned_and_its_settings_go_over_the_matrix() {
    let setup = resolved(&format!("{HEAD}{SWEPT}")).unwrap();
    let cell = setup.resolved.cases.iter().find(|c| c.id == "rival@off,four/full/on").unwrap();
    assert_eq!(cell.batch.per_device_train_batch_size, 4);
    let sweep = cell.sweep.as_ref().unwrap();
    assert_eq!((sweep.of.as_str(), sweep.sets.clone()), ("rival/full/on", vec!["packing".to_string()]));
    let dir = folder();
    let file = scenario(dir.path(), &format!("{HEAD}{SWEPT}"));
    let output = chronibench().arg("plan").arg(&file).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("rival@off,four/full/on") && text.contains("9 trials"), "{text}");
}

#[test]
fn two_axes_of_a_sweep_decide_different_things() {
    let text = SWEPT.replace("two: {}", "two: { settings: { learning_rate: 1.0 } }");
    let text = text.replace("on: { mock", "on: { settings: { learning_rate: 2.0 }, mock");
    let error = resolved(&format!("{HEAD}{text}")).unwrap_err();
    assert!(error.contains("'learning_rate' is set by two axes"), "{error}");
    let error = resolved(&format!("{HEAD}{}", SWEPT.replace("broken:", "'bro,ken':"))).unwrap_err();
    assert!(error.contains("cannot be a name"), "{error}");
}

#[test]
fn a_cell_of_a_sweep_can_be_left_out() {
    let left = |pick: &str| SWEPT.replace("comparisons:", &format!("exclude: [{pick}]\ncomparisons:"));
    let setup =
        resolved(&format!("{HEAD}{}", left("{ arm: rival, checkpointing: broken, rows: four }"))).unwrap();
    let has = |id: &str| setup.resolved.cases.iter().any(|c| c.id == id);
    assert!(has("rival@broken,two/full/on") && !has("rival@broken,four/full/on"));
    let error = resolved(&format!("{HEAD}{}", left("{ checkpointing: brken }"))).unwrap_err();
    assert!(error.contains("unknown value 'brken'") && error.contains("broken"), "{error}");
}
