//! Parquet, row by row: a page of every column is in memory at a time, or as many as a row of lists needs, and [`pages`] says how large
//! they may be together. Pages of lists, and of encodings whose lengths or bytes stand apart from the values (DELTA_LENGTH_BYTE_ARRAY,
//! DELTA_BYTE_ARRAY and BYTE_STREAM_SPLIT), are unpacked twice: once to know what rows take, and once to read them.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use parquet::{
    basic::Compression,
    file::{
        metadata::{ColumnChunkMetaData, RowGroupMetaData},
        reader::{FileReader, SerializedFileReader},
    },
    record::{Field, Row, reader::RowIter},
};
use serde_json::{Number, Value};

use super::{
    Next, Object, footer,
    pages::{self, DAMAGED},
};
use crate::records::error::{Place, RecordError, Unit, io};

const COMPRESSIONS: &str =
    "write it anew with snappy, zstd or gzip, e.g. `df.to_parquet(path, compression=\"zstd\")`";

/// Records that the library unpacks of a column at once. It holds all the pages that they come from, and is no slower for one.
const BATCH: usize = 1;

pub(super) struct Rows {
    path: Arc<str>,
    rows: RowIter<'static>,
    row: u64,
}

impl Rows {
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let file = File::open(path).map_err(|e| io(path, e))?;
        let name: Arc<str> = path.display().to_string().into();
        let wrong = |what, hint| RecordError::File { path: name.to_string(), what, hint };
        footer::check(&file).map_err(|what| wrong(what, DAMAGED))?;
        let reader = guarded(|| SerializedFileReader::new(file.try_clone()?))
            .map_err(|e| wrong(format!("it is no Parquet file that can be read: {e}"), DAMAGED))?;
        if let Some(compression) = unknown_compression(&reader) {
            return Err(wrong(format!("it is compressed with {compression:?}"), COMPRESSIONS));
        }
        let checked = guarded(|| Ok(pages::check(&file, &reader)));
        checked.map_err(|what| wrong(what, DAMAGED))?.map_err(|(what, hint)| wrong(what, hint))?;
        let rows = RowIter::from_file_into(Box::new(reader)).with_batch_size(BATCH);
        Ok(Self { path: name, rows, row: 0 })
    }

    fn malformed(&self, what: String, hint: &'static str) -> RecordError {
        RecordError::Malformed { at: Place::new(&self.path, Unit::Row, self.row), what, hint }
    }
}

impl Iterator for Rows {
    type Item = Result<(Place, Object), RecordError>;

    fn next(&mut self) -> Next {
        self.row += 1;
        let row = match guarded(|| self.rows.next().transpose()) {
            Ok(row) => row?,
            Err(e) => return Some(Err(self.malformed(format!("the row cannot be read: {e}"), DAMAGED))),
        };
        Some(Ok((Place::new(&self.path, Unit::Row, self.row), object(row))))
    }
}

/// A compression in the file that is not read here.
fn unknown_compression(reader: &impl FileReader) -> Option<Compression> {
    let chunks = reader.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns);
    let known = |c: &Compression| {
        use Compression::{GZIP, SNAPPY, UNCOMPRESSED, ZSTD};
        matches!(c, UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_))
    };
    chunks.map(ColumnChunkMetaData::compression).find(|c| !known(c))
}

/// What the library answers. It checks checksums of nothing, and panics on some damaged files.
fn guarded<T>(f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the file is damaged".into()),
    }
}

fn object(row: Row) -> Object {
    // Most of a file is text, which need not be copied.
    let own = |field| match field {
        Field::Str(text) => text.into(),
        other => value(&other),
    };
    row.into_columns().into_iter().map(|(key, field)| (key, own(field))).collect()
}

/// A field as JSON. Only what holds no others is copied: what is in a hundred lists would be a hundred times. Bytes that are no text are
/// none: pictures may stand in columns that nobody reads.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => (*b).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float16(n) => float(n.to_f64()),
        Field::Float(n) => float(f64::from(*n)),
        Field::Double(n) => float(*n),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => {
            Value::Object(row.get_column_iter().map(|(key, field)| (key.clone(), value(field))).collect())
        }
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let entry = |(key, v): &(Field, Field)| {
                let key = match value(key) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (key, value(v))
            };
            Value::Object(map.entries().iter().map(entry).collect())
        }
        // Dates, times and decimals as they print.
        other => other.to_string().into(),
    }
}

fn float(n: f64) -> Value {
    Number::from_f64(n).map_or(Value::Null, Value::Number)
}
