//! Where a model keeps its chat template.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ChatError;

/// The text of the template beside a tokenizer and the name of its place: `chat_template.jinja`, else what `config`
/// (`tokenizer_config.json`) says; `None` where there is neither.
///
/// # Errors
/// The file is there and cannot be read.
pub fn find(folder: &Path, config: &Value) -> Result<Option<(String, String)>, ChatError> {
    let file: PathBuf = folder.join("chat_template.jinja");
    let name = file.display().to_string();
    match std::fs::read_to_string(&file) {
        Ok(text) => return Ok(Some((text, name))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(ChatError::Io { path: name, what: e.to_string() }),
    }
    let name = folder.join("tokenizer_config.json").display().to_string();
    Ok(named(config.get("chat_template")).map(|text| (text, name)))
}

/// A template, or the one called `default` among several.
fn named(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let default = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            Some(default.or(list.first())?.get("template")?.as_str()?.to_string())
        }
        _ => None,
    }
}
