//! JSON Lines: one object a line. Blank lines are skipped.

use std::{
    io::{BufRead, Read},
    sync::Arc,
};

use super::{MAX_RECORD_BYTES, Next, Object, object, too_long, without_mark};
use crate::records::error::{Place, RecordError, Unit};

const ONE_A_LINE: &str =
    "every line must be one complete JSON object; a file that is one array has a name that ends in .json";

pub(super) struct Lines<R> {
    path: Arc<str>,
    reader: R,
    /// Number of the last line read, from 1.
    line: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(path: Arc<str>, reader: R) -> Self {
        Self { path, reader, line: 0 }
    }

    fn at(&self) -> Place {
        Place::new(&self.path, Unit::Line, self.line)
    }

    fn malformed(&self, what: String, hint: &'static str) -> RecordError {
        RecordError::Malformed { at: self.at(), what, hint }
    }

    fn read(&mut self) -> Result<Option<(Place, Object)>, RecordError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let mut line = self.reader.by_ref().take(MAX_RECORD_BYTES as u64 + 1);
            let read = line
                .read_until(b'\n', &mut bytes)
                .map_err(|source| RecordError::Io { path: self.path.to_string(), source })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if bytes.len() > MAX_RECORD_BYTES {
                return Err(self.malformed(too_long(), ONE_A_LINE));
            }
            let content = if self.line == 1 { without_mark(&bytes) } else { &bytes };
            if !content.iter().all(u8::is_ascii_whitespace) {
                let map = object(content, ONE_A_LINE);
                return match map {
                    Ok(map) => Ok(Some((self.at(), map))),
                    Err((_, what, hint)) => Err(self.malformed(what, hint)),
                };
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<(Place, Object), RecordError>;

    fn next(&mut self) -> Next {
        self.read().transpose()
    }
}
