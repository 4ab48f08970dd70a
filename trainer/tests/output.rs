//! The folder that a training writes to: whose it is, what is in it already, and what is not to be written over.

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{METHODS, chronicals, data, job, outcome, stderr};
use tempfile::TempDir;

const TRAIN: [&str; 3] = ["train", "--config", "job.yaml"];
const RESUME: [&str; 4] = ["train", "--config", "job.yaml", "--resume"];
const OVERWRITE: [&str; 4] = ["train", "--config", "job.yaml", "--overwrite"];

fn edit(dir: &TempDir, from: &str, to: &str) {
    let path = dir.path().join("job.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

fn run(dir: &TempDir, args: &[&str], code: i32) -> String {
    stderr(chronicals().current_dir(dir).args(args), code)
}

/// A checkpoint that a kill caught between being moved aside and its successor's coming is taken up; half of one is not.
#[test]
fn a_checkpoint_that_was_moved_aside_is_put_back() {
    let dir = job(METHODS[0], "save_steps: 2\nsave_total_limit: 1\n");
    run(&dir, &TRAIN, 0);
    let whole = outcome(&dir);
    let out = dir.path().join("out");
    std::fs::create_dir_all(out.join(".checkpoint-a")).unwrap();
    std::fs::rename(out.join("checkpoint-6"), out.join(".checkpoint-a/replaced")).unwrap();
    std::fs::create_dir_all(out.join(".checkpoint-b/replaced")).unwrap();
    std::fs::write(out.join(".checkpoint-b/replaced/trainer_state.json"), "{\"form").unwrap();
    let text = run(&dir, &RESUME, 0);
    assert!(text.contains("resumed from") && text.contains("after step 6"), "{text}");
    assert!(outcome(&dir) == whole);
    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn two_trainings_do_not_write_to_one_folder() {
    let dir = job(METHODS[1], "save_steps: 1\nsave_total_limit: 1\n");
    edit(&dir, "max_steps: 6", "max_steps: 4000");
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronicals"));
    let mut first = command.current_dir(&dir).args(TRAIN).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !dir.path().join("out/checkpoint-1").exists() && !dir.path().join("out/checkpoint-2").exists() {
        assert!(begun.elapsed() < Duration::from_secs(120) && first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..3 {
        let text = run(&dir, &RESUME, 2);
        assert!(text.contains("another training writes to this folder") && text.contains("mend:"), "{text}");
    }
    assert!(first.try_wait().unwrap().is_none(), "the first is not disturbed");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn a_training_goes_on_from_its_own_newest_checkpoint() {
    let dir = job(METHODS[0], "save_steps: 3\n");
    edit(&dir, "max_steps: 6", "max_steps: 9");
    run(&dir, &TRAIN, 0);
    // Another one in the same folder, which came as far as its first checkpoint.
    edit(&dir, "learning_rate: 5e-3", "learning_rate: 4e-3");
    edit(&dir, "max_steps: 9", "max_steps: 6");
    let text = run(&dir, &RESUME, 2);
    assert!(text.contains("of another training: max_steps was") && text.contains("--overwrite"), "{text}");
    let out = dir.path().join("out");
    std::fs::rename(out.join("checkpoint-9"), dir.path().join("aside")).unwrap();
    run(&dir, &OVERWRITE, 0);
    let whole = outcome(&dir);
    std::fs::remove_dir_all(out.join("checkpoint-6")).unwrap();
    std::fs::rename(dir.path().join("aside"), out.join("checkpoint-9")).unwrap();
    let text = run(&dir, &RESUME, 0);
    assert!(text.contains("checkpoint-3, after step 3"), "past checkpoint-9, which is another's: {text}");
    assert!(outcome(&dir) == whole);
}

/// Forgetting --resume costs nothing.
#[test]
fn an_earlier_training_is_written_over_only_when_it_is_said() {
    let dir = job(METHODS[0], "save_steps: 2\nsave_total_limit: 1\n");
    run(&dir, &TRAIN, 0);
    let (out, whole) = (dir.path().join("out"), outcome(&dir));
    let events = || {
        let runs = out.join("runs").read_dir().unwrap();
        runs.map(|e| std::fs::read(e.unwrap().path()).unwrap()).collect::<Vec<_>>()
    };
    let before = events();
    edit(&dir, "max_steps: 6", "max_steps: 3");
    let refused = |text: String| {
        for part in ["checkpoint-6", "output_dir, ", "--resume", "--overwrite"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(outcome(&dir) == whole && events() == before, "it is as it was");
    };
    refused(run(&dir, &TRAIN, 2));
    // Also where a kill has moved the checkpoint aside.
    std::fs::create_dir_all(out.join(".checkpoint-a")).unwrap();
    std::fs::rename(out.join("checkpoint-6"), out.join(".checkpoint-a/replaced")).unwrap();
    refused(run(&dir, &TRAIN, 2));
    assert!(out.join("checkpoint-6").exists());
    run(&dir, &[&OVERWRITE[..], &["--resume"]].concat(), 2);
    run(&dir, &OVERWRITE, 0);
    assert!(!out.join("checkpoint-6").exists() && out.join("checkpoint-3").exists());
    assert_eq!(outcome(&dir).1.len(), 3);
    let text = run(&dir, &RESUME, 0);
    assert!(text.contains("checkpoint-3, after step 3"), "{text}");
}

#[test]
fn the_best_checkpoint_comes_along_to_another_folder() {
    let extra =
        "eval_steps: 2\neval_on_start: true\nsave_steps: 2\nload_best_model_at_end: true\nmax_loss_rise: 0\n";
    let dir = job(METHODS[0], extra);
    edit(&dir, "max_length: 128", "max_length: 128, validation_split: 0.01");
    edit(&dir, "learning_rate: 5e-3", "learning_rate: 2, lr_scheduler_type: constant");
    run(&dir, &TRAIN, 0);
    let model = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    edit(&dir, "output_dir: out", "output_dir: second");
    let from = [&TRAIN[..], &["--resume-from", "out/checkpoint-4"]].concat();
    let text = run(&dir, &from, 0);
    assert!(text.contains("the best is that after step 0"), "{text}");
    assert!(model("second/model.safetensors") == model("out/checkpoint-0/model.safetensors"));
    // Taken away, it is missed before the training and not behind it.
    edit(&dir, "output_dir: second", "output_dir: third");
    std::fs::remove_dir_all(dir.path().join("out/checkpoint-0")).unwrap();
    let text = run(&dir, &from, 2);
    assert!(
        text.contains("the best checkpoint so far is not there") && text.contains("checkpoint-0"),
        "{text}"
    );
}

#[test]
fn the_model_that_is_trained_is_not_written_over() {
    let dir = job(METHODS[0], "");
    run(&dir, &TRAIN, 0);
    edit(&dir, "{config: config.json}", "{path: out}");
    for method in METHODS {
        edit(&dir, "method: {", &format!("method: {method} # {{"));
        let text = run(&dir, &TRAIN, 2);
        assert!(text.contains("holds the model that is trained") && text.contains("output_dir"), "{text}");
    }
}

#[test]
fn a_full_training_leaves_nothing_that_is_read_in_its_place() {
    let dir = job(METHODS[1], "");
    run(&dir, &TRAIN, 0);
    let out = dir.path().join("out");
    std::fs::write(out.join("model.safetensors.index.json"), "{\"weight_map\": {}}").unwrap();
    edit(&dir, METHODS[1], METHODS[0]);
    run(&dir, &TRAIN, 0);
    for name in ["adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json"] {
        assert!(!out.join(name).exists(), "{name}");
    }
    chronicals().current_dir(&dir).args(["export", "out", "exported"]).assert().success();
}

#[test]
fn a_checkpoint_is_a_model_or_an_adapter_too() {
    let dir = job(METHODS[0], "save_steps: 3\n");
    run(&dir, &TRAIN, 0);
    chronicals().current_dir(&dir).args(["export", "out/checkpoint-3", "exported"]).assert().success();
    edit(&dir, "{config: config.json}", "{path: out}");
    edit(&dir, METHODS[0], METHODS[1]);
    edit(&dir, "output_dir: out", "output_dir: tuned");
    run(&dir, &TRAIN, 0);
    let merge = ["merge", "--model", "out", "--adapter", "tuned/checkpoint-3", "merged"];
    chronicals().current_dir(&dir).args(merge).assert().success();
}

/// An adapter in a folder that holds an older model too is found under its own name.
#[test]
fn an_adapter_beside_a_model_is_the_adapter() {
    let dir = job(METHODS[0], "");
    edit(&dir, "output_dir: out", "output_dir: model");
    run(&dir, &TRAIN, 0);
    edit(&dir, "{config: config.json}", "{path: model}");
    edit(&dir, "output_dir: model", "output_dir: out");
    edit(&dir, METHODS[0], METHODS[1]);
    run(&dir, &TRAIN, 0);
    let texts = [["evaluate", "--text"], ["generate", "--prompt"]];
    let asked = || {
        texts.map(|[command, flag]| {
            let args = [command, "--model", "model", "--adapter", "out", flag, "one two three"];
            let output = chronicals().current_dir(&dir).args(args).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        })
    };
    let alone = asked();
    std::fs::copy(dir.path().join("model/model.safetensors"), dir.path().join("out/model.safetensors"))
        .unwrap();
    assert!(asked() == alone);
}

/// What a model is asked with is what it was trained with.
#[test]
fn the_tokenizer_goes_along_as_it_was_used() {
    for (method, extra) in METHODS.into_iter().zip(["save_steps: 6\n", ""]) {
        let dir = job(method, extra);
        let (own, other) = (dir.path(), dir.path().join("other"));
        std::fs::create_dir(&other).unwrap();
        std::fs::copy(data("tokenizer.json"), other.join("words.json")).unwrap();
        // Beside the config are another tokenizer's; beside the tokenizer, its own.
        std::fs::write(own.join("merges.txt"), "of another").unwrap();
        std::fs::write(own.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
        std::fs::write(own.join("generation_config.json"), r#"{"eos_token_id": 7, "top_p": 0.5}"#).unwrap();
        let settings =
            r#"{"model_max_length": 99, "eos_token": {"content": "<|endoftext|>"}, "chat_template": "old"}"#;
        std::fs::write(other.join("tokenizer_config.json"), settings).unwrap();
        std::fs::write(other.join("special_tokens_map.json"), r#"{"pad_token": "<|endoftext|>"}"#).unwrap();
        std::fs::write(own.join("chat.jinja"), "{{ messages[0].content }}").unwrap();
        edit(&dir, &data("tokenizer.json"), "other/words.json, chat_template_path: chat.jinja");
        edit(&dir, "max_length: 128", "max_length: 128, eos_token: <|pad|>, pad_token: <|endoftext|>");
        run(&dir, &TRAIN, 0);
        let folders = [Some("out"), Some("out/checkpoint-6").filter(|_| !extra.is_empty())];
        for out in folders.into_iter().flatten().map(|name| own.join(name)) {
            let text = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
            let json = |name: &str| serde_json::from_str::<serde_json::Value>(&text(name)).unwrap();
            let whole = std::fs::read_to_string(data("tokenizer.json")).unwrap();
            assert!(
                text("tokenizer.json") == whole && text("chat_template.jinja").starts_with("{{ messages")
            );
            assert!(!out.join("merges.txt").exists());
            assert_eq!(
                json("tokenizer_config.json"),
                serde_json::json!({"model_max_length": 99, "eos_token": "<|pad|>", "pad_token": "<|endoftext|>"})
            );
            assert_eq!(json("special_tokens_map.json")["eos_token"], "<|pad|>");
            // Answers still end where the model's own did.
            assert_eq!(
                json("generation_config.json"),
                serde_json::json!({"eos_token_id": [1, 7], "top_p": 0.5, "pad_token_id": 0})
            );
            if method == METHODS[0] {
                let config = json("config.json");
                assert_eq!((&config["eos_token_id"], &config["pad_token_id"]), (&1.into(), &0.into()));
            }
        }
    }
}

/// Nothing is changed in files that nobody chose otherwise.
#[test]
fn a_tokenizers_own_files_go_along_to_the_byte() {
    let dir = job(METHODS[1], "");
    std::fs::create_dir(dir.path().join("other")).unwrap();
    let files = [
        ("tokenizer_config.json", "{\"eos_token\":\n\"<|endoftext|>\"}"),
        ("chat_template.jinja", "{{ 1 }}"),
    ];
    std::fs::copy(data("tokenizer.json"), dir.path().join("other/tokenizer.json")).unwrap();
    files.iter().for_each(|(name, text)| std::fs::write(dir.path().join("other").join(name), text).unwrap());
    edit(&dir, &data("tokenizer.json"), "other");
    run(&dir, &TRAIN, 0);
    for (name, text) in files {
        assert_eq!(std::fs::read_to_string(dir.path().join("out").join(name)).unwrap(), text);
    }
}

/// Perplexity is that of the model: what a training adds to its loss is not in it.
#[test]
fn the_held_out_loss_is_the_cross_entropy_alone() {
    let dir = job("{type: full}", "");
    edit(&dir, "max_length: 128", "max_length: 128, validation_split: 0.01");
    edit(&dir, "learning_rate: 5e-3", "learning_rate: 0");
    let held_out = || {
        let text = run(&dir, &TRAIN, 0);
        text.lines().find(|l| l.contains("held-out loss")).unwrap().to_string()
    };
    let plain = held_out();
    edit(&dir, "learning_rate: 0", "learning_rate: 0, label_smoothing_factor: 0.2, z_loss: 0.01");
    assert_eq!(held_out(), plain);
}

#[test]
fn zeros_that_say_nothing_are_refused() {
    for name in ["save_steps", "save_total_limit", "eval_steps", "logging_steps"] {
        let dir = job(METHODS[0], &format!("{name}: 0\n"));
        let text = run(&dir, &TRAIN, 2);
        assert!(text.contains("it is 0") && text.contains(name), "{text}");
    }
    for extra in ["eval_steps: 2\n", "eval_on_start: true\n"] {
        let text = run(&job(METHODS[0], extra), &TRAIN, 2);
        assert!(text.contains("nothing is held out"), "{text}");
    }
    for rates in ["adam_beta2: 0.99999999", "adam_epsilon: 1e-46"] {
        let dir = job(METHODS[0], "");
        edit(&dir, "learning_rate: 5e-3", &format!("learning_rate: 5e-3, {rates}"));
        let text = run(&dir, &TRAIN, 2);
        assert!(text.contains("out of range") && text.contains(&rates[..10]), "{text}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let dir = job(METHODS[0], "");
    run(&dir, &TRAIN, 0);
    let path = dir.path().join("out/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    edit(&dir, "{config: config.json}", "{path: out}");
    edit(&dir, "output_dir: out", "output_dir: again");
    let told =
        |text: String| assert!(text.contains("of the weights is NaN") && text.contains("in "), "{text}");
    told(run(&dir, &TRAIN, 2));
    told(run(&dir, &["evaluate", "--model", "out", "--text", "one two three"], 2));
    told(stderr(chronicals().current_dir(&dir).args(["export", "out", "exported"]), 2));
    assert!(!Path::new(&dir.path().join("exported")).exists());
}
