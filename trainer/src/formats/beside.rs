//! Files beside the weights: the tokenizer's with its chat template, and what generation goes by.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use chronicals_data::tokenizer::{TextTokenizer, TokenizerArgs};
use serde_json::{Map, Value, json};

use super::write;
use crate::error::Error;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";

/// Files beside the weights that tokenizers and generation need, as far as a model has them.
pub(super) const NAMES: [&str; 8] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
    GENERATION,
];

/// What a training leaves beside its weights, so that a model is used as it was trained: the tokenizer with the chat template and the
/// special tokens that were in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Name → text.
    files: BTreeMap<String, String>,
    /// Ids of the tokens that settings chose.
    eos: Option<u32>,
    pad: Option<u32>,
}

/// Those files in a folder, by name.
pub(super) fn read(folder: &Path) -> Result<BTreeMap<String, String>, Error> {
    let each = NAMES.into_iter().map(|name| Ok((name.to_string(), text_of(&folder.join(name))?)));
    let each: Vec<(String, Option<String>)> = each.collect::<Result<_, Error>>()?;
    Ok(each.into_iter().filter_map(|(name, text)| Some((name, text?))).collect())
}

fn text_of(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, &e)),
    }
}

impl Beside {
    /// Of a tokenizer, what was chosen in place of its own settings, and the folder of the model's config.
    ///
    /// # Errors
    /// A file cannot be read, or is no JSON.
    pub fn of(tokenizer: &TextTokenizer, chosen: &TokenizerArgs, model: &Path) -> Result<Self, Error> {
        let whole = |path: &PathBuf| std::fs::read_to_string(path).map_err(|e| Error::io(path, &e));
        let path = tokenizer.path().to_path_buf();
        let mut files = read(path.parent().unwrap_or(Path::new("")))?;
        // It may have a name of its own.
        files.insert(TOKENIZER.into(), whole(&path)?);
        // How a model generates is its own, wherever its tokenizer is.
        files.extend(text_of(&model.join(GENERATION))?.map(|text| (GENERATION.to_string(), text)));
        if let Some(path) = &chosen.chat_template_path {
            files.insert(CHAT_TEMPLATE.into(), whole(path)?);
        }
        let eos = chosen.eos_token.is_some().then(|| tokenizer.eos());
        let pad = chosen.pad_token.is_some().then(|| tokenizer.pad());
        let named = [("eos_token", eos), ("pad_token", pad)];
        let named = || named.iter().filter_map(|(role, token)| Some((*role, *token.as_ref()?)));
        if named().next().is_some() {
            files.entry(TOKENIZER_CONFIG.into()).or_insert_with(|| "{}".into());
        }
        let mut beside = Self { files, eos: eos.map(|t| t.id), pad: pad.map(|t| t.id) };
        let replaces = chosen.chat_template_path.is_some();
        beside.mend(TOKENIZER_CONFIG, |config| {
            config.extend(named().map(|(role, token)| (role.to_string(), json!(token.token))));
            // Programs that do not know the file would take it for the template.
            if replaces {
                config.remove("chat_template");
            }
        })?;
        beside.mend(SPECIAL_TOKENS, |map| {
            map.extend(named().map(|(role, token)| (role.to_string(), json!(token.token))));
        })?;
        let ids = beside.clone();
        beside.mend(GENERATION, |config| ids.name_ids(config))?;
        Ok(beside)
    }

    /// Changes a file, if it is there; one that says the same already stays as it is.
    fn mend(&mut self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), Error> {
        let Some(text) = self.files.get_mut(name) else { return Ok(()) };
        let before: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            Error::new(format!("no JSON object: {e}"), name)
                .hint("take the file anew from the model's repository")
        })?;
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            *text = format!("{:#}\n", Value::Object(after));
        }
        Ok(())
    }

    /// Names the chosen tokens in a model's config: an answer ends at the chosen token too.
    pub(super) fn name_ids(&self, config: &mut Map<String, Value>) {
        if let Some(eos) = self.eos {
            let mut all: Vec<Value> = match config.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.clone(),
                Some(id @ Value::Number(_)) => vec![id.clone()],
                _ => Vec::new(),
            };
            if !all.contains(&json!(eos)) {
                all.insert(0, json!(eos));
                let ids = if all.len() == 1 { all.remove(0) } else { Value::Array(all) };
                config.insert("eos_token_id".into(), ids);
            }
        }
        if let Some(pad) = self.pad {
            config.insert("pad_token_id".into(), json!(pad));
        }
    }

    /// Writes the files.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn write(&self, out: &Path) -> Result<(), Error> {
        self.files.iter().try_for_each(|(name, text)| write::text(&out.join(name), text))
    }
}
