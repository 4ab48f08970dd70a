//! A data set as a training needs it: samples to learn from, samples held out, and what became of the records.

use std::{fmt, path::Path};

use chronibench_protocol::TokenStore;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    cache::{Key, KeyOf, TokenCache},
    records::{ReadArgs, Records},
    template::Template,
    tokenize::{Samples, TokenizeArgs, TokenizeError, TokenizeReport, cut, read},
    tokenizer::TextTokenizer,
};

/// What to read, and how.
#[derive(Clone, Copy)]
pub struct DatasetArgs<'a> {
    /// The file to learn from.
    pub path: &'a Path,
    /// Its format and keys.
    pub read: &'a ReadArgs,
    /// How samples are made.
    pub tokenize: &'a TokenizeArgs,
    /// What is held out.
    pub validation: Validation<'a>,
    /// Seed of what is held out.
    pub seed: u64,
}

/// Samples that are evaluated and not learned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Validation<'a> {
    /// None.
    #[default]
    None,
    /// A share of the samples, in (0, 1): at least one, drawn from the seed.
    Split(f64),
    /// Another file, of which everything is read as the first.
    Path(&'a Path),
}

/// Samples ready for batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// To learn from.
    pub train: TokenStore,
    /// What became of the records.
    pub report: TokenizeReport,
    /// To evaluate on, and what became of its records.
    pub validation: Option<(TokenStore, TokenizeReport)>,
    /// What was recognised.
    pub recognised: Recognised,
}

/// What a file turned out to be, and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// `JSON Lines`, `JSON`, `CSV` or `Parquet`.
    pub kind: &'static str,
    /// Name of the format.
    pub format: &'static str,
    /// The template in force for the first record.
    pub template: Template,
    /// Where the chat template is from, where one is used.
    pub chat: Option<String>,
    /// What is learned.
    pub learned: &'static str,
    /// The tokens were in the cache.
    pub cached: bool,
}

impl fmt::Display for Recognised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, {} records, ", self.kind, self.format)?;
        match &self.chat {
            Some(name) => write!(f, "chat template of {name}")?,
            None => write!(f, "template {}", self.template.name())?,
        }
        write!(f, ", loss on {}{}", self.learned, if self.cached { " (tokens from the cache)" } else { "" })
    }
}

/// Why there is no data set.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file cannot be tokenised.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// A share that is none.
    #[error("validation_split is {0}; give a share above 0 and below 1, e.g. 0.05")]
    Share(f64),
    /// Nothing is left of what is held out.
    #[error(
        "no sample is left to evaluate on of {what}: {report}; raise max_length ({max_length}) or mend its records"
    )]
    NothingHeldOut {
        /// Setting that holds them out.
        what: String,
        /// What became of them.
        report: TokenizeReport,
        /// The limit in force, tokens.
        max_length: u32,
    },
    /// Nothing would be left to learn from.
    #[error("validation_split would hold out all of {samples} samples; give more data or a validation_path")]
    TooFew {
        /// Samples in the file.
        samples: usize,
    },
}

impl From<crate::records::RecordError> for DatasetError {
    fn from(e: crate::records::RecordError) -> Self {
        Self::Tokenize(e.into())
    }
}

/// Reads a data set; tokens come from the cache where it has them. `progress` is told how many records are done.
///
/// # Errors
/// See [`DatasetError`].
pub fn load(
    args: &DatasetArgs,
    tokenizer: &TextTokenizer,
    cache: &TokenCache,
    progress: &mut dyn FnMut(usize),
) -> Result<Dataset, DatasetError> {
    if let Validation::Split(share) = args.validation
        && !(share > 0.0 && share < 1.0)
    {
        return Err(DatasetError::Share(share));
    }
    let (samples, recognised) = tokens(args.path, args, tokenizer, cache, progress)?;
    let limited = |samples: &TokenStore, empty: usize| limited(samples, empty, args.tokenize);
    let (train, report, validation) = match args.validation {
        Validation::None => {
            let (train, report) = limited(&samples.store, samples.empty)?;
            (train, report, None)
        }
        Validation::Path(path) => {
            let (train, report) = limited(&samples.store, samples.empty)?;
            let (held_out, _) = tokens(path, args, tokenizer, cache, progress)?;
            let held_out = limited(&held_out.store, held_out.empty);
            let what = || format!("validation_path {}", path.display());
            (train, report, Some(held_out.map_err(|e| of_held_out(e, what))?))
        }
        Validation::Split(share) => {
            let (rest, held_out) = split(&samples.store, share, args.seed)?;
            let (train, report) = limited(&rest, samples.empty)?;
            let what = || format!("validation_split {share}");
            (train, report, Some(limited(&held_out, 0).map_err(|e| of_held_out(e, what))?))
        }
    };
    Ok(Dataset { train, report, validation, recognised })
}

