//! Parquet's pages, looked over before rows are read. The library trusts the sizes in their headers: for Snappy it fills as many bytes
//! as are declared, 2 GiB for a file of a hundred, and as many values as a dictionary is said to have; what comes out of gzip it counts
//! afterwards. Zstandard ends at the declared size.
//!
//! A header that is not read here as the library reads it could hide another, so what is malformed is refused.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use flate2::read::MultiGzDecoder;
use parquet::{
    basic::Compression,
    data_type::ByteArray,
    file::{
        metadata::{ColumnChunkMetaData, RowGroupMetaData},
        reader::FileReader,
    },
};

use super::{
    lists,
    shapes::{self, Shape},
    thrift::{BOOLEANS, Bytes, DEEPEST, INTEGER, STRUCT, Stop, Walk},
};

/// Most that the pages of a row group may take, bytes: the dictionary and the largest page of every column together, as a row is made of
/// all columns, and the largest row of each column of lists. Writers make pages of about 1 MiB, so a thousand columns pass. The library may
/// have more of one column for a while: the page before the one that it unpacks, and the last of each encoding that the column changes
/// between.
const MOST: u64 = 1 << 30;
/// What a value of a dictionary takes beside its bytes.
const VALUE: u64 = size_of::<ByteArray>() as u64;
/// Most that comes out of a byte of Snappy: three of them make at most 64.
const SNAPPY: u64 = 22;
/// Bytes of a file that are read at once.
const WINDOW: usize = 4096;

/// Types of pages: one that the library steps over, and one that is no data.
const INDEX: i32 = 1;
const DICTIONARY: i32 = 2;
/// Encodings whose pages have to be unpacked to know what they take: DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY, of strings with their
/// lengths in front, and BYTE_STREAM_SPLIT.
const UNPACKED: [i32; 3] = [6, 7, 9];
/// Most digits behind the point of a decimal. The library puts zeros in front one by one, each before all the others.
const SCALE: i32 = 1000;

pub(super) const DAMAGED: &str = "check that it is whole, or write it anew";
const SMALLER: &str =
    "write it anew with smaller pages or row groups, e.g. `df.to_parquet(path, row_group_size=1000)`";
const SPLIT: &str = "split the row, e.g. a conversation into several of fewer messages";

/// What is wrong, and how to mend it.
pub(super) type Wrong = (String, &'static str);

/// Refuses pages and rows that would take memory without measure, or whose headers are damaged.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn check(file: &File, reader: &dyn FileReader) -> Result<(), Wrong> {
    let length = file.metadata().map_err(|e| (format!("it cannot be read: {e}"), DAMAGED))?.len();
    let groups = reader.metadata().row_groups();
    // Columns upon one another would be walked, and read, for as long as somebody likes.
    let mut columns = groups.iter().flat_map(RowGroupMetaData::columns);
    let total = columns.try_fold(0u64, |sum, c| sum.checked_add(u64::try_from(c.compressed_size()).ok()?));
    if total.is_none_or(|total| total > length) {
        return Err(("its columns do not fit into the file".into(), DAMAGED));
    }
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    if let Some(column) = columns.iter().find(|column| column.type_scale() > SCALE) {
        let (path, scale) = (column.path(), column.type_scale());
        let what = format!(
            "column {path}: its decimals have {scale} digits behind the point, and {SCALE} are the most"
        );
        return Err((what, "write it anew with numbers of another type"));
    }
    // The library finds columns by their names, and would read the last of those that are alike for each of them.
    let mut paths = HashSet::new();
    if let Some(column) = columns.iter().find(|column| !paths.insert(column.path().parts())) {
        return Err((format!("column {} comes twice", column.path()), "rename one of the two"));
    }
    let mut shapes = shapes::shapes(reader.metadata().file_metadata().schema());
    (0..groups.len()).try_for_each(|group| {
        shapes.iter_mut().for_each(Shape::reset);
        check_group(file, length, reader, group, &mut shapes)
    })
}

