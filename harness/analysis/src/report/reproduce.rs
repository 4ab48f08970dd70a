//! The command that does a run again.

use chronibench_protocol::record::Resolved;
use serde_json::Value;

/// Sub-commands whose run can be begun again by their words.
const COMMANDS: [&str; 3] = ["run", "gate", "noise"];

/// Options with a value that say where a run goes, not what it is.
const PLACES: [&str; 6] = ["--out", "--resume", "--history", "--save-baseline", "--junit", "--comment"];

/// The command, and what lies beside the report.
pub(super) fn reproduce(resolved: &Resolved, environment: &Value) -> String {
    let (which, command) = match command(environment) {
        Some(words) => (" with the command that this run was begun with", words),
        // A record that does not say how it was begun.
        None => ("", format!("run scenarios/{}.yaml", resolved.name)),
    };
    format!(
        "## Reproduce

Run the scenario file whose SHA-256 is `{}`{which}:

```
cargo run --release -p chronibench -- {command}
```
{}
Beside this report lie the scenario with every default filled in (`resolved.yaml`), the machine (`environment.json`), every event of every trial (`events/`), and the figures (`results.json`, `results.csv`). `chronibench report DIR` rebuilds the report from the events alone, to the last byte.
",
        resolved.scenario_sha256,
        source(environment).unwrap_or_default()
    )
}

/// How to get the scenario as it was: it may have changed in the repository since.
fn source(environment: &Value) -> Option<String> {
    let git = environment.pointer("/program/git")?;
    let revision = git.get("revision")?.as_str().filter(|r| r.chars().all(|c| c.is_ascii_hexdigit()))?;
    let path = path(environment)?;
    let dirty = git.get("dirty").and_then(Value::as_bool).unwrap_or(false);
    let changed = if dirty { ", unless it is among the changes that the checkout had then" } else { "" };
    Some(format!(
        "\nThe repository may have another file under that name by now. The one of the revision that ran{changed}:\n\n```\ngit show {}\n```\n",
        quoted(&format!("{revision}:{path}"))
    ))
}

/// Where the repository has the scenario: as the record says, or else as the command named it from the repository's root.
fn path(environment: &Value) -> Option<&str> {
    let known = environment.pointer("/scenario/in_repository").and_then(Value::as_str);
    let words = environment.get("command").and_then(Value::as_array).into_iter().flatten();
    let named = || {
        let relative = |w: &&str| w.starts_with("scenarios/") && w.ends_with(".yaml");
        words.filter_map(Value::as_str).find(relative)
    };
    known.or_else(named).filter(|p| !is_torn(p))
}

/// A word that would end the block of code is no option of anybody's.
fn is_torn(word: &str) -> bool {
    word.contains("```") || word.contains(char::is_control)
}

/// The words of `environment.json` behind the program's name, with the scenario as the repository has it and without places for output.
fn command(environment: &Value) -> Option<String> {
    let words: Option<Vec<&str>> =
        environment.get("command")?.as_array()?.iter().skip(1).map(Value::as_str).collect();
    let words = words?;
    if !words.first().is_some_and(|first| COMMANDS.contains(first)) || words.iter().any(|w| is_torn(w)) {
        return None;
    }
    let scenario = |key: &str| environment.pointer(&format!("/scenario/{key}")).and_then(Value::as_str);
    let (given, known) = (scenario("given"), scenario("in_repository"));
    let mut kept = Vec::new();
    let mut rest = words.into_iter();
    while let Some(word) = rest.next() {
        if PLACES.contains(&word) {
            rest.next();
        } else if word != "--keep-inputs"
            && !PLACES.iter().any(|p| word.strip_prefix(p).is_some_and(|r| r.starts_with('=')))
        {
            kept.push(quoted(known.filter(|_| given == Some(word)).unwrap_or(word)));
        }
    }
    Some(kept.join(" "))
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+~".contains(c);
    match !word.is_empty() && !word.starts_with('~') && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_has_what_was_asked_and_no_places() {
        let words = [
            "/opt/chronibench",
            "run",
            "/home/me/c/scenarios/h200.yaml",
            "-k",
            "full/16x2048",
            "--arm",
            "unsloth@none,full",
            "--set",
            "audit={steps: 0}",
            "--trials",
            "1",
            "--out",
            "/tmp/x",
            "--history=h",
            "--keep-inputs",
        ];
        let scenario = json!({ "given": words[2], "in_repository": "scenarios/h200.yaml" });
        assert_eq!(
            command(&json!({ "command": words, "scenario": scenario })).unwrap(),
            "run scenarios/h200.yaml -k full/16x2048 --arm unsloth@none,full --set 'audit={steps: 0}' --trials 1"
        );
        assert_eq!(command(&json!({ "command": ["c", "run", "it's.yaml"] })).unwrap(), "run 'it'\\''s.yaml'");
        for unknown in
            [json!({}), json!({ "command": ["c", "test"] }), json!({ "command": ["c", "run", "```\n"] })]
        {
            assert_eq!(command(&unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_scenario_as_it_was_is_named_where_the_record_knows_it() {
        let git = |dirty: bool| json!({ "git": { "revision": "0123abcd", "dirty": dirty } });
        let known = json!({ "program": git(false), "scenario": { "in_repository": "scenarios/a.yaml" } });
        let text = source(&known).unwrap();
        assert!(
            text.contains("\ngit show 0123abcd:scenarios/a.yaml\n") && !text.contains("changes"),
            "{text}"
        );
        let older = json!({ "program": git(true), "command": ["c", "run", "scenarios/b.yaml", "-k", "x"] });
        let text = source(&older).unwrap();
        assert!(text.contains("git show 0123abcd:scenarios/b.yaml") && text.contains("changes"), "{text}");
        let elsewhere =
            json!({ "program": git(false), "command": ["c", "run", "/home/me/scenarios/b.yaml"] });
        let torn = json!({ "program": git(false), "scenario": { "in_repository": "a```\n.yaml" } });
        for unknown in [json!({ "command": ["c", "run", "scenarios/b.yaml"] }), elsewhere, torn] {
            assert_eq!(source(&unknown), None, "{unknown}");
        }
    }
}
