//! From records to token ids and loss masks.
//!
//! A sample with a prompt is `bos prompt response eos`. Prompt and response are tokenised apart and joined as ids, so the mask
//! of response tokens is exact by position: no token straddles the boundary, and no search for a response marker can miss
//! it. The end of sequence belongs to the response and is learned, also where its id is the padding id as well.
//!
//! A conversation is one text, which holds whatever begins and ends it. A token is learned where one of its characters is,
//! as in Transformers.
//!
//! [`read`] makes whole samples of records, [`cut`] brings them to `max_length`.

use std::{fmt, path::Path, str::FromStr};

use chronibench_protocol::TokenStore;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    chat::{ChatError, ChatTemplate},
    records::{Located, ReadArgs, RecordError, Records},
    template::{Loss, Rendered, Template, TemplateError},
    tokenizer::{Encoded, TextTokenizer, TokenizerError},
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
    /// From record to text.
    pub template: Template,
    /// Longest sample kept, tokens, special tokens included.
    pub max_length: u32,
    /// What happens to longer ones.
    pub overlong: Overlong,
    /// What is learned.
    pub loss: Loss,
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
    /// Left out because there is no token to learn, or truncation left none.
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
    /// The template does not suit a record.
    #[error("{at}: {source}")]
    Template {
        /// Which record.
        at: String,
        /// Why.
        source: TemplateError,
    },
    /// The chat template cannot be read.
    #[error(transparent)]
    Chat(#[from] ChatError),
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

/// Whole samples, as long as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Their tokens.
    pub store: TokenStore,
    /// Records left out because the response is empty or blank.
    pub empty: usize,
}

/// Tokenises a file.
///
/// # Errors
/// See [`TokenizeError`]; a bad record is an error and never skipped.
pub fn tokenize_file(
    path: &Path,
    read: &ReadArgs,
    tokenizer: &TextTokenizer,
    args: &TokenizeArgs,
) -> Result<(TokenStore, TokenizeReport), TokenizeError> {
    tokenize(Records::open(path, read)?, tokenizer, args)
}

/// Tokenises records, in their order.
///
/// # Errors
/// The first error of `records`, an unsuited template, a failing tokenizer, or nothing left to train on.
pub fn tokenize<R: Into<Located>>(
    records: impl IntoIterator<Item = Result<R, RecordError>>,
    tokenizer: &TextTokenizer,
    args: &TokenizeArgs,
) -> Result<(TokenStore, TokenizeReport), TokenizeError> {
    let samples = read(records, tokenizer, args.template, args.loss, &mut |_| {})?;
    let (store, mut report) = cut(&samples.store, args.max_length, args.overlong);
    report.read += samples.empty;
    report.empty = samples.empty;
    if store.is_empty() {
        return Err(TokenizeError::NothingLeft { report, max_length: args.max_length });
    }
    Ok((store, report))
}

/// Makes a whole sample of every record whose response is not blank, in their order; `progress` is told how many records
/// are done.
///
/// # Errors
/// The first error of `records`, an unsuited template, or a failing tokenizer.
pub fn read<R: Into<Located>>(
    records: impl IntoIterator<Item = Result<R, RecordError>>,
    tokenizer: &TextTokenizer,
    template: Template,
    loss: Loss,
    progress: &mut dyn FnMut(usize),
) -> Result<Samples, TokenizeError> {
    let mut reader = Reader { tokenizer, template, loss, chat: None, asked: false, done: 0 };
    let mut samples = Samples { store: TokenStore::new(), empty: 0 };
    let mut chunk: Vec<Located> = Vec::with_capacity(CHUNK);
    for record in records {
        match record {
            Ok(record) => chunk.push(record.into()),
            Err(e) => {
                // An unsuited template of a record before it comes first.
                reader.add(&mut samples, &mut chunk)?;
                return Err(e.into());
            }
        }
        if chunk.len() == CHUNK {
            reader.add(&mut samples, &mut chunk)?;
            progress(reader.done);
        }
    }
    reader.add(&mut samples, &mut chunk)?;
    progress(reader.done);
    Ok(samples)
}

struct Reader<'a> {
    tokenizer: &'a TextTokenizer,
    template: Template,
    loss: Loss,
    chat: Option<ChatTemplate>,
    /// The tokenizer has been asked for its chat template, which it is only if a record needs it.
    asked: bool,
    done: usize,
}

