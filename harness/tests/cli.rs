//! What every sub-command says of itself, and of the mistakes that are made most: snapshots, to be blessed with `INSTA_UPDATE=always`.

mod common;

use std::path::Path;

use chronibench::Cli;
use clap::CommandFactory;
use common::{HEAD, HONEST, chronibench, folder, scenario};

/// Every visible command below `command`, by its words.
fn commands(command: &clap::Command, words: &[String], found: &mut Vec<Vec<String>>) {
    found.push(words.to_vec());
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help") {
        let words = [words, &[sub.get_name().to_string()]].concat();
        commands(sub, &words, found);
    }
}

fn run(dir: &Path, args: &[&str]) -> (i32, String) {
    let mut command = chronibench();
    command.args(args).current_dir(dir).env_remove("COLUMNS").env("XDG_CACHE_HOME", dir.join("cache"));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let here = dir.display().to_string();
    let said = (text(&output.stdout) + &text(&output.stderr)).replace(&here, "HERE");
    (output.status.code().unwrap_or(-1), said)
}

#[test]
fn every_sub_command_has_help_with_examples() {
    let mut all = Vec::new();
    commands(&Cli::command(), &[], &mut all);
    assert!(all.len() >= 25, "{all:?}");
    let dir = tempfile::tempdir().unwrap();
    for words in all {
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        args.push("--help");
        let (code, text) = run(dir.path(), &args);
        assert_eq!(code, 0, "{words:?}: {text}");
        let lines = text.lines().all(|l| l.chars().count() <= 110);
        assert!(lines, "{words:?} has a line that a terminal breaks: {text}");
        insta::assert_snapshot!(format!("help {}", words.join(" ")).trim().replace(' ', "_"), text);
    }
}

#[test]
fn mistakes_say_what_where_and_how_to_mend_them() {
    let dir = folder();
    scenario(dir.path(), &format!("{HEAD}{HONEST}"));
    std::fs::write(dir.path().join("wrong.yaml"), "schema: chronibench.scenario/1\nnam: x\n").unwrap();
    let ran = run(dir.path(), &["run", "scenario.yaml", "--out", "done", "--trials", "1"]);
    assert_eq!(ran.0, 0, "{}", ran.1);
    let mistakes: [(&str, i32, &[&str]); 27] = [
        ("no_command", 2, &[]),
        ("unknown_command", 2, &["rnu", "scenario.yaml"]),
        ("run_without_a_file", 2, &["run"]),
        ("run_of_no_file", 5, &["run", "absent.yaml"]),
        ("run_of_a_wrong_scenario", 2, &["run", "wrong.yaml"]),
        ("run_over_a_run", 2, &["run", "scenario.yaml", "--out", "done"]),
        ("run_of_no_case", 2, &["run", "scenario.yaml", "-k", "nothing"]),
        ("run_with_a_wrong_change", 2, &["run", "scenario.yaml", "--set", "measure.timed_step=4"]),
        ("resume_of_nothing", 2, &["run", "scenario.yaml", "--resume", "absent"]),
        ("resume_of_another_scenario", 2, &["run", "scenario.yaml", "--resume", "done", "--trials", "2"]),
        ("resume_and_out", 2, &["run", "scenario.yaml", "--resume", "done", "--out", "more"]),
        ("baseline_of_a_wrong_name", 2, &["run", "scenario.yaml", "--save-baseline", "a/b"]),
        ("plan_of_an_unknown_arm", 2, &["plan", "scenario.yaml", "--arm", "stedy"]),
        ("report_of_no_run", 5, &["report", "."]),
        ("audit_of_no_run", 5, &["audit", "."]),
        ("verify_of_no_run", 5, &["verify", "."]),
        ("join_of_one_run", 2, &["join", "done", "--anchor", "steady", "--out", "joined"]),
        ("compare_of_a_run_with_itself", 2, &["compare", "done", "done"]),
        ("compare_of_no_case", 2, &["compare", "done::absent", "done::steady/full/on"]),
        ("history_of_nothing", 2, &["history", "show"]),
        ("publish_of_nothing", 2, &["publish"]),
        ("publish_under_a_wrong_name", 2, &["publish", "done", "--name", "a/b"]),
        ("claims_of_no_file", 5, &["claims", "check", "absent.yaml"]),
        ("kernel_of_no_operation", 2, &["kernel", "--op", "nothing"]),
        ("env_of_an_unknown_rival", 2, &["env", "list", "unslot"]),
        ("gate_without_a_baseline", 2, &["gate", "scenario.yaml"]),
        ("gate_with_a_wrong_share", 2, &["gate", "scenario.yaml", "--baseline", "x", "--alpha", "2"]),
    ];
    for (name, code, args) in mistakes {
        let (seen, text) = run(dir.path(), args);
        assert_eq!(seen, code, "{name}: {text}");
        insta::assert_snapshot!(
            format!("mistake_{name}"),
            format!("$ chronibench {}\n[exit {seen}]\n{text}", args.join(" "))
        );
    }
}
