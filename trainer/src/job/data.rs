//! The `data` section of a job.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use chronibench_protocol::data::Columns;
use chronicals_data::{
    cache::TokenCache,
    dataset::{self, Dataset, DatasetArgs, Validation},
    records::ReadArgs,
    template::{Loss, Template, TemplateError},
    tokenize::{Overlong, TokenizeArgs},
    tokenizer::{TextTokenizer, TokenizerArgs},
};
use chronicals_kernels::gpu::compile::Cache;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;

/// What to learn from. Names are TRL's where it has them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobData {
    /// JSON Lines, JSON, CSV or Parquet file.
    pub path: PathBuf,
    /// `tokenizer.json`, or the folder that it is in; the model's folder when left out.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Shape of the records; recognised from the first one when left out.
    #[serde(default)]
    pub format: Option<String>,
    /// Keys of the records that are not the usual ones.
    #[serde(default)]
    pub columns: Columns,
    /// From record to text: `chat`, `alpaca`, `plain`, `text`, or the one that suits the records (`auto`).
    #[serde(default = "auto")]
    pub template: String,
    /// A Jinja file in place of the tokenizer's chat template.
    #[serde(default)]
    pub chat_template_path: Option<PathBuf>,
    /// Variables that the chat template reads.
    #[serde(default)]
    pub chat_template_kwargs: Map<String, Value>,
    /// Longest sample, tokens.
    pub max_length: u32,
    /// What happens to longer ones.
    #[serde(default = "truncate")]
    pub overlong: Overlong,
    /// Learn what follows the prompt only; so it is for records with a prompt when left out.
    #[serde(default)]
    pub completion_only_loss: Option<bool>,
    /// Learn what the assistant says only.
    #[serde(default)]
    pub assistant_only_loss: bool,
    /// Token behind every sample that no chat template wrote; the tokenizer's own when left out.
    #[serde(default)]
    pub eos_token: Option<String>,
    /// Token in empty slots.
    #[serde(default)]
    pub pad_token: Option<String>,
    /// Share of the samples that are evaluated and not learned.
    #[serde(default)]
    pub validation_split: Option<f64>,
    /// A file of samples that are evaluated and not learned.
    #[serde(default)]
    pub validation_path: Option<PathBuf>,
    /// Keep tokens on disk.
    #[serde(default = "yes")]
    pub cache: bool,
}

fn auto() -> String {
    Template::Auto.name().into()
}

fn truncate() -> Overlong {
    Overlong::Truncate
}

fn yes() -> bool {
    true
}

impl JobData {
    /// Everything as it is when left out.
    pub fn of(path: PathBuf, max_length: u32) -> Self {
        Self {
            path,
            tokenizer: None,
            format: None,
            columns: Columns::default(),
            template: auto(),
            chat_template_path: None,
            chat_template_kwargs: Map::new(),
            max_length,
            overlong: truncate(),
            completion_only_loss: None,
            assistant_only_loss: false,
            eos_token: None,
            pad_token: None,
            validation_split: None,
            validation_path: None,
            cache: true,
        }
    }

    /// Every path, to make it relative to the job's file.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let optional = [&mut self.tokenizer, &mut self.chat_template_path, &mut self.validation_path];
        std::iter::once(&mut self.path).chain(optional.into_iter().flatten())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// None is named, or it cannot be used.
    pub fn tokenizer(&self) -> Result<TextTokenizer, Error> {
        let path = self.tokenizer.as_deref().ok_or_else(|| {
            Error::new("no tokenizer is named", "data.tokenizer").hint("name tokenizer.json or its folder")
        })?;
        TextTokenizer::load(path, &self.tokenizer_args()).map_err(|e| told(&e, path))
    }

    /// What is chosen in place of the tokenizer's own settings.
    pub fn tokenizer_args(&self) -> TokenizerArgs {
        TokenizerArgs {
            eos_token: self.eos_token.clone(),
            pad_token: self.pad_token.clone(),
            chat_template_path: self.chat_template_path.clone(),
            chat_template_kwargs: self.chat_template_kwargs.clone(),
        }
    }

    /// How samples are made.
    ///
    /// # Errors
    /// The template does not exist.
    pub fn tokenize_args(&self) -> Result<TokenizeArgs, Error> {
        let template = self.template.parse();
        Ok(TokenizeArgs {
            template: template.map_err(|e: TemplateError| told(&e, Path::new("data.template")))?,
            max_length: self.max_length,
            overlong: self.overlong,
            loss: Loss {
                completion_only: self.completion_only_loss,
                assistant_only: self.assistant_only_loss,
            },
        })
    }

    /// How records are read.
    pub fn read_args(&self) -> ReadArgs {
        ReadArgs { format: self.format.clone(), columns: self.columns.clone() }
    }

    /// The user's token cache, unless it is turned off.
    pub fn token_cache(&self) -> TokenCache {
        TokenCache::at(Cache::folder("tokens").filter(|_| self.cache))
    }

    /// Samples, with those held out.
    ///
    /// # Errors
    /// A bad record, setting or template.
    pub fn dataset(&self, tokenizer: &TextTokenizer, seed: u64) -> Result<Dataset, Error> {
        let (read, tokenize) = (self.read_args(), self.tokenize_args()?);
        let args = DatasetArgs {
            path: &self.path,
            read: &read,
            tokenize: &tokenize,
            validation: self.validation()?,
            seed,
        };
        let bar = Counter::new();
        dataset::load(&args, tokenizer, &self.token_cache(), &mut |n| bar.set(n))
            .map_err(|e| told(&e, &self.path))
    }

    fn validation(&self) -> Result<Validation<'_>, Error> {
        match (self.validation_split, &self.validation_path) {
            (None, None) => Ok(Validation::None),
            (Some(share), None) => Ok(Validation::Split(share)),
            (None, Some(path)) => Ok(Validation::Path(path)),
            (Some(_), Some(_)) => {
                Err(Error::new("both validation_split and validation_path are set", "data")
                    .hint("keep one of the two"))
            }
        }
    }
}

/// The data library's messages end in "; how to mend it".
pub fn told(e: &dyn std::fmt::Display, at: &Path) -> Error {
    let message = e.to_string();
    let at = at.display().to_string();
    match message.rsplit_once("; ") {
        Some((what, hint)) => Error::new(what, at).hint(hint),
        None => Error::new(message, at),
    }
}

/// Records done, on a terminal.
pub struct Counter(ProgressBar);

impl Counter {
    /// Nothing is shown before the first count, nor anywhere but on a terminal.
    pub fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("tokenising: {pos} records, {per_sec}");
        Self(ProgressBar::no_length().with_style(style.expect("the template is well-formed")))
    }

    /// So many are done.
    pub fn set(&self, records: usize) {
        self.0.set_position(records as u64);
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
