//! Whole runs with mock arms, whose throughput and faults are known.

mod common;

use std::path::{Path, PathBuf};

use chronibench::store::{Store, Stored};
use chronibench_analysis::summarise;
use common::{HEAD, HONEST, Ran, chronibench, compress, folder, names, scenario};

/// An arm that misbehaves beside one that does not.
fn with_fault(behaviour: &str) -> Ran {
    let text = format!(
        "{HEAD}arms:\n  steady: {{ runner: mock }}\n  faulty: {{ runner: mock, mock: {{ behaviour: {behaviour} }} }}\n\
         only: [{{ method: full, packing: on }}]\n"
    );
    Ran::new(&text, &["--trials", "1", "--set", "timeout_s=3"])
}

#[test]
fn an_honest_run_is_complete_and_measures_what_was_planted() {
    let arms = "arms:\n  fast: { runner: mock, mock: { step_ms: 20 } }\n  slow: { runner: mock, mock: { step_ms: 40 } }\n";
    let comparison = "comparisons: [{ label: planted, case: fast/full/on, against: slow/full/on }]\n";
    let ran = Ran::new(&format!("{HEAD}{arms}only: [{{ packing: on }}]\n{comparison}"), &[]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    for case in ["fast/full/on", "fast/lora/on", "slow/full/on", "slow/lora/on"] {
        assert_eq!(ran.verdicts(case), ["VALID", "VALID"], "{case}\n{}", ran.output);
    }
    let results = ran.results();
    let speed = &results["cases"][0]["real_tokens_per_s"]["median"];
    let counts: Vec<u64> = planted_counts(&ran);
    let planted = counts[2..].iter().sum::<u64>() as f64 / (8.0 * 0.020);
    assert!((speed.as_f64().unwrap() / planted - 1.0).abs() < 1e-6, "{speed} {planted}");
    let ratio = results["comparisons"][0]["speed"]["median"].as_f64().unwrap();
    assert!((ratio - 2.0).abs() < 1e-6, "{ratio}");
    assert_eq!(ran.names("events").len(), 8);
    assert_eq!(ran.names("events")[3..5], ["003-slow_lora_on.jsonl", "004-slow_lora_on.jsonl"]);
    let weights = |n: &String| n.ends_with(".safetensors") && n != "tokens.safetensors";
    assert!(!ran.names("inputs").iter().any(weights) && !ran.path("work").exists());
    assert!(ran.read("report.md").contains("planted") && !ran.names("plots").is_empty());
    assert_eq!(ran.read("results.csv").lines().count(), 1 + 8, "{}", ran.read("results.csv"));
}

/// Real tokens of every step, counted here from the stored plan and tokens.
fn planted_counts(ran: &Ran) -> Vec<u64> {
    let plan: chronibench_protocol::BatchPlan =
        serde_json::from_str(&ran.read("inputs/plan-bfd-b2-a1.json")).unwrap();
    let tokens = chronibench_protocol::TokenStore::load(&ran.path("inputs/tokens.safetensors")).unwrap();
    plan.steps.iter().map(|s| s.ledger(&tokens, plan.pad_token_id).1.real).collect()
}

#[test]
fn a_stored_trial_has_every_part() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &["--trials", "1"]);
    let text = ran.read("events/000-steady_full_on.jsonl");
    let kinds: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["kind"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(kinds.first().map(String::as_str), Some("trial"));
    assert_eq!(kinds[kinds.len() - 4..], ["ledger", "weights", "audit", "exit"]);
    assert!(kinds.iter().any(|k| k == "sample"));
    assert!(!text.contains(&ran.dir.path().display().to_string()), "a record names a path of this machine");
}

#[test]
fn failures_are_records_and_leave_the_other_arm_alone() {
    for (behaviour, verdict, code) in [
        ("crash", "ERROR", 6),
        ("error", "ERROR", 6),
        ("no_done", "ERROR", 6),
        ("hang", "TIMEOUT", 6),
        ("garbage", "INVALID", 3),
        ("nan", "INVALID", 3),
        ("wrong_digest", "INVALID", 3),
        ("wrong_samples", "INVALID", 3),
        ("frozen", "INVALID", 3),
    ] {
        let ran = with_fault(behaviour);
        assert_eq!(ran.verdicts("faulty/full/on"), [verdict], "{behaviour}\n{}", ran.output);
        assert_eq!(ran.verdicts("steady/full/on"), ["VALID"], "{behaviour}\n{}", ran.output);
        assert_eq!(ran.code, code, "{behaviour}\n{}", ran.output);
    }
}

