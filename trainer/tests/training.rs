//! Trainings that end early: killed, interrupted, out of disk, diverged, or because nothing improves any more.

mod common;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{METHODS, chronicals, job, outcome, stderr};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

const TRAIN: [&str; 3] = ["train", "--config", "job.yaml"];
const RESUME: [&str; 4] = ["train", "--config", "job.yaml", "--resume"];

/// Names in the folder of results that begin so, in order.
fn named(dir: &TempDir, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path().join("out")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

fn start(dir: &TempDir, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronicals"));
    command.current_dir(dir).args(args).stderr(Stdio::null()).spawn().unwrap()
}

/// Until something is so, or the child has ended by itself.
fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(300), "waited too long");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Changes a job that is there.
fn edit(dir: &TempDir, from: &str, to: &str) {
    let path = dir.path().join("job.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
fn a_killed_training_goes_on_to_the_bit() {
    let variants = [
        "{type: lora, r: 4, lora_alpha: 8, init_lora_weights: pissa_niter_4, rank_pattern: {k_proj: 2}}",
        "{type: lora, r: 4, lora_alpha: 8, use_dora: true, alpha_pattern: {mlp..*: 2}}",
    ];
    for method in METHODS.into_iter().chain(variants) {
        let (whole, killed) = (job(method, ""), job(method, "save_steps: 2\nsave_total_limit: 1\n"));
        stderr(chronicals().current_dir(&whole).args(TRAIN), 0);
        let mut child = start(&killed, &TRAIN);
        while named(&killed, "checkpoint-").is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let text = stderr(chronicals().current_dir(&killed).args(TRAIN).arg("--resume"), 0);
        assert!(text.contains("resumed from") && text.contains("after step"), "{text}");
        assert!(outcome(&killed) == outcome(&whole), "{method}: another model");
        assert_eq!(named(&killed, "checkpoint-"), ["checkpoint-6"]);
    }
}

#[test]
fn a_checkpoint_of_another_training_is_refused_by_name() {
    let dir = job(METHODS[0], "save_steps: 3\n");
    stderr(chronicals().current_dir(&dir).args(TRAIN), 0);
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    std::fs::write(
        dir.path().join("other.json"),
        config.replace("\"intermediate_size\":64", "\"intermediate_size\":48"),
    )
    .unwrap();
    let path = dir.path().join("job.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let resume = ["train", "--config", "job.yaml", "--resume-from", "out/checkpoint-3"];
    for (from, to, word) in [
        ("learning_rate: 5e-3", "learning_rate: 4e-3", "train was"),
        ("max_steps: 6", "max_steps: 7", "max_steps was 6, and is 7"),
        ("max_length: 128", "max_length: 100", "tokens was"),
        (METHODS[0], METHODS[1], "method was"),
        ("config: config.json", "config: other.json", "model was"),
    ] {
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = stderr(chronicals().current_dir(&dir).args(resume), 2);
        assert!(error.contains("another training") && error.contains(word), "{error}");
    }
    std::fs::write(&path, &text).unwrap();
    let moments = dir.path().join("out/checkpoint-3/exp_avg.safetensors");
    let bytes = std::fs::read(&moments).unwrap();
    std::fs::write(&moments, &bytes[..bytes.len() / 2]).unwrap();
    let error = stderr(chronicals().current_dir(&dir).args(resume), 2);
    assert!(error.contains("exp_avg.safetensors") && error.contains("another checkpoint"), "{error}");
    let error = stderr(chronicals().current_dir(&dir).args([&resume[..4], &["nowhere"]].concat()), 2);
    assert!(error.contains("nowhere"), "{error}");
}

/// Kills at random moments, most of them while a checkpoint is written or an old one removed.
#[test]
fn a_kill_during_a_save_leaves_a_whole_checkpoint() {
    let (whole, killed) = (job(METHODS[0], ""), job(METHODS[0], "save_steps: 1\nsave_total_limit: 1\n"));
    [&whole, &killed].iter().for_each(|dir| edit(dir, "max_steps: 6", "max_steps: 8"));
    stderr(chronicals().current_dir(&whole).args(TRAIN), 0);
    let step = |name: &String| name["checkpoint-".len()..].parse::<u32>().unwrap();
    let mut newest = 0;
    for round in 0..10u64 {
        let mut child = start(&killed, &RESUME);
        wait_for(&mut child, || !named(&killed, ".checkpoint-").is_empty());
        // Spread over a save, without a clock or a generator: multiples of an odd number.
        std::thread::sleep(Duration::from_micros(round * 2753 % 12_000));
        let _ = child.kill();
        child.wait().unwrap();
        let left = named(&killed, "checkpoint-").iter().map(step).max().unwrap_or(0);
        assert!(left >= newest, "round {round}: checkpoint {newest} is lost");
        newest = left;
    }
    stderr(chronicals().current_dir(&killed).args(RESUME), 0);
    assert!(outcome(&killed) == outcome(&whole), "another model");
    assert_eq!(named(&killed, "checkpoint-"), ["checkpoint-8"]);
    assert!(named(&killed, ".checkpoint-").is_empty(), "what the kills left is swept away");
}

#[test]
fn a_signal_saves_and_the_training_goes_on_to_the_bit() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (whole, stopped) = (job(METHODS[1], ""), job(METHODS[1], ""));
        [&whole, &stopped].iter().for_each(|dir| edit(dir, "max_steps: 6", "max_steps: 60"));
        stderr(chronicals().current_dir(&whole).args(TRAIN), 0);
        let mut child = start(&stopped, &TRAIN);
        let metrics = stopped.path().join("out/metrics.jsonl");
        wait_for(&mut child, || lines(&metrics) >= 2);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let saved = named(&stopped, "checkpoint-");
        assert_eq!(saved, [format!("checkpoint-{}", lines(&metrics))]);
        assert!(!stopped.path().join("out/adapter_model.safetensors").exists(), "it has not ended");
        let text = stderr(chronicals().current_dir(&stopped).args(RESUME), 0);
        assert!(text.contains("resumed from"), "{text}");
        assert!(outcome(&stopped) == outcome(&whole), "another model");
    }
}

/// Lines of many steps lose none of them where a signal ends the training in between.
#[test]
fn every_step_is_in_the_metrics_of_an_interrupted_training() {
    let (whole, stopped) =
        (job(METHODS[1], "logging_steps: 5000\n"), job(METHODS[1], "logging_steps: 5000\n"));
    [&whole, &stopped].iter().for_each(|dir| edit(dir, "max_steps: 6", "max_steps: 2000"));
    stderr(chronicals().current_dir(&whole).args(TRAIN), 0);
    let mut child = start(&stopped, &TRAIN);
    let begun = Instant::now();
    let metrics = stopped.path().join("out/metrics.csv");
    wait_for(&mut child, || metrics.exists() && begun.elapsed() > Duration::from_millis(300));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "it ended before the signal");
    stderr(chronicals().current_dir(&stopped).args(RESUME), 0);
    let slots = |dir: &TempDir| -> Vec<u64> {
        let lines = outcome(dir).1;
        lines.iter().map(|line| line["tokens"]["slots"].as_u64().unwrap()).collect()
    };
    let (all, parts) = (slots(&whole), slots(&stopped));
    assert_eq!((all.len(), parts.len()), (1, 2));
    assert_eq!(parts.iter().sum::<u64>(), all[0]);
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let (whole, full) = (job(METHODS[0], "save_steps: 2\n"), job(METHODS[0], "save_steps: 2\n"));
    [&whole, &full].iter().for_each(|dir| drop(stderr(chronicals().current_dir(dir).args(TRAIN), 0)));
    let out = full.path().join("out");
    ["checkpoint-4", "checkpoint-6"].iter().for_each(|c| std::fs::remove_dir_all(out.join(c)).unwrap());
    let kept = out.join("checkpoint-2/exp_avg.safetensors");
    let before = (std::fs::read(&kept).unwrap(), std::fs::read(out.join("model.safetensors")).unwrap());
    // No file may be larger than 100 kB: the kernel refuses the write, as it does on a disk without room.
    let mut limited = assert_cmd::Command::new("sh");
    let command = format!(
        "trap '' XFSZ; ulimit -f 200; exec '{}' train --config job.yaml --resume",
        env!("CARGO_BIN_EXE_chronicals")
    );
    let text = stderr(limited.current_dir(&full).args(["-c", &command]), 6);
    for part in [
        "checkpoint of step 4",
        "too large",
        "make room on the disk",
        "the last checkpoint is",
        "checkpoint-2",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(named(&full, "checkpoint-"), ["checkpoint-2"]);
    assert!(named(&full, ".").is_empty(), "nothing half-written stays");
    let after = (std::fs::read(&kept).unwrap(), std::fs::read(out.join("model.safetensors")).unwrap());
    assert!(after == before, "what was there is as it was");
    stderr(chronicals().current_dir(&full).args(RESUME), 0);
    assert!(outcome(&full) == outcome(&whole), "another model");
}

#[test]
fn a_training_that_improves_no_more_ends_early_and_stays_ended() {
    let dir = job(METHODS[1], "eval_steps: 1\nsave_steps: 4\nearly_stopping_patience: 2\n");
    edit(&dir, "max_length: 128", "max_length: 128, validation_split: 0.01");
    edit(&dir, "learning_rate: 5e-3", "learning_rate: 0");
    let text = stderr(chronicals().current_dir(&dir).args(TRAIN), 0);
    assert!(text.contains("early stop after step 3: no improvement in 2 evaluations"), "{text}");
    assert_eq!(lines(&dir.path().join("out/metrics.jsonl")), 3 + 3);
    assert_eq!(named(&dir, "checkpoint-"), ["checkpoint-3"]);
    let text = stderr(chronicals().current_dir(&dir).args(RESUME), 0);
    assert!(text.contains("after step 3") && !text.contains("step 4"), "{text}");
    assert_eq!(lines(&dir.path().join("out/metrics.jsonl")), 3 + 3);
}

#[test]
fn the_best_model_is_kept_and_taken_in_the_end() {
    let extra = "eval_steps: 2\neval_on_start: true\nsave_steps: 2\nsave_total_limit: 1\nload_best_model_at_end: true\nmax_loss_rise: 0\n";
    let dir = job(METHODS[0], extra);
    edit(&dir, "max_length: 128", "max_length: 128, validation_split: 0.01");
    // So large that every step makes it worse.
    edit(&dir, "learning_rate: 5e-3", "learning_rate: 2, lr_scheduler_type: constant");
    let text = stderr(chronicals().current_dir(&dir).args(TRAIN), 0);
    assert!(text.contains("the best is that after step 0"), "{text}");
    assert_eq!(named(&dir, "checkpoint-"), ["checkpoint-0", "checkpoint-6"]);
    let model = |name: &str| std::fs::read(dir.path().join("out").join(name)).unwrap();
    let best = model("checkpoint-0/model.safetensors");
    assert!(model("model.safetensors") == best && model("checkpoint-6/model.safetensors") != best);
}

/// The evaluation before the first step is not made again: that it is no better than itself would end the training.
#[test]
fn a_training_that_goes_on_from_its_start_is_trained() {
    let extra =
        "eval_steps: 3\neval_on_start: true\nload_best_model_at_end: true\nearly_stopping_patience: 1\n";
    let dir = job(METHODS[0], extra);
    edit(&dir, "max_length: 128", "max_length: 128, validation_split: 0.01");
    stderr(chronicals().current_dir(&dir).args(TRAIN), 0);
    let (whole, out) = (outcome(&dir), dir.path().join("out"));
    let later = named(&dir, "checkpoint-").into_iter().filter(|name| name != "checkpoint-0");
    later.for_each(|name| std::fs::remove_dir_all(out.join(name)).unwrap());
    let text = stderr(chronicals().current_dir(&dir).args(RESUME), 0);
    assert!(text.contains("checkpoint-0, after step 0") && text.contains("trained 6 steps"), "{text}");
    assert!(outcome(&dir) == whole, "another model, or another line of metrics");
    let rows = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
    assert_eq!(rows.lines().filter(|row| row.starts_with("0,,")).count(), 1, "{rows}");
}

#[test]
fn a_training_that_diverges_is_given_up_and_saves_nothing_bad() {
    for (rate, word) in [("2", "running mean of the loss rose"), ("1e30", "diverged")] {
        let dir = job(METHODS[0], "save_steps: 30\n");
        edit(&dir, "max_steps: 6", "max_steps: 30");
        edit(&dir, "learning_rate: 5e-3", &format!("learning_rate: {rate}, lr_scheduler_type: constant"));
        let text = stderr(chronicals().current_dir(&dir).args(TRAIN), 6);
        assert!(
            text.contains(word) && text.contains("where: step") && text.contains("learning_rate"),
            "{text}"
        );
        assert!(named(&dir, "checkpoint-").is_empty() && named(&dir, "model").is_empty());
    }
}

#[test]
fn settings_without_what_they_go_by_are_refused() {
    for (extra, word) in [
        ("early_stopping_patience: 2\n", "no evaluations"),
        ("load_best_model_at_end: true\neval_steps: 2\n", "validation_split"),
        ("max_loss_rise: -1\n", "max_loss_rise"),
        ("report_to: [wandb]\n", "wandb"),
        ("peak_tflops: 0\n", "peak_tflops"),
    ] {
        let dir = job(METHODS[0], extra);
        let text = stderr(chronicals().current_dir(&dir).args(TRAIN), 2);
        assert!(text.starts_with("error: ") && text.contains(word), "{text}");
    }
}

#[test]
fn metrics_come_as_lines_a_table_and_events() {
    let dir = job(METHODS[1], "logging_steps: 2\neval_steps: 3\npeak_tflops: 1\n");
    edit(&dir, "max_length: 128", "max_length: 128, validation_split: 0.01");
    let text = stderr(chronicals().current_dir(&dir).args(TRAIN), 0);
    assert!(
        text.contains("trained 6 steps") && text.contains("real tokens/s") && text.contains("MFU"),
        "{text}"
    );
    let out = dir.path().join("out");
    let csv = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert!(rows.iter().all(|r| r.len() == rows[0].len()), "{csv}");
    let jsonl = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let jsonl: Vec<serde_json::Value> = jsonl.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    // Every two steps, and where the training pauses to evaluate.
    let steps: Vec<u64> = jsonl.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 3, 5, 6]);
    assert_eq!(rows.len(), 1 + jsonl.len());
    for (row, line) in rows[1..].iter().zip(&jsonl) {
        assert_eq!(row[0], line["step"].to_string());
        let name = if line.get("loss").is_some() { "loss" } else { "eval_loss" };
        let cell = rows[0].iter().position(|c| *c == name).unwrap();
        assert_eq!(row[cell].parse::<f64>().unwrap(), line[name].as_f64().unwrap());
    }
    assert!(jsonl[0]["mfu"].as_f64().unwrap() > 0.0);
    let events: Vec<_> = std::fs::read_dir(out.join("runs")).unwrap().flatten().collect();
    assert_eq!(events.len(), 1);
    let bytes = std::fs::read(events[0].path()).unwrap();
    let count = |tag: &[u8]| bytes.windows(tag.len()).filter(|w| *w == tag).count();
    assert_eq!((count(b"train/loss"), count(b"train/mfu"), count(b"eval/loss")), (4, 4, 2));
}
