//! CSV and TSV with a header. Every cell is a string; lists in a cell are JSON.

use std::{
    io::{self, Read},
    sync::Arc,
};

use csv::{ByteRecord, Reader, ReaderBuilder};
use serde_json::Value;

use super::{MAX_RECORD_BYTES, Next, Object, too_long};
use crate::records::error::{Place, RecordError, Unit};

const QUOTES: &str =
    "a cell with separators, quotes or line ends stands in quotes, and a quote in it is doubled";

pub(super) struct Table<R> {
    path: Arc<str>,
    reader: Reader<Limited<R>>,
    header: Vec<String>,
    row: ByteRecord,
    /// Line of a record whose last cell goes over several lines, and so is in quotes.
    quoted: Option<u64>,
}

impl<R: Read> Table<R> {
    pub fn open(path: Arc<str>, reader: R, delimiter: u8) -> Result<Self, RecordError> {
        let limited = Limited { inner: reader, left: ALLOWANCE, last: 0 };
        let reader = ReaderBuilder::new().delimiter(delimiter).from_reader(limited);
        let mut table = Self { path, reader, header: Vec::new(), row: ByteRecord::new(), quoted: None };
        let header = match table.reader.byte_headers() {
            Ok(header) => header.clone(),
            Err(e) => return Err(table.error(e)),
        };
        for cell in &header {
            let cell = table.utf8(cell, 1)?.to_string();
            if table.header.contains(&cell) {
                return Err(table.malformed(
                    1,
                    format!("column \"{cell}\" comes twice"),
                    "rename one of the two",
                ));
            }
            table.header.push(cell);
        }
        Ok(table)
    }

    fn malformed(&self, line: u64, what: String, hint: &'static str) -> RecordError {
        RecordError::Malformed { at: Place::new(&self.path, Unit::Line, line), what, hint }
    }

    fn utf8<'a>(&self, cell: &'a [u8], line: u64) -> Result<&'a str, RecordError> {
        str::from_utf8(cell)
            .map_err(|_| self.malformed(line, "a cell is not UTF-8".into(), "save the file as UTF-8"))
    }

    fn error(&self, e: csv::Error) -> RecordError {
        let line = e.position().map_or(self.reader.position().line(), csv::Position::line);
        match e.into_kind() {
            csv::ErrorKind::Io(e) if e.kind() == io::ErrorKind::FileTooLarge => {
                self.malformed(line, too_long(), QUOTES)
            }
            csv::ErrorKind::Io(source) => RecordError::Io { path: self.path.to_string(), source },
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                self.malformed(line, format!("{len} cells in a table of {expected_len} columns"), QUOTES)
            }
            other => self.malformed(line, format!("{other:?}"), QUOTES),
        }
    }

    fn read(&mut self) -> Result<Option<(Place, Object)>, RecordError> {
        self.reader.get_mut().left = ALLOWANCE;
        let mut row = std::mem::take(&mut self.row);
        if !self.reader.read_byte_record(&mut row).map_err(|e| self.error(e))? {
            return match self.quoted.take() {
                Some(line) if self.reader.get_ref().last != b'"' => {
                    Err(self.malformed(line, "a quoted cell does not end".into(), QUOTES))
                }
                _ => Ok(None),
            };
        }
        let line = row.position().map_or(0, csv::Position::line);
        self.quoted = row.iter().next_back().filter(|cell| cell.contains(&b'\n')).map(|_| line);
        let mut map = Object::new();
        for (key, cell) in self.header.iter().zip(&row) {
            map.insert(key.clone(), Value::String(self.utf8(cell, line)?.to_string()));
        }
        self.row = row;
        Ok(Some((Place::new(&self.path, Unit::Line, line), map)))
    }
}

impl<R: Read> Iterator for Table<R> {
    type Item = Result<(Place, Object), RecordError>;

    fn next(&mut self) -> Next {
        self.read().transpose()
    }
}

/// Bytes that one record may take, and the reader's buffer.
const ALLOWANCE: usize = MAX_RECORD_BYTES + (1 << 16);

/// A reader that fails when a record does not end: a quote that is never closed would have the rest of the file read.
struct Limited<R> {
    inner: R,
    left: usize,
    /// The last byte read that ends no line.
    last: u8,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let most = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..most])?;
        self.left -= read;
        let content = buffer[..read].iter().rev().find(|b| !matches!(b, b'\r' | b'\n'));
        self.last = content.copied().unwrap_or(self.last);
        Ok(read)
    }
}
