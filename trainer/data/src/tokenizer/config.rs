//! `tokenizer_config.json`: special tokens and chat template.

use std::path::Path;

use serde_json::{Map, Value};

use super::{TokenizerError, io, malformed};

/// Special tokens that Transformers knows by role, and hands to chat templates.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

pub(super) struct Config(Value);

impl Config {
    /// The file beside a tokenizer; special tokens that it lacks come from `special_tokens_map.json`, as older models have it.
    pub fn beside(tokenizer: &Path) -> Result<Self, TokenizerError> {
        let mut config = read(&tokenizer.with_file_name("tokenizer_config.json"))?;
        let map = read(&tokenizer.with_file_name("special_tokens_map.json"))?;
        for role in ROLES {
            if !config.contains_key(role)
                && let Some(token) = map.get(role)
            {
                config.insert(role.into(), token.clone());
            }
        }
        Ok(Self(Value::Object(config)))
    }

    pub fn value(&self) -> &Value {
        &self.0
    }

    /// A special token is written as its text or as an object with its `content`.
    pub fn token(&self, role: &str) -> Option<String> {
        text(self.0.get(role)?)
    }

    /// Every special token by its role.
    pub fn special_tokens(&self) -> Map<String, Value> {
        let mut tokens: Map<String, Value> =
            ROLES.iter().filter_map(|&role| Some((role.into(), self.token(role)?.into()))).collect();
        if let Some(Value::Array(more)) = self.0.get("additional_special_tokens") {
            let more: Vec<String> = more.iter().filter_map(text).collect();
            tokens.insert("additional_special_tokens".into(), more.into());
        }
        tokens
    }
}

fn text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(String::from)
}

fn read(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| malformed(path, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(source) => Err(io(path, source)),
    }
}