#[test]
fn a_crash_is_told_in_the_arms_own_words() {
    let ran = with_fault("crash");
    assert!(
        ran.read("report.md").contains("the mock crashes, as its script says"),
        "{}",
        ran.read("report.md")
    );
    let ran = with_fault("error");
    assert!(ran.output.contains("the mock fails, as its script says"), "{}", ran.output);
}

#[test]
fn a_report_rebuilt_is_the_same_to_the_byte() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &[]);
    let files = || {
        let plots = ran.names("plots").into_iter().map(|n| format!("plots/{n}"));
        let all = ["results.json", "results.csv", "report.md", "report.html"]
            .map(String::from)
            .into_iter()
            .chain(plots);
        all.map(|f| (ran.read(&f), f)).collect::<Vec<_>>()
    };
    let before = files();
    for (_, file) in &before {
        std::fs::remove_file(ran.path(file)).unwrap();
    }
    chronibench().arg("report").arg(ran.path("")).assert().success();
    assert_eq!(files(), before);
    for name in ran.names("events") {
        compress(&ran.path("events").join(name));
    }
    chronibench().arg("report").arg(ran.path("")).assert().success();
    assert_eq!(files(), before);
}

/// What `reports/` publishes still reads, and still says the same.
#[test]
fn published_runs_keep_their_verdicts() {
    let reports = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports");
    let published: Vec<_> = std::fs::read_dir(reports)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("resolved.yaml").is_file())
        .collect();
    let of_kernels = |run: &PathBuf| {
        std::fs::read_to_string(run.join("resolved.yaml"))
            .unwrap()
            .starts_with("schema: chronibench.kernels/")
    };
    let (kernels, runs): (Vec<_>, Vec<_>) = published.into_iter().partition(of_kernels);
    assert!(!kernels.is_empty() && !runs.is_empty());
    for run in kernels {
        // The report is rebuilt beside the stored events, and says the same.
        let again = tempfile::tempdir().unwrap();
        for file in ["resolved.yaml", "environment.json"] {
            std::fs::copy(run.join(file), again.path().join(file)).unwrap();
        }
        std::fs::create_dir(again.path().join("events")).unwrap();
        for event in std::fs::read_dir(run.join("events")).unwrap().map(Result::unwrap) {
            std::fs::copy(event.path(), again.path().join("events").join(event.file_name())).unwrap();
        }
        let output = chronibench().arg("report").arg(again.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", run.display());
        let results = |dir: &Path| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(dir.join("results.json")).unwrap()).unwrap()
        };
        let (now, then) = (results(again.path()), results(&run));
        assert!(then["verdict"].is_string() && now["verdict"] == then["verdict"], "{}", run.display());
    }
    for run in runs {
        let Stored { resolved, logs, .. } = Store::open(&run).unwrap().load().unwrap();
        let now = serde_json::to_value(summarise(&resolved, &logs)).unwrap();
        let then = std::fs::read_to_string(run.join("results.json")).unwrap();
        let then: serde_json::Value = serde_json::from_str(&then).unwrap();
        assert_eq!(now["verdict"], then["verdict"], "{}", run.display());
        for (now, then) in now["cases"].as_array().unwrap().iter().zip(then["cases"].as_array().unwrap()) {
            assert_eq!(now["id"], then["id"], "{}", run.display());
            assert_eq!(now["verdict"], then["verdict"], "{}", run.display());
            assert_eq!(now["real_tokens_per_s"]["median"], then["real_tokens_per_s"]["median"]);
        }
    }
}

#[test]
fn a_damaged_record_is_named_with_its_line() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &["--trials", "1"]);
    let file = ran.path("events/000-steady_full_on.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = 1 + text.lines().position(|l| l.contains("\"kind\":\"event\"")).unwrap();
    std::fs::write(&file, text.replacen("\"kind\":\"event\"", "\"kind\":\"evnt\"", 1)).unwrap();
    let output = chronibench().arg("report").arg(ran.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("000-steady_full_on.jsonl:{line}")), "{text}");
}

#[test]
fn an_unwritable_folder_is_an_environment_error() {
    let dir = folder();
    let file = scenario(dir.path(), &format!("{HEAD}{HONEST}"));
    let out = dir.path().join("data.jsonl").join("out");
    let output = chronibench().arg("run").arg(file).arg("--out").arg(out).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cannot be made") && text.contains("--out"), "{text}");
}

