//! From records to ids and masks, on a tokenizer whose every token is one byte.

mod common;

use std::fs;

use chronibench_protocol::TokenStore;
use chronicals_data::{
    cache::TokenCache,
    dataset::{self, DatasetArgs, Validation},
    records::{ReadArgs, Record, RecordError},
    template::{Loss, Rendered, Template},
    tokenize::{Overlong, TokenizeArgs, TokenizeError, TokenizeReport, tokenize, tokenize_file},
    tokenizer::{TextTokenizer, TokenizerArgs, TokenizerError},
};

const ARGS: TokenizeArgs = TokenizeArgs {
    template: Template::Alpaca,
    max_length: 1000,
    overlong: Overlong::Truncate,
    loss: Loss { completion_only: Some(true), assistant_only: false },
};

const EVERY: Loss = Loss { completion_only: Some(false), assistant_only: false };

fn alpaca(instruction: &str, output: &str) -> Record {
    Record::Instruction { instruction: instruction.into(), input: None, output: output.into() }
}

fn run(
    records: &[Record],
    tokenizer: &TextTokenizer,
    args: &TokenizeArgs,
) -> Result<(TokenStore, TokenizeReport), TokenizeError> {
    tokenize(records.iter().cloned().map(Ok), tokenizer, args)
}

