//! What every sub-command says of itself, and of the mistakes that are made most: snapshots, to be blessed with `INSTA_UPDATE=always`.

mod common;

use std::path::Path;

use common::{chronicals, data, job};

/// Exit code, and standard output with standard error. What memory is free now is nobody's mistake.
fn run(dir: &Path, args: &[&str]) -> (i32, String) {
    let mut command = chronicals();
    command.args(args).current_dir(dir).env_remove("COLUMNS").env("HF_HOME", dir.join("hub"));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = (text(&output.stdout) + &text(&output.stderr)).replace(&dir.display().to_string(), "HERE");
    let lines = said.split_inclusive('\n').filter(|line| !line.starts_with("recompute: none ("));
    (output.status.code().unwrap_or(-1), lines.collect())
}

/// The sub-commands that a help text lists.
fn listed(help: &str) -> Vec<String> {
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = commands.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_string).collect()
}

#[test]
fn every_sub_command_has_help() {
    let dir = tempfile::tempdir().unwrap();
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    // Those that one lists are looked at after it.
    while let Some(words) = all.get(seen).cloned() {
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        args.push("--help");
        let (code, text) = run(dir.path(), &args);
        assert_eq!(code, 0, "{words:?}: {text}");
        let fits = |line: &str| line.chars().count() <= 110;
        assert!(text.lines().all(fits), "{words:?} has a line that a terminal breaks: {text}");
        all.extend(listed(&text).into_iter().map(|name| [words.clone(), vec![name]].concat()));
        insta::assert_snapshot!(format!("help {}", words.join(" ")).trim().replace(' ', "_"), text);
        seen += 1;
    }
    assert!(seen >= 13, "{all:?}");
}

#[test]
fn mistakes_say_what_where_and_how_to_mend_them() {
    let dir = job("{type: full}", "");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let mut yaml = std::fs::read_to_string(dir.path().join("job.yaml")).unwrap();
    // Messages show lines of the file, cut where they are long: they are the same wherever the data set lies.
    for name in ["train.jsonl", "tokenizer.json"] {
        std::fs::copy(data(name), dir.path().join(name)).unwrap();
        yaml = yaml.replace(&data(name), name);
    }
    write("typo.yaml", &yaml.replace("max_steps", "max_step"));
    write("value.yaml", &yaml.replace("type: full", "type: ful"));
    write("rate.yaml", &yaml.replace("5e-3", "-1"));
    write("device.yaml", &format!("{yaml}device: gpu\n"));
    write("kernels.yaml", &format!("{yaml}kernels: {{nrom: fused}}\n"));
    write("text.gguf", "not a model");
    write("empty.jsonl", "");
    let mistakes: [(&str, i32, &[&str]); 24] = [
        ("no_command", 2, &[]),
        ("unknown_command", 2, &["trian", "--config", "job.yaml"]),
        ("unknown_flag", 2, &["train", "--confg", "job.yaml"]),
        ("train_without_a_file", 2, &["train"]),
        ("train_of_no_file", 2, &["train", "--config", "absent.yaml"]),
        ("train_with_an_unknown_setting", 2, &["train", "--config", "typo.yaml"]),
        ("train_with_an_unknown_value", 2, &["train", "--config", "value.yaml"]),
        ("train_with_a_rate_below_0", 2, &["train", "--config", "rate.yaml"]),
        ("train_on_an_unknown_device", 2, &["train", "--config", "device.yaml"]),
        ("train_with_an_unknown_kernel", 2, &["train", "--config", "kernels.yaml"]),
        ("init_without_a_model", 2, &["init", "--data", "data.jsonl"]),
        ("init_of_no_model", 2, &["init", "--model", "absent", "--data", "empty.jsonl", "--gpu", "24GB"]),
        ("data_show_without_a_tokenizer", 2, &["data", "show", "train.jsonl"]),
        ("data_show_of_no_file", 2, &["data", "show", "absent.jsonl", "--tokenizer", "tokenizer.json"]),
        ("data_stats_of_nothing", 2, &["data", "stats", "empty.jsonl", "--tokenizer", "tokenizer.json"]),
        ("evaluate_of_no_model", 2, &["evaluate", "--model", "absent", "--text", "x"]),
        ("evaluate_of_nothing", 2, &["evaluate", "--model", "absent"]),
        ("generate_of_no_model", 2, &["generate", "--model", "absent", "--prompt", "x"]),
        ("import_of_another_file", 2, &["import", "text.gguf", "model"]),
        ("import_of_nothing", 2, &["import", "absent.gguf", "model"]),
        ("export_of_no_training", 2, &["export", "absent", "model"]),
        ("merge_without_an_adapter", 2, &["merge", "--model", "absent", "merged"]),
        ("memory_of_nothing", 2, &["memory"]),
        ("memory_of_parameters_with_rows", 2, &["memory", "--params", "7e9", "--rows", "8"]),
    ];
    for (name, code, args) in mistakes {
        let (seen, text) = run(dir.path(), args);
        insta::assert_snapshot!(
            format!("mistake_{name}"),
            format!("$ chronicals {}\n[exit {seen}]\n{text}", args.join(" "))
        );
        assert_eq!(seen, code, "{name}: {text}");
    }
}
