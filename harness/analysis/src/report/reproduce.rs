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

Beside this report lie the scenario with every default filled in (`resolved.yaml`), the machine (`environment.json`), every event of every trial (`events/`), and the figures (`results.json`, `results.csv`). `chronibench report DIR` rebuilds the report from the events alone, to the last byte.
",
        resolved.scenario_sha256
    )
}

/// The words of `environment.json` behind the program's name, with the scenario as the repository has it and without places for output.
fn command(environment: &Value) -> Option<String> {
    let words: Option<Vec<&str>> =
        environment.get("command")?.as_array()?.iter().skip(1).map(Value::as_str).collect();
    let words = words?;
    // A word that would end the block of code is no option of anybody's.
    let torn = |w: &&str| w.contains("```") || w.contains(char::is_control);
    if !words.first().is_some_and(|first| COMMANDS.contains(first)) || words.iter().any(torn) {
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
}
