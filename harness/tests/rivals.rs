//! Arms in Python: the whole way of the protocol with an adapter that needs nothing but Python, and what is said of those that are
//! not installed.

mod common;

use common::{HEAD, Ran, chronibench, folder, resolved, scenario};

const CELL: &str = "only: [{ method: full, packing: on }]\n";

/// A Python arm with these options beside a steady one.
fn beside(options: &str) -> Ran {
    let text = format!(
        "{HEAD}arms:\n  steady: {{ runner: mock }}\n  python: {{ runner: mock-python, options: {{ {options} }} }}\n{CELL}"
    );
    Ran::new(&text, &["--trials", "1", "--set", "timeout_s=5"])
}

#[test]
fn a_python_arm_is_as_valid_as_any() {
    let arms = "arms:\n  rust: { runner: mock, mock: { step_ms: 20 } }\n  python: { runner: mock-python, options: { step_ms: 20 } }\n";
    let comparison = "comparisons: [{ label: the same, case: rust/full/on, against: python/full/on }]\n";
    let ran = Ran::new(&format!("{HEAD}{arms}{comparison}"), &[]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    for cell in ["full/on", "full/off", "lora/on", "lora/off"] {
        assert_eq!(ran.verdicts(&format!("python/{cell}")), ["VALID", "VALID"], "{cell}\n{}", ran.output);
    }
    let ratio = ran.results()["comparisons"][0]["speed"]["median"].as_f64().unwrap();
    assert!((ratio - 1.0).abs() < 1e-6, "{ratio}");
    let record = ran.names("events").into_iter().find(|n| n.contains("python")).unwrap();
    let text = ran.read(&format!("events/{record}"));
    let header: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(header["rival"]["adapter_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(header["spec"]["options"]["step_ms"], 20);
}

#[test]
fn faults_of_a_python_arm_are_found() {
    for (behaviour, verdict, code) in [
        ("crash", "ERROR", 6),
        ("error", "ERROR", 6),
        ("out_of_memory", "ERROR", 6),
        ("no_done", "ERROR", 6),
        ("partial_line", "ERROR", 6),
        ("hang", "TIMEOUT", 6),
        ("garbage", "INVALID", 3),
        ("wrong_counts", "INVALID", 3),
        ("wrong_digest", "INVALID", 3),
        ("wrong_samples", "INVALID", 3),
        ("frozen", "INVALID", 3),
        ("huge_output", "VALID", 0),
        ("grandchild", "VALID", 0),
    ] {
        let ran = beside(&format!("behaviour: {behaviour}"));
        assert_eq!(ran.verdicts("python/full/on"), [verdict], "{behaviour}\n{}", ran.output);
        assert_eq!(ran.verdicts("steady/full/on"), ["VALID"], "{behaviour}\n{}", ran.output);
        assert_eq!(ran.code, code, "{behaviour}\n{}", ran.output);
    }
}

#[test]
fn options_are_checked_where_they_stand() {
    let of = |arm: &str| resolved(&format!("{HEAD}arms:\n  a: {{ {arm} }}\n{CELL}"));
    let wrong = of("runner: mock-python, options: { behavior: crash }").unwrap_err();
    assert!(wrong.contains("scenario.yaml:") && wrong.contains("behaviour"), "{wrong}");
    let wrong = of("runner: mock-python, options: { behaviour: polite }").unwrap_err();
    assert!(wrong.contains("honest"), "{wrong}");
    let wrong = of("runner: native, options: { step_ms: 1 }").unwrap_err();
    assert!(wrong.contains("no options of its own"), "{wrong}");
    let wrong = of("runner: liger").unwrap_err();
    assert!(wrong.contains("does not run on cpu") && wrong.contains("cuda"), "{wrong}");
    let wrong = of("runner: hf-cpu, precision: { states: 8bit }").unwrap_err();
    assert!(wrong.contains("8bit") && wrong.contains("f32"), "{wrong}");
    let wrong = of("runner: chronicals-py").unwrap_err();
    assert!(wrong.contains("no packing 'bfd'") && wrong.contains("exclude"), "{wrong}");
    let setup = of("runner: hf-cpu, options: { attention: eager }").unwrap();
    let options = &setup.resolved.cases[0].options;
    assert_eq!((&options["attention"], &options["torch_compile"]), (&"eager".into(), &false.into()));
}

#[test]
fn what_is_not_installed_is_skipped_and_said() {
    let dir = folder();
    let file = scenario(
        dir.path(),
        &format!("{HEAD}arms:\n  steady: {{ runner: mock }}\n  hf: {{ runner: hf-cpu }}\n{CELL}"),
    );
    let out = dir.path().join("out");
    let run = |args: &[&str]| {
        let mut command = chronibench();
        command.env("CHRONICALS_CACHE", dir.path().join("cache"));
        command.arg("run").arg(&file).arg("--out").arg(&out).args(args).output().unwrap()
    };
    let only = run(&["--arm", "hf"]);
    assert_eq!(only.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&only.stderr).contains("chronibench env sync hf-cpu"));
    let both = run(&["--trials", "1"]);
    let text = String::from_utf8_lossy(&both.stderr);
    assert_eq!(both.status.code(), Some(0), "{text}");
    assert!(text.contains("skipped: hf/full/on") && text.contains("chronibench env sync hf-cpu"), "{text}");
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("hf/full/on") && report.contains("chronibench env sync hf-cpu"), "{report}");
}

/// A sweep of which nothing can run leaves no place in the order that waits for it.
#[test]
fn a_swept_rival_that_is_not_installed_leaves_a_whole_run() {
    let dir = folder();
    let sweep = "sweep: { rows: { two: {}, four: { settings: { per_device_train_batch_size: 4 } } } }";
    let arms = format!("arms:\n  steady: {{ runner: mock }}\n  hf: {{ runner: hf-cpu, {sweep} }}\n{CELL}");
    let file = scenario(dir.path(), &format!("{HEAD}{arms}"));
    let out = dir.path().join("out");
    let mut command = chronibench();
    command.env("CHRONICALS_CACHE", dir.path().join("cache"));
    let ran = command.arg("run").arg(&file).arg("--out").arg(&out).output().unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("hf@two/full/on") && !report.contains("partial run"), "{report}");
}