fn prompt_bytes(instruction: &str) -> usize {
    match Template::Alpaca.render(&alpaca(instruction, "x"), None, ARGS.loss).unwrap() {
        Rendered::Apart { prompt, .. } => prompt.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_mask_covers_the_response_and_its_eos_exactly() {
    let raw = common::bytes(&["<|endoftext|>"]);
    let tokenizer = common::load(&raw);
    let (store, report) =
        run(&[alpaca("Größe?", "äb"), alpaca("", "### Response:\n")], &tokenizer, &ARGS).unwrap();
    assert_eq!(report, TokenizeReport { read: 2, samples: 2, ..Default::default() });
    for (sample, (instruction, response)) in
        [("Größe?", "äb"), ("", "### Response:\n")].into_iter().enumerate()
    {
        let (ids, mask) = store.sample(sample);
        let (prompt, response_len) = (prompt_bytes(instruction), response.len());
        assert_eq!(ids.len(), prompt + response_len + 1);
        let expected: Vec<u8> = (0..ids.len()).map(|i| u8::from(i >= prompt)).collect();
        assert_eq!(mask, expected);
        let said = raw.decode(&ids[prompt..ids.len() - 1], false).unwrap();
        assert_eq!(said, response);
        assert_eq!(ids.last(), Some(&common::id(&raw, "<|endoftext|>")));
    }
}

#[test]
fn without_completion_only_loss_every_token_is_learned() {
    let tokenizer = common::load(&common::bytes(&["</s>"]));
    let args = TokenizeArgs { loss: EVERY, ..ARGS };
    let (store, _) = run(&[alpaca("a", "b")], &tokenizer, &args).unwrap();
    assert!(store.loss_mask.iter().all(|&m| m == 1));
}

#[test]
fn a_bos_of_the_tokenizer_begins_the_sample_and_its_file_neither_cuts_nor_pads() {
    let raw = common::bytes_with_template();
    let tokenizer = common::load(&raw);
    assert_eq!(tokenizer.bos(), [common::id(&raw, "<s>")]);
    let text = |text: &str| Record::Text { text: text.into() };
    let args = TokenizeArgs { template: Template::Text, ..ARGS };
    let (store, _) = run(&[text("abcdefgh"), text("i")], &tokenizer, &args).unwrap();
    let bytes = |s: &str| s.chars().map(|c| common::id(&raw, &c.to_string())).collect::<Vec<_>>();
    let (bos, eos) = ([common::id(&raw, "<s>")], [common::id(&raw, "</s>")]);
    assert_eq!(store.sample(0).0, [&bos[..], &bytes("abcdefgh"), &eos].concat());
    assert_eq!(store.sample(1).0, [&bos[..], &bytes("i"), &eos].concat());
    assert_eq!(store.sample(1).1, [0, 1, 1]);
}

#[test]
fn overlong_samples_are_cut_or_refused_and_counted() {
    let raw = common::bytes(&["</s>"]);
    let tokenizer = common::load(&raw);
    let prompt = prompt_bytes("a");
    // One that fits to the last slot, one that is one token over, one whose prompt alone is too long, one empty.
    let records = [alpaca("a", "123"), alpaca("a", "1234"), alpaca("aaaaaaaaaa", "1"), alpaca("a", " \n")];
    let max_length = prompt as u32 + 4;
    let args = TokenizeArgs { max_length, ..ARGS };
    let (store, report) = run(&records, &tokenizer, &args).unwrap();
    let expected =
        TokenizeReport { read: 4, samples: 2, truncated: 1, refused: 0, empty: 1, without_target: 1 };
    assert_eq!(report, expected);
    assert_eq!(store.lengths(), [max_length as usize; 2]);
    let eos = common::id(&raw, "</s>");
    assert_eq!(store.sample(0).0.last(), Some(&eos));
    assert_eq!(store.sample(1).0.last(), Some(&common::id(&raw, "4")));

    let (store, report) =
        run(&records, &tokenizer, &TokenizeArgs { overlong: Overlong::Refuse, ..args }).unwrap();
    let expected =
        TokenizeReport { read: 4, samples: 1, truncated: 0, refused: 2, empty: 1, without_target: 0 };
    assert_eq!(report, expected);
    assert_eq!(store.len(), 1);
}

#[test]
fn wrapped_samples_are_the_same_tokens_in_pieces_of_one_length() {
    let tokenizer = common::load(&common::bytes(&["</s>"]));
    let records = [alpaca("ab", "cdef"), alpaca("", "ghi"), alpaca("jk", "l")];
    let (whole, _) = run(&records, &tokenizer, &ARGS).unwrap();
    for max_length in [1, 2, 16, 64] {
        let args = TokenizeArgs { max_length, overlong: Overlong::Wrapped, ..ARGS };
        let args = TokenizeArgs { loss: EVERY, ..args };
        let cut = run(&records, &tokenizer, &args);
        if max_length == 1 {
            // A token alone has no target.
            assert!(matches!(cut, Err(TokenizeError::NothingLeft { .. })));
            continue;
        }
        let (store, report) = cut.unwrap();
        let n = whole.input_ids.len() / max_length as usize;
        assert_eq!(store.lengths(), vec![max_length as usize; n]);
        assert_eq!(store.input_ids, whole.input_ids[..n * max_length as usize]);
        assert_eq!((report.read, report.samples, report.truncated), (3, n, 0));
    }
    let args = TokenizeArgs { max_length: 4, overlong: Overlong::Wrapped, ..ARGS };
    let (masked, _) = run(&records, &tokenizer, &args).unwrap();
    let n = masked.len();
    assert!(n < whole.input_ids.len() / 4, "pieces of prompts alone are left out");
    assert!((0..n).all(|s| masked.sample(s).1[1..].contains(&1)));
}

#[test]
fn nothing_left_is_an_error_that_says_why() {
    let tokenizer = common::load(&common::bytes(&["</s>"]));
    let args = TokenizeArgs { max_length: 5, overlong: Overlong::Refuse, ..ARGS };
    let e = run(&[alpaca("a", "b"), alpaca("a", "")], &tokenizer, &args).unwrap_err().to_string();
    assert!(
        e.contains("left out 1 over-long, 1 with an empty response") && e.contains("max_length (5)"),
        "{e}"
    );
    // Of what is held out it is said so.
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(dir.path().join(name), format!("{{\"text\": \"{text}\"}}\n").repeat(3)).unwrap();
        dir.path().join(name)
    };
    let (path, other) = (write("train.jsonl", "abc"), write("held-out.jsonl", "abcdefgh"));
    let tokenize = &TokenizeArgs { template: Template::Text, ..args };
    let read = &ReadArgs::default();
    let load = |validation| {
        let args = DatasetArgs { path: &path, read, tokenize, validation, seed: 0 };
        dataset::load(&args, &tokenizer, &TokenCache::at(None), &mut |_| {})
    };
    assert_eq!(load(Validation::Split(0.3)).unwrap().validation.unwrap().1.samples, 1);
    let e = load(Validation::Path(&other)).unwrap_err().to_string();
    for part in ["left to evaluate on of validation_path", "held-out.jsonl", "3 over-long", "max_length (5)"]
    {
        assert!(e.contains(part), "{part} in {e}");
    }
}

#[test]
fn order_survives_chunks_and_threads() {
    let raw = common::bytes(&["</s>"]);
    let tokenizer = common::load(&raw);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    let lines: Vec<String> = (0..1500).map(|i| format!("{{\"text\": \"{i}\"}}")).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    let args = TokenizeArgs { template: Template::Text, ..ARGS };
    let (store, report) = tokenize_file(&path, &ReadArgs::default(), &tokenizer, &args).unwrap();
    assert_eq!((report.read, report.samples, store.len()), (1500, 1500, 1500));
    for i in 0..1500 {
        assert_eq!(raw.decode(store.sample(i).0, true).unwrap(), i.to_string());
    }
}

#[test]
fn a_bad_line_behind_good_ones_stops_everything() {
    let tokenizer = common::load(&common::bytes(&["</s>"]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    fs::write(&path, "{\"text\": \"a\"}\n{\"text\": 1}\n").unwrap();
    let args = TokenizeArgs { template: Template::Text, ..ARGS };
    let e = tokenize_file(&path, &ReadArgs::default(), &tokenizer, &args).unwrap_err();
    assert!(
        matches!(e, TokenizeError::Records(RecordError::WrongType { ref at, .. }) if at.number() == 2),
        "{e}"
    );
    let e = tokenize_file(&path, &ReadArgs::default(), &tokenizer, &ARGS).unwrap_err();
    assert!(e.to_string().contains("choose template `text`"), "{e}");
}

#[test]
fn special_tokens_come_from_names_then_config_then_added_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let path = common::save(&common::bytes(&["<|im_end|>", "<|endoftext|>", "<pad>"]), dir.path());
    let with = |eos: Option<&str>, pad: Option<&str>| {
        let names = TokenizerArgs {
            eos_token: eos.map(Into::into),
            pad_token: pad.map(Into::into),
            ..Default::default()
        };
        TextTokenizer::load(&path, &names).map(|t| (t.eos().token.clone(), t.pad().token.clone()))
    };
    let pair = |eos: &str, pad: &str| (eos.to_string(), pad.to_string());
    assert_eq!(with(None, None).unwrap(), pair("<|endoftext|>", "<pad>"));
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"eos_token": {"content": "<|im_end|>", "special": true}, "pad_token": "<|endoftext|>", "bos_token": null}"#,
    )
    .unwrap();
    assert_eq!(with(None, None).unwrap(), pair("<|im_end|>", "<|endoftext|>"));
    assert_eq!(with(Some("<|endoftext|>"), None).unwrap(), pair("<|endoftext|>", "<|endoftext|>"));
    let e = with(None, Some("<none>")).unwrap_err();
    assert!(matches!(e, TokenizerError::NoSuchToken { role: "pad_token", .. }), "{e}");
    assert!(e.to_string().contains("\"<none>\", which the configuration names as pad_token"), "{e}");
    fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(matches!(with(None, None), Err(TokenizerError::Malformed { .. })));
}

