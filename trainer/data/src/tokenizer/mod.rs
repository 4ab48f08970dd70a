//! A Hugging Face `tokenizer.json`, its special tokens and its chat template.

mod config;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::chat::{self, ChatError, ChatTemplate};
use config::Config;

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

/// What is chosen; `None` leaves the choice to the tokenizer's own files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerArgs {
    /// End of sequence.
    pub eos_token: Option<String>,
    /// Padding.
    pub pad_token: Option<String>,
    /// A Jinja file in place of the tokenizer's own chat template.
    pub chat_template_path: Option<PathBuf>,
    /// Variables that the chat template reads, e.g. `enable_thinking`.
    pub chat_template_kwargs: Map<String, Value>,
}

/// Ids of a text, and the bytes of the text that each is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Ids.
    pub ids: Vec<u32>,
    /// First byte and the byte behind the last, for every id. Ids of a character that is several share its bytes.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer ready to make samples.
///
/// Truncation and padding that `tokenizer.json` may carry are turned off: both are decided here, and counted.
/// Special tokens written out in a text become those tokens, as in Hugging Face.
pub struct TextTokenizer {
    inner: Tokenizer,
    path: PathBuf,
    sha256: [u8; 32],
    bos: Vec<u32>,
    eos: SpecialToken,
    pad: SpecialToken,
    config: Config,
    args: TokenizerArgs,
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
    /// A variable of the chat template that is no setting.
    #[error(
        "chat_template_kwargs sets `{name}`, which the chat template gets with every conversation; remove it: tools are a record's own, and \
         whether an answer is begun goes by what the text is for"
    )]
    NoSetting {
        /// The variable.
        name: &'static str,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer cannot encode or decode a text: {what}; check that tokenizer.json is complete")]
    Encode {
        /// What it says.
        what: String,
    },
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, or the one in a folder, and settles its special tokens.
    ///
    /// Each is taken from `args`, else from `tokenizer_config.json` in the same folder, else it is the first well-known
    /// one among the tokenizer's added tokens. Padding falls back on the end of sequence, which does no harm: padding is
    /// kept out of the loss by position, never by id.
    ///
    /// # Errors
    /// When a file cannot be read, a named token does not exist, no end of sequence is found, or `args` set what is no setting.
    pub fn load(path: &Path, args: &TokenizerArgs) -> Result<Self, TokenizerError> {
        if let Some(name) = chat::GIVEN.into_iter().find(|name| args.chat_template_kwargs.contains_key(*name))
        {
            return Err(TokenizerError::NoSetting { name });
        }
        let path = &if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
        let sha256 = Sha256::digest(&bytes).into();
        let mut inner = Tokenizer::from_bytes(bytes).map_err(|e| malformed(path, e.to_string()))?;
        inner.with_truncation(None).map_err(|e| malformed(path, e.to_string()))?;
        inner.with_padding(None);
        let config = Config::beside(path)?;
        let find = |role, name: &Option<String>, known: &[&str]| {
            let chosen = name.clone().map(|token| (token, "the configuration"));
            let chosen = chosen.or_else(|| Some((config.token(role)?, "tokenizer_config.json")));
            special_token(&inner, path, role, chosen, known)
        };
        let eos = find("eos_token", &args.eos_token, &EOS_TOKENS)?.ok_or_else(|| TokenizerError::NoEos {
            path: path.display().to_string(),
            added: added_tokens(&inner),
        })?;
        let pad = find("pad_token", &args.pad_token, &PAD_TOKENS)?.unwrap_or_else(|| eos.clone());
        let bos = leading_special_tokens(&inner)?;
        // It is asked for no special tokens any more; all that is left for it to do is to cut white space from offsets.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self { inner, path: path.clone(), sha256, bos, eos, pad, config, args: args.clone() })
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

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The chat template: the one chosen, else the tokenizer's own; `None` where it has none.
    ///
    /// # Errors
    /// It cannot be read, or is no Jinja.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ChatError> {
        let mut variables = self.config.special_tokens();
        variables.extend([("eos_token", &self.eos), ("pad_token", &self.pad)].into_iter().filter_map(
            |(role, token)| {
                // What is chosen here is what the template writes.
                let chosen = match role {
                    "eos_token" => &self.args.eos_token,
                    _ => &self.args.pad_token,
                };
                chosen.is_some().then(|| (role.to_string(), token.token.clone().into()))
            },
        ));
        variables.extend(self.args.chat_template_kwargs.clone());
        if let Some(path) = &self.args.chat_template_path {
            return ChatTemplate::load(path, variables).map(Some);
        }
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let found = chat::find(folder, self.config.value())?;
        found.map(|(text, name)| ChatTemplate::new(&text, &name, variables)).transpose()
    }

    /// What ids depend on, apart from the text: the tokenizer's file and its special tokens.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = self.sha256.to_vec();
        let ids = self.bos.iter().chain([&self.eos.id, &self.pad.id]);
        bytes.extend(ids.flat_map(|id| id.to_le_bytes()));
        bytes
    }

    /// Ids of each text, in order, without special tokens added; all threads.
    ///
    /// # Errors
    /// When the tokenizer cannot encode one of them.
    pub fn encode(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let encodings = self.inner.encode_batch_fast(texts, false).map_err(|e| encode(&e))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// As [`encode`](Self::encode), with the bytes that each id is of.
    ///
    /// # Errors
    /// When the tokenizer cannot encode one of them.
    pub fn encode_with_offsets(&self, texts: Vec<String>) -> Result<Vec<Encoded>, TokenizerError> {
        let encodings = self.inner.encode_batch(texts, false).map_err(|e| encode(&e))?;
        let encoded = encodings
            .iter()
            .map(|e| Encoded { ids: e.get_ids().to_vec(), offsets: e.get_offsets().to_vec() });
        Ok(encoded.collect())
    }

    /// The text of ids, special tokens written out.
    ///
    /// # Errors
    /// When the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(|e| encode(&e))
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
