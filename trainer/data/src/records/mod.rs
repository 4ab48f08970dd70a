//! Records of a file: JSON Lines, JSON, CSV or Parquet, one at a time.
//!
//! `source` reads files, a format (`formats/`) is the shape of their records. The first record decides the format, unless
//! one is named.

mod error;
mod fields;
mod formats;
mod source;

use std::path::Path;

use chronibench_protocol::data::Columns;
use serde_json::{Map, Value};

pub use error::{Place, RecordError, Unit};
use fields::{FieldError, Fields};
pub use formats::{FORMATS, Format};
pub use source::MAX_RECORD_BYTES;
use source::Source;

/// One training example, whatever format it came in.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A task and its answer.
    Instruction {
        /// What is asked.
        instruction: String,
        /// What it is asked about; `None` when missing, `null` or empty.
        input: Option<String>,
        /// The answer.
        output: String,
    },
    /// A text and what follows it.
    Completion {
        /// What the model is given.
        prompt: String,
        /// What it is to say.
        completion: String,
    },
    /// Turns of several speakers.
    Conversation(Conversation),
    /// Running text without a prompt.
    Text {
        /// The text.
        text: String,
    },
}

/// Turns of several speakers.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// At least one.
    pub messages: Vec<Message>,
    /// Schemas of the tools that may be called.
    pub tools: Option<Vec<Value>>,
    /// How many of the messages are the prompt, where the record says so.
    pub prompt: Option<usize>,
}

/// One turn: an object with `role`, `content` and whatever else a template may read.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A turn of a role.
    pub fn new(role: &str, content: &str) -> Self {
        Self(Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())]))
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The object, as templates read it.
    pub fn object(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Nothing is said, and no tool called.
    pub fn is_blank(&self) -> bool {
        let content = self.0.get("content").and_then(Value::as_str).unwrap_or_default();
        content.trim().is_empty() && !self.0.contains_key("tool_calls")
    }
}

/// A record and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The record.
    pub record: Record,
    /// Its place; `None` for records that come from no file.
    pub place: Option<Place>,
}

impl From<Record> for Located {
    fn from(record: Record) -> Self {
        Self { record, place: None }
    }
}

/// How a file is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadArgs {
    /// Name of a format; recognised from the first record when left out.
    pub format: Option<String>,
    /// Keys that are not the usual ones.
    pub columns: Columns,
}

/// The records of a file, in order, read one by one.
pub struct Records {
    source: Source,
    columns: Columns,
    format: &'static Format,
    /// The record that decided the format, until it is handed out.
    first: Option<Located>,
}

impl Records {
    /// Opens a data set and recognises its format.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or begins with something that is no record of a known format.
    pub fn open(path: &Path, args: &ReadArgs) -> Result<Self, RecordError> {
        let named = args.format.as_deref().map(|name| {
            formats::by_name(name).ok_or_else(|| RecordError::NoSuchFormat { name: name.into() })
        });
        let named = named.transpose()?;
        let is_record = |map: &Map<String, Value>| {
            named.is_some() || formats::recognise(&Fields { map, columns: &args.columns }).is_some()
        };
        let mut source = Source::open(path, &is_record)?;
        let (at, map) = source
            .next()
            .transpose()?
            .ok_or_else(|| RecordError::Empty { path: path.display().to_string() })?;
        let fields = Fields { map: &map, columns: &args.columns };
        let format = named
            .or_else(|| formats::recognise(&fields))
            .ok_or_else(|| RecordError::UnknownFormat { at: at.clone(), found: fields.keys() })?;
        let first = read(format, &args.columns, at, &map)?;
        Ok(Self { source, columns: args.columns.clone(), format, first: Some(first) })
    }

    /// Format of the file.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// What the file is: `JSON Lines`, `JSON`, `CSV` or `Parquet`.
    pub fn kind(&self) -> &'static str {
        self.source.kind()
    }

    /// The first record, as long as it has not been taken.
    pub fn first(&self) -> Option<&Record> {
        self.first.as_ref().map(|first| &first.record)
    }
}

impl Iterator for Records {
    type Item = Result<Located, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let next = self.source.next()?;
        Some(next.and_then(|(at, map)| read(self.format, &self.columns, at, &map)))
    }
}

fn read(
    format: &'static Format,
    columns: &Columns,
    at: Place,
    map: &Map<String, Value>,
) -> Result<Located, RecordError> {
    let fields = Fields { map, columns };
    match (format.read)(&fields) {
        Ok(record) => Ok(Located { record, place: Some(at) }),
        Err(FieldError::Missing { key }) => {
            Err(RecordError::MissingKey { at, format: format.name, key, found: fields.keys() })
        }
        Err(FieldError::Type { key, found, wanted, hint }) => {
            Err(RecordError::WrongType { at, key, found, wanted, hint })
        }
        Err(FieldError::Turn { key, turn, what, hint }) => {
            Err(RecordError::Turn { at, key, turn, what, hint })
        }
    }
}

#[cfg(test)]
mod tests;
