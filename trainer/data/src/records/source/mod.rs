//! Files of objects. Memory is bounded by one record, whatever the size of the file; only a JSON file that wraps its records
//! into one object is read whole, and Parquet by pages.

mod csv;
mod delta;
mod footer;
mod json;
mod jsonl;
mod lists;
mod pages;
mod parquet;
mod shapes;
mod thrift;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
};

use serde_json::{Map, Value};

use super::error::{Place, RecordError, io};

/// Longest record that is read, bytes. Keeps memory bounded when a file is not what it seems.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

pub(super) type Object = Map<String, Value>;

/// The next object and where it stands.
pub(super) type Next = Option<Result<(Place, Object), RecordError>>;

pub(super) struct Source {
    kind: &'static str,
    objects: Box<dyn Iterator<Item = Result<(Place, Object), RecordError>>>,
    failed: bool,
}

impl Source {
    /// Opens a file as what its name says, else as what its first bytes say. `is_record` tells a record from an object that
    /// holds the records.
    pub fn open(path: &Path, is_record: &dyn Fn(&Object) -> bool) -> Result<Self, RecordError> {
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(|e| io(path, e))?);
        let name: Arc<str> = path.display().to_string().into();
        let start = file.fill_buf().map_err(|e| io(path, e))?;
        let kind = kind_of(path, start)?;
        let objects: Box<dyn Iterator<Item = _>> = match kind {
            Kind::Lines => Box::new(jsonl::Lines::new(name, file)),
            Kind::Json => json::open(name, file, is_record)?,
            Kind::Table(delimiter) => Box::new(csv::Table::open(name, file, delimiter)?),
            Kind::Parquet => Box::new(parquet::Rows::open(path)?),
        };
        Ok(Self { kind: kind.name(), objects, failed: false })
    }

    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The next object. Nothing follows an error, behind which no place in the file is certain.
    pub fn next(&mut self) -> Next {
        let next = if self.failed { None } else { self.objects.next() };
        self.failed |= matches!(next, Some(Err(_)));
        next
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Lines,
    Json,
    Table(u8),
    Parquet,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Lines => "JSON Lines",
            Self::Json => "JSON",
            Self::Table(_) => "CSV",
            Self::Parquet => "Parquet",
        }
    }
}

fn kind_of(path: &Path, start: &[u8]) -> Result<Kind, RecordError> {
    let file = |what: &str, hint| {
        Err(RecordError::File { path: path.display().to_string(), what: what.into(), hint })
    };
    if start.starts_with(b"\x1f\x8b") || start.starts_with(b"\x28\xb5\x2f\xfd") {
        return file("it is compressed", "decompress it first (`gunzip` or `unzstd`)");
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    Ok(match extension.as_deref() {
        Some("jsonl" | "ndjson") => Kind::Lines,
        Some("json") => Kind::Json,
        Some("csv") => Kind::Table(b','),
        Some("tsv") => Kind::Table(b'\t'),
        Some("parquet" | "pq") => Kind::Parquet,
        _ if start.starts_with(b"PAR1") => Kind::Parquet,
        _ => {
            let first = without_mark(start).iter().find(|b| !b.is_ascii_whitespace());
            if first == Some(&b'[') { Kind::Json } else { Kind::Lines }
        }
    })
}

/// Editors on Windows begin a file with a byte-order mark, which JSON does not allow.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// An object of JSON, or what is wrong with it and at which line (from 0) of the bytes.
fn object(bytes: &[u8], hint: &'static str) -> Result<Object, (u64, String, &'static str)> {
    use super::fields::type_name;

    let text = str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = before.iter().filter(|&&b| b == b'\n').count();
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        (line as u64, format!("byte {column} of the line is not UTF-8"), "save the file as UTF-8")
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err((0, format!("this is {}, not an object", type_name(&other)), hint)),
        Err(e) => {
            let what = e.to_string();
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
            let line = e.line().saturating_sub(1) as u64;
            Err((line, format!("not JSON at column {}: {what}", e.column()), hint))
        }
    }
}

fn too_long() -> String {
    format!("the record is longer than {MAX_RECORD_BYTES} bytes")
}