/// Whole samples of a file.
///
/// # Errors
/// See [`DatasetError`].
pub fn tokens(
    path: &Path,
    args: &DatasetArgs,
    tokenizer: &TextTokenizer,
    cache: &TokenCache,
    progress: &mut dyn FnMut(usize),
) -> Result<(Samples, Recognised), DatasetError> {
    let records = Records::open(path, args.read)?;
    let mut recognised = recognise(&records, tokenizer, args.tokenize)?;
    let key = key(path, args, tokenizer);
    let kept = key.as_ref().and_then(|key| cache.get(key));
    recognised.cached = kept.is_some();
    let samples = match kept {
        Some(samples) => samples,
        None => {
            let TokenizeArgs { template, loss, .. } = *args.tokenize;
            let samples = read(records, tokenizer, template, loss, progress)?;
            if let Some(key) = key {
                // What cannot be kept is made again.
                let _ = cache.put(&key, &samples);
            }
            samples
        }
    };
    Ok((samples, recognised))
}

/// What a file is that has just been opened.
///
/// # Errors
/// It needs a chat template that cannot be read.
pub fn recognise(
    records: &Records,
    tokenizer: &TextTokenizer,
    args: &TokenizeArgs,
) -> Result<Recognised, TokenizeError> {
    let first = records.first().expect("there is one, or opening had failed");
    let template = args.template.of(first);
    let chat = if template == Template::Chat { tokenizer.chat_template()? } else { None };
    Ok(Recognised {
        kind: records.kind(),
        format: records.format().name,
        template,
        chat: chat.map(|chat| chat.name().to_string()),
        learned: args.loss.of(first),
        cached: false,
    })
}

/// Name of a file's tokens; `None` where something cannot be read, which the reading then reports.
fn key(path: &Path, args: &DatasetArgs, tokenizer: &TextTokenizer) -> Option<Key> {
    let TokenizeArgs { template, loss, .. } = args.tokenize;
    let settings = format!("{:?} {} {loss:?}", args.read, template.name());
    // The reader goes by the name's ending too.
    let ending = path.extension().unwrap_or_default();
    let mut key = KeyOf::new()
        .part(&tokenizer.fingerprint())
        .part(settings.as_bytes())
        .part(ending.as_encoded_bytes())
        .file(path)
        .ok()?;
    // Later records may be conversations where the first is none.
    if matches!(template, Template::Auto | Template::Chat)
        && let Some(chat) = tokenizer.chat_template().ok()?
    {
        let variables = serde_json::to_vec(chat.variables()).expect("plain data");
        key = key.part(chat.source().as_bytes()).part(&variables);
        if chat.is_dated() {
            key = key.part(jiff::ZonedDateTime::now().date().to_string().as_bytes());
        }
    }
    Some(key.finish())
}

fn limited(
    samples: &TokenStore,
    empty: usize,
    args: &TokenizeArgs,
) -> Result<(TokenStore, TokenizeReport), TokenizeError> {
    let (store, mut report) = cut(samples, args.max_length, args.overlong);
    report.read += empty;
    report.empty = empty;
    if store.is_empty() {
        return Err(TokenizeError::NothingLeft { report, max_length: args.max_length });
    }
    Ok((store, report))
}

/// It is not the data to learn from that nothing is left of.
fn of_held_out(e: TokenizeError, what: impl FnOnce() -> String) -> DatasetError {
    match e {
        TokenizeError::NothingLeft { report, max_length } => {
            DatasetError::NothingHeldOut { what: what(), report, max_length }
        }
        other => other.into(),
    }
}

/// The samples to learn from and those held out, each in their order: the first of a shuffle that the seed decides.
fn split(samples: &TokenStore, share: f64, seed: u64) -> Result<(TokenStore, TokenStore), DatasetError> {
    let total = samples.len();
    let held = ((total as f64 * share).round() as usize).max(1);
    if held >= total {
        return Err(DatasetError::TooFew { samples: total });
    }
    // A stream of its own: epochs draw from 0, 1, 2, ….
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX);
    let mut order: Vec<usize> = (0..total).collect();
    order.shuffle(&mut rng);
    let mut is_held = vec![false; total];
    order[..held].iter().for_each(|&s| is_held[s] = true);
    let (mut train, mut validation) = (TokenStore::new(), TokenStore::new());
    for (s, held) in is_held.into_iter().enumerate() {
        let (ids, mask) = samples.sample(s);
        if held { &mut validation } else { &mut train }.push(ids, mask);
    }
    Ok((train, validation))
}
