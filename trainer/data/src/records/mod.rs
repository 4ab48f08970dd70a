//! Records of a JSONL file, one JSON object a line.
//!
//! A format is one file here: the keys it demands and how it reads them. The file's first record decides its format.

mod alpaca;
mod text;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

/// Longest line that is read, bytes. Keeps memory bounded when a file is no JSONL at all.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// One training example, whatever format it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Running text without a prompt.
    Text {
        /// The text.
        text: String,
    },
}

/// A JSONL format.
#[derive(Debug)]
pub struct Format {
    /// Name, e.g. `alpaca`.
    pub name: &'static str,
    /// Keys that every record has.
    pub required: &'static [&'static str],
    read: fn(&Fields) -> Result<Record, FieldError>,
}

/// Every known format. The first whose required keys are all there is taken.
pub const FORMATS: [&Format; 2] = [&alpaca::FORMAT, &text::FORMAT];

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
    #[error("data set {path} is empty; it needs one JSON object a line")]
    Empty {
        /// The file.
        path: String,
    },
    /// A line that is no JSON object.
    #[error("{path}:{line}: {what}; {hint}")]
    Malformed {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: &'static str,
    },
    /// The first record fits no format.
    #[error("{path}:{line}: no known format has the keys {found}; known are {}", known_formats())]
    UnknownFormat {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Keys of the record.
        found: String,
    },
    /// A record lacks a key of its file's format.
    #[error(
        "{path}:{line}: key \"{key}\" is missing, which every {format} record has; this one has {found}; add the key or remove the line"
    )]
    MissingKey {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Format of the file.
        format: &'static str,
        /// The key.
        key: &'static str,
        /// Keys of the record.
        found: String,
    },
    /// A value that is not text.
    #[error("{path}:{line}: \"{key}\" is {found}, not a string; put its text in quotes or remove the line")]
    WrongType {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
        /// JSON type of its value.
        found: &'static str,
    },
}

/// A JSON object of which a format reads text fields.
struct Fields(Map<String, Value>);

/// A field that is not what the format needs.
enum FieldError {
    Missing(&'static str),
    NotText(&'static str, &'static str),
}

impl Fields {
    fn text(&self, key: &'static str) -> Result<String, FieldError> {
        match self.0.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(FieldError::NotText(key, type_name(other))),
            None => Err(FieldError::Missing(key)),
        }
    }

    /// The text under `key`; `None` when it is missing, `null` or empty.
    fn optional_text(&self, key: &'static str) -> Result<Option<String>, FieldError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.text(key).map(|text| (!text.is_empty()).then_some(text)),
        }
    }

    fn keys(&self) -> String {
        if self.0.is_empty() { "no keys".into() } else { quoted(self.0.keys().map(String::as_str)) }
    }
}

/// The records of a file, in order, read line by line. Blank lines are skipped.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    reader: BufReader<File>,
    format: &'static Format,
    /// Number of the last line read, from 1.
    line: usize,
    /// The record that decided the format, until it is handed out.
    first: Option<Record>,
}

impl Records {
    /// Opens a data set and recognises its format.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or begins with a line that is no record of a known format.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| RecordError::Io { path: name.clone(), source })?;
        let reader = BufReader::new(file);
        let mut records = Self { path: path.to_path_buf(), reader, format: FORMATS[0], line: 0, first: None };
        let fields = records.next_fields()?.ok_or(RecordError::Empty { path: name.clone() })?;
        records.format = FORMATS
            .into_iter()
            .find(|format| format.required.iter().all(|&key| fields.0.contains_key(key)))
            .ok_or_else(|| RecordError::UnknownFormat {
                path: name,
                line: records.line,
                found: fields.keys(),
            })?;
        records.first = Some(records.read(&fields)?);
        Ok(records)
    }

    /// Format of the file.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    fn read(&self, fields: &Fields) -> Result<Record, RecordError> {
        (self.format.read)(fields).map_err(|e| {
            let (path, line) = (self.path.display().to_string(), self.line);
            match e {
                FieldError::Missing(key) => RecordError::MissingKey {
                    path,
                    line,
                    format: self.format.name,
                    key,
                    found: fields.keys(),
                },
                FieldError::NotText(key, found) => RecordError::WrongType { path, line, key, found },
            }
        })
    }

    /// The object on the next line that is not blank; `None` at the end of the file.
    fn next_fields(&mut self) -> Result<Option<Fields>, RecordError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let mut line = self.reader.by_ref().take(MAX_LINE_BYTES as u64 + 1);
            let read = line.read_until(b'\n', &mut bytes);
            if read.map_err(|source| RecordError::Io { path: self.path.display().to_string(), source })? == 0
            {
                return Ok(None);
            }
            self.line += 1;
            if bytes.len() > MAX_LINE_BYTES {
                return Err(
                    self.malformed(format!("the line is longer than {MAX_LINE_BYTES} bytes"), ONE_A_LINE)
                );
            }
            // Editors on Windows begin a file with a byte-order mark, which JSON does not allow.
            let content = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| self.line == 1).unwrap_or(&bytes);
            if !content.iter().all(u8::is_ascii_whitespace) {
                return self.parse(content).map(Some);
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Fields, RecordError> {
        let text = str::from_utf8(line).map_err(|e| {
            self.malformed(
                format!("byte {} of the line is not UTF-8", e.valid_up_to() + 1),
                "save the file as UTF-8",
            )
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(other) => {
                Err(self.malformed(format!("the line is {}, not an object", type_name(&other)), ONE_A_LINE))
            }
            Err(e) => {
                // serde_json counts lines of the text it was given, which is always one.
                let what = e.to_string();
                let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
                Err(self.malformed(format!("not JSON at column {}: {what}", e.column()), ONE_A_LINE))
            }
        }
    }

    fn malformed(&self, what: String, hint: &'static str) -> RecordError {
        RecordError::Malformed { path: self.path.display().to_string(), line: self.line, what, hint }
    }
}

impl Iterator for Records {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        match self.next_fields() {
            Ok(fields) => fields.map(|fields| self.read(&fields)),
            Err(e) => Some(Err(e)),
        }
    }
}

const ONE_A_LINE: &str = "every line must be one complete JSON object, so an array needs splitting \
                          (`jq -c '.[]' data.json > data.jsonl`)";

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn quoted<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    keys.map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ")
}

fn known_formats() -> String {
    let describe =
        |format: &&Format| format!("{} ({})", format.name, quoted(format.required.iter().copied()));
    FORMATS.iter().map(describe).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests;