#[test]
fn a_folder_with_a_run_is_not_overwritten() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &["--trials", "1"]);
    let before = ran.read("results.json");
    let again = chronibench()
        .arg("run")
        .arg(ran.dir.path().join("scenario.yaml"))
        .arg("--out")
        .arg(ran.path(""))
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(ran.read("results.json"), before);
}

#[test]
fn a_bad_line_of_the_data_set_is_named() {
    let dir = folder();
    let file = scenario(dir.path(), &format!("{HEAD}{HONEST}"));
    let data = std::fs::read_to_string(dir.path().join("data.jsonl")).unwrap();
    std::fs::write(
        dir.path().join("data.jsonl"),
        data.replacen("{\"instruction\": \"Count to 3\"", "{\"instr", 1),
    )
    .unwrap();
    let output =
        chronibench().arg("run").arg(file).arg("--out").arg(dir.path().join("out")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("data.jsonl:4"), "{text}");
}

#[test]
fn changes_on_the_command_line() {
    let set = ["--set", "measure.timed_steps=12", "--set", "arms.steady.mock.step_ms=1", "--trials", "1"];
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &set);
    assert_eq!(ran.code, 0, "{}", ran.output);
    assert!(ran.read("resolved.yaml").contains("timed_steps: 12"));
    let wrong = Ran::new(&format!("{HEAD}{HONEST}"), &["--set", "measure.timed_step=4"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.output.contains("did you mean 'timed_steps'"), "{}", wrong.output);
    let wrong = Ran::new(&format!("{HEAD}{HONEST}"), &["--set", "mesure.timed_steps=4"]);
    assert!(wrong.output.contains("did you mean 'measure'"), "{}", wrong.output);
}

#[test]
fn a_selection_records_what_it_leaves_out() {
    let text = format!("{HEAD}{}", HONEST.replace(", packing: on", ""));
    let ran = Ran::new(&text, &["-k", "full/on", "--trials", "1", "--keep-inputs"]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    assert_eq!(ran.results()["skipped"][0]["what"], "steady/full/off");
    assert!(ran.names("inputs").contains(&"init.safetensors".to_string()));
    let none = Ran::new(&text, &["-k", "nothing"]);
    assert!(none.code == 2 && none.output.contains("the cases are: steady/full/on"), "{}", none.output);
    let arm = Ran::new(&text, &["--arm", "stedy"]);
    assert!(arm.code == 2 && arm.output.contains("did you mean 'steady'"), "{}", arm.output);
}

#[test]
fn a_plan_runs_nothing() {
    let dir = folder();
    let file = scenario(dir.path(), &format!("{HEAD}{HONEST}"));
    for args in [["plan"].as_slice(), &["run", "--dry-run"]] {
        let output = chronibench().args(args).arg(&file).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("steady/full/on"), "{text}");
        assert!(text.contains("2 trials") && text.contains("rough guess"), "{text}");
    }
    assert_eq!(names(dir.path()), ["config.json", "data.jsonl", "scenario.yaml", "tokenizer.json"]);
}

#[test]
fn a_plan_uses_an_earlier_run() {
    let dir = folder();
    let file = scenario(dir.path(), &format!("{HEAD}{HONEST}"));
    chronibench().arg("run").arg(&file).current_dir(dir.path()).assert().success();
    let output = chronibench().arg("plan").arg(&file).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("measured on this machine in runs/"), "{text}");
}

#[test]
fn the_schema_knows_every_field() {
    let output = chronibench().arg("schema").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["properties"]["trials"]["type"], "integer");
    assert_eq!(schema["properties"]["name"]["type"], "string");
    assert_eq!(schema["additionalProperties"], false);
    let axes = &schema["properties"]["matrix"]["additionalProperties"]["additionalProperties"];
    assert!(axes["$ref"].as_str().unwrap().ends_with("Settings"), "{axes}");
}

#[test]
fn the_doctor_always_answers() {
    let output = chronibench().arg("doctor").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for part in ["machine", "gpu", "cuda libraries", "skipped"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_gpu_that_is_not_there_ends_the_run_before_any_trial() {
    let dir = folder();
    let path = scenario(dir.path(), &format!("{HEAD}{HONEST}device: cuda\n"));
    let out = dir.path().join("run");
    let mut command = chronibench();
    // Where there is a GPU, it is hidden.
    command.env("CUDA_VISIBLE_DEVICES", "-1").arg("run").arg(&path).arg("--out").arg(&out);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("mend:") && names(&out.join("events")).is_empty(), "{text}");
}
