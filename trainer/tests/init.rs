//! `chronicals init`: what it writes can be read and trains, and what it cannot do is told.

mod common;

use common::{METHODS, chronicals, data, for_gpu, job, stderr};

#[test]
fn what_is_written_can_be_read_and_what_is_wrong_is_told() {
    let dir = job(METHODS[0], "");
    for_gpu(&dir);
    stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 0);
    let records = data("train.jsonl");
    let init = |more: &[&str], code| {
        let mut command = chronicals();
        command.current_dir(&dir).args(["init", "--model", "out", "--data", &records]).args(more);
        stderr(&mut command, code)
    };
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    init(&["--gpu", "cpu", "--max-length", "128"], 0);
    let written = text("train.yaml");
    for part in ["type: lora", "device: cpu", "max_length: 128 ", "validation_split: 0.05", "max_steps: "] {
        assert!(written.contains(part), "{part} in {written}");
    }
    // A whole path stays whole; others are as seen from the file, which moves with them.
    assert!(written.contains("model: {path: \"out\"}") && written.contains(&format!("path: \"{records}\"")));
    std::fs::create_dir_all(dir.path().join("jobs/a")).unwrap();
    std::fs::copy(&records, dir.path().join("jobs/mine.jsonl")).unwrap();
    let args =
        ["init", "--model", "out", "--data", "jobs/mine.jsonl", "--gpu", "cpu", "--out", "jobs/a/b.yaml"];
    stderr(chronicals().current_dir(&dir).args(args), 0);
    let moved = text("jobs/a/b.yaml");
    assert!(moved.contains("path: \"../../out\"") && moved.contains("path: \"../mine.jsonl\""), "{moved}");
    let error = init(&["--gpu", "cpu"], 2);
    assert!(error.contains("already") && error.contains("--out"), "{error}");

    init(&["--gpu", "80gb", "--method", "full", "--out", "gpu.yaml", "--epochs", "2"], 0);
    let gpu = text("gpu.yaml");
    for part in
        ["device: cuda", "states: f32", "type: full", "per_device_train_batch_size: 16", "recompute: none"]
    {
        assert!(gpu.contains(part), "{part} in {gpu}");
    }
    // `data stats` reads the file as a training would.
    let stats = chronicals().current_dir(&dir).args(["data", "stats", "gpu.yaml"]).output().unwrap();
    assert!(stats.status.success(), "{}", String::from_utf8_lossy(&stats.stderr));
    for (more, word) in [
        (&["--gpu", "huge", "--out", "a.yaml"][..], "141GB"),
        (&["--gpu", "cpu", "--max-length", "4096", "--out", "a.yaml"], "positions"),
        (&["--gpu", "cpu", "--max-length", "1", "--out", "a.yaml"], "max-length"),
        (&["--gpu", "cpu", "--out", "no/such/folder/a.yaml"], "no/such/folder"),
    ] {
        let error = init(more, 2);
        assert!(error.contains(word), "{word} in {error}");
    }
    let config = dir.path().join("out/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["head_dim"] = 36.into();
    std::fs::write(&config, value.to_string()).unwrap();
    let error = init(&["--gpu", "80GB", "--out", "a.yaml"], 2);
    assert!(error.contains("head_dim 36 has no kernels on a GPU"), "{error}");
    assert!(!dir.path().join("a.yaml").exists());
}

#[test]
fn a_model_that_fits_nowhere_is_told_with_a_way_out() {
    let dir = job(METHODS[0], "");
    stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 0);
    let config = dir.path().join("out/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["hidden_size"] = 8192.into();
    value["intermediate_size"] = 32768.into();
    value["num_hidden_layers"] = 64.into();
    value["num_attention_heads"] = 64.into();
    std::fs::write(&config, value.to_string()).unwrap();
    let records = data("train.jsonl");
    let args = ["init", "--model", "out", "--data", &records, "--gpu", "24GB", "--method", "full"];
    let error = stderr(chronicals().current_dir(&dir).args(args), 2);
    assert!(error.contains("24GB has 23.71 GB") && error.contains("--method lora"), "{error}");
    assert!(!dir.path().join("train.yaml").exists());
}
