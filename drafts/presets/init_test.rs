//! `chronicals init`: what it writes, trains.

mod common;

use common::{METHODS, chronicals, data, job, stderr};

#[test]
fn what_is_written_trains() {
    let dir = job(METHODS[0], "");
    stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 0);
    let records = data("train.jsonl");
    let init = |more: &[&str], code| {
        let mut command = chronicals();
        command.current_dir(&dir).args(["init", "--model", "out", "--data", &records]).args(more);
        stderr(&mut command, code)
    };
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    init(&["--max-length", "128"], 0);
    let written = text("train.yaml");
    assert!(written.contains("type: lora") && written.contains("device: cpu"), "{written}");
    let error = init(&["--max-length", "128"], 2);
    assert!(error.contains("already") && error.contains("--out"), "{error}");
    let line = written.lines().find(|l| l.starts_with("max_steps: ")).unwrap();
    std::fs::write(dir.path().join("train.yaml"), written.replace(line, "max_steps: 12")).unwrap();
    let log = stderr(chronicals().current_dir(&dir).args(["train", "--config", "train.yaml"]), 0);
    assert!(log.contains("held-out loss") && log.contains("trained 12 steps"), "{log}");
    assert!(dir.path().join("train.out/adapter_model.safetensors").exists());

    init(&["--preset", "80gb", "--method", "full", "--out", "gpu.yaml", "--epochs", "2"], 0);
    let gpu = text("gpu.yaml");
    for part in ["device: cuda", "states: f32", "type: full", "per_device_train_batch_size: 16", "recompute: none"] {
        assert!(gpu.contains(part), "{part} in {gpu}");
    }
    for (more, word) in [
        (&["--preset", "huge", "--out", "a.yaml"][..], "141gb"),
        (&["--max-length", "4096", "--out", "a.yaml"], "positions"),
        (&["--max-length", "1", "--out", "a.yaml"], "max-length"),
    ] {
        let error = init(more, 2);
        assert!(error.contains(word), "{word} in {error}");
    }
    assert!(!dir.path().join("a.yaml").exists());
}
