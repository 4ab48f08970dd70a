//! From records to token ids and loss masks.
//!
//! A sample is `bos prompt response eos`. Prompt and response are tokenised apart and joined as ids, so the mask of
//! response tokens is exact by position: no token straddles the boundary, and no search for a response marker can miss
//! it. The end of sequence belongs to the response and is learned, also where its id is the padding id as well.

use std::{fmt, path::Path, str::FromStr};

use chronibench_protocol::TokenStore;
use serde::{Deserialize, Serialize};

use crate::{
    records::{Record, RecordError, Records},
    template::{Rendered, Template, TemplateError},
    tokenizer::{TextTokenizer, TokenizerError},
};

/// Records tokenised at once: enough for every thread, little enough to stay small in memory.
const CHUNK: usize = 512;

/// What happens to a sample longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Its end is cut off, the end of sequence with it: a cut text has not ended.
    Truncate,
    /// It is left out.
    Refuse,
    /// All samples are joined end to end and cut every `max_length` tokens, wherever a sample ends: rows without
    /// padding. Neighbours in a row see each other, and what is left at the very end is dropped (TRL's
    /// `packing_strategy: wrapped`).
    Wrapped,
}

/// An [`Overlong`] that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown treatment of over-long samples `{0}`; known are `truncate`, `refuse`, `wrapped`")]
pub struct UnknownOverlong(String);

impl FromStr for Overlong {
    type Err = UnknownOverlong;

    fn from_str(name: &str) -> Result<Self, UnknownOverlong> {
        match name {
            "truncate" => Ok(Self::Truncate),
            "refuse" => Ok(Self::Refuse),
            "wrapped" => Ok(Self::Wrapped),
            _ => Err(UnknownOverlong(name.into())),
        }
    }
}

/// How samples are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizeArgs {
    /// Prompt template.
    pub template: Template,
    /// Longest sample kept, tokens, special tokens included.
    pub max_length: u32,
    /// What happens to longer ones.
    pub overlong: Overlong,
    /// Only the response and its end of sequence are learned, else every token.
    pub completion_only_loss: bool,
}

/// What became of the records: `read` is the sum of `samples`, `refused`, `empty` and `without_target`, unless samples are
/// pieces of what records were joined to ([`Overlong::Wrapped`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeReport {
    /// Records read.
    pub read: usize,
    /// Samples in the token store.
    pub samples: usize,
    /// Of these, cut to `max_length`.
    pub truncated: usize,
    /// Left out for being longer than `max_length`.
    pub refused: usize,
    /// Left out because the response is empty or blank.
    pub empty: usize,
    /// Left out because truncation left no token to learn.
    pub without_target: usize,
}

impl fmt::Display for TokenizeReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} records: {} samples ({} truncated), left out {} over-long, {} with an empty response, {} with nothing to \
             learn after truncation",
            self.read, self.samples, self.truncated, self.refused, self.empty, self.without_target
        )
    }
}

/// Why a data set cannot be tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// The data set cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The template does not suit the data set.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Every record was left out.
    #[error("no sample is left to train on: {report}; raise max_length ({max_length}) or mend the data set")]
    NothingLeft {
        /// What became of them.
        report: TokenizeReport,
        /// The limit in force, tokens.
        max_length: u32,
    },
}

/// Tokenises a JSONL file.
///
/// # Errors
/// See [`TokenizeError`]; a bad record is an error and never skipped.
pub fn tokenize_file(
    path: &Path,
    tokenizer: &TextTokenizer,
    args: &TokenizeArgs,
) -> Result<(TokenStore, TokenizeReport), TokenizeError> {
    tokenize(Records::open(path)?, tokenizer, args)
}

/// Tokenises records, in their order.
///
/// # Errors
/// The first error of `records`, an unsuited template, a failing tokenizer, or nothing left to train on.
pub fn tokenize(
    records: impl IntoIterator<Item = Result<Record, RecordError>>,
    tokenizer: &TextTokenizer,
    args: &TokenizeArgs,
) -> Result<(TokenStore, TokenizeReport), TokenizeError> {
    let mut samples =
        Samples { tokenizer, args, store: TokenStore::new(), report: TokenizeReport::default() };
    let mut chunk = Vec::with_capacity(CHUNK);
    for record in records {
        chunk.push(args.template.render(&record?)?);
        if chunk.len() == CHUNK {
            samples.add(std::mem::take(&mut chunk))?;
        }
    }
    samples.add(chunk)?;
    let Samples { mut store, mut report, .. } = samples;
    if args.overlong == Overlong::Wrapped {
        store = wrapped(&store, args.max_length.max(1) as usize);
        report.samples = store.len();
    }
    if store.is_empty() {
        return Err(TokenizeError::NothingLeft { report, max_length: args.max_length });
    }
    Ok((store, report))
}

/// The same tokens as samples of `max_length` each; those without a target are left out.
fn wrapped(store: &TokenStore, max_length: usize) -> TokenStore {
    let mut pieces = TokenStore::new();
    let ids = store.input_ids.chunks_exact(max_length);
    for (ids, mask) in ids.zip(store.loss_mask.chunks_exact(max_length)) {
        if has_target(mask) {
            pieces.push(ids, mask);
        }
    }
    pieces
}

/// The first token has nothing before it to be predicted from.
fn has_target(mask: &[u8]) -> bool {
    mask.iter().skip(1).any(|&learned| learned != 0)
}

struct Samples<'a> {
    tokenizer: &'a TextTokenizer,
    args: &'a TokenizeArgs,
    store: TokenStore,
    report: TokenizeReport,
}

impl Samples<'_> {
    fn add(&mut self, mut chunk: Vec<Rendered>) -> Result<(), TokenizerError> {
        let read = chunk.len();
        chunk.retain(|sample| !sample.response.trim().is_empty());
        self.report.read += read;
        self.report.empty += read - chunk.len();
        let (prompts, responses) = chunk.into_iter().map(|s| (s.prompt, s.response)).unzip();
        let prompts = self.tokenizer.encode(prompts)?;
        let responses = self.tokenizer.encode(responses)?;
        for (prompt, response) in prompts.iter().zip(&responses) {
            self.push(prompt, response);
        }
        Ok(())
    }

    fn push(&mut self, prompt: &[u32], response: &[u32]) {
        let mut ids = [self.tokenizer.bos(), prompt].concat();
        let mut mask = vec![u8::from(!self.args.completion_only_loss); ids.len()];
        ids.extend_from_slice(response);
        ids.push(self.tokenizer.eos().id);
        mask.resize(ids.len(), 1);

        let max_length = match self.args.overlong {
            Overlong::Wrapped => usize::MAX,
            Overlong::Truncate | Overlong::Refuse => self.args.max_length as usize,
        };
        let overlong = ids.len() > max_length;
        if overlong && self.args.overlong == Overlong::Refuse {
            self.report.refused += 1;
            return;
        }
        ids.truncate(max_length);
        mask.truncate(max_length);
        if !has_target(&mask) {
            self.report.without_target += 1;
            return;
        }
        self.report.samples += 1;
        self.report.truncated += usize::from(overlong);
        self.store.push(&ids, &mask);
    }
}
