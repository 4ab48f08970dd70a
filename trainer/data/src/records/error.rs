//! What can be wrong with a data set, and where.

use std::{fmt, path::Path, sync::Arc};

use super::formats;

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: Arc<str>,
    unit: Unit,
    number: u64,
}

/// What is counted in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Lines of a text.
    Line,
    /// Rows of a table, or records of an array.
    Row,
}

impl Place {
    /// The `number`th unit of a file, from 1.
    pub fn new(path: &Arc<str>, unit: Unit, number: u64) -> Self {
        Self { path: path.clone(), unit, number }
    }

    /// The line or row, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.unit {
            Unit::Line => write!(f, "{}:{}", self.path, self.number),
            Unit::Row => write!(f, "{}, record {}", self.path, self.number),
        }
    }
}

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file is missing or cannot be read.
    #[error("data set {path}: {source}; check the path and its permissions")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file has no record.
    #[error("data set {path} is empty; it needs at least one record")]
    Empty {
        /// The file.
        path: String,
    },
    /// A file that is not what its name or its first bytes promise.
    #[error("data set {path}: {what}; {hint}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: &'static str,
    },
    /// A part of the file that is no record.
    #[error("{at}: {what}; {hint}")]
    Malformed {
        /// Where.
        at: Place,
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: &'static str,
    },
    /// No format of this name.
    #[error("unknown format `{name}`; known are {}", formats::names())]
    NoSuchFormat {
        /// Name asked for.
        name: String,
    },
    /// The first record fits no format.
    #[error(
        "{at}: no known format has the keys {found}; known are {}; where yours are called otherwise, name them, e.g. \
         `columns: {{prompt: question, completion: answer}}`",
        formats::known()
    )]
    UnknownFormat {
        /// Where.
        at: Place,
        /// Keys of the record.
        found: String,
    },
    /// A record lacks a key of its file's format.
    #[error(
        "{at}: key \"{key}\" is missing, which every {format} record has; this one has {found}; add the key or remove the record"
    )]
    MissingKey {
        /// Where.
        at: Place,
        /// Format of the file.
        format: &'static str,
        /// The key.
        key: String,
        /// Keys of the record.
        found: String,
    },
    /// A value of another type than its key has.
    #[error("{at}: \"{key}\" is {found}, not {wanted}; {hint}")]
    WrongType {
        /// Where.
        at: Place,
        /// The key.
        key: String,
        /// JSON type of its value.
        found: String,
        /// What it should be.
        wanted: &'static str,
        /// How to mend it.
        hint: &'static str,
    },
    /// A turn of a conversation that is none.
    #[error("{at}: turn {turn} of \"{key}\" {what}; {hint}")]
    Turn {
        /// Where.
        at: Place,
        /// The key of the conversation.
        key: String,
        /// Which turn, from 1.
        turn: usize,
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: &'static str,
    },
}

pub(super) fn io(path: &Path, source: std::io::Error) -> RecordError {
    RecordError::Io { path: path.display().to_string(), source }
}
