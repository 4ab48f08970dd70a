//! JSON: an array of objects, objects one after the other, or one object that holds the array.
//!
//! Values are cut out of the text by counting brackets, and parsed one by one.

use std::{io::BufRead, sync::Arc};

use serde_json::Value;

use super::{MAX_RECORD_BYTES, Next, Object, object, too_long, without_mark};
use crate::records::{
    error::{Place, RecordError, Unit},
    fields::quoted,
};

const OBJECTS: &str =
    "the file must be an array of objects, objects one after the other, or an object that holds the array";

/// Largest file that is one object, bytes: it is read whole.
const MAX_WHOLE_BYTES: usize = 1 << 30;

type Objects = Box<dyn Iterator<Item = Result<(Place, Object), RecordError>>>;

/// The objects of a file.
pub(super) fn open(
    path: Arc<str>,
    reader: impl BufRead + 'static,
    is_record: &dyn Fn(&Object) -> bool,
) -> Result<Objects, RecordError> {
    let mut text = Text { path, reader, line: 1, begun: false };
    match text.peek()? {
        Some(b'[') => {
            text.skip();
            Ok(Box::new(Values { text, array: true, state: State::First }))
        }
        Some(b'{') => {
            let at = text.at();
            let map = text.object(MAX_WHOLE_BYTES)?;
            let first = (at, map);
            if text.peek()?.is_some() || is_record(&first.1) {
                let rest = Values { text, array: false, state: State::First };
                Ok(Box::new(std::iter::once(Ok(first)).chain(rest)))
            } else {
                wrapped(&text.path, first)
            }
        }
        Some(_) => Err(text.malformed("the file begins with neither `[` nor `{`".into())),
        None => Ok(Box::new(std::iter::empty())),
    }
}

/// The records of the only array of objects in an object; the object itself where there is none.
fn wrapped(path: &Arc<str>, (at, mut map): (Place, Object)) -> Result<Objects, RecordError> {
    let holds = |value: &Value| {
        value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
    };
    let keys: Vec<String> = map.iter().filter(|(_, v)| holds(v)).map(|(key, _)| key.clone()).collect();
    let key = match keys.as_slice() {
        [] => return Ok(Box::new(std::iter::once(Ok((at, map))))),
        [key] => key,
        many => {
            return Err(RecordError::File {
                path: path.to_string(),
                what: format!(
                    "it holds several arrays of objects: {}",
                    quoted(many.iter().map(String::as_str))
                ),
                hint: "keep one, e.g. with `jq .train data.json`",
            });
        }
    };
    let Some(Value::Array(list)) = map.remove(key) else { unreachable!("it was an array") };
    let path = path.clone();
    let objects = list.into_iter().zip(1..).map(move |(value, number)| match value {
        Value::Object(map) => Ok((Place::new(&path, Unit::Row, number), map)),
        _ => unreachable!("all are objects"),
    });
    Ok(Box::new(objects))
}

/// Bytes with the line that they are on.
struct Text<R> {
    path: Arc<str>,
    reader: R,
    line: u64,
    begun: bool,
}

impl<R: BufRead> Text<R> {
    fn at(&self) -> Place {
        Place::new(&self.path, Unit::Line, self.line)
    }

    fn malformed(&self, what: String) -> RecordError {
        RecordError::Malformed { at: self.at(), what, hint: OBJECTS }
    }

    fn buffer(&mut self) -> Result<&[u8], RecordError> {
        self.reader.fill_buf().map_err(|source| RecordError::Io { path: self.path.to_string(), source })
    }

    /// The next byte that is no white space, which stays.
    fn peek(&mut self) -> Result<Option<u8>, RecordError> {
        if !self.begun {
            self.begun = true;
            let mark = self.buffer()?;
            let mark = mark.len() - without_mark(mark).len();
            self.reader.consume(mark);
        }
        loop {
            let Some(&byte) = self.buffer()?.first() else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.reader.consume(1);
        }
    }

    /// Passes over the byte that `peek` showed.
    fn skip(&mut self) {
        self.reader.consume(1);
    }

    /// The object that begins here.
    fn object(&mut self, most: usize) -> Result<Object, RecordError> {
        let (start, mut bytes, mut scan) = (self.line, Vec::new(), Scan::default());
        loop {
            let buffer = self.buffer()?;
            if buffer.is_empty() {
                return Err(self.malformed("the file ends inside a record".into()));
            }
            let end = scan.end(buffer);
            let taken = end.unwrap_or(buffer.len());
            let lines = buffer[..taken].iter().filter(|&&b| b == b'\n').count() as u64;
            if bytes.len() + taken > most {
                return Err(self.malformed(too_long()));
            }
            bytes.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            self.line += lines;
            if end.is_some() {
                return object(&bytes, OBJECTS).map_err(|(line, what, hint)| {
                    let at = Place::new(&self.path, Unit::Line, start + line);
                    RecordError::Malformed { at, what, hint }
                });
            }
        }
    }
}

/// Where a value ends, told by its brackets.
#[derive(Default)]
struct Scan {
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Scan {
    /// Bytes up to and with the last bracket, if it is among these.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        for (i, &byte) in bytes.iter().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.string => self.escaped = true,
                b'"' => self.string = !self.string,
                _ if self.string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(i + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

enum State {
    /// Nothing of the array has been read.
    First,
    More,
    Done,
}

/// Objects of an array, or one after the other.
struct Values<R> {
    text: Text<R>,
    array: bool,
    state: State,
}

impl<R: BufRead> Values<R> {
    fn read(&mut self) -> Result<Option<(Place, Object)>, RecordError> {
        let text = &mut self.text;
        if self.array {
            match (text.peek()?, &self.state) {
                (None, State::Done) => return Ok(None),
                (Some(_), State::Done) => return Err(text.malformed("something follows the array".into())),
                (Some(b']'), _) => {
                    text.skip();
                    self.state = State::Done;
                    return self.read();
                }
                (Some(b','), State::More) => text.skip(),
                (_, State::First) => {}
                (Some(_), State::More) => return Err(text.malformed("a comma is missing".into())),
                (None, State::More) => return Err(text.malformed("the array does not end".into())),
            }
        }
        self.state = State::More;
        match text.peek()? {
            Some(b'{') => {
                let at = text.at();
                Ok(Some((at, text.object(MAX_RECORD_BYTES)?)))
            }
            None if !self.array => Ok(None),
            None => Err(text.malformed("the array does not end".into())),
            Some(_) => Err(text.malformed("this is not an object".into())),
        }
    }
}

impl<R: BufRead> Iterator for Values<R> {
    type Item = Result<(Place, Object), RecordError>;

    fn next(&mut self) -> Next {
        self.read().transpose()
    }
}