/// What the engine gives a template is no setting.
#[test]
fn variables_of_the_engine_are_not_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = common::save(&common::bytes(&["</s>"]), dir.path());
    let load = |name: &str| {
        let chat_template_kwargs = serde_json::Map::from_iter([(name.to_string(), true.into())]);
        TextTokenizer::load(&path, &TokenizerArgs { chat_template_kwargs, ..Default::default() }).map(drop)
    };
    assert!(load("enable_thinking").is_ok());
    for name in ["messages", "tools", "documents", "add_generation_prompt"] {
        let e = load(name).unwrap_err().to_string();
        assert!(e.contains(&format!("chat_template_kwargs sets `{name}`")) && e.contains("remove it"), "{e}");
    }
}

#[test]
fn unusable_tokenizers_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &std::path::Path| match TextTokenizer::load(path, &TokenizerArgs::default()) {
        Ok(_) => panic!("{} is no usable tokenizer", path.display()),
        Err(e) => e,
    };
    let path = dir.path().join("tokenizer.json");
    assert!(matches!(load(&path), TokenizerError::Io { .. }));
    fs::write(&path, "{\"version\": \"1.0\"}").unwrap();
    assert!(matches!(load(&path), TokenizerError::Malformed { .. }));
    common::save(&common::bytes(&["<unusual>"]), dir.path());
    let e = load(&path).to_string();
    assert!(e.contains("(<unusual>); set eos_token"), "{e}");
}
