//! Generation against Transformers, against the forward pass without a cache, and as a command.

mod common;

use std::path::{Path, PathBuf};

use chronicals::{
    config::ModelConfig,
    generate::{Decoder, Limits, Sampler, Sampling, generate},
};
use common::{METHODS, chronicals, job, stderr};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

/// An adapter's folder, as PEFT leaves it.
fn adapter(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let weights = golden(name).join("adapter.safetensors");
    std::fs::copy(weights, dir.path().join("adapter_model.safetensors")).unwrap();
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let config = serde_json::json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets});
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    dir
}

fn decoder(name: &str, adapter: Option<&Path>, context: usize) -> Decoder {
    let config = ModelConfig::load(&golden(name).join("config.json")).unwrap();
    Decoder::open(&config, &golden(name), adapter, context).unwrap()
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    let text = std::fs::read_to_string(golden("generate.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let prompt = numbers(&all["prompt"]);
    for name in ["qwen2", "llama", "qwen3"] {
        let adapter = adapter(name);
        for (key, penalty, adapter) in
            [("greedy", 1.0, None), ("penalised", 1.3, None), ("adapted", 1.0, Some(adapter.path()))]
        {
            let expected = numbers(&all[name][key]);
            let how = Sampling { repetition_penalty: penalty, ..Sampling::default() };
            let mut streamed = Vec::new();
            let new = generate(
                &mut decoder(name, adapter, prompt.len() + expected.len() - 1),
                &prompt,
                &mut Sampler::new(how).unwrap(),
                &Limits { max_new_tokens: expected.len(), eos: vec![] },
                |id| {
                    streamed.push(id);
                    Ok(())
                },
            );
            assert_eq!(new.unwrap(), expected, "{name} {key}");
            assert_eq!(streamed, expected);
        }
    }
}

#[test]
fn logits_with_kept_keys_are_those_without() {
    // More than one piece of a prompt.
    let ids: Vec<u32> = (0..700u32).map(|i| i * i * 31 % 96).collect();
    for name in ["qwen2", "llama", "qwen3"] {
        let config = ModelConfig::load(&golden(name).join("config.json")).unwrap();
        let length = config.max_positions.min(ids.len());
        let mut kept = decoder(name, None, length);
        kept.read(&ids[..length - 3]).unwrap();
        for end in length - 2..=length {
            let one = kept.read(&ids[end - 1..end]).unwrap();
            let whole = decoder(name, None, end).read(&ids[..end]).unwrap();
            for (a, b) in one.iter().zip(&whole) {
                // Sums over hundreds of keys, in f32 and in another order.
                assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{name} at {end}: {a} {b}");
            }
        }
    }
}

#[test]
fn an_answer_ends_at_eos_and_within_its_context() {
    let all: Value =
        serde_json::from_str(&std::fs::read_to_string(golden("generate.json")).unwrap()).unwrap();
    let (prompt, greedy) = (numbers(&all["prompt"]), numbers(&all["llama"]["greedy"]));
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    let limits = Limits { max_new_tokens: 40, eos: vec![95, greedy[3]] };
    let new = generate(&mut decoder("llama", None, 60), &prompt, &mut sampler, &limits, |_| Ok(())).unwrap();
    assert_eq!(new, greedy[..3]);
    let mut small = decoder("llama", None, 10);
    for (ids, word) in [(&[][..], "at least one"), (&[1; 11], "context of 10"), (&[96], "vocabulary of 96")] {
        let error = small.read(ids).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn the_command_streams_what_a_trained_model_says() {
    let dir = job(METHODS[0], "");
    stderr(chronicals().current_dir(&dir).args(["train", "--config", "job.yaml"]), 0);
    let run = |more: &[&str]| {
        let mut command = chronicals();
        command.current_dir(&dir).args(["generate", "--model", "out"]).args(more);
        command.output().unwrap()
    };
    let text = |more: &[&str]| {
        let output = run(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let prompt = ["--max-new-tokens", "12", "--prompt", "Give three tips"];
    let greedy = text(&prompt);
    assert!(greedy.len() > 1 && greedy.ends_with('\n'), "{greedy:?}");
    assert_eq!(text(&prompt), greedy);
    let drawn =
        |seed| text(&[&prompt[..], &["--temperature", "1", "--top-k", "50", "--seed", seed]].concat());
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    let mut piped = chronicals();
    piped.current_dir(&dir).args(["generate", "--model", "out", "--max-new-tokens", "12"]);
    let piped = piped.write_stdin("Give three tips\n").output().unwrap();
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), greedy);
    for (more, word) in [
        (&["--prompt", "x", "--device", "cuda"][..], "--device cpu"),
        (&["--prompt", "x", "--top-p", "0.9"], "temperature"),
        (&["--prompt", "x", "--chat"], "chat template"),
        (&["--prompt", "x", "--max-new-tokens", "5000"], "positions"),
        (&["--prompt", ""], "empty"),
    ] {
        let output = run(more);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(word), "{word} in {error}");
    }
}