impl Reader<'_> {
    fn add(&mut self, samples: &mut Samples, chunk: &mut Vec<Located>) -> Result<(), TokenizeError> {
        let needs_chat = |located: &Located| self.template.of(&located.record) == Template::Chat;
        if !self.asked && chunk.iter().any(needs_chat) {
            self.chat = self.tokenizer.chat_template()?;
            self.asked = true;
        }
        let rendered = chunk.par_iter().map(|l| self.render(l)).collect::<Vec<_>>();
        let rendered = rendered.into_iter().enumerate().map(|(i, text)| {
            let at = || match &chunk[i].place {
                Some(place) => place.to_string(),
                None => format!("record {}", self.done + i + 1),
            };
            text.map_err(|source| TokenizeError::Template { at: at(), source })
        });
        let rendered = rendered.collect::<Result<Vec<_>, _>>()?;
        self.done += chunk.len();
        chunk.clear();
        self.encode(samples, rendered)
    }

    fn render(&self, located: &Located) -> Result<Rendered, TemplateError> {
        self.template.render(&located.record, self.chat.as_ref(), self.loss)
    }

    /// Tokenises texts together, which takes every thread, and puts the samples together in order.
    fn encode(&self, samples: &mut Samples, rendered: Vec<Rendered>) -> Result<(), TokenizeError> {
        let (mut parts, mut wholes, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for sample in rendered {
            match sample {
                Rendered::Blank => samples.empty += 1,
                Rendered::Apart { prompt, response, response_only } => {
                    parts.extend([prompt, response]);
                    kinds.push(Kind::Apart { response_only });
                }
                Rendered::Whole { text, learned } => {
                    wholes.push(text);
                    kinds.push(Kind::Whole { learned });
                }
            }
        }
        let mut parts = self.tokenizer.encode(parts)?.into_iter();
        let mut wholes = self.tokenizer.encode_with_offsets(wholes)?.into_iter();
        for kind in kinds {
            let (ids, mask) = match kind {
                Kind::Apart { response_only } => {
                    let mut next = || parts.next().expect("ids for every text");
                    self.joined(&next(), &next(), response_only)
                }
                Kind::Whole { learned } => {
                    let Encoded { ids, offsets } = wholes.next().expect("ids for every text");
                    let mask = mask(&offsets, &learned);
                    (ids, mask)
                }
            };
            samples.store.push(&ids, &mask);
        }
        Ok(())
    }

    fn joined(&self, prompt: &[u32], response: &[u32], response_only: bool) -> (Vec<u32>, Vec<u8>) {
        let mut ids = [self.tokenizer.bos(), prompt].concat();
        let mut mask = vec![u8::from(!response_only); ids.len()];
        ids.extend_from_slice(response);
        ids.push(self.tokenizer.eos().id);
        mask.resize(ids.len(), 1);
        (ids, mask)
    }
}

enum Kind {
    Apart { response_only: bool },
    Whole { learned: Vec<std::ops::Range<usize>> },
}

/// 1 for every token of which a byte is in one of the spans.
fn mask(offsets: &[(usize, usize)], spans: &[std::ops::Range<usize>]) -> Vec<u8> {
    let learned = |&(start, end): &(usize, usize)| {
        u8::from(spans.iter().any(|span| start < span.end && end > span.start))
    };
    offsets.iter().map(learned).collect()
}

/// Brings samples to `max_length`: cut, left out, or all joined and cut. Those without a target are left out.
pub fn cut(samples: &TokenStore, max_length: u32, overlong: Overlong) -> (TokenStore, TokenizeReport) {
    let (mut store, mut report) = (TokenStore::new(), TokenizeReport::default());
    let most = match overlong {
        Overlong::Wrapped => usize::MAX,
        Overlong::Truncate | Overlong::Refuse => max_length as usize,
    };
    for (ids, mask) in (0..samples.len()).map(|s| samples.sample(s)) {
        report.read += 1;
        let is_overlong = ids.len() > most;
        let kept = ids.len().min(most);
        if is_overlong && overlong == Overlong::Refuse {
            report.refused += 1;
        } else if !has_target(&mask[..kept]) {
            report.without_target += 1;
        } else {
            report.samples += 1;
            report.truncated += usize::from(is_overlong);
            store.push(&ids[..kept], &mask[..kept]);
        }
    }
    if overlong == Overlong::Wrapped {
        store = wrapped(&store, max_length.max(1) as usize);
        report.samples = store.len();
    }
    (store, report)
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
