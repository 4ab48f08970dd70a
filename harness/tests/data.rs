//! Data of a scenario: whatever a job can read, and the same tokens.

mod common;

use std::path::Path;

use chronibench_protocol::TokenStore;
use chronicals::job::Job;
use common::{HEAD, HONEST, chronibench, folder, scenario};

const CHAT: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] \
                    {% if m.role == 'assistant' %}{% generation %}{{ m.content }} {{ eos_token }}{% endgeneration %}\
                    {% else %}{{ m.content }} {{ mark }}{% endif %}{% endfor %}";

const SETTINGS: &str = "format: sharegpt, columns: { messages: turns }, template: chat, chat_template_path: chat.jinja, \
                        chat_template_kwargs: { mark: '##' }, assistant_only_loss: true, max_length: 64";

fn with_conversations(dir: &Path) {
    let line = |i: usize| {
        format!(
            "{{\"turns\": [{{\"from\": \"human\", \"value\": \"Count to {i}\"}}, {{\"from\": \"gpt\", \"value\": \
             \"{}\"}}]}}\n",
            "one more ".repeat(1 + i % 5)
        )
    };
    std::fs::write(dir.join("chat.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
    std::fs::write(dir.join("chat.jinja"), CHAT).unwrap();
}

/// Exit code and output of a run of the scenario with another line of a section, into `out`.
fn run(dir: &Path, section: &str, line: &str, out: &str) -> (i32, String) {
    let text = format!("{HEAD}{HONEST}");
    let before = text.lines().find(|line| line.starts_with(section)).unwrap();
    let file = scenario(dir, &text.replace(before, &format!("{section} {{ {line} }}")));
    let args = ["--trials", "1", "--keep-inputs", "--out", out];
    let ran = chronibench().arg("run").arg(file).args(args).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ran.status.code().unwrap_or(-1), text(&ran.stdout) + &text(&ran.stderr))
}

#[test]
fn conversations_become_the_same_tokens_as_in_a_job() {
    let dir = folder();
    let dir = dir.path();
    with_conversations(dir);
    let data = format!("path: chat.jsonl, tokenizer: tokenizer.json, {SETTINGS}");
    let (code, output) = run(dir, "data:", &data, "out");
    assert_eq!(code, 0, "{output}");
    let tokens = TokenStore::load(&dir.join("out/inputs/tokens.safetensors")).unwrap();
    assert_eq!(tokens.len(), 40);
    let learned = tokens.loss_mask.iter().filter(|&&m| m == 1).count();
    assert!(learned > 40 && learned < tokens.loss_mask.len() / 2, "{learned}");

    let job = format!(
        "model: {{ config: config.json }}\ndata: {{ {data}, cache: false }}\nbatch: {{ packing: bfd, \
         per_device_train_batch_size: 2 }}\nmax_steps: 1\noutput_dir: trained\n"
    );
    std::fs::write(dir.join("job.yaml"), job).unwrap();
    let inputs = Job::load(&dir.join("job.yaml")).unwrap().inputs().unwrap();
    assert_eq!(inputs.batches.tokens(), &tokens);

    let report = std::fs::read_to_string(dir.join("out/report.md")).unwrap();
    assert!(
        report.contains("template `chat`") && report.contains("loss on the assistant's turns"),
        "{report}"
    );
    let resolved = std::fs::read_to_string(dir.join("out/resolved.yaml")).unwrap();
    for setting in ["format: sharegpt", "messages: turns", "mark: \"##\"", "chat_template_path: chat.jinja"] {
        assert!(resolved.contains(setting), "{setting}\n{resolved}");
    }
}

#[test]
fn data_that_does_not_suit_its_settings_is_told_before_any_trial() {
    let dir = folder();
    let dir = dir.path();
    with_conversations(dir);
    let cases = [
        (SETTINGS.replace("messages: turns", "messages: turn"), "\"turn\" is missing"),
        (SETTINGS.replace("template: chat", "template: alpaca"), "needs instruction and output"),
        (
            SETTINGS.replace("assistant_only_loss: true", "completion_only_loss: true"),
            "needs records with a prompt",
        ),
        (SETTINGS.replace(", chat_template_path: chat.jinja", ""), "has no chat template"),
    ];
    for (settings, told) in cases {
        let (code, output) =
            run(dir, "data:", &format!("path: chat.jsonl, tokenizer: tokenizer.json, {settings}"), "out");
        assert!(
            code == 2 && output.contains(told) && output.contains("mend:"),
            "{settings}: {code} {output}"
        );
        let trials = std::fs::read_dir(dir.join("out/events")).map_or(0, Iterator::count);
        assert_eq!(trials, 0, "{settings}");
        let _ = std::fs::remove_dir_all(dir.join("out"));
    }
}

#[test]
fn a_run_starts_from_weights_that_there_are() {
    let dir = folder();
    let dir = dir.path();
    let start = |out| run(dir, "model:", "config: config.json, weights: model, init_seed: 9", out);
    let missing = start("missing");
    assert!(missing.0 == 5 && missing.1.contains("weights 'model' cannot be read"), "{}", missing.1);
    std::fs::create_dir(dir.join("model")).unwrap();
    let weights = dir.join("model/model.safetensors");
    chronicals::init::write_initial_weights(&dir.join("config.json"), 7, true, &weights).unwrap();
    let (code, output) = start("out");
    assert_eq!(code, 0, "{output}");
    let given = std::fs::read(&weights).unwrap();
    assert_eq!(std::fs::read(dir.join("out/inputs/init.safetensors")).unwrap(), given);
    let hash = chronibench_protocol::digest::sha256_hex(&given);
    let resolved = std::fs::read_to_string(dir.join("out/resolved.yaml")).unwrap();
    assert!(resolved.contains(&hash), "{resolved}");
    let report = std::fs::read_to_string(dir.join("out/report.md")).unwrap();
    assert!(report.contains(&format!("starting weights of `model` (SHA-256 {})", &hash[..12])), "{report}");

    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let larger = config.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
    assert_ne!(larger, config);
    std::fs::write(dir.join("config.json"), larger).unwrap();
    let wrong = start("wrong");
    assert!(wrong.0 == 2 && wrong.1.contains("layers.1."), "{} {}", wrong.0, wrong.1);
}