fn check_group(
    file: &File,
    length: u64,
    reader: &dyn FileReader,
    number: usize,
    shapes: &mut [Shape],
) -> Result<(), Wrong> {
    let group = reader.metadata().row_group(number);
    let mut sum = 0u64;
    for (column, i) in group.columns().iter().zip(0..) {
        let at = |what| format!("row group {}, column {}: {what}", number + 1, column.column_path());
        let damaged = |what| (at(what), DAMAGED);
        let mut add = |bytes, what, hint| {
            sum = sum.saturating_add(bytes);
            let most = format!("{sum} bytes, and {MOST} are the most that is read");
            if sum > MOST {
                Err((at(format!("{what} up to this one takes {most}")), hint))
            } else {
                Ok(MOST - sum)
            }
        };
        let found = Chunk::new(file, column, length).and_then(Chunk::memory).map_err(damaged)?;
        let left = add(found.memory, "a page of each column", SMALLER)?;
        let column = column.column_descr();
        let lists = column.max_rep_level() > 0;
        if lists || found.unpacked {
            let pages = reader.get_row_group(number).and_then(|group| group.get_column_page_reader(i));
            let pages = pages.map_err(|e| damaged(format!("it cannot be read: {e}")))?;
            let row = lists::memory(pages, column, left, &mut shapes[i]).map_err(damaged)?;
            add(row, "a row of each column", if lists { SPLIT } else { SMALLER })?;
            if let Some([before, this]) = i.checked_sub(1).and_then(|i| shapes.get_mut(i..i + 2))
                && !before.agrees(this)
            {
                return Err(damaged("its lists are not as long as those of the column before".into()));
            }
        }
    }
    Ok(())
}

/// What was found in the pages of a column.
struct Found {
    /// Bytes that the dictionary and the largest page take.
    memory: u64,
    /// Whether one has to be unpacked to know what it takes.
    unpacked: bool,
}

/// A column of a row group.
struct Chunk<'a> {
    walk: Walk<Window<'a>>,
    compression: Compression,
}

impl<'a> Chunk<'a> {
    fn new(file: &'a File, column: &ColumnChunkMetaData, length: u64) -> Result<Self, String> {
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let (start, size) = (u64::try_from(start).ok(), u64::try_from(column.compressed_size()).ok());
        let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
        match (start, end.filter(|end| *end <= length)) {
            (Some(start), Some(end)) => {
                Ok(Self { walk: Walk(Window::new(file, start, end)), compression: column.compression() })
            }
            _ => Err("it does not lie in the file".into()),
        }
    }

    fn memory(mut self) -> Result<Found, String> {
        let (mut dictionary, mut largest, mut unpacked) = (0u64, 0, false);
        while self.walk.0.at < self.walk.0.end {
            let at = self.walk.0.at;
            let page = self.page().map_err(|what| format!("the page at byte {at} {what}"))?;
            // What is not compressed is as large as it is, whatever it says.
            let size = page.declared.max(page.stored);
            unpacked |= page.unpacked;
            match page.kind {
                INDEX => {}
                DICTIONARY => {
                    dictionary =
                        dictionary.saturating_add(size).saturating_add(page.values.saturating_mul(VALUE));
                }
                _ => largest = largest.max(size),
            }
        }
        Ok(Found { memory: dictionary.saturating_add(largest), unpacked })
    }

    /// The next page, behind which the walk then is.
    fn page(&mut self) -> Result<Page, String> {
        let page = Page::read(&mut self.walk).map_err(|stop| match stop {
            Stop::Malformed => "has a damaged header".to_string(),
            Stop::Empty(n) => format!("has a list of {n} values without any bytes"),
            Stop::Refused(what) => what,
        })?;
        let Window { file, at: body, .. } = self.walk.0;
        self.walk.0.skip(page.stored).map_err(|_| "is longer than its column".to_string())?;
        let (stored, declared) = (page.stored - page.levels, page.declared - page.levels);
        match self.compression {
            _ if !page.compressed || page.kind == INDEX => {}
            Compression::SNAPPY if declared / SNAPPY > stored => {
                return Err(format!("cannot hold the {} bytes that it declares", page.declared));
            }
            Compression::GZIP(_) if declared > 0 => {
                let piece = Piece { file, at: body + page.levels, end: body + page.stored };
                if more_than(piece, declared) {
                    return Err(format!("holds more than the {} bytes that it declares", page.declared));
                }
            }
            _ => {}
        }
        let packed = page.compressed && self.compression != Compression::UNCOMPRESSED;
        let bytes = if packed { page.declared } else { page.stored };
        if page.kind == DICTIONARY && page.values > bytes {
            return Err(format!("has a dictionary of {} values in {bytes} bytes", page.values));
        }
        Ok(page)
    }
}

/// Whether more comes out of gzip than so many bytes. What cannot be unpacked ends before, for the library too.
fn more_than(packed: impl Read, most: u64) -> bool {
    let mut unpacked = MultiGzDecoder::new(packed).take(most.saturating_add(1));
    io::copy(&mut unpacked, &mut io::sink()).is_ok_and(|n| n > most)
}

