//! The `chronicals` command as a person types it.

mod common;

use common::{chronicals, for_gpu, job, stderr};

#[test]
fn trains_and_saves_a_model_and_an_adapter() {
    for (method, files) in [
        ("{type: full}", ["model.safetensors", "config.json", "tokenizer.json"]),
        (
            "{type: lora, r: 4, lora_alpha: 8, loraplus_lr_ratio: 4}",
            ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"],
        ),
    ] {
        let dir = job(method, "");
        let text = stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 0);
        assert!(text.contains("planned") && text.contains("measured"), "{text}");
        let out = dir.path().join("out");
        files.iter().for_each(|file| assert!(out.join(file).exists(), "{file}"));
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), 6);
        let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        assert!(first["loss"].as_f64().unwrap() > 7.0 && first["grad_norm"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_first_level_of_recomputation_that_fits_is_taken_and_changes_no_loss() {
    let run = |extra: &str, code| {
        let dir = job("{type: full}", extra);
        let text = stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), code);
        (text, std::fs::read(dir.path().join("out/model.safetensors")).ok())
    };
    let (text, kept) = run("", 0);
    assert!(text.contains("recompute: none (") && text.contains(" free)"), "{text}");
    let planned = |level: &str| {
        let (text, trained) = run(&format!("recompute: {level}\n"), 0);
        assert_eq!(trained, kept, "{level}");
        let (_, of) =
            text.split_once(&format!("recompute: {level} (asked for; ")).unwrap_or_else(|| panic!("{text}"));
        of.split_once(" MB planned").unwrap().0.parse::<f64>().unwrap()
    };
    let (none, swiglu, block) = (planned("none"), planned("swiglu"), planned("block"));
    assert!(none > swiglu && swiglu > block, "{none} {swiglu} {block}");

    let limit = (none + swiglu) / 2e3;
    let (text, trained) = run(&format!("memory_limit_gb: {limit}\n"), 0);
    assert!(text.contains("recompute: swiglu (") && text.contains("none would take"), "{text}");
    assert_eq!(trained, kept);
    for extra in ["", "recompute: block\n"] {
        let (text, _) = run(&format!("{extra}memory_limit_gb: {}\n", 0.9e-3 * block), 2);
        for part in ["with recompute: block", "memory_limit_gb", "gradient_accumulation_steps"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    let (text, _) = run("offload: true\n", 2);
    assert!(text.contains("device: cuda"), "{text}");
    let (text, _) = run("memory_limit_gb: 0\n", 2);
    assert!(text.contains("above 0"), "{text}");
}

#[test]
fn memory_lists_every_level() {
    let dir = job("{type: full}", "");
    for_gpu(&dir);
    let config = dir.path().join("config.json");
    for rule in ["cpu", "cuda"] {
        let mut command = chronicals();
        command.args(["memory", "--accounting", rule, "--memory-limit-gb", "0.001", "--model"]).arg(&config);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let header = text.lines().find(|line| line.contains("swiglu")).unwrap();
        let levels: Vec<&str> = header.split_whitespace().collect();
        assert_eq!(levels, ["none", "swiglu", "norm", "ffn", "block"]);
        assert!(text.contains("within 0.001 GB: nothing fits"), "{text}");
    }
    let mut command = chronicals();
    command.args(["memory", "--accounting", "cuda", "--offload", "--model"]).arg(&config);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.contains("page-locked on host"), "{text}");
    let text = stderr(chronicals().args(["memory", "--offload", "--model"]).arg(&config), 2);
    assert!(text.contains("--accounting cuda"), "{text}");
}

#[test]
fn memory_that_cannot_be_counted_is_told_before_anything_is_printed() {
    let dir = job("{type: full}", "");
    let config = dir.path().join("config.json");
    let of_model = ["memory", "--model", config.to_str().unwrap()];
    let cuda = [&of_model[..], &["--accounting", "cuda"]].concat();
    let refused = |begin: &[&str], more: &[&str], word: &str| {
        let output = chronicals().args(begin).args(more).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {text}");
        assert!(output.stdout.is_empty() && text.contains(word), "{word} in {text}");
    };
    let params = ["memory", "--params", "7e9"];
    refused(&params, &["--method", "lora"], "--method");
    refused(&params, &["--memory-limit-gb", "40"], "--memory-limit-gb");
    refused(&params, &["--accounting", "cuda"], "--model");
    refused(&cuda, &[], "head_dim 8 has no kernels on a GPU");
    for_gpu(&dir);
    for rows in ["17000000", "18446744073709551615"] {
        let many = ["--rows", rows, "--row-slots", "128"];
        refused(&cuda, &many, "more than 2147483646 tokens");
        refused(&of_model, &many, "more than 2147483646 tokens");
    }
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(r#""hidden_size":16"#, r#""hidden_size":36"#)).unwrap();
    refused(&cuda, &[], "hidden_size 36 has no kernels on a GPU");
}

#[test]
fn bad_input_is_one_error_with_place_and_remedy() {
    let cases = [
        ("{type: full}", "max_step: 3\n", "max_step"),
        ("{type: lora, r: 0, lora_alpha: 8}", "", "rank r is 0"),
        ("{type: lora, r: 4, lora_alpha: 8, target_modules: [q_prj]}", "", "q_prj"),
        ("{type: full}", "kernels: {nrom: fused}\n", "nrom"),
    ];
    for (method, extra, word) in cases {
        let dir = job(method, extra);
        let text = stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 2);
        assert!(text.starts_with("error: ") && text.contains(word), "{text}");
    }
    let text = stderr(chronicals().args(["train", "--config", "nowhere.yaml"]), 2);
    assert!(text.contains("nowhere.yaml") && text.contains("check the path"), "{text}");
}

#[test]
fn memory_in_the_papers_accounting_is_84_gb_and_says_what_is_left_out() {
    let output = chronicals().args(["memory", "--params", "7e9", "--accounting", "paper"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["14.00 GB", "56.00 GB", "84.00 GB", "left out", "master weights (28.00 GB)"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn describe_lists_every_seam() {
    let output = chronicals().args(["describe", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["seams"]["attention"], serde_json::json!(["fused", "eager"]));
}

#[test]
fn a_gpu_that_is_not_there_is_the_machines_fault() {
    let dir = job("{type: full}", "device: cuda\n");
    let mut command = chronicals();
    // Where there is a GPU, it is hidden.
    command.env("CUDA_VISIBLE_DEVICES", "-1").current_dir(&dir).args(["train", "--config", "job.yaml"]);
    let text = stderr(&mut command, 5);
    assert!(text.starts_with("error: ") && text.contains("mend:"), "{text}");
    for (extra, word) in [("device: gpu\n", "cuda:N"), ("precision: {states: bf16}\n", "8bit")] {
        let dir = job("{type: full}", extra);
        let text = stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 2);
        assert!(text.starts_with("error: ") && text.contains(word), "{text}");
    }
}

#[test]
fn memory_of_a_gpu_is_counted_without_one() {
    let dir = job("{type: full}", "");
    for_gpu(&dir);
    let config = dir.path().join("config.json");
    let run = |states: &str| {
        let mut command = chronicals();
        command.args(["memory", "--accounting", "cuda", "--states", states, "--model"]).arg(&config);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let (f32, bf16) = (run("f32"), run("bf16"));
    assert!(f32.contains("master weights") && f32.contains("workspace of products"), "{f32}");
    assert!(!bf16.contains("master weights") && bf16.contains("scratch"), "{bf16}");
}

fn json(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_profile_says_where_the_steps_of_the_processor_go() {
    let dir = job("{type: lora, r: 4, lora_alpha: 8}", "");
    let run = |more: &[&str], code| {
        let mut command = chronicals();
        command.current_dir(&dir).args(["train", "--config", "job.yaml"]).args(more);
        let output = command.output().unwrap();
        let text = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
        assert_eq!(output.status.code(), Some(code), "{text:?}");
        text
    };
    let [table, log] = run(&["--profile", "prof", "--profile-steps", "2"], 0);
    assert!(log.contains("prof/trace.json"), "{log}");
    for part in
        ["Steps 4 to 5", "wall", "| **attention** |", "| lora |", "| **nothing ran** |", "TB/s by a copy"]
    {
        assert!(table.contains(part), "{part} in {table}");
    }
    let prof = dir.path().join("prof");
    assert_eq!(std::fs::read_to_string(prof.join("profile.md")).unwrap(), table);
    let csv = std::fs::read_to_string(prof.join("profile.csv")).unwrap();
    assert!(csv.lines().all(|line| line.split(',').count() == 11), "{csv}");

    let summary = json(&prof.join("profile.json"));
    assert_eq!(summary["no_model"], serde_json::json!([]));
    let us = |v: &serde_json::Value| v.as_f64().unwrap();
    let rows: f64 = summary["kernels"].as_array().unwrap().iter().map(|r| us(&r["us"])).sum();
    let whole = rows + us(&summary["idle_us"]) - us(&summary["overlap_us"]);
    assert!((whole - us(&summary["step_us"])).abs() < 1e-3, "{whole} of {summary}");
    let seams: Vec<&str> =
        summary["seams"].as_array().unwrap().iter().map(|r| r["seam"].as_str().unwrap()).collect();
    for seam in ["norm", "qk_rope", "attention", "mlp", "loss", "lora", "optimizer", "gemm", "embedding"] {
        assert!(seams.contains(&seam), "{seam} in {seams:?}");
    }

    let trace = json(&prof.join("trace.json"));
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |cat: &'static str| {
        events.iter().filter(move |e| e["ph"] == "X" && (e["cat"] == "step") == (cat == "step"))
    };
    assert_eq!(of("step").count(), 2);
    for e in of("call") {
        let step = of("step").find(|s| s["args"]["step"] == e["args"]["step"]).expect("its step is there");
        let (begin, end) = (us(&step["ts"]), us(&step["ts"]) + us(&step["dur"]));
        assert!(us(&e["ts"]) >= begin && us(&e["ts"]) + us(&e["dur"]) <= end + 1e-3, "{e} in {step}");
    }

    // Of a training that goes on, the steps that are left.
    let path = dir.path().join("job.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + "save_steps: 3\n").unwrap();
    run(&[], 0);
    let resume = ["--resume-from", "out/checkpoint-3", "--profile", "later", "--profile-steps", "2"];
    let [table, log] = run(&resume, 0);
    assert!(table.contains("Steps 4 to 5") && log.contains("after step 3"), "{table}\n{log}");
    let [_, log] = run(&[&resume[..], &["--profile-warmup", "2"]].concat(), 2);
    assert!(log.contains("2 of profile in what is left of a training, 3"), "{log}");
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();

    for (more, word) in [
        (&["--profile", "prof", "--profile-steps", "7"][..], "training of 6"),
        (&["--profile", "prof", "--profile-steps", "0"], "no steps"),
        (&["--profile", "prof", "--profile-by", "cupti"], "those of a GPU"),
        (&["--profile", "job.yaml/prof"], "job.yaml/prof"),
        (&["--profile-steps", "2"], "--profile <DIR>"),
    ] {
        let [_, log] = run(more, 2);
        assert!(log.contains(word), "{word} in {log}");
    }
}
