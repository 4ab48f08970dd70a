//! The tokenizer of a GGUF file as `tokenizer.json`: byte-level BPE, as all supported families have it.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::Value;

/// Kinds of tokens (llama.cpp's `llama_token_type`): written by programs, and added by hand.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Words of Qwen 2 and later, and of Llama 3, which takes up to three digits at a time.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(pattern: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// Normaliser, splitter, and whether whole words are looked up before they are merged.
fn style(pre: &str) -> Option<(Json, Json, bool)> {
    let sequence = |parts: [Json; 2]| json!({"type": "Sequence", "pretokenizers": parts});
    match pre {
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            Some((Json::Null, sequence([digits, byte_level(true)]), false))
        }
        "qwen2" => Some((json!({"type": "NFC"}), sequence([split(WORDS[0]), byte_level(false)]), false)),
        "llama-bpe" => Some((Json::Null, sequence([split(WORDS[1]), byte_level(false)]), true)),
        "gpt-2" | "default" => Some((Json::Null, byte_level(true), false)),
        _ => None,
    }
}

/// Whether a text begins with the token of that name, as llama.cpp takes it: where the file does not say, Llama 3's texts do.
fn adds_bos(values: &BTreeMap<String, Value>) -> Option<bool> {
    match values.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(adds)) => Some(*adds),
        _ => {
            let pre = values.get("tokenizer.ggml.pre").and_then(Value::text);
            (pre == Some("llama-bpe")).then_some(true)
        }
    }
}

/// A special token of the file, `bos` and the like, by its id.
fn special<'a>(values: &'a BTreeMap<String, Value>, key: &str) -> Option<(u64, &'a str)> {
    let id = values.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::unsigned)?;
    let tokens = values.get("tokenizer.ggml.tokens").and_then(Value::array)?;
    Some((id, tokens.get(usize::try_from(id).ok()?)?.text()?))
}

/// What is put around a text: nothing, or a token in front, in the words of Llama 3's own file.
fn post_processor(values: &BTreeMap<String, Value>) -> Result<Json, String> {
    if adds_bos(values) != Some(true) {
        return Ok(byte_level(false));
    }
    let (id, bos) = special(values, "bos").ok_or("its texts begin with a token that it does not name")?;
    let begin = |side: u8| json!({"SpecialToken": {"id": bos, "type_id": side}});
    let text = |name: &str, side: u8| json!({"Sequence": {"id": name, "type_id": side}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [begin(0), text("A", 0)],
        "pair": [begin(0), text("A", 0), begin(1), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    });
    Ok(json!({"type": "Sequence", "processors": [byte_level(false), template]}))
}

/// `tokenizer.json`.
pub(super) fn make(values: &BTreeMap<String, Value>) -> Result<Json, String> {
    let of = |key: &str| values.get(&format!("tokenizer.ggml.{key}"));
    match of("model").and_then(Value::text) {
        Some("gpt2") => {}
        other => {
            return Err(format!("its tokenizer is '{}', not byte-level BPE", other.unwrap_or("left out")));
        }
    }
    let pre = of("pre").and_then(Value::text).unwrap_or("default");
    let (normalizer, pre_tokenizer, ignore_merges) = style(pre)
        .ok_or_else(|| format!("its tokenizer splits words as '{pre}', which is not known here"))?;
    let texts = |key: &str| {
        let list = of(key).and_then(Value::array).ok_or_else(|| format!("its tokenizer has no '{key}'"))?;
        let text = |v: &Value| v.text().map(String::from).ok_or_else(|| format!("'{key}' is not text"));
        list.iter().map(text).collect::<Result<Vec<String>, String>>()
    };
    let (tokens, merges) = (texts("tokens")?, texts("merges")?);
    let kinds: Vec<u64> = of("token_type")
        .and_then(Value::array)
        .map_or(Vec::new(), |a| a.iter().map(|v| v.unsigned().unwrap_or(0)).collect());
    let kind = |id: usize| kinds.get(id).copied().unwrap_or(1);
    let added: Vec<Json> = (0..tokens.len())
        .filter(|id| [CONTROL, USER_DEFINED].contains(&kind(*id)))
        .map(|id| {
            json!({
                "id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind(id) == CONTROL,
            })
        })
        .collect();
    let merges: Vec<Json> = merges
        .iter()
        .map(|m| {
            m.split_once(' ').map(|(a, b)| json!([a, b])).ok_or_else(|| format!("merge '{m}' has no space"))
        })
        .collect::<Result<_, _>>()?;
    let vocab: Map<String, Json> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), id.into())).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor(values)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    }))
}

/// `tokenizer_config.json`: special tokens and the chat template, whatever the kind of tokenizer.
pub(super) fn settings(values: &BTreeMap<String, Value>) -> Map<String, Json> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    for (name, key) in
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some((_, token)) = special(values, key) {
            config.insert(name.into(), token.into());
        }
    }
    if !config.contains_key("pad_token")
        && let Some(eos) = config.get("eos_token").cloned()
    {
        config.insert("pad_token".into(), eos);
    }
    if let Some(adds) = adds_bos(values) {
        config.insert("add_bos_token".into(), adds.into());
    }
    if let Some(template) = values.get("tokenizer.chat_template").and_then(Value::text) {
        config.insert("chat_template".into(), template.into());
    }
    config
}