/// What a page's header says.
struct Page {
    kind: i32,
    /// Bytes in the file, behind the header.
    stored: u64,
    /// Bytes in memory.
    declared: u64,
    /// Bytes in front that are never compressed, of both.
    levels: u64,
    compressed: bool,
    /// Values of a dictionary.
    values: u64,
    /// Whether it has to be unpacked to know what it takes.
    unpacked: bool,
}

impl Page {
    fn read(walk: &mut Walk<Window>) -> Result<Self, Stop> {
        let mut whole = Part::default();
        let [mut first, mut dictionary, mut second] = [(); 3].map(|()| Part::default());
        walk.fields(DEEPEST, |walk, number, kind| match (number, kind) {
            (1..=4, _) => whole.field(walk, 4, number, kind),
            (5, STRUCT) => Part::read(walk, 4).map(|part| first = part).map(|()| true),
            (7, STRUCT) => Part::read(walk, 2).map(|part| dictionary = part).map(|()| true),
            (8, STRUCT) => Part::read(walk, 6).map(|part| second = part).map(|()| true),
            (5 | 7 | 8, _) => Err(Stop::Malformed),
            _ => Ok(false),
        })?;
        let size = |n: i32| u64::try_from(n).map_err(|_| Stop::Malformed);
        let [kind, declared, stored, ..] = whole.integers;
        let [.., encoding, definitions, repetitions] = second.integers;
        let page = Self {
            kind,
            stored: size(stored)?,
            declared: size(declared)?,
            levels: size(definitions)? + size(repetitions)?,
            compressed: second.flag.unwrap_or(true),
            values: size(dictionary.integers[0])?,
            unpacked: [encoding, first.integers[1]].iter().any(|encoding| UNPACKED.contains(encoding)),
        };
        if page.levels > page.declared.min(page.stored) {
            return Err(Stop::Malformed);
        }
        Ok(page)
    }
}

/// A structure of a header: integers, and a boolean behind them.
#[derive(Default)]
struct Part {
    integers: [i32; 6],
    flag: Option<bool>,
}

impl Part {
    /// A structure whose first `n` fields are integers.
    fn read(walk: &mut Walk<Window>, n: i16) -> Result<Self, Stop> {
        let mut part = Self::default();
        walk.fields(DEEPEST, |walk, number, kind| part.field(walk, n, number, kind))?;
        Ok(part)
    }

    /// The library takes these for integers whatever type they have, and would go on elsewhere than the walk.
    fn field(&mut self, walk: &mut Walk<Window>, n: i16, number: i16, kind: u8) -> Result<bool, Stop> {
        let place = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        match place.and_then(|place| self.integers.get_mut(place)) {
            Some(integer) if number <= n && kind == INTEGER => *integer = walk.integer()?,
            Some(_) if number <= n => return Err(Stop::Malformed),
            _ => {
                if number == n + 1 && BOOLEANS.contains(&kind) {
                    self.flag = Some(kind == BOOLEANS[0]);
                }
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Bytes of a file, read a few at a time where the walk goes.
struct Window<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    /// What is read, from `from` on.
    bytes: Vec<u8>,
    from: u64,
}

impl<'a> Window<'a> {
    fn new(file: &'a File, at: u64, end: u64) -> Self {
        Self { file, at, end, bytes: Vec::new(), from: at }
    }

    /// The byte at `at`, if it is read.
    fn seen(&self) -> Option<u8> {
        let place = self.at.checked_sub(self.from)?;
        self.bytes.get(usize::try_from(place).ok()?).copied()
    }
}

impl Bytes for Window<'_> {
    fn byte(&mut self) -> Result<u8, Stop> {
        if self.at >= self.end {
            return Err(Stop::Malformed);
        }
        if self.seen().is_none() {
            let n = (self.end - self.at).min(WINDOW as u64) as usize;
            self.bytes.resize(n, 0);
            self.from = self.at;
            self.file.read_exact_at(&mut self.bytes, self.at).map_err(|_| Stop::Malformed)?;
        }
        let byte = self.seen().ok_or(Stop::Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, n: u64) -> Result<(), Stop> {
        self.at = self.at.checked_add(n).filter(|at| *at <= self.end).ok_or(Stop::Malformed)?;
        Ok(())
    }
}

/// A piece of a file, as it is read for a decompressor.
struct Piece<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = (self.end - self.at).min(bytes.len() as u64) as usize;
        let n = self.file.read_at(&mut bytes[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
