//! A Hugging Face `tokenizer.json` and its special tokens.

use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

/// End-of-sequence tokens in the order in which they are looked for.
const EOS_TOKENS: [&str; 7] =
    ["<|endoftext|>", "</s>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "<|end|>"];

/// Padding tokens in the order in which they are looked for.
const PAD_TOKENS: [&str; 4] = ["<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"];

/// A token and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text.
    pub token: String,
    /// Its id.
    pub id: u32,
}

/// Special tokens chosen by name; `None` leaves the choice to the tokenizer's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokenNames {
    /// End of sequence.
    pub eos_token: Option<String>,
    /// Padding.
    pub pad_token: Option<String>,
}

/// A tokenizer ready to make samples.
///
/// Truncation and padding that `tokenizer.json` may carry are turned off: both are decided here, and counted.
/// Special tokens written out in a text become those tokens, as in Hugging Face.
pub struct TextTokenizer {
    inner: Tokenizer,
    bos: Vec<u32>,
    eos: SpecialToken,
    pad: SpecialToken,
}

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or cannot be read.
    #[error("tokenizer {path}: {source}; check the path and its permissions")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("tokenizer {path}: {what}; take the file anew from the model's repository")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A special token that the vocabulary does not have.
    #[error(
        "tokenizer {path} has no token {token:?}, which {chosen_by} names as {role}; name one that it has"
    )]
    NoSuchToken {
        /// The tokenizer.
        path: String,
        /// The token.
        token: String,
        /// `eos_token` or `pad_token`.
        role: &'static str,
        /// Who names it.
        chosen_by: &'static str,
    },
    /// No end-of-sequence token was named or found.
    #[error(
        "tokenizer {path} has no known end-of-sequence token among its added tokens ({added}); set eos_token"
    )]
    NoEos {
        /// The tokenizer.
        path: String,
        /// Its added tokens.
        added: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer cannot encode a text: {what}; check that tokenizer.json is complete")]
    Encode {
        /// What it says.
        what: String,
    },
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and settles its special tokens.
    ///
    /// Each is taken from `names`, else from `tokenizer_config.json` in the same folder, else it is the first well-known
    /// one among the tokenizer's added tokens. Padding falls back on the end of sequence, which does no harm: padding is
    /// kept out of the loss by position, never by id.
    ///
    /// # Errors
    /// When a file cannot be read, a named token does not exist, or no end of sequence is found.
    pub fn load(path: &Path, names: &SpecialTokenNames) -> Result<Self, TokenizerError> {
        let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
        let mut inner = Tokenizer::from_bytes(bytes).map_err(|e| malformed(path, e.to_string()))?;
        inner.with_truncation(None).map_err(|e| malformed(path, e.to_string()))?;
        inner.with_padding(None);
        let config = Config::beside(path)?;
        let find = |role, name: &Option<String>, known: &[&str]| {
            let chosen = name.clone().map(|token| (token, "the configuration"));
            let chosen = chosen.or_else(|| Some((config.token(role)?, "tokenizer_config.json")));
            special_token(&inner, path, role, chosen, known)
        };
        let eos = find("eos_token", &names.eos_token, &EOS_TOKENS)?.ok_or_else(|| TokenizerError::NoEos {
            path: path.display().to_string(),
            added: added_tokens(&inner),
        })?;
        let pad = find("pad_token", &names.pad_token, &PAD_TOKENS)?.unwrap_or_else(|| eos.clone());
        let bos = leading_special_tokens(&inner)?;
        Ok(Self { inner, bos, eos, pad })
    }

    /// Ids that begin every sample: those that the tokenizer puts in front of a text, usually none or one.
    pub fn bos(&self) -> &[u32] {
        &self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> &SpecialToken {
        &self.eos
    }

    /// Padding.
    pub fn pad(&self) -> &SpecialToken {
        &self.pad
    }

    /// Ids of each text, in order, without special tokens added; all threads.
    ///
    /// # Errors
    /// When the tokenizer cannot encode one of them.
    pub fn encode(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let encodings = self.inner.encode_batch_fast(texts, false).map_err(|e| encode(&e))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }
}

/// `tokenizer_config.json`, of which only the names of special tokens are read.
struct Config(Value);

impl Config {
    fn beside(tokenizer: &Path) -> Result<Self, TokenizerError> {
        let path = tokenizer.with_file_name("tokenizer_config.json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Self).map_err(|e| malformed(&path, e.to_string()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self(Value::Null)),
            Err(source) => Err(io(&path, source)),
        }
    }

    /// A special token is written as its text or as an object with its `content`.
    fn token(&self, role: &str) -> Option<String> {
        let value = self.0.get(role)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(String::from)
    }
}

fn special_token(
    tokenizer: &Tokenizer,
    path: &Path,
    role: &'static str,
    chosen: Option<(String, &'static str)>,
    known: &[&str],
) -> Result<Option<SpecialToken>, TokenizerError> {
    if let Some((token, chosen_by)) = chosen {
        return match tokenizer.token_to_id(&token) {
            Some(id) => Ok(Some(SpecialToken { token, id })),
            None => {
                Err(TokenizerError::NoSuchToken { path: path.display().to_string(), token, role, chosen_by })
            }
        };
    }
    let added = tokenizer.get_added_tokens_decoder();
    let id_of = |name: &&str| {
        added
            .iter()
            .find(|(_, added)| added.content == *name)
            .map(|(&id, added)| SpecialToken { token: added.content.clone(), id })
    };
    Ok(known.iter().find_map(id_of))
}

/// What the tokenizer's post-processor puts in front of a text. What it puts behind is left out, because a sample ends
/// with its own end of sequence.
fn leading_special_tokens(tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    let ids = |special| Ok(tokenizer.encode_fast("a", special).map_err(|e| encode(&e))?.get_ids().to_vec());
    let (with, without) = (ids(true)?, ids(false)?);
    let start = (0..=with.len().saturating_sub(without.len())).find(|&i| with[i..].starts_with(&without));
    Ok(with[..start.unwrap_or(0)].to_vec())
}

fn added_tokens(tokenizer: &Tokenizer) -> String {
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_by_key(|&(id, _)| id);
    let names: Vec<_> = added.into_iter().map(|(_, token)| token.content).collect();
    if names.is_empty() { "none".into() } else { names.join(" ") }
}

fn io(path: &Path, source: std::io::Error) -> TokenizerError {
    TokenizerError::Io { path: path.display().to_string(), source }
}

fn malformed(path: &Path, what: String) -> TokenizerError {
    TokenizerError::Malformed { path: path.display().to_string(), what }
}

fn encode(e: &tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode { what: e.to_string() }
}