/// `chronibench env …` with a cache of its own: exit code, standard output and error.
fn env(cache: &std::path::Path, args: &[&str]) -> (i32, String) {
    let output = chronibench().env("CHRONICALS_CACHE", cache).arg("env").args(args).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.code().unwrap_or(-1), text.concat())
}

#[test]
fn environments_are_listed_and_checked() {
    let cache = tempfile::tempdir().unwrap();
    let (code, text) = env(cache.path(), &["list"]);
    assert_eq!(code, 0, "{text}");
    for name in ["unsloth", "trl", "liger", "llmq", "chronicals-py", "hf-cpu"] {
        assert!(text.contains(&format!("chronibench env sync {name}")), "{text}");
    }
    let (code, text) = env(cache.path(), &["list", "trl"]);
    assert!(code == 0 && text.contains("padding_free") && text.contains("adamw_8bit"), "{text}");
    let (code, text) = env(cache.path(), &["check", "trl"]);
    assert!(
        code == 5 && text.contains("not installed") && text.contains("chronibench env sync trl"),
        "{text}"
    );
    let (code, text) = env(cache.path(), &["check", "slothun"]);
    assert!(code == 2 && text.contains("no rival 'slothun'"), "{text}");
}

#[test]
fn an_environment_that_lacks_something_is_not_ready() {
    let cache = tempfile::tempdir().unwrap();
    let (code, text) = env(cache.path(), &["sync", "llmq", "--reuse", "--python", "python3"]);
    assert!(code == 5 && text.contains("pyllmq missing, locked 0.3.1"), "{text}");
    let damaged = cache.path().join("bundle.txz");
    std::fs::write(&damaged, b"not a bundle").unwrap();
    let file = damaged.display().to_string();
    let (code, text) = env(cache.path(), &["sync", "llmq", "--bundle", &file, "--python", "python3"]);
    assert!(
        code == 5 && text.contains("not a bundle") && text.contains("chronibench env bundle llmq"),
        "{text}"
    );
    let (code, text) = env(cache.path(), &["check", "llmq"]);
    assert!(code == 5 && text.contains("not installed"), "{text}");
    let (code, text) = env(cache.path(), &["sync", "mock-python"]);
    assert!(code == 0 && text.contains("nothing but Python"), "{text}");
}
